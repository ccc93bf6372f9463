"""Other schedules than 1F1B: their bounds hold, nothing that fits is refused, and a job says which may be planned."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

import zhenfa
from plan_brute import even_split
from plan_pools import random_setting
from zhenfa.errors import DocumentError, InputError
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost, memory_problem
from zhenfa.estimate.traits import MEGATRON_LIKE
from zhenfa.plan import bounds, sparing
from zhenfa.plan.build import make_plan, pipelines
from zhenfa.plan.even import even_ranges
from zhenfa.plan.search import layout_of
from zhenfa.plan.space import Candidates, enumerate_pool, fewer_replicas, with_fewer
from zhenfa.plan.variants import Pairs, Sharp, schedules_for, sharper
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Offload, Schedule

EVERY_SCHEDULE = MEGATRON_LIKE.but(schedules=get_args(Schedule))
SLACK = 1 + 1e-9


def setting_of(seed: int) -> Setting:
    return random_setting(seed, 1, layers=(3, 9), cards=(2, 4, 6), batches=(4, 8, 12), traits=EVERY_SCHEDULE)


def deep(setting: Setting) -> Candidates:
    found = enumerate_pool(setting, "p0", setting.workload.global_batch, Limits(), Counter())
    parts, here = [found], found
    while len(here):
        here, _ = fewer_replicas(here)
        parts.append(here)
    every = Candidates.together(parts)
    return every.where(every.pipeline > 1)


def steps(setting: Setting, pairs: Pairs, sharp: Sharp, index: int, pair: int) -> tuple[float, bool]:
    """Return the exact step of a pair, and whether it fits."""
    layout = pairs.layout(layout_of(sharp.group.part, index, "p0"), pair)
    ranges = even_ranges(len(setting.graph.layers), len(layout.slots), layout.virtual)
    plan = make_plan(setting, "test", layout, pipelines(layout, ranges, int(sharp.group.part.total[index])))
    found = cost(plan, setting)
    return found.step, not found.problem


@pytest.mark.parametrize("seed", range(30))
def test_bounds_of_other_schedules_grow_towards_the_step_and_never_beyond(seed: int) -> None:
    setting = setting_of(seed)
    base = deep(setting)
    if not len(base):
        return
    work = bounds.work_per_micro_batch(setting, "p0", base)
    pairs = Pairs.of(setting, base, work)
    rng = random.Random(seed)
    chunk = np.array(sorted(rng.sample(range(len(pairs)), min(40, len(pairs)))), dtype=np.int64)
    found, misfits = sharper(setting, "p0", pairs, chunk, lambda _, seconds: seconds, np.inf)
    assert misfits + sum(len(one.places) for one in found) == len(chunk)
    for sharp in found:
        for index in range(len(sharp.places)):
            pair = int(chunk[sharp.places[index]])
            step, _ = steps(setting, pairs, sharp, index, pair)
            followed = sharp.followed(setting, index)
            assert pairs.bound[pair] <= sharp.seconds[index] * SLACK
            assert sharp.seconds[index] <= followed * SLACK
            assert followed <= step * SLACK


def test_bounds_of_layouts_that_save_memory_hold() -> None:
    """ZeRO 2 and 3 in pipelines, host memory, and some layers computed again: none beats its bounds."""
    seen = set[object]().union(*(seen_of_saving(seed) for seed in range(12)))
    assert {("zero", 2), ("zero", 3), ("offload", "both"), ("again", 1)} <= seen


def seen_of_saving(seed: int) -> set[object]:
    """Check layouts that save memory against their bounds; return what they do."""
    setting = setting_of(seed)
    setting = replace(setting, traits=setting.traits.but(offloads=get_args(Offload)), _plans={})
    every = deep(setting)
    rng = random.Random(seed)
    base = every.where(np.array(rng.sample(range(len(every)), min(60, len(every))), dtype=np.int64))
    seen: set[object] = set()
    if not len(base):
        return seen
    work = bounds.work_per_micro_batch(setting, "p0", base)
    for there, found, added in sparing.every_way(setting, "p0", base, work):
        floor = bounds.step_bound(there, added, found.pipeline, found.micro_batches)
        for row in rng.sample(range(len(found)), min(3, len(found))):
            layout = replace(layout_of(found, row, "p0"), partly=False, again=1 if found.saving[row] & 4 else None)
            ranges = even_ranges(len(setting.graph.layers), len(layout.slots), 1)
            plan = make_plan(setting, "test", layout, pipelines(layout, ranges, int(found.total[row])))
            assert floor[row] <= cost(plan, setting).step * SLACK
        pairs = Pairs.of(there, found, added)
        chunk = np.array(sorted(rng.sample(range(len(pairs)), min(6, len(pairs)))), dtype=np.int64)
        sharps, _ = sharper(there, "p0", pairs, chunk, lambda _, seconds: seconds, np.inf)
        for sharp in sharps:
            for index in range(len(sharp.places)):
                pair = int(chunk[sharp.places[index]])
                layout = pairs.layout(layout_of(sharp.group.part, index, "p0"), pair)
                layout = replace(layout, partly=False, again=1 if layout.partly else None)
                ranges = even_ranges(len(setting.graph.layers), len(layout.slots), layout.virtual)
                total = int(sharp.group.part.total[index])
                plan = make_plan(setting, "test", layout, pipelines(layout, ranges, total))
                assert pairs.bound[pair] <= sharp.seconds[index] * SLACK
                assert sharp.followed(there, index) <= cost(plan, setting).step * SLACK
                seen |= {("zero", plan.zero), ("offload", plan.offload), ("again", layout.again)}
    return seen


@pytest.mark.parametrize("seed", range(10))
def test_what_saves_memory_without_need_surely_fits(seed: int) -> None:
    setting = setting_of(seed)
    base = deep(setting)
    if not len(base):
        return
    pairs = Pairs.of(setting, base, bounds.work_per_micro_batch(setting, "p0", base))
    sure = np.flatnonzero(pairs.fits(setting, "p0", base))
    for pair in random.Random(seed).sample(sure.tolist(), min(8, len(sure))):
        layout = pairs.layout(layout_of(base, int(pairs.row[pair]), "p0"), pair)
        ranges = even_ranges(len(setting.graph.layers), len(layout.slots), layout.virtual)
        entries = pipelines(layout, ranges, int(base.total[pairs.row[pair]]))
        assert not memory_problem(make_plan(setting, "test", layout, entries), setting)


@pytest.mark.parametrize("seed", range(30))
def test_what_fits_passes_the_memory_test_of_other_schedules(seed: int) -> None:
    setting = setting_of(seed)
    base = deep(setting)
    if not len(base):
        return
    pairs = Pairs.of(setting, base, bounds.work_per_micro_batch(setting, "p0", base))
    chunk = np.array(random.Random(seed).sample(range(len(pairs)), min(25, len(pairs))), dtype=np.int64)
    found, _ = sharper(setting, "p0", pairs, chunk, lambda _, seconds: seconds, np.inf)
    passed = {int(chunk[place]) for sharp in found for place in sharp.places}
    for pair in set(chunk.tolist()) - passed:
        layout = pairs.layout(layout_of(base, int(pairs.row[pair]), "p0"), pair)
        ranges = even_ranges(len(setting.graph.layers), len(layout.slots), layout.virtual)
        plan = make_plan(setting, "test", layout, pipelines(layout, ranges, int(base.total[pairs.row[pair]])))
        assert cost(plan, setting).problem


def test_even_ranges_are_as_even_as_can_be() -> None:
    for layers in range(1, 24):
        for places in range(1, layers + 1):
            for turns in range(1, layers // places + 1):
                found = even_ranges(layers, places, turns)
                sizes = [last - first for first, last in found]
                assert sum(sizes) == layers
                assert max(sizes) - min(sizes) <= 1
                assert found == even_split(layers, places, turns)


@pytest.mark.parametrize("seed", range(12))
def test_layouts_with_fewer_replicas_are_counted_right(seed: int) -> None:
    setting = random_setting(seed, 1, cards=(3, 6, 40, 300), batches=(8, 64, 600))
    found = enumerate_pool(setting, "p0", setting.workload.global_batch, Limits(), Counter())
    counted, here = 0, found
    while len(here):
        here, _ = fewer_replicas(here)
        counted += len(here)
    assert int(with_fewer(found).sum()) == counted


@pytest.mark.parametrize("seed", range(6))
def test_schedules_are_counted_right(seed: int) -> None:
    setting = setting_of(seed)
    base = deep(setting)
    if len(base):
        pairs = Pairs.of(setting, base, bounds.work_per_micro_batch(setting, "p0", base))
        assert len(pairs) + pairs.uneven + len(base) == int(schedules_for(setting, base.pipeline).sum())


CARD = {"name": "node", "size": 8, "bandwidth": "300 GB/s", "latency": "2 us"}
NET = {"name": "network", "size": 256, "bandwidth": "200 Gb/s", "latency": "5 us", "topology": "clos"}
JOB: dict[str, Any] = {
    "schema": "zhenfa.job/1", "name": "small", "model": "llama3-70b",
    "machine": {
        "schema": "zhenfa.machine/1", "name": "a100-256",
        "pools": [{"name": "a100", "accelerator": "nvidia-a100-sxm-80g", "count": 256, "tiers": [CARD, NET]}],
    },
    "workload": {"sequence_length": 4096, "global_batch": 256},
}  # fmt: skip


def planned(schedules: Any) -> zhenfa.Answer:
    limits = {} if schedules is None else {"schedules": schedules}
    return zhenfa.plan({**JOB, "limits": limits}, top=3)


def test_a_job_says_which_schedules_may_be_planned() -> None:
    usual, plain, every = planned(None), planned(["1f1b"]), planned("all")
    assert {one.plan.schedule for one in usual.plans} <= {"1f1b", "interleaved"}
    assert {one.plan.schedule for one in plain.plans} == {"1f1b"}
    assert every.best.cost.step <= usual.best.cost.step <= plain.best.cost.step
    assert every.considered > usual.considered > plain.considered
    only = planned(["interleaved"])
    assert {one.plan.schedule for one in only.plans if len(one.plan.pipelines[0].stages) > 1} <= {"interleaved"}
    said = [note for note in every.best.estimate.assumptions if note.startswith("limits.schedules")]
    assert said == ["limits.schedules: gpipe, zero-bubble, zero-bubble-v, dualpipe, which Megatron-Core does not run"]
    assert not [note for note in usual.best.estimate.assumptions if note.startswith("limits.schedules")]


def test_what_is_none_or_does_not_run_is_refused() -> None:
    with pytest.raises(DocumentError, match="interleaved"):
        planned(["interleave"])
    emulated = {
        **JOB,
        "machine": "emulated-quartet",
        "model": "tiny-byte-gpt",
        "limits": {"offload": ["optimizer"]},
    }
    with pytest.raises(InputError, match="does not do"):
        zhenfa.plan({**emulated, "workload": {"sequence_length": 128, "global_batch": 64, "precision": "fp32"}})
