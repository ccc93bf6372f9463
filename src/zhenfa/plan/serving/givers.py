"""What prefill instances give in time: how many prompts/s have their first token within the target of TTFT.

What such instances give depends on the instances that decode only through the bridge that the caches cross. So of the
types that take as many cards, over the same bridge, one is the best whatever decodes: the best for every number of
cards (:meth:`Givers.by_cards`) stands for all types with all numbers of instances, and prefill needs no pairing. Where
a pool has more than :data:`TABLED` cards, types are looked at in the order of a bound instead: what one of as many
instances as there is room for gives (``most``). Proof: prompts of more instances wait less at the same load of each, so
that one of fewer instances gives no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from zhenfa.estimate import serving_curves
from zhenfa.estimate.rows import take
from zhenfa.estimate.serving_curves import Crossing, Service
from zhenfa.estimate.serving_spread import wait_factor
from zhenfa.plan.serving.parts import HALVINGS, SLACK
from zhenfa.plan.serving.space import Types

TABLED: Final = 64
"""Cards of a pool up to which every number of instances of every type is looked at."""

KEPT: Final = 512
"""Numbers of instances up to which what a type gives is kept once found."""


@dataclass(frozen=True)
class Top:
    """The best prefill instances with exactly so many cards: requests/s (0 where no whole instances take so many), the
    type and the number of its instances."""

    rate: Any
    at: Any
    count: Any


class Givers:
    """Prefill types of one family, with at most ``cards`` cards; first tokens come ``before`` seconds after prefill at
    least. ``most``: requests/s that one instance of each type cannot exceed."""

    def __init__(self, types: Types, cards: int, before: float) -> None:
        self.types, self.cards = types, cards
        self.evaluated = 0
        """Types with a number of instances that were evaluated."""
        self._rows: dict[tuple[int, float], Any] = {}
        self._tops: dict[tuple[Crossing | None, float, float], Top] = {}
        counts = np.maximum(cards // types.cards, 1.0)
        self.most = self._in_time(np.arange(len(types)), counts, np.full(len(types), before)) / counts

    def _in_time(self, index: Any, counts: Any, before: Any) -> Any:
        """Return requests/s of so many instances of types, whose first tokens come ``before`` seconds after prefill.

        The wait grows with the rate, so that the most is found by halving.
        """
        self.evaluated += len(index)
        given, workload = take(self.types.supply, index), self.types.workload
        given = replace(given, cut=replace(given.cut, count=np.asarray(counts, float)[:, None]))
        own = np.asarray(before, float)[:, None] + given.seconds
        latest = np.inf if workload.ttft_target is None else workload.ttft_target * (1 - SLACK)
        factor = wait_factor(workload.ttft_percentile)

        def late(rate: Any) -> Any:
            longer, wait = given.beside(rate, requests=None, away=1.0)
            return own + longer + factor * wait > latest

        high = np.array(given.cut.count * given.rate, float)
        low, bound, over = np.zeros_like(high), high, late(high)
        if not np.any(over):
            return bound[:, 0]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = late(middle)
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return np.where(over, np.where(own > latest, 0.0, low), bound)[:, 0]

    def limit(self, at: int, counts: Any, decode: Service, crossing: Crossing | None, receivers: Any) -> Any:
        """Return the most requests/s of which ``counts`` instances of a type give the first token in time.

        ``receivers`` instances of ``decode``, which matter where the cache crosses between pools.
        """
        counts = np.asarray(counts)
        before = float(self._before(decode, crossing)[at])
        if np.max(counts) > KEPT:
            found = self._in_time(np.full(len(counts), at), counts, np.full(len(counts), before))
        else:
            found = self._row(at, int(np.max(counts)), before)[counts.astype(int) - 1]
        if crossing is None:
            return found
        there = receivers * float(np.ravel(decode.decode.cut.cards)[0])
        return np.minimum(found, crossing.rate(self.types.workload.mean_input, counts * self.types.cards[at], there))

    def _row(self, at: int, count: int, before: float) -> Any:
        known = self._rows.get((at, before))
        if known is None or len(known) < count:
            most = max(count, min(KEPT, self.cards // int(self.types.cards[at])))
            known = self._in_time(np.full(most, at), np.arange(1, most + 1), np.full(most, before))
            self._rows[at, before] = known
        return known

    def _before(self, decode: Service, crossing: Crossing | None) -> Any:
        """Return the seconds to the first token beside prefill and waits, of every type."""
        service, source = replace(decode, crossing=crossing), self.types.supply.cut
        found = serving_curves.before_first(service, self.types.workload, source, decode.decode.cut)
        return np.broadcast_to(np.ravel(found), len(self.types))

    def by_cards(self, decode: Service, crossing: Crossing | None) -> Top:
        """Return the best for every number of cards, to go with a type of instances that decode; the rate at which
        caches cross aside."""
        layout = decode.decode.cut.layout
        receivers = 0.0 if crossing is None else float(np.ravel(serving_curves.group_cards(layout))[0])
        key = (crossing, receivers, decode.engine.entry + decode.engine.handover)
        if key not in self._tops:
            self._tops[key] = self._top(self._before(decode, crossing))
        return self._tops[key]

    def _top(self, before: Any) -> Top:
        sizes = self.types.cards.astype(int)
        most = self.cards // sizes
        index = np.repeat(np.arange(len(sizes)), most)
        counts = np.concatenate([np.arange(1, one + 1) for one in most]).astype(int)
        spent = counts * sizes[index]
        found = self._in_time(index, counts, before[index])
        order = np.lexsort((found, spent))  # of each number of cards the best comes last
        rate, at, number = np.zeros(self.cards + 1), np.zeros(self.cards + 1, int), np.zeros(self.cards + 1, int)
        rate[spent[order]], at[spent[order]], number[spent[order]] = found[order], index[order], counts[order]
        return Top(rate, at, number)
