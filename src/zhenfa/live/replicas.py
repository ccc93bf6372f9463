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

from zhenfa.live.links import Link, ring_seconds
from zhenfa.live.pace import Pacer
from zhenfa.live.placement import CardPlace


@dataclass(frozen=True)
class Owners:
    """Parts of the model (``stem``, ``layer 3``, ``head``) and the ranks that each hold all of them."""

    parts: tuple[str, ...]
    ranks: tuple[int, ...]


def owners(places: Sequence[CardPlace], *, tied: bool) -> list[Owners]:
    """Return the parts that more than one card holds, those with the same holders together, in the model's order.

    A tied embedding is held by the first and the last stage of every pipeline.
    """
    layers = 1 + max((layer for place in places for layer in place.layers), default=-1)
    parts = ["stem", *(f"layer {index}" for index in range(layers)), "head"]
    together: dict[tuple[int, ...], list[str]] = {}
    for part in parts:
        ranks = tuple(place.rank for place in places if _holds(place, part, tied))
        if len(ranks) > 1:
            together.setdefault(ranks, []).append(part)
    return [Owners(tuple(names), ranks) for ranks, names in together.items()]


def _holds(place: CardPlace, part: str, tied: bool) -> bool:
    if part == "stem":
        return place.is_first or (tied and place.is_last)
    if part == "head":
        return place.is_last
    return int(part.split()[1]) in place.layers


def counted(places: Sequence[CardPlace], rank: int, *, tied: bool) -> frozenset[str]:
    """Return the parts that a card answers for where each part counts once: it is the first of their holders."""
    layers = 1 + max((layer for place in places for layer in place.layers), default=-1)
    parts = ["stem", *(f"layer {index}" for index in range(layers)), "head"]
    firsts = {part: min(place.rank for place in places if _holds(place, part, tied)) for part in parts}
    return frozenset(part for part, first in firsts.items() if first == rank)


class GradientSum:
    """The gradient all-reduces of one card, in the one order that all cards keep."""

    def __init__(
        self, places: Sequence[CardPlace], pacer: Pacer, links: dict[int, dict[int, Link]], timeout: timedelta,
        *, tied: bool,
    ) -> None:  # fmt: skip
        self._pacer, self._links = pacer, links
        self.counted = counted(places, pacer.rank, tied=tied)
        self._cards = len(places)
        self._groups: list[tuple[Owners, Any, list[Link]]] = []
        for shared in owners(places, tied=tied):
            # Every process opens every group, in the same order, as torch.distributed demands.
            group = dist.new_group(list(shared.ranks), backend="gloo", timeout=timeout)
            if pacer.rank in shared.ranks:
                self._groups.append((shared, group, _ring(shared.ranks, links)))

    def run(self, parameters: dict[str, list[Any]]) -> None:
        """Replace each shared gradient by its sum over the owners. ``parameters`` are listed by part."""
        for shared, group, ring in self._groups:
            held = [item for part in shared.parts for item in parameters.get(part, ())]
            gradients = [item.grad for item in held if item.grad is not None]
            with self._pacer.operation("reduce") as operation:
                operation.seconds = self._sum(gradients, group, ring)

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

    def _sum(self, gradients: list[Any], group: Any, ring: list[Link]) -> float | None:
        """Sum in place; return the seconds that it takes on emulated links, counted from the card's own time."""
        flat = torch.cat([gradient.detach().flatten() for gradient in gradients]).to("cpu")
        entered = torch.tensor([self._pacer.now], dtype=torch.float64)
        dist.all_reduce(entered, op=dist.ReduceOp.MAX, group=group)
        dist.all_reduce(flat, op=dist.ReduceOp.SUM, group=group)
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()
        if not ring:
            return None
        return max(float(entered) - self._pacer.now, 0.0) + ring_seconds(flat.nbytes, ring)


def _ring(ranks: tuple[int, ...], links: dict[int, dict[int, Link]]) -> list[Link]:
    """Return the emulated links of the ring, empty if one of its hops is real."""
    hops = zip(ranks, (*ranks[1:], ranks[0]), strict=True)
    ring = [links.get(one, {}).get(other) for one, other in hops]
    return [link for link in ring if link is not None] if None not in ring else []
