"""What is tried on the plans kept alone: single layers moved between neighbouring stages while the exact step gets
shorter, and ZeRO 0 instead of stage 1.

Layers move in layouts with too many splits to try: the split that the search took leaves out transfers and gradient
sums. Stage 1 gathers weights at the start of a step, which may be felt where its shorter sum of gradients is not.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.build import CODES, Layout, Slot, rows_for
from zhenfa.plan.search import Best
from zhenfa.plan.space import Ints, zero_stages
from zhenfa.plan.sparing import kept_away
from zhenfa.plan.split import Problem, all_are_tried
from zhenfa.spec.plan import Plan

MOVES_AT_MOST: Final = 8


def polish(setting: Setting, best: Best) -> None:
    """Improve every plan kept: layers move where splits are free (those of other schedules are even, as engines cut
    them)."""
    for found in best.ranked():
        if found.plan.schedule != "1f1b" or _some_layers(found.plan):
            continue
        better = improved(setting, found.plan, found.cost)
        if better is not None:
            best.offer(*better)
    if 0 in setting.traits.zero_stages and 0 not in zero_stages(setting):
        for found in best.ranked():
            if found.plan.zero == 1 and found.plan.offload == "none":
                _offer_replicated(setting, found.plan, best)


def _offer_replicated(setting: Setting, plan: Plan, best: Best) -> None:
    """Offer a plan with the optimizer's state on every replica."""
    other = plan.model_copy(update={"zero": 0})
    found = cost(other, setting)
    if not found.problem:
        best.offer(other, found)


def _some_layers(plan: Plan) -> bool:
    """Return whether some layers of a stage are computed again and others kept: how many hangs on the split."""
    return any(stage.recompute_layers is not None for entry in plan.pipelines for stage in entry.stages)


def improved(setting: Setting, plan: Plan, found: PlanCost) -> tuple[Plan, PlanCost] | None:
    """Return a plan with layers moved and its cost, or None if no move helps or every split has been tried."""
    setting, stages = setting.computing_as(plan), plan.pipelines[0].stages
    if len({entry.stages for entry in plan.pipelines}) > 1 or all_are_tried(len(stages), plan.layers):
        return None
    layout = layout_of_plan(plan)
    away = kept_away(setting, layout.offload)
    problem = Problem.of(away, layout, rows_for(away, layout))
    borders = np.array([0, *(stage.last for stage in stages)])
    step, start = found.step, found.step
    for _ in range(MOVES_AT_MOST):
        now = step
        for near in _neighbours(problem, borders, layout.micro_batches, step):
            trial = with_borders(plan, near)
            trial_cost = cost(trial, setting)
            if not trial_cost.problem and trial_cost.step < step:
                step, better = trial_cost.step, (near, trial, trial_cost)
        if not step < now:
            break
        borders = better[0]
    return better[1:] if step < start else None


def _neighbours(problem: Problem, borders: Ints, micro_batches: int, step: float) -> Ints:
    """Return the borders with one layer moved that fit and whose bound is below the step, the likeliest first."""
    inner = len(borders) - 2
    moves = np.zeros((2 * inner, len(borders)), dtype=np.int64)
    moves[np.arange(2 * inner), np.tile(np.arange(1, inner + 1), 2)] = np.repeat([1, -1], inner)
    near = borders + moves
    near = near[(np.diff(near, axis=1) > 0).all(axis=1)]
    near = near[problem.fits(near)]
    bound = problem.bound(near, micro_batches)
    order = np.argsort(bound, kind="stable")
    likely: Ints = near[order[bound[order] < step]]
    return likely


def layout_of_plan(plan: Plan) -> Layout:
    """Return the layout of a plan whose replicas are all alike."""
    first = plan.pipelines[0]
    slots = tuple(
        Slot(
            stage.pool,
            stage.tensor_parallel,
            stage.expert_parallel,
            CODES.index(stage.recompute),
            stage.context_parallel,
            stage.expert_tensor_parallel,
            precision=stage.precision or plan.precision,
            data=stage.data_parallel,
        )
        for stage in first.stages
    )
    times = max(entry.micro_batches for entry in plan.pipelines)
    return Layout(
        slots, plan.replicas, first.micro_batch_size, times, plan.zero, plan.schedule, offload=plan.offload,
        sequence_parallel=plan.sequence_parallel,
    )  # fmt: skip


def with_borders(plan: Plan, borders: Ints) -> Plan:
    """Return a plan with its layers split at other borders."""
    stages = tuple(
        stage.model_copy(update={"first": first, "last": last})
        for stage, (first, last) in zip(plan.pipelines[0].stages, itertools.pairwise(borders.tolist()), strict=True)
    )
    entries = tuple(entry.model_copy(update={"stages": stages}) for entry in plan.pipelines)
    return plan.model_copy(update={"pipelines": entries})
