"""Gradients summed over the cards that hold the same layers, whichever way each replica splits them.

Every replica works on its own share of the step's sequences and divides its loss by the tokens of the whole step, so
that the plain sum of the replicas' gradients is the gradient of the whole batch, however unequal the shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.live.crew import Crew, of_expert
from zhenfa.live.decoder import part_of
from zhenfa.live.links import Link, ring_of, ring_seconds
from zhenfa.live.pace import Pacer
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
    found = ["stem"]
    for layer in range(sizes.layers):
        found += [f"layer {layer}", *(f"layer {layer} expert {expert}" for expert in range(sizes.experts(layer)))]
    return [*found, "head"]


def _held(place: CardPlace, sizes: Sizes) -> list[str]:
    """Return the parts that a card holds."""
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
    first = min(holders, key=lambda place: (place.pipeline, place.stage, place.tensor))
    if "expert" in part and first.expert_tensors == 1:
        return [first.rank]
    here = (first.pipeline, first.stage)
    return [place.rank for place in holders if (place.pipeline, place.stage) == here]


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


@dataclass(frozen=True)
class Group:
    """Cards that hold the same parts, this card among them, and the weights (global names) that each of them updates:
    everybody all of them, or, where the optimizer's state is shared out, each its own. ``unlike``: they split the
    matrices over different numbers of cards."""

    ranks: tuple[int, ...]
    names: tuple[str, ...]
    process_group: Any
    ring: list[Link]
    shares: dict[int, list[str]] | None
    unlike: bool = False


class GradientSum:
    """The gradient sums of one card, in the one order that all cards keep.

    ``weights`` are those of the card by global name. With ``zero`` 1 each gradient is summed on the one card that
    updates its weight, which then sends the weight to the others (Rajbhandari et al. 2020, section 5.1).
    """

    def __init__(
        self, places: Sequence[CardPlace], pacer: Pacer, links: dict[int, dict[int, Link]], timeout: timedelta,
        *, sizes: Sizes, weights: dict[str, Any], crew: Crew, zero: int = 0,
    ) -> None:  # fmt: skip
        self._pacer, self._links, self._cards, self._crew = pacer, links, len(places), crew
        self._groups: list[Group] = []
        first = counted(places, pacer.rank, sizes)
        # what a crew does not split counts once, but for experts that its cards hold whole: each has others
        ours = {
            name
            for name in weights
            if crew.index == 0 or crew.axis(name) is not None or (of_expert(name) and not crew.experts)
        }
        counts = {name for name in ours if part_of(name) in first}
        updates = set(weights)
        for shared in owners(places, sizes):
            # Every process opens every group, in the same order, as torch.distributed demands.
            process_group = dist.new_group(list(shared.ranks), backend="gloo", timeout=timeout)
            if pacer.rank not in shared.ranks:
                continue
            here = frozenset(shared.parts)
            names = tuple(name for name in weights if part_of(name) in here)
            split = (
                shares([(name, weights[name].numel()) for name in names], shared.ranks)
                if zero and not shared.unlike
                else None
            )
            if split is not None:
                updates -= {*names} - {*split[pacer.rank]}
                counts = (counts - {*names}) | (ours & {*split[pacer.rank]})
            self._groups.append(
                Group(shared.ranks, names, process_group, ring_of(shared.ranks, links), split, shared.unlike)
            )
        self.counts, self.updates = frozenset(counts), frozenset(updates)

    def run(self, weights: dict[str, Any]) -> None:
        """Replace each shared gradient by its sum over the owners; a card that does not update a weight drops it."""
        for group in self._groups:
            with self._pacer.operation("reduce") as operation:
                if group.shares is None:
                    gradients = [weights[name].grad for name in group.names]
                    operation.seconds = self._sum(gradients, group)
                else:
                    operation.seconds = self._sum_apart(weights, group, group.shares)

    def spread(self, weights: dict[str, Any]) -> None:
        """Send each weight from the card that has updated it to the others that hold it."""
        for group in self._groups:
            if group.shares is None:
                continue
            with self._pacer.operation("reduce") as operation, torch.no_grad():
                met = self._meet(group)
                for rank, names in group.shares.items():
                    if names:
                        held = [weights[name] for name in names]
                        flat = _flat(held)
                        dist.broadcast(flat, src=rank, group=group.process_group)
                        _unpack(flat, held)
                operation.seconds = _half_ring(met, weights, group, group.shares)

    def total(self, value: float) -> float:
        """Return the sum of a number over all cards, the same to the bit on each.

        On emulated links it takes as long as one number needs up and down a binary tree: 2 ceil(log2 n) messages.
        """
        with self._pacer.operation("reduce") as operation:
            own = torch.tensor([value, self._pacer.now], dtype=torch.float64)
            rows = [torch.empty_like(own) for _ in range(self._cards)]
            dist.all_gather(rows, own)
            times = [link.latency + link.seconds(own.nbytes) for row in self._links.values() for link in row.values()]
            if times:
                entered = max(float(row[1]) for row in rows)
                rounds = 2 * math.ceil(math.log2(self._cards))
                operation.seconds = max(entered - self._pacer.now, 0.0) + rounds * max(times)
        return math.fsum(float(row[0]) for row in rows)

    def _sum(self, gradients: list[Any], group: Group) -> float | None:
        """Sum in place; return the seconds that it takes on emulated links, counted from the card's own time."""
        met = self._meet(group)
        crew, parts = self._crew, gradients
        if group.unlike:
            parts = [self._whole(name, gradient) for name, gradient in zip(group.names, gradients, strict=True)]
        flat = _flat(parts)
        dist.all_reduce(flat, op=dist.ReduceOp.SUM, group=group.process_group)
        _unpack(flat, parts)
        if group.unlike:
            for name, gradient, part in zip(group.names, gradients, parts, strict=True):
                gradient.copy_(crew.part(name, part))
        return met + ring_seconds(flat.nbytes, group.ring) if group.ring else None

    def _sum_apart(self, weights: dict[str, Any], group: Group, split: dict[int, list[str]]) -> float | None:
        """Sum each gradient on the card that updates its weight; return the seconds as :meth:`_sum` does."""
        met = self._meet(group)
        for rank, names in split.items():
            if not names:
                continue
            gradients = [weights[name].grad for name in names]
            flat = _flat(gradients)
            dist.reduce(flat, dst=rank, op=dist.ReduceOp.SUM, group=group.process_group)
            if rank == self._pacer.rank:
                _unpack(flat, gradients)
            else:
                for name in names:
                    weights[name].grad = None
        return _half_ring(met, weights, group, split)

    def _whole(self, name: str, gradient: Any) -> Any:
        """Return a gradient of the whole weight that is this card's where it has a part, and zero elsewhere."""
        shape, axis = list(gradient.shape), self._crew.axis(name)
        if axis is not None:
            shape[axis] *= self._crew.size
        whole = gradient.new_zeros(shape)
        if axis is not None or self._crew.index == 0:
            self._crew.part(name, whole).copy_(gradient)
        return whole

    def _meet(self, group: Group) -> float:
        """Return the seconds until the last of a group is there, counted from the card's own time."""
        entered = torch.tensor([self._pacer.now], dtype=torch.float64)
        dist.all_reduce(entered, op=dist.ReduceOp.MAX, group=group.process_group)
        return max(float(entered) - self._pacer.now, 0.0)


def _flat(tensors: Sequence[Any]) -> Any:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).to("cpu")


def _unpack(flat: Any, tensors: Sequence[Any]) -> None:
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def _half_ring(met: float, weights: dict[str, Any], group: Group, split: dict[int, list[str]]) -> float | None:
    """Return the seconds of a reduce-scatter or an all-gather: half an all-reduce, at the pace of the largest share."""
    if not group.ring:
        return None
    largest = max(sum(weights[name].nbytes for name in names) for names in split.values())
    return met + ring_seconds(largest * len(group.ranks), group.ring) / 2
