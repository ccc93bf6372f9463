"""Seconds of the experts of one layer on one card, and how unevenly tokens fall on them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, ceil_ratio, plain
from zhenfa.laws.compute import ROOFLINE, TILES
from zhenfa.laws.matmul import TILE

POWER_LAW: Final = cite.declare(
    "clauset2009", "A. Clauset, C. Shalizi, M. Newman. Power-law distributions in empirical data. SIAM Review 2009."
)

SPAN: Final = 0.8
"""Longest share of all tokens that one expert gets, against one token for the rarest: the range that the measured
tables draw popularity from."""


def _range(tokens: Array, copies: Array, experts: Array) -> tuple[Any, Any]:
    """Return the rarest and the most popular expert's weight, before scaling."""
    many = np.greater(copies, experts)
    return np.where(many, 1.0, 0.01), np.where(many, np.maximum(np.multiply(tokens, SPAN), 1.5), 2.0)


def _moment(low: Any, high: Any, order: Array) -> Any:
    """Integrate x^(order - 1) from low to high."""
    near = np.where(np.abs(order) < 1e-6, 1e-6, order)
    return (high**near - low**near) / near


def busiest_rank(tokens: Array, active: Array, experts: Array, ranks: Array, skew: Array) -> Array:
    """Return how many routed copies the busiest of ``ranks`` cards gets, over the mean.

    Arguments: ``tokens`` of all the cards; ``active`` experts per token; ``experts`` in all, over ``ranks`` cards in
    equal numbers; ``skew``: exponent of the power law that popularity is drawn from, 0 if all are equally popular; any
    shapes that broadcast.
    Returns: a ratio of 1 or more, broadcast shape: ``1 + cv sqrt(2 ln ranks / experts per rank)``, at most ``ranks``.
    Counts the largest of as many sums of independent draws; omits experts placed or copied by load.

    >>> round(busiest_rank(4096, 8, 256, 8, 1.2), 3), busiest_rank(4096, 8, 256, 8, 0.0)
    (1.899, 1.0)

    Source: clauset2009, equation 2.2, bounded on both sides; the largest of n normal draws.
    """
    cite.use(POWER_LAW)
    exponent = np.where(np.greater(skew, 0), skew, 1.0)
    low, high = _range(tokens, np.multiply(tokens, active), experts)
    mass, mean, square = (_moment(low, high, order + 1 - exponent) for order in (0.0, 1.0, 2.0))
    mean, square = mean / mass, square / mass
    spread = np.sqrt(np.maximum(square - mean * mean, 0.0)) / mean
    held = np.true_divide(experts, ranks)
    above = np.where(np.greater(skew, 0), spread * np.sqrt(2 * np.log(ranks) / held), 0.0)
    return plain(np.minimum(1 + above, ranks))


def touched_experts(copies: Array, held: Array, tokens: Array, active: Array, experts: Array, skew: Array) -> Array:
    """Return how many of a card's experts get at least one token.

    Arguments: ``copies`` routed to the card's ``held`` experts; ``tokens``, ``active``, ``experts`` and ``skew`` as in
    :func:`busiest_rank`; any shapes that broadcast.
    Returns: experts, broadcast shape; at most ``copies`` and ``held``.
    Counts, with skew, experts whose share rounds to a token or more; without, tokens that are dealt out in turn. Omits
    chance in who gets the first token.

    >>> touched_experts(16, 64, 2, 8, 64, 0.0)
    16.0

    Source: clauset2009, equation 2.2, bounded on both sides.
    """
    cite.use(POWER_LAW)
    most = np.minimum(held, copies)
    exponent = np.where(np.greater(skew, 0), skew, 1.0)
    routed = np.multiply(tokens, active)
    low, high = _range(tokens, routed, experts)
    mass = _moment(low, high, 1 - exponent)
    mean = _moment(low, high, 2 - exponent) / mass
    least = np.clip(0.5 * mean * experts / np.maximum(routed, 1e-9), low, high)
    found = held * _moment(least, high, 1 - exponent) / mass
    return plain(np.where(np.greater(skew, 0), np.minimum(np.maximum(found, 1.0), most), most))


def grouped_time(
    copies: Array,
    touched: Array,
    inputs: Array,
    outputs: Array,
    *,
    peak: Array,
    cores: Array,
    share: Array,
    fill: Array,
    pad: Array,
    wave: Array,
) -> Array:
    """Return the seconds of arithmetic of one grouped matmul.

    Arguments: ``copies`` routed rows over ``touched`` experts; ``inputs`` and ``outputs`` of each expert; ``pad`` rows
    that an expert's last tile is filled up with; ``peak``, ``cores``, ``share``, ``fill``, ``wave`` as in
    :func:`~zhenfa.laws.matmul.matmul_time`; any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts padding to tiles per expert and wave quantisation; omits memory traffic and launch.

    >>> grouped_time(8192, 8, 4096, 4096, peak=1e15, cores=128, share=0.8, fill=0, pad=0, wave=0) * 1e6  # us
    343.597...

    Source: nvidia-matmul-guide, tile and wave quantization.
    """
    cite.use(TILES)
    rate = np.multiply(peak, share)
    rows = copies + pad * np.asarray(touched)
    depth = np.add(inputs, fill)
    tiles = np.maximum(rows / TILE, touched) * ceil_ratio(outputs, TILE)
    even = tiles / cores
    idle = (np.ceil(even * (1 - 1e-12)) - even) * wave * cores * (TILE * TILE)
    return plain(2.0 * (rows * outputs + idle) * depth / rate)


def experts_time(
    tokens: Array,
    routed: Array,
    copies: Array,
    touched: Array,
    features: Array,
    intermediate: Array,
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
    pad: Array,
    wave: Array,
    row: Array,
    passes: Array,
    gated: Array = 1.0,
) -> Array:
    """Return the seconds of a fused expert layer on one card: into the experts, activation, back, weighted sum.

    Arguments: ``tokens`` on the card, of which ``routed`` copies are made, ``copies`` of them for this card's experts,
    ``touched`` experts of which get any; ``features`` of a token and ``intermediate`` of an expert; ``gated`` 1 if the
    experts have a gate, 0 if not; ``row`` seconds per routed copy (sorting); ``passes`` over all routed copies'
    features that the sorting and summing kernels make beyond the best; the others as in
    :func:`~zhenfa.laws.matmul.matmul_time` and :func:`grouped_time`; any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts both matmuls, one read of the touched experts' weights, activations once through each kernel, sorting; omits
    the router and what moves between cards.

    >>> experts_time(1024, 8192, 8192, 256, 7168, 2048, peak=2e15, bandwidth=3e12, cores=128, weight_bytes=1,
    ...              input_bytes=4, share=0.7, memory_share=0.8, fixed=2e-5, fill=0, pad=32, wave=0, row=0,
    ...              passes=0) * 1e3  # ms
    5.114...

    Source: williams2009, attainable performance; nvidia-matmul-guide, tile and wave quantization.
    """
    cite.use(ROOFLINE, TILES)
    wide = np.add(gated, 1.0) * intermediate
    tile = {"peak": peak, "cores": cores, "share": share, "fill": fill, "pad": pad, "wave": wave}
    arithmetic = grouped_time(copies, touched, features, wide, **tile) + grouped_time(
        copies, touched, intermediate, features, **tile
    )
    weights = touched * np.add(gated, 2.0) * intermediate * features * weight_bytes
    each = features * np.add(input_bytes, 4.0) + 4.0 * wide + intermediate * np.asarray(input_bytes)
    moved = weights + copies * each + 4.0 * np.multiply(tokens, features)
    memory = moved / np.multiply(bandwidth, memory_share)
    extra = routed * (2.0 * np.asarray(features) + 3.0 * np.asarray(intermediate)) * 2.0 * passes / bandwidth
    return plain(np.sqrt(arithmetic**2 + memory**2) + fixed + np.multiply(row, routed) + extra)
