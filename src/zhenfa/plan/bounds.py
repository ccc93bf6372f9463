"""Bounds that prune before anything is costed.

Let ``T`` be the work of one micro-batch over the whole model (forward and backward), ``c_s`` the share of stage ``s``,
``m`` the micro-batches, ``p`` the stages, and ``X`` the step under 1F1B. No split of the layers beats any of these:

* ``X >= T (m + p - 1) / p`` for ``m > p``. Stage ``s`` starts after the work before it and ends before it is undone
  (``P_s`` together); with at most ``p - s`` micro-batches in flight it waits for the stages behind it (work ``R_s``) at
  both ends, so ``X >= P_s + (m - p + s + 1) c_s + 2 R_s``. Average these with weights proportional to
  ``1 / ((m - p + s - 1)(m - p + s))``: every ``c_s`` then has the coefficient ``(m + p - 1) / p``.
* ``X >= T / (1 - (1 - 1/m)**p)`` for any ``m``: ``X >= P_s + m c_s`` gives ``X - P_{s+1} >= (X - P_s)(1 - 1/m)``.
* ``X >= m c`` for the busiest stage: it holds at least one layer of each kind's slowest, and at least ``ceil(L/p)``
  layers of the quickest kind.

The memory test is necessary: the stages must hold the layers of the most numerous kind, even without the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zhenfa.estimate.holding import holding
from zhenfa.estimate.layer import Cost, Shape, layer_cost
from zhenfa.estimate.setting import Setting
from zhenfa.laws.arrays import Array
from zhenfa.plan.space import Candidates
from zhenfa.spec.graph import Operator

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def step_bound(setting: Setting, pool: str, candidates: Candidates) -> Floats:
    """Return seconds that no split of the layers can beat, one per candidate."""
    work, slowest, quickest = work_per_micro_batch(setting, pool, candidates)
    times, depth = candidates.micro_batches.astype(float), candidates.pipeline
    filling = work / (1.0 - (1.0 - 1.0 / times) ** depth)
    steady = np.where(times > depth, work * (times + depth - 1) / depth, 0.0)
    busiest = times * np.maximum(slowest, np.ceil(len(setting.graph.layers) / depth) * quickest)
    bound: Floats = np.maximum(np.maximum(filling, steady), busiest)
    return bound


def work_per_micro_batch(setting: Setting, pool: str, candidates: Candidates) -> tuple[Floats, Floats, Floats]:
    """Return seconds of one micro-batch over the whole model, its slowest and its quickest layer, per candidate."""
    keys = np.stack([candidates.size, candidates.tensor, candidates.expert])
    unique, back = np.unique(keys, axis=1, return_inverse=True)
    size, tensor, expert = unique.astype(float)
    shape = Shape(size, float(setting.workload.sequence_length), tensor, expert, np.ones_like(size))
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    chip, fabric, traits = setting.chips[pool], setting.fabrics[pool], setting.traits
    ends = [*setting.graph.stem, *setting.graph.head, *setting.graph.extra]
    total = _spread(layer_cost(ends, shape, chip, fabric, traits), size.shape)[0][back] + 0.0 * candidates.size
    slowest, quickest = np.zeros(len(candidates)), np.full(len(candidates), np.inf)
    for kind, count in zip(setting.graph.kinds, counts, strict=True):
        plain, light, forward = _spread(layer_cost(kind.operators, shape, chip, fabric, traits), size.shape)
        again = np.select([candidates.recompute == 0, candidates.recompute == 1], [0.0, light[back]], forward[back])
        one = plain[back] + again
        total = total + count * one
        slowest, quickest = np.maximum(slowest, one), np.minimum(quickest, one)
    return total, slowest, quickest


def _spread(cost: Cost, shape: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
    """Return forward and backward together, the light part, and forward, as full arrays."""
    parts = (cost.forward_total + cost.backward_total, cost.light_forward, cost.forward_total)
    whole, light, forward = (np.broadcast_to(np.asarray(part, dtype=float), shape) for part in parts)
    return whole, light, forward


def may_fit(setting: Setting, pool: str, candidates: Candidates) -> tuple[Bools, Floats]:
    """Return which candidates pass the necessary memory test, and by how many layers the others fall short."""
    shape = Shape(
        candidates.size.astype(float), float(setting.workload.sequence_length), candidates.tensor.astype(float),
        candidates.expert.astype(float), candidates.data.astype(float),
    )  # fmt: skip
    usable = setting.chips[pool].usable
    state, activation = main_layer(setting, shape, candidates.zero, candidates.recompute)
    stem, head = (
        _ends(setting, ends, shape, candidates.zero)
        for ends in (setting.graph.stem, (*setting.graph.head, *setting.graph.extra))
    )
    room = np.zeros(len(candidates))
    for index in range(int(candidates.pipeline.max(initial=0))):
        in_flight = np.minimum(candidates.pipeline - index, candidates.micro_batches)
        left = usable - np.where(candidates.pipeline == index + 1, head[0] + head[1], 0.0)
        left = left - (stem[0] + in_flight * stem[1] if index == 0 else 0.0)
        holds = np.floor(np.maximum(left, 0.0) / (state + in_flight * activation) + 1e-9)
        room += np.where(index < candidates.pipeline, holds, 0.0)
    short = main_kind(setting)[1] - room
    return short <= 0, short


def _ends(setting: Setting, operators: Sequence[Operator], shape: Shape, zero: Array) -> tuple[Array, Array]:
    """Return the bytes of state and of one micro-batch's activations of the stem or the head."""
    precision = setting.workload.precision
    held = holding(operators, shape, precision, zero, 0, setting.traits, setting.graph.hidden)
    return held.state, held.activation


def main_kind(setting: Setting) -> tuple[Sequence[Operator], int]:
    """Return the operators of the most numerous kind of layer, and how many layers are of it."""
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    index = int(np.argmax(counts))
    return setting.graph.kinds[index].operators, int(counts[index])


def main_layer(setting: Setting, shape: Shape, zero: Array, recompute: Array) -> tuple[Array, Array]:
    """Return the bytes of state and of one micro-batch's activations of a layer of the most numerous kind."""
    operators, _ = main_kind(setting)
    held = holding(operators, shape, setting.workload.precision, zero, recompute, setting.traits, setting.graph.hidden)
    return held.state, held.activation
