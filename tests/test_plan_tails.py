"""What comes beside the schedule of each split is no more than its step, and what needs no host memory is known."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import numpy as np

from plan_brute import splits
from plan_pools import random_setting
from test_plan_schedules import EVERY_SCHEDULE, SLACK, deep
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost
from zhenfa.plan import bounds, sparing
from zhenfa.plan.build import Layout, make_plan, pipelines, rows_for
from zhenfa.plan.partly import FULL
from zhenfa.plan.search import layout_of
from zhenfa.plan.space import SOME_LAYERS
from zhenfa.plan.split import Problem, Split
from zhenfa.plan.tails import FEW, needless_splits, with_tails
from zhenfa.spec.plan import Offload


def layouts(seed: int) -> list[tuple[Setting, Layout, int]]:
    """Return layouts that save memory, with their setting and the micro-batches of all replicas."""
    traits = EVERY_SCHEDULE.but(offloads=get_args(Offload))
    setting = random_setting(
        seed, 1, layers=(4, 7), cards=(2, 4, 6), batches=(4, 8), plenty=(0.5, 1, 2, 4), traits=traits
    )
    every, rng = deep(setting), random.Random(seed)
    base = every.where(np.array(rng.sample(range(len(every)), min(30, len(every))), dtype=np.int64))
    found = []
    if len(base):
        for there, here, _ in sparing.every_way(setting, "p0", base, bounds.work_per_micro_batch(setting, "p0", base)):
            for row in rng.sample(range(len(here)), min(3, len(here))):
                layout = layout_of(here, row, "p0")
                again = rng.randint(1, 2) if here.saving[row] & SOME_LAYERS else None
                found.append((there, replace(layout, again=again), int(here.total[row])))
    return found


def test_bounds_with_tails_hold_and_needless_splits_are_known() -> None:
    sharper = known = idle = 0
    for seed in range(16):
        for setting, layout, total in layouts(seed):
            ranges = list(splits(len(setting.graph.layers), len(layout.slots)))
            if len(ranges) <= FEW:
                continue
            problem = Problem.of(setting, layout, rows_for(setting, layout))
            borders = np.array([[0, *(last for _, last in one)] for one in ranges])
            plain = problem.bound(borders, layout.micro_batches) * (layout.slots[0].recompute != FULL)
            given = [(layout, Split(one, float(least))) for one, least in zip(ranges, plain, strict=True)]
            tried = with_tails(setting, given, total)
            assert sorted(split.ranges for _, split in tried) == sorted(ranges)
            assert [split.bound for _, split in tried] == sorted(split.bound for _, split in tried)
            for (here, split), needless in zip(tried, needless_splits(setting, tried), strict=True):
                plan = make_plan(setting, "test", here, pipelines(here, split.ranges, total))
                assert split.bound <= cost(plan, setting).step * SLACK
                sharper += split.bound > plain[ranges.index(split.ranges)] * 1.001
                if needless is not None:
                    known += 1
                    idle += needless
                    assert needless == sparing.needless(plan, setting)
    assert sharper > 200
    assert known > 200
    assert idle > 20
