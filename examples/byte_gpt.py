"""A model of one's own for `zhenfa run examples/own-module.yaml`: any torch module with a list of blocks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, LONGEST = 128, 4, 8, 256


class Block(nn.Module):
    """Attention with learnt biases for the distance between two bytes, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries, self.keys_values = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.output, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1)
        self.distance = nn.Embedding(LONGEST, HEADS)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, features: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """Take and give features `[batch, bytes, width]`; `back` is how far each byte lies behind each other."""
        normed = self.norm(features)
        heads = (*features.shape[:2], HEADS, WIDTH // HEADS)
        keys, values = (one.view(heads).transpose(1, 2) for one in self.keys_values(normed).chunk(2, -1))
        queries = self.queries(normed).view(heads).transpose(1, 2)
        bias = self.distance(back.clamp(min=0)).permute(2, 0, 1).masked_fill(back < 0, float("-inf"))
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        features = features + self.drop(self.output(mixed.transpose(1, 2).flatten(2)))
        return features + self.drop(self.mlp(self.mlp_norm(features)))


class ByteGpt(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)
        nn.init.normal_(self.table.weight, std=0.02)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Take bytes `[batch, bytes]`, give logits `[batch, bytes, 256]`."""
        features = self.table(tokens)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        for block in self.blocks:
            features = block(features, place[:, None] - place)
        return self.head(self.norm(features))


def build() -> nn.Module:
    """Return the model with fresh weights, as the job names it."""
    return ByteGpt()
