"""Seconds of kernels that walk or stream: scans, norms, scaling, look-ups."""

from __future__ import annotations

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain
from zhenfa.laws.compute import LINEAR, ROOFLINE


def scan_time(
    tokens: Array,
    sequences: Array,
    work: Array,
    moved: Array,
    *,
    peak: Array,
    bandwidth: Array,
    share: Array,
    memory_share: Array,
    fixed: Array,
    walk: Array = 0.0,
    row: Array = 0.0,
    sequence: Array = 0.0,
) -> Array:
    """Return the forward seconds of one scan kernel: linear attention, a state-space layer, a short convolution.

    Arguments: ``tokens`` of all ``sequences``; ``work`` FLOP and ``moved`` bytes of the kernel; ``peak`` FLOP/s;
    ``bandwidth`` B/s; ``share`` and ``memory_share`` reached of them; ``fixed`` seconds; ``walk`` seconds per token of
    one sequence, which no core can work on in parallel; ``row`` seconds per token; ``sequence`` seconds per sequence;
    any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts arithmetic, traffic and the walk along one sequence; omits the order of chunks.

    >>> scan_time(8192, 4, 1e10, 4e8, peak=1e15, bandwidth=3e12, share=0.2, memory_share=0.8, fixed=1e-5) * 1e6  # us
    184.0...

    Source: katharopoulos2020, equations 18 to 20; williams2009, attainable performance.
    """
    cite.use(LINEAR, ROOFLINE)
    arithmetic = np.true_divide(work, np.multiply(peak, share))
    memory = np.true_divide(moved, np.multiply(bandwidth, memory_share))
    length = np.true_divide(tokens, np.maximum(sequences, 1e-9))
    busy = np.sqrt(arithmetic * arithmetic + memory * memory)
    return plain(busy + fixed + walk * length + np.multiply(row, tokens) + np.multiply(sequence, sequences))


def stream_time(
    bytes_moved: Array, *, bandwidth: Array, memory_share: Array, fixed: Array, row: Array = 0.0, rows: Array = 0.0
) -> Array:
    """Return the seconds of a kernel that only streams memory: norm, activation function, residual, scaling, look-up.

    Arguments: ``bytes_moved`` read and written; ``bandwidth`` B/s; ``memory_share`` of it reached; ``fixed`` seconds;
    ``row`` seconds for each of ``rows``; any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts traffic, one launch and set-up per row; omits arithmetic, which such kernels hide.

    >>> stream_time(2.7e9, bandwidth=3e12, memory_share=0.9, fixed=0)
    0.001

    Source: williams2009, attainable performance at low intensity.
    """
    cite.use(ROOFLINE)
    return plain(
        np.true_divide(bytes_moved, np.multiply(bandwidth, memory_share)) + fixed + 1.0 * np.multiply(row, rows)
    )
