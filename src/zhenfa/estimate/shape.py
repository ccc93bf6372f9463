"""How a layer is cut over cards, and what it then costs: the two tables that the parts of an estimate pass around."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np

from zhenfa.laws.arrays import Array


@dataclass(frozen=True)
class Shape:
    """How a layer is cut: every field a float or an array over candidates.

    ``sequences`` per micro-batch of ``sequence`` tokens; ``tensor``, ``expert``, ``context`` and ``expert_tensor``
    parallel degrees; ``data`` replicas.
    """

    sequences: Array
    sequence: float
    tensor: Array
    expert: Array
    data: Array
    context: Array = 1.0
    expert_tensor: Array = 1.0

    @property
    def tokens(self) -> Array:
        """Return the tokens of one micro-batch that a group of tensor-parallel cards works on."""
        return self.sequences * self.sequence / self.context

    @property
    def peers(self) -> Array:
        """Return how many cards hold the same part of a layer outside of its experts."""
        return self.data * self.context

    @property
    def expert_peers(self) -> Array:
        """Return how many cards hold the same part of the same experts."""
        cards = self.data * self.context * self.tensor
        return np.maximum(cards / (self.expert * self.expert_tensor), 1.0)


def alone(degree: Array) -> bool:
    """Return whether a degree is 1, not an array of them: what has no peers exchanges nothing."""
    return isinstance(degree, float | int) and degree == 1


@dataclass(frozen=True)
class Cost:
    """Seconds per micro-batch on one card, by part. Communication counts as far as it is exposed."""

    forward: Array
    backward: Array
    tensor_forward: Array = 0.0
    tensor_backward: Array = 0.0
    expert_forward: Array = 0.0
    expert_backward: Array = 0.0
    context_forward: Array = 0.0
    context_backward: Array = 0.0
    ideal: Array = 0.0
    """Seconds that the layer's model FLOPs (forward and backward, no recomputation) take at peak."""
    light_forward: Array = 0.0
    """Part of ``forward`` spent in norms and element-wise operators, which selective recomputation runs again."""
    weight: Array = 0.0
    """Part of ``backward`` spent on the gradients of weights, which no other card waits for."""
    host_forward: Array = 0.0
    """Host seconds to issue the forward kernels."""
    host_backward: Array = 0.0
    last: Array = 0.0
    """Part of the forward pass that recomputation need not run again: the last matmul, where the engine stops early."""

    def plus(self, other: Cost) -> Cost:
        """Return the sum of two costs."""
        return total((self, other))

    def but(self, **changes: Array) -> Cost:
        """Return the same cost with other parts."""
        return replace(self, **changes)

    @property
    def forward_total(self) -> Array:
        """Return forward seconds, communication included: of the card, or of the host where that takes longer."""
        card = self.forward + self.tensor_forward + self.expert_forward + self.context_forward
        return np.maximum(card, self.host_forward)

    @property
    def backward_total(self) -> Array:
        """Return backward seconds without recomputation, communication included."""
        card = self.backward + self.tensor_backward + self.expert_backward + self.context_backward
        return np.maximum(card, self.host_backward)

    @property
    def full_again(self) -> Array:
        """Return the seconds of full recomputation."""
        return self.forward_total - self.last


ZERO = Cost(0.0, 0.0)


_NAMES = tuple(one.name for one in fields(Cost))


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    sums: list[Array] = [0.0] * len(_NAMES)
    for cost in costs:
        for place, name in enumerate(_NAMES):
            part = getattr(cost, name)
            if type(part) is not float or part:  # most parts are nothing
                sums[place] = sums[place] + part
    return Cost(*sums)
