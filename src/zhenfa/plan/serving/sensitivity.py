"""Which input moves the best serving plan most: every number moved by its own uncertainty, what the plan takes within
its targets looked at again each time, and for those that matter most the search run again.

The answer is what counts for a token (cards, money or energy, by the job's objective) at the most that the plan takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from zhenfa.errors import ZhenfaError
from zhenfa.estimate.chip import SUBSTITUTES
from zhenfa.estimate.serving_engine import STEP_FACTS, Engine, find
from zhenfa.plan.inputs import CHOICE, WIDTHS, Input, Moved
from zhenfa.plan.request import Request
from zhenfa.plan.sensitivity import BETTER, Another, Outcome, Progress, Row, Sensitivity
from zhenfa.plan.serving.answer import ServingAnswer, ask, to_plan
from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.given import Tuned, as_it_is, choice_of, faults, fits
from zhenfa.plan.serving.power import watts, worth
from zhenfa.plan.serving.search import open_space
from zhenfa.plan.serving.wish import wish_of
from zhenfa.plan.serving.words import summary
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import CardPool, Precision
from zhenfa.spec.serving import ServingPlan

SEARCHED: Final = 3
"""Inputs for which the search is run again, at both ends."""


@dataclass(frozen=True)
class Lever:
    """One number and how it is moved: a request for a factor, or an engine for one (then the search is not run)."""

    input: Input
    request: Callable[[float], Request] | None = None
    engine: Callable[[float], Tuned] | None = None


def sensitivity(answer: ServingAnswer, *, searched: int | None = None, progress: Progress | None = None) -> Sensitivity:
    """Return which input moves the best plan of an answer most; the search is run again for the widest few."""
    request, plan = answer.within, answer.best.plan
    many = SEARCHED if searched is None else searched
    now = outcome(request, plan)
    levers = list(_levers(request, plan))
    rows: list[tuple[Lever, Row]] = []
    for number, lever in enumerate(levers):
        low, high = (_moved(lever, request, plan, factor) for factor in (lever.input.low, lever.input.high))
        rows.append((lever, Row(lever.input, now, low, high)))
        if progress:
            progress(number + 1, len(levers) + many)
    moving = sorted(((lever, row) for lever, row in rows if row.moves), key=lambda one: one[1].key, reverse=True)
    again = [row.input.name for lever, row in moving if lever.request is not None][:many]
    found = []
    for lever, row in moving:
        found.append(_again(lever, row, request) if row.input.name in again else row)
        if progress:
            progress(len(levers) + min(len(found), many), len(levers) + many)
    shown = {row.input.name for row in found}
    still = tuple(lever.input.name for lever in levers if lever.input.name not in shown)
    return Sensitivity(request.job.objective, answer.best.layout, now, tuple(found), still)


def outcome(request: Request, plan: ServingPlan, tuned: Tuned = as_it_is) -> Outcome:
    """Return what a plan gives: what counts for a token, seconds of a token of all instances, and its energy."""
    problems = faults(plan, request)
    chosen = () if problems else choice_of(plan, request, tuned)
    for part in chosen:
        for types, outputs in ((part.decode, True), (part.prefill, False)):
            if types is not None and not fits(types.group, request, outputs=outputs):
                problems.append("weights and one request do not fit in memory")
    rate = sum(one.rate for one in chosen)
    if problems or rate <= 0:
        return Outcome(float("inf"), float("inf"), None, "; ".join(problems) or "misses a target")
    tokens, wish = rate * request.serving.mean_output, wish_of(request)
    energy = watts(request, chosen) / tokens if wish.watts else None
    return Outcome(worth(request, wish, chosen) / tokens, 1.0 / tokens, energy)


def _moved(lever: Lever, request: Request, plan: ServingPlan, factor: float) -> Outcome:
    try:
        if lever.engine is not None:
            return outcome(request, plan, lever.engine(factor))
        return outcome(lever.request(factor) if lever.request else request, plan)
    except ZhenfaError as problem:
        return Outcome(float("inf"), float("inf"), None, problem.message)


def _again(lever: Lever, row: Row, request: Request) -> Row:
    """Return a row with the search run again at both ends."""
    others = []
    for factor, before in ((row.input.low, row.low), (row.input.high, row.high)):
        assert lever.request is not None  # noqa: S101 - only such levers are searched again
        moved = lever.request(factor)
        plan = _best(moved)
        if plan is None:
            continue
        after = outcome(moved, plan)
        better = 1.0 if before.problem else 1 - after.answer / before.answer
        if better > BETTER and not after.problem:
            others.append(Another(factor, summary(plan), better))
    return replace(row, searched=True, others=tuple(others))


def _best(request: Request) -> ServingPlan | None:
    try:
        space = open_space(request)
        best = Best(1, space.allows)
        ask(space, best)
    except ZhenfaError:
        return None
    ranked = best.ranked()
    return to_plan(request, ranked[0][1]) if ranked else None


# the levers


def _levers(request: Request, plan: ServingPlan) -> Iterator[Lever]:
    names = list(plan.cards_by_pool())
    for name in names:
        yield from _cards(request, plan, request.formation.pool(name))
        yield from _tiers(request, request.formation.pool(name))
    if len(names) > 1 and request.formation.network is not None:
        bandwidth = request.formation.network.bandwidth
        yield _of("network.bandwidth", bandwidth, partial(_network, request))
    yield from _engine(request, plan)
    for field in ("input_length", "output_length", "ttft_target", "tpot_target"):
        value = getattr(request.serving, field)
        if value is not None:
            dimension = "time" if field.endswith("target") else "count"
            ends = (1 / (1 + CHOICE), 1 + CHOICE)
            one = Input(field, value, dimension, "assumed", *ends, f"{CHOICE:.0%}, your choice", "", _never)
            yield Lever(one, partial(_workload, request, field))


def _never(_: float) -> Moved:
    raise ValueError("such an input is moved by its lever")


def _of(name: str, fact: Fact, move: Callable[[float], Request]) -> Lever:
    width = WIDTHS[fact.tag]
    ends = (1 / (1 + width), 1 + width)
    why = f"{width:.0%}, {fact.tag}"
    return Lever(Input(name, fact.value, fact.dimension, fact.tag, *ends, why, "maker", _never), move)


def _cards(request: Request, plan: ServingPlan, pool: CardPool) -> Iterator[Lever]:
    card = pool.accelerator
    for precision in _precisions(request, plan, pool):
        for key in SUBSTITUTES.get(precision, (precision,)):
            fact = card.peak.get(key)
            if fact is not None and fact.value is not None:
                yield _of(f"{pool.name}.peak.{precision}", fact, partial(_peak, request, pool.name, key))
                break
    for field in ("bandwidth", "capacity"):
        fact = getattr(card.memory, field)
        if fact.value is not None:
            yield _of(f"{pool.name}.memory.{field}", fact, partial(_memory, request, pool.name, field))


def _precisions(request: Request, plan: ServingPlan, pool: CardPool) -> list[Precision]:
    found: dict[Precision, None] = {}
    for part in choice_of(plan, request):
        for types in filter(None, (part.decode, part.prefill)):
            if types.family.pool.name == pool.name:
                cards = types.group.setup.cards
                found |= dict.fromkeys(chip.precision for chip in (cards.experts, cards.dense, cards.attention))
    return list(found)


def _with_pool(request: Request, name: str, change: Callable[[CardPool], CardPool]) -> Request:
    pools = tuple(change(pool) if pool.name == name else pool for pool in request.formation.pools)
    return replace(request, formation=replace(request.formation, pools=pools))


def _scaled(fact: Fact, factor: float) -> Fact:
    return fact.model_copy(update={"value": None if fact.value is None else fact.value * factor})


def _peak(request: Request, name: str, key: Any, factor: float) -> Request:
    def change(pool: CardPool) -> CardPool:
        card = pool.accelerator
        peak = {**card.peak, key: _scaled(card.peak[key], factor)}
        return replace(pool, accelerator=card.model_copy(update={"peak": peak}))

    return _with_pool(request, name, change)


def _memory(request: Request, name: str, field: str, factor: float) -> Request:
    def change(pool: CardPool) -> CardPool:
        card = pool.accelerator
        memory = card.memory.model_copy(update={field: _scaled(getattr(card.memory, field), factor)})
        return replace(pool, accelerator=card.model_copy(update={"memory": memory}))

    return _with_pool(request, name, change)


def _tiers(request: Request, pool: CardPool) -> Iterator[Lever]:
    for at, tier in enumerate(pool.tiers):
        if tier.bandwidth.value is not None:
            yield _of(
                f"{pool.name}.tiers.{tier.name}.bandwidth", tier.bandwidth, partial(_tier, request, pool.name, at)
            )


def _tier(request: Request, name: str, at: int, factor: float) -> Request:
    def change(pool: CardPool) -> CardPool:
        tiers = list(pool.tiers)
        tiers[at] = tiers[at].model_copy(update={"bandwidth": _scaled(tiers[at].bandwidth, factor)})
        return replace(pool, tiers=tuple(tiers))

    return _with_pool(request, name, change)


def _network(request: Request, factor: float) -> Request:
    network = request.formation.network
    assert network is not None  # noqa: S101 - asked for only where there is one
    moved = network.model_copy(update={"bandwidth": _scaled(network.bandwidth, factor)})
    return replace(request, formation=replace(request.formation, network=moved))


def _workload(request: Request, field: str, factor: float) -> Request:
    workload = request.serving.model_copy(update={field: getattr(request.serving, field) * factor})
    return replace(request, job=request.job.model_copy(update={"workload": workload}))


def _engine(request: Request, plan: ServingPlan) -> Iterator[Lever]:
    """Yield what the engine adds to steps, on all of its cards together."""
    maker = request.formation.pool(plan.decode.pool).maker
    engine = find(plan.engine, maker)
    for name in STEP_FACTS:
        fact: Fact = getattr(engine, name)
        if fact.value:
            width = WIDTHS[fact.tag]
            ends = (1 / (1 + width), 1 + width)
            one = Input(
                f"engine.{engine.id}.{name}", fact.value, fact.dimension, fact.tag, *ends,
                f"{width:.0%}, {fact.tag}", "measure", _never,
            )  # fmt: skip
            yield Lever(one, engine=partial(_tuning, name))


def _tuning(name: str, factor: float) -> Tuned:
    def tune(engine: Engine) -> Engine:
        return replace(engine, **{name: getattr(engine, name) * factor})

    return tune
