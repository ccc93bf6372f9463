"""Tensor parallelism: the cards of one maker that each hold a part of every matrix of a stage.

Queries, keys, values, gate and up are split by results, output and down by inputs, embedding and head by words; norms
are whole on every card. Two sums over the cards in each direction join the parts again. Source: Shoeybi et al. 2019,
section 3; the loss on split logits: section 3, "output embedding".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from zhenfa.live.checkpoint import Piece
from zhenfa.live.collective import Collective, Opener
from zhenfa.live.links import Link, ring_of, ring_seconds

BY_RESULT: Final = ("query", "key", "value", "gate", "up", "embedding", "head")
BY_INPUT: Final = ("output", "down")


def cut_of(name: str) -> int | None:
    """Return the axis along which a weight is split, None for one that is whole on every card.

    >>> cut_of("layers.0.attention.query.weight"), cut_of("layers.0.mlp.down.weight"), cut_of("norm.weight")
    (0, 1, None)
    """
    matrix = name.split(".")[-2]
    return 0 if matrix in BY_RESULT else 1 if matrix in BY_INPUT else None


def of_expert(name: str) -> bool:
    """Return whether a weight belongs to one of the experts that tokens are sent to.

    >>> of_expert("layers.0.mlp.experts.3.up.weight"), of_expert("layers.0.mlp.shared.up.weight")
    (True, False)
    """
    return ".experts." in name


class Crew:
    """The cards that share a stage's matrices, this card among them: number ``index`` of ``size``.

    ``experts``: they split the matrices of experts too. ``seconds`` adds up what sums take on emulated links, for the
    operation under way.
    """

    def __init__(
        self, index: int = 0, size: int = 1, together: Collective | None = None, ring: Sequence[Link] = (), *,
        experts: bool = False,
    ) -> None:  # fmt: skip
        self.index, self.size, self._together, self.ring, self.experts = index, size, together, list(ring), experts
        self.seconds = 0.0

    def __deepcopy__(self, _memo: dict[int, Any]) -> Crew:
        return self

    def axis(self, name: str) -> int | None:
        """Return the axis along which this crew splits a weight, None for one that is whole."""
        if self.size == 1:
            return None
        return cut_of(name) if self.experts or not of_expert(name) else None

    def counts(self, name: str) -> bool:
        """Return whether this card of the crew counts a weight: what a crew does not split counts once, but for experts
        that its cards hold whole, for each has others."""
        return self.index == 0 or self.axis(name) is not None or (of_expert(name) and not self.experts)

    def piece(self, name: str, shape: Sequence[int]) -> Piece:
        """Return where this card's part of a weight, of this shape, lies in the whole one."""
        size, offsets, axis = list(shape), [0] * len(shape), self.axis(name)
        if axis is not None:
            offsets[axis] = self.index * size[axis]
            size[axis] *= self.size
        return Piece(tuple(size), tuple(offsets))

    def part(self, name: str, whole: Any) -> Any:
        """Return this card's part of a whole weight, or of whatever has its shape."""
        axis = self.axis(name)
        return whole if axis is None or self.size == 1 else whole.chunk(self.size, axis)[self.index]

    def gather(self, tensor: Any) -> Any:
        """Return what every card of the crew has, one after the other along a new first axis."""
        if self._together is None:
            return tensor.detach()[None]
        if self.ring:
            self.seconds += ring_seconds(tensor.nbytes * self.size, self.ring) / 2
        return torch.stack(self._together.all_gather(tensor))

    def reduce(self, tensor: Any) -> Any:
        """Return the sum over the crew."""
        if self._together is None:
            return tensor.detach()
        if self.ring:
            self.seconds += ring_seconds(tensor.nbytes, self.ring)
        return self._together.all_reduce(tensor.detach().clone())

    def taken(self) -> float:
        """Return the seconds of all sums since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def crew_of(opener: Opener, links: dict[int, dict[int, Link]]) -> Crew:
    """Return the crew of a card. Every card must call it, for every group is opened by all, in one order."""
    crews: dict[tuple[int, int, int], list[int]] = {}
    for place in opener.places:
        crews.setdefault((place.pipeline, place.stage, place.group), []).append(place.rank)
    own = Crew()
    for ranks in crews.values():
        together = opener.open(ranks, use="crew") if len(ranks) > 1 else None
        if together is not None:
            experts = opener.places[opener.rank].expert_tensors > 1
            ring = ring_of(tuple(ranks), links)
            own = Crew(ranks.index(opener.rank), len(ranks), together, ring, experts=experts)
    return own


class Shared(torch.autograd.Function):  # type: ignore[misc]
    """Features that every card of the crew works on: their gradients are summed."""

    @staticmethod
    def forward(ctx: Any, features: Any, crew: Crew) -> Any:
        """Return the features."""
        ctx.crew = crew
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """Return the sum of the gradients."""
        return ctx.crew.reduce(gradients[0]), None


class Summed(torch.autograd.Function):  # type: ignore[misc]
    """The sum of what the cards of the crew have."""

    @staticmethod
    def forward(ctx: Any, features: Any, crew: Crew) -> Any:
        """Return the sum."""
        return crew.reduce(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """Return the gradient as it is."""
        return gradients[0], None


class SplitLoss(torch.autograd.Function):  # type: ignore[misc]
    """Cross-entropy, summed over tokens, of logits whose words are split over the crew. Computes in 32 bits.

    Each card's largest logit, sum of powers and logit of the target word go round once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any, crew: Crew) -> Any:
        """Return the sum over all tokens, the same on every card."""
        wide = logits.flatten(0, -2).float()
        words, rows = wide.shape[-1], torch.arange(len(wide), device=wide.device)
        largest = wide.max(-1).values
        powers = (wide - largest[:, None]).exp()
        own = targets.flatten() - crew.index * words
        here = (own >= 0) & (own < words)
        own = own.clamp(0, words - 1)
        told = crew.gather(torch.stack([largest, powers.sum(-1), torch.where(here, wide[rows, own], 0.0)]))
        top = told[:, 0].max(0).values
        total = (told[:, 1] * (told[:, 0] - top).exp()).sum(0)
        shares = powers * ((largest - top).exp() / total)[:, None]
        shares[rows, own] -= here.float()
        ctx.save_for_backward(shares)
        ctx.shape, ctx.kind = logits.shape, logits.dtype
        return (total.log() + top - told[:, 2].sum(0)).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None]:
        """Return the gradient of this card's logits."""
        (shares,) = ctx.saved_tensors
        return (shares * gradients[0]).view(ctx.shape).to(ctx.kind), None, None


def shared(features: Any, crew: Crew) -> Any:
    """Return features that every card of a crew works on."""
    return features if crew.size == 1 else Shared.apply(features, crew)


def summed(features: Any, crew: Crew) -> Any:
    """Return the sum of what the cards of a crew have."""
    return features if crew.size == 1 else Summed.apply(features, crew)
