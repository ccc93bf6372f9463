"""Pipelines over several pools that save memory: the first plan against every layout and split of small machines."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest

from plan_brute import Truth, truth
from plan_pools import random_setting
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.traits import MEGATRON_LIKE
from zhenfa.plan.fewer import UNSEEN
from zhenfa.plan.mixed import UNPROVED, search_mixed
from zhenfa.plan.search import Best, Found, Tally
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Offload, Plan

CASES = [*((2, seed) for seed in range(60)), *((3, seed) for seed in range(6))]


def setting_of(pools: int, seed: int) -> Setting:
    """Two or three pools with too little memory as often as not; every offload on some of them."""
    offloads = get_args(Offload) if seed % 3 == 0 else ("none", "optimizer")
    traits = MEGATRON_LIKE.but(offloads=offloads, some_layers=False, whole_sequence=False, schedules=("1f1b",))
    plenty, layers = (0.2, 0.4, 0.6, 0.8), (2, 3) if pools == 2 else (3, 3)
    cards, batches = ((1, 2), (2, 4)) if pools == 2 else ((1, 1, 2), (2,))
    found = random_setting(seed, pools, layers=layers, cards=cards, batches=batches, plenty=plenty, traits=traits)
    return replace(found, _cards={}, _units={}, _costs={}, _plans={})


@cache
def known(pools: int, seed: int) -> tuple[Truth, list[Found], Tally]:
    setting, best, tally = setting_of(pools, seed), Best(5), Tally()
    search_mixed(setting, "test", setting.workload.global_batch, Limits(), best, tally)
    return truth(setting), best.ranked(), tally


@pytest.mark.parametrize(("pools", "seed"), CASES)
def test_the_first_plan_equals_brute_force(pools: int, seed: int) -> None:
    expected, found, tally = known(pools, seed)
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
    mixed = [plan for plan in plans if len(plan.cards_by_pool()) > 1]
    ways = Counter(_way(plan) for plan in mixed)
    print(ways, len(plans))
    assert sum(count for way, count in ways.items() if way != (1, "none")) >= 10


def _way(plan: Plan) -> tuple[int, str]:
    return max(plan.zero, 1), plan.offload
