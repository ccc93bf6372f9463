"""Kernels that only stream memory, with bytes counted in both passes: norms, activation functions, residuals, rotary
positions, dropout, softmax, loss, routing.

A fused chain reads its inputs and writes its outputs once; an unfused one writes and reads what lies between.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zhenfa.estimate import kernels
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.traits import Traits
from zhenfa.laws.arrays import Array
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES

MASK_BYTES = 1.0
"""Bytes of a dropout mask per element."""


SCORE_BYTES = 2.0
"""Bytes of the widest scores that fused softmax kernels take: Megatron's and Apex's are written for 16 bits."""


class Passes(NamedTuple):
    """Bytes read and written forward and backward, and how many kernels do it."""

    forward: Array
    backward: Array
    kernels_forward: float
    kernels_backward: float

    def plus(self, other: Passes) -> Passes:
        """Return both chains, one after the other."""
        return Passes(
            self.forward + other.forward,
            self.backward + other.backward,
            self.kernels_forward + other.kernels_forward,
            self.kernels_backward + other.kernels_backward,
        )

    def times(self, factor: Array) -> Passes:
        """Return the same kernels over so many times the elements."""
        return self._replace(forward=self.forward * factor, backward=self.backward * factor)

    def paced(self, chip: Chip, name: str) -> Passes:
        """Return the chain of that name with its bytes as slow as a processor was measured to be with them."""
        if chip.processor is None or name not in chip.processor.chains:
            return self
        forward, backward = chip.processor.chains[name]
        return self._replace(forward=self.forward / forward, backward=self.backward / backward)

    def seconds(self, chip: Chip) -> tuple[Array, Array]:
        """Return the seconds forward and backward."""
        return _time(chip, self.forward, self.kernels_forward), _time(chip, self.backward, self.kernels_backward)


NONE = Passes(0.0, 0.0, 0.0, 0.0)


def _time(chip: Chip, moved: Array, count: float) -> Array:
    if not count:
        return 0.0 * np.asarray(moved)
    return kernels.stream(chip, moved) + (0.0 if chip.emulated else (count - 1) * chip.launch)


def width(chip: Chip) -> float:
    """Return the bytes of an activation."""
    return max(BYTES[chip.precision], kernels.ACTIVATION_BYTES)


def passes(operator: Operator, size: float, traits: Traits) -> Passes:
    """Return the passes of one element-wise operator per token, its elements ``size`` bytes."""
    match operator.kind:
        case "norm":
            return _norm(operator.inputs, size, traits)
        case "elementwise" if adds(operator):
            return _residual(operator.outputs, size, traits)
        case "elementwise":
            return _activation(operator.inputs, operator.outputs, size, traits)
        case "embedding":  # the backward pass adds rows of the gradient in 32 bits
            return Passes(2 * size * operator.outputs, (size + 8.0) * operator.outputs, 1, 1)
        case _:
            both = float(operator.inputs + operator.outputs)
            return Passes(size * both, 2 * size * both, 1, 2)


def chain_of(operator: Operator, size: float, traits: Traits, chip: Chip) -> Passes:
    """Return the passes of one element-wise operator per token at the pace of a chip."""
    found = passes(operator, size, traits)
    if chip.processor is None:
        return found
    gate = operator.kind == "elementwise" and not adds(operator)
    return found.paced(chip, "norm" if operator.kind == "norm" else "activation" if gate else "")


def adds(operator: Operator) -> bool:
    """Return whether an element-wise operator adds a block's output to the residual stream."""
    return operator.shard == "none" and operator.inputs == 2 * operator.outputs


def _norm(features: float, size: float, traits: Traits) -> Passes:
    if traits.autocast and "norm" in traits.fused:  # the stream's 32 bits are brought to ``size`` before, and back
        return Passes((3 * size + 4) * features, (4 * size + 4) * features, 2, 3)
    if "norm" in traits.fused:  # read, write; then read input and gradient, write gradient
        return Passes(2 * size * features, 3 * size * features, 1, 2)
    # to 32 bits, square and mean, scale, back to the format, times the weight
    return Passes((4 * size + 20) * features, (6 * size + 24) * features, 5, 8)


def _residual(features: float, size: float, traits: Traits) -> Passes:
    wide = 4.0 if traits.autocast else size
    # the gradients of both branches are added
    plain = Passes((2 * wide + size) * features, (2 * wide + size) * features, 1, 1)
    if not traits.dropout:
        return plain
    if "dropout" in traits.fused:  # bias, dropout and sum in one
        return Passes((3 * size + MASK_BYTES) * features, (5 * size + MASK_BYTES) * features, 1, 2)
    biased = Passes(2 * size * features, size * features, 1, 1)
    dropped = Passes((2 * size + MASK_BYTES) * features, (2 * size + MASK_BYTES) * features, 1, 1)
    return plain.plus(biased).plus(dropped)


def _activation(inputs: float, outputs: float, size: float, traits: Traits) -> Passes:
    if "activation" in traits.fused:
        return Passes(size * (inputs + outputs), size * (2 * inputs + outputs), 1, 1)
    # a function, then a product (gated) or a sum with the bias before it
    return Passes(size * (inputs + 3 * outputs), size * (2 * inputs + 5 * outputs), 2, 3)


def rotary(operator: Operator, size: float, traits: Traits) -> Passes:
    """Return the passes of rotary positions and changes of layout around attention, per token of all heads."""
    keys = max(operator.kv_heads, 1) if not operator.latent else operator.heads
    turned = (operator.heads + keys) * operator.key_dim * size
    laid = traits.rope_layout * (turned + keys * operator.value_dim * size) * 2
    both = Passes(laid, laid, 2.0 * (traits.rope_layout > 0), 2.0 * (traits.rope_layout > 0))
    if not traits.rotary:
        return both
    if "rope" in traits.fused:
        return both.plus(Passes(2 * turned, 2 * turned, 2, 2))
    # halves swapped, two products, a sum, for queries and for keys
    return both.plus(Passes(9 * turned, 9 * turned, 8, 8))


def scores(pairs: Array, size: float, traits: Traits) -> Passes:
    """Return the passes over stored attention scores, ``pairs`` of them over all heads, matmuls aside.

    Scores too wide for the fused softmax go through Megatron's fallback, which writes the mask in place into a view of
    the matmul's output: autograd then zeroes, copies, clones and fills whole tensors to put that gradient back.
    """
    if "softmax" in traits.fused and size <= SCORE_BYTES:
        found = Passes(2 * size * pairs, 3 * size * pairs, 1, 1)
    elif "softmax" in traits.fused:  # mask, softmax; softmax, zero, copy twice, clone twice, fill, copy
        found = Passes(4 * size * pairs, 16 * size * pairs, 2, 8)
    else:  # scale, mask, softmax
        found = Passes(6 * size * pairs, 7 * size * pairs, 3, 3)
    if traits.dropout:
        dropped = (2 * size + MASK_BYTES) * pairs
        found = found.plus(Passes(dropped, dropped, 1, 1))
    return found


def loss(vocabulary: float, size: float, traits: Traits) -> Passes:
    """Return the passes of the cross entropy over logits, per token."""
    if "cross-entropy" in traits.fused:  # logits read for the sum and for the gradient, which takes their place
        return Passes((size + 6) * vocabulary, (2 * size + 4) * vocabulary, 3, 2)
    # to 32 bits, largest, difference, exponential, sum; gradient in 32 bits and back
    return Passes((size + 30) * vocabulary, (size + 16) * vocabulary, 8, 4)


def routing(experts: float, traits: Traits) -> Passes:
    """Return the passes of the router's softmax, choice and maps, per token, in 32 bits."""
    times, count = (4.0, 4.0) if "router" in traits.fused else (12.0, 16.0)
    return Passes(4.0 * times * experts, 4.0 * times * experts, count, count)


def expert_bias(operator: Operator, size: float, traits: Traits) -> Passes:
    """Return the passes that experts' biases add per copy of a token, where experts have any.

    Unfused, every expert's rows are taken apart, added to and put together again, after the first matmul with clamps,
    a scaled sigmoid and products one by one, and after the second with the router's weight.
    """
    if operator.parameters <= operator.experts * operator.inputs * operator.outputs:
        return NONE
    wide = size * operator.outputs
    if "expert-bias" in traits.fused:
        return Passes(0.0, wide, 0, 1)  # the sum over rows that is the bias's gradient
    first = not operator.name.endswith("down")
    return Passes(13 * wide, 20 * wide, 12, 20) if first else Passes(6 * wide, 8 * wide, 4, 6)


def permutation(copies: Array, features: float, size: float, traits: Traits) -> Passes:
    """Return the passes that lay ``copies`` of tokens out by expert before and back after, on the card that sends and
    on the one that receives."""
    times = 1.0 if "permute" in traits.fused else 2.0
    one = 2 * size * features * copies * times
    return Passes(4 * one, 4 * one, 4 * times, 4 * times)


CAST_BYTES = 6.0
"""Read in 32 bits and written in 16, or the other way round, per element."""


def weight_casts(elements: Array, traits: Traits) -> Passes:
    """Return the passes that bring weights to 16 bits before a matmul, and their gradient to 32 after."""
    return Passes(CAST_BYTES * elements, CAST_BYTES * elements, 1, 1) if traits.autocast else NONE


def casts(rows: Array, inputs: Array, outputs: Array, chip: Chip, traits: Traits) -> Passes:
    """Return the passes that bring a matmul's input, and the gradient of its output, to 8 or 4 bits in both layouts."""
    small = BYTES[chip.precision]
    if small >= kernels.ACTIVATION_BYTES or chip.emulated:
        return NONE
    read = kernels.ACTIVATION_BYTES * (2.0 if traits.low_precision == "tensor" else 1.0)
    one = read + 2 * small
    count = 2.0 if traits.low_precision == "tensor" else 1.0
    return Passes(rows * inputs * one, rows * outputs * one, count, count)
