"""Objectives and limits: the first plan against every plan of small jobs, scored one by one; and what limits may do."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from plan_brute import mixed_pipelines, single_pool, splits, to_plan
from plan_pools import on_the_card, random_plan, random_setting
from zhenfa.errors import InfeasibleError, InputError, MissingFactError, UnknownNameError
from zhenfa.estimate.energy_wall import least_draw
from zhenfa.estimate.report import report, work_by_pool
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan import Answer, find_plans
from zhenfa.plan.goal import Goal, power_of
from zhenfa.plan.mixed import UNPROVED, search_mixed
from zhenfa.plan.request import Request, make_request
from zhenfa.plan.search import Best, Found, Tally
from zhenfa.spec.fact import read_fact
from zhenfa.spec.job import Job, Limits, Objective
from zhenfa.spec.machine import CardPool
from zhenfa.spec.plan import Plan
from zhenfa.spec.upkeep import FailureTimes, Recovery

OBJECTIVES: tuple[Objective, ...] = ("step", "throughput", "time", "cost", "energy", "cards")
CASES = [(1, seed) for seed in (1, 5, 8, 15)] + [(2, seed) for seed in (0, 2, 3)]
MEASURED = "nvidia-h100-sxm"
"""A card whose power follows what it does."""


def priced(one: CardPool, rng: random.Random) -> CardPool:
    """A pool with a price, a power and failures a few minutes to days apart."""
    card = one.accelerator.model_copy(update={"price": read_fact(f"{rng.choice([5, 20, 80])} CNY/h", "money/time")})
    if rng.random() < 0.5:
        card = card.model_copy(update={"id": MEASURED, "tdp": read_fact("700 W", "power")})
    else:
        one = replace(one, power_per_card=read_fact(f"{rng.choice([300, 900])} W", "power"))
    times = FailureTimes(card=read_fact(f"{rng.choice([3, 40, 4000])} h", "time"))
    return replace(one, accelerator=card, failures=times)


@cache
def setting_of(pools: int, seed: int) -> Setting:
    rng = random.Random(100 * pools + seed)
    if pools == 1:
        found = random_setting(seed, 1, layers=(2, 3), cards=(3, 6, 9, 12), batches=(4, 6))
    else:
        found = random_setting(seed, 2, layers=(2, 3), cards=(1, 2), batches=(2, 4), plenty=(1.0, 1.3, 2, 20))
    held = tuple(priced(one, rng) for one in found.formation.pools)
    formation = replace(found.formation, pools=held, pue=read_fact(1.3, "ratio"))
    workload = found.workload.model_copy(update={"tokens": 1e6})
    elastic = Recovery(elastic=rng.random() < 0.4)
    return on_the_card(look_up(found.graph, workload, formation, None, elastic))


@cache
def every_plan(pools: int, seed: int) -> list[tuple[Plan, PlanCost]]:
    """Every plan that fits: all layouts, all splits."""
    setting = setting_of(pools, seed)
    layouts = [layout for one in setting.formation.pools for layout in single_pool(setting, one.name)]
    layouts += list(mixed_pipelines(setting)) if pools > 1 else []
    plans = [
        to_plan(setting, layout, ranges)
        for layout in layouts
        for ranges in splits(len(setting.graph.layers), len(layout.cuts))
    ]
    costed = [(plan, cost(plan, setting)) for plan in plans]
    return [(plan, found) for plan, found in costed if not found.problem]


def search(setting: Setting, goal: Goal) -> tuple[list[Found], Tally]:
    best, tally = Best(3, goal=goal), Tally()
    search_mixed(setting, "test", setting.workload.global_batch, goal.limits, best, tally)
    return best.ranked(), tally


def best_of(goal: Goal, plans: list[tuple[Plan, PlanCost]]) -> float:
    """The best score of all plans. Of plans with as many cards and replicas the quickest stands for all, but where
    power or work depends on more than that."""
    more = goal.objective == "energy" or goal.limits.power.known or goal.limits.least_share
    quickest: dict[object, tuple[Plan, PlanCost]] = {}
    for index, (plan, found) in enumerate(plans):
        key = index if more else (tuple(plan.cards_by_pool().items()), plan.replicas, plan.zero > 0)
        if key not in quickest or found.step < quickest[key][1].step:
            quickest[key] = (plan, found)
    scores = (goal.score(plan, found) for plan, found in quickest.values() if not goal.refusal(plan, found))
    return min(scores, default=np.inf)


def agree(found: list[Found], expected: float, goal: Goal) -> None:
    """The first plan is the best, or better still by replicas over pools, which the brute force does not try."""
    if not found:
        assert expected == np.inf
        return
    assert not goal.refusal(found[0].plan, found[0].cost)
    if len({entry.stages for entry in found[0].plan.pipelines}) == 1:
        assert found[0].score == pytest.approx(expected, rel=1e-9)
    else:
        assert found[0].score <= expected * (1 + 1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("pools", "seed"), CASES)
def test_the_first_plan_is_the_best_by_its_objective(pools: int, seed: int, objective: Objective) -> None:
    setting = setting_of(pools, seed)
    goal = Goal.of(objective, setting, Limits())
    found, tally = search(setting, goal)
    agree(found, best_of(goal, every_plan(pools, seed)), goal)
    assert not tally.rejected[UNPROVED]


def quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share))


def limited(kind: str, goal: Goal, plans: list[tuple[Plan, PlanCost]], rng: random.Random) -> Limits:
    """Limits that some of the plans keep, and some do not."""
    setting = goal.setting
    assert setting is not None
    some = rng.sample(plans, min(len(plans), 40))
    if kind == "power":
        watts = quantile([power_of(plan, setting, found) for plan, found in some], 0.4)
        return Limits(power=read_fact(watts, "power"))
    paces = [plan.global_batch * plan.sequence_length * goal.kept(plan) / found.step for plan, found in some]
    pace = quantile(paces, 0.7)
    if kind == "deadline":
        return Limits(deadline=read_fact((setting.workload.tokens or 0) / pace, "time"))
    return Limits(tokens_per_s=read_fact(pace, "tokens/s"))


@cache
def with_limit(seed: int, kind: str, objective: Objective) -> tuple[Goal, float, float]:
    """A goal with a limit, and the best scores with it and without."""
    setting, plans = setting_of(1, seed), every_plan(1, seed)
    free = Goal.of(objective, setting, Limits())
    goal = Goal.of(objective, setting, limited(kind, free, plans, random.Random(seed)))
    return goal, best_of(goal, plans), best_of(free, plans)


@pytest.mark.parametrize("objective", ["step", "throughput", "cost", "cards"])
@pytest.mark.parametrize("kind", ["power", "deadline", "tokens_per_s"])
@pytest.mark.parametrize("seed", [5, 15])
def test_the_first_plan_is_the_best_that_keeps_a_limit(seed: int, kind: str, objective: Objective) -> None:
    goal, expected, free = with_limit(seed, kind, objective)
    found, tally = search(setting_of(1, seed), goal)
    agree(found, expected, goal)
    assert expected >= free
    assert tally.considered == tally.costed + sum(tally.rejected.values())


def test_the_limits_are_worth_it() -> None:
    """In the cases above limits cost something, and there are plans with fewer cards than all."""
    found = [
        with_limit(seed, kind, one) for seed in (5, 15) for kind in ("power", "deadline") for one in ("step", "cost")
    ]
    assert sum(limited > free * (1 + 1e-9) for _, limited, free in found) >= 2
    assert sum(np.isfinite(limited) for _, limited, free in found) >= 3
    chosen = [search(setting_of(1, seed), Goal.of("cost", setting_of(1, seed), Limits()))[0][0] for seed in (1, 8, 15)]
    assert any(
        one.plan.cards < setting_of(1, seed).formation.cards for one, seed in zip(chosen, (1, 8, 15), strict=True)
    )


@pytest.mark.parametrize("seed", range(12))
def test_scores_are_the_figures_of_the_report(seed: int) -> None:
    setting = setting_of(1, seed % 4)
    rng = random.Random(seed)
    plan = random_plan(rng, setting)
    found = cost(plan, setting)
    if found.problem:
        return
    told, tokens = report(plan, setting, found), plan.global_batch * plan.sequence_length
    goals = {one: Goal.of(one, setting, Limits()) for one in OBJECTIVES}
    ettr, up = told.figures.ettr.value or 0, told.operating.scheduling.value or 0
    scores = {one: goal.score(plan, found) for one, goal in goals.items()}
    assert scores["throughput"] == pytest.approx(found.step / ettr / up, rel=1e-12)
    steps = 1e6 / (setting.workload.global_batch * setting.workload.sequence_length)
    assert scores["time"] == pytest.approx(steps * found.step / ettr / up, rel=1e-12)
    if tokens == setting.workload.global_batch * setting.workload.sequence_length:
        assert scores["cost"] * 1e6 == pytest.approx(told.figures.cost.value, rel=1e-12)
    assert scores["energy"] == pytest.approx(told.figures.energy_j_per_token.value, rel=1e-12)
    assert int(scores["cards"]) == plan.cards
    assert power_of(plan, setting, found) == pytest.approx(told.operating.facility_power_w.value, rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", [1, 5, 8, 15])
def test_no_plan_beats_its_floor(seed: int, objective: Objective) -> None:
    """Floors from a plan's own step and cards, singly and as arrays; and the step within a score."""
    setting = setting_of(1, seed)
    goal = Goal.of(objective, setting, Limits())
    plans = every_plan(1, seed)[::9][:40]
    pool = setting.formation.pools[0].name
    steps = np.array([found.step for _, found in plans])
    cards = {pool: np.array([plan.cards for plan, _ in plans])}
    busy = {
        pool: np.array([sum(stage.busy * stage.stage.cards for stage in found.groups[0].stages) for _, found in plans])
    }
    floors, scores = goal.floor(steps, cards), np.array([goal.score(plan, found) for plan, found in plans])
    assert (floors <= scores * (1 + 1e-9)).all()
    if objective != "energy" and not setting.recovery.elastic:
        assert floors == pytest.approx(scores, rel=1e-9)
    assert (goal.floor_of_fewer(steps, cards, busy) <= floors * (1 + 1e-9)).all()
    for step, (plan, _), score in zip(steps, plans, scores, strict=True):
        within = goal.step_within(score, plan.cards_by_pool())
        assert within >= step * (1 - 1e-9)
        assert goal.step_within_any(score) >= step * (1 - 1e-9)
        if objective != "energy" and not setting.recovery.elastic:
            assert within == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("seed", [1, 5, 8, 15])
def test_a_card_draws_no_less_than_the_least(seed: int) -> None:
    setting = setting_of(1, seed)
    one = setting.formation.pools[0]
    least = least_draw(one, setting.formation)
    assert least is not None
    for plan, found in every_plan(1, seed)[::30]:
        assert power_of(plan, setting, found) >= 1.3 * least.busy * plan.cards * (1 - 1e-9)


NODE = {"name": "node", "size": 8, "bandwidth": "400 GB/s", "latency": "2 us"}
NET = {"name": "net", "size": 1024, "bandwidth": "50 GB/s", "latency": "5 us"}
TWO_MAKERS: dict[str, Any] = {
    "name": "goals",
    "model": "llama3-8b",
    "workload": {"sequence_length": 4096, "global_batch": 32, "tokens": 1e9},
    "machine": {
        "name": "two-makers",
        "pools": [
            {"name": "here", "accelerator": "nvidia-h20-sxm", "count": 16, "tiers": [NODE, NET]},
            {"name": "there", "accelerator": "ascend-910b2", "count": 32, "tiers": [NODE, NET]},
        ],
        "network": {"bandwidth": "25 GB/s", "latency": "20 us"},
    },
}


def answer(objective: Objective = "step", assume: dict[str, str] | None = None, **limits: object) -> Answer:
    job = Job.from_data({**TWO_MAKERS, "objective": objective, "limits": limits, "assume": assume or {}})
    return find_plans(make_request(job), top=1)


def one_maker(cards: int, objective: str, limits: dict[str, object]) -> Request:
    """A model of 70 B on many cards of one maker."""
    tiers = [NODE, {**NET, "size": 1 << 20}]
    card = {"name": "cards", "accelerator": "ascend-910b2", "count": cards, "tiers": tiers}
    data = {
        "name": "goals", "model": "llama3-70b", "machine": {"name": "one-maker", "pools": [card]},
        "workload": {"sequence_length": 4096, "global_batch": cards, "tokens": 1e12},
        "objective": objective, "limits": limits, "assume": {"cards.price": "18 CNY/h"},
    }  # fmt: skip
    return make_request(Job.from_data(data))


@cache
def free() -> Answer:
    return answer()


@pytest.mark.parametrize(
    "limits",
    [
        {"makers": ["huawei", "NVIDIA"]}, {"refuse": ["amd"]}, {"supply": {"huawei": 32, "here": 16}},
        {"supply": {"ascend-910b2": 10_000}}, {"memory": "100 %"}, {"spares": 0}, {"least_share": {"huawei": 0}},
        {"power": "1 GW"}, {"deadline": "1e6 d"}, {"tokens_per_s": 1},
    ],
)  # fmt: skip
def test_a_limit_that_all_plans_keep_changes_nothing(limits: dict[str, object]) -> None:
    found = answer(**limits)
    assert (found.best.plan, found.best.cost.step) == (free().best.plan, free().best.cost.step)
    assert not found.bound_by


@pytest.mark.parametrize(
    ("looser", "tighter"),
    [
        ({"supply": {"huawei": 24}}, {"supply": {"huawei": 8}}),
        ({"spares": "10 %"}, {"spares": "40 %"}),
        ({"memory": "60 %"}, {"memory": "30 %"}),
    ],
)
def test_a_tighter_limit_never_helps(looser: dict[str, object], tighter: dict[str, object]) -> None:
    steps = [one.best.cost.step for one in (free(), answer(**looser), answer(**tighter))]
    assert steps == sorted(steps)


def test_makers_and_supplies_are_kept() -> None:
    assert set(answer(makers=["huawei"]).best.plan.cards_by_pool()) == {"there"}
    assert set(answer(refuse=["ascend-910b2"]).best.plan.cards_by_pool()) == {"here"}
    assert answer(supply={"huawei": 16, "nvidia": 0}).best.plan.cards_by_pool() == {"there": 16}
    assert max(answer(spares="5 %").best.plan.cards_by_pool().get(one, 0) / count
               for one, count in (("here", 16), ("there", 32))) <= 24 / 32  # fmt: skip
    roomy = answer(headroom="20 GB").best.cost.fullest
    assert roomy.bytes <= 64e9 - 20e9 or roomy.stage.pool == "here"


def test_a_share_of_the_work_is_given() -> None:
    found = answer(least_share={"NVIDIA": "40 %"}, max_pipeline_parallel=2, max_tensor_parallel=2)
    plan, cost_ = found.best.plan, found.best.cost
    assert work_by_pool(plan, found.setting, cost_)["here"] >= 0.4
    assert sum(work_by_pool(plan, found.setting, cost_).values()) == pytest.approx(1)
    assert found.rejected["giving NVIDIA less than limits.least_share of 40 %"] > 0
    assert cost_.step > free().best.cost.step


@pytest.mark.parametrize(
    ("limits", "binds", "way_out"),
    [
        ({"deadline": "1 min"}, "limits.deadline of 60 s binds, for the quickest, TP", " d."),
        (
            {"tokens_per_s": 1e9},
            "limits.tokens_per_s of 1 Gtokens/s binds",
            "tokens_per_s of ",
        ),
        (
            {"power": "1 kW"},
            "limits.power of 1 kW binds, for the plan with the fewest cards",
            " kW.",
        ),
        (
            {"memory": "0.1 %"},
            "limits.memory (0.1 %) binds: without it there is TP",
            "leave limits.memory out.",
        ),
        ({"makers": ["amd"]}, "leave no card of one-maker", "leave limits.makers out (1,024 cards)."),
    ],
)
def test_what_no_plan_keeps_is_named_with_a_way_out(limits: dict[str, object], binds: str, way_out: str) -> None:
    with pytest.raises(InfeasibleError) as problem:
        find_plans(one_maker(1024, "step", limits), top=1)
    assert binds in problem.value.message
    assert way_out in (problem.value.hint or "")


def test_the_way_out_of_a_deadline_is_one() -> None:
    with pytest.raises(InfeasibleError) as problem:
        find_plans(one_maker(1024, "cost", {"deadline": "1 min"}), top=1)
    days = (problem.value.hint or "").removeprefix("a deadline of ").removesuffix(".")
    assert find_plans(one_maker(1024, "throughput", {"deadline": days}), top=1).best.taken["deadline"] <= 1


def test_names_and_missing_values() -> None:
    with pytest.raises(UnknownNameError, match="no maker is called"):
        answer(makers=["huawai"])
    with pytest.raises(UnknownNameError, match="no maker, accelerator or pool is called"):
        answer(supply={"ther": 3})
    with pytest.raises(MissingFactError, match="price is undisclosed") as problem:
        answer("cost")
    assert '--assume here.price="18 CNY/h"' in (problem.value.hint or "")
    without = {**TWO_MAKERS, "workload": {"sequence_length": 4096, "global_batch": 64}, "limits": {"deadline": "3 d"}}
    with pytest.raises(InputError, match="needs the length of the run"):
        find_plans(make_request(Job.from_data(without)))


def test_the_cheapest_cards_are_chosen() -> None:
    dear, cheap = {"here.price": "90 CNY/h"}, {"there.price": "1 CNY/h"}
    assert set(answer("cost", {**dear, **cheap}).best.plan.cards_by_pool()) == {"there"}
    turned = {"here.price": "1 CNY/h", "there.price": "90 CNY/h"}
    assert set(answer("cost", turned).best.plan.cards_by_pool()) == {"here"}


@pytest.mark.parametrize("cards", [1024, 20480])
def test_failures_change_the_plan_at_size(cards: int) -> None:
    """On few cards the quickest plan on paper is kept; on very many it loses to one that leaves nodes free."""
    paper, lasting = (find_plans(one_maker(cards, one, {}), top=1) for one in ("step", "throughput"))
    goal = lasting.goal
    kept = [goal.kept(one.best.plan) for one in (paper, lasting)]
    if cards == 1024:
        assert lasting.best.cost.step <= paper.best.cost.step * 1.05
        return
    assert paper.best.plan.cards == cards
    assert lasting.best.plan.cards < cards
    assert lasting.best.cost.step > paper.best.cost.step
    assert lasting.best.cost.step / kept[1] < 0.9 * paper.best.cost.step / kept[0]
    # the reason: as many nodes as the plan needs are up far more often
    up = [one.best.estimate.operating.scheduling.value or 0 for one in (paper, lasting)]
    assert up[0] < 0.6
    assert up[1] > 0.99
