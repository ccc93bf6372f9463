"""Which cards of the machine there are at this moment, and how fast they are against what was said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zhenfa.live.placement import Card
from zhenfa.spec.machine import Accelerator, CardPool, Formation


@dataclass
class Roster:
    """The cards of a machine, less those that are lost; some may be slower than the machine document says.

    ``machine`` is the whole of it and never changes; :meth:`formation` is what is left to plan on.
    """

    machine: Formation
    lost: set[Card] = field(default_factory=set)
    slower: dict[Card, float] = field(default_factory=dict)

    def cards(self) -> dict[str, list[Card]]:
        """Return the cards of every pool of :meth:`formation`, in the order in which plans take them."""
        pools: dict[str, list[Card]] = {}
        for pool in self.machine.pools:
            there = [(pool.name, index) for index in range(pool.count) if (pool.name, index) not in self.lost]
            pools[pool.name] = [card for card in there if card not in self.slower]
            pools |= {_apart(card): [card] for card in there if card in self.slower}
        return {name: cards for name, cards in pools.items() if cards}

    def spares(self, used: Mapping[Card, Any] | set[Card], pool: str) -> list[Card]:
        """Return the cards of a pool that are there and idle."""
        return [card for card in self.cards().get(pool, []) if card not in used]

    def formation(self) -> Formation:
        """Return the machine that is left: each slow card is a pool of its own."""
        pools: list[CardPool] = []
        for name, cards in self.cards().items():
            pool = self.machine.pool(cards[0][0])
            factor = self.slower.get(cards[0], 1.0) if name != pool.name else 1.0
            card = pool.accelerator if factor == 1.0 else _slowed(pool.accelerator, factor)
            pools.append(replace(pool, name=name, count=len(cards), accelerator=card))
        return replace(self.machine, pools=tuple(pools))


def slow_pools(machine: Formation, left: Formation) -> set[str]:
    """Return the pools of a machine of which a card stands apart, as a slow one, in what is left of it."""
    names = {one.name for one in left.pools}
    return {pool.name for pool in machine.pools for index in range(pool.count) if _apart((pool.name, index)) in names}


def _apart(card: Card) -> str:
    return f"{card[0]}-slow-{card[1]}"


def _slowed(accelerator: Accelerator, factor: float) -> Accelerator:
    """Return the accelerator at ``1 / factor`` of its arithmetic; its memory is what it was."""
    peak = {
        precision: fact.model_copy(update={"value": None if fact.value is None else fact.value / factor})
        for precision, fact in accelerator.peak.items()
    }
    return accelerator.model_copy(update={"peak": peak})
