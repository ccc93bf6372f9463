"""Which layers go to which stage: the contiguous split whose slowest stage is fastest, exactly."""

from __future__ import annotations

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
