"""Gradients summed over the cards that hold the same layers, whichever way each replica splits them.

Every replica works on its own share of the step's sequences and divides its loss by the tokens of the whole step, so
that the plain sum of the replicas' gradients is the gradient of the whole batch, however unequal the shares.
"""

from __future__ import annotations

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
    layers = max(place.last for place in places)
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
    return place.first <= int(part.split()[1]) < place.last


class GradientSum:
    """The gradient all-reduces of one card, in the one order that all cards keep."""

    def __init__(
        self, places: Sequence[CardPlace], pacer: Pacer, links: dict[int, dict[int, Link]], timeout: timedelta,
        *, tied: bool,
    ) -> None:  # fmt: skip
        self._pacer = pacer
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
