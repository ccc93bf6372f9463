"""A real model on a card, with random weights: training steps, prefill and decode, each timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import torch

from zhenfa.live.calibrate.cache import Cache
from zhenfa.live.calibrate.clock import Call, clock_of
from zhenfa.live.calibrate.work import TYPES
from zhenfa.live.decoder import StageModule, loss_of
from zhenfa.live.sizes import Sizes

WARM_UP: Final = 2
A_ROUND_S: Final = 0.1
"""Seconds of one figure in one round at least."""


class Trial(ABC):
    """A real model on a device, asked for one round of its figures at a time."""

    def __init__(self, sizes: Sizes, batch: int, length: int, steps: int, precision: str, device: Any) -> None:
        self.sizes, self.batch, self.length, self.steps, self.device = sizes, batch, length, steps, device
        self.module, self.clock = _module(sizes, precision, device), clock_of(device)
        self.tokens = _tokens(sizes, batch, length, device)

    @abstractmethod
    def round(self) -> dict[str, list[float]]:
        """Return the seconds of one round, by figure."""

    def _each(self, call: Call) -> list[float]:
        """Return the seconds of each of some calls, as many as :data:`A_ROUND_S` allows."""
        call()
        found: list[float] = []
        while sum(found) < A_ROUND_S:
            found.append(self.clock.whole(call))
        return found


class Training(Trial):
    """Training steps of one micro-batch: forward, backward, fused AdamW.

    Weights, gradients and optimizer state are all in the precision of the trial.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4, fused=True)
        self._targets = self.tokens.roll(-1, 1)
        for _ in range(WARM_UP):
            self._step()

    def round(self) -> dict[str, list[float]]:
        """Take steps for a while, the first not counted: others have used the caches and the heap."""
        return {"step": self._each(self._step)}

    def _step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss_of(self.module(self.tokens), self._targets, self.batch * self.length).backward()
        self._optimizer.step()


class Serving(Trial):
    """Prefill of ``batch`` prompts of ``length`` tokens, and decoding of ``steps`` tokens of each after it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        with torch.inference_mode():
            self._cache = Cache(self.module, self.sizes, self.batch, self.length + self.steps, self.device)
            self._cache.forward(self.tokens, 0)
        self._place = 0

    def round(self) -> dict[str, list[float]]:
        """Prefill and decode for a while each, the first not counted."""
        with torch.inference_mode():
            return {
                "prefill": self._each(lambda: self._cache.forward(self.tokens, 0)), "decode": self._each(self._decode)
            }  # fmt: skip

    def _decode(self) -> None:
        self._cache.forward(self.tokens[:, :1], self.length + self._place)
        self._place = (self._place + 1) % self.steps


def trial_of(orders: Mapping[str, Any], device: Any) -> Trial:
    """Return the trial that plain data describes."""
    sizes = Sizes(**orders["sizes"])
    rest = {key: orders[key] for key in ("batch", "length", "steps", "precision")}
    return (Training if orders["kind"] == "train" else Serving)(sizes, **rest, device=device)


def _module(sizes: Sizes, precision: str, device: Any) -> StageModule:
    module = StageModule(sizes, 0, sizes.layers, stem=True, head=True, seed=0)
    module.to(device=device, dtype=TYPES[precision])
    return module


def _tokens(sizes: Sizes, batch: int, length: int, device: Any) -> Any:
    return torch.randint(0, sizes.vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
