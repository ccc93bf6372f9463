"""The update of weights that are shared out by rows: each card updates its own, in 32 bits."""

from __future__ import annotations

from typing import Any

import torch

from zhenfa.live.recipe import Recipe
from zhenfa.live.sharded import Sharded
from zhenfa.live.update import WIDE_BYTES, adamw, clip, moment_bytes, squares_of, take_step


class ShardedUpdate:
    """The rows of weights that one card keeps and updates; ``narrow`` is what forwards run with."""

    def __init__(self, sharded: Sharded, recipe: Recipe) -> None:
        self._sharded, self.recipe, self.narrow = sharded, recipe, sharded.module
        self.optimizer: Any = adamw(list(sharded.rows.own.values()), recipe)

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self.narrow.zero_grad(set_to_none=True)
        for kept in self._sharded.rows.own.values():
            kept.grad = None

    def refresh(self) -> None:
        """Take the weights that forwards run with from those that are updated."""
        self._sharded.rows.refresh()

    def squares(self, names: frozenset[str]) -> float:
        """Return the sum of the squares of this card's rows of the gradients of some weights."""
        return squares_of(weight.grad for name, weight in self._sharded.rows.own.items() if name in names)

    def clip(self, norm: float) -> None:
        """Scale the gradients down to the norm that the recipe allows, if ``norm`` is larger."""
        clip(self._sharded.rows.own.values(), norm, self.recipe)

    def step(self, number: int) -> None:
        """Update this card's rows at the learning rate of step ``number``."""
        take_step(self.optimizer, self.recipe.rate(number))

    def memory(self) -> dict[str, int]:
        """Return the bytes of weights, gathered ones at their peak, gradients at their peak, and state (with wide
        weights beside narrow ones)."""
        held = self._sharded.held_bytes()
        wide = held.pop("wide")
        return {one: size for one, size in held.items() if size} | {"optimizer": moment_bytes(self.optimizer) + wide}

    def bytes_moved(self) -> int:
        """Return the bytes that an update reads and writes: the state and the weights twice, the gradients once."""
        elements: int = sum(weight.numel() for weight in self._sharded.rows.own.values())
        narrow = self._sharded.rows.dtype != torch.float32
        copied: int = elements * self._sharded.rows.dtype.itemsize if narrow else 0
        return elements * (2 * (WIDE_BYTES + 2 * WIDE_BYTES) + WIDE_BYTES) + copied
