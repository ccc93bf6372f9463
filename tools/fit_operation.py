"""Fit what cards draw at work, and how long restarts take, to the packaged measured rows, and write both back.

Run with no arguments. ``activity`` of each accelerator in ``catalog/data/power.yaml``: static power, energy per byte
and per FLOP, none negative, by robust least squares on the logarithm of power. The error that is printed and written is
that of each model's points with that model left out of the fit. ``restart`` in ``catalog/data/failures.yaml``.
"""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from zhenfa.catalog import files
from zhenfa.validation.quantities import numbers
from zhenfa.validation.serving_power import activity_of, packaged_points

LEAST_MODELS = 3
"""Models that a chip needs for a fit of three numbers to mean anything."""

SCALE = np.array([1.0, 1e-12, 1e-12])
"""Watts, J per byte and J per FLOP from the units of the fit: W, pJ, pJ."""


def fit(features: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Return the three coefficients, not negative, by reweighted least squares on relative error."""
    best, least = np.zeros(3), math.inf
    for used in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)):
        if 0 not in used:
            continue
        columns = list(used)
        found = np.zeros(3)
        weight = 1.0 / power
        for _ in range(60):
            part, *_ = np.linalg.lstsq(features[:, columns] * weight[:, None], power * weight, rcond=None)
            found = np.zeros(3)
            found[columns] = part
            error = np.log(np.maximum(features @ found, 1.0) / power)
            weight = 1.0 / (power * np.sqrt(np.sqrt(1.0 + (error / 0.1) ** 2)))
        loss = float(np.sum(np.sqrt(1.0 + (np.log(np.maximum(features @ found, 1.0) / power) / 0.1) ** 2)))
        if np.all(found >= 0) and loss < least:
            best, least = found, loss
    return best


def left_out(features: np.ndarray, power: np.ndarray, models: list[str]) -> np.ndarray:
    """Return abs(ln) errors of each model's points predicted from the others."""
    errors = np.zeros(len(power))
    for model in set(models):
        apart = np.array([one == model for one in models])
        errors[apart] = np.abs(np.log(features[apart] @ fit(features[~apart], power[~apart]) / power[apart]))
    return errors


def activities() -> dict[str, dict[str, Any]]:
    """Return the fit of every accelerator that has points of enough models."""
    points: dict[str, list[tuple[list[float], float, str]]] = {}
    for point in packaged_points():
        activity = activity_of(point.record)
        if isinstance(activity, str):
            print("left out:", point.record.get("id"), activity)
            continue
        row = [1.0, activity.bytes_per_second * SCALE[1], activity.flops * SCALE[2]]
        cards = float(point.record.get("gpus") or 1)
        points.setdefault(activity.accelerator.id, []).append((row, point.power / cards, point.series[0]))
    found = {}
    for name, rows in points.items():
        features, power, models = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), [r[2] for r in rows]
        if len(set(models)) < LEAST_MODELS:
            continue
        static, per_byte, per_flop = fit(features, power)
        errors = left_out(features, power, models)
        found[name] = {
            "static": round(float(static), 1), "byte": round(float(per_byte), 2), "flop": round(float(per_flop), 4),
            "points": len(power), "models": len(set(models)), "median": round(float(np.median(errors)), 4),
            "p90": round(float(np.quantile(errors, 0.9)), 4),
        }  # fmt: skip
    return found


def write_activities(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Put the fits into the file of power."""
    text = path.read_text(encoding="utf-8")
    for name, one in found.items():
        line = (
            f"  activity: {{static: {{value: {one['static']}, unit: W, source: mlenergy, confidence: derived}}, "
            f"picojoules_per_byte: {one['byte']}, picojoules_per_flop: {one['flop']}, points: {one['points']}, "
            f"models: {one['models']}, median: {one['median']}, p90: {one['p90']}, source: mlenergy}}\n"
        )
        text = re.sub(rf"(- accelerator: {name}\n)(?:  activity: .*\n)?", lambda m, line=line: m[1] + line, text)
    path.write_text(text, encoding="utf-8")


def restarts(path: Path) -> None:
    """Fit the growth of restarts with size, and put it into the file of failures."""
    rows = files.read(files.ROOT / "measurements" / "reliability_energy.yaml")["reliability"]
    row = next(one for one in rows if "cold_recovery_s" in one.get("expect", {}))
    cards, cold, comm = (
        numbers(part)
        for part in (row["inputs"]["cards"], row["expect"]["cold_recovery_s"], row["expect"]["comm_init_s"])
    )
    assert cards is not None
    assert cold is not None
    assert comm is not None
    matrix = np.column_stack([1 / cold, cards / cold])
    base, slope = np.linalg.lstsq(matrix, np.ones(len(cold)), rcond=None)[0]
    power, start = np.polyfit(np.log(cards), np.log(comm), 1)
    lines = {
        "cold-recovery": (base, slope, 1.0, np.abs(np.log((base + slope * cards) / cold)).max()),
        "communicators": (0.0, math.exp(start), power, np.abs(start + power * np.log(cards) - np.log(comm)).max()),
    }
    text = path.read_text(encoding="utf-8")
    for name, (base, slope, exponent, spread) in lines.items():
        new = (
            f"id: {name}, base: {base:.4g}, per_card: {slope:.4e}, exponent: {exponent:.4g}, "
            f"points: {len(cards)}, spread: {spread:.3f},"
        )
        text = re.sub(rf"id: {name}, base: .*? spread: [\d.]+,", new, text)
        print(name, new)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Fit and write."""
    found = activities()
    for name, one in found.items():
        print(name, one)
    write_activities(found, files.ROOT / "power.yaml")
    restarts(files.ROOT / "failures.yaml")


if __name__ == "__main__":
    main()
