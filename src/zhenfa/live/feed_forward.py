"""What a layer computes of each token alone: an MLP, or a mixture of experts.

A mixture's router takes a softmax over all experts; each token goes to the ``active`` ones with the largest shares, and
of two alike to the one with the lower number. No token is dropped. Source: Shazeer et al. 2017, section 2; Fedus et al.
2022 (arXiv:2101.03961), section 2.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zhenfa.live.crew import Crew, shared, summed
from zhenfa.live.exchange import Copied, Exchanged, ExpertGroup, Joined, Order, Permuted
from zhenfa.live.fused import GatedSilu, WeighedSilu
from zhenfa.live.linear import ExpertLinear, Linear
from zhenfa.live.sizes import Mixture, Sizes


class Mlp(nn.Module):  # type: ignore[misc]
    """Two matrices with GELU, or three with a SiLU gate, of ``inner`` features."""

    def __init__(self, hidden: int, inner: int, crew: Crew, *, gated: bool) -> None:
        super().__init__()
        self.crew, inner = crew, inner // crew.size
        self.gate = Linear(hidden, inner) if gated else None
        self.up = Linear(hidden, inner)
        self.down = Linear(inner, hidden)

    def forward(self, hidden: Any) -> Any:
        """Return the features, shape ``[batch, sequence, hidden]``."""
        hidden = shared(hidden, self.crew)
        if self.gate is None:
            return summed(self.down(functional.gelu(self.up(hidden))), self.crew)
        return summed(self.down(GatedSilu.apply(self.gate(hidden), self.up(hidden))), self.crew)


class Expert(nn.Module):  # type: ignore[misc]
    """An MLP that some tokens pass through."""

    def __init__(self, hidden: int, inner: int, *, gated: bool) -> None:
        super().__init__()
        self.gate = ExpertLinear(hidden, inner) if gated else None
        self.up = ExpertLinear(hidden, inner)
        self.down = ExpertLinear(inner, hidden)

    def inside(self, features: Any, weights: Any) -> tuple[Any, list[Any]]:
        """Return the activated features, each token's times its weight, kept for the last matrix.

        What the last matrix gives is then weighed already, and need not be kept.
        """
        if self.gate is None:
            return self.down.keep(functional.gelu(self.up(features)) * weights)
        return self.down.keep(WeighedSilu.apply(self.gate(features), self.up(features), weights))


class Balanced(torch.autograd.Function):  # type: ignore[misc]
    """Features as they are; beside their gradient the backward pass takes that of an auxiliary loss."""

    @staticmethod
    def forward(_ctx: Any, features: Any, _loss: Any) -> Any:
        """Return the features."""
        return features.view_as(features)

    @staticmethod
    def backward(_ctx: Any, *gradients: Any) -> tuple[Any, Any]:
        """Return the gradient as it is, and that of a loss that is added to the model's."""
        return gradients[0], gradients[0].new_ones((), dtype=torch.float32)


class MixtureOfExperts(nn.Module):  # type: ignore[misc]
    """A router, those experts of one layer that this card holds, and what every token passes through besides.

    ``crew`` splits the shared expert, and the others too where ``crew.experts``; else each of its cards takes its part
    of the tokens. ``group`` shares the experts out.
    """

    def __init__(self, sizes: Sizes, mixture: Mixture, layer: int, crew: Crew, group: ExpertGroup) -> None:
        super().__init__()
        self.mixture, self.layer, self.crew, self.group = mixture, layer, crew, group
        inner = mixture.size // (crew.size if crew.experts else 1)
        self.router = Linear(sizes.hidden, mixture.experts)
        self.experts = nn.ModuleDict(
            {str(index): Expert(sizes.hidden, inner, gated=mixture.gated) for index in group.held(mixture.experts)}
        )
        if mixture.shared:
            self.shared = Mlp(sizes.hidden, mixture.shared, crew, gated=mixture.shared_gated)
        if mixture.shared and mixture.shared_gate:
            self.shared_gate = Linear(sizes.hidden, 1)

    def forward(self, hidden: Any) -> Any:
        """Return the features, shape ``[batch, sequence, hidden]``."""
        decoder, flat = self.__dict__["decoder"], hidden.flatten(0, 1)
        shares = torch.softmax(self.router(flat), -1, dtype=torch.float32)
        chosen = shares.sort(dim=-1, descending=True, stable=True).indices[:, : self.mixture.active]
        weights = shares.gather(1, chosen)
        if self.mixture.normalized:
            weights = weights / weights.sum(-1, keepdim=True)
        result = self._routed(flat, chosen, weights.to(hidden.dtype)).view_as(hidden)
        if self.mixture.shared:
            besides = self.shared(hidden)
            if self.mixture.shared_gate:
                besides = besides * torch.sigmoid(self.shared_gate(hidden))
            result = result + besides
        if decoder.balance and torch.is_grad_enabled():
            both = (one.unflatten(0, hidden.shape[:2]) for one in (shares, chosen))
            result = Balanced.apply(result, decoder.balance * balance_loss(*both))
        return result

    def _routed(self, flat: Any, chosen: Any, weights: Any) -> Any:
        """Return for each token ``[tokens, hidden]`` the weighed sum of what its experts give."""
        crew = self.crew
        flat, weights, own = shared(flat, crew), shared(weights, crew), slice(0, len(flat))
        if crew.size > 1 and not crew.experts:
            own = slice(*(len(flat) * part // crew.size for part in (crew.index, crew.index + 1)))
        found = self._through(flat[own], chosen[own], weights[own])
        return summed(functional.pad(found, (0, 0, own.start, len(flat) - own.stop)), crew)

    def _through(self, flat: Any, chosen: Any, weights: Any) -> Any:
        """Send copies of tokens to their experts, and bring back the sum for each."""
        group, routed = self.group, self.__dict__["decoder"].routed
        order = Order.of(chosen)
        counts = torch.bincount(chosen.flatten(), minlength=self.mixture.experts)
        if self.crew.index == 0 or not self.crew.experts:
            routed.choose(self.layer, counts)
        copies = Copied.apply(flat, order)
        weights = weights.flatten()[order.copies].unsqueeze(-1)
        if group.size == 1:
            return Joined.apply(self._experts(copies, weights, counts.tolist()), order)
        split = group.split(counts)
        routed.load(split.loads)
        both = Exchanged.apply(torch.cat((copies, weights), -1), group, split.sent, split.received, True)
        both = Permuted.apply(both, split.by_expert)
        found = self._experts(both[:, :-1], both[:, -1:], split.rows)
        back = Exchanged.apply(Permuted.apply(found, split.by_source), group, split.received, split.sent, False)
        return Joined.apply(back, order)

    def _experts(self, copies: Any, weights: Any, rows: list[int]) -> Any:
        """Return what this card's experts give for copies that stand in their order, ``rows`` for each.

        An expert without any is run all the same: every card then has the same graph, and every weight a gradient.
        """
        held = list(self.experts.values())
        kept = [
            expert.inside(*both) for expert, *both in zip(held, copies.split(rows), weights.split(rows), strict=True)
        ]
        return torch.cat([expert.down.multiply(*one) for expert, one in zip(held, kept, strict=True)])


def balance_loss(shares: Any, chosen: Any) -> Any:
    """Return how unevenly tokens fall on experts, summed over sequences: 1 for each that uses all alike.

    Arguments: ``shares`` of the router's softmax ``[batch, sequence, experts]``; ``chosen`` experts
    ``[batch, sequence, active]``.
    Counts experts x sum over experts of (share of the sequence's choices) x (mean share of the softmax), for each
    sequence alone: so it is the same whatever micro-batches and cards the sequences fall into.

    Source: Fedus et al. 2022 (arXiv:2101.03961), equations 4 to 6, over a sequence (DeepSeek-V3, arXiv:2412.19437,
    equations 17 to 20).
    """
    experts = shares.shape[-1]
    counts = shares.new_zeros((len(shares), experts))
    picked = chosen.flatten(1)
    counts.scatter_add_(1, picked, torch.ones_like(picked, dtype=counts.dtype))
    return experts * (counts / max(picked.shape[1], 1) * shares.mean(1)).sum()
