"""Fit what each serving engine adds to the cards' time, on measured serving rows, and check the fit on rows left out.

    python tools/fit_serving.py ROWS.jsonl [...] [--write]

For each engine: host time per step and per request, overlap of kernels, launch outside graphs, start of a
collective, and pace of kernels in a running engine: least squares on the logarithms of predicted over measured,
with a weak pull towards one prior for all engines, so that a few rows cannot bend what they do not determine. Rows that
speculate are left out. Then, with these, what the times to the first token tell: the way through the front end, and the
handover of a cache; and what look-ups find, from rows that draft so.

``--check`` shows the error of rows left out by chip and by model; ``--engine`` does one engine only, ``--part 2/5`` the
second fifth of the groups that are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.optimize import least_squares

from zhenfa.errors import ZhenfaError
from zhenfa.estimate import serving, serving_engine
from zhenfa.estimate.serving import Curves
from zhenfa.estimate.serving_engine import Engine
from zhenfa.validation import serving as rows
from zhenfa.validation.serving import Case

PRIOR: Final = {
    "step": 0.5e-3, "request": 8e-6, "overlap": 0.3e-6, "layer": 3e-6, "dispatch": 8e-6, "collective": 4e-6,
    "exchange": 30e-6, "pace": 1.0,
}  # fmt: skip
"""The order of each coefficient on engines that capture graphs, and where a fit starts."""

SPREAD: Final = {
    "step": 1.0, "request": 1.0, "overlap": 1.0, "layer": 2.5, "dispatch": 0.7, "collective": 0.7, "exchange": 1.0,
    "pace": 0.15,
}  # fmt: skip
"""How far, in natural logarithms, an engine's coefficient lies from the prior."""

FIRST: Final = {"entry": 40e-3, "handover": 100e-3}
"""The order of what the first token waits for outside its own steps."""

FIRST_SPREAD: Final = {"entry": 0.7, "handover": 1.0}

FOUND: Final = {"found": 0.5}
FOUND_SPREAD: Final = {"found": 0.5}

PULL: Final = 0.25
"""Weight of the prior: a coefficient one spread off costs as much as a row that is off by this."""

SOFT: Final = 0.15
"""Errors beyond this count in proportion, not squared: published rows have outliers."""

FEWEST: Final = 4
"""Rows below which an engine keeps the prior."""

FIRST_SOFT: Final = 0.5
"""The same for first tokens, which some published runs show minutes late: connections and kernels made on demand."""

FILE: Final = Path(serving.__file__).parent.parent / "catalog" / "data" / "serving_engines.yaml"


@dataclass(frozen=True)
class Row:
    """A row with its curves at hand."""

    id: str
    family: str
    chip: str
    model: str
    case: Case
    curves: Curves | None
    metric: str
    measured: float

    def like(self, engine: Engine) -> Engine:
        """Return an engine with the memory, chunks and front end that this row's command and card set."""
        own = self.case.service.engine
        return replace(engine, chunk=own.chunk, max_batch=own.max_batch, **self.case.told)

    def error(self, engine: Engine) -> float:
        """Return the logarithm of predicted over measured."""
        service = replace(self.case.service, engine=engine)
        drafted = service.plan.speculation
        if drafted is not None and drafted.method == "ngram":
            own = self.case.service.engine.found
            yielded = 1.0 + (drafted.accepted - 1.0) * engine.found / own
            service = replace(service, plan=service.plan.model_copy(
                update={"speculation": drafted.model_copy(update={"accepted": yielded})}
            ))  # fmt: skip
        case = replace(self.case, service=service)
        value = rows.predict(case, drawn=self.curves).get(self.metric)
        return math.log(value / self.measured) if value else 0.0


@dataclass(frozen=True)
class Group:
    """Coefficients that are fitted together."""

    prior: Mapping[str, float]
    spread: Mapping[str, float]
    soft: float

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the coefficients."""
        return tuple(self.prior)

    @property
    def start(self) -> np.ndarray[Any, Any]:
        """Return the prior as a point."""
        return np.log(list(self.prior.values()))

    def values(self, point: np.ndarray[Any, Any]) -> dict[str, float]:
        """Return the coefficients of a point: logarithms, in the order of the names."""
        return {name: math.exp(value) for name, value in zip(self.names, point, strict=True)}

    def on(self, engine: Engine, point: np.ndarray[Any, Any]) -> Engine:
        """Return the engine with the coefficients of a point."""
        return replace(engine, **self.values(point))


STEPS: Final = Group(PRIOR, SPREAD, SOFT)
FIRSTS: Final = Group(FIRST, FIRST_SPREAD, FIRST_SOFT)
LOOKUPS: Final = Group(FOUND, FOUND_SPREAD, SOFT)


def read(paths: Sequence[str]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the gate rows of steps, of first tokens and of look-ups."""
    records = [
        json.loads(line) for path in paths for line in Path(path).read_text("utf-8").splitlines() if line.strip()
    ]
    gates = [record for record in records if rows.accepts(record) and record.get("use") == "gate"]
    plain = [record for record in gates if not isinstance(record.get("spec_decode"), Mapping)]
    looked = [record for record in gates if "suffix" in str(record.get("spec_decode"))]
    steps = [row for record in plain for row in read_one(record, [rows.primary(record)])]
    firsts = [row for record in plain for row in read_one(record, [one for one in rows.UNITS if "ttft" in one])]
    firsts = [row for row in firsts if row.case.load.concurrency and row.case.row.get("kind") == "serving"]
    return steps, firsts, [row for record in looked for row in read_one(record, [rows.primary(record)])]


def read_one(record: Mapping[str, Any], metrics: Sequence[str | None]) -> list[Row]:
    """Return some metrics of a record as rows, as far as the record has them and the laws take it."""
    given = [(one, rows.measured(record["metrics"].get(one))) for one in metrics if one]
    if not any(value for _, value in given):
        return []
    try:
        case = rows.case(record)
        plain = record.get("kind") != "prefill" and case.load.running is None
        curves = serving.curves(case.service, case.workload) if plain else None
        figures = rows.predict(case, drawn=curves)
    except ZhenfaError:
        return []
    service = case.service
    chip = service.decode.setup.cards.dense.name
    return [
        Row(str(record["id"]), service.engine.id, chip, service.plan.model, case, curves, metric, value)
        for metric, value in given if value and metric in figures
    ]  # fmt: skip


def fit(
    chosen: Sequence[Row], group: Group, engine: Engine | None = None, *, near: bool = False
) -> np.ndarray[Any, Any]:
    """Return the point that fits the rows of one engine, whose other coefficients are as ``engine`` has them.

    ``near``: begin where the engine's own coefficients are, which needs fewer rounds, and not at the prior.
    """
    if len(chosen) < FEWEST:
        return group.start
    base = engine or chosen[0].case.service.engine
    spread = np.array([group.spread[name] for name in group.names])

    def residuals(point: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        raw = np.array([row.error(row.like(group.on(base, point))) for row in chosen])
        soft = np.sign(raw) * np.sqrt(2 * group.soft**2 * (np.sqrt(1 + (raw / group.soft) ** 2) - 1))
        return np.concatenate([soft, PULL * (point - group.start) / spread])

    begin = np.log([getattr(base, name) for name in group.names]) if near else group.start
    return np.asarray(least_squares(residuals, begin, method="trf", diff_step=0.05, max_nfev=4 if near else 9).x)


def left_out(chosen: Sequence[Row], key: Callable[[Row], str], part: tuple[int, int]) -> list[float]:
    """Return the errors of every row when the rows of its group are left out of the fit."""
    errors: list[float] = []
    for name in sorted({key(row) for row in chosen})[part[0] - 1 :: part[1]]:
        point = fit([row for row in chosen if key(row) != name], STEPS, near=True)
        own = [row for row in chosen if key(row) == name]
        found = [row.error(row.like(STEPS.on(row.case.service.engine, point))) for row in own]
        print(f"      {name}: {shown(found)}", flush=True)
        errors += found
    return errors


def shown(errors: Sequence[float]) -> str:
    """Return number, median, 90th percentile and bias of errors."""
    if not errors:
        return "n=0"
    size = np.abs(errors)
    return (
        f"n={len(errors):3} median={np.median(size):.3f} p90={np.quantile(size, 0.9):.3f} bias={np.median(errors):+.3f}"
    )


def write(points: Mapping[str, Mapping[str, float]], notes: Mapping[tuple[str, str], str]) -> None:
    """Put the coefficients into the engines' file; everything else in it stays as it is."""
    lines, family = [], ""
    for old in FILE.read_text("utf-8").splitlines():
        line = old
        if match := re.match(r"- id: (\S+)", line):
            family = match[1]
        name = (re.match(r"  (\w+): \{value: ", line) or [None, ""])[1]
        if family in points and name in points[family] and "source: fit" in old:
            value, note = points[family][name], notes[family, name]
            scale, unit = UNITS.get(name, (1e6, ", unit: us"))
            tail = f"source: fit, confidence: calibrated, note: '{note}'" if note else (
                "source: fit, confidence: estimate, note: 'prior: no rows of this engine'")  # fmt: skip
            line = f"  {name}: {{value: {value * scale:.3g}{unit}, {tail}}}"
        lines.append(line)
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


UNITS: Final = {
    "pace": (1.0, ""), "found": (1.0, ""), "entry": (1e3, ", unit: ms"),
    "handover": (1e3, ", unit: ms"),
}  # fmt: skip


def main() -> None:
    """Fit, show and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", choices=["chip", "model", "both"], help="leave groups of rows out in turn (slow)")
    parser.add_argument("--engine", help="this engine only")
    parser.add_argument("--only", choices=["steps", "firsts", "lookups"], help="fit these, the others as they are")
    parser.add_argument("--part", default="1/1", help="of the groups that are left out: the first of one")
    chosen = parser.parse_args()
    steps, firsts, lookups = read(chosen.rows)
    points: dict[str, dict[str, float]] = {}
    notes: dict[tuple[str, str], str] = {}
    for family in serving_engine.engines():
        if family == "zhenfa" or (chosen.engine and family != chosen.engine):
            continue
        own = [row for row in steps if row.family == family]
        if chosen.check:
            check(own, chosen.check, chosen.part)
            continue
        points[family], engine = {}, None
        for what, group, found in (
            ("steps", STEPS, steps), ("firsts", FIRSTS, firsts), ("lookups", LOOKUPS, lookups),
        ):  # fmt: skip
            if chosen.only not in {None, what}:
                continue
            own = [row for row in found if row.family == family]
            own = own if len(own) >= FEWEST else []
            point = fit(own, group, engine)
            if own:
                engine = group.on(engine or own[0].case.service.engine, point)
            after = [row.error(row.like(engine)) for row in own] if engine else []
            shape = {name: f"{value:.3g}" for name, value in group.values(point).items()}
            print(family, shown(after), shape if own else "prior", flush=True)
            points[family] |= group.values(point)
            note = f"{len(own)} rows, median error {np.median(np.abs(after)):.2f}" if own else ""
            notes |= {(family, name): note for name in group.names}
    if chosen.write:
        write(points, notes)


def check(own: Sequence[Row], what: str, part: str) -> None:
    """Print the errors of rows left out."""
    first, _, of = part.partition("/")
    keys: dict[str, Callable[[Row], str]] = {"chip": lambda row: row.chip, "model": lambda row: row.model}
    keys["both"] = lambda row: f"{row.chip} {row.model}"
    if own:
        errors = left_out(own, keys[what], (int(first), int(of)))
        print(f"{own[0].family}, leaving one {what} out: {shown(errors)}", flush=True)
        print("   ", " ".join(f"{one:+.3f}" for one in errors))


if __name__ == "__main__":
    main()
