"""Seconds of one kernel on one chip: the door between the step estimates and the laws.

Everything that runs on a card goes through here, in training and in serving, so that a law has one place of use. All
sizes are of one card's part, floats or arrays that broadcast. An emulated card is paced by its FLOPs alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zhenfa.estimate import chip as chips
from zhenfa.estimate.chip import Chip
from zhenfa.laws import attention, compute, experts, processor
from zhenfa.laws import matmul as products
from zhenfa.laws import stream as streams
from zhenfa.laws.arrays import Array, plain
from zhenfa.spec.machine import BYTES

ACTIVATION_BYTES = chips.ACTIVATION_BYTES
"""Bytes per element of what flows between kernels in 16-bit formats."""


def matmul(chip: Chip, rows: Array, inputs: Array, outputs: Array, *, groups: Array = 1.0) -> Array:
    """Return the seconds of ``groups`` equal matmuls ``rows x inputs`` by ``inputs x outputs`` in one kernel."""
    if chip.emulated:  # it has no tiles
        return compute.matmul_flops(rows, inputs, outputs) * groups / (chip.peak * chip.achievable)
    if chip.processor is not None:
        return processor.processor_matmul_time(
            rows, inputs, outputs, rate=chip.peak * chip.achievable, warm_rate=chip.bandwidth * chip.memory_share,
            cold_rate=chip.processor.weight_rate, element_bytes=BYTES[chip.precision], launch=chip.launch,
            groups=groups,
        )  # fmt: skip
    return products.matmul_time(
        rows, inputs, outputs, peak=chip.peak, bandwidth=chip.bandwidth, cores=chip.cores,
        weight_bytes=chip.weight_bytes, input_bytes=chip.input_bytes, groups=groups, tile=chip.tile,
        **chip.kernels["matmul"],
    )  # fmt: skip


def grouped_matmul(
    chip: Chip, copies: Array, held: Array, inputs: Array, outputs: Array, *, skew: Array = 0.0
) -> Array:
    """Return the seconds of one grouped matmul: ``copies`` routed rows over the ``held`` experts of the card.

    ``skew``: exponent of the power law that the experts' popularity follows; 0 is balanced.
    """
    if chip.emulated:
        return compute.matmul_flops(copies, inputs, outputs) / (chip.peak * chip.achievable)
    if chip.processor is not None:
        return matmul(chip, copies / held, inputs, outputs, groups=held)
    kernel = chip.kernels["experts"]
    touched = _touched(copies, held, skew)
    arithmetic = experts.grouped_time(
        copies, touched, inputs, outputs, peak=chip.peak, cores=chip.cores, share=kernel["share"], fill=kernel["fill"],
        pad=kernel["pad"], wave=kernel["wave"],
    )  # fmt: skip
    moved = touched * (1.0 * inputs * outputs * chip.weight_bytes)
    moved = moved + copies * (np.multiply(inputs, chip.input_bytes) + np.multiply(outputs, ACTIVATION_BYTES))
    memory = moved / (chip.bandwidth * kernel["memory_share"])
    return plain(np.sqrt(arithmetic * arithmetic + memory * memory) + chip.launch)


def _touched(copies: Array, held: Array, skew: Array) -> Any:
    """Return how many experts get a token: all that chance reaches, fewer where popularity is uneven."""
    chance = held * -np.expm1(-np.true_divide(copies, held))
    if not np.any(skew):
        return chance
    uneven = experts.touched_experts(copies, held, copies, 1.0, held, skew)
    return np.where(np.greater(skew, 0), np.minimum(uneven, chance), chance)


def expert_layer(
    chip: Chip,
    tokens: Array,
    copies: Array,
    held: Array,
    features: Array,
    intermediate: Array,
    *,
    gated: bool = True,
    skew: Array = 0.0,
) -> Array:
    """Return the seconds of a fused expert layer on one card, routing and dispatch between cards aside.

    ``tokens`` that arrive, ``copies`` of them routed to the card's ``held`` experts: permutation, the matmul into the
    experts' ``intermediate`` features (two of them where ``gated``), activation function, the matmul back, and the
    weighted sum.
    """
    if chip.emulated:
        work = compute.matmul_flops(copies, features, intermediate) * (3.0 if gated else 2.0)
        return work / (chip.peak * chip.achievable)
    if chip.processor is not None:
        wide = intermediate * (2.0 if gated else 1.0)
        into, back = (grouped_matmul(chip, copies, held, *one) for one in ((features, wide), (intermediate, features)))
        return into + back + stream(chip, ACTIVATION_BYTES * copies * (2.0 * features + 3.0 * intermediate))
    return experts.experts_time(
        tokens, copies, copies, _touched(copies, held, skew), features, intermediate, gated=1.0 if gated else 0.0,
        peak=chip.peak, bandwidth=chip.bandwidth, cores=chip.cores, weight_bytes=chip.weight_bytes,
        input_bytes=chip.input_bytes, **chip.kernels["experts"],
    )  # fmt: skip


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
    cache_bytes: Array = ACTIVATION_BYTES,
) -> Array:
    """Return the forward seconds of attention of ``queries``, the last so many of ``context``, in each sequence."""
    if chip.processor is not None:
        return processor.processor_attention_time(
            queries, context, heads, key_dim, value_dim, key_heads=kv_heads, rate=chip.processor.attention_rate,
            memory_rate=chip.bandwidth * chip.memory_share, element_bytes=BYTES[chip.precision],
            launch=chip.processor.attention_launch, sequences=sequences, causal=causal, window=window,
        )  # fmt: skip
    if chip.emulated:
        work = compute.attention_flops(queries, context, heads, key_dim, value_dim, causal=causal, window=window)
        return sequences * work / (chip.peak_attention * chip.achievable)
    latent = not np.array_equal(key_dim, value_dim)
    return attention.prefill_time(
        queries, context, heads, key_dim, value_dim, key_heads=kv_heads, peak=chip.peak_attention,
        bandwidth=chip.bandwidth, cores=chip.cores, cache_bytes=cache_bytes, sequences=sequences, causal=causal,
        window=window, **chip.kernels["latent_prefill" if latent else "prefill"],
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
    one = np.greater(latent, 0)
    if chip.emulated:
        width = np.where(one, 2.0 * latent, np.add(key_dim, value_dim))
        work = 2.0 * sequences * queries * np.minimum(context, window) * heads * width
        return plain(work / (chip.peak_attention * chip.achievable))
    narrow = "decode8" if np.max(cache_bytes) < ACTIVATION_BYTES else "decode"
    kernel = chip.kernels["latent" if np.all(one) else narrow]
    return attention.decode_time(
        sequences, context, heads, np.where(one, latent, key_dim), np.where(one, latent, value_dim),
        key_heads=np.where(one, 1.0, kv_heads), cached=np.where(one, latent, np.add(key_dim, value_dim)),
        peak=chip.peak_attention, bandwidth=chip.bandwidth, queries=queries, cache_bytes=cache_bytes, window=window,
        **kernel,
    )  # fmt: skip


def scan(chip: Chip, tokens: Array, heads: Array, key_dim: Array, value_dim: Array, *, sequences: Array = 1.0) -> Array:
    """Return the forward seconds of linear attention or a state-space layer over ``tokens`` of ``sequences`` in all."""
    work = 2.0 * compute.scan_flops(tokens, heads, key_dim, value_dim)
    if chip.emulated:
        return plain(0.5 * np.asarray(work) / (chip.peak_attention * chip.achievable))
    state = 8.0 * sequences * heads * key_dim * value_dim
    moved = 2.0 * ACTIVATION_BYTES * tokens * heads * np.add(key_dim, value_dim) + state
    return streams.scan_time(
        tokens, sequences, work, moved, peak=chip.peak_attention, bandwidth=chip.bandwidth, **chip.kernels["scan"]
    )


def scan_step(
    chip: Chip, sequences: Array, heads: Array, key_dim: Array, value_dim: Array, *, state_bytes: Array = 4.0
) -> Array:
    """Return the seconds of one new token in each of ``sequences`` of linear attention or a state-space layer.

    The state of every sequence and head is read and written, ``state_bytes`` per element.
    """
    work = 2.0 * compute.scan_flops(sequences, heads, key_dim, value_dim)
    if chip.emulated:
        return plain(0.5 * np.asarray(work) / (chip.peak_attention * chip.achievable))
    moved = 2.0 * sequences * heads * key_dim * value_dim * state_bytes
    return streams.scan_time(
        sequences, sequences, work, moved, peak=chip.peak_attention, bandwidth=chip.bandwidth,
        **chip.kernels["scan_step"],
    )  # fmt: skip


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
    return streams.stream_time(bytes_moved, bandwidth=chip.bandwidth, memory_share=chip.memory_share, fixed=chip.launch)
