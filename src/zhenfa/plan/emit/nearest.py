"""The nearest plan that a target can express: changed rule by rule, or the planner's best on one maker's cards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from zhenfa import units
from zhenfa.errors import ZhenfaError
from zhenfa.estimate import engines
from zhenfa.estimate.report import summary
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import cost
from zhenfa.plan.answer import find_plans
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import Rule
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan

MOST_TRIED = 64
PLANS_TRIED = 10
"""Plans of one maker's cards that are looked at."""

PLAIN: Final[dict[str, Any]] = {"zero_stages": (0, 1), "offloads": ("none",), "whole_sequence": False}
"""What every framework of training has: optimizer state on the cards, shared out or not."""


@dataclass(frozen=True)
class Nearest:
    """A plan that a target can express, and what it is in words."""

    plan: Plan
    words: str


def nearest_plan(subject: Subject, rules: Sequence[Rule]) -> Nearest | None:
    """Return the quickest of the plans near this one that keep all rules; None if there is none.

    First the plan itself is changed, one rule after the other. Where that does not help, as when makers meet, the
    planner searches the cards of each maker alone.
    """
    near = _quickest(_setting(subject, subject.formation), _kept(subject, [subject.training], rules))
    if near is not None:
        return near[1]
    found = []
    for maker in subject.makers():
        if not all(rule.maker(maker) for rule in rules):
            continue
        formation = _only(subject.formation, maker)
        setting = _setting(subject, formation)
        kept = (_quickest(setting, _kept(subject, [plan], rules)) for plan in _planned(subject, formation))
        one = next((pair for pair in kept if pair is not None), None)
        if one is not None:
            found.append(one)
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _kept(subject: Subject, plans: list[Plan], rules: Sequence[Rule]) -> list[Plan]:
    """Return plans that keep all rules, each made from one of these by the changes that the rules propose."""
    for rule in rules:
        following: list[Plan] = []
        for plan in plans:
            here = subject.with_plan(plan)
            following += rule.change(plan, here) if rule.reason(plan, here) else [plan]
        plans = following[:MOST_TRIED]
    return [plan for plan in plans if not any(rule.reason(plan, subject.with_plan(plan)) for rule in rules)]


def _only(formation: Formation, maker: str) -> Formation:
    return replace(formation, pools=tuple(pool for pool in formation.pools if pool.maker == maker))


def _planned(subject: Subject, formation: Formation) -> Iterator[Plan]:
    """Yield the planner's plans for the same job on these cards, quickest first, then those of :data:`PLAIN` ways."""
    request = replace(subject.request(), formation=formation)
    engine = request.traits or engines.for_machine(formation).traits
    for traits in (request.traits, engine.but(**PLAIN)):
        try:
            answer = find_plans(replace(request, traits=traits), top=PLANS_TRIED)
        except ZhenfaError:
            continue
        yield from (one.plan for one in answer.plans)


def _quickest(setting: Setting | None, plans: list[Plan]) -> tuple[float, Nearest] | None:
    """Return the step and the plan with the shortest estimated step of those that fit; the first if none is known."""
    timed = []
    for plan in plans:
        step, problem = _step(setting, plan)
        if not problem:
            timed.append((step, Nearest(plan, _words(plan, step))))
    return min(timed, key=lambda pair: pair[0]) if timed else None


def _words(plan: Plan, step: float) -> str:
    """Return a plan in a line."""
    pools = " + ".join(f"{count:,} {name}" for name, count in plan.cards_by_pool().items())
    stage = plan.pipelines[0].stages[0]
    busiest = max(plan.pipelines, key=lambda one: one.micro_batches)
    named = f" ({', '.join(stage.recompute_modules)})" if stage.recompute_modules else ""
    again = "no recomputation" if stage.recompute == "none" else f"{stage.recompute} recomputation{named}"
    load = f"{busiest.micro_batches:,} micro-batches of {busiest.micro_batch_size} a replica"
    words = f"{summary(plan)} on {pools}, {load}, {again}"
    return words if step == float("inf") else f"{words}, estimated step {units.show(step, 'time')}"


def _step(setting: Setting | None, plan: Plan) -> tuple[float, str]:
    """Return the estimated step of a plan, infinity where it cannot be estimated, and why it cannot run."""
    if setting is None:
        return float("inf"), ""
    try:
        found = cost(plan, setting)
    except ZhenfaError:
        return float("inf"), ""
    return found.step, found.problem


def _setting(subject: Subject, formation: Formation) -> Setting | None:
    """Return what estimates take of these cards; None where their makers have not published what they need."""
    request = replace(subject.request(), formation=formation)
    try:
        return look_up(request.graph, request.training, formation, request.traits, request.job.recovery)
    except ZhenfaError:
        return None
