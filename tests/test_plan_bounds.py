"""Bounds are bounds: nothing that fits is refused, nothing that is quick is called slow. One law, one or a million."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from plan_brute import Layout as Every
from plan_brute import splits, to_plan
from plan_pools import random_setting
from zhenfa.estimate.setting import Cut, Setting, Unit
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.laws.pipeline import pipeline_time
from zhenfa.plan import bounds, family
from zhenfa.plan.build import CODES, Layout, rows_for, rows_of_many, take
from zhenfa.plan.fewer import fewer_stages
from zhenfa.plan.goal import QUICKEST
from zhenfa.plan.look import Look
from zhenfa.plan.search import Tally, layout_of
from zhenfa.plan.space import Candidates, chunks, enumerate_pool, fewer_replicas
from zhenfa.plan.split import Refused, schedule_bound, split_layers
from zhenfa.spec.job import Limits

SLACK = 1 + 1e-9


def all_splits(setting: Setting, layout: Layout, total: int) -> list[PlanCost]:
    """Cost every split of a layout."""
    cuts = tuple(
        (slot.pool, slot.tensor, slot.expert, CODES[slot.recompute], slot.context, slot.expert_tensor, slot.data)
        for slot in layout.slots
    )
    every = Every(cuts, layout.replicas, layout.size, total, layout.zero)
    ranges = splits(len(setting.graph.layers), len(cuts))
    return [cost(to_plan(setting, every, one), setting) for one in ranges]


def candidates_of(setting: Setting, pool: str) -> Candidates:
    found = enumerate_pool(setting, pool, setting.workload.global_batch, Limits(), Counter())
    parts, here = [found], found
    while len(here):
        here, _ = fewer_replicas(here)
        parts.append(here)
    return Candidates.together(parts)


@pytest.mark.parametrize("seed", range(40))
def test_no_split_beats_the_bound_and_none_that_fits_is_refused(seed: int) -> None:
    setting = random_setting(seed, 1)
    found = candidates_of(setting, "p0")
    work = bounds.work_per_micro_batch(setting, "p0", found)
    floor = bounds.step_bound(setting, work, found.pipeline, found.micro_batches)
    may_fit = bounds.may_fit(setting, "p0", found)
    picked = random.Random(seed).sample(range(len(found)), min(24, len(found)))
    for index in picked:
        layout = layout_of(found, index, "p0")
        outcomes = all_splits(setting, layout, int(found.total[index]))
        assert floor[index] <= min(one.step for one in outcomes) * SLACK
        possible = [one.step for one in outcomes if not one.problem]
        split = split_layers(setting, layout)
        assert isinstance(split, Refused) == (not possible)
        if possible:
            assert may_fit[index]
            assert not isinstance(split_layers(setting, layout, min(possible) * SLACK), Refused)


@pytest.mark.parametrize("seed", range(24))
def test_no_split_over_several_pools_beats_any_bound(seed: int) -> None:
    pools = 2 + seed % 2
    setting = random_setting(seed, pools, layers=(3, 4), cards=(1, 2, 3), batches=(2, 4), plenty=(0.8, 1.2, 3))
    rng = random.Random(seed)
    for one in family.every_family(setting, setting.workload.global_batch, Limits(), math.inf, Tally()):
        if not len(one):
            continue
        part = one.where(np.array(rng.sample(range(len(one)), min(2, len(one)))))
        whole, look = family.whole_layers(setting, part), Look.at(setting, part)
        for number, order in enumerate(part.every_order()):
            sharp = look.bounds(order, math.inf)
            for group in range(len(part)):
                inside = look.members(group)
                assert len(inside.part) == part.weight[group]
                own = inside.bounds(order, math.inf)
                for index in rng.sample(range(len(own)), min(2, len(own))):
                    outcomes = all_splits(setting, inside.part.layout(index, order), part.total)
                    quickest = min(found.step for found in outcomes) * SLACK
                    assert part.bound[group] <= quickest
                    assert whole[group] <= quickest
                    fitting = [found.step for found in outcomes if not found.problem]
                    assert family.may_take(setting, inside.part, quickest)[number, index]
                    if fitting:  # NaN would say that nothing fits
                        assert sharp[group] <= min(fitting) * SLACK
                        assert own[index] <= min(fitting) * SLACK
                        assert not look.bounds(order, min(fitting) * 1.001)[group] >= min(fitting) * 1.001


@pytest.mark.parametrize("seed", range(6))
def test_idle_cards_never_lower_the_bound(seed: int) -> None:
    setting = random_setting(seed, 2, layers=(3, 5), cards=(2, 3, 4), batches=(4,), plenty=(20,))
    for one in family.every_family(setting, 4, Limits(), math.inf, Tally()):
        fewer = next(iter(fewer_stages(setting, [one], QUICKEST, math.inf, Tally())), one.where(np.zeros(0, dtype=int)))
        assert not len(fewer) or fewer.bound.min() >= one.bound.min() * 0.98  # bisection leaves a little
        seen = {tuple(column) for column in np.concatenate([one.chosen, one.depth, one.replicas[None]]).T.tolist()}
        new = [tuple(column) for column in np.concatenate([fewer.chosen, fewer.depth, fewer.replicas[None]]).T.tolist()]
        assert len(set(new)) == len(new)
        assert not seen & set(new)
        most = np.stack([option.count // option.width[pick] for option, pick in one.picks])
        reached = seen | set(new)
        for chosen, replicas, limit in zip(one.chosen.T.tolist(), one.replicas.tolist(), most.T.tolist(), strict=True):
            for depth in itertools.product(*(range(1, cards // replicas + 1) for cards in limit)):
                if sum(depth) <= len(setting.graph.layers):
                    assert (*chosen, *depth, replicas) in reached


@given(st.data())
def test_the_schedule_is_never_quicker_than_its_bound(data: st.DataObject) -> None:
    stages, times = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 20))
    seconds = st.floats(0, 10, allow_nan=False)
    forward, backward = (data.draw(arrays(float, stages, elements=seconds)) for _ in range(2))
    hops = data.draw(arrays(float, stages - 1, elements=st.floats(0, 3)))
    bound = float(schedule_bound(forward + backward, hops, times))
    assert bound <= float(pipeline_time(forward, backward, hops, times)) * SLACK + 1e-12


def cut_of(setting: Setting, found: Candidates, index: int) -> Cut:
    columns = (
        found.size, found.tensor, found.expert, found.data, found.zero, found.recompute, found.context,
        found.expert_tensor,
    )  # fmt: skip
    named = setting.planned_again("p0") if found.recompute[index] == 1 else ()
    return Cut("p0", *(int(column[index]) for column in columns), modules=named)


@pytest.mark.parametrize("seed", range(12))
def test_work_of_arrays_is_the_sum_of_single_blocks(seed: int) -> None:
    setting = random_setting(seed, 1)
    found = candidates_of(setting, "p0")
    work = bounds.work_per_micro_batch(setting, "p0", found)
    counts = Counter(setting.graph.layers)
    for index in random.Random(seed).sample(range(len(found)), min(8, len(found))):
        units = setting.units_of(cut_of(setting, found, index))
        seconds = [float(unit.forward + unit.backward) for unit in units.kinds]
        ends = [float(unit.forward + unit.backward) for unit in (units.stem, units.head)]
        assert work.layers[:, index].tolist() == pytest.approx(seconds, rel=1e-12)
        assert work.ends[:, index].tolist() == pytest.approx(ends, rel=1e-12)
        whole = sum(counts[kind] * one for kind, one in enumerate(seconds)) + sum(ends)
        assert work.whole[index] == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_arrays_and_single_layouts_go_through_one_law(seed: int) -> None:
    setting = random_setting(seed, 1)
    found = candidates_of(setting, "p0")
    units = setting.units("p0", bounds.shape_of(setting, found), found.zero, found.recompute)
    rows = rows_of_many(setting, "p0", found, bounds.work_per_micro_batch(setting, "p0", found))
    for index in random.Random(seed).sample(range(len(found)), min(8, len(found))):
        layout = layout_of(found, index, "p0")
        slot = layout.slots[0]
        single = setting.units_of(cut_of(setting, found, index))
        blocks = [*zip(units.kinds, single.kinds, strict=True), (units.stem, single.stem), (units.head, single.head)]
        for many, one in blocks:
            assert at(many, index, len(found)) == pytest.approx(at(one, 0, 1), rel=1e-12)
        alone, together = rows_for(setting, layout)[slot], take(rows, index)
        for mine, theirs in zip(alone, together, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def at(unit: Unit, index: int, length: int) -> list[float]:
    """All numbers of a unit at one candidate."""
    fields = [getattr(unit.cost, name) for name in unit.cost.__dataclass_fields__]
    fields += [getattr(unit.holding, name) for name in unit.holding.__dataclass_fields__]
    fields += [unit.forward, unit.backward, unit.recomputed, unit.working]
    return [float(np.broadcast_to(np.asarray(one, float), length)[index]) for one in fields]


def test_replicas_go_down_to_one_expert_group() -> None:
    rng = random.Random(1)
    for _ in range(200):
        tensor, expert = rng.choice([1, 2, 8]), rng.choice([1, 4, 64])
        step = expert // math.gcd(expert, tensor)
        groups, total = rng.randint(1, 400), rng.randint(1, 5000)
        one = np.ones(1, dtype=np.int64)
        here = Candidates.of(
            tensor * one, pipeline=one, data=groups * step * one, expert=expert * one, size=one, total=total * one,
            zero=one, recompute=one,
        )  # fmt: skip
        seen, times = [int(here.data[0])], [int(here.micro_batches[0])]
        while len(here):
            here, _ = fewer_replicas(here)
            seen += here.data.tolist()
            times += here.micro_batches.tolist()
        assert seen == sorted(set(seen), reverse=True)
        assert times == sorted(times)
        assert seen[-1] == step
        assert all(data % step == 0 for data in seen)
        assert {step * group for group in range(1, min(groups, 16) + 1)} <= set(seen)


@given(arrays(float, st.integers(0, 300), elements=st.floats(0, 100)), st.integers(1, 50))
def test_chunks_give_everything_once_in_order(bound: np.ndarray, first: int) -> None:
    pieces = list(chunks(bound, np.arange(len(bound)), first))
    together = np.concatenate([*pieces, np.zeros(0, dtype=np.int64)])
    assert sorted(together.tolist()) == list(range(len(bound)))
    assert (np.diff(bound[together]) >= 0).all()


def test_no_candidates_take_no_work() -> None:
    """Before any other shape was looked at, too."""
    setting = random_setting(0, 1)
    found = enumerate_pool(setting, "p0", setting.workload.global_batch, Limits(), Counter())
    work = bounds.work_per_micro_batch(setting, "p0", found.where(np.zeros(0, dtype=np.int64)))
    assert work.whole.shape == (0,)
    assert work.layers.shape == (len(setting.graph.kinds), 0)
    assert np.isfinite(bounds.work_per_micro_batch(setting, "p0", found).whole).all()
