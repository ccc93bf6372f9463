"""What is done about a card that failed, as a pure function of what happened: no clock, no processes.

The rungs, each tried before the next: take the step again (``retry``); give the card a new process (``restart``); put
an idle card of the same pool in its place (``replace``); plan again for the cards that are left (``re-form``); stop,
with what was saved (``stop``). ``re-balance`` plans again for cards that have turned out slow, ``grow`` for cards that
have come back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

from zhenfa.live.placement import Card

Rung = Literal["retry", "restart", "replace", "re-form", "re-balance", "grow", "stop"]
Trouble = Literal["death", "hang", "error", "poison", "lost"]

RESTARTS: Final = 2
"""New processes that a card may be given within :data:`WINDOW` steps before it is taken for broken."""
WINDOW: Final = 50
HOPELESS: Final = 8
"""Failures in a row without one step taken between them, after which nothing more is tried."""


@dataclass
class Ladder:
    """Remembers what was tried on which card. ``can_plan``: whether a new plan can be asked for."""

    can_plan: bool
    _restarted: dict[Card, list[int]] = field(default_factory=dict)
    _tried: Counter[tuple[Card, int]] = field(default_factory=Counter)
    _in_a_row: int = 0

    def rung(self, card: Card, trouble: Trouble, step: int, *, spares: int) -> Rung:
        """Return what to do about ``trouble`` of a card at a step, with ``spares`` idle cards of its pool there."""
        self._in_a_row += 1
        if self._in_a_row > HOPELESS:
            return "stop"
        self._tried[card, step] += 1
        if trouble in ("error", "poison") and self._tried[card, step] == 1:
            return "retry"
        recent = [one for one in self._restarted.get(card, []) if one > step - WINDOW]
        if trouble != "lost" and len(recent) < RESTARTS:
            self._restarted[card] = [*recent, step]
            return "restart"
        if spares:
            return "replace"
        return "re-form" if self.can_plan else "stop"

    def progressed(self) -> None:
        """Say that a step was taken."""
        self._in_a_row = 0
