"""Decoding with a model: keys and values of the tokens seen are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from zhenfa.live.decoder import StageModule, rotate, turns
from zhenfa.live.sizes import Sizes


class Cache:
    """A module with keys and values of the tokens seen: prompts go in whole, then one token after the other."""

    def __init__(self, module: StageModule, sizes: Sizes, batch: int, most: int, device: Any) -> None:
        kind = next(module.parameters()).dtype
        shape = (batch, sizes.kv_heads, most, sizes.head_dim)
        self.module, self.sizes = module, sizes
        self._kept = [
            tuple(torch.zeros(shape, dtype=kind, device=device) for _ in range(2)) for _ in range(sizes.layers)
        ]
        self._turns = tuple(part.to(kind) for part in turns(sizes, most, device))

    def forward(self, tokens: Any, place: int) -> Any:
        """Take tokens ``[batch, n]`` that stand at ``place`` and after; return the logits of the last."""
        hidden = self.module.embedding(tokens)
        for layer, kept in zip(self.module.layers.values(), self._kept, strict=True):
            hidden = hidden + self._attended(layer.attention, layer.attention_norm(hidden), kept, place)
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        hidden = self.module.norm(hidden[:, -1:])
        table = self.module.embedding.weight if self.sizes.tied else self.module.head.weight
        return functional.linear(hidden, table).argmax(-1)

    def _attended(self, attention: Any, hidden: Any, kept: tuple[Any, ...], place: int) -> Any:
        batch, count, _ = hidden.shape
        shape = (batch, count, -1, self.sizes.head_dim)
        query, key, value = (one(hidden).view(shape) for one in (attention.query, attention.key, attention.value))
        end = place + count
        turn = (self._turns[0][place:end], self._turns[1][place:end])
        kept[0][:, :, place:end] = rotate(key, turn).transpose(1, 2)
        kept[1][:, :, place:end] = value.transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(
            rotate(query, turn).transpose(1, 2), kept[0][:, :, :end], kept[1][:, :, :end], is_causal=count > 1,
            enable_gqa=self.sizes.heads != self.sizes.kv_heads,
        )  # fmt: skip
        return attention.output(mixed.transpose(1, 2).reshape(batch, count, -1))
