"""The planner's answer: ranked plans, what was considered, why the second lost, and what would make a misfit fit."""

from __future__ import annotations

import time
from dataclasses import dataclass

from zhenfa import cite, units
from zhenfa.errors import InfeasibleError
from zhenfa.estimate.report import report, step_parts, summary
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import PlanCost
from zhenfa.plan.build import Layout
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.request import Request
from zhenfa.plan.search import NO_BANDWIDTH, Best, Found, Tally, needed_share
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Estimate


@dataclass(frozen=True)
class Ranked:
    """One plan of the answer."""

    rank: int
    plan: Plan
    estimate: Estimate
    cost: PlanCost
    layout: str
    lost_by: str
    """Why it is not the first (empty for the first)."""


@dataclass(frozen=True)
class Answer:
    """What the planner found."""

    request: Request
    setting: Setting
    plans: tuple[Ranked, ...]
    considered: int
    costed: int
    rejected: dict[str, int]
    seconds: float

    @property
    def best(self) -> Ranked:
        """Return the first plan."""
        return self.plans[0]


def find_plans(request: Request, *, top: int = 5) -> Answer:
    """Return the ``top`` plans with the shortest step for a job on a machine.

    Raises :class:`MissingFactError` for an undisclosed value, :class:`InfeasibleError` with the nearest miss if nothing
    fits.
    """
    begun = time.perf_counter()
    job = request.job
    with cite.collect() as used:
        setting = look_up(request.graph, job.workload, request.formation)
        best, tally = Best(top), Tally()
        search_mixed(setting, job.name, job.workload.global_batch, job.limits, best, tally)
        ranked = best.ranked()
        if not ranked:
            raise _nothing_fits(setting, tally)
        reports = [report(found.plan, setting, found.cost, list(used)) for found in ranked]
    plans = tuple(
        Ranked(index + 1, found.plan, estimate, found.cost, summary(found.plan), _lost_by(ranked[0], found))
        for index, (found, estimate) in enumerate(zip(ranked, reports, strict=True))
    )
    rejected = {reason: count for reason, count in tally.rejected.most_common() if count}
    return Answer(request, setting, plans, tally.considered, tally.costed, rejected, time.perf_counter() - begun)


def estimate_plan(request: Request, plan: Plan) -> Estimate:
    """Return the estimate of a plan that is given, feasible or not."""
    from zhenfa.estimate.training import cost

    with cite.collect() as used:
        setting = look_up(request.graph, request.job.workload, request.formation)
        return report(plan, setting, cost(plan, setting), list(used))


def _lost_by(first: Found, other: Found) -> str:
    """Name the part of the step in which a plan lost most to the first."""
    if other is first:
        return ""
    mine, best = step_parts(other.cost.worst), step_parts(first.cost.worst)
    gaps = {name: mine[name] - best[name] for name in mine}
    worst = max(gaps, key=lambda name: gaps[name])
    behind = other.step / first.step - 1
    return f"{behind:+.1%}: {units.show(gaps[worst], 'time')} more {worst}"


def _nothing_fits(setting: Setting, tally: Tally) -> InfeasibleError:
    formation, workload = setting.formation, setting.workload
    lines = [f"no layout of {setting.graph.name} fits {formation.name} ({formation.cards:,} cards)."]
    nearest = min(((needed_share(setting, one), number) for number, one in enumerate(tally.misses)), default=None)
    if tally.rejected[NO_BANDWIDTH] and nearest is None:
        unknown = [
            f"{pool.name}.tiers.{tier.name}.bandwidth"
            for pool in formation.pools
            for tier in pool.tiers
            if tier.bandwidth.value is None
        ]
        lines.append(f"Every layout crosses a tier whose bandwidth is undisclosed: {', '.join(unknown)}.")
        return InfeasibleError(" ".join(lines), hint=f'supply it with --assume {unknown[0]}="100 GB/s" (your value).')
    if nearest is not None:
        lines.append(_nearest(setting, nearest[0], tally.misses[nearest[1]]))
    counts = ", ".join(f"{count:,} {reason}" for reason, count in tally.rejected.most_common(3) if count)
    lines.append(f"Looked at {tally.considered:,}: {counts}.")
    return InfeasibleError(" ".join(lines), hint=_way_out(setting, nearest, tally.misses, workload.global_batch))


def _nearest(setting: Setting, share: float, layout: Layout) -> str:
    slot = layout.slots[0]
    capacity = setting.chips[slot.pool].usable
    words = f"TP{slot.tensor} PP{len(layout.slots)} DP{layout.replicas} EP{slot.expert}"
    return (
        f"The nearest miss, {words} with {('no', 'selective', 'full')[slot.recompute]} recomputation, needs "
        f"{units.show(share * capacity, 'data')} a card; {units.show(capacity, 'data')} are usable."
    )


def _way_out(setting: Setting, nearest: tuple[float, int] | None, misses: list[Layout], sequences: int) -> str:
    if nearest is None:
        return "relax the job's limits, or take a machine with more cards."
    share, layout = nearest[0], misses[nearest[1]]
    usable = setting.chips[layout.slots[0].pool].usable
    cards = setting.formation.cards
    return (
        f"cards with {units.show(share * usable, 'data')} usable would hold it, or about "
        f"{max(cards + 1, round(cards * share)):,} cards like these; or a smaller global batch than {sequences:,}, "
        "a shorter sequence, or a lower precision."
    )
