"""Fit what each serving engine adds to the cards' time, on measured serving rows, and check the fit on rows left out.

    python tools/fit_serving.py ROWS.jsonl [...] [--write]

For each engine: host time per step and per request, overlap of kernels, launch outside graphs, start of a
collective, and pace of kernels in a running engine: least squares on the logarithms of predicted over measured,
with a weak pull towards one prior for all engines, so that a few rows cannot bend what they do not determine. Rows that
speculate are left out. ``--check`` shows the error of rows left out by chip and by model.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
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

PULL: Final = 0.25
"""Weight of the prior: a coefficient one spread off costs as much as a row that is off by this."""

SOFT: Final = 0.15
"""Errors beyond this count in proportion, not squared: published rows have outliers."""

FILE: Final = Path(serving.__file__).parent.parent / "catalog" / "data" / "serving_engines.yaml"
NAMES: Final = tuple(PRIOR)


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

    def error(self, engine: Engine) -> float:
        """Return the logarithm of predicted over measured."""
        case = replace(self.case, service=replace(self.case.service, engine=engine))
        value = rows.predict(case, drawn=self.curves).get(self.metric)
        return math.log(value / self.measured) if value else 0.0


def read(paths: Sequence[str], *, gate_only: bool = True) -> list[Row]:
    """Return the rows that a fit may use."""
    records = [
        json.loads(line) for path in paths for line in Path(path).read_text("utf-8").splitlines() if line.strip()
    ]
    found = (read_one(record) for record in records if rows.accepts(record))
    return [row for row in found if row is not None and (not gate_only or row.case.row.get("use") == "gate")]


def read_one(record: Mapping[str, Any]) -> Row | None:
    """Return a record as a row, or None if it speculates or the laws do not take it."""
    metric = rows.primary(record)
    value = rows.measured(record["metrics"].get(metric)) if metric else None
    if metric is None or value is None or isinstance(record.get("spec_decode"), Mapping):
        return None
    try:
        case = rows.case(record)
        plain = record.get("kind") != "prefill" and case.load.running is None
        curves = serving.curves(case.service, case.workload) if plain else None
        if metric not in rows.predict(case, drawn=curves):
            return None
    except ZhenfaError:
        return None
    service = case.service
    chip = service.decode.setup.cards.dense.name
    return Row(str(record["id"]), service.engine.id, chip, service.plan.model, case, curves, metric, value)


def with_values(engine: Engine, point: np.ndarray[Any, Any]) -> Engine:
    """Return the engine with the coefficients of a point."""
    return replace(engine, **values(point))


def values(point: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return the coefficients of a point: logarithms, in the order of :data:`NAMES`."""
    return {name: math.exp(value) for name, value in zip(NAMES, point, strict=True)}


def start() -> np.ndarray[Any, Any]:
    """Return the prior as a point."""
    return np.log(list(PRIOR.values()))


def fit(chosen: Sequence[Row]) -> np.ndarray[Any, Any]:
    """Return the point that fits the rows of one engine."""
    prior = start()
    spread = np.array([SPREAD[name] for name in NAMES])
    if not chosen:
        return prior
    engine = chosen[0].case.service.engine

    def residuals(point: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        at = with_values(engine, point)
        raw = np.array([row.error(at) for row in chosen])
        soft = np.sign(raw) * np.sqrt(2 * SOFT**2 * (np.sqrt(1 + (raw / SOFT) ** 2) - 1))
        return np.concatenate([soft, PULL * (point - prior) / spread])

    return np.asarray(least_squares(residuals, prior, method="trf", diff_step=0.05, max_nfev=9).x)


def left_out(chosen: Sequence[Row], key: Callable[[Row], str]) -> list[float]:
    """Return the errors of every row when the rows of its group are left out of the fit."""
    errors: list[float] = []
    for group in sorted({key(row) for row in chosen}):
        point = fit([row for row in chosen if key(row) != group])
        errors += [row.error(with_values(row.case.service.engine, point)) for row in chosen if key(row) == group]
    return errors


def shown(errors: Sequence[float]) -> str:
    """Return number, median, 90th percentile and bias of errors."""
    if not errors:
        return "n=0"
    size = np.abs(errors)
    return (
        f"n={len(errors):3} median={np.median(size):.3f} p90={np.quantile(size, 0.9):.3f} bias={np.median(errors):+.3f}"
    )


def write(points: Mapping[str, np.ndarray[Any, Any]], notes: Mapping[str, str]) -> None:
    """Put the coefficients into the engines' file; everything else in it stays as it is."""
    lines, family = [], ""
    for old in FILE.read_text("utf-8").splitlines():
        line = old
        if match := re.match(r"- id: (\S+)", line):
            family = match[1]
        name = (re.match(r"  (\w+): \{value: ", line) or [None, ""])[1]
        if name in NAMES and family in points and "source: fit" in old:
            value = values(points[family])[name]
            number = f"{value:.3g}" if name == "pace" else f"{value * 1e6:.3g}, unit: us"
            tail = f"source: fit, confidence: calibrated, note: '{notes[family]}'" if notes[family] else (
                "source: fit, confidence: estimate, note: 'prior: no rows of this engine'")  # fmt: skip
            line = f"  {name}: {{value: {number}, {tail}}}"
        lines.append(line)
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Fit, show and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true", help="leave chips and models out in turn (slow)")
    chosen = parser.parse_args()
    found = read(chosen.rows)
    points, notes = {}, {}
    for family in serving_engine.engines():
        own = [row for row in found if row.family == family]
        points[family] = fit(own)
        after = [row.error(with_values(row.case.service.engine, points[family])) for row in own]
        found_values = {name: f"{value:.3g}" for name, value in values(points[family]).items()}
        print(family, shown(after), found_values if own else "prior")
        if chosen.check and own:
            for what, key in (("chip", lambda row: row.chip), ("model", lambda row: row.model)):
                print(f"    leaving one {what} out: {shown(left_out(own, key))}")
        sys.stdout.flush()
        notes[family] = f"{len(own)} rows, median error {np.median(np.abs(after)):.2f}" if own else ""
    if chosen.write:
        write(points, notes)


if __name__ == "__main__":
    main()
