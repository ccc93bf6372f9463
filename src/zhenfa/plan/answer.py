"""The planner's answer: ranked plans, what was considered, why the second lost, and what would make a misfit fit."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zhenfa import cite, units
from zhenfa.errors import InfeasibleError, InputError, ZhenfaError
from zhenfa.estimate.report import report, step_parts, summary
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.goal import QUICKEST, Goal
from zhenfa.plan.misfit import nothing_fits
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.refused import Trial, nothing_allowed
from zhenfa.plan.request import Request, setting_of, setting_within
from zhenfa.plan.search import Best, Found, Tally
from zhenfa.plan.shown import Shown
from zhenfa.plan.worth import kept_to, worth
from zhenfa.spec.job import Limits, Objective
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Estimate, Figure

if TYPE_CHECKING:
    from zhenfa.estimate.detail import Detail
    from zhenfa.plan.explain import Why
    from zhenfa.plan.sensitivity import Sensitivity


@dataclass(frozen=True, repr=False)
class Ranked:
    """One plan of the answer."""

    rank: int
    plan: Plan
    estimate: Estimate
    cost: PlanCost
    layout: str
    lost_by: str
    """Why it is not the first (empty for the first)."""
    score: Figure = field(default_factory=Figure)
    """What it is worth in the objective."""
    taken: Mapping[str, float] = field(default_factory=dict)
    """How much of each limit it takes up: 1 is all of it."""

    def __repr__(self) -> str:
        behind = f", {self.lost_by}" if self.lost_by else ""
        return f"<plan {self.rank}: {self.layout}, {units.show(self.cost.step, 'time')} a step{behind}>"


@dataclass(frozen=True, repr=False)
class Answer(Shown):
    """What the planner found. In a notebook it shows itself as a table."""

    request: Request
    setting: Setting
    plans: tuple[Ranked, ...]
    considered: int
    costed: int
    rejected: dict[str, int]
    seconds: float
    goal: Goal = QUICKEST
    bound_by: tuple[str, ...] = ()
    """The limits that kept out layouts which might have been better than the first plan."""

    refused: Mapping[str, int] = field(default_factory=dict)
    """What is not planned over several pools, by reason, with the combinations of pools that it leaves out."""

    bounded: int = 0
    """Of the layouts considered, how many had a bound of their own."""

    gap: float = 0.0
    """By what share of the first plan's score, at most, a plan that the search stopped before may be better."""

    @property
    def objective(self) -> Objective:
        """Return what the plans were chosen for."""
        return self.goal.objective

    @property
    def best(self) -> Ranked:
        """Return the first plan."""
        return self.plans[0]

    def why(self, plan: Plan | int | str | os.PathLike[str]) -> Why:
        """Return why a plan lost to the first: one of these by rank, or a plan of your own (its file, or the plan)."""
        from zhenfa.plan.explain import explain
        from zhenfa.plan.given import read_plan

        if isinstance(plan, int):
            return explain(self, self.at(plan).rank)
        if isinstance(plan, Plan):
            return explain(self, plan)
        return explain(self, read_plan(plan, self.request), name=str(plan))

    def detail(self, rank: int = 1) -> Detail:
        """Return where a plan spends its step, operator by operator and link by link, and what its cards hold."""
        from zhenfa.estimate.detail import detail

        return detail(self.at(rank).plan, self.setting, self.at(rank).cost)

    def sensitivity(self, *, searched: int | None = None) -> Sensitivity:
        """Return which input moves the first plan most; the search is run again for the widest ``searched``."""
        from zhenfa.plan.sensitivity import sensitivity

        return sensitivity(self, searched=searched)

    def at(self, rank: int) -> Ranked:
        """Return the plan of a rank. Raises :class:`InputError`."""
        if not 1 <= rank <= len(self.plans):
            raise InputError(f"there is no plan {rank}: there are {len(self.plans)}.", hint="ask for more with top=.")
        return self.plans[rank - 1]


def find_plans(request: Request, *, top: int = 5) -> Answer:
    """Return the ``top`` plans that are best by the job's objective and keep its limits.

    Raises :class:`MissingFactError` for an undisclosed value, :class:`InfeasibleError` with the nearest miss if nothing
    fits or no plan keeps the limits.
    """
    begun = time.perf_counter()
    with cite.collect() as used:
        best, tally, setting = _search(request, request.job.objective, request.job.limits, top)
        goal, ranked = best.goal, best.ranked()
        if not ranked:
            raise _nothing(request, setting, tally)
        reports = [report(found.plan, setting, found.cost, list(used)) for found in ranked]
    plans = tuple(
        Ranked(
            index + 1, found.plan, estimate, found.cost, summary(found.plan), _lost_by(goal, ranked[0], found),
            worth(goal, found.plan, found.cost, found.score, estimate.figures.step_time_s.tag),
            kept_to(goal, found.plan, found.cost),
        )
        for index, (found, estimate) in enumerate(zip(ranked, reports, strict=True))
    )  # fmt: skip
    rejected = {reason: count for reason, count in tally.rejected.most_common() if count}
    bound_by = tuple(reason for reason, score in tally.barred.items() if score < ranked[0].score)
    return Answer(
        request, setting, plans, tally.considered, tally.costed, rejected, time.perf_counter() - begun, goal, bound_by,
        dict(tally.refused), tally.bounded, max(0.0, 1.0 - tally.least_left / ranked[0].score),
    )  # fmt: skip


def answer_with(plan: Plan, request: Request) -> Answer:
    """Return an answer of one plan that was not searched for: one of the user's own.

    Raises :class:`InputError` for a plan of another job, :class:`InfeasibleError` for one that cannot run or does not
    fit.
    """
    from zhenfa.plan.given import belongs, faults, misfits

    belongs(plan, request)
    begun, setting = time.perf_counter(), setting_of(request)
    with cite.collect() as used:
        found = cost(plan, setting)
        estimate = report(plan, setting, found, list(used))
    problems = faults(plan, setting, request.job.limits) or misfits(found)
    if problems:
        raise InfeasibleError(
            f"the plan does not run: {'; '.join(problems)}.",
            hint="`zhenfa plan JOB --why PLAN` lays it beside the best.",
        )
    one = Ranked(1, plan, estimate, found, summary(plan), "")
    return Answer(request, setting, (one,), 1, 1, {}, time.perf_counter() - begun)


def _search(request: Request, objective: Objective, limits: Limits, top: int) -> tuple[Best, Tally, Setting]:
    setting = setting_within(request, limits)
    best, tally = Best(top, goal=Goal.of(objective, setting, limits)), Tally()
    search_mixed(setting, request.job.name, request.training.global_batch, limits, best, tally)
    return best, tally, setting


def _nothing(request: Request, setting: Setting, tally: Tally) -> ZhenfaError:
    """Return the error for a search that found nothing: which limits bind, or else what does not fit."""

    def attempt(objective: Objective, limits: Limits) -> Trial | None:
        try:
            best, *_ = _search(request, objective, limits, 1)
        except InfeasibleError:
            return None
        return Trial(best.goal, best.ranked()[0]) if best.ranked() else None

    job = request.job
    refused = nothing_allowed(request.formation.name, job.objective, job.limits, tally, attempt)
    return refused or nothing_fits(setting, tally, job.limits)


def estimate_plan(request: Request, plan: Plan) -> Estimate:
    """Return the estimate of a plan that is given, feasible or not."""
    with cite.collect() as used:
        setting = setting_of(request)
        return report(plan, setting, cost(plan, setting), list(used))


def _lost_by(goal: Goal, first: Found, other: Found) -> str:
    """Name the part of the step in which a plan lost most to the first, and where it won much of that back."""
    if other is first:
        return ""
    if goal.objective not in ("step", "throughput", "time") or other.step <= first.step:
        return _behind(goal, first, other)
    mine, best = step_parts(other.cost.worst), step_parts(first.cost.worst)
    gaps = {name: mine[name] - best[name] for name in mine}
    worst, won = max(gaps, key=lambda name: gaps[name]), min(gaps, key=lambda name: gaps[name])
    words = f"{other.step / first.step - 1:+.1%}: {units.show(gaps[worst], 'time')} more {worst}"
    if -gaps[won] > gaps[worst] / 2:
        words += f", {units.show(-gaps[won], 'time')} less {won}"
    return words


def _behind(goal: Goal, first: Found, other: Found) -> str:
    """Say how far a plan is behind in an objective that is not decided by the parts of the step alone."""
    cards, step = other.plan.cards - first.plan.cards, other.step / first.step - 1
    said = [f"{abs(cards):,} cards {'more' if cards > 0 else 'fewer'}"] if cards else []
    said.append(f"step {step:+.1%}")
    if goal.objective == "cards":
        return ": ".join([f"{other.plan.cards / first.plan.cards - 1:+.1%}", f"step {step:+.1%}"])
    return f"{other.score / first.score - 1:+.1%}: {', '.join(said)}"
