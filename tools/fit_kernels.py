"""Fit the kernel laws to tables of measured operators and write catalog/data/kernels.json.

    python tools/fit_kernels.py [--tables FOLDER] [--seed 1] [--write] [--sample FILE]

Reads the Parquet tables of the wheel ``aiconfigurator-core`` (or of a folder of the same form), fits the coefficients
of every kernel, generation of chips and chip, and prints how far the laws are from rows that the fit did not see: for
chips that it knew, and for each chip left out. Deterministic for a seed. Takes a few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from scipy.optimize import least_squares

from zhenfa.catalog import files
from zhenfa.estimate.coefficients import CAPPED, LAWS, Key, Library, generation
from zhenfa.validation.operator_tables import CHIPS, Rows, predict, read_rows, tables_folder

SCALE = 0.08
"""Residual (of the logarithm) from which on a row counts by its size, no longer by its square."""

CHIP_SPREAD = 0.1
"""Prior spread of a chip's factors."""

HOST_BOUND = 40e-6
"""A matmul with more fixed time than this was launched from the host each time, not from a captured graph."""

# per law and coefficient: start, prior spread of its logarithm, least, most
SPECS: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "matmul": {
        "share": (0.7, 0.5, 0.02, 1.0), "memory_share": (0.8, 0.2, 0.1, 1.0), "fixed": (3e-6, 1.5, 5e-7, 1e-3),
        "fill": (120, 1.0, 1.0, 2000), "wave": (0.17, 1.0, 0.005, 1.0), "row": (2e-10, 2.0, 1e-12, 1e-7),
    },
    "experts": {
        "share": (0.6, 0.3, 0.02, 1.0), "memory_share": (0.8, 0.2, 0.1, 1.0), "fixed": (15e-6, 1.5, 2e-6, 1e-3),
        "fill": (120, 0.7, 1.0, 2000), "pad": (32, 0.7, 1.0, 256), "wave": (0.1, 1.0, 0.005, 1.0),
        "row": (3e-10, 2.0, 1e-12, 1e-7), "passes": (0.1, 1.5, 0.001, 10),
    },
    "prefill": {
        "share": (0.6, 0.5, 0.02, 1.0), "memory_share": (0.8, 0.3, 0.05, 1.0), "fixed": (8e-6, 1.0, 1e-6, 1e-3),
        "keys": (64, 1.0, 1, 2000), "softmax": (100, 1.0, 1, 5e4), "wave": (0.17, 1.0, 0.005, 1.0),
        "packing": (0.4, 1.0, 0.01, 1.0), "row": (3e-10, 2.0, 1e-12, 1e-6),
    },
    "decode": {
        "share": (0.4, 0.5, 0.15, 1.0), "memory_share": (0.8, 0.3, 0.1, 1.0), "fixed": (5e-6, 1.0, 1e-6, 1e-3),
        "keys": (32, 1.0, 1, 2000), "chunk": (512, 1.0, 16, 2e5), "walk": (1e-9, 1.5, 1e-12, 1e-6),
        "sequence": (1e-8, 2.0, 1e-11, 1e-5), "head": (0.03, 2.0, 1e-4, 1.0),
    },
    "block": {
        "share": (0.5, 0.6, 0.02, 1.0), "memory_share": (0.6, 0.4, 0.02, 1.0), "fixed": (6e-5, 1.0, 5e-6, 1e-2),
        "attention": (0.4, 0.7, 0.005, 1.0), "index": (0.8, 0.7, 0.01, 2.0), "select": (1, 1.0, 0.01, 100),
        "row": (1e-9, 2.0, 1e-12, 1e-5), "sequence": (1e-8, 2.0, 1e-12, 1e-3),
    },
    "scan": {
        "share": (0.1, 1.0, 0.002, 1.0), "memory_share": (0.6, 0.5, 0.01, 1.0), "fixed": (8e-6, 1.0, 1e-6, 1e-2),
        "walk": (1e-9, 2.0, 1e-13, 1e-5), "row": (1e-10, 2.0, 1e-13, 1e-6), "sequence": (1e-8, 2.0, 1e-12, 1e-4),
    },
    "stream": {
        "memory_share": (0.7, 0.4, 0.02, 1.0), "fixed": (3e-6, 1.0, 5e-7, 1e-3), "row": (1e-10, 2.0, 1e-13, 1e-6),
    },
}  # fmt: skip
SHARED = ("share", "memory_share", "fixed", "attention")
"""Coefficients that a chip may shift."""

PACK_LIMIT = 32.0
"""Largest group of query heads tried as the limit up to which a kernel shares one read of the cache."""


@dataclass
class Fit:
    """Coefficients of one entry and how close they came."""

    values: dict[str, float]
    points: int
    median: float
    p90: float


def residuals(law: str, arguments: Mapping[str, Any], values: Mapping[str, Any], seconds: Any) -> Any:
    """Return ln of predicted over measured."""
    return np.log(LAWS[law](**arguments, **values) / seconds)


def robust(residual: Any) -> Any:
    """Return residuals whose squares grow like their size beyond the scale."""
    return np.sign(residual) * np.sqrt(2 * (np.sqrt(1 + (residual / SCALE) ** 2) - 1))


def fit(law: str, arguments: Mapping[str, Any], seconds: Any) -> Fit:
    """Fit the coefficients of one entry."""
    spec = SPECS[law]
    names = list(spec)
    start = np.log([spec[name][0] for name in names])
    spread = np.array([spec[name][1] for name in names])
    bounds = tuple(np.log([spec[name][place] for name in names]) for place in (2, 3))
    start = np.clip(start, bounds[0] + 1e-3, bounds[1] - 1e-3)

    def split(point: Any) -> dict[str, float]:
        return dict(zip(names, np.exp(point).tolist(), strict=True))

    def cost(point: Any, extra: Mapping[str, float]) -> Any:
        found = robust(residuals(law, arguments, {**split(point), **extra}, seconds))
        return np.r_[found, (point - start) / spread * 0.5]

    best: tuple[float, Any, dict[str, float]] | None = None
    for extra in ({"pack": np.inf}, {"pack": PACK_LIMIT}) if law == "decode" else ({},):
        found = least_squares(cost, start, bounds=bounds, args=(extra,), max_nfev=20, x_scale="jac")
        if best is None or found.cost < best[0] - 1.0:
            best = (float(found.cost), found.x, dict(extra))
    assert best is not None
    values = split(best[1]) | best[2]
    off = np.abs(residuals(law, arguments, values, seconds))
    return Fit(values, len(seconds), float(np.median(off)), float(np.quantile(off, 0.9)))


def levels(rows: Rows) -> dict[Key, Any]:
    """Return the rows of every entry to fit, by key."""
    found: dict[Key, list[Any]] = {}
    for (op, engine, kernel, dtype, chip), place in rows.groups():
        family = generation(chip).name
        for who in ((engine, kernel), (None, None)):
            for era in (family, None):
                found.setdefault((op, *who, dtype, era), []).append(place)
        found.setdefault((op, None, None, None, None), []).append(place)
    joined = {key: np.concatenate(places) for key, places in found.items()}
    return {key: place for key, place in joined.items() if not _said_already(key, place, joined)}


def _said_already(key: Key, place: Any, found: Mapping[Key, Any]) -> bool:
    """Return whether a kernel over all generations was seen on only one: its entry there would say the same."""
    op, engine, kernel, dtype, era = key
    if era is not None or kernel is None:
        return False
    eras = ("ampere", "hopper", "blackwell")
    return any(len(found.get((op, engine, kernel, dtype, one), ())) == len(place) for one in eras)


def entries(rows: Rows, per_entry: int, seed: int, only: set[str | None] | None = None) -> list[dict[str, Any]]:
    """Fit every entry; those of kernels first, so that kernels bound by the host stay out of the wider ones.

    Each entry draws its rows by itself: what one entry gets does not depend on which others there are.
    """
    found = levels(rows)
    order = sorted(found, key=lambda key: (key[2] is None, key[1] is None, tuple(str(part) for part in key)))
    host: set[tuple[Any, ...]] = set()
    result = []
    bound = np.zeros(len(rows.seconds), bool)
    for key in order:
        if only is not None and key[4] not in only:
            continue
        place = found[key]
        if key[2] is None:
            place = place[~bound[place]]
        if len(place) < 20:
            continue
        random = np.random.default_rng([seed, crc32(repr(key).encode())])
        used = place if len(place) <= per_entry else np.sort(random.choice(place, per_entry, replace=False))
        law = rows.law(key[0])
        one = fit(law, rows.arguments(key[0], used), rows.seconds[used])
        entry: dict[str, Any] = {
            "op": key[0], "engine": key[1], "kernel": key[2], "dtype": key[3], "generation": key[4], "law": law,
            "coefficients": one.values, "points": len(place), "median": one.median, "p90": one.p90,
        }  # fmt: skip
        if key[0] == "gemm" and key[2] is not None and one.values["fixed"] > HOST_BOUND:
            entry["host_bound"] = True
            host.add(key)
            bound[place] = True
        result.append(entry)
    return result


def chip_factors(rows: Rows, library: Library, per_chip: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Fit, for each chip and operator, a factor on each of the shared coefficients."""
    random = np.random.default_rng(seed)
    result: dict[str, dict[str, dict[str, float]]] = {}
    by_chip: dict[tuple[str, str], list[Any]] = {}
    for key, place in rows.groups():
        by_chip.setdefault((key[4], key[0]), []).append((key, place))
    for (chip, op), groups in sorted(by_chip.items()):
        result.setdefault(chip, {})[op] = _factors(rows, library, op, groups, per_chip, random)
    return result


def _factors(
    rows: Rows, library: Library, op: str, groups: Any, per_chip: int, random: np.random.Generator
) -> dict[str, float]:
    total = sum(len(place) for _, place in groups)
    places, found = [], []
    for (_, engine, kernel, dtype, chip), place in groups:
        take = max(min(len(place), 10), round(per_chip * len(place) / total))
        used = place if len(place) <= take else random.choice(place, take, replace=False)
        answer = library.find(op, dtype, chip, engine, kernel)
        places.append(used)
        found += [answer] * len(used)
    place = np.concatenate(places)
    law, arguments = rows.law(op), rows.arguments(op, place)
    names = [name for name in SHARED if name in SPECS[law]]
    base = {name: np.array([one.values.get(name, np.inf) for one in found]) for name in [*SPECS[law], "pack"]}
    if law != "decode":
        del base["pack"]
    host = np.array([one.host_bound for one in found])

    def scaled(point: Any) -> dict[str, Any]:
        values = dict(base)
        for index, name in enumerate(names):
            factor = np.exp(point[index])
            values[name] = base[name] * (np.where(host, np.exp(point[-1]), factor) if name == "fixed" else factor)
            if name in CAPPED:
                values[name] = np.minimum(values[name], 1.0)
        return values

    def cost(point: Any) -> Any:
        found = robust(residuals(law, arguments, scaled(point), rows.seconds[place]))
        return np.r_[found, point / (3 * CHIP_SPREAD)]

    best = least_squares(cost, np.zeros(len(names) + 1), max_nfev=20).x
    factors = {name: float(np.exp(best[index])) for index, name in enumerate(names)}
    return factors | ({"host": float(np.exp(best[-1]))} if host.any() else {})


def rounded(document: Any) -> Any:
    """Return the document with numbers cut to four digits."""
    if isinstance(document, dict):
        return {key: rounded(value) for key, value in document.items() if not (key == "pack" and value == np.inf)}
    if isinstance(document, list):
        return [rounded(value) for value in document]
    return float(f"{document:.4g}") if isinstance(document, float) else document


def summary(off: Any) -> dict[str, float]:
    """Return median, 90th percentile, bias and count of logarithms of ratios."""
    return {
        "median": float(np.median(np.abs(off))), "p90": float(np.quantile(np.abs(off), 0.9)),
        "p10_signed": float(np.quantile(off, 0.1)), "p90_signed": float(np.quantile(off, 0.9)),
        "bias": float(np.median(off)), "points": len(off),
    }  # fmt: skip


def left_out(rows: Rows, test: Rows, full: list[dict[str, Any]], per_entry: int, seed: int) -> dict[str, Any]:
    """Predict each chip from fits that did not see it; return residuals by chip, and operators of the test rows."""
    result: dict[str, Any] = {}
    for chip in CHIPS:
        family = generation(chip).name
        rest = rows.where(rows.chip != chip)
        kept = [entry for entry in full if entry["generation"] not in {family, None}]
        again = entries(rest, per_entry, seed, only={family, None})
        library = Library({"entries": kept + again, "chips": {}})
        mine = test.where(test.chip == chip)
        result[chip] = (np.log(predict(mine, library) / mine.seconds), mine)
        print(f"  left out {chip:24} {_words(result[chip][0])}", flush=True)
    return result


def left_out_generations(rows: Rows, test: Rows, full: list[dict[str, Any]], per_entry: int, seed: int) -> Any:
    """Predict each generation of chips from fits that saw none of it: what a chip unlike all of them can expect."""
    result = []
    for family in ("ampere", "hopper", "blackwell"):
        chips = [chip for chip in CHIPS if generation(chip).name == family]
        kept = [entry for entry in full if entry["generation"] not in {family, None}]
        again = entries(rows.where(~np.isin(rows.chip, chips)), per_entry, seed, only={None})
        library = Library({"entries": kept + again, "chips": {}})
        mine = test.where(np.isin(test.chip, chips))
        result.append((np.log(predict(mine, library) / mine.seconds), mine.op))
        print(f"  left out {family:24} {_words(result[-1][0])}", flush=True)
    return np.concatenate([off for off, _ in result]), np.concatenate([op for _, op in result])


def _words(off: Any) -> str:
    size = np.abs(off)
    return f"n {len(off):6} median {np.median(size):.3f} p90 {np.quantile(size, 0.9):.3f} bias {np.median(off):+.3f}"


def table(rows: Rows, off: Any, by: Iterable[str]) -> None:
    """Print accuracy by column."""
    for name in by:
        column = rows.column(name)
        for value in sorted(set(column.tolist())):
            print(f"  {name:6} {value:28} {_words(off[column == value])}")


def again(folder: Path, options: argparse.Namespace) -> None:
    """Fit the entries of one operator and data type again, as where its kernels were named anew; keep the rest."""
    op, _, dtype = options.only.partition(":")
    rows = read_rows(folder, options.rows, options.seed)
    found = entries(rows.where((rows.op == op) & (rows.dtype == dtype)), options.per_entry, options.seed)
    fitted = [entry for entry in found if entry["dtype"] == dtype]
    for entry in fitted:
        print(f"  {entry['engine']} {entry['kernel']} {entry['generation']}: n {entry['points']} {entry['median']:.3f}")
    document = json.loads((files.ROOT / "kernels.json").read_bytes())
    kept = [entry for entry in document["entries"] if (entry["op"], entry.get("dtype")) != (op, dtype)]
    document["entries"] = kept + fitted
    if options.write:
        write(document)


def write(document: Mapping[str, Any]) -> None:
    """Write the packaged file."""
    text = json.dumps(rounded(document), indent=0, sort_keys=True)
    (files.ROOT / "kernels.json").write_text(text.replace("\n\n", "\n") + "\n")
    print("wrote", files.ROOT / "kernels.json", len(text))


def main(arguments: list[str]) -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=30000, help="rows read per table and operator")
    parser.add_argument("--per-entry", type=int, default=500)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--no-left-out", action="store_true")
    parser.add_argument("--only", metavar="OPERATOR:TYPE", help="fit these entries again and keep all others")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    folder = options.tables or tables_folder()
    if options.only:
        again(folder, options)
        return
    rows = read_rows(folder, options.rows, options.seed)
    test = read_rows(folder, None, options.seed + 1000, total=20000)
    print(
        f"read {len(rows.seconds)} rows to fit, {len(test.seconds)} to test, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    found = entries(rows, options.per_entry, options.seed)
    print(f"{len(found)} entries, {time.monotonic() - began:.0f} s", flush=True)
    library = Library({"entries": found, "chips": {}})
    chips = chip_factors(rows, library, 800, options.seed)
    document: dict[str, Any] = {"entries": found, "chips": chips}
    library = Library(document)
    off = np.log(predict(test, library) / test.seconds)
    print(f"fitted {len(found)} entries, {time.monotonic() - began:.0f} s")
    table(test, off, ("chip", "op"))
    print("  all", _words(off))
    groups: dict[tuple[str, str, str], list[int]] = {}
    for place in range(len(off)):
        groups.setdefault((test.chip[place], test.op[place], test.dtype[place]), []).append(place)
    each = [float(np.median(np.abs(off[places]))) for places in groups.values() if len(places) >= 5]
    print(f"  median over (chip, op, dtype) of the median: {np.median(each):.3f}, p90 {np.quantile(each, 0.9):.3f}")
    spread: dict[str, Any] = {
        "known": {op: summary(off[test.op == op]) for op in test.operators} | {"all": summary(off)}
    }
    if not options.no_left_out:
        apart = left_out(rows, test, found, options.per_entry // 2, options.seed)
        offs = np.concatenate([one for one, _ in apart.values()])
        ops = np.concatenate([mine.op for _, mine in apart.values()])
        for op in sorted(set(ops.tolist())):
            print(f"  left out, {op:26} {_words(offs[ops == op])}")
        print("  left out, all", _words(offs), f"{time.monotonic() - began:.0f} s")
        spread["left_out"] = {op: summary(offs[ops == op]) for op in sorted(set(ops.tolist()))} | {"all": summary(offs)}
        offs, ops = left_out_generations(rows, test, found, options.per_entry // 2, options.seed)
        print("  left out by generation, all", _words(offs))
        spread["left_out_generations"] = {op: summary(offs[ops == op]) for op in sorted(set(ops.tolist()))}
        spread["left_out_generations"]["all"] = summary(offs)
        spread["left_out_chips"] = {chip: summary(one) for chip, (one, _) in apart.items()}
    if options.write:
        head = {
            "source": "PyPI wheel aiconfigurator-core 0.12.0 (Apache-2.0), systems/data/*/*/*/*/*.parquet",
            "confidence": "fitted", "written_by": f"tools/fit_kernels.py --seed {options.seed}",
            "units": {
                "share, memory_share, attention, index": "share of published peak or bandwidth",
                "fixed, row, walk, sequence": "s", "fill": "inner elements", "keys, chunk": "positions",
                "softmax": "FLOP per pair", "pad": "rows", "wave, packing, head": "ratio", "passes, select": "passes",
                "pack": "query heads",
            },
            "spread": spread,
        }  # fmt: skip
        write({**head, **document})


if __name__ == "__main__":
    main(sys.argv[1:])
