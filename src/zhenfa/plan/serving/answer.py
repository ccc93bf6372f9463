"""The answer for a job that serves: ranked plans, the front, what was considered, and why the others lost."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from zhenfa import cite
from zhenfa.errors import CapabilityError, InputError
from zhenfa.estimate import serving
from zhenfa.estimate.serving_cards import stored_format
from zhenfa.estimate.serving_failing import kept
from zhenfa.estimate.serving_report import ServingEstimate, estimate, estimate_part
from zhenfa.plan.request import Request
from zhenfa.plan.serving import closed, fleet, misfit, parts, search, sizes
from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.front import FrontPoint, front
from zhenfa.plan.serving.lasting import lasting
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.search import Space
from zhenfa.plan.serving.words import summary
from zhenfa.plan.shown import Shown
from zhenfa.plan.supply import supplied
from zhenfa.spec.job import Objective
from zhenfa.spec.serving import ServingPlan, ServingWorkload

if TYPE_CHECKING:
    from zhenfa.estimate.serving_detail import StepDetail
    from zhenfa.plan.sensitivity import Sensitivity
    from zhenfa.plan.serving.explain import ServingWhy


@dataclass(frozen=True)
class ServingRanked:
    """One plan of the answer. ``lost_by``: why it is not the first (empty for the first)."""

    rank: int
    plan: ServingPlan
    estimate: ServingEstimate
    layout: str
    lost_by: str
    quality: tuple[str, ...]
    """What of it may change what the model says, such as narrower weights than it is stored in."""

    @property
    def card_seconds(self) -> float:
        """Return the seconds of a card that one request takes."""
        return self.plan.cards / (self.estimate.figures.requests_per_s.value or np.inf)


@dataclass(frozen=True, repr=False)
class ServingAnswer(Shown):
    """What the planner found. ``gap``: by how much at most the best plan may be beaten within the space (0: exact)."""

    request: Request
    plans: tuple[ServingRanked, ...]
    front: tuple[FrontPoint, ...]
    considered: int
    costed: int
    rejected: dict[str, int]
    gap: float
    sources: tuple[str, ...]
    seconds: float

    @property
    def within(self) -> Request:
        """Return the request with the cards that the job's limits leave."""
        return replace(self.request, formation=supplied(self.request.formation, self.request.job.limits))

    def at(self, rank: int) -> ServingRanked:
        """Return the plan of a rank. Raises :class:`InputError`."""
        if not 1 <= rank <= len(self.plans):
            raise InputError(f"there is no plan {rank}: there are {len(self.plans)}.", hint="ask for more with top=.")
        return self.plans[rank - 1]

    def why(self, plan: ServingPlan | int | str | os.PathLike[str]) -> ServingWhy:
        """Return why a plan lost to the first: one of these by rank, or a plan of your own (its file, or the plan)."""
        from zhenfa.plan.serving.explain import explain
        from zhenfa.plan.serving.given import read_serving_plan

        if isinstance(plan, int):
            return explain(self, self.at(plan).rank)
        if isinstance(plan, ServingPlan):
            return explain(self, plan)
        return explain(self, read_serving_plan(plan, self.within), name=str(plan))

    def detail(self, rank: int = 1) -> tuple[StepDetail, ...]:
        """Return where a decode step and a step of prompts go, operator by operator, for each part of a plan."""
        from zhenfa.estimate.serving_detail import details

        parts = self.at(rank).estimate.parts
        return tuple(one for part in parts for one in details(part.service, part.served, self.request.formation))

    def sensitivity(self, *, searched: int | None = None) -> Sensitivity:
        """Return which input moves the first plan most; the search is run again for the widest ``searched``."""
        from zhenfa.plan.serving.sensitivity import sensitivity

        return sensitivity(self, searched=searched)

    @property
    def best(self) -> ServingRanked:
        """Return the first plan."""
        return self.plans[0]


def find_serving(request: Request, *, top: int = 5) -> ServingAnswer:
    """Return the ``top`` serving plans for a job on a machine: of a load that is given, those that take it with the
    most output per card within the targets; else those that take the most requests per second within them.

    Raises :class:`MissingFactError` for an undisclosed value, :class:`InfeasibleError` with the nearest miss if nothing
    meets the targets.
    """
    begun = time.perf_counter()
    if request.serving.requests is not None:
        raise CapabilityError(
            "requests that come all at once (workload.requests) are estimated of a given plan, not planned for.",
            hint="write concurrency for a closed loop, or request_rate for arrivals at random.",
        )
    objective, asked = request.job.objective, request
    request = replace(request, formation=supplied(request.formation, request.job.limits))
    with cite.collect() as used:
        space, best, gap = look(request, top)
        ranked = best.ranked()
        if not ranked:
            raise misfit.nothing_serves(space)
        estimates = [_estimate(request, chosen) for _, chosen in ranked]
        seen = front(space)
    if objective == "throughput" and not request.serving.open_ended:
        objective = "step"  # under a load failures are told, and not searched against
    first = None
    plans: list[ServingRanked] = []
    for number, (plan, found) in enumerate(estimates, 1):
        one = ServingRanked(number, plan, found, summary(plan), "", quality(request, plan))
        first = first or one
        plans.append(one if one is first else replace(one, lost_by=_lost_by(first, one, objective)))
    rejected = {reason: count for reason, count in space.tally.most_common() if count}
    return ServingAnswer(
        asked, tuple(plans), seen, space.considered, space.costed, rejected, gap, tuple(used),
        time.perf_counter() - begun,
    )  # fmt: skip


def look(request: Request, top: int) -> tuple[Space, Best, float]:
    """Return the space, the best choices in it, and by how much at most the first may be beaten."""
    space = search.open_space(request)
    best = Best(top, space.allows)
    lasts = space.wish.objective == "throughput" and space.wish.question == "most"

    def asked() -> float:
        return lasting(space, best, ask, partial(to_plan, request)) if lasts else ask(space, best)

    bound = asked()
    if sizes.refine(space, best):
        bound = max(bound, asked())
    gap = bound / best.first - 1.0 if 0 < best.first < bound < np.inf else 0.0
    return space, best, gap


def ask(space: Space, best: Best) -> float:
    """Offer the answers to what is wanted of a space; return a score that none can exceed (0: as the first's)."""
    wish, several = space.wish, len(space.cards) > 1
    if wish.question == "closed":
        return closed.closed(space, wish.requests, best)
    if wish.question == "most":
        search.most(space, space.cards, best)
        return fleet.most(space, best) if several else 0.0
    if wish.question == "least":
        search.fewest(space, wish.rate or 0.0, best)
        if several:
            fleet.fewest(space, wish.rate or 0.0, best)
        return 0.0
    search.least_each(space, wish.rate or 0.0, best)
    if wish.rate is not None and several:
        whole = Best(best.keep, space.allows)
        fleet.fewest(space, wish.rate, whole)
        for score, chosen in whole.ranked():
            best.offer(chosen, (score[0] / wish.rate, wish.rate))
    return 0.0


def to_plan(request: Request, chosen: tuple[Part, ...]) -> ServingPlan:
    """Return the document of a choice: its first part, with the others beside it."""
    total = sum(one.rate for one in chosen)
    documents = [one.plan().model_copy(update={"share": one.rate / total}) for one in chosen]
    return documents[0].model_copy(update={"also": tuple(documents[1:])})


def _estimate(request: Request, chosen: tuple[Part, ...]) -> tuple[ServingPlan, ServingEstimate]:
    plan = to_plan(request, chosen)
    return plan, estimate_serving(request, plan, rate=sum(one.rate for one in chosen))


def estimate_serving(request: Request, plan: ServingPlan, *, rate: float | None = None) -> ServingEstimate:
    """Return the estimate of a serving plan that is given, under the job's load or so many requests per second."""
    found = []
    for one in plan.parts:
        service = serving.look_up(request.graph, one, request.formation)
        served = serving.serve(service, _shared(request.serving, one.share, rate))
        found.append(estimate_part(service, served))
    rates = [one.served.requests_per_second for one in found]
    return estimate(found, request.formation, kept(plan, request.formation, request.job.recovery, rates))


def _shared(workload: ServingWorkload, share: float, rate: float | None) -> ServingWorkload:
    """Return the part of the load that comes to one part of a plan."""
    if workload.concurrency is not None:
        return workload.model_copy(update={"concurrency": workload.concurrency * share})
    whole = workload.request_rate if rate is None else rate
    return workload if whole is None else parts.workload_of(workload, whole * share)


def quality(request: Request, plan: ServingPlan) -> tuple[str, ...]:
    """Return what of a plan may change what the model says."""
    stored, found = stored_format(request.graph), []
    for form in plan.formats:
        if form != stored:
            found.append(f"weights in {form}, stored in {stored} by the model's own checkpoint")
    if any(one.prefill_weights for one in plan.parts):
        found.append("keys and values of prompts come from other weights than those that decode")
    if plan.cache not in ("bf16", "fp16"):
        found.append(f"keys and values in {plan.cache}, not 16 bits")
    return tuple(found)


def _lost_by(first: ServingRanked, other: ServingRanked, objective: Objective) -> str:
    """Say by how much a plan is behind in what plans are ranked by, and in which group of instances most of it is."""
    mine, best = _use(other), _use(first)
    gaps = {name: mine.get(name, 0.0) - best.get(name, 0.0) for name in (*mine, *best)}
    worst, won = max(gaps, key=lambda name: gaps[name]), min(gaps, key=lambda name: gaps[name])
    words = f"{gaps[worst]:.3g} more {worst}" if gaps[worst] > 0 else "no group takes more"
    words += f", {-gaps[won]:.3g} less {won}" if -gaps[won] > max(gaps[worst] / 2, 0.0) else ""
    words = f"card-seconds a request: {words}"
    mine_least, best_least = (_least(objective, one.estimate) for one in (other, first))
    if mine_least is not None and best_least is not None:
        return f"{_apart(mine_least / best_least - 1)} {objective} of a token; {words}"
    left_of, most = (one.estimate.figures.requests_per_s_kept.value for one in (other, first))
    if objective == "throughput" and left_of and most:
        return f"{_apart(left_of / most - 1)} requests/s that failures leave; {words}"
    if objective == "cards" and other.plan.cards != first.plan.cards:
        return f"{_apart(other.plan.cards / first.plan.cards - 1)} cards; {words}"
    if first.estimate.parts[0].served.workload.request_rate is not None and _rate(other) < _rate(first) * (1 - 1e-4):
        left = first.plan.cards - other.plan.cards
        fewer = f"; {left:,} fewer cards" if left > 0 else ""
        return f"{_apart(_rate(other) / _rate(first) - 1)} requests/s; {words}{fewer}"
    return f"{_apart(other.card_seconds / first.card_seconds - 1)} {words}"


def _apart(share: float) -> str:
    """Return by how many per cent plans differ, without a sign before nothing but zeros."""
    words = f"{share:+.1%}"
    return "0.0%" if words in ("-0.0%", "+0.0%") else words


def _least(objective: Objective, estimate: ServingEstimate) -> float | None:
    """Return what an objective wants little of, for a token; None where plans are ranked by output or cards."""
    figure = {
        "cost": estimate.figures.cost_per_million_tokens, "energy": estimate.figures.energy_j_per_token,
    }.get(objective)  # fmt: skip
    return None if figure is None else figure.value


def _rate(one: ServingRanked) -> float:
    return one.estimate.figures.requests_per_s.value or 0.0


def _use(one: ServingRanked) -> dict[str, float]:
    """Return the card-seconds of a request by group of instances."""
    rate, found = _rate(one), dict[str, float]()
    for part in one.plan.parts:
        groups = (
            {"prefill": part.prefill, "decode": part.decode} if part.prefill else {"prefill and decode": part.decode}
        )
        for name, instance in groups.items():
            if instance is not None:
                found[name] = found.get(name, 0.0) + instance.count * instance.cards / rate
    return found
