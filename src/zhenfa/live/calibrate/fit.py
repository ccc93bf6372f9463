"""Coefficients from timings: least squares on the logarithm of predicted over measured, through the laws themselves.

Nothing here knows a law's formula: a coefficient is a field of ``Achievable``, the prediction comes from
:mod:`zhenfa.estimate.kernels` on a card that carries the coefficients, and the step is Gauss and Newton's with
Levenberg's damping, on the coefficients' logarithms, with outliers weighed down as Huber does. What no timing moves is
left out of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Predict = Callable[[Mapping[str, float]], Floats]

HUBER: Final = 0.1
"""Logarithm of predicted over measured from which a timing counts as an outlier."""
STEPS: Final = 60
NUDGE: Final = 1e-3
PULL: Final = 1e-3
"""Weight of the start, which decides where the timings do not."""
MOVES: Final = 1e-4
"""Least mean change of the logarithm of a prediction by a coefficient's: below it the timings do not show it."""


@dataclass(frozen=True)
class Knob:
    """A coefficient: where the search starts and what bounds it."""

    name: str
    start: float
    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """What the search found. ``residuals``: logarithm of predicted over measured, per timing; ``shown``: the knobs that
    the timings decide."""

    values: dict[str, float]
    residuals: Floats
    shown: frozenset[str]

    @property
    def error(self) -> float:
        """Return the median of the absolute residuals."""
        return float(np.median(np.abs(self.residuals)))


def fit(knobs: Sequence[Knob], predict: Predict, measured: Sequence[float], weights: Sequence[float]) -> Fitted:
    """Return the coefficients with which ``predict`` comes nearest to the ``measured`` seconds.

    ``weights`` of each timing, 1 being usual. The result depends on its arguments alone.
    """
    wanted, weigh = np.log(np.asarray(measured, float)), np.asarray(weights, float)
    low, high = (np.asarray(np.log([getattr(knob, end) for knob in knobs]), float) for end in ("low", "high"))
    start = np.asarray(np.log([knob.start for knob in knobs]), float)

    def residuals(place: Floats) -> Floats:
        values = np.exp(np.clip(place, low, high))
        found = predict({knob.name: float(value) for knob, value in zip(knobs, values, strict=True)})
        return np.asarray(np.log(found) - wanted, float)

    place, damping = start, 1e-2
    here = residuals(place)
    for _ in range(STEPS):
        slope = _slope(residuals, place, here, low, high)
        moved = _step(slope, here, weigh, start - place, damping)
        there = np.clip(place + moved, low, high)
        after = residuals(there)
        if _loss(after, weigh, there - start) < _loss(here, weigh, place - start):
            done = float(np.max(np.abs(there - place), initial=0.0)) < 1e-5
            place, here, damping = there, after, max(damping / 4, 1e-9)
            if done:
                break
        elif damping > 1e6:
            break
        else:
            damping *= 6
    slope = _slope(residuals, place, here, low, high)
    shown = frozenset(
        knob.name for knob, column in zip(knobs, slope.T, strict=True) if float(np.mean(np.abs(column))) > MOVES
    )
    values = {knob.name: float(value) for knob, value in zip(knobs, np.exp(place), strict=True)}
    return Fitted(values, here, shown)


def _slope(residuals: Callable[[Floats], Floats], place: Floats, here: Floats, low: Floats, high: Floats) -> Floats:
    """Return the change of every residual by every coefficient's logarithm, taken away from the nearer bound."""
    columns: list[Floats] = []
    for index, value in enumerate(place):
        away = NUDGE if high[index] - value >= value - low[index] else -NUDGE
        nudged = place.copy()
        nudged[index] += away
        columns.append((residuals(nudged) - here) / away)
    return np.asarray(np.stack(columns, axis=1), float)


def _step(slope: Floats, here: Floats, weigh: Floats, back: Floats, damping: float) -> Floats:
    size = np.abs(here)
    robust = weigh * np.where(size <= HUBER, 1.0, HUBER / np.maximum(size, 1e-12))
    square = slope.T @ (robust[:, None] * slope)
    damped = square + PULL * np.eye(len(back)) + damping * np.diag(np.diag(square) + 1e-9)
    solved = np.linalg.solve(damped, -slope.T @ (robust * here) + PULL * back)
    return np.asarray(np.clip(solved, -1.0, 1.0), float)


def _loss(here: Floats, weigh: Floats, away: Floats) -> float:
    if not np.all(np.isfinite(here)):
        return math.inf
    size = np.abs(here)
    huber = np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
    return float(np.sum(weigh * huber) + PULL * np.sum(away**2) / 2)


def line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return latency in s and bandwidth in B/s of ``seconds = latency + size / bandwidth``, by relative least squares.

    Raises ``ValueError`` where the times do not grow with the size.

    >>> line([0.0, 1e6, 2e6], [1e-3, 2e-3, 3e-3])
    (0.001..., 1000000000.0...)
    """
    x, y = np.asarray(sizes, float), np.asarray(seconds, float)
    table = np.stack([1 / y, x / y], axis=1)
    solved: Any = np.linalg.lstsq(table, np.ones_like(y), rcond=None)[0]
    latency, slope = float(solved[0]), float(solved[1])
    if latency <= 0:  # a straight line through nothing: what is left is the bandwidth
        latency, slope = float(np.min(y)), float(np.sum((x / y) ** 2) and np.sum(x / y) / np.sum((x / y) ** 2))
    if slope <= 0:
        raise ValueError("the seconds do not grow with the size")
    return latency, 1 / slope
