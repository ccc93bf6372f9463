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
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Predict = Callable[[Mapping[str, float]], Floats]

HUBER: Final = 0.1
"""Logarithm of predicted over measured from which a timing counts as an outlier."""
STEPS: Final = 60
NUDGE: Final = 1e-3
DONE: Final = 1e-5
"""Largest change of a coefficient's logarithm at which the search stands still."""
PULL: Final = 1e-5
"""Weight of the start, which decides where the timings do not."""
MOVES: Final = 1e-4
"""Least mean change of the logarithm of a prediction by a coefficient's: below it the timings do not show it."""
TELLS: Final = 0.01
"""Least change of the logarithm of some prediction when a coefficient goes to either bound: below it the timings show
on one side only what it is, as a speed that is high enough."""


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

    ``weights`` of each timing, 1 being usual. The result depends on its arguments alone. A law takes the longer of two
    times, so a coefficient may start where it moves nothing and stay there while others bend to the timings that it
    should explain: such a search is begun again with that coefficient at its bounds, and the nearest end is kept.
    """
    wanted = np.log(np.asarray(measured, float))
    low, high, start = (
        np.asarray(np.log([getattr(knob, at) for knob in knobs]), float) for at in ("low", "high", "start")
    )

    def residuals(place: Floats) -> Floats:
        values = np.exp(np.clip(place, low, high))
        found = predict({knob.name: float(value) for knob, value in zip(knobs, values, strict=True)})
        return np.asarray(np.log(found) - wanted, float)

    descent = _Descent(residuals, start, low, high, np.asarray(weights, float))
    best = descent.down(start)
    for index in np.flatnonzero(~best.shown):
        for end in (low[index], high[index]):
            other = np.where(np.arange(len(start)) == index, end, start)
            if np.any(residuals(other) != residuals(start)):
                best = min(best, descent.down(other), key=lambda one: one.loss)
    shown = frozenset(knob.name for knob, seen in zip(knobs, best.shown, strict=True) if seen)
    values = {knob.name: float(value) for knob, value in zip(knobs, np.exp(best.place), strict=True)}
    return Fitted(values, best.here, shown)


class _End(NamedTuple):
    """Where a descent ended: the coefficients' logarithms, the residuals, their loss, which coefficients move them."""

    place: Floats
    here: Floats
    loss: float
    shown: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Descent:
    """Steps of least squares from any place, with a little pull towards the usual start."""

    residuals: Callable[[Floats], Floats]
    start: Floats
    low: Floats
    high: Floats
    weigh: Floats

    def down(self, place: Floats) -> _End:
        """Return where the steps from a place end."""
        here, damping = self.residuals(place), 1e-2
        loss, slope = self._loss(place, here), self._slope(place, here)
        for _ in range(STEPS):
            there = np.clip(place + self._step(place, here, slope, damping), self.low, self.high)
            after = self.residuals(there)
            if (lower := self._loss(there, after)) < loss:
                done = float(np.max(np.abs(there - place), initial=0.0)) < DONE
                place, here, loss, damping = there, after, lower, max(damping / 4, 1e-9)
                slope = self._slope(place, here)
                if done:
                    break
            elif damping > 1e6:
                break
            else:
                damping *= 6
        return _End(place, here, loss, (np.mean(np.abs(slope), axis=0) > MOVES) & self._told(place, here))

    def _told(self, place: Floats, here: Floats) -> npt.NDArray[np.bool_]:
        """Return which coefficients cannot go to their bounds without a change that is seen."""
        told = np.full(len(place), True)
        for index, value in enumerate(place):
            for end in (self.low[index], self.high[index]):
                if abs(end - value) > NUDGE:
                    moved = self.residuals(np.where(np.arange(len(place)) == index, end, place)) - here
                    told[index] &= float(np.max(np.abs(moved))) > TELLS
        return told

    def _slope(self, place: Floats, here: Floats) -> Floats:
        """Return the change of every residual by every coefficient's logarithm, away from the nearer bound."""
        columns: list[Floats] = []
        for index, value in enumerate(place):
            away = NUDGE if self.high[index] - value >= value - self.low[index] else -NUDGE
            nudged = place.copy()
            nudged[index] += away
            columns.append((self.residuals(nudged) - here) / away)
        return np.asarray(np.stack(columns, axis=1), float)

    def _step(self, place: Floats, here: Floats, slope: Floats, damping: float) -> Floats:
        size, back = np.abs(here), self.start - place
        robust = self.weigh * np.where(size <= HUBER, 1.0, HUBER / np.maximum(size, 1e-12))
        square = slope.T @ (robust[:, None] * slope)
        damped = square + PULL * np.eye(len(back)) + damping * np.diag(np.diag(square) + 1e-9)
        solved = np.linalg.solve(damped, -slope.T @ (robust * here) + PULL * back)
        return np.asarray(np.clip(solved, -1.0, 1.0), float)

    def _loss(self, place: Floats, here: Floats) -> float:
        if not np.all(np.isfinite(here)):
            return math.inf
        size = np.abs(here)
        huber = np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
        return float(np.sum(self.weigh * huber) + PULL * np.sum((place - self.start) ** 2) / 2)


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
