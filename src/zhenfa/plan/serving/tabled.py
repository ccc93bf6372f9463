"""Prefill and decode apart on few cards: every number of cards for prefill, type and number of instances that decode.

The best prefill instances with so many cards stand for all (:mod:`zhenfa.plan.serving.givers`), so that what every pair
of types takes with every number of instances of both is one table, and the search over it is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zhenfa.estimate import serving_curves
from zhenfa.plan.serving.givers import TABLED, Top
from zhenfa.plan.serving.parts import Part, one_of

if TYPE_CHECKING:
    from zhenfa.plan.serving.search import Pair, Space


@dataclass(frozen=True)
class Table:
    """Requests/s (``rates``) by cards that prefill (rows) and instances that decode (columns: the ``count`` of type
    ``to``, on ``taken`` cards); 0 where they do not fit. ``tops``: the best prefill instances of each column."""

    pair: Pair
    rates: Any
    to: Any
    count: Any
    taken: Any
    tops: list[Top]

    def part(self, cards: int, column: int) -> Part:
        """Return one entry as a part, without instances that decode and are not needed for its rate."""
        first, other, joint = self.pair
        rate, to = float(self.rates[cards, column]), int(self.to[column])
        least = rate / float(other.decoded[to])
        if joint is not None:
            crossing = rate / float(joint.rate(other.decode.workload.mean_input, 1.0, 1.0))
            least = max(least, crossing / float(other.decode.cards[to]))
        count = max(min(int(np.ceil(least * (1 - 1e-12))), int(self.count[column])), 1)
        top = self.tops[column]
        return Part(other.decode, to, count, rate, first.prefill, int(top.at[cards]), int(top.count[cards]))

    def best(self, worth: Any) -> Iterator[tuple[float, Part]]:
        """Yield the entry of each decode type that is worth most, of those the one with the fewest cards, with its
        worth, from the best on. ``worth``: of each entry, which only counts where its rate is positive."""
        score = np.where(self.rates > 0, worth, -np.inf)
        cards = np.arange(len(self.rates))[:, None] + self.taken[None, :]
        place = np.ravel(np.broadcast_to(np.arange(len(self.to)), score.shape))
        order = np.lexsort((np.ravel(cards), -np.ravel(score), self.to[place]))
        kinds = self.to[place[order]]
        first = order[np.concatenate([[True], kinds[1:] != kinds[:-1]])] if len(order) else order
        flat = np.ravel(score)
        for at in first[np.argsort(-flat[first], kind="stable")]:
            if not np.isfinite(flat[at]):
                return
            yield float(flat[at]), self.part(*divmod(int(at), len(self.to)))


def tabled(rooms: Mapping[str, int]) -> bool:
    """Return whether pools with so many cards are small enough for a table."""
    return max(rooms.values(), default=0) <= TABLED


def table_of(space: Space, pair: Pair, rooms: Mapping[str, int]) -> Table:
    """Return the table of a pair of families with at most so many cards of their pools."""
    first, other, joint = pair
    here, there = first.name, other.name
    sizes = other.decode.cards.astype(int)
    most = np.where(other.decoded > 0, rooms[there] // sizes, 0)
    to = np.repeat(np.arange(len(sizes)), most)
    count = np.concatenate([np.zeros(0, int), *(np.arange(1, one + 1) for one in most if one)])
    taken = count * sizes[to]
    tops, supply = _tops(pair, to, rooms[here])
    rates = np.minimum(supply, count * np.asarray(other.decoded)[to])
    given = np.arange(rooms[here] + 1)[:, None]
    if joint is not None:
        rates = np.minimum(rates, joint.rate(other.decode.workload.mean_input, given, taken[None, :]))
    used = {here: given + taken[None, :]} if here == there else {here: given, there: taken[None, :]}
    inside = np.asarray(space.wish.fits(used)) & (used[here] <= rooms[here])
    return Table(pair, np.where(inside, rates, 0.0), to, count, taken, tops)


def _tops(pair: Pair, to: Any, cards: int) -> tuple[list[Top], Any]:
    """Return the best prefill instances to go with each column, and what they give with each number of cards."""
    first, other, joint = pair
    layout = other.decode.group.cut.layout
    widths = np.broadcast_to(np.ravel(serving_curves.group_cards(layout)), len(other.decode))
    if joint is None:
        widths = np.zeros_like(widths)
    kinds, one, back = np.unique(widths[to], return_index=True, return_inverse=True)
    found = [first.givers.by_cards(one_of(other.decode, int(to[at])), joint) for at in one]
    if not len(kinds):
        return [], np.zeros((cards + 1, 0))
    columns = np.stack([top.rate[: cards + 1] for top in found], axis=-1)
    return [found[at] for at in back], columns[:, back]
