"""The decoder that the cards really train: one stage of it, with layers under their global names.

Parameters are drawn from the seed and the parameter's global name, so that every split of the layers gives the same
model. All modules are plain torch; the names (``layers.3.attention.query.weight``) are those of the whole model.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zhenfa.live.fused import GatedSilu, RmsNorm
from zhenfa.live.sizes import Sizes

SPREAD: Final = 0.02
"""Standard deviation of the initial weights, as in GPT-2; residual outputs are divided by sqrt(2 layers)."""


class Attention(nn.Module):  # type: ignore[misc]
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.query = nn.Linear(sizes.hidden, sizes.heads * sizes.head_dim, bias=False)
        self.key = nn.Linear(sizes.hidden, sizes.kv_heads * sizes.head_dim, bias=False)
        self.value = nn.Linear(sizes.hidden, sizes.kv_heads * sizes.head_dim, bias=False)
        self.output = nn.Linear(sizes.heads * sizes.head_dim, sizes.hidden, bias=False)

    def forward(self, hidden: Any, turn: tuple[Any, Any]) -> Any:
        """Return the attended features, shape ``[batch, sequence, hidden]``."""
        batch, length, _ = hidden.shape
        shape = (batch, length, -1, self.sizes.head_dim)
        query, key, value = (layer(hidden).view(shape) for layer in (self.query, self.key, self.value))
        # Turned before the heads are moved forward: the attention then leaves its result as the output matrix reads it.
        mixed = functional.scaled_dot_product_attention(
            rotate(query, turn).transpose(1, 2), rotate(key, turn).transpose(1, 2), value.transpose(1, 2),
            is_causal=True, enable_gqa=self.sizes.heads != self.sizes.kv_heads,
        )  # fmt: skip
        return self.output(mixed.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):  # type: ignore[misc]
    """Two matrices with GELU, or three with a SiLU gate."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate = nn.Linear(sizes.hidden, sizes.intermediate, bias=False) if sizes.gated else None
        self.up = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.down = nn.Linear(sizes.intermediate, sizes.hidden, bias=False)

    def forward(self, hidden: Any) -> Any:
        """Return the features, shape ``[batch, sequence, hidden]``."""
        if self.gate is None:
            return self.down(functional.gelu(self.up(hidden)))
        return self.down(GatedSilu.apply(self.gate(hidden), self.up(hidden)))


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
    """One layer: normed attention and normed MLP, each added to the residual."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = Norm(sizes)
        self.attention = Attention(sizes)
        self.mlp_norm = Norm(sizes)
        self.mlp = Mlp(sizes)

    def forward(self, hidden: Any, turn: tuple[Any, Any]) -> Any:
        """Return the residual after the layer."""
        hidden = hidden + self.attention(self.attention_norm(hidden), turn)
        return hidden + self.mlp(self.mlp_norm(hidden))


class StageModule(nn.Module):  # type: ignore[misc]
    """Layers ``first`` up to but not including ``last``, with stem and head where the stage holds them.

    ``full_recompute`` keeps only each layer's input and computes the rest again in the backward pass. Selective
    recomputation of attention scores needs nothing here: the fused attention never stores them.
    """

    def __init__(
        self, sizes: Sizes, first: int, last: int, *, stem: bool, head: bool, seed: int, full_recompute: bool = False
    ) -> None:
        super().__init__()
        self.sizes, self.full_recompute = sizes, full_recompute
        self.has_stem, self.has_head = stem, head
        if stem or (head and sizes.tied):
            self.embedding = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.layers = nn.ModuleDict({str(index): Layer(sizes) for index in range(first, last)})
        if head:
            self.norm = Norm(sizes)
            if not sizes.tied:
                self.head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)
        initialise(self, sizes, seed)

    def forward(self, batch: Any) -> Any:
        """Take tokens ``[batch, sequence]`` (stem) or features; return features or logits (head)."""
        hidden = self.embedding(batch) if self.has_stem else batch
        cosine, sine = turns(self.sizes, hidden.shape[1], hidden.device)
        turn = (cosine.to(hidden.dtype), sine.to(hidden.dtype))
        for layer in self.layers.values():
            if self.full_recompute and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, turn, use_reentrant=False)
            else:
                hidden = layer(hidden, turn)
        if not self.has_head:
            return hidden if len(self.layers) else hidden.clone()
        hidden = self.norm(hidden)
        return functional.linear(hidden, self.embedding.weight) if self.sizes.tied else self.head(hidden)


def initialise(module: nn.Module, sizes: Sizes, seed: int) -> None:
    """Draw every parameter from ``seed`` and its global name: norms are 1, weights normal."""
    residual = SPREAD / math.sqrt(2 * max(sizes.layers, 1))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
                continue
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            spread = residual if name.endswith(("output.weight", "down.weight")) else SPREAD
            parameter.normal_(0.0, spread, generator=generator)


def part_of(name: str) -> str:
    """Return which part of the model a parameter belongs to: ``stem``, ``layer 3`` or ``head``."""
    if name.startswith("layers."):
        return f"layer {name.split('.')[1]}"
    return "stem" if name.startswith("embedding.") else "head"


def loss_of(logits: Any, targets: Any, global_tokens: int) -> Any:
    """Return the cross-entropy summed over the tokens given, divided by the tokens of the whole step."""
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
