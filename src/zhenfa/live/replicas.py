"""Which cards hold the same parts, whichever way each replica splits them, and how they share out what is to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zhenfa.live.placement import CardPlace
from zhenfa.live.sizes import Sizes


@dataclass(frozen=True)
class Owners:
    """Parts of the model (``stem``, ``layer 3``, ``layer 3 expert 5``, ``head``) and the ranks that each hold all of
    them; ``unlike``: parts of their matrices, split over different numbers of cards."""

    parts: tuple[str, ...]
    ranks: tuple[int, ...]
    unlike: bool = False


def owners(places: Sequence[CardPlace], sizes: Sizes) -> list[Owners]:
    """Return the parts that more than one card holds, those with the same holders together, in the model's order.

    A tied embedding is held by the first and the last stage of every pipeline.
    """
    together: dict[tuple[tuple[int, ...], bool], list[str]] = {}
    for part, holders in _holders(places, sizes).items():
        unlike = len({_split(place, part)[1] for place in holders}) > 1
        for number in range(1 if unlike else _split(holders[0], part)[1]):
            ranks = tuple(place.rank for place in holders if unlike or _split(place, part)[0] == number)
            if len(ranks) > 1:
                together.setdefault((ranks, unlike), []).append(part)
    return [Owners(tuple(names), ranks, unlike) for (ranks, unlike), names in together.items()]


def _split(place: CardPlace, part: str) -> tuple[int, int]:
    """Return which part of its matrices a card has, of how many."""
    whole = place.expert_tensors == 1 and "expert" in part
    return (0, 1) if whole else (place.tensor, place.tensors)


def _holders(places: Sequence[CardPlace], sizes: Sizes) -> dict[str, list[CardPlace]]:
    """Return all parts of the model, in its order, each with the cards that hold it."""
    found: dict[str, list[CardPlace]] = {part: [] for part in parts(sizes)}
    for place in places:
        for part in _held(place, sizes):
            found[part].append(place)
    return {part: holders for part, holders in found.items() if holders}


def parts(sizes: Sizes) -> list[str]:
    """Return all parts of a model, in its order.

    >>> from zhenfa.live.sizes import Mixture
    >>> parts(Sizes(8, 1, 1, 1, 8, 0, 9, mixture=Mixture(experts=2, active=1, size=4, layers=(0,))))
    ['stem', 'layer 0', 'layer 0 expert 0', 'layer 0 expert 1', 'head']
    """
    if sizes.source is not None:
        return sizes.source.parts
    found = ["stem"]
    for layer in range(sizes.layers):
        found += [f"layer {layer}", *(f"layer {layer} expert {expert}" for expert in range(sizes.experts(layer)))]
    return [*found, "head"]


def _held(place: CardPlace, sizes: Sizes) -> list[str]:
    """Return the parts that a card holds."""
    if sizes.source is not None:
        return sizes.source.held(place.layers, first=place.is_first, last=place.is_last)
    found = ["stem"] if place.is_first or (sizes.tied and place.is_last) else []
    for layer in place.layers:
        found.append(f"layer {layer}")
        found += [f"layer {layer} expert {expert}" for expert in place.experts(sizes.experts(layer))]
    return [*found, "head"] if place.is_last else found


def counted(places: Sequence[CardPlace], rank: int, sizes: Sizes) -> frozenset[str]:
    """Return the parts that a card answers for where each counts once: those of which it is the first holder, or one of
    the cards of a pipeline's place that split them between them."""
    return frozenset(part for part, holders in _holders(places, sizes).items() if rank in _first(holders, part))


def _first(holders: Sequence[CardPlace], part: str) -> list[int]:
    first = min(holders, key=lambda place: (place.pipeline, place.stage, place.group, place.tensor))
    if "expert" in part and first.expert_tensors == 1:
        return [first.rank]
    here = (first.pipeline, first.stage, first.group)
    return [place.rank for place in holders if (place.pipeline, place.stage, place.group) == here]


def shares(weights: Sequence[tuple[str, int]], ranks: Sequence[int]) -> dict[int, list[str]]:
    """Share named weights out among ranks: the largest first, each to the one that has the fewest elements so far.

    Weights are not cut. Depends on its arguments alone, so that every card comes to the same.

    >>> shares([("a", 4), ("b", 3), ("c", 2)], [0, 5])
    {0: ['a'], 5: ['b', 'c']}
    """
    load, found = dict.fromkeys(ranks, 0), {rank: [] for rank in ranks}  # type: dict[int, int], dict[int, list[str]]
    for name, elements in sorted(weights, key=lambda one: (-one[1], one[0])):
        least = min(ranks, key=lambda rank: (load[rank], rank))
        load[least] += elements
        found[least].append(name)
    return found
