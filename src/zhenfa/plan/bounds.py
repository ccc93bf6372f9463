"""Bounds that prune before anything is costed.

The step of any pipeline over any split of the layers is at least ``T / (1 - (1 - 1/m)**p)``, with ``T`` the work of one
micro-batch over the whole model, ``m`` micro-batches and ``p`` stages. Proof: stage ``s`` cannot start before the
stages in front of it have passed the first micro-batch on, nor end after they still owe the last backward, so
``X >= P_s + m c_s`` with ``P_s`` the work before it and ``c_s`` its own. Hence ``X - P_{s+1} >= (X - P_s)(1 - 1/m)``,
and after ``p`` stages ``X - T >= X (1 - 1/m)**p``. No stage is quicker than its slowest layer, so ``X >= m max(layer)``.

The memory test is necessary: even with the lightest kind of layer everywhere, the stages must hold all layers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zhenfa.estimate.layer import Cost, Shape, layer_cost
from zhenfa.estimate.holding import holding
from zhenfa.estimate.setting import Setting
from zhenfa.plan.space import Candidates

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def step_bound(setting: Setting, pool: str, candidates: Candidates) -> Floats:
    """Return seconds that no split of the layers can beat, one per candidate."""
    work, slowest = work_per_micro_batch(setting, pool, candidates)
    times = candidates.micro_batches.astype(float)
    filling = 1.0 - (1.0 - 1.0 / times) ** candidates.pipeline
    return np.maximum(work / filling, times * slowest)


def work_per_micro_batch(setting: Setting, pool: str, candidates: Candidates) -> tuple[Floats, Floats]:
    """Return seconds of one micro-batch over the whole model, and of its slowest layer, one per candidate."""
    keys = np.stack([candidates.size, candidates.tensor, candidates.expert])
    unique, back = np.unique(keys, axis=1, return_inverse=True)
    size, tensor, expert = unique.astype(float)
    shape = Shape(size, float(setting.workload.sequence_length), tensor, expert, np.ones_like(size))
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    chip, fabric, traits = setting.chips[pool], setting.fabrics[pool], setting.traits
    ends = [*setting.graph.stem, *setting.graph.head, *setting.graph.extra]
    total = _spread(layer_cost(ends, shape, chip, fabric, traits), size.shape)[0][back] + 0.0 * candidates.size
    slowest = np.zeros(len(candidates))
    for kind, count in zip(setting.graph.kinds, counts, strict=True):
        plain, light, forward = _spread(layer_cost(kind.operators, shape, chip, fabric, traits), size.shape)
        again = np.select([candidates.recompute == 0, candidates.recompute == 1], [0.0, light[back]], forward[back])
        one = plain[back] + again
        total = total + count * one
        slowest = np.maximum(slowest, one)
    return total, slowest


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
    state = np.full(len(candidates), np.inf)
    activation = np.full(len(candidates), np.inf)
    for kind in setting.graph.kinds:
        held = holding(
            kind.operators, shape, setting.workload.precision, candidates.zero, candidates.recompute, setting.traits,
            setting.graph.hidden,
        )  # fmt: skip
        state = np.minimum(state, held.state)
        activation = np.minimum(activation, held.activation)
    room = np.zeros(len(candidates))
    for index in range(int(candidates.pipeline.max(initial=0))):
        in_flight = np.minimum(candidates.pipeline - index, candidates.micro_batches)
        holds = np.floor(usable / (state + in_flight * activation) + 1e-9)
        room += np.where(index < candidates.pipeline, holds, 0.0)
    short = len(setting.graph.layers) - room
    return short <= 0, short
