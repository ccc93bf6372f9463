"""Interleaved pipelines over several pools: those found under 1F1B, laid out anew with several stages to a place.

Each place keeps its cards. It may hold as many stages as any other (interleaving runs all places in the same rounds),
of unequal layers: at first each holds its 1F1B layers in equal parts, then single layers move between neighbouring
stages while the exact step gets shorter.

Only where a job names its schedules (``limits.schedules``), for it is neither proved nor bounded, and depends on how
many plans are listed: of the listed 1F1B pipelines those are taken whose micro-batches come in whole rounds and
whose busiest place leaves a chance, and other pipelines may interleave better. ``tests/test_plan_interleave.py`` holds
the outcome against every split of every interleaved layout of small machines.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np

from zhenfa.errors import InputError
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.search import Best, Tally, family_of
from zhenfa.plan.space import Ints
from zhenfa.spec.plan import Pipeline, Plan

MOST_TURNS: Final = 4
"""Stages to a place that are tried."""

COSTED_AT_MOST: Final = 160
"""Interleaved plans that are costed."""

NEAR: Final = 1.05
"""How many times the step to be beaten the equal parts may take for layers to be moved."""


def interleaved_over_pools(setting: Setting, best: Best, tally: Tally) -> None:
    """Offer the mixed pipelines of ``best`` with several stages to a place, where the engine interleaves."""
    if "interleaved" not in setting.traits.schedules:
        return
    left = COSTED_AT_MOST
    for found in best.ranked():
        plan = found.plan
        if not _may(plan):
            continue
        limit = best.goal.step_within(best.limit(family_of(plan)), plan.cards_by_pool())
        if _least(found.cost) >= limit:
            continue
        for turns in range(2, MOST_TURNS + 1):
            if turns * plan.pipelines[0].places > plan.layers or left <= 0:
                break
            better, spent = _best_split(setting, plan, turns, limit, left)
            left -= spent
            tally.considered += 1
            if better is None:
                tally.rejected["interleaved over several pools, without a split that fits in memory"] += 1
                continue
            refusal = best.offer(*better)
            tally.rejected[refusal] += bool(refusal)
            tally.costed += not refusal


def _may(plan: Plan) -> bool:
    """Return whether a plan is a pipeline over several pools whose micro-batches come in whole rounds."""
    entry = plan.pipelines[0]
    alike = len({one.stages for one in plan.pipelines}) == 1
    return (
        alike and plan.schedule == "1f1b" and len({stage.pool for stage in entry.stages}) > 1
        and all(one.micro_batches % entry.places == 0 for one in plan.pipelines)
    )  # fmt: skip


def _least(found: PlanCost) -> float:
    """Return the seconds of the busiest place without a bubble: no order of the same work takes less."""
    group = found.worst
    return group.micro_batches * max(place.busy for place in group.places)


def _best_split(
    setting: Setting, plan: Plan, turns: int, limit: float, budget: int
) -> tuple[tuple[Plan, PlanCost] | None, int]:
    """Return the plan with so many stages to a place whose split is the best found, and how many were costed.

    Layers move only where the equal parts come near the step that must be beaten.
    """
    borders = _first(plan, turns)
    best, spent = _costed(setting, plan, turns, borders), 1
    if best is None or best[1].step > NEAR * limit:
        return best, spent
    moves = list(itertools.product(range(1, len(borders) - 1), (1, -1)))
    still = 0
    for index, step in itertools.cycle(moves):
        if still >= len(moves) or spent >= budget:
            break
        still += 1
        near = borders.copy()
        near[index] += step
        if not near[index - 1] < near[index] < near[index + 1]:
            continue
        found, spent = _costed(setting, plan, turns, near), spent + 1
        if found is not None and found[1].step < best[1].step:
            best, borders, still = found, near, 0
    return best, spent


def _first(plan: Plan, turns: int) -> Ints:
    """Return the borders with each place's layers in equal parts, the longer parts where they come first."""
    held = [stage.layers for stage in plan.pipelines[0].stages]
    parts = [[count // turns + (turn < count % turns) for turn in range(turns)] for count in held]
    sizes = [max(parts[place][turn], 1) for turn in range(turns) for place in range(len(held))]
    over = sum(sizes) - plan.layers
    while over > 0:  # a place with fewer layers than turns borrows from the longest stages
        longest = max(range(len(sizes)), key=lambda one: sizes[one])
        sizes[longest] -= 1
        over -= 1
    return np.cumsum([0, *sizes])


def _costed(setting: Setting, plan: Plan, turns: int, borders: Ints) -> tuple[Plan, PlanCost] | None:
    """Return the interleaved plan with its cost; None where it cannot run."""
    entries = tuple(_with_turns(one, turns, borders) for one in plan.pipelines)
    other = plan.model_copy(update={"schedule": "interleaved", "pipelines": entries})
    try:
        found = cost(other, setting)
    except InputError:
        return None
    return None if found.problem else (other, found)


def _with_turns(entry: Pipeline, turns: int, borders: Ints) -> Pipeline:
    ranges = itertools.pairwise(borders.tolist())
    stages = tuple(
        stage.model_copy(update={"first": first, "last": last})
        for stage, (first, last) in zip(entry.stages * turns, ranges, strict=True)
    )
    return entry.model_copy(update={"virtual_stages": turns, "stages": stages})
