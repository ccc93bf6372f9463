"""Which rows of a micro-batch go from which card to which, where stages share micro-batches out over unlike numbers of
groups: whoever has rows that another needs sends these, so that each row reaches each group that works on it once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zhenfa.live.placement import CardPlace


@dataclass(frozen=True)
class Rows:
    """Rows ``first`` up to but not including ``last`` of those that a card works on, and the card (``rank``) that gets
    or gives them. ``beside``: how many times as many rows pass the narrower end at once, whose link carries them all.
    """

    rank: int
    first: int
    last: int
    beside: float


def standing(places: Sequence[CardPlace], pipeline: int) -> list[list[list[int]]]:
    """Return the ranks at each place of a pipeline: a row for each part of a micro-batch that is worked on there, of
    those that split the matrices."""
    found: dict[int, dict[int, list[int]]] = {}
    for place in places:
        if place.pipeline == pipeline:
            found.setdefault(place.stage, {}).setdefault(place.group, []).append(place.rank)
    return [list(rows.values()) for rows in found.values()]


def sent(place: CardPlace, groups: Sequence[Sequence[int]]) -> list[Rows]:
    """Return which of its rows of a micro-batch a card sends to whom at another place, whose ``groups`` are the ranks
    of those that split matrices, one row of them for each part of the micro-batch."""
    return [
        Rows(rank, first, last, beside)
        for ranks, first, last, beside in _shared(place, groups)
        for number, rank in enumerate(ranks)
        if number % place.tensors == place.tensor
    ]


def received(place: CardPlace, groups: Sequence[Sequence[int]]) -> list[Rows]:
    """Return which of its rows of a micro-batch a card gets from whom at another place, see :func:`sent`."""
    return [
        Rows(ranks[place.tensor % len(ranks)], first, last, beside)
        for ranks, first, last, beside in _shared(place, groups)
    ]


def _shared(place: CardPlace, groups: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], int, int, float]]:
    """Yield the groups that have rows of a card's, which of the card's rows these are, and what passes beside them."""
    own = place.micro_batch_size
    begin, each = place.group * own, own * place.groups // len(groups)
    for number, ranks in enumerate(groups):
        first, last = max(number * each - begin, 0), min((number + 1) * each - begin, own)
        if first < last:
            yield ranks, first, last, max(own, each) / (last - first)
