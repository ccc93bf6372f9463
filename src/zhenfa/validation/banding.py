"""Bands of outcomes: which class an outcome is of, and its residual in the direction of time."""

from __future__ import annotations

import math
import re
from typing import Final

from zhenfa.estimate import bands
from zhenfa.validation.outcome import Outcome

SHARES: Final = ("mfu", "hfu", "ettr", "goodput", "efficiency", "share")
"""Metrics without a unit that grow as a time shrinks, by a word in their name."""

FAMILIES: Final = (
    ("ttft", "time to first token"), ("tpot", "time per token"), ("itl", "time per token"), ("e2e", "whole request"),
    ("tok_s", "throughput"), ("req_s", "throughput"), ("power", "power"), ("_w", "power"), ("j_per", "energy"),
    ("wh", "energy"), ("energy", "energy"),
)  # fmt: skip
"""Metrics of different accuracy within a kind, by a part of their name, the first that fits."""


IN_NO_FIT: Final = {"serve / in no fit": "serve / gate / no speculation"}
"""The class of rows that no law was fitted to, by their group: what they show of a class widens its band."""

CURVE: Final = 3
"""Other measured points from which a curve tells what a law missed."""

_OF_A_CURVE: Final = re.compile(r"(\d+) other points of its curve")


def family(metric: str) -> str | None:
    """Return the family of a metric that is as accurate as others of it, or None.

    >>> family("tpot_median_ms")
    'time per token'
    """
    name = metric.casefold()
    return next((found for part, found in FAMILIES if part in name), None)


def is_rate(outcome: Outcome) -> bool:
    """Return whether the metric grows as the time that it comes from shrinks: work per second, or a share of a peak."""
    unit = outcome.unit
    if unit.endswith("/s") or "/s/" in unit or unit in {"TFLOPS", "TFLOP/s"}:
        return True
    return not unit.strip("%") and any(word in outcome.metric.casefold() for word in SHARES)


def class_names(outcome: Outcome) -> tuple[str, ...]:
    """Return the classes of an outcome, the narrowest first: its first group with the software or engine of the row,
    its first group, its kind; each with and without the family of its metric. Metrics of a training step or a
    collective are one time in many forms, so they have no families. Reliability and energy hold test vectors of
    formulas, and points between measured ones of a curve, beside laws with coefficients: classes of their own.
    """
    first = IN_NO_FIT.get(outcome.group, outcome.group)
    others = (_basis(outcome),) if outcome.kind in {"reliability", "energy"} else outcome.groups[1:2]
    names = [f"{first} & {other}" for other in others] + [first, outcome.kind]
    found = family(outcome.metric) if outcome.kind not in {"train", "fabric", "op"} else None
    if found is None:
        return tuple(dict.fromkeys(names))
    return tuple(dict.fromkeys(one for name in names for one in (f"{name} | {found}", name)))


def _basis(outcome: Outcome) -> str:
    """Return whether an outcome is exact arithmetic, a point between others of its curve, or rests on a law alone."""
    if outcome.tag in {"derived", "measured", "datasheet"}:
        return "exact"
    points = _OF_A_CURVE.search(outcome.note or "")
    return "curve" if points and int(points[1]) >= CURVE else "law"


def residual(outcome: Outcome) -> float | None:
    """Return ln(measured / predicted) of the time behind the outcome; None where there is no ratio."""
    log = outcome.log_ratio
    if log is None or outcome.skipped is not None or not math.isfinite(log):
        return None
    return log if is_rate(outcome) else -log


def banded(outcome: Outcome) -> Outcome:
    """Return the outcome with the band of its class; as it is where it has one, or its class none."""
    if outcome.p10 is not None or outcome.predicted is None or outcome.skipped is not None:
        return outcome
    found = bands.band(*class_names(outcome))
    return outcome if found is None else outcome.within(*found.around(outcome.predicted, rate=is_rate(outcome)))
