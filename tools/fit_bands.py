"""Fit the bands around estimates: how far off the laws are on measured rows, class by class.

``python tools/fit_bands.py [FILE ...]`` runs the laws over the packaged rows and any further files, and writes
``catalog/data/bands.yaml``. A class is a kind of row, or one of its groups. Its band is the interval between two order
statistics of ln(measured time / predicted time), with the correction for finite samples of split conformal prediction
(V. Vovk et al., Algorithmic Learning in a Random World, 2005; Y. Romano et al., arXiv:1905.03222). Rows of one source
and model are alike, so the coverage is cross-validated with such clusters left out whole, and the interval is widened,
or narrowed, until it holds four of five rows that were left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zhenfa.errors import ZhenfaError
from zhenfa.estimate import engines
from zhenfa.spec import yaml
from zhenfa.validation import kinds, train_mixed, training
from zhenfa.validation.banding import class_names, residual
from zhenfa.validation.rows import Fault, Row, packaged, read_rows
from zhenfa.validation.run import read_sorted

OUT = Path(__file__).parent.parent / "src" / "zhenfa" / "catalog" / "data" / "bands.yaml"
TARGET = 0.80
FOLDS = 10
FEWEST = 25
FEWEST_SPLIT = 40
"""Rows of a class that is split by the family of the metric."""

APART = (" & law", " & exact", " & curve")
FEWEST_APART = 10
"""Rows of a class that must not be mixed with others, few as they are."""

LEVELS = np.arange(0.60, 0.985, 0.01)
LARGEST = 0.25
"""The largest share of a class that one cluster is counted as."""

LEAST = 0.6
"""A class whose band holds fewer of the rows left out than this is too uneven to stand by itself."""

SLACK = 0.04
"""How much more than the target a band may hold of all rows of its class, so that those left out come near it."""

TRAINING: dict[str, dict[str, Any]] = {
    "train / dense / NVIDIA / tier A": {"quantity": "step", "makers": ["NVIDIA"], "mixture": False},
    "train / MoE / tier A": {"quantity": "step", "makers": ["NVIDIA"], "mixture": True},
    "train / Ascend": {"quantity": "step", "makers": ["Huawei Ascend"], "mixture": False},
    "train / other": {"quantity": "step", "makers": None, "mixture": None},
    "train / memory": {"quantity": "memory"},
}
"""Which plans the classes of training rows stand for."""

LEFT_OUT = "train / generation left out"
"""Steps on a generation of cards of which no training row was measured: every generation predicted from the others."""

CHIP_LEFT_OUT = "train / chip left out"
"""What comes to that on a chip without rows of its own, in a generation that has some: chips against their siblings."""

FEWEST_OF_A_CHIP = 3

HEAD = """\
# Bands around estimates: four of five measured times lie between low and high times the predicted one (of a rate, the
# reciprocals). Written by tools/fit_bands.py from the residuals of measured rows; n rows, in so many clusters of one
# source and model; coverage: the share held of rows whose cluster was left out of the fit.
"""


@dataclass(frozen=True)
class Residuals:
    """The residuals of one class, and the cluster of each."""

    values: np.ndarray
    clusters: np.ndarray


def cluster(record: Mapping[str, Any], kind: str) -> str:
    """Return the name of the rows that are likely to be off together: one source, one model."""
    source, model = record.get("source"), record.get("model")
    title = source.get("title") if isinstance(source, Mapping) else source
    name = model.get("name") if isinstance(model, Mapping) else model
    if isinstance(record.get("group"), str):
        return f"{kind}|{record['group']}"
    parts = (kind, title, name, record.get("system"), record.get("op"), record.get("chip"), record.get("engine"))
    return "|".join(str(part) for part in parts if part is not None)


def collect(paths: Sequence[Path | str]) -> dict[str, Residuals]:
    """Return the residuals of every class over the rows of the files."""
    found: dict[str, list[tuple[float, str]]] = {}
    seen: set[tuple[str, str]] = set()
    for item in read_sorted(paths):
        if isinstance(item, Fault):
            print("not read:", item.place, item.reason)
            continue
        row, kind = item
        mark = (kind, str(row.record.get("id", row.place)))
        if mark in seen:  # packaged, and in a further file too
            continue
        seen.add(mark)
        name = cluster(row.record, kind)
        for outcome in kinds.outcomes(row.record, kind, row.place):
            off = residual(outcome)
            if off is not None:
                for wide in class_names(outcome):
                    found.setdefault(wide, []).append((off, name))
    return {
        wide: Residuals(np.array([value for value, _ in pairs]), np.array([name for _, name in pairs]))
        for wide, pairs in found.items()
    }


def left_out(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the bands of steps on generations, and on chips, that no row was measured on.

    A generation's rows are predicted without what was fitted to it: by the median of the other generations. Each counts
    the same, however many rows it has. A chip's median residual is laid beside that of its generation's other chips.
    """
    known, found, apart, listed = engines.fits(), {}, {}, set()
    chips: dict[str, dict[str, list[float]]] = {}
    for name, rows in by_generation(records).items():
        for record, chip in rows:
            chips.setdefault(name, {}).setdefault(chip, []).extend(steps(record))
            listed.add(chip)
        engines.use_fits({key: value for key, value in known.items() if name not in key.split("/")})
        found[name] = sorted(value for record, _ in rows for value in steps(record))
        engines.use_fits(known)
    each = min(len(values) for values in found.values())
    spread = [(np.quantile(values, np.linspace(0, 1, each)), name) for name, values in found.items()]
    for name, own in chips.items():
        full = {chip: values for chip, values in own.items() if len(values) >= FEWEST_OF_A_CHIP}
        for chip, values in full.items():
            others = [value for other, theirs in full.items() if other != chip for value in theirs]
            if others:
                apart[chip] = (float(np.median(values) - np.median(others)), name)
    one = fit(
        Residuals(np.concatenate([values for values, _ in spread]), np.repeat([name for _, name in spread], each))
    )
    other = Residuals(*(np.array(column) for column in zip(*apart.values(), strict=True)))
    low, high = interval(other.values, TARGET)
    return {
        LEFT_OUT: {**one, "n": sum(map(len, found.values())), "generations": sorted(found)},
        CHIP_LEFT_OUT: {
            "low": float(f"{math.exp(low):.6g}"), "high": float(f"{math.exp(high):.6g}"), "n": len(other.values),
            "clusters": len(np.unique(other.clusters)), "coverage": round(held_out(other, TARGET), 3),
            "chips": sorted(listed),
        },
    }  # fmt: skip


def by_generation(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[Mapping[str, Any], str]]]:
    """Return training rows with their chip, by the generation of cards that they ran on."""
    found: dict[str, list[tuple[Mapping[str, Any], str]]] = {}
    for record in records:
        if train_mixed.accepts(record):
            continue
        try:
            chip = training.read(record).formation.pools[0].accelerator.id
        except (ZhenfaError, ArithmeticError, LookupError, TypeError, ValueError):
            continue
        name = engines.generation(chip)
        if "matmul_share" in (engines.fits().get(name) or {}):
            found.setdefault(name, []).append((record, chip))
    return found


def steps(record: Mapping[str, Any]) -> list[float]:
    """Return the residual of a row's step, if it has one."""
    found = [residual(one) for one in training.outcomes(record) if one.groups != ("train / memory",)]
    return [one for one in found if one is not None]


def balanced(rows: Residuals) -> Residuals:
    """Return the rows without those by which one cluster would be more than a quarter of its class, so that a long
    sweep over one model does not speak for all.
    """
    names, counts = np.unique(rows.clusters, return_counts=True)
    kept = np.ones(len(rows.values), bool)
    for name, count in zip(names, counts, strict=True):
        most = max(int((len(rows.values) - count) * LARGEST / (1 - LARGEST)), FEWEST_APART)
        if count > most:
            places = np.flatnonzero(rows.clusters == name)
            kept[places] = False
            kept[places[np.linspace(0, count - 1, most).round().astype(int)]] = True
    return Residuals(rows.values[kept], rows.clusters[kept])


def interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Return the order statistics between which a further value lies with probability ``level``."""
    ordered, n = np.sort(values), len(values)
    low = max(math.floor((1 - level) / 2 * (n + 1)), 1) - 1
    high = min(math.ceil((1 + level) / 2 * (n + 1)), n) - 1
    return float(ordered[low]), float(ordered[high])


def held_out(rows: Residuals, level: float) -> float:
    """Return the share of the rows that an interval fitted without their cluster holds."""
    names = np.unique(rows.clusters)
    order = np.random.default_rng(7).permutation(len(names))
    fold_of = {names[at]: place % FOLDS for place, at in enumerate(order)}
    folds = np.array([fold_of[name] for name in rows.clusters])
    inside = 0
    for fold in range(min(FOLDS, len(names))):
        fitted, tested = rows.values[folds != fold], rows.values[folds == fold]
        if len(fitted):
            low, high = interval(fitted, level)
            inside += int(np.sum((tested >= low) & (tested <= high)))
    return inside / len(rows.values)


def fit(rows: Residuals) -> dict[str, float]:
    """Return the band of a class: the narrowest that holds four of five rows whose cluster was left out, as far as it
    does not hold many more of all rows than that.
    """
    every, rows = rows, balanced(rows)
    level, held = TARGET, 0.0
    for candidate in LEVELS:
        low, high = interval(rows.values, candidate)
        inside = np.mean((rows.values >= low) & (rows.values <= high))
        if inside > TARGET + SLACK and held >= TARGET - SLACK:
            break
        level, held = candidate, inside
        if inside >= TARGET - SLACK / 2 and held_out(rows, candidate) >= TARGET:
            break
    low, high = interval(rows.values, level)
    return {
        "low": float(f"{math.exp(low):.6g}"), "high": float(f"{math.exp(high):.6g}"), "n": len(every.values),
        "clusters": len(np.unique(rows.clusters)), "coverage": round(held_out(rows, level), 3),
    }  # fmt: skip


def wanted(name: str, rows: Residuals, all_rows: Mapping[str, Residuals]) -> bool:
    """Return whether a class is large enough, and clearly fewer rows than each broader one."""
    if name.startswith("operators"):  # which have bands of their own, by operator: see tools/fit_kernels.py
        return False
    bare, _, metric = name.partition(" | ")
    wide = bare.partition(" & ")[0]
    broader = {bare, wide, f"{wide} | {metric}" if metric else wide} - {name}
    most = min((len(all_rows[one].values) for one in broader), default=math.inf)
    if name.endswith(APART):
        return len(rows.values) >= FEWEST_APART
    return (FEWEST_SPLIT if metric else FEWEST) <= len(rows.values) <= 0.95 * most


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="further files of measured rows")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--training", action="store_true", help="the classes of training alone; others as they are")
    arguments = parser.parse_args()
    files = [*packaged(), *arguments.files]
    if arguments.training:
        files = [one for one in files if "train" in Path(one).name]
    rows = collect(files)
    entries = []
    for name in sorted(rows, key=lambda name: (list(TRAINING).index(name) if name in TRAINING else 99, name)):
        if wanted(name, rows[name], rows):
            entry = {"class": name, **fit(rows[name]), **TRAINING.get(name, {})}
            if entry["coverage"] < LEAST and name not in TRAINING and name not in kinds.KINDS:
                continue
            inside = np.mean((np.log(entry["low"]) <= rows[name].values) & (rows[name].values <= np.log(entry["high"])))
            print(f"{name:60} n {entry['n']:6} x{entry['low']:.3f} - x{entry['high']:.3f}  "
                  f"held out {entry['coverage']:.0%}  all {inside:.0%}")  # fmt: skip
            entries.append(entry)
    read = {str(one.record.get("id")): one.record for one in read_rows(files) if isinstance(one, Row)}
    entries += [{"class": name, **entry} for name, entry in left_out(list(read.values())).items()]
    if arguments.training:
        kept = yaml.read(arguments.out.read_text("utf-8"), str(arguments.out))[0]["bands"]
        entries += [one for one in kept if not one["class"].startswith("train")]
    for entry in entries:
        if entry["class"] in (LEFT_OUT, CHIP_LEFT_OUT):
            print(entry)
    arguments.out.write_text(HEAD + yaml.write({"bands": entries}), encoding="utf-8")


if __name__ == "__main__":
    main()
