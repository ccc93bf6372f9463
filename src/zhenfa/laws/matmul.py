"""Seconds of one matmul kernel: whole tiles on whole waves of cores, one read of the weights, a fixed time."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, ceil_ratio, plain
from zhenfa.laws.compute import ROOFLINE, TILES

TILE: Final = 128
"""Output rows and columns of one tile: the size that vendor libraries choose most often."""


def waves(tiles: Array, cores: Array, wave: Array) -> Array:
    """Return how many rounds of one tile per core a kernel takes.

    Arguments: ``tiles`` of the kernel; ``cores`` that take one tile each; ``wave``, share of the cores left idle in the
    last round that stays idle: 1 for whole rounds, 0 where the work is split further to fill them; any shapes that
    broadcast.
    Returns: rounds, broadcast shape.
    Counts wave quantisation; omits tiles of unequal length.

    >>> waves(150, 100, 1.0), waves(150, 100, 0.0)
    (2.0, 1.5)

    Source: nvidia-matmul-guide, wave quantization.
    """
    cite.use(TILES)
    even = np.true_divide(tiles, cores)
    return plain(even + (ceil_ratio(tiles, cores) - even) * wave)


def matmul_time(
    rows: Array,
    inputs: Array,
    outputs: Array,
    *,
    peak: Array,
    bandwidth: Array,
    cores: Array,
    weight_bytes: Array,
    input_bytes: Array,
    share: Array,
    memory_share: Array,
    fixed: Array,
    fill: Array,
    wave: Array,
    row: Array = 0.0,
    output_bytes: Array = 2.0,
    groups: Array = 1.0,
    tile: tuple[float, float] = (TILE, TILE),
) -> Array:
    """Return the seconds of ``groups`` equal matmuls executed as one kernel.

    Arguments: ``rows`` (may be a mean, not whole), ``inputs``, ``outputs`` of each matmul; ``peak`` FLOP/s;
    ``bandwidth`` B/s; ``cores`` that take a tile each; ``weight_bytes``, ``input_bytes``, ``output_bytes`` moved per
    element; ``share`` of the peak and ``memory_share`` of the bandwidth that the kernel reaches; ``fixed`` seconds;
    ``fill`` inner elements that a tile spends on filling and draining; ``wave`` as in :func:`waves`; ``row`` seconds
    per row (scaling of the inputs to 8 or 4 bits); ``tile`` rows and columns; any shapes that broadcast.
    Returns: seconds, broadcast shape: the root of the sum of squares of arithmetic and memory time, and the fixed time.
    Counts tile and wave quantisation, tiles of half the rows where they suffice, one read of weights and inputs, one
    write of outputs; omits re-reads of tiles, caches, and still smaller tiles. Agrees
    with the roofline where the shape is large and one side of it dominates.

    >>> matmul_time(8192, 8192, 8192, peak=1e15, bandwidth=3e12, cores=128, weight_bytes=2, input_bytes=2, share=0.8,
    ...             memory_share=0.9, fixed=0, fill=0, wave=0) * 1e3  # ms
    1.382456...

    Source: williams2009, attainable performance; nvidia-matmul-guide, tile and wave quantization.
    """
    cite.use(ROOFLINE, TILES)
    tiles = ceil_ratio(rows, tile[0]) * ceil_ratio(outputs, tile[1]) * groups
    even = tiles / cores
    busy = even + (np.ceil(even * (1 - 1e-12)) - even) * wave
    height = np.where(np.less_equal(rows, tile[0] / 2), tile[0] / 2, tile[0])
    arithmetic = busy * cores * (2.0 * tile[1]) * height * np.add(inputs, fill) / np.multiply(peak, share)
    moved = (
        1.0 * inputs * outputs * weight_bytes + rows * (1.0 * inputs * input_bytes + outputs * output_bytes)
    ) * groups
    memory = moved / np.multiply(bandwidth, memory_share)
    return plain(np.sqrt(arithmetic * arithmetic + memory * memory) + fixed + row * rows * groups)
