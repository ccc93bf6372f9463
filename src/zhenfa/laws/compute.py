"""Arithmetic on one card: work in FLOP, time as the larger of arithmetic and memory traffic."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, Flag, ceil_ratio, plain

ROOFLINE: Final = cite.declare(
    "williams2009",
    "S. Williams, A. Waterman, D. Patterson. Roofline: an insightful visual performance model. CACM 2009.",
)
TILES: Final = cite.declare(
    "nvidia-matmul-guide", "NVIDIA. Matrix Multiplication Background User's Guide: tile and wave quantization."
)
FLASH: Final = cite.declare(
    "dao2023", "T. Dao. FlashAttention-2: faster attention with better parallelism. arXiv:2307.08691."
)
LINEAR: Final = cite.declare(
    "katharopoulos2020", "A. Katharopoulos et al. Transformers are RNNs. ICML 2020, arXiv:2006.16236."
)
ADAMW: Final = cite.declare(
    "loshchilov2019", "I. Loshchilov, F. Hutter. Decoupled weight decay regularization. ICLR 2019, arXiv:1711.05101."
)
PALM: Final = cite.declare("chowdhery2022", "A. Chowdhery et al. PaLM. arXiv:2204.02311, appendix B.")

TILE: Final = (128, 128)
"""Output rows and columns of one thread block's tile. Assumed: the size that vendor libraries choose most often."""

INPUTS_HALF: Final = 128.0
"""Inner dimension at which a tile spends half its time on filling and draining. Assumed: two main-loop slices of 64."""

ATTENTION_SHARE: Final = 0.7
"""Attention kernel's speed over the best matmul's. Assumed: dao2023 reports 50 to 73 % of an A100's peak, on which the
best matmul reaches 87 %."""

SCAN_SHARE: Final = 0.4
"""Chunked scan's speed over the best matmul's. Assumed: its matmuls are as small as one chunk, and no survey exists."""


def matmul_flops(rows: Array, inputs: Array, outputs: Array) -> Array:
    """Return the work of multiplying ``rows x inputs`` by ``inputs x outputs``, in FLOP.

    Arguments: the three dimensions; any shapes that broadcast.
    Returns: FLOP, broadcast shape.
    Counts a multiplication and an addition as two; omits bias and anything fused behind. Agrees with the usual 2mnk.

    >>> matmul_flops(2, 3, 4)
    48.0

    Source: nvidia-matmul-guide, arithmetic of a matrix multiplication.
    """
    cite.use(TILES)
    return plain(2.0 * rows * inputs * outputs)


def shape_share(
    rows: Array, inputs: Array, outputs: Array, *, tile: tuple[int, int] = TILE, inputs_half: Array = INPUTS_HALF
) -> Array:
    """Return the share of the achievable speed that a matmul of this shape leaves.

    Arguments: the three dimensions; ``tile`` output rows and columns of a tile; ``inputs_half`` in elements.
    Returns: a ratio in (0, 1], broadcast shape: ``rows/ceil(rows to tile) * outputs/ceil(outputs to tile) *
    inputs/(inputs + inputs_half)``.
    Counts padding to whole tiles and the fill of a tile's main loop; omits the last wave of tiles and the smaller tiles
    that libraries choose for thin matrices. A prior, to be replaced by a fit to measurements.

    >>> shape_share(192, 384, 128)
    0.5625

    Source: nvidia-matmul-guide, tile quantization; the ramp is assumed.
    """
    cite.use(TILES)
    return plain(_shape_share(rows, inputs, outputs, tile, inputs_half))


def _shape_share(rows: Array, inputs: Array, outputs: Array, tile: tuple[int, int], inputs_half: Array) -> Any:
    padded = ceil_ratio(rows, tile[0]) * tile[0] * ceil_ratio(outputs, tile[1]) * tile[1]
    filled = np.true_divide(inputs, np.add(inputs, inputs_half))
    return np.divide(np.multiply(rows, outputs), padded, out=np.ones_like(padded * filled), where=padded > 0) * filled


def matmul_time(
    rows: Array,
    inputs: Array,
    outputs: Array,
    *,
    peak: Array,
    achievable: Array,
    bandwidth: Array,
    memory_share: Array,
    weight_bytes: Array,
    activation_bytes: Array,
    launch: Array,
    groups: Array = 1,
) -> Array:
    """Return the seconds of ``groups`` equal matmuls executed as one kernel.

    Arguments: ``rows`` (may be a mean, not whole), ``inputs``, ``outputs`` of each matmul; ``peak`` FLOP/s;
    ``achievable`` share of the peak that the best matmul reaches; ``bandwidth`` B/s; ``memory_share`` of it that a
    stream reaches; ``weight_bytes`` and ``activation_bytes`` per element; ``launch`` seconds; shapes that broadcast.
    Returns: seconds, broadcast shape: ``max(arithmetic, memory) + launch``.
    Counts one read of the weights, one read of the input and one write of the output; omits re-reads of tiles and
    caches. Agrees with the roofline where the shape is large and even.

    >>> matmul_time(8192, 8192, 8192, peak=1e15, achievable=0.8, bandwidth=3e12, memory_share=0.9,
    ...             weight_bytes=2, activation_bytes=2, launch=0) * 1e3  # ms
    1.395864...

    Source: williams2009, attainable performance; nvidia-matmul-guide, tile quantization.
    """
    cite.use(ROOFLINE, TILES)
    share = _shape_share(rows, inputs, outputs, TILE, INPUTS_HALF)
    work = 2.0 * groups * rows * inputs * outputs
    moved = groups * (1.0 * weight_bytes * inputs * outputs + 1.0 * activation_bytes * rows * np.add(inputs, outputs))
    busy = np.maximum(work / (peak * achievable * share), moved / (bandwidth * memory_share))
    return plain(busy + launch)


def attention_pairs(queries: Array, context: Array, *, causal: Flag = True, window: Array = np.inf) -> Array:
    """Return how many query-key pairs attention looks at in one sequence and head.

    Arguments: ``queries``, the last so many of ``context`` positions; ``window``, how many positions back a query
    looks, itself included; any shapes that broadcast.
    Returns: pairs, broadcast shape. Causal: exactly s(s + 1)/2 for s queries over s positions without a window.
    Counts whole pairs; omits the padding of kernels to blocks.

    >>> attention_pairs(4, 4)
    10.0
    >>> attention_pairs(4, 4, causal=False)
    16.0
    >>> attention_pairs(4, 4, window=2)
    7.0

    Source: counted.
    """
    return plain(_pairs(queries, context, causal, window))


def _pairs(queries: Array, context: Array, causal: Flag, window: Array) -> Any:
    half = _triangle(context, window) - _triangle(np.subtract(context, queries), window)
    return np.where(causal, half, 1.0 * queries * np.minimum(context, window))


def _triangle(length: Array, window: Array) -> Any:
    """Sum min(window, j) for j from 1 to length."""
    short = 1.0 * np.minimum(length, window)
    return short * (short + 1) / 2 + (length - short) * short


def attention_flops(
    queries: Array,
    context: Array,
    heads: Array,
    key_dim: Array,
    value_dim: Array,
    *,
    causal: Flag = True,
    window: Array = np.inf,
) -> Array:
    """Return the forward work of attention over one sequence, in FLOP.

    Arguments: ``queries``, the last so many of ``context`` positions; ``heads`` query heads; ``key_dim`` and
    ``value_dim`` elements per head; ``window`` positions; any shapes that broadcast.
    Returns: FLOP, broadcast shape: ``2 * pairs * heads * (key_dim + value_dim)``.
    Counts both matmuls on the pairs that the mask leaves; omits softmax and the projections. Agrees with 4 s^2 h
    (not causal) and, for long s, with half of that (causal).

    >>> attention_flops(1024, 1024, 8, 64, 64, causal=False) == 4 * 1024**2 * 8 * 64
    True

    Source: dao2023, section 4.1 (FLOPs of forward, causal halved).
    """
    cite.use(FLASH)
    pairs = _pairs(queries, context, causal, window)
    return plain(2.0 * pairs * heads * np.add(key_dim, value_dim))


def attention_time(
    queries: Array,
    context: Array,
    heads: Array,
    key_dim: Array,
    value_dim: Array,
    *,
    peak: Array,
    achievable: Array,
    bandwidth: Array,
    memory_share: Array,
    activation_bytes: Array,
    launch: Array,
    key_heads: Array | None = None,
    sequences: Array = 1,
    causal: Flag = True,
    window: Array = np.inf,
    share: Array = ATTENTION_SHARE,
) -> Array:
    """Return the forward seconds of one flash-style attention kernel over ``sequences`` equal sequences.

    Arguments: those of :func:`attention_flops` and :func:`matmul_time`; ``key_heads`` key-value heads (default: as many
    as query heads); ``share`` of the achievable matmul speed that the kernel reaches; any shapes that broadcast.
    Returns: seconds, broadcast shape: ``max(arithmetic, memory) + launch``.
    Counts reads of queries, keys and values and the write of the output, each once; omits the score matrix, which a
    flash kernel never writes, and softmax. The backward pass does 2.5 times the work (dao2023).

    >>> attention_time(8192, 8192, 32, 128, 128, peak=1e15, achievable=0.8, bandwidth=3e12, memory_share=0.9,
    ...                activation_bytes=2, launch=0) * 1e3  # ms
    0.981826...

    Source: dao2023, section 3.1; williams2009, attainable performance.
    """
    cite.use(FLASH, ROOFLINE)
    read_heads = heads if key_heads is None else key_heads
    width = np.add(key_dim, value_dim)
    work = 2.0 * sequences * _pairs(queries, context, causal, window) * heads * width
    elements = (
        1.0
        * sequences
        * width
        * (np.multiply(queries, heads) + np.minimum(context, np.add(queries, window)) * read_heads)
    )
    busy = np.maximum(work / (peak * achievable * share), elements * activation_bytes / (bandwidth * memory_share))
    return plain(busy + launch)


def scan_flops(tokens: Array, heads: Array, key_dim: Array, value_dim: Array) -> Array:
    """Return the forward work of linear attention or a state-space layer, in FLOP.

    Arguments: ``tokens``; ``heads``; ``key_dim`` and ``value_dim`` elements of one head's state; any shapes that
    broadcast.
    Returns: FLOP, broadcast shape: ``4 * tokens * heads * key_dim * value_dim``.
    Counts, per token, one rank-one update of the state and one product of the state with the query, two FLOP per
    element each; omits gates, normalisation, the delta rule's extra product and the re-computation inside chunks.

    >>> scan_flops(10, 2, 64, 128)
    655360.0

    Source: katharopoulos2020, equations 18 to 20.
    """
    cite.use(LINEAR)
    return plain(4.0 * tokens * heads * key_dim * value_dim)


def scan_time(
    tokens: Array,
    heads: Array,
    key_dim: Array,
    value_dim: Array,
    *,
    peak: Array,
    achievable: Array,
    bandwidth: Array,
    memory_share: Array,
    activation_bytes: Array,
    launch: Array,
    share: Array = SCAN_SHARE,
) -> Array:
    """Return the forward seconds of one chunked scan kernel.

    Arguments: those of :func:`scan_flops` and :func:`matmul_time`; ``share`` of the achievable matmul speed that the
    kernel reaches; any shapes that broadcast.
    Returns: seconds, broadcast shape: ``max(arithmetic, memory) + launch``.
    Counts reads of queries, keys and values and the write of the output; omits states written between chunks.

    >>> scan_time(8192, 32, 128, 128, peak=1e15, achievable=0.8, bandwidth=3e12, memory_share=0.9,
    ...           activation_bytes=2, launch=0) * 1e6  # us
    99.420...

    Source: katharopoulos2020, equations 18 to 20; williams2009, attainable performance.
    """
    cite.use(LINEAR, ROOFLINE)
    work = 4.0 * tokens * heads * key_dim * value_dim
    moved = 2.0 * tokens * heads * np.add(key_dim, value_dim) * activation_bytes
    busy = np.maximum(work / (peak * achievable * share), moved / (bandwidth * memory_share))
    return plain(busy + launch)


def elementwise_time(bytes_moved: Array, *, bandwidth: Array, memory_share: Array, launch: Array) -> Array:
    """Return the seconds of a kernel that only streams memory: normalisation, activation function, residual.

    Arguments: ``bytes_moved`` read and written; ``bandwidth`` B/s; ``memory_share`` of it reached; ``launch`` seconds;
    any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts traffic and one launch; omits arithmetic, which such kernels hide.

    >>> elementwise_time(2.7e9, bandwidth=3e12, memory_share=0.9, launch=0)
    0.001

    Source: williams2009, attainable performance at low intensity.
    """
    cite.use(ROOFLINE)
    return plain(np.true_divide(bytes_moved, np.multiply(bandwidth, memory_share)) + launch)


def optimizer_time(parameters: Array, *, bytes_per_parameter: Array, bandwidth: Array, memory_share: Array) -> Array:
    """Return the seconds of one AdamW update of the parameters that a card owns.

    Arguments: ``parameters`` owned; ``bytes_per_parameter`` read and written in all (mixed precision with 32-bit
    gradients: 12 read, 12 written, 4 of gradient, 2 of weight written: 30); ``bandwidth`` B/s; ``memory_share`` of it
    reached; any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts one fused pass over the state; omits gradient clipping and launches.

    >>> optimizer_time(9e9, bytes_per_parameter=30, bandwidth=3e12, memory_share=0.9)
    0.1

    Source: loshchilov2019, algorithm 2.
    """
    cite.use(ADAMW)
    traffic = 1.0 * parameters * bytes_per_parameter
    return plain(traffic / np.multiply(bandwidth, memory_share))


def training_flops_per_token(
    active_parameters_matmul: Array,
    layers: Array,
    heads: Array,
    head_dim: Array,
    sequence: Array,
    *,
    causal: Flag = False,
) -> Array:
    """Return the model FLOPs that training one token takes: the work in MFU, in FLOP per token.

    Arguments: ``active_parameters_matmul`` weights that multiply each token (head in, embedding table out); ``layers``
    with attention; query ``heads``; ``head_dim``; ``sequence`` tokens; ``causal`` counts only unmasked pairs; any
    shapes that broadcast.
    Returns: FLOP per token, broadcast shape: ``6 N + 12 L H D S`` or, causal, ``6 N + 6 L H D (S + 1)``.
    Counts the forward pass three times; omits recomputation (that is hardware FLOPs) and element-wise work.

    >>> training_flops_per_token(7e9, 32, 32, 128, 4096) / 1e9
    48.442450944

    Source: chowdhery2022, appendix B (full convention).
    """
    cite.use(PALM)
    pairs = np.where(causal, np.add(sequence, 1) / 2, sequence)
    return plain(6.0 * active_parameters_matmul + 12.0 * layers * heads * head_dim * pairs)
