"""Work of kernels in FLOP, and the optimizer's pass over its state. Their times: :mod:`.matmul`, :mod:`.experts`,
:mod:`.attention`, :mod:`.stream`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, Flag, plain

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
