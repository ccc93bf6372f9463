"""The least number of cards whose best plan reaches a throughput, found with few plans.

Throughput need not grow with every card: batches divide badly, a group reaches over the edge of a supernode. Counts are
therefore searched like this: a count that reaches it is found by growing (where throughput stops growing, by halving),
the gap below it is closed by interpolation, and then the next :data:`WITNESSES` lower counts are planned as well; if
one of them reaches it, the search goes on below that. What is sure: the count returned reaches it, and the
:data:`WITNESSES` counts below it, with every lower count that was planned, do not. Every count planned is kept, so that
the answer can show them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from zhenfa.plan.compare import Entry

WITNESSES: Final = 4
"""Counts below the one found that are planned to see that none of them reaches it too."""

STALLED: Final = 1.01
"""Throughput that grows less than this, over :data:`STALLS` growths of the count by half or more, grows no longer."""

STALLS: Final = 3
MARGIN: Final = 1e-9
"""Ratio by which a throughput may fall short of another and still count as equal."""

FALL: Final = 0.001
"""A fall of throughput with more cards that is less than this is not worth a word: the slowest of more cards is slower.
"""

MOST_CARDS: Final = 1 << 20


@dataclass
class Counts:
    """Counts of cards, in steps, and the best plan of each that was asked for."""

    plan: Callable[[int], Entry]
    step: int
    most: int
    points: dict[int, Entry] = field(default_factory=dict)

    def entry(self, steps: int) -> Entry:
        """Return how so many steps of cards fare; each count is planned once."""
        if steps not in self.points:
            self.points[steps] = self.plan(steps * self.step)
        return self.points[steps]

    def rate(self, steps: int) -> float:
        """Return the tokens/s of so many steps of cards; 0 where there is no plan."""
        return rate_of(self.entry(steps))

    @property
    def most_steps(self) -> int:
        """Return the largest count in steps."""
        return max(1, min(self.most, MOST_CARDS) // self.step)

    def least(self, target: float, guess: int) -> int | None:
        """Return the least count, in cards, that reaches ``target`` tokens/s, as the head of this module says; None if
        none was found that does. ``guess`` is where to begin, in cards.
        """
        high = self._reaching(target * (1 - MARGIN), max(1, math.ceil(guess / self.step)))
        while high is not None:
            high = self._close(target * (1 - MARGIN), high)
            lower = self._witness(target * (1 - MARGIN), high)
            if lower is None:
                return high * self.step
            high = lower
        return None

    def _reaching(self, target: float, steps: int) -> int | None:
        """Return a count that reaches the target: growing from ``steps``, or else, by halves, below it."""
        steps = begun = min(steps, self.most_steps)
        best, stalls = 0.0, 0
        while (rate := self.rate(steps)) < target:
            if steps == self.most_steps or stalls >= STALLS:
                lower = [
                    *range(begun - 1, max(begun - 1 - WITNESSES, 0), -1),
                    *(begun >> half for half in range(1, 21)),
                ]
                return next((fewer for fewer in lower if fewer and self.rate(fewer) >= target), None)
            grown = math.ceil(steps * min(1.02 * target / rate, 4.0)) if rate > 0 else 2 * steps
            wider = max(grown, steps + 1, math.ceil(1.5 * steps) if rate < STALLED * best else 0)
            stalls = stalls + 1 if 0 < rate < STALLED * best else 0
            best, steps = max(best, rate), min(wider, self.most_steps)
        return steps

    def _close(self, target: float, high: int) -> int:
        """Return a count that reaches the target next to one that does not (or the first of all)."""
        while True:
            low = max((steps for steps in self.points if steps < high and self.rate(steps) < target), default=0)
            if high - low <= 1:
                return high
            middle = self._between(target, low, high)
            if self.rate(middle) >= target:
                high = middle

    def _between(self, target: float, low: int, high: int) -> int:
        """Return where a straight line between two counts meets the target, an eighth from either end at least."""
        below, above = (self.rate(low) if low else 0.0), self.rate(high)
        share = (target - below) / (above - below) if above > below else 0.5
        edge = max(1, (high - low) // 8)
        return min(max(low + math.ceil(share * (high - low)), low + edge), high - edge)

    def _witness(self, target: float, high: int) -> int | None:
        """Return the lowest of the next counts below that reaches the target too."""
        below = [steps for steps in range(high - 1, max(high - 1 - WITNESSES, 0), -1) if self.rate(steps) >= target]
        return min(below, default=None)

    @property
    def falls(self) -> tuple[int, int, float] | None:
        """Return two counts of which the larger has the lower throughput, and their ratio: the worst such pair planned.

        None where throughput never fell by more than :data:`FALL` from one count to a larger one.
        """
        known = sorted((steps, self.rate(steps)) for steps in self.points if self.rate(steps) > 0)
        pairs = [
            (later / rate, steps * self.step, more * self.step)
            for index, (steps, rate) in enumerate(known)
            for more, later in known[index + 1 :]
        ]
        ratio, fewer, more = min(pairs, default=(1.0, 0, 0))
        return (fewer, more, ratio) if ratio < 1 - FALL else None


def rate_of(entry: Entry) -> float:
    """Return the tokens/s of a machine's best plan; 0 where there is none."""
    value = entry.best.figures.tokens_per_s.value if entry.best is not None else None
    return value or 0.0
