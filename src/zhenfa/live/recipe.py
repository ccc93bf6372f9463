"""What every card does with its gradients: the learning rate of each step, AdamW's numbers, clipping, evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from zhenfa.spec.job import Execution

HELD_OUT: Final = 0.05
"""Share of the text, at its end, that is kept from training where a run evaluates."""


@dataclass(frozen=True)
class Recipe:
    """The training keys of :class:`~zhenfa.spec.job.Execution`, as cards need them. ``steps``: of the whole run."""

    steps: int
    learning_rate: float
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    minimum_learning_rate: float = 0.0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_gradient_norm: float | None = None
    evaluate_every: int = 0
    evaluate_batches: int = 1
    auxiliary_loss_coefficient: float = 0.01

    @classmethod
    def of(cls, execution: Execution) -> Recipe:
        """Return what a job says."""
        return cls(**{name: getattr(execution, name) for name in cls.__dataclass_fields__})

    def rate(self, step: int) -> float:
        """Return the learning rate of training step ``step`` (from 1).

        It rises in a line over ``warmup_steps``, then stays, or follows half a cosine that reaches
        ``minimum_learning_rate`` in the last step. Source: Loshchilov and Hutter 2017, equation 5 (one period).

        >>> cosine = Recipe(5, 1.0, "cosine", warmup_steps=2, minimum_learning_rate=0.1)
        >>> [round(cosine.rate(step), 3) for step in range(1, 6)]
        [0.5, 1.0, 0.775, 0.325, 0.1]
        """
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.learning_rate_schedule == "constant":
            return self.learning_rate
        done = min((step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1), 1.0)
        span = self.learning_rate - self.minimum_learning_rate
        return self.minimum_learning_rate + span * (1 + math.cos(math.pi * done)) / 2

    def evaluates(self, step: int) -> bool:
        """Return whether the model is evaluated after training step ``step``."""
        return self.evaluate_every > 0 and step % self.evaluate_every == 0

    @property
    def held_out(self) -> float:
        """Return the share of the text that training does not see."""
        return HELD_OUT if self.evaluate_every else 0.0
