"""The splits of one layout under 1F1B together: what comes beside the schedule, and which need no host memory.

The first stage ends last (:mod:`zhenfa.plan.bounds`), and then sums its gradients and updates its weights, both as many
as it has layers: what arithmetic can hide of that is left out, so that a bound stays one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from zhenfa.estimate.reduction import Terms, exchange
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.shape import Shape
from zhenfa.estimate.stage import update_seconds
from zhenfa.estimate.training import at_an_end
from zhenfa.plan.build import Layout, Slot, make_plan, pipelines, rows_for
from zhenfa.plan.partly import FULL, NONE, held_partly
from zhenfa.plan.space import Bools, Ints
from zhenfa.plan.sparing import LESS, kept_away, quicker_on_card
from zhenfa.plan.split import Problem, Split

SLACK = 1e-9

ENDLESS = 1e30
"""Seconds beside which all is hidden that can be."""

FEW = 2
"""Up to so many splits are costed one by one."""

Tried = tuple[Layout, Split]
"""A split with the layers of a stage that are computed again in its layout."""


def with_tails(setting: Setting, splits: Sequence[Tried], total: int) -> Sequence[Tried]:
    """Return the splits of a layout of one pool in order of bounds that count what comes beside the schedule."""
    if len(splits) <= FEW or len(set(splits[0][0].slots)) > 1 or splits[0][0].schedule != "1f1b":
        return splits
    layout, slot = splits[0][0], splits[0][0].slots[0]
    plan = make_plan(setting, "", layout, pipelines(layout, splits[0][1].ranges, total))
    setting, terms = setting.for_plan(plan), Terms.of(plan)
    shape = _shape(setting, layout, slot)
    *kinds, stem, _ = (held for held, _ in setting.memory(slot.pool, shape, plan.zero, 0))
    there = np.zeros((len(setting.graph.layers) + 1, len(kinds)))
    there[np.arange(1, len(there)), setting.graph.layers] = 1
    layers = np.array([split.ranges[0][1] for _, split in splits])
    held = stem.times(np.ones(len(layers)))
    for kind, count in zip(kinds, there.cumsum(axis=0)[layers].T, strict=True):
        held = held.plus(kind.times(count))
    once, traits = exchange(terms, setting, slot.pool, shape, held, 1), setting.traits
    (reduce, gather), parts = once.at_ends(terms, layers), terms.parts(layers)
    behind = at_an_end(setting, reduce, ENDLESS, parts[0], traits.gradient_overlap)
    ahead = at_an_end(setting, gather, ENDLESS, parts[1], traits.gather_overlap)
    beside = behind + ahead + update_seconds(terms, setting, slot.pool, shape, held) + traits.step_overhead_s
    whole = np.array([split.bound for _, split in splits]) * setting.chips[slot.pool].lockstep + beside
    bound = whole * (1 - SLACK)
    return [
        (splits[index][0], replace(splits[index][1], bound=float(bound[index])))
        for index in np.argsort(bound, kind="stable").tolist()
    ]


def _shape(setting: Setting, layout: Layout, slot: Slot) -> Shape:
    return Shape(
        float(layout.size // slot.data), float(setting.workload.sequence_length), float(slot.tensor),
        float(slot.expert), float(layout.replicas * slot.data), float(slot.context), float(slot.expert_tensor),
    )  # fmt: skip


def needless_splits(setting: Setting, splits: Sequence[Tried]) -> list[bool | None]:
    """Return of splits of a layout of one pool whether they keep in host memory what their cards have room for, and
    would be no slower without; None where only :func:`zhenfa.plan.sparing.needless` can tell."""
    layout = splits[0][0]
    if len(splits) <= FEW or len(set(layout.slots)) > 1 or layout.schedule != "1f1b":
        return [None] * len(splits)
    pool, buffers = layout.slots[0].pool, setting.traits
    none = np.zeros(len(splits), dtype=bool)
    if not LESS[layout.offload] or (layout.offload != "activations" and not quicker_on_card(setting, pool)):
        return none.tolist()
    borders = np.array([[0, *(last for _, last in split.ranges)] for _, split in splits])
    again = np.array([[one.again or 0] for one, _ in splits])
    more = bool(buffers.receives_apart or buffers.bucket_elements or buffers.live_elements)
    surely, never = none, ~none
    for way in LESS[layout.offload]:
        there = kept_away(setting, way)
        fits, almost = _fits(there, replace(layout, offload=way), borders, again)
        surely, never = surely | (fits & (not more)), never & ~almost
    return [True if yes else False if no else None for yes, no in zip(surely.tolist(), never.tolist(), strict=True)]


def _fits(setting: Setting, layout: Layout, borders: Ints, again: Ints) -> tuple[Bools, Bools]:
    """Return which splits surely fit in memory, and which do within rounding."""
    if not layout.partly:
        problem = Problem.of(setting, layout, rows_for(setting, layout))
        held = problem.held_by(borders)
    else:
        modes = [
            replace(layout, slots=tuple(replace(one, recompute=mode) for one in layout.slots)) for mode in (NONE, FULL)
        ]
        problem, full = (Problem.of(setting, one, rows_for(setting, one)) for one in modes)
        held = held_partly(problem, full, borders, again)
    fits, almost = (np.all(held <= problem.capacity * (1 + slack), axis=1) for slack in (-SLACK, SLACK))
    return fits, almost
