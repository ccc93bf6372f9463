"""Some layers computed again: what memory alone says is never too much, and no plan that fits beats what follows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from plan_brute import splits
from plan_pools import random_setting
from test_plan_schedules import EVERY_SCHEDULE, SLACK, deep
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost, memory_problem
from zhenfa.plan import bounds, sparing
from zhenfa.plan.bounds import Work
from zhenfa.plan.build import Layout, make_plan, pipelines
from zhenfa.plan.even import even_ranges
from zhenfa.plan.partly import least_again, least_work
from zhenfa.plan.search import layout_of
from zhenfa.plan.space import SOME_LAYERS, Candidates
from zhenfa.plan.variants import Pairs, sharper
from zhenfa.spec.plan import Offload, Plan


def tight(seed: int) -> Setting:
    """Return a setting with less memory than jobs want, and every way to save it."""
    traits = EVERY_SCHEDULE.but(offloads=get_args(Offload))
    return random_setting(
        seed, 1, layers=(4, 9), cards=(2, 4, 6), batches=(4, 8, 12), plenty=(0.5, 1, 1.5, 2), traits=traits
    )


def some(setting: Setting, seed: int) -> list[tuple[Setting, Candidates, Work, Work]]:
    """Return random layouts that compute some layers again, with their work if none were and if all were."""
    every, rng = deep(setting), random.Random(seed)
    base = every.where(np.array(rng.sample(range(len(every)), min(60, len(every))), dtype=np.int64))
    if not len(base):
        return []
    work = bounds.work_per_micro_batch(setting, "p0", base)
    found = []
    for there, here, kept in sparing.every_way(setting, "p0", base, work):
        if here.saving[0] & SOME_LAYERS:
            found.append((there, here, kept, sparing.all_again(there, "p0", here, kept, np.arange(len(here)))))
    return found


def plan_of(setting: Setting, layout: Layout, again: int, ranges: list[tuple[int, int]], total: int) -> Plan:
    layout = replace(layout, partly=False, again=again)
    return make_plan(setting, "test", layout, pipelines(layout, ranges, total))


def test_no_split_that_fits_beats_the_least_work() -> None:
    sharp = fitting = 0
    for seed in range(12):
        setting, rng = tight(seed), random.Random(seed)
        for there, found, kept, again in some(setting, seed):
            least = least_work(there, "p0", found, kept, again)
            assert (least.whole >= kept.whole).all()
            assert (least.whole <= again.whole * SLACK).all()
            floor = bounds.step_bound(there, least, found.pipeline, found.micro_batches)
            plain = bounds.step_bound(there, kept, found.pipeline, found.micro_batches)
            for row in rng.sample(range(len(found)), min(6, len(found))):
                layout, total = layout_of(found, row, "p0"), int(found.total[row])
                every = list(splits(len(setting.graph.layers), len(layout.slots)))
                for ranges in rng.sample(every, min(3, len(every))):
                    longest = max(last - first for first, last in ranges)
                    plans = [plan_of(there, layout, number, ranges, total) for number in range(1, longest)]
                    steps = [one.step for one in (cost(plan, there) for plan in plans) if not one.problem]
                    fitting += len(steps)
                    sharp += bool(steps) and bool(floor[row] > plain[row] * 1.01)
                    assert all(floor[row] <= step * SLACK for step in steps)
    assert fitting > 100
    assert sharp > 20


@pytest.mark.parametrize("seed", range(14))
def test_no_even_split_that_fits_beats_its_bounds(seed: int) -> None:
    setting, rng = tight(100 + seed), random.Random(seed)
    for there, found, kept, again in some(setting, seed):
        pairs = Pairs.of(there, found, kept)
        chunk = np.array(sorted(rng.sample(range(len(pairs)), min(12, len(pairs)))), dtype=np.int64)
        closer = pairs.closer(there, "p0", chunk, np.maximum(again.layers - kept.layers, 0.0))
        sharps, misfits = sharper(there, "p0", closer, chunk, lambda _, seconds: seconds, np.inf)
        places = {int(place): (sharp, index) for sharp in sharps for index, place in enumerate(sharp.places)}
        assert misfits + len(places) == len(chunk)
        for place, pair in enumerate(chunk.tolist()):
            row = int(pairs.row[pair])
            layout, total = pairs.layout(layout_of(found, row, "p0"), pair), int(found.total[row])
            ranges = even_ranges(len(setting.graph.layers), len(layout.slots), layout.virtual)
            plans = [plan_of(there, layout, again, ranges, total) for again in range(1, longest(ranges))]
            fits = [number for number, plan in enumerate(plans, 1) if not memory_problem(plan, there)]
            if not fits:
                continue
            sharp, index = places[place]
            assert sharp.group.again is not None
            assert sharp.group.again[index] <= fits[0]
            step = min(cost(plans[number - 1], there).step for number in fits)
            assert closer.bound[pair] <= step * SLACK
            assert sharp.seconds[index] <= step * SLACK
            assert sharp.followed(there, index) <= step * SLACK
            started = replace(layout, again=int(sharp.group.again[index]))
            if memory_problem(plan_of(there, layout, 0, ranges, total), there):
                chosen = least_again(there, started, ranges, total)
                assert chosen is not None
                assert chosen.again == fits[0]


def longest(ranges: list[tuple[int, int]]) -> int:
    return max(last - first for first, last in ranges)
