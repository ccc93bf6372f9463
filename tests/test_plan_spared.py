"""Spare nodes in data parallel over makers: what is planned for is what failures leave, not the step on paper."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from zhenfa.plan.answer import Answer, find_plans
from zhenfa.plan.goal import Goal, kept
from zhenfa.plan.request import Request, read_request, setting_of
from zhenfa.plan.spared import with_spares
from zhenfa.spec.job import Limits

ROOT = Path(__file__).parent.parent
NODE = 8


@cache
def request(objective: str) -> Request:
    """DeepSeek-V3 on 10,240 cards of three makers."""
    on = str(ROOT / "examples/ten-thousand-cards.yaml")
    return read_request(
        str(ROOT / "examples/deepseek-v3-train.yaml"), on=on, objective="throughput" if objective != "step" else "step"
    )


@cache
def answer(objective: str) -> Answer:
    return find_plans(request(objective), top=1)


def left(found: Answer) -> float:
    """Tokens/s of the first plan that failures leave, counted alike for every objective."""
    setting = setting_of(request("throughput"))
    best = found.best
    work, up = kept(setting, {pool: np.array([count]) for pool, count in best.plan.cards_by_pool().items()})
    tokens = best.estimate.figures.tokens_per_s.value
    assert tokens is not None
    return float(tokens * (work * up)[0])


def test_what_failures_leave_is_more_than_of_the_shortest_step() -> None:
    assert left(answer("throughput")) > 1.02 * left(answer("step"))


def test_pools_that_work_together_keep_nodes_free() -> None:
    pools = {pool.name: pool.count for pool in request("throughput").formation.pools}
    used = answer("throughput").best.plan.cards_by_pool()
    assert len(used) > 1
    assert all(count <= pools[name] - NODE for name, count in used.items())


def test_each_pool_has_the_cards_that_leave_most() -> None:
    setting = setting_of(request("throughput"))
    spared = with_spares(setting, Goal.of("throughput", setting, Limits()))
    assert spared is not None
    for pool, all_of_it in zip(spared.formation.pools, setting.formation.pools, strict=True):
        counts = np.arange(all_of_it.count, 0, -NODE)
        work, up = kept(setting, {pool.name: counts})
        worth = counts * work * up
        assert 0 < all_of_it.count - pool.count < all_of_it.count / 10
        assert worth[(all_of_it.count - pool.count) // NODE] == pytest.approx(worth.max())
    assert spared.formation.cards + spared.formation.kept_back == setting.formation.cards


@pytest.mark.parametrize("objective", ["step", "cost", "energy", "cards"])
def test_no_spares_where_failures_do_not_count_for_the_goal(objective: str) -> None:
    setting = setting_of(request("throughput"))
    assert with_spares(setting, Goal(objective=objective, setting=setting)) is None  # type: ignore[arg-type]
