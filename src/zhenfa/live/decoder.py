"""The decoder that the cards really train: one stage of it, with layers under their global names.

Parameters are drawn from the seed and the parameter's global name, so that every split of the layers gives the same
model. All modules are plain torch; the names (``layers.3.attention.query.weight``) are those of the whole model.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zhenfa.live.crew import Crew, SplitLoss, shared, summed
from zhenfa.live.exchange import ExpertGroup
from zhenfa.live.feed_forward import MixtureOfExperts, Mlp
from zhenfa.live.fused import RmsNorm
from zhenfa.live.linear import Delayed, Linear, Routed, product
from zhenfa.live.placement import Chunk
from zhenfa.live.sizes import Sizes

SPREAD: Final = 0.02
"""Standard deviation of the initial weights, as in GPT-2; residual outputs are divided by sqrt(2 layers)."""


class Attention(nn.Module):  # type: ignore[misc]
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __init__(self, sizes: Sizes, crew: Crew) -> None:
        super().__init__()
        self.sizes, self.crew = sizes, crew
        heads, kv_heads = sizes.heads // crew.size, sizes.kv_heads // crew.size
        self.query = Linear(sizes.hidden, heads * sizes.head_dim)
        self.key = Linear(sizes.hidden, kv_heads * sizes.head_dim)
        self.value = Linear(sizes.hidden, kv_heads * sizes.head_dim)
        self.output = Linear(heads * sizes.head_dim, sizes.hidden)

    def forward(self, hidden: Any, turn: tuple[Any, Any]) -> Any:
        """Return the attended features, shape ``[batch, sequence, hidden]``."""
        hidden = shared(hidden, self.crew)
        query, key, value = (
            layer(hidden).unflatten(-1, (layer.out_features // self.sizes.head_dim, self.sizes.head_dim))
            for layer in (self.query, self.key, self.value)
        )
        # Turned before the heads are moved forward: the attention then leaves its result as the output matrix reads it.
        mixed = functional.scaled_dot_product_attention(
            rotate(query, turn).transpose(1, 2), rotate(key, turn).transpose(1, 2), value.transpose(1, 2),
            is_causal=True, enable_gqa=self.sizes.heads != self.sizes.kv_heads,
        )  # fmt: skip
        return summed(self.output(mixed.transpose(1, 2).flatten(2)), self.crew)


class Norm(nn.Module):  # type: ignore[misc]
    """RMS norm with one weight for each feature."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.eps = sizes.eps
        self.weight = nn.Parameter(torch.ones(sizes.hidden))

    def forward(self, hidden: Any) -> Any:
        """Return the normed features."""
        return RmsNorm.apply(hidden, self.weight, self.eps)


class Layer(nn.Module):  # type: ignore[misc]
    """One layer: normed attention and normed MLP (or mixture of experts), each added to the residual."""

    def __init__(self, sizes: Sizes, index: int, crew: Crew, group: ExpertGroup) -> None:
        super().__init__()
        self.attention_norm = Norm(sizes)
        self.attention = Attention(sizes, crew)
        self.mlp_norm = Norm(sizes)
        if sizes.mixture is not None and sizes.experts(index):
            self.mlp: nn.Module = MixtureOfExperts(sizes, sizes.mixture, index, crew, group)
        else:
            self.mlp = Mlp(sizes.hidden, sizes.intermediate, crew, gated=sizes.gated)

    def forward(self, hidden: Any, turn: tuple[Any, Any]) -> Any:
        """Return the residual after the layer."""
        hidden = hidden + self.attention(self.attention_norm(hidden), turn)
        return hidden + self.mlp(self.mlp_norm(hidden))


class Decoder(nn.Module):  # type: ignore[misc]
    """The layers that one card holds, with stem and head where it holds them; :meth:`run` runs one stage of them.

    Where backward passes may be split in two (``splits``), they put what gradients of weights need into ``delayed`` and
    leave those out, while it is a list.
    ``collect`` is called with each weight whose gradient such a list has given. ``sharded``: who gathers weights before
    they are needed (:class:`~zhenfa.live.sharded.Sharded`), None where they are all here. ``group`` shares out the
    experts, of which ``routed`` tells what they did; ``balance`` times
    :func:`~zhenfa.live.feed_forward.balance_loss` of every micro-batch and layer is added to the loss.
    """

    def __init__(
        self, sizes: Sizes, layers: Iterable[int], *, stem: bool, head: bool, seed: int, crew: Crew | None = None,
        group: ExpertGroup | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes, self.crew, self.group = sizes, crew or Crew(), group or ExpertGroup()
        self.routed, self.balance = Routed(), 0.0
        words = sizes.vocabulary // self.crew.size
        self.splits = False
        self.delayed: list[Delayed] | None = None
        self.collect: Callable[[Any], None] | None = None
        self.sharded: Any = None
        if stem or (head and sizes.tied):
            self.embedding = nn.Embedding(words, sizes.hidden)
        self.layers = nn.ModuleDict({str(index): Layer(sizes, index, self.crew, self.group) for index in layers})
        if head:
            self.norm = Norm(sizes)
            if not sizes.tied:
                self.head = Linear(sizes.hidden, words)
        initialise(self, sizes, seed, self.crew)
        for module in self.modules():
            if isinstance(module, Linear | MixtureOfExperts):
                module.__dict__["decoder"] = self  # not a part of it: no module of its own

    def run(self, batch: Any, chunk: Chunk, count: Callable[[], Any] | None = None) -> Any:
        """Take tokens ``[batch, sequence]`` (stem) or features; return features or logits (head).

        The first ``chunk.recomputed`` layers keep only their input and compute the rest again in the backward pass,
        inside a context that ``count`` returns, one for each.
        """
        hidden = self._through("stem", batch, chunk.stage, self._embedded) if chunk.stem else batch
        cosine, sine = turns(self.sizes, hidden.shape[1], hidden.device)
        turn = (cosine.to(hidden.dtype), sine.to(hidden.dtype))
        for index in range(chunk.first, chunk.last):
            again = index < chunk.first + chunk.recomputed and torch.is_grad_enabled()
            work = partial(self._layer, self.layers[str(index)], turn=turn, again=again, count=count)
            hidden = self._through(f"layer {index}", hidden, chunk.stage, work)
        if not chunk.head:
            return hidden if chunk.last > chunk.first else hidden.clone()
        return self._through("head", hidden, chunk.stage, self._logits)

    def _through(self, unit: str, features: Any, stage: int, work: Callable[[Any], Any]) -> Any:
        """Return what a part of the model gives, its weights gathered before and dropped after, if they are shared
        out."""
        if self.sharded is None:
            return work(features)
        return self.sharded.leave(unit, work(self.sharded.enter(unit, features, stage)))

    def _layer(
        self, layer: Any, hidden: Any, *, turn: tuple[Any, Any], again: bool, count: Callable[[], Any] | None
    ) -> Any:
        if not again:
            return layer(hidden, turn)
        contexts = {} if count is None else {"context_fn": lambda: (nullcontext(), count())}
        return checkpoint(layer, hidden, turn, use_reentrant=False, **contexts)

    def _logits(self, hidden: Any) -> Any:
        hidden = shared(self.norm(hidden), self.crew)
        return product(hidden, self.embedding.weight, self) if self.sizes.tied else self.head(hidden)

    def narrowed(self, dtype: Any) -> Decoder:
        """Return a copy whose weights are of another type."""
        found = copy.deepcopy(self)
        found.to(dtype)
        return found

    def _embedded(self, tokens: Any) -> Any:
        if self.crew.size == 1:
            return self.embedding(tokens)
        words = len(self.embedding.weight)
        own = tokens - self.crew.index * words
        here = (own >= 0) & (own < words)
        return summed(self.embedding(own.clamp(0, words - 1)) * here.unsqueeze(-1), self.crew)


class StageModule(Decoder):
    """Layers ``first`` up to but not including ``last`` as one stage, with stem and head where it holds them.

    ``full_recompute`` keeps only each layer's input. Selective recomputation of attention scores needs nothing here:
    the fused attention never stores them.
    """

    def __init__(
        self, sizes: Sizes, first: int, last: int, *, stem: bool, head: bool, seed: int, full_recompute: bool = False
    ) -> None:
        super().__init__(sizes, range(first, last), stem=stem, head=head, seed=seed)
        self.chunk = Chunk(0, first, last, stem=stem, head=head, recomputed=last - first if full_recompute else 0)

    def forward(self, batch: Any) -> Any:
        """Take tokens ``[batch, sequence]`` (stem) or features; return features or logits (head)."""
        return self.run(batch, self.chunk)


def initialise(module: nn.Module, sizes: Sizes, seed: int, crew: Crew) -> None:
    """Draw every parameter, or a crew's part of it, from ``seed`` and its global name: norms are 1, weights normal."""
    residual = SPREAD / math.sqrt(2 * max(sizes.layers, 1))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
                continue
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            spread = residual if name.endswith(("output.weight", "down.weight")) else SPREAD
            shape, axis = list(parameter.shape), crew.axis(name)
            if axis is not None:
                shape[axis] *= crew.size
            parameter.copy_(crew.part(name, torch.empty(shape).normal_(0.0, spread, generator=generator)))


def loss_of(logits: Any, targets: Any, global_tokens: int, crew: Crew | None = None) -> Any:
    """Return the cross-entropy summed over the tokens given, divided by the tokens of the whole step."""
    if crew is not None and crew.size > 1:
        return SplitLoss.apply(logits, targets, crew) / global_tokens
    total = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return total / global_tokens


def turns(sizes: Sizes, length: int, device: Any) -> tuple[Any, Any]:
    """Return cosine and sine of the angles, ``[length, 1, head_dim / 2]``. Source: Su et al. 2021, equation 15."""
    half = sizes.head_dim // 2
    exponent = torch.arange(half, device=device, dtype=torch.float32) / half
    position = torch.arange(length, device=device, dtype=torch.float32)
    angle = position[:, None, None] * sizes.rope_theta**-exponent
    return angle.cos(), angle.sin()


def rotate(features: Any, turn: tuple[Any, Any]) -> Any:
    """Return the features with each pair turned by its angle."""
    cosine, sine = turn
    one, other = features.chunk(2, dim=-1)
    return torch.cat((one * cosine - other * sine, other * cosine + one * sine), dim=-1)
