"""The bridge between makers: which cards it lies between, what crosses it compressed, and how much that was.

Cards of one maker reach each other inside; whatever goes from a card of one maker to one of another crosses the
bridge, through host memory and gloo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zhenfa.live.placement import CardPlace
from zhenfa.spec.job import BridgeFormat


def sides(places: Sequence[CardPlace], ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return ranks by the maker of their cards, in the order of each maker's first."""
    found: dict[str, list[int]] = {}
    for rank in ranks:
        found.setdefault(places[rank].maker, []).append(rank)
    return tuple(tuple(row) for row in found.values())


def across(places: Sequence[CardPlace], rank: int) -> frozenset[int]:
    """Return the cards to which a card's messages cross the bridge."""
    return frozenset(one.rank for one in places if one.maker != places[rank].maker)


@dataclass
class Tally:
    """What one card put onto the bridge. ``raw``: the bytes as computed, ``sent``: as they went, by what they are;
    ``link_s``: seconds that they held emulated links; ``held_s``: seconds that the card was held up by the bridge."""

    raw: dict[str, float] = field(default_factory=dict)
    sent: dict[str, float] = field(default_factory=dict)
    link_s: float = 0.0
    held_s: float = 0.0
    steps: int = 0

    def count(self, what: str, raw: float, sent: float, seconds: float = 0.0) -> None:
        """Count something sent over the bridge."""
        self.raw[what] = self.raw.get(what, 0.0) + raw
        self.sent[what] = self.sent.get(what, 0.0) + sent
        self.link_s += seconds

    def reset(self) -> None:
        """Forget what was counted."""
        self.raw.clear()
        self.sent.clear()
        self.link_s = self.held_s = 0.0
        self.steps = 0

    def step(self) -> dict[str, Any]:
        """Return the means of a step."""
        steps = max(self.steps, 1)
        return {
            "raw": {what: size / steps for what, size in self.raw.items()},
            "sent": {what: size / steps for what, size in self.sent.items()},
            "link_s": self.link_s / steps,
            "held_s": self.held_s / steps,
        }


@dataclass(frozen=True)
class Crossing:
    """How one card's messages go to others: those to ``ranks`` cross the bridge in ``kind``.

    ``memory_rate`` (B/s) paces packing on an emulated card, None on a real one.
    """

    ranks: frozenset[int] = frozenset()
    kind: BridgeFormat = "none"
    memory_rate: float | None = None
    tally: Tally = field(default_factory=Tally)

    def format(self, peer: int) -> BridgeFormat:
        """Return how numbers go to, or come from, a card."""
        return self.kind if peer in self.ranks else "none"
