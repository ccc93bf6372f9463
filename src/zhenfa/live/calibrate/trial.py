"""A real model on a card, with random weights: training steps, prefill and decode, each timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch.nn import functional

from zhenfa.live.calibrate.clock import Clock, clock_of
from zhenfa.live.calibrate.work import TYPES
from zhenfa.live.decoder import StageModule, loss_of, rotate, turns
from zhenfa.live.quiet import Watch
from zhenfa.live.sizes import Sizes

WARM_UP: Final = 2


def train(sizes: Sizes, batch: int, length: int, steps: int, precision: str, device: Any) -> dict[str, list[float]]:
    """Take training steps of one micro-batch and return the seconds of each: forward, backward, fused AdamW.

    Weights, gradients and optimizer state are all in ``precision``.
    """
    module = _module(sizes, precision, device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    tokens = _tokens(sizes, batch, length, device)
    targets = tokens.roll(-1, 1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(module(tokens), targets, batch * length).backward()
        optimizer.step()

    return {"step": _timed(step, steps, device)}


def serve(sizes: Sizes, batch: int, length: int, steps: int, precision: str, device: Any) -> dict[str, list[float]]:
    """Prefill ``batch`` prompts of ``length`` tokens some times, then decode ``steps`` tokens of each.

    Returns the seconds of each prefill and of each decode step.
    """
    module = _module(sizes, precision, device)
    tokens = _tokens(sizes, batch, length, device)
    with torch.inference_mode():
        cache = Cache(module, sizes, batch, length + steps + WARM_UP, device)
        prefill = _timed(lambda: cache.forward(tokens, 0), max(3, min(steps, 8)), device)
        places = iter(range(length, length + steps + WARM_UP))
        decode = _timed(lambda: cache.forward(tokens[:, :1], next(places)), steps, device)
    return {"prefill": prefill, "decode": decode}


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


def trial(kind: str, orders: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Run ``train`` or ``serve`` with plain data and return plain data, with the share of time spent waiting."""
    before = Watch.now()
    sizes = Sizes(**orders["sizes"])
    rest = {key: orders[key] for key in ("batch", "length", "steps", "precision")}
    found = train(sizes, **rest, device=device) if kind == "train" else serve(sizes, **rest, device=device)
    return {"found": found, "waited": before.share(Watch.now())}


def _module(sizes: Sizes, precision: str, device: Any) -> StageModule:
    module = StageModule(sizes, 0, sizes.layers, stem=True, head=True, seed=0)
    module.to(device=device, dtype=TYPES[precision])
    return module


def _tokens(sizes: Sizes, batch: int, length: int, device: Any) -> Any:
    return torch.randint(0, sizes.vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)


def _timed(call: Any, count: int, device: Any) -> list[float]:
    clock: Clock = clock_of(device)
    for _ in range(WARM_UP):
        call()
    return [clock.host(call, 1) for _ in range(count)]
