"""The first plan is the best one: against every layout of small jobs on small machines, costed one by one."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from functools import cache
from typing import get_args

import pytest

from plan_brute import Truth, over_replicas, truth
from plan_pools import on_the_card, random_setting
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.estimate.traits import MEGATRON_LIKE
from zhenfa.plan import split
from zhenfa.plan.build import Layout, Slot, make_plan, pipelines
from zhenfa.plan.fewer import UNSEEN
from zhenfa.plan.joint import replicas_over_pools, replicas_that_save
from zhenfa.plan.mixed import UNPROVED, any_size, search_mixed
from zhenfa.plan.polish import improved
from zhenfa.plan.search import Best, Found, Tally, widest_of
from zhenfa.plan.split import Refused, Split, split_layers
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Offload, Plan, Schedule

CASES = [
    *((1, seed) for seed in range(140)),
    *((2, seed) for seed in range(94)),
    *((3, seed) for seed in range(8)),
]

SHARED = range(10, 50)


EVERY_SCHEDULE = MEGATRON_LIKE.but(schedules=get_args(Schedule))


def setting_of(pools: int, seed: int) -> Setting:
    if pools == 1 and seed >= 90:  # with every way to save memory, and too little of it as often as not
        traits = EVERY_SCHEDULE.but(offloads=get_args(Offload)) if seed % 2 else None
        return random_setting(
            seed, 1, layers=(2, 3), cards=(1, 2, 2), batches=(2, 4), plenty=(0.2, 0.4, 0.6, 1), traits=traits
        )
    if pools == 1 and seed >= 32:  # with every schedule that has a law, and layers enough for two stages to a place
        found = random_setting(seed, 1, layers=(3, 4), cards=(2, 2, 3, 4), batches=(4,), traits=EVERY_SCHEDULE)
        return on_the_card(found)
    if pools == 1:
        return on_the_card(random_setting(seed, 1))
    plenty = (1.0, 1.3, 2, 20)
    if pools == 2 and seed < 10:
        return on_the_card(random_setting(seed, 2, layers=(2, 4), cards=(1, 2), batches=(2, 4), plenty=plenty))
    if pools == 2:
        return on_the_card(random_setting(seed, 2, layers=(2, 3), cards=(1, 2), batches=(2, 3), plenty=plenty))
    cards = (1,) if seed < 6 else (1, 1, 2)
    return on_the_card(random_setting(seed, 3, layers=(3, 3), cards=cards, batches=(2,), plenty=plenty))


def search(setting: Setting) -> tuple[list[Found], Tally]:
    best, tally = Best(5), Tally()
    search_mixed(setting, "test", setting.workload.global_batch, Limits(), best, tally)
    return best.ranked(), tally


@cache
def known(pools: int, seed: int) -> tuple[Setting, Truth, list[Found], Tally]:
    setting = setting_of(pools, seed)
    return setting, truth(setting), *search(setting)


@pytest.mark.parametrize(("pools", "seed"), CASES)
def test_the_first_plan_equals_brute_force(pools: int, seed: int) -> None:
    _, expected, found, tally = known(pools, seed)
    if expected.plan is None:
        assert not found
        return
    # the planner also tries replicas over pools, which the brute force does not: it may only be better by those
    pipelines = {entry.stages for entry in found[0].plan.pipelines}
    if len(pipelines) == 1:
        assert found[0].step == pytest.approx(expected.step, rel=1e-12)
    else:
        assert found[0].step < expected.step
    assert not tally.rejected[UNPROVED] + tally.rejected[UNSEEN]


def test_the_cases_are_worth_it() -> None:
    truths = [known(pools, seed)[1] for pools, seed in CASES]
    feasible = [one for one in truths if one.plan is not None]
    assert len(feasible) >= 40
    assert len(feasible) < len(truths)
    deep = [one for one in feasible if len(one.plan.pipelines[0].stages) > 1]
    assert len(deep) >= 8
    others = {one.plan.schedule for one in feasible}
    assert others >= {"1f1b", "interleaved", "zero-bubble-v"}
    mixed = [one for one in feasible if len(one.plan.cards_by_pool()) > 1]
    assert len(mixed) >= 20
    assert sum(one.costed for one in truths) > 10_000


def test_few_splits_are_nearly_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the splits are too many to try, two stand for all and the better is improved: how near is that?"""
    first, final = [], []
    for seed in range(40):
        rng = random.Random(seed)
        setting = random_setting(100 + seed, 1, layers=(7, 10), cards=(6,), plenty=(3, 50))
        depth, times, mode = rng.randint(3, 5), rng.choice([2, 5, 20]), rng.randrange(3)
        layout = Layout((Slot("p0", 1, 1, mode),) * depth, 1, 1, times, 0)
        every = split_layers(setting, layout)
        if isinstance(every, Refused):
            continue
        with monkeypatch.context() as patch:
            patch.setattr(split, "EVERY_SPLIT", 0)
            two = split_layers(setting, layout)
            assert isinstance(two, list)
            assert 1 <= len(two) <= 2
            plan, found = min((costed(setting, layout, one) for one in two), key=lambda pair: pair[1].step)
            better = improved(setting, plan, found)
        best = min(costed(setting, layout, one)[1].step for one in every)
        first.append(found.step / best)
        final.append((better[1] if better else found).step / best)
    assert len(first) >= 30
    assert min(final) >= 1.0
    assert all(after <= before for before, after in zip(first, final, strict=True))
    assert statistics.mean(first) < 1.03
    assert statistics.mean(final) < 1.015
    assert sum(gap < 1.0001 for gap in final) > 0.65 * len(final)


def costed(setting: Setting, layout: Layout, one: Split) -> tuple[Plan, PlanCost]:
    plan = make_plan(setting, "test", layout, pipelines(layout, one.ranges, layout.micro_batches))
    found = cost(plan, setting)
    assert not found.problem
    assert one.bound <= found.step * (1 + 1e-12)
    return plan, found


def test_shares_and_layouts_of_replicas_over_pools_are_the_best() -> None:
    """Of all ways to share the batch between two pools, each with any layout of its own, the planner finds the best."""
    possible = 0
    for seed in SHARED:
        setting, limits, best, tally = setting_of(2, seed), Limits(), Best(1), Tally()
        names = [pool.name for pool in setting.formation.pools]
        batch = setting.workload.global_batch
        own = {name: widest_of(setting, name, batch, limits) for name in names}
        replicas_over_pools(setting, "test", any_size(setting, own, batch, limits), limits, best, tally)
        expected = over_replicas(setting).step
        assert best.first >= expected * (1 - 1e-12)
        assert min(best.first, tally.least_left) <= expected * (1 + 1e-6)
        possible += best.first == pytest.approx(expected, rel=1e-6) and expected < math.inf
        assert tally.least_left == math.inf or best.first <= 1.1 * expected
    assert possible >= 10


SHORT = (100, 101, 103, 105, 108, 110, 112, 114, 120, 127)
"""Machines whose pools have little memory."""


def short_of_memory(seed: int) -> Setting:
    """Two pools of one or two cards that may keep the optimizer's state in host memory."""
    traits = MEGATRON_LIKE.but(offloads=("none", "optimizer"), some_layers=False, whole_sequence=False)
    return random_setting(
        seed, 2, layers=(1, 2), cards=(1, 2), batches=(2, 3, 4), plenty=(0.4, 0.7, 1.0, 1.3), traits=traits
    )


def test_replicas_over_pools_with_the_optimizer_in_host_memory_are_the_best() -> None:
    ways = Counter[str]()
    for seed in SHORT:
        setting, limits, best, tally = short_of_memory(seed), Limits(), Best(1), Tally()
        batch = setting.workload.global_batch
        own = {pool.name: widest_of(setting, pool.name, batch, limits) for pool in setting.formation.pools}
        known = any_size(setting, own, batch, limits)
        for search_replicas in (replicas_over_pools, replicas_that_save):
            search_replicas(setting, "test", known, limits, best, tally)
        expected = over_replicas(setting)
        assert best.first == expected.step or best.first == pytest.approx(expected.step, rel=1e-6)
        if expected.plan is not None:
            ways[expected.plan.offload] += 1
    assert ways["optimizer"] >= 8


@pytest.mark.parametrize(("pools", "seed"), CASES)
def test_everything_considered_is_accounted_for(pools: int, seed: int) -> None:
    _, _, _, tally = known(pools, seed)
    assert tally.considered == tally.costed + sum(tally.rejected.values())
