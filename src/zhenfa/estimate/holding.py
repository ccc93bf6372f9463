"""What a card holds: weights, gradients, optimizer state and the activations of micro-batches in flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zhenfa.estimate.layer import Shape
from zhenfa.estimate.traits import Traits
from zhenfa.laws import memory
from zhenfa.laws.arrays import Array
from zhenfa.laws.memory import LOGSUMEXP_BYTES
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES, Precision

LOGIT_BYTES = 4.0
"""Bytes per logit: the loss is computed in 32 bits (korthikanti2022, section 4.3)."""


@dataclass(frozen=True)
class Holding:
    """Bytes on one card. ``activation`` is of one micro-batch; ``shared`` counts elements held whose gradients are
    summed over all replicas and ``routed`` those of experts."""

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

    ``recompute`` is 0 (none), 1 (selective: outputs of norms and activation functions are computed again) or 2 (full:
    only the layer's input is kept). Counts what the backward pass reads, each tensor once, at its producer, two bytes
    an element (four in fp32): matmul inputs and outputs, the residual stream, queries, keys, values and the output of
    attention, the inputs of experts once per copy, and logits in 32 bits. The output of a row-split matmul is added to
    the stream and not kept. Attention never stores its scores, only one 32-bit number per query and head.
    Agrees with :func:`zhenfa.laws.memory.layer_activation_bytes` for flash attention without dropout. Omits dropout
    masks, copies of keys that rotary or latent attention puts together, and the allocator's slack.
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
    heavy, light = _kept(operators, size)
    per_token = np.select([np.equal(recompute, 0), np.equal(recompute, 1)], [heavy + light, heavy], hidden * size)
    return shape.tokens * per_token / shape.tensor


def _kept(operators: Sequence[Operator], size: float) -> tuple[float, float]:
    """Return the bytes per token that no cheap operator can bring back, and those that a norm or activation can."""
    heavy = light = 0.0
    for operator in operators:
        kept = operator.outputs * size
        match operator.kind:
            case "norm":
                light += kept
            case "elementwise":
                if _adds(operator):
                    heavy += kept
                else:
                    light += kept
            case "attention":
                heavy += operator.heads * (operator.value_dim * size + LOGSUMEXP_BYTES)
            case "scan":
                heavy += operator.heads * operator.value_dim * size
            case "grouped_matmul":
                heavy += kept * operator.active_experts
            case "matmul" if operator.shard == "row":
                pass
            case "matmul" if operator.shard == "vocabulary":
                heavy += operator.outputs * max(size, LOGIT_BYTES)
            case _:
                heavy += kept
    return heavy, light


def _adds(operator: Operator) -> bool:
    """Return whether an element-wise operator adds a block's output to the residual stream."""
    return operator.shard == "none" and operator.inputs == 2 * operator.outputs


def working_set(operators: Sequence[Operator], shape: Shape, precision: Precision, recompute: Array) -> Array:
    """Return the bytes of one layer's activations while they are computed again (zero without recomputation)."""
    heavy, light = _kept(operators, max(BYTES[precision], 2.0))
    again = np.select([np.equal(recompute, 0), np.equal(recompute, 1)], [0.0, light], heavy + light)
    return shape.tokens * again / shape.tensor


def gathered(held: Holding, precision: Precision, zero: Array) -> Array:
    """Return the bytes of whole weights that ZeRO-3 holds while it computes: this layer's and the next one's."""
    wide = 4.0 if precision in {"fp32", "tf32"} else 2.0
    return np.where(np.equal(zero, 3), 2 * wide * (held.shared + held.routed), 0.0)
