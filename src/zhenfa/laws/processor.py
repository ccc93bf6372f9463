"""Kernels on a host's processor: no tiles or waves to fill, but caches, so that cold operands cost more than warm."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, Flag, plain
from zhenfa.laws.compute import FLASH, ROOFLINE, attention_pairs

UNPACKED: Final = 0.5
"""Traffic of weights for a single row over that for several, for which they are first copied into blocks."""

BLOCK: Final = 64.0
"""Queries that torch's attention on a processor works on at a time: causal attention sees half of them in vain."""


def processor_matmul_time(
    rows: Array,
    inputs: Array,
    outputs: Array,
    *,
    rate: Array,
    warm_rate: Array,
    cold_rate: Array,
    element_bytes: Array,
    launch: Array,
    groups: Array = 1.0,
) -> Array:
    """Return the seconds of ``groups`` equal matmuls on a processor, one after the other.

    Arguments: ``rows``, ``inputs``, ``outputs`` of each; ``rate`` FLOP/s that large ones reach; ``warm_rate`` B/s of
    operands that have just been used, ``cold_rate`` B/s of those that come from memory; ``element_bytes``; ``launch``
    seconds; any shapes that broadcast.
    Returns: seconds, broadcast shape: arithmetic, warm input and output, cold weights and launch, added.
    Counts the packing of operands before the arithmetic, which is why the times add, and which a single row does
    without; omits edges of blocks. Agrees with the arithmetic alone for many rows and with the reading of the weights
    for few.

    >>> processor_matmul_time(2048, 512, 512, rate=70e9, warm_rate=25e9, cold_rate=8e9, element_bytes=4, launch=2e-6)
    0.0158...

    Source: williams2009, attainable performance without overlap.
    """
    cite.use(ROOFLINE)
    arithmetic = 2.0 * rows * inputs * outputs / rate
    warm = 1.0 * rows * np.add(inputs, outputs) * element_bytes / warm_rate
    cold = 1.0 * inputs * outputs * element_bytes / cold_rate
    read = np.where(np.less_equal(rows, 1), UNPACKED, 1.0)
    return plain(groups * (arithmetic + warm + cold * read) + launch)


def processor_attention_time(
    queries: Array,
    context: Array,
    heads: Array,
    key_dim: Array,
    value_dim: Array,
    *,
    key_heads: Array,
    rate: Array,
    memory_rate: Array,
    element_bytes: Array,
    launch: Array,
    sequences: Array = 1.0,
    causal: Flag = True,
    window: Array = np.inf,
) -> Array:
    """Return the forward seconds of attention on a processor, of a prompt or of single queries over a cache.

    Arguments: ``queries``, the last so many of ``context`` positions; ``heads`` of queries, ``key_heads`` of keys and
    values; ``key_dim``, ``value_dim`` elements per head; ``rate`` FLOP/s that its matmuls and its exponentials reach
    together; ``memory_rate`` B/s of queries, keys and values; ``element_bytes``; ``launch`` seconds; ``window``
    positions; any shapes that broadcast.
    Returns: seconds, broadcast shape: arithmetic or memory traffic, whichever is longer, and launch.
    Counts pairs that the mask leaves and half a block of 64 queries beyond the diagonal; omits blocks that grow with
    long sequences. The backward pass does 2.5 times the work (dao2023).

    >>> processor_attention_time(256, 256, 8, 64, 64, key_heads=8, rate=34e9, memory_rate=25e9, element_bytes=4,
    ...                          launch=0) * 1e3  # ms
    2.474...

    Source: dao2023, section 3.1; williams2009, attainable performance.
    """
    cite.use(FLASH, ROOFLINE)
    width = np.add(key_dim, value_dim)
    beyond = np.where(causal, np.minimum(BLOCK, queries) / 2.0, 0.0)
    pairs = attention_pairs(queries, context, causal=causal, window=window) + np.multiply(queries, beyond)
    seen = np.minimum(context, np.add(queries, window))
    moved = sequences * width * (np.multiply(queries, heads) + 1.0 * seen * key_heads) * element_bytes
    busy = np.maximum(2.0 * sequences * pairs * heads * width / rate, moved / memory_rate)
    return plain(busy + launch)
