"""Seconds of attention kernels: prefill, decode over a cache, and a whole latent or sparse attention block."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, Flag, ceil_ratio, plain
from zhenfa.laws.compute import FLASH, ROOFLINE, attention_pairs

FLASH_DECODE: Final = cite.declare(
    "dao2023decoding", "T. Dao, D. Haziza, F. Massa, G. Sizov. Flash-Decoding for long-context inference. 2023."
)
LATENT: Final = cite.declare("deepseek2024", "DeepSeek-AI. DeepSeek-V2. arXiv:2405.04434, section 2.1.")

QUERIES: Final = 128
"""Query rows that one core works on at a time in prefill."""

ROWS: Final = 16
"""Query rows of one matrix instruction: decode pads a group of query heads to a multiple."""


def prefill_time(
    queries: Array,
    context: Array,
    heads: Array,
    key_dim: Array,
    value_dim: Array,
    *,
    key_heads: Array,
    peak: Array,
    bandwidth: Array,
    cores: Array,
    share: Array,
    memory_share: Array,
    fixed: Array,
    keys: Array,
    softmax: Array,
    wave: Array,
    packing: Array,
    row: Array = 0.0,
    cache_bytes: Array = 2.0,
    sequences: Array = 1.0,
    causal: Flag = True,
    window: Array = np.inf,
) -> Array:
    """Return the forward seconds of one flash-style attention kernel over ``sequences`` equal sequences.

    Arguments: ``queries``, the last so many of ``context`` positions; ``heads`` of queries, ``key_heads`` of keys and
    values; ``key_dim`` and ``value_dim`` elements per head; ``window`` positions; ``peak`` FLOP/s, ``bandwidth`` B/s,
    ``cores`` that take a block of 128 queries each; ``share`` of the peak and ``memory_share`` of the bandwidth
    reached; ``fixed`` seconds; ``keys`` that a block pays for beyond those it sees; ``softmax`` FLOP that the
    exponential of one pair is worth; ``wave`` as in :func:`~zhenfa.laws.matmul.waves`; ``packing`` 1 where the query
    heads of a group share blocks, 0 where not; ``row`` seconds per query position; ``cache_bytes`` per cached element;
    any shapes that broadcast.
    Returns: seconds, broadcast shape: arithmetic, memory and fixed time, added.
    Counts pairs that the mask leaves, blocks filled up to 128 queries, softmax, queries, keys, values and output moved
    once; omits the score matrix, which never leaves a core. The backward pass does 2.5 times the work (dao2023).

    >>> prefill_time(8192, 8192, 32, 128, 128, key_heads=8, peak=1e15, bandwidth=3e12, cores=128, share=0.7,
    ...              memory_share=0.9, fixed=0, keys=64, softmax=100, wave=0, packing=0) * 1e3  # ms
    1.028...

    Source: dao2023, section 3.1; williams2009, attainable performance.
    """
    cite.use(FLASH, ROOFLINE)
    width = np.add(key_dim, value_dim)
    some = np.maximum(queries, 1e-9)
    mean = np.true_divide(attention_pairs(queries, context, causal=causal, window=window), some)
    group = np.true_divide(heads, key_heads)
    apart = heads * ceil_ratio(queries, QUERIES)
    together = key_heads * ceil_ratio(queries * group, QUERIES)
    even = sequences * (apart + (together - apart) * packing) / cores
    busy = even + (np.ceil(even * (1 - 1e-12)) - even) * wave
    arithmetic = busy * cores * QUERIES * (mean + keys) * (2.0 * width + softmax) / np.multiply(peak, share)
    seen = np.minimum(context, np.add(queries, window))
    moved = sequences * width * (2.0 * np.multiply(queries, heads + 1.0 * key_heads) + seen * key_heads * cache_bytes)
    return plain(arithmetic + moved / np.multiply(bandwidth, memory_share) + fixed + row * sequences * queries)


def decode_time(
    sequences: Array,
    context: Array,
    heads: Array,
    key_dim: Array,
    value_dim: Array,
    *,
    key_heads: Array,
    cached: Array,
    peak: Array,
    bandwidth: Array,
    share: Array,
    memory_share: Array,
    fixed: Array,
    keys: Array,
    chunk: Array,
    walk: Array,
    sequence: Array,
    head: Array,
    pack: Array = np.inf,
    queries: Array = 1.0,
    cache_bytes: Array = 2.0,
    window: Array = np.inf,
) -> Array:
    """Return the seconds of attention of ``queries`` new tokens in each of ``sequences`` over a cache.

    Arguments: ``context`` positions cached in each sequence; ``heads``, ``key_heads``, ``key_dim``, ``value_dim``,
    ``window`` as in :func:`prefill_time`; ``cached`` elements per position and key head (keys and values, or one latent
    for both) of ``cache_bytes``; ``peak``, ``bandwidth``, ``share``, ``memory_share``, ``fixed``, ``keys`` as there;
    ``chunk`` positions that one core walks before the work is split, at ``walk`` seconds per position of 128 elements;
    ``sequence`` seconds per sequence and key head; ``head`` of that again per further query head; ``pack``: the largest
    group of query heads that shares one read of the cache; any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts one read of the cache per group, matrix instructions filled up to 16 query rows, the walk before a split,
    set-up per sequence; omits paging.

    >>> decode_time(64, 8192, 64, 128, 128, key_heads=8, cached=256, peak=1e15, bandwidth=3e12, share=0.3,
    ...             memory_share=0.9, fixed=5e-6, keys=32, chunk=512, walk=0, sequence=1e-8, head=0) * 1e3  # ms
    0.81...

    Source: dao2023decoding; williams2009, attainable performance at low intensity; deepseek2024, section 2.1.
    """
    cite.use(FLASH_DECODE, ROOFLINE, LATENT)
    length = np.minimum(context, window)
    seen = np.add(length, keys)
    group = np.true_divide(heads, key_heads)
    width = np.add(key_dim, value_dim)
    reads = np.where(np.greater(group, pack), heads, key_heads)
    moved = sequences * (1.0 * reads * seen * cached * cache_bytes + 2.0 * np.multiply(queries, heads) * width)
    rows = ceil_ratio(group * queries, ROWS) * ROWS
    work = 2.0 * sequences * key_heads * rows * seen * width
    memory = moved / np.multiply(bandwidth, memory_share) + walk * np.minimum(length, chunk) * width / 128.0
    arithmetic = work / np.multiply(peak, share)
    each = sequence * np.multiply(sequences, key_heads) * (1.0 + (group - 1.0) * head)
    return plain(np.sqrt(arithmetic * arithmetic + memory * memory) + fixed + each)


def block_time(
    tokens: Array,
    sequences: Array,
    weights: Array,
    pair_work: Array,
    index_work: Array,
    index_pairs: Array,
    moved: Array,
    *,
    peak: Array,
    peak_attention: Array,
    bandwidth: Array,
    weight_bytes: Array,
    share: Array,
    memory_share: Array,
    fixed: Array,
    attention: Array,
    index: Array,
    select: Array,
    row: Array,
    sequence: Array,
) -> Array:
    """Return the seconds of a whole attention block: projections, index, selection, attention, output.

    Arguments: ``tokens`` in ``sequences``; ``weights`` elements of all projections, ``weight_bytes`` each;
    ``pair_work`` FLOP of attention and ``index_work`` of scoring all earlier positions, of which ``index_pairs`` are
    ranked; ``moved`` bytes of cache and activations; ``peak`` FLOP/s of the projections and ``peak_attention`` of the
    rest; ``share`` of the one, ``attention`` and ``index`` of the other that is reached; ``memory_share`` of
    ``bandwidth``; ``fixed`` seconds; ``select``: 4-byte passes over the scores; ``row`` seconds per token and
    ``sequence`` seconds per sequence of all the small kernels; any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts the block as one roofline with its parts added; omits the shape of each matmul.

    >>> block_time(128, 128, 1.87e8, 3e10, 0, 0, 1e8, peak=2e15, peak_attention=1e15, bandwidth=3e12, weight_bytes=1,
    ...            share=0.5, memory_share=0.8, fixed=5e-5, attention=0.5, index=0.5, select=1, row=0, sequence=0) * 1e6
    211.0...

    Source: deepseek2024, section 2.1; williams2009, attainable performance.
    """
    cite.use(LATENT, ROOFLINE)
    projections = 2.0 * np.multiply(weights, tokens) / np.multiply(peak, share)
    rest = pair_work / np.multiply(peak_attention, attention) + index_work / np.multiply(peak_attention, index)
    memory = (np.multiply(weights, weight_bytes) + moved) / np.multiply(bandwidth, memory_share)
    ranking = 4.0 * np.multiply(select, index_pairs) / bandwidth
    busy = np.sqrt((projections + rest) ** 2 + memory**2)
    return plain(busy + fixed + np.multiply(row, tokens) + np.multiply(sequence, sequences) + ranking)
