"""Objectives and limits of serving: the best plan against every plan of small jobs, valued one by one."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from serving_brute import Brute, cards_of
from test_serving_search import small
from zhenfa.errors import CapabilityError, InfeasibleError, MissingFactError
from zhenfa.plan.request import Request
from zhenfa.plan.serving import answer, estimate_serving, find_serving, search, space
from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.words import percentiles
from zhenfa.spec.fact import read_fact
from zhenfa.spec.job import Limits
from zhenfa.spec.machine import CardPool
from zhenfa.spec.serving import Instance, ServingPlan


@pytest.fixture(autouse=True)
def few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "CHUNKS", (4096,))


def priced(pool: CardPool, draw: random.Random) -> CardPool:
    """A pool with a price, and sometimes with a power of its own."""
    price = read_fact(f"{draw.choice((5, 20, 80))} CNY/h", "money/time")
    if draw.random() < 0.5:
        pool = replace(pool, power_per_card=read_fact(f"{draw.choice((300, 900))} W", "power"))
    return replace(pool, accelerator=pool.accelerator.model_copy(update={"price": price}))


def asking(seed: int, objective: str, limits: dict[str, object] | None = None) -> Request:
    """Return a random small request with prices, another objective and more limits."""
    request, draw = small(seed), random.Random(seed)
    pools = tuple(priced(pool, draw) for pool in request.formation.pools)
    own = request.job.limits.to_data() if hasattr(request.job.limits, "to_data") else {}
    said = Limits.model_validate({**request.job.limits.model_dump(exclude_unset=True), **own, **(limits or {})})
    job = request.job.model_copy(update={"objective": objective, "limits": said})
    return replace(request, job=job, formation=replace(request.formation, pools=pools, pue=read_fact(1.2, "ratio")))


def price_of(request: Request, plan: tuple[Instance | None, Instance]) -> float:
    """Return the CNY/s of a plan's cards."""
    return sum(
        count * (request.formation.pool(name).accelerator.price.value or 0.0) for name, count in cards_of(plan).items()
    )


def power_of(request: Request, plan: tuple[Instance | None, Instance], rate: float) -> float:
    """Return the W of a plan at a load, by the estimate of the plan itself."""
    prefill, decode = plan
    family = next(iter(space.families(request)))
    document = ServingPlan(
        model=request.model.name, machine="small", engine="vllm", weights=family.weights, cache=family.cache,
        prefill=prefill, decode=decode,
    )  # fmt: skip
    figures = estimate_serving(request, document, rate=rate).figures
    assert figures.energy_j_per_token.value is not None
    assert figures.tokens_per_s.value is not None
    return figures.energy_j_per_token.value * figures.tokens_per_s.value


def found_first(request: Request) -> float | None:
    """Return the first score of the search; None where nothing was found."""
    _, best, _ = answer.look(request, 3)
    return best.first if best.found else None


@pytest.mark.parametrize("seed", [0, 2, 3, 6, 8, 9, 12, 14, 15, 20])
def test_the_cheapest_token_is_what_brute_force_finds(seed: int) -> None:
    request = asking(seed, "cost")
    brute = Brute(request)
    if request.serving.request_rate is not None:
        rate = request.serving.request_rate
        spent = [price_of(request, plan) for plan in brute.plans(brute.cards) if brute.most(plan) >= rate * (1 - 1e-9)]
        for chosen in itertools.product(*(range(count + 1) for count in brute.cards.values())):
            own = dict(zip(brute.cards, chosen, strict=True))
            if sum(brute.own(name, count) for name, count in own.items()) >= rate * (1 - 1e-9):
                price = {name: request.formation.pool(name).accelerator.price.value or 0.0 for name in own}
                spent.append(sum(price[name] * count for name, count in own.items()))
    else:
        taken = [(plan, brute.most(plan)) for plan in brute.plans(brute.cards)]
        spent = [price_of(request, plan) / rate for plan, rate in taken if rate > 0]
    first = found_first(request)
    assert (-first if first is not None else None) == pytest.approx(min(spent, default=None), rel=1e-5)


@pytest.mark.parametrize("seed", [3, 6, 9, 15])
def test_the_token_of_least_energy_is_what_brute_force_finds(seed: int) -> None:
    request = asking(seed, "energy")
    brute = Brute(request)
    taken = [(plan, brute.most(plan)) for plan in brute.plans(brute.cards)]
    least = min((power_of(request, plan, rate) / rate for plan, rate in taken if rate > 0), default=None)
    first = found_first(request)
    assert (-first if first is not None else None) == pytest.approx(least, rel=2e-3)


@pytest.mark.parametrize("seed", [1, 3, 4, 9, 13])
def test_the_fewest_cards_are_what_brute_force_finds(seed: int) -> None:
    request = asking(seed, "cards")
    brute, rate = Brute(request), request.serving.request_rate or 1e-9
    first = found_first(request)
    assert (-first if first is not None else float("inf")) == brute.fewest(rate)


@pytest.mark.parametrize("seed", [3, 6, 9, 15, 18, 21])
def test_a_limit_of_power_is_kept_to(seed: int) -> None:
    request = asking(seed, "step", {"power": "2500 W"})
    brute = Brute(request)
    if len(brute.cards) == 1:
        taken = [(plan, brute.most(plan)) for plan in brute.plans(brute.cards)]
        wanted = max((rate for plan, rate in taken if rate > 0 and power_of(request, plan, rate) <= 2500), default=0.0)
        found = found_first(request) or 0.0
        assert found == pytest.approx(wanted, rel=1e-5)
    try:
        best = find_serving(request).best
    except InfeasibleError:
        return
    figures = best.estimate.figures
    assert (figures.energy_j_per_token.value or 0.0) * (figures.tokens_per_s.value or 0.0) <= 2500 * 1.005


@pytest.mark.parametrize("seed", [8, 12, 14, 20])
def test_the_cheapest_token_within_a_power_is_what_brute_force_finds(seed: int) -> None:
    request = asking(seed, "cost", {"power": "2500 W"})
    brute = Brute(request)
    taken = [(plan, brute.most(plan)) for plan in brute.plans(brute.cards)]
    kept = [(plan, rate) for plan, rate in taken if rate > 0 and power_of(request, plan, rate) <= 2500]
    spent = [price_of(request, plan) / rate for plan, rate in kept]
    assert -(found_first(request) or np.nan) == pytest.approx(min(spent), rel=1e-5)


@pytest.mark.parametrize("limits", [{}, {"power": "2500 W"}, {"max_cards": 5}])
@pytest.mark.parametrize("seed", [1, 6, 12])
def test_whole_instances_bound_what_a_pair_takes(seed: int, limits: dict[str, object]) -> None:
    """The bound of a pair of types is the most of all pairs of numbers that fit, each side at its own bound."""
    opened = search.open_space(asking(seed, "step", limits))
    for first, other, joint in opened.pairs:
        rooms = tuple(opened.wish.room(one.name, opened.cards[one.name]) for one in (first, other))
        rows, columns = (np.ravel(one) for one in np.indices((len(first.prefill), len(other.decode))))
        found = search.whole_bound(opened, (first, other, joint), (rows, columns), rooms)
        for at, to, bound in zip(rows, columns, found, strict=True):
            size, each = float(first.prefill.cards[at]), float(other.decode.cards[to])
            most = 0.0
            for n, m in itertools.product(range(1, int(rooms[0] // size) + 1), range(1, int(rooms[1] // each) + 1)):
                used = Counter({first.name: n * size}) + Counter({other.name: m * each})
                drawn = sum(opened.wish.watts.get(name, 0.0) * cards for name, cards in used.items())
                there = all(cards <= opened.cards[name] for name, cards in used.items())
                if there and opened.wish.fits(used) and drawn <= (opened.wish.power or np.inf) * (1 + 1e-9):
                    most = max(most, min(n * first.givers.most[at], m * float(other.decoded[to])))
            assert bound == pytest.approx(most)


@pytest.mark.parametrize("seed", [0, 2, 6, 12, 18])
def test_limits_on_cards_memory_and_work_are_kept_to(seed: int) -> None:
    request = asking(seed, "step", {"max_cards": 3, "memory": "80 %"})
    try:
        found = find_serving(request)
    except InfeasibleError:
        return
    for one in found.plans:
        assert one.plan.cards <= 3
        held, whole = one.estimate.fullest
        assert held <= 0.8 * whole * 1.001
    pools = request.formation.pools
    if len(pools) > 1 and pools[1].maker != pools[0].maker:
        shared = asking(seed, "step", {"least_share": {pools[1].maker: 0.9}})
        space_, best, _ = answer.look(shared, 3)
        for _, chosen in best.ranked():
            assert space_.allows(chosen)


def test_output_that_is_asked_for_is_reached_or_refused() -> None:
    plain = asking(3, "step")
    free = find_serving(plain).best.estimate.figures.tokens_per_s.value or 0.0
    cheap = find_serving(asking(3, "cost", {"tokens_per_s": f"{free * 0.9} tokens/s"})).best
    assert (cheap.estimate.figures.tokens_per_s.value or 0.0) >= 0.9 * free * (1 - 2e-3)
    with pytest.raises(InfeasibleError):
        find_serving(asking(3, "step", {"tokens_per_s": f"{free * 1.1} tokens/s"}))


def test_what_has_no_meaning_is_refused_with_the_reason() -> None:
    with pytest.raises(CapabilityError, match="micro_batch_size is not kept to by plans that serve: plans that serve"):
        find_serving(asking(3, "step", {"micro_batch_size": 2}))
    with pytest.raises(CapabilityError, match="time is of a training run"):
        find_serving(asking(3, "time"))
    request = asking(3, "cost")
    bare = tuple(
        replace(pool, accelerator=pool.accelerator.model_copy(update={"price": read_fact("1 CNY/h", "money/time")
                .model_copy(update={"value": None})})) for pool in request.formation.pools
    )  # fmt: skip
    with pytest.raises(MissingFactError, match="price"):
        find_serving(replace(request, formation=replace(request.formation, pools=bare)))


def test_nothing_that_is_not_allowed_is_kept() -> None:
    space_, best, _ = answer.look(asking(0, "step"), 3)
    _, chosen = best.ranked()[0]
    none = Best(3, lambda _: False)
    none.offer(chosen, (1.0, 0.0))
    assert not none.ranked()
    assert space_.allows(chosen)


@pytest.mark.parametrize("seed", [3, 6, 12, 18])
def test_percentiles_are_kept_to_and_cost_output(seed: int) -> None:
    plain = asking(seed, "step")
    workload = plain.serving.model_copy(update={"ttft_percentile": 99.0, "tpot_percentile": 95.0})
    tight = replace(plain, job=plain.job.model_copy(update={"workload": workload}))
    first, less = found_first(plain), found_first(tight)
    assert first is not None
    if less is None:
        return
    assert less <= first * (1 + 1e-9)
    found = {name: seconds for name, _, seconds in percentiles(find_serving(tight).best.estimate)}
    assert found["TTFT"] <= (workload.ttft_target or 0) * 1.005
    assert found["TPOT"] <= (workload.tpot_target or 0) * 1.005
