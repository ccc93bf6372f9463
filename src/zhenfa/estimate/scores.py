"""Attention inside a layer: its kernels, what an unfused one streams, and the exchange of context parallelism."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zhenfa.estimate import kernels, streams
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.shape import Cost, Shape, alone
from zhenfa.estimate.traits import Traits
from zhenfa.laws import communication, compute
from zhenfa.laws.arrays import Array
from zhenfa.laws.fabric import Fabric
from zhenfa.laws.overlap import exposed_time
from zhenfa.spec.graph import Operator

BACKWARD_WORK: Final = 2.5
"""Backward over forward FLOPs of flash attention: five matmuls against two (dao2023, section 3.1)."""

BACKWARD_PACE: Final = 0.8
"""Backward over forward speed of flash attention: 196 of 225 TFLOP/s on A100 (dao2023, figures 5 and 6), 550 of 740 on
H100 (arXiv:2407.08608, figures 5 and 6)."""


def attention_cost(operator: Operator, shape: Shape, chip: Chip, fabric: Fabric, traits: Traits, ideal: Array) -> Cost:
    """Return the cost of attention, whose model FLOPs take ``ideal`` seconds at peak.

    Counts the kernels, rotary positions, stored scores where the engine keeps them, and what the exchange of keys and
    values takes beyond the attention that hides it. Causal work is balanced over context-parallel cards, each holding
    an early and a late part of the sequence.
    """
    forward, backward, count = _unfused(operator, shape, chip, traits) if traits.attention == "unfused" else _flash(
        operator, shape, chip, traits
    )  # fmt: skip
    chain = streams.rotary(operator, streams.width(chip), traits).times(shape.tokens / shape.tensor)
    turned, back = chain.paced(chip, "rope").seconds(chip)
    if chip.processor is not None:
        back = back + chip.processor.autograd * (count[1] + chain.kernels_backward)
    out, home = _exchange(operator, shape, chip, fabric, traits)
    hidden = {"share": traits.context_overlap, "contention": traits.contention}
    each = traits.host_s_per_kernel * (1 - traits.graphed)
    return Cost(
        forward + turned,
        backward + back,
        context_forward=exposed_time(out, forward, **hidden) if np.ndim(out) or out else 0.0,
        context_backward=exposed_time(home, backward, **hidden) if np.ndim(home) or home else 0.0,
        ideal=ideal,
        host_forward=each * (count[0] + chain.kernels_forward),
        host_backward=each * (count[1] + chain.kernels_backward),
    )


def _window(operator: Operator) -> float:
    return float("inf") if operator.window is None else float(operator.window)


def _flash(operator: Operator, shape: Shape, chip: Chip, traits: Traits) -> tuple[Array, Array, tuple[Any, Any]]:
    heads, keys = operator.heads / shape.tensor, np.maximum(_key_heads(operator) / shape.tensor, 1.0)
    split = not alone(shape.context) and bool(np.any(np.not_equal(shape.context, 1)))

    def pieces(heads: Array, keys: Array, queries: Array, context: Array, *, causal: bool, window: float) -> Array:
        seconds = kernels.attention_prefill(
            chip, queries, context, heads, operator.key_dim, operator.value_dim, kv_heads=keys,
            sequences=shape.sequences, causal=causal, window=window,
        )  # fmt: skip
        return seconds / traits.attention_share

    window = _window(operator)
    if split and traits.context_exchange == "all-to-all":
        heads, keys = heads / shape.context, np.maximum(keys / shape.context, 1.0)
    forward = pieces(heads, keys, shape.sequence, shape.sequence, causal=operator.causal, window=window)
    if split and traits.context_exchange != "all-to-all":  # as many pairs as every card's share of the mask leaves
        pairs = compute.attention_pairs(shape.sequence, shape.sequence, causal=operator.causal, window=window)
        shared = pieces(
            heads, keys, shape.sequence / shape.context, pairs / shape.sequence, causal=False, window=float("inf")
        )
        forward = np.where(np.equal(shape.context, 1), forward, shared)
    steps = 1.0 if traits.context_exchange != "ring" else shape.context
    return forward, forward * backward_ratio(chip), (steps, 3 * steps)


def backward_ratio(chip: Chip) -> float:
    """Return backward over forward seconds of flash attention. A processor keeps its pace, and so does emulation."""
    return BACKWARD_WORK / (1.0 if chip.emulated or chip.processor is not None else BACKWARD_PACE)


def _key_heads(operator: Operator) -> int:
    """Return the heads of keys and values in training, where latent ones are written out."""
    return operator.heads if operator.latent else operator.kv_heads


def _unfused(operator: Operator, shape: Shape, chip: Chip, traits: Traits) -> tuple[Array, Array, tuple[float, float]]:
    """Return the seconds of attention as two batched matmuls with a softmax between, the mask's other half included."""
    count = shape.sequences * operator.heads / shape.tensor
    queries = shape.sequence / shape.context
    score = kernels.matmul(chip, queries, operator.key_dim, shape.sequence, groups=count)
    mixed = kernels.matmul(chip, queries, shape.sequence, operator.value_dim, groups=count)
    chain = streams.scores(1.0, streams.width(chip), traits).times(queries * shape.sequence * count)
    out, back = chain.seconds(chip)
    both = (score + mixed) / traits.matmul_share
    return both + out, 2 * both + back, (2 + chain.kernels_forward, 4 + chain.kernels_backward)


def _exchange(operator: Operator, shape: Shape, chip: Chip, fabric: Fabric, traits: Traits) -> tuple[Array, Array]:
    """Return the seconds of context parallelism's communication forward and backward, hidden or not."""
    if alone(shape.context) or not np.any(np.greater(shape.context, 1)):
        return 0.0, 0.0
    size = streams.width(chip)
    keys = _key_heads(operator) * (operator.key_dim + operator.value_dim) / shape.tensor
    queries = operator.heads * (operator.key_dim + operator.value_dim) / shape.tensor
    if traits.context_exchange == "all-to-all":
        wide = queries + np.maximum(keys, (operator.key_dim + operator.value_dim) * shape.context)
        once = communication.all_to_all_time(shape.tokens * wide * size, shape.context, shape.tensor, fabric)
        return once, once
    volume = shape.tokens * shape.context * keys * size
    gathered = communication.all_gather_time(volume, shape.context, shape.tensor, fabric)
    if traits.context_exchange == "gather":
        return gathered, gathered + communication.reduce_scatter_time(volume, shape.context, shape.tensor, fabric)
    return gathered, 2 * gathered  # keys and values go round, and with them their gradients
