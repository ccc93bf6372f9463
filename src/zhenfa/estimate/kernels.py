"""Seconds of one kernel on one chip: the door between the step estimates and the laws.

Everything that runs on a card goes through here, in training and in serving, so that a law has one place of use. All
sizes are of one card's part, floats or arrays that broadcast. An emulated card is paced by its FLOPs alone.
"""

from __future__ import annotations

import numpy as np

from zhenfa.estimate.chip import Chip
from zhenfa.laws import compute, processor
from zhenfa.laws.arrays import Array, plain
from zhenfa.spec.machine import BYTES

ACTIVATION_BYTES = 2.0
"""Bytes per element of what flows between kernels in 16-bit formats."""


def matmul(chip: Chip, rows: Array, inputs: Array, outputs: Array, *, groups: Array = 1.0) -> Array:
    """Return the seconds of ``groups`` equal matmuls ``rows x inputs`` by ``inputs x outputs`` in one kernel."""
    if chip.emulated:  # it has no tiles
        return compute.matmul_flops(rows, inputs, outputs) * groups / (chip.peak * chip.achievable)
    if chip.processor is not None:
        return processor.processor_matmul_time(
            rows, inputs, outputs, rate=chip.peak * chip.achievable, warm_rate=chip.bandwidth * chip.memory_share,
            cold_rate=chip.processor.cold_rate, element_bytes=BYTES[chip.precision], launch=chip.launch, groups=groups,
        )  # fmt: skip
    size = BYTES[chip.precision]
    return compute.matmul_time(
        rows, inputs, outputs, peak=chip.peak, achievable=chip.achievable, bandwidth=chip.bandwidth,
        memory_share=chip.memory_share, weight_bytes=size, activation_bytes=max(size, 2.0), launch=chip.launch,
        groups=groups,
    )  # fmt: skip


def grouped_matmul(
    chip: Chip, copies: Array, experts: Array, inputs: Array, outputs: Array, *, skew: Array = 0.0
) -> Array:
    """Return the seconds of one grouped matmul: ``copies`` routed rows over the ``experts`` that the card holds.

    ``skew``: exponent of the power law that the experts' popularity follows; 0 is balanced.
    """
    del skew
    return matmul(chip, copies / experts, inputs, outputs, groups=experts)


def expert_layer(
    chip: Chip,
    tokens: Array,
    copies: Array,
    experts: Array,
    features: Array,
    intermediate: Array,
    *,
    gated: bool = True,
    skew: Array = 0.0,
) -> Array:
    """Return the seconds of a fused expert layer on one card, routing and dispatch between cards aside.

    ``tokens`` that arrive, ``copies`` of them routed to the card's ``experts``: permutation, the matmul into the
    experts' ``intermediate`` features (two of them where ``gated``), activation function, the matmul back, and the
    weighted sum.
    """
    first = grouped_matmul(chip, copies, experts, features, intermediate * (2.0 if gated else 1.0), skew=skew)
    second = grouped_matmul(chip, copies, experts, intermediate, features, skew=skew)
    return first + second + stream(chip, (copies * (2.0 * features + 3.0 * intermediate) + tokens * features) * 2.0)


def attention_prefill(
    chip: Chip,
    queries: Array,
    context: Array,
    heads: Array,
    key_dim: Array,
    value_dim: Array,
    *,
    kv_heads: Array,
    sequences: Array = 1.0,
    causal: bool = True,
    window: Array = np.inf,
) -> Array:
    """Return the forward seconds of attention of ``queries``, the last so many of ``context``, in each sequence."""
    if chip.processor is not None:
        return processor.processor_attention_time(
            queries, context, heads, key_dim, value_dim, key_heads=kv_heads, rate=chip.processor.attention_rate,
            memory_rate=chip.bandwidth * chip.memory_share, element_bytes=BYTES[chip.precision],
            launch=chip.processor.attention_launch, sequences=sequences, causal=causal, window=window,
        )  # fmt: skip
    return compute.attention_time(
        queries, context, heads, key_dim, value_dim, key_heads=kv_heads, sequences=sequences,
        peak=chip.peak_attention, achievable=chip.achievable, bandwidth=chip.bandwidth,
        memory_share=chip.memory_share, activation_bytes=ACTIVATION_BYTES, launch=chip.launch, causal=causal,
        window=window, share=1.0 if chip.emulated else compute.ATTENTION_SHARE,
    )  # fmt: skip


def attention_decode(
    chip: Chip,
    sequences: Array,
    context: Array,
    heads: Array,
    key_dim: Array,
    value_dim: Array,
    *,
    kv_heads: Array,
    queries: Array = 1.0,
    window: Array = np.inf,
    latent: Array = 0.0,
    cache_bytes: Array = ACTIVATION_BYTES,
) -> Array:
    """Return the seconds of attention of ``queries`` new tokens in each of ``sequences`` over a cache of ``context``.

    ``latent`` elements per token are cached instead of keys and values where it is not zero (MLA); ``cache_bytes`` per
    cached element.
    """
    if chip.processor is not None and not np.any(np.greater(latent, 0)):
        return processor.processor_attention_time(
            queries, context, heads, key_dim, value_dim, key_heads=kv_heads, rate=chip.processor.attention_rate,
            memory_rate=chip.processor.cold_rate, element_bytes=cache_bytes, launch=chip.processor.attention_launch,
            sequences=sequences, causal=False, window=window,
        )  # fmt: skip
    seen = np.minimum(context, window)
    wide = np.where(np.greater(latent, 0), latent, np.add(key_dim, value_dim) * kv_heads)
    moved = 1.0 * sequences * seen * wide * cache_bytes
    key, value = (np.where(np.greater(latent, 0), latent, one) for one in (key_dim, value_dim))
    work = 2.0 * sequences * queries * seen * heads * (key + value)
    busy = np.maximum(
        work / (chip.peak_attention * chip.achievable * compute.ATTENTION_SHARE),
        moved / (chip.bandwidth * chip.memory_share),
    )
    return plain(busy + chip.launch)


def scan(chip: Chip, tokens: Array, heads: Array, key_dim: Array, value_dim: Array, *, sequences: Array = 1.0) -> Array:
    """Return the forward seconds of linear attention or a state-space layer over ``tokens`` of ``sequences`` in all."""
    del sequences
    return compute.scan_time(
        tokens, heads, key_dim, value_dim, peak=chip.peak_attention, achievable=chip.achievable,
        bandwidth=chip.bandwidth, memory_share=chip.memory_share, activation_bytes=ACTIVATION_BYTES, launch=chip.launch,
    )  # fmt: skip


def scan_step(
    chip: Chip, sequences: Array, heads: Array, key_dim: Array, value_dim: Array, *, state_bytes: Array = 4.0
) -> Array:
    """Return the seconds of one new token in each of ``sequences`` of linear attention or a state-space layer.

    The state of every sequence and head is read and written, ``state_bytes`` per element.
    """
    return stream(chip, 2.0 * sequences * heads * key_dim * value_dim * state_bytes)


def sample(chip: Chip, sequences: Array, vocabulary: Array) -> Array:
    """Return the seconds to turn logits of ``sequences`` into tokens: softmax, then a choice, over 32-bit numbers."""
    return stream(chip, 4.0 * 4.0 * np.multiply(sequences, vocabulary))


def embed(chip: Chip, tokens: Array, features: Array) -> Array:
    """Return the seconds to look up ``tokens`` in the embedding table."""
    return stream(chip, 2.0 * ACTIVATION_BYTES * np.multiply(tokens, features))


def stream(chip: Chip, bytes_moved: Array) -> Array:
    """Return the seconds of a kernel that only streams memory: norm, activation function, residual, look-up."""
    if chip.emulated:
        return 0.0 * np.asarray(bytes_moved)
    return compute.elementwise_time(
        bytes_moved, bandwidth=chip.bandwidth, memory_share=chip.memory_share, launch=chip.launch
    )
