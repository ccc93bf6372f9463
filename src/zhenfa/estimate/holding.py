"""What a card holds: weights, gradients, optimizer state and the activations of micro-batches in flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zhenfa.estimate.layer import Shape
from zhenfa.estimate.traits import Traits
from zhenfa.laws import memory
from zhenfa.laws.arrays import Array
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES, Precision


@dataclass(frozen=True)
class Holding:
    """Bytes on one card. ``activation`` is of one micro-batch; ``parameters`` are elements held, ``shared`` elements
    whose gradients are summed over all replicas and ``routed`` those of experts."""

    weights: Array
    gradients: Array
    optimizer: Array
    activation: Array
    shared: Array
    routed: Array

    @property
    def state(self) -> Array:
        """Return the bytes held whatever the micro-batches do."""
        return self.weights + self.gradients + self.optimizer

    def plus(self, other: Holding) -> Holding:
        """Return the sum of two holdings."""
        return Holding(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


EMPTY = Holding(*(0.0,) * 6)


def holding(
    operators: Sequence[Operator],
    shape: Shape,
    precision: Precision,
    zero: Array,
    recompute: Array,
    traits: Traits,
    hidden: int,
) -> Holding:
    """Return what a sequence of operators makes one card hold.

    ``recompute`` is 0 (none), 1 (selective: outputs of norms and element-wise operators are computed again) or 2
    (full: only the input is kept). Counts each operator's output as one saved tensor, two bytes an element (four in
    fp32). Omits dropout masks, the softmax statistics of attention and the allocator's slack.
    """
    shared = sum(_elements(operator, shape) for operator in operators if operator.shard != "expert")
    routed = sum(_elements(operator, shape) for operator in operators if operator.shard == "expert")
    wide = 4.0 if precision in {"fp32", "tf32"} else 2.0
    states = [EMPTY_STATE, EMPTY_STATE]
    for index, (count, replicas) in enumerate(
        ((shared, shape.data), (routed, np.maximum(shape.data * shape.tensor / shape.expert, 1.0)))
    ):
        states[index] = memory.training_state_bytes(
            count, zero=zero, data_parallel=replicas, weight_bytes=wide, gradient_bytes=traits.gradient_bytes,
            optimizer_bytes=8.0 if wide == 4.0 else 12.0,
        )  # fmt: skip
    weights, gradients, optimizer = (states[0][part] + states[1][part] for part in range(3))
    activation = _saved(operators, shape, max(BYTES[precision], 2.0), recompute, hidden)
    return Holding(weights, gradients, optimizer, activation, shared + 0.0, routed + 0.0)


EMPTY_STATE: tuple[Array, Array, Array] = (0.0, 0.0, 0.0)


def _elements(operator: Operator, shape: Shape) -> Array:
    match operator.shard:
        case "none":
            return float(operator.parameters)
        case "expert":
            return operator.parameters / shape.expert
        case _:
            return operator.parameters / shape.tensor


def _saved(operators: Sequence[Operator], shape: Shape, size: float, recompute: Array, hidden: int) -> Array:
    heavy = light = 0.0
    for operator in operators:
        width = operator.heads * operator.value_dim if operator.kind in {"attention", "scan"} else operator.outputs
        copies = operator.active_experts if operator.kind == "grouped_matmul" else 1
        if operator.kind in {"norm", "elementwise"}:
            light += width * copies
        else:
            heavy += width * copies
    per_token = np.select([np.equal(recompute, 0), np.equal(recompute, 1)], [heavy + light, heavy], hidden)
    return shape.tokens * per_token * size / shape.tensor


def working_set(operators: Sequence[Operator], shape: Shape, precision: Precision, recompute: Array) -> Array:
    """Return the bytes of one layer's activations while it is computed again (zero without full recomputation)."""
    everything = _saved(operators, shape, max(BYTES[precision], 2.0), 0, 0)
    return np.where(np.equal(recompute, 2), everything, 0.0)


def gathered(held: Holding, precision: Precision, zero: Array) -> Array:
    """Return the bytes of whole weights that ZeRO-3 holds while it computes: this layer's and the next one's."""
    wide = 4.0 if precision in {"fp32", "tf32"} else 2.0
    return np.where(np.equal(zero, 3), 2 * wide * (held.shared + held.routed), 0.0)
