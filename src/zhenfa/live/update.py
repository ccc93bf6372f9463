"""From summed gradients to new weights: AdamW on weights in 32 bits, whatever the precision of the matmuls.

Where matmuls are in 16 bits the card holds a second, narrow copy of its weights, which forwards and backwards work
with. Gradients of every micro-batch are added up in 32 bits, and all makers' gradients are summed in 32 bits; the
update is of the wide weights, from which the narrow ones are taken anew before each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch

from zhenfa.live.decoder import Decoder
from zhenfa.live.recipe import Recipe
from zhenfa.spec.machine import Precision

DTYPES: Final[dict[Precision, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Precisions in which this runtime computes."""
WIDE_BYTES: Final = 4
"""Bytes of a weight, of its gradient and of each of its two moments."""


class Update:
    """The weights of one card. ``wide`` are in 32 bits, under global names; ``narrow`` is what forwards run with.

    ``updates`` names those that this card updates and keeps the optimizer's state of; the others come to it updated.
    """

    def __init__(self, wide: Decoder, recipe: Recipe, precision: Precision, updates: frozenset[str]) -> None:
        self.wide, self.recipe = wide, recipe
        self.weights: dict[str, Any] = dict(wide.named_parameters())
        self.narrow = wide
        if DTYPES[precision] != torch.float32:
            self.narrow = wide.narrowed(DTYPES[precision])
            self._pairs = list(zip(self.narrow.parameters(), wide.parameters(), strict=True))
            masters = {id(narrow): master for narrow, master in self._pairs}
            for narrow, _ in self._pairs:
                narrow.register_post_accumulate_grad_hook(lambda weight: _collect(weight, masters[id(weight)]))
            self.narrow.collect = lambda weight: _collect(weight, masters[id(weight)])
        self.optimizer = adamw([weight for name, weight in self.weights.items() if name in updates], recipe)

    def begin(self) -> None:
        """Forget the gradients of the step before, and take the narrow weights from the wide ones."""
        self.wide.zero_grad(set_to_none=True)
        self.refresh()

    def refresh(self) -> None:
        """Take the narrow weights from the wide ones."""
        if self.narrow is not self.wide:
            with torch.no_grad():
                for narrow, master in self._pairs:
                    narrow.copy_(master)

    def squares(self, names: frozenset[str]) -> float:
        """Return the sum of the squares of the gradients of some weights."""
        return squares_of(weight.grad for name, weight in self.weights.items() if name in names)

    def clip(self, norm: float) -> None:
        """Scale the gradients down to the norm that the recipe allows, if ``norm`` is larger."""
        clip(self.wide.parameters(), norm, self.recipe)

    def step(self, number: int) -> None:
        """Update the weights at the learning rate of step ``number``."""
        take_step(self.optimizer, self.recipe.rate(number))

    def memory(self) -> dict[str, int]:
        """Return the bytes of weights, gradients at their peak, and state (with wide weights beside narrow ones)."""
        wide = list(self.wide.parameters())
        moments = moment_bytes(self.optimizer)
        return {
            "parameters": sum(parameter.nbytes for parameter in self.narrow.parameters()),
            "gradients": sum(parameter.nbytes for parameter in wide),
            "optimizer": moments + (0 if self.narrow is self.wide else sum(parameter.nbytes for parameter in wide)),
        }

    def bytes_moved(self) -> int:
        """Return the bytes that an update reads and writes: the state and the weights twice, the gradients once."""
        own = [] if self.optimizer is None else self.optimizer.param_groups[0]["params"]
        elements: int = sum(weight.numel() for weight in own)
        copied: int = 0 if self.narrow is self.wide else sum(weight.nbytes for weight in self.narrow.parameters())
        return elements * (2 * (WIDE_BYTES + 2 * WIDE_BYTES) + WIDE_BYTES) + copied


def adamw(weights: Sequence[Any], recipe: Recipe) -> Any:
    """Return the optimizer of some weights, None of none."""
    return torch.optim.AdamW(
        weights, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon,
        weight_decay=recipe.weight_decay, fused=True,
    ) if weights else None  # fmt: skip


def squares_of(gradients: Iterable[Any]) -> float:
    """Return the sum of the squares of gradients, in float64; None is none."""
    held = (one for one in gradients if one is not None)
    return float(sum(float(torch.linalg.vector_norm(one, dtype=torch.float64)) ** 2 for one in held))


def clip(weights: Iterable[Any], norm: float, recipe: Recipe) -> None:
    """Scale the gradients of weights down to the norm that the recipe allows, if ``norm`` is larger.

    Source: Pascanu et al. 2013, algorithm 1, with the 1e-6 that torch adds to the norm.
    """
    limit = recipe.clip_gradient_norm
    scale = 1.0 if limit is None else limit / (norm + 1e-6)
    for weight in weights:
        if weight.grad is not None and not scale >= 1.0:
            weight.grad.mul_(scale)


def take_step(optimizer: Any, rate: float) -> None:
    """Update the weights of an optimizer (None: there are none) at a learning rate."""
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def moment_bytes(optimizer: Any) -> int:
    """Return the bytes of an optimizer's moments."""
    states = [] if optimizer is None else [value for state in optimizer.state.values() for value in state.values()]
    return sum(int(value.nbytes) for value in states if torch.is_tensor(value) and value.dim())


def _collect(narrow: Any, wide: Any) -> None:
    """Add a gradient in 16 bits to the sum in 32; there is none yet where it is left for later."""
    if narrow.grad is None:
        return
    if wide.grad is None:
        wide.grad = narrow.grad.to(wide.dtype)
    else:
        wide.grad.add_(narrow.grad)
    narrow.grad = None
