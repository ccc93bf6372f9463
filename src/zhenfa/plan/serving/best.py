"""The best choices that a search has found so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zhenfa.plan.serving.parts import Part

Score = tuple[float, ...]


def anything(chosen: tuple[Part, ...]) -> bool:
    """Allow every choice."""
    return bool(chosen)


class Best:
    """The choices with the highest scores so far, one for each key, of those that are allowed.

    A choice is one part, or several of a fleet. None is kept whose score is below ``floor``.
    """

    def __init__(self, keep: int, allows: Callable[[tuple[Part, ...]], Any] = anything, floor: float = -np.inf) -> None:
        self.keep, self.allows, self.floor = keep, allows, floor
        self.found: dict[tuple[object, ...], tuple[Score, tuple[Part, ...]]] = {}

    @property
    def last(self) -> float:
        """Return the score that must be beaten to be kept."""
        if len(self.found) < self.keep:
            return self.floor
        return max(min(score[0] for score, _ in self.found.values()), self.floor)

    def limit(self, key: tuple[object, ...]) -> float:
        """Return the score that a choice of one part with this key must beat to be kept."""
        known = self.found.get((key,))
        return self.last if known is None else max(self.last, known[0][0])

    @property
    def first(self) -> float:
        """Return the highest score so far."""
        return max((score[0] for score, _ in self.found.values()), default=-np.inf)

    def offer(self, part: Part | tuple[Part, ...], score: Score) -> None:
        """Keep a choice if it is among the best and allowed; of those as good, one whose instances store weights
        alike."""
        chosen = (part,) if isinstance(part, Part) else part
        score = (*score, -float(sum(one.mixed for one in chosen)))
        key = tuple(one.key for one in chosen)
        known = self.found.get(key)
        if (
            (known is not None and known[0] >= score)
            or score[0] < self.floor
            or (known is None and score[0] < self.last)
        ):
            return
        if not self.allows(chosen):
            return
        self.found[key] = (score, chosen)
        if len(self.found) > self.keep:
            del self.found[min(self.found, key=lambda key: self.found[key][0])]

    def ranked(self) -> list[tuple[Score, tuple[Part, ...]]]:
        """Return scores and choices, best first."""
        return sorted(self.found.values(), key=lambda one: one[0], reverse=True)
