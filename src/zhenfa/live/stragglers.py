"""Cards that have become slow: told from how long they compute, against themselves a little earlier."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Final

from zhenfa.live.pace import COMPUTE
from zhenfa.live.placement import Card
from zhenfa.live.train import Measured

SLOW: Final = 1.5
"""Times its own usual time from which a card is slow."""
IN_A_ROW: Final = 3
"""Steps in a row that show it."""
COST_S: Final = 2.0
"""Seconds that it costs to go over to another plan: what is lost by a slow card in the steps left must be more."""
USUAL: Final = 3
"""Steps, after the first of a plan, that show what is usual."""


@dataclass
class Stragglers:
    """Watches the seconds that each card computes in a step, from the second step of a plan on."""

    _seen: list[list[float]] = field(default_factory=list)

    def begin(self) -> None:
        """Forget what was usual: the cards take up another plan."""
        self._seen.clear()

    def look(self, measured: Measured, steps_left: int) -> tuple[Card, float] | None:
        """Take in the last step; return the slowest card that has been slow for a while, and by what factor.

        None while nothing is worth another plan in the ``steps_left``.
        """
        if len(measured.losses) < 2:
            return None
        self._seen.append([_computing(row) for row in measured.spans])
        if len(self._seen) < USUAL + IN_A_ROW:
            return None
        found = []
        for place in measured.places:
            usual = statistics.median(row[place.rank] for row in self._seen[:USUAL])
            last = [row[place.rank] for row in self._seen[-IN_A_ROW:]]
            if usual > 0 and min(last) > SLOW * usual and (min(last) - usual) * steps_left > COST_S:
                found.append((statistics.median(last) / usual, place.card))
        if not found:
            return None
        factor, card = max(found)
        return card, factor


def _computing(spans: list[tuple[str, int, float, float, int, int]]) -> float:
    return sum(end - start for kind, _, start, end, *_ in spans if kind in COMPUTE)
