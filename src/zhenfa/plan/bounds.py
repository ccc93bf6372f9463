"""Bounds that prune before anything is costed.

Let ``T`` be the work of one micro-batch over the whole model (forward and backward), ``c_s`` the share of stage ``s``,
``m`` the micro-batches, ``p`` the stages, and ``X`` the step under 1F1B. No split of the layers beats any of these:

* ``X >= T (m + p - 1) / p`` for ``m > p``. Stage ``s`` starts after the work before it and ends before it is undone
  (``P_s`` together); with at most ``p - s`` micro-batches in flight it waits for the stages behind it (work ``R_s``) at
  both ends, so ``X >= P_s + (m - p + s + 1) c_s + 2 R_s``. Average these with weights proportional to
  ``1 / ((m - p + s - 1)(m - p + s))``: every ``c_s`` then has the coefficient ``(m + p - 1) / p``.
* ``X >= T / (1 - (1 - 1/m)**p)`` for any ``m``: ``X >= P_s + m c_s`` gives ``X - P_{s+1} >= (X - P_s)(1 - 1/m)``.
* ``X >= m c`` for the busiest stage: some stage holds at least ``ceil(n/p)`` of the ``n`` layers of each kind, and at
  least ``ceil(L/p)`` layers that each take as long as the quickest kind.

The memory tests are necessary: every stage holds a layer, and the stages together hold the layers of the most numerous
kind, even without the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from zhenfa.estimate.holding import holding
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.shape import Shape
from zhenfa.laws.arrays import Array
from zhenfa.plan import blocks
from zhenfa.plan.columns import Columns
from zhenfa.plan.space import ACTIVATIONS_AWAY, Bools, Candidates, Ints
from zhenfa.spec.graph import Operator

Floats = npt.NDArray[np.float64]

distinct, shape_of = blocks.distinct, blocks.shape_of

MODES: Final = 3
"""None, selective and full recomputation."""


class Work(Columns):
    """Seconds of one micro-batch, forward and backward: over the whole model, shape ``[candidates]``, of one layer of
    each kind, shape ``[kinds, candidates]``, and of stem and head, shape ``[2, candidates]``; and of a layer's forward
    pass, of its gradients of weights, and of its exchange of tokens, ``[kinds, candidates]``; and of the first two of
    these for stem and head, ``[2, candidates]``."""

    whole: Floats
    layers: Floats
    ends: Floats
    forward: Floats
    weight: Floats
    expert: Floats
    ends_forward: Floats
    ends_weight: Floats

    NAMES = ("whole", "layers", "ends", "forward", "weight", "expert", "ends_forward", "ends_weight")
    DERIVED: ClassVar[Mapping[str, frozenset[str]]] = {"quickest": frozenset({"layers"})}

    @cached_property
    def quickest(self) -> Floats:
        """Return the seconds of the quickest kind of layer."""
        known: Floats | None = self.known("quickest")
        return self.layers.min(axis=0) if known is None else known

    def take(self, index: Ints) -> Work:
        """Return the work of the candidates that an index selects."""
        return self.where(index)


def busiest_stage(setting: Setting, work: Work, depth: Ints) -> Floats:
    """Return the seconds of a micro-batch on the busiest of ``depth`` stages at least."""
    layers, depths = setting.graph.layers, np.arange(1, int(depth.max(initial=1)) + 1)
    counts = np.bincount(layers, minlength=len(setting.graph.kinds)).tolist()
    busiest: Floats = np.ceil(len(layers) / depths).take(depth - 1) * work.quickest
    for count, seconds in zip(counts, work.layers, strict=True):
        busiest = np.maximum(busiest, np.ceil(count / depths).take(depth - 1) * seconds)
    return busiest


def step_bound(setting: Setting, work: Work, depth: Ints, micro_batches: Ints) -> Floats:
    """Return seconds that no split of the layers over ``depth`` stages can beat, one per candidate."""
    busiest = micro_batches * busiest_stage(setting, work, depth)
    bound: Floats = np.maximum(work.whole * ramp(depth, micro_batches), busiest)
    return bound


def ramp(depth: Ints, micro_batches: Ints) -> Floats:
    """Return how many times the work of one micro-batch over the whole model a step takes at least."""
    times = micro_batches.astype(float)
    filling = 1.0 / (1.0 - (1.0 - 1.0 / times) ** depth)
    steady: Floats = np.where(times > depth, (times + depth - 1) / depth, 0.0)
    return np.maximum(filling, steady)


def work_per_micro_batch(setting: Setting, pool: str, candidates: Candidates) -> Work:
    """Return the seconds of one micro-batch over the whole model and of each kind of layer, per candidate."""
    costs, place = blocks.block_costs(setting, pool, candidates)
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    size = np.size(costs[0].forward)
    ends, ends_forward, ends_weight = np.empty((3, 2, MODES, size))
    for end, found in enumerate(costs[-2:]):
        ends[end] = found.forward_total + found.backward_total
        ends_forward[end], ends_weight[end] = found.forward_total, found.weight
    total = ends.sum(axis=0)
    layers, forward, weight, expert = np.empty((4, len(counts), MODES, size))
    for kind, found in enumerate(costs[:-2]):
        plain = found.forward_total + found.backward_total
        for mode, again in enumerate((0.0, found.light_forward, found.full_again)):
            layers[kind, mode] = plain + again
        total = total + counts[kind] * layers[kind]
        forward[kind], weight[kind] = found.forward_total, found.weight
        expert[kind] = found.expert_forward + found.expert_backward
    busy = setting.traits.busy
    total, layers, ends, forward, ends_forward = (one / busy for one in (total, layers, ends, forward, ends_forward))
    parts = (layers, ends, forward, weight, expert, ends_forward, ends_weight)
    flat = (total.ravel(), *(part.reshape(len(part), -1) for part in parts))
    every = Work(**dict(zip(Work.NAMES, flat, strict=True)))
    return every.where(candidates.recompute * size + place)


def may_fit(setting: Setting, pool: str, candidates: Candidates) -> Bools:
    """Return which candidates pass the necessary memory tests."""
    fits: Bools = room(setting, pool, candidates) >= 1.0
    return fits


def room(setting: Setting, pool: str, candidates: Candidates) -> Floats:
    """Return how many times over the stages could hold the layers of the most numerous kind: 0 where one holds none."""
    shape = shape_of(setting, candidates)
    usable = setting.chips[pool].usable * (1 + 1e-9)
    kept = kept_here(candidates)
    state, activation = main_layer(setting, pool, shape, candidates)
    least_state, least_activation = least_layer(setting, pool, shape, candidates)
    stem, head = (
        _ends(setting, pool, ends, shape, candidates.zero)
        for ends in (setting.graph.stem, (*setting.graph.head, *setting.graph.extra))
    )
    held = np.zeros(len(candidates))
    starved = np.zeros(len(candidates), dtype=bool)
    for index in range(int(candidates.pipeline.max(initial=0))):
        here = index < candidates.pipeline
        in_flight = np.clip(candidates.pipeline - index, 1, candidates.micro_batches) * kept
        left = usable - np.where(candidates.pipeline == index + 1, head[0] + kept * head[1], 0.0)
        left = left - (stem[0] + in_flight * stem[1] if index == 0 else 0.0)
        held += np.where(here, np.floor(np.maximum(left, 0.0) / (state + in_flight * activation) + 1e-9), 0.0)
        starved |= here & (left < least_state + in_flight * least_activation)
    times: Floats = np.where(starved, 0.0, held / main_kind(setting)[1])
    return times


def kept_here(candidates: Candidates) -> Floats:
    """Return the share of the activations of micro-batches in flight that stays on the card: all, or nothing."""
    share: Floats = np.where(candidates.saving & ACTIVATIONS_AWAY, 0.0, 1.0)
    return share


def _ends(setting: Setting, pool: str, operators: Sequence[Operator], shape: Shape, zero: Array) -> tuple[Array, Array]:
    """Return the bytes of state and of one micro-batch's activations of the stem or the head."""
    precision, sharding = setting.chips[pool].precision, replace(setting.sharding, zero=zero)
    held = holding(operators, shape, precision, sharding, 0, setting.traits, setting.graph.hidden)
    return held.state, held.activation


def main_index(setting: Setting) -> int:
    """Return which kind of layer is the most numerous."""
    return int(np.argmax(np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))))


def main_kind(setting: Setting) -> tuple[Sequence[Operator], int]:
    """Return the operators of the most numerous kind of layer, and how many layers are of it."""
    index = main_index(setting)
    return setting.graph.kinds[index].operators, setting.graph.layers.count(index)


def main_layer(setting: Setting, pool: str, shape: Shape, found: Candidates) -> tuple[Array, Array]:
    """Return the bytes of state and of one micro-batch's activations of a layer of the most numerous kind."""
    return _layer(setting, pool, main_kind(setting)[0], shape, found)


def least_layer(setting: Setting, pool: str, shape: Shape, found: Candidates) -> tuple[Array, Array]:
    """Return at most the bytes of state and of activations of any layer."""
    every = [_layer(setting, pool, kind.operators, shape, found) for kind in setting.graph.kinds]
    state, activation = (np.min(np.broadcast_arrays(*parts), axis=0) for parts in zip(*every, strict=True))
    return state, activation


def _layer(
    setting: Setting, pool: str, operators: Sequence[Operator], shape: Shape, found: Candidates
) -> tuple[Array, Array]:
    precision, hidden = setting.chips[pool].precision, setting.graph.hidden
    sharding = replace(setting.sharding, zero=found.zero)
    held = holding(operators, shape, precision, sharding, found.recompute, setting.traits, hidden)
    return held.state, held.activation
