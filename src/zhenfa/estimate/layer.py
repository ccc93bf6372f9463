"""What one layer costs on one card: seconds forward and backward, bytes moved between cards, bytes held.

Every function takes a :class:`Shape` whose fields are floats or arrays over candidates, and returns the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from zhenfa.estimate import kernels
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.traits import Traits
from zhenfa.laws import communication, compute
from zhenfa.laws.arrays import Array
from zhenfa.laws.communication import Fabric
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES

ATTENTION_BACKWARD = 2.5
"""Backward over forward FLOPs of attention: five matmuls against two (dao2023, section 3.1)."""


@dataclass(frozen=True)
class Shape:
    """How a layer is cut.

    ``sequences`` per micro-batch of ``sequence`` tokens; ``tensor`` and ``expert`` parallel degrees; ``data`` replicas.
    """

    sequences: Array
    sequence: float
    tensor: Array
    expert: Array
    data: Array

    @property
    def tokens(self) -> Array:
        """Return the tokens of one micro-batch."""
        return self.sequences * self.sequence


@dataclass(frozen=True)
class Cost:
    """Seconds per micro-batch on one card, by part."""

    forward: Array
    backward: Array
    tensor_forward: Array
    tensor_backward: Array
    expert_forward: Array
    expert_backward: Array
    ideal: Array
    """Seconds that the layer's model FLOPs (forward and backward, no recomputation) take at peak."""
    light_forward: Array
    """Part of ``forward`` spent in norms and element-wise operators, which selective recomputation runs again."""

    def plus(self, other: Cost) -> Cost:
        """Return the sum of two costs."""
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def forward_total(self) -> Array:
        """Return forward seconds, communication included."""
        return self.forward + self.tensor_forward + self.expert_forward

    @property
    def backward_total(self) -> Array:
        """Return backward seconds without recomputation, communication included."""
        return self.backward + self.tensor_backward + self.expert_backward


ZERO = Cost(*(0.0,) * 8)


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    result = ZERO
    for cost in costs:
        result = result.plus(cost)
    return result


def layer_cost(operators: Sequence[Operator], shape: Shape, chip: Chip, fabric: Fabric, traits: Traits) -> Cost:
    """Return the cost of a sequence of operators.

    Counts: every operator's arithmetic or memory traffic, whichever is longer, and its launch; the all-reduce after
    each row-split matmul and its mirror in the backward pass; dispatch and combine of experts, both ways. Omits:
    overlap of tensor and expert communication with arithmetic (all of it is exposed), and load imbalance of experts.
    """
    costs = [_operator_cost(operator, shape, chip, fabric, traits) for operator in operators]
    routed = [operator for operator in operators if operator.kind == "grouped_matmul"]
    if routed:
        copies = shape.tokens / shape.tensor * routed[0].active_experts
        exchange = sum(
            communication.all_to_all_time(copies * features * 2.0, shape.expert, 1.0, fabric)
            for features in (routed[0].inputs, routed[-1].outputs)
        )
        costs.append(Cost(0.0, 0.0, 0.0, 0.0, exchange, exchange, 0.0, 0.0))
    return total(costs)


def _operator_cost(operator: Operator, shape: Shape, chip: Chip, fabric: Fabric, traits: Traits) -> Cost:
    match operator.kind:
        case "matmul":
            return _matmul(operator, shape, chip, fabric, traits)
        case "grouped_matmul":
            return _grouped(operator, shape, chip)
        case "attention":
            return _attention(operator, shape, chip)
        case "scan":
            return _scan(operator, shape, chip)
        case _:
            return _streaming(operator, shape, chip, fabric, traits)


def _matmul_times(chip: Chip, rows: Array, inputs: Array, outputs: Array) -> tuple[Array, Array]:
    backward = kernels.matmul(chip, rows, outputs, inputs) + kernels.matmul(chip, inputs, rows, outputs)
    return kernels.matmul(chip, rows, inputs, outputs), backward


def _matmul(operator: Operator, shape: Shape, chip: Chip, fabric: Fabric, traits: Traits) -> Cost:
    # a matmul that is not split runs on each card's own part of the sequence
    whole = operator.shard != "none" or not traits.sequence_parallel
    rows = shape.tokens if whole else shape.tokens / shape.tensor
    split_outputs = operator.shard in {"column", "vocabulary", "heads"}
    inputs = operator.inputs / shape.tensor if operator.shard == "row" else operator.inputs
    outputs = operator.outputs / shape.tensor if split_outputs else operator.outputs
    forward, backward = _matmul_times(chip, rows, inputs, outputs)
    reduced = _reduce_time(operator, shape, chip, fabric)
    first = 0.0 if operator.shard == "vocabulary" else reduced  # the output projection reduces only going back
    ideal = 3 * compute.matmul_flops(rows, inputs, outputs) / chip.peak
    return Cost(forward, backward, first, reduced, 0.0, 0.0, ideal, 0.0)


def _reduce_time(operator: Operator, shape: Shape, chip: Chip, fabric: Fabric) -> Array:
    if operator.shard not in {"row", "vocabulary"}:
        return 0.0
    features = operator.inputs if operator.shard == "vocabulary" and operator.kind == "matmul" else operator.outputs
    volume = shape.tokens * features * max(BYTES[chip.precision], 2.0)
    return communication.all_reduce_time(volume, shape.tensor, 1.0, fabric)


def _grouped(operator: Operator, shape: Shape, chip: Chip) -> Cost:
    routed = shape.tokens / shape.tensor * operator.active_experts
    experts = np.maximum(operator.experts / shape.expert, 1.0)
    forward = kernels.grouped_matmul(chip, routed, experts, operator.inputs, operator.outputs)
    weights = kernels.matmul(chip, operator.inputs, routed / experts, operator.outputs, groups=experts)
    backward = kernels.grouped_matmul(chip, routed, experts, operator.outputs, operator.inputs) + weights
    ideal = 3 * compute.matmul_flops(routed, operator.inputs, operator.outputs) / chip.peak
    return Cost(forward, backward, 0.0, 0.0, 0.0, 0.0, ideal, 0.0)


def _attention(operator: Operator, shape: Shape, chip: Chip) -> Cost:
    window = np.inf if operator.window is None else operator.window
    heads = operator.heads / shape.tensor

    work = compute.attention_flops(
        shape.sequence,
        shape.sequence,
        heads,
        operator.key_dim,
        operator.value_dim,
        causal=operator.causal,
        window=window,
    )
    forward = kernels.attention_prefill(
        chip, shape.sequence, shape.sequence, heads, operator.key_dim, operator.value_dim,
        kv_heads=np.maximum(operator.kv_heads / shape.tensor, 1.0), sequences=shape.sequences, causal=operator.causal,
        window=window,
    )  # fmt: skip
    ideal = 3 * shape.sequences * work / chip.peak
    return Cost(forward, ATTENTION_BACKWARD * forward, 0.0, 0.0, 0.0, 0.0, ideal, 0.0)


def _scan(operator: Operator, shape: Shape, chip: Chip) -> Cost:
    heads = operator.heads / shape.tensor
    forward = kernels.scan(chip, shape.tokens, heads, operator.key_dim, operator.value_dim)
    ideal = 3 * compute.scan_flops(shape.tokens, heads, operator.key_dim, operator.value_dim) / chip.peak
    return Cost(forward, 2 * forward, 0.0, 0.0, 0.0, 0.0, ideal, 0.0)


def _streaming(operator: Operator, shape: Shape, chip: Chip, fabric: Fabric, traits: Traits) -> Cost:
    split = shape.tensor if traits.sequence_parallel or operator.shard != "none" else 1.0
    read = operator.outputs if operator.kind == "embedding" else operator.inputs
    moved = shape.tokens * (read + operator.outputs) * 2.0 / split
    forward = kernels.stream(chip, moved)
    light = 0.0 if operator.kind == "embedding" else forward
    reduced = _reduce_time(operator, shape, chip, fabric) if operator.kind == "embedding" else 0.0
    return Cost(forward, 2 * forward, reduced, 0.0, 0.0, 0.0, 0.0, light)
