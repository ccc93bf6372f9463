"""Mixed pipelines with several stages to a place: against every split of every interleaved layout of small machines."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from plan_brute import Truth, mixed_pipelines, splits, to_plan
from plan_pools import random_setting
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost
from zhenfa.plan.interleave import interleaved_over_pools
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.search import Best, Tally
from zhenfa.spec.job import Limits

SEEDS = range(24)


def setting_of(seed: int) -> Setting:
    return random_setting(400 + seed, 2, layers=(4, 5), cards=(1, 1, 2), batches=(2, 4), plenty=(1.6, 3, 20))


def every_interleaved(setting: Setting) -> Truth:
    """The shortest step over every interleaved layout and every split of its layers."""
    found, layers = Truth(), len(setting.graph.layers)
    for layout in mixed_pipelines(setting):
        places, times = len(layout.cuts), -(-layout.total // layout.replicas)
        if layout.total % layout.replicas or times % places or layout.zero == 0:
            continue
        for virtual in range(2, layers // places + 1):
            other = replace(layout, schedule="interleaved", virtual=virtual)
            for ranges in splits(layers, places * virtual):
                plan = to_plan(setting, other, ranges)
                outcome = cost(plan, setting)
                found.costed += 1
                if not outcome.problem and outcome.step < found.step:
                    found.step, found.plan = outcome.step, plan
    return found


@cache
def known(seed: int) -> tuple[float, float, float]:
    """The best mixed pipeline under 1F1B and interleaved as searched, and the best interleaved of all."""
    setting = setting_of(seed)
    plain = replace(setting, traits=setting.traits.but(schedules=("1f1b",)), _plans={})
    best = Best(5)
    search_mixed(plain, "test", setting.workload.global_batch, Limits(), best, Tally())
    before = best.first
    interleaved_over_pools(setting, best, Tally())
    return before, best.first, every_interleaved(setting).step


@pytest.mark.parametrize("seed", SEEDS)
def test_interleaving_never_makes_it_worse_nor_better_than_the_best(seed: int) -> None:
    before, after, truth = known(seed)
    assert after <= before
    assert after >= min(before, truth) * (1 - 1e-12)


def test_how_near_it_comes_to_the_best_of_all() -> None:
    rows = [known(seed) for seed in SEEDS]
    worth = [(after / min(before, truth), before / truth) for before, after, truth in rows if truth < before]
    assert len(worth) >= 3
    lost = [one for one, _ in worth]
    assert sum(one == pytest.approx(1, rel=1e-12) for one in lost) >= 2
    assert max(lost) < 1.02
    assert max(gain for _, gain in worth) > 1.1


def test_a_job_asks_for_it() -> None:
    """Without a word in the job, mixed pipelines run 1F1B; with one, the best is at least as quick."""
    steps = []
    for limits in (Limits(), Limits(schedules=("1f1b", "interleaved"))):
        best, setting = Best(5), setting_of(3)
        search_mixed(setting, "test", setting.workload.global_batch, limits, best, Tally())
        mixed = [one.plan for one in best.ranked() if len(one.plan.cards_by_pool()) > 1]
        if limits.schedules is None:
            assert {plan.schedule for plan in mixed} <= {"1f1b"}
        steps.append(best.first)
    assert steps[1] <= steps[0]
