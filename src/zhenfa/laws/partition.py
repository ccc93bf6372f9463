"""Which layers go to which stage: the contiguous split whose slowest stage is fastest, exactly."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zhenfa import cite

CHAINS: Final = cite.declare(
    "bokhari1988",
    "S. H. Bokhari. Partitioning problems in parallel, pipelined, and distributed computing. IEEE Trans. Comput. 1988.",
)

ROUNDING: Final = 1e-12
"""Relative slack when a cost is held against the optimum or a memory against its capacity: sums round."""


def partition(
    layer_cost: npt.ArrayLike,
    first_extra: npt.ArrayLike,
    last_extra: npt.ArrayLike,
    *,
    layer_memory: npt.ArrayLike,
    memory_extra: npt.ArrayLike,
    capacity: npt.ArrayLike,
    peak_memory: npt.ArrayLike = 0.0,
    allow_empty: bool = False,
) -> list[int] | None:
    """Return the boundaries of the contiguous split with the smallest largest stage cost.

    Arguments: ``layer_cost`` of each layer on each stage, shape ``[stages, layers]``, any unit, finite and not
    negative; ``first_extra`` what the stem would cost on each stage and ``last_extra`` the head, shape ``[stages]``
    (the first stage's and the last stage's count); ``layer_memory`` bytes, shape ``[stages, layers]``;
    ``memory_extra`` bytes that a stage holds besides layers and ``capacity`` bytes, shape ``[stages]``;
    ``peak_memory`` bytes that a layer needs only while it is computed, so that a stage holds its largest one's, shape
    ``[stages, layers]`` or a number; ``allow_empty``: a stage may hold no layer.
    Returns: ``stages + 1`` boundaries from 0 to ``layers`` (stage s holds layers ``b[s]`` to ``b[s + 1]``), or ``None``
    when memory, or fewer layers than stages, makes every split impossible. Among equals the smallest sum of stage
    costs wins, then the split with the earliest boundaries from the back.
    Counts costs that add up over layers; omits transfers between stages. Exact, in stages times layers squared.

    >>> partition([[2, 2, 2, 2], [1, 1, 1, 1]], 0, [1, 1], layer_memory=np.ones((2, 4)), memory_extra=0, capacity=9)
    [0, 1, 4]
    >>> partition([[1, 1]], 0, 0, layer_memory=[[1, 1]], memory_extra=0, capacity=1) is None
    True

    Source: bokhari1988, chain onto chain, here by dynamic programming and with memory limits.
    """
    cite.use(CHAINS)
    costs = _stage_costs(layer_cost, first_extra, last_extra)
    costs[~_fits(layer_memory, memory_extra, capacity, peak_memory, allow_empty=allow_empty)] = np.inf
    slowest = _best(costs, np.maximum)[0]
    if not np.isfinite(slowest):
        return None
    costs[costs > slowest * (1 + ROUNDING)] = np.inf
    return _best(costs, np.add)[1]


def alike_partition(
    layer_cost: npt.ArrayLike, stages: int, first_extra: float = 0.0, last_extra: float = 0.0
) -> list[int] | None:
    """Return the boundaries of the contiguous split over equal stages whose largest stage cost is smallest.

    Arguments: ``layer_cost`` of each layer, shape ``[layers]``, any unit, finite and not negative; ``stages``;
    ``first_extra`` and ``last_extra`` what stem and head add to the first and the last stage.
    Returns: ``stages + 1`` boundaries from 0 to ``layers``, every stage holding a layer or more, or ``None`` when there
    are fewer layers than stages. Among equals, the first stages hold the most.
    Counts what :func:`partition` counts, without memory. Exact to the rounding of sums, in stages times the logarithm
    of layers for each of sixty halvings.

    >>> alike_partition([1, 1, 1, 1], 2, last_extra=1)
    [0, 3, 4]

    Source: bokhari1988; by probing (a bound on the largest, and whether greedy stages reach the end).
    """
    cite.use(CHAINS)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(layer_cost, float))]).tolist()
    layers = len(sums) - 1
    if stages > layers:
        return None
    low, high = max(sums[-1] / stages, 0.0), sums[-1] + first_extra + last_extra
    best = _reach(sums, stages, high, first_extra, last_extra)
    for _ in range(60):
        middle = (low + high) / 2
        found = _reach(sums, stages, middle, first_extra, last_extra)
        if found is None:
            low = middle
        else:
            best, high = found, middle
        if high - low <= ROUNDING * high:
            break
    return best


def _reach(sums: list[float], stages: int, most: float, first: float, last: float) -> list[int] | None:
    """Return the boundaries where each stage takes all that it can within ``most``; None where that is too little."""
    layers, borders = len(sums) - 1, [0]
    for stage in range(stages):
        room = most - (first if stage == 0 else 0.0) - (last if stage == stages - 1 else 0.0)
        here = borders[-1]
        reach = min(bisect_right(sums, sums[here] + room + ROUNDING * most) - 1, layers - (stages - 1 - stage))
        if reach <= here:
            return None
        borders.append(reach)
    return borders if borders[-1] == layers else None


def _spans(per_layer: Any) -> Any:
    """Sum over layers ``i`` to ``j``, shape ``[stages, layers + 1, layers + 1]``."""
    sums = np.concatenate([np.zeros((len(per_layer), 1)), np.cumsum(per_layer, axis=1)], axis=1)
    return sums[:, None, :] - sums[:, :, None]


def _stage_costs(layer_cost: npt.ArrayLike, first_extra: npt.ArrayLike, last_extra: npt.ArrayLike) -> Any:
    costs = _spans(np.asarray(layer_cost, float))
    stages = len(costs)
    costs[0] += np.broadcast_to(np.asarray(first_extra, float), stages)[0]
    costs[-1] += np.broadcast_to(np.asarray(last_extra, float), stages)[-1]
    return costs


def _fits(
    layer_memory: npt.ArrayLike,
    memory_extra: npt.ArrayLike,
    capacity: npt.ArrayLike,
    peak_memory: npt.ArrayLike,
    *,
    allow_empty: bool,
) -> Any:
    held = _spans(np.asarray(layer_memory, float))
    if np.any(peak_memory):
        held[:, :, 1:] += _largest(np.broadcast_to(np.asarray(peak_memory, float), (len(held), held.shape[1] - 1)))
    stages, ends, _ = held.shape
    extra, room = (np.broadcast_to(np.asarray(part, float), stages)[:, None, None] for part in (memory_extra, capacity))
    forward = np.triu(np.ones((ends, ends), bool), 0 if allow_empty else 1)
    return (held + extra <= room * (1 + ROUNDING)) & forward


def _largest(per_layer: Any) -> Any:
    """Return the largest of layers ``i`` to ``j - 1``, shape ``[stages, layers + 1, layers]`` over ``i`` and ``j``."""
    layers = per_layer.shape[1]
    seen = np.arange(layers) >= np.arange(layers + 1)[:, None]
    return np.maximum.accumulate(np.where(seen, per_layer[:, None, :], 0.0), axis=2)


def _best(costs: Any, combine: np.ufunc) -> tuple[float, list[int]]:
    """Return the least combined cost of a chain of spans from 0 to the last layer, and its boundaries."""
    value = costs[0, 0]
    origins = []
    for cost in costs[1:]:
        through = combine(value[:, None], cost)
        origin = np.argmin(through, axis=0)
        value = np.take_along_axis(through, origin[None], axis=0)[0]
        origins.append(origin)
    boundaries = [len(value) - 1]
    for origin in reversed(origins):
        boundaries.append(int(origin[boundaries[-1]]))
    return float(value[-1]), [0, *reversed(boundaries)]
