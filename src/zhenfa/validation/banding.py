"""Bands of outcomes: which class an outcome is of, and its residual in the direction of time."""

from __future__ import annotations

import math
from typing import Final

from zhenfa.estimate import bands
from zhenfa.validation.outcome import Outcome

SHARES: Final = ("mfu", "hfu", "ettr", "goodput", "efficiency", "share")
"""Metrics without a unit that grow as a time shrinks, by a word in their name."""


def is_rate(outcome: Outcome) -> bool:
    """Return whether the metric grows as the time that it comes from shrinks: work per second, or a share of a peak."""
    unit = outcome.unit
    if unit.endswith("/s") or "/s/" in unit or unit in {"TFLOPS", "TFLOP/s"}:
        return True
    return not unit.strip("%") and any(word in outcome.metric.casefold() for word in SHARES)


def class_names(outcome: Outcome) -> tuple[str, ...]:
    """Return the classes of an outcome, the narrowest first: its groups with and without the metric, then its kind."""
    pairs = [name for group in outcome.groups for name in (f"{group} | {outcome.metric}", group)]
    return (*dict.fromkeys(pairs), f"{outcome.kind} | {outcome.metric}", outcome.kind)


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
