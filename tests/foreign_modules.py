"""Modules that are not the runtime's own, written to files as a user has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HAND_WRITTEN = """
import math
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width=32, heads=4):
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.drop = nn.Dropout(0.1)

    def forward(self, x, *, bias):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        x = x + self.drop(self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)))
        return x + self.drop(self.mlp(x))


class Model(nn.Module):
    def __init__(self, layers=8, width=32, longest=32):
        super().__init__()
        self.words, self.places = nn.Embedding(256, width), nn.Embedding(longest, width)
        self.parts = nn.ModuleDict({"blocks": nn.ModuleList(Block(width) for _ in range(layers))})
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.words(tokens) + self.places(torch.arange(length, device=tokens.device))
        bias = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        for block in self.parts["blocks"]:
            x = block(x, bias=bias)
        return self.head(self.norm(x))


def build():
    return Model()
"""
"""A decoder with learnt positions, a tied head, biases, dropout, and eight blocks."""

SMALL: Mapping[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 8, "n_head": 4, "n_positions": 32},
    "qwen3": {
        "hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "max_position_embeddings": 64,
    },
    "gpt_neox": {
        "hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    "phi": {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 48},
    "gemma2": {
        "hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "sliding_window": 8,
    },
    "bloom": {"hidden_size": 32, "n_layer": 8, "n_head": 4},
    "stablelm": {
        "hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
        "intermediate_size": 48,
    },
}  # fmt: skip
"""Small configurations of eight layers and 256 words, each with something that the runtime's own decoder has not."""

MIXTURES: Mapping[str, dict[str, Any]] = {
    "qwen3_moe": SMALL["qwen3"] | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def written(folder: Path, source: str = HAND_WRITTEN) -> Path:
    """Write a Python file and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "own_model.py"
    path.write_text(source, encoding="utf-8")
    return path


def configured(folder: Path, kind: str, **changes: Any) -> Path:
    """Write the ``config.json`` of a small model and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"model_type": kind, "vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    path = folder / "config.json"
    path.write_text(json.dumps(data | {**SMALL, **MIXTURES}.get(kind, {}) | changes), encoding="utf-8")
    return path
