"""Pipelines over several pools that save memory: the first plan against every layout and split of small machines."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from typing import get_args

import pytest

from plan_brute import Truth, truth
from plan_pools import dense, machine, model, random_pool, random_setting, sparse
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.traits import MEGATRON_LIKE
from zhenfa.plan.fewer import UNSEEN
from zhenfa.plan.mixed import UNPROVED, search_mixed
from zhenfa.plan.search import Best, Found, Tally
from zhenfa.spec.job import Limits, Workload
from zhenfa.spec.plan import Offload

CASES = [
    *(("any", 2, seed) for seed in (3, 9, 15, 18, 21, 24, 33, 36, 39, 48)),
    *(("optimizer", 2, seed) for seed in (1, 2, 8, 10, 13, 17, 19, 20, 23, 25, 28, 32, 38, 46)),
    ("optimizer", 3, 2),
    *(("sharded", 2, seed) for seed in (1, 4, 5, 9, 10, 32, 37, 47, 57, 65, 68, 72, 83)),
]

PLAIN = MEGATRON_LIKE.but(offloads=("none",), some_layers=False, whole_sequence=False, schedules=("1f1b",))


def setting_of(sort: str, pools: int, seed: int) -> Setting:
    """Two or three pools with too little memory as often as not."""
    if sort == "sharded":
        return sharded(seed)
    traits = PLAIN.but(offloads=get_args(Offload) if sort == "any" else ("none", "optimizer"))
    layers, cards, batches = ((2, 3), (1, 2), (2, 4)) if pools == 2 else ((3, 3), (1, 1, 2), (2,))
    return random_setting(
        seed, pools, layers=layers, cards=cards, batches=batches, plenty=(0.2, 0.4, 0.6, 0.8), traits=traits
    )


def sharded(seed: int) -> Setting:
    """Two pools of two cards that cannot cut a layer, with memory for about a replica and a half."""
    rng = random.Random(seed)
    hidden = rng.choice([1024, 2048, 4096])
    kinds = [dense(hidden, 1, 1, rng.choice([2, 4]) * hidden)]
    kinds += [sparse(hidden, 1, 2, 1)] if seed % 3 == 0 else []
    graph = model(hidden, 1000, kinds, [rng.randrange(len(kinds)) for _ in range(rng.choice([2, 3]))])
    sequence = rng.choice([128, 512])
    capacity = 18 * graph.parameters / 4 * rng.choice([1.0, 1.1, 1.2, 1.4]) + 40 * sequence * hidden
    held = [random_pool(rng, f"p{index}", 2, capacity * rng.choice([0.8, 1, 1.3])) for index in range(2)]
    workload = Workload(sequence_length=sequence, global_batch=rng.choice([2, 4, 8]))
    formation = machine(*held, bandwidth=rng.choice([10e9, 50e9]), host_staged=False)
    return look_up(graph, workload, formation, PLAIN)


@cache
def known(sort: str, pools: int, seed: int) -> tuple[Truth, list[Found], Tally]:
    setting, best, tally = setting_of(sort, pools, seed), Best(5), Tally()
    search_mixed(setting, "test", setting.workload.global_batch, Limits(), best, tally)
    return truth(setting), best.ranked(), tally


@pytest.mark.parametrize(("sort", "pools", "seed"), CASES)
def test_the_first_plan_equals_brute_force(sort: str, pools: int, seed: int) -> None:
    expected, found, tally = known(sort, pools, seed)
    assert tally.considered == tally.costed + sum(tally.rejected.values())
    if not found:
        assert expected.plan is None
        return
    # replicas of unlike layouts, which the brute force does not try, may only be better
    if len({entry.stages for entry in found[0].plan.pipelines}) == 1:
        assert found[0].step == pytest.approx(expected.step, rel=1e-12)
    else:
        assert found[0].step < expected.step
    assert not tally.rejected[UNPROVED] + tally.rejected[UNSEEN]


def test_such_ways_win() -> None:
    """Where memory is short, the best plans of many of these machines are mixed pipelines that save it."""
    plans = [one.plan for one, _, _ in (known(*case) for case in CASES) if one.plan is not None]
    ways = Counter((plan.zero, plan.offload) for plan in plans if len(plan.cards_by_pool()) > 1)
    assert sum(count for (zero, _), count in ways.items() if zero >= 2) >= 5
    assert sum(count for (_, away), count in ways.items() if away == "optimizer") >= 8
    assert sum(count for (_, away), count in ways.items() if away in ("activations", "both")) >= 1
    assert len(plans) < len(CASES)
