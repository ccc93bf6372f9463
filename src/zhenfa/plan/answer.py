"""The planner's answer: ranked plans, what was considered, why the second lost, and what would make a misfit fit."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from zhenfa import cite, units
from zhenfa.estimate.report import report, step_parts, summary
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.misfit import nothing_fits
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.request import Request, setting_of
from zhenfa.plan.search import Best, Found, Tally
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Estimate


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

    def __repr__(self) -> str:
        behind = f", {self.lost_by}" if self.lost_by else ""
        return f"<plan {self.rank}: {self.layout}, {units.show(self.cost.step, 'time')} a step{behind}>"


@dataclass(frozen=True, repr=False)
class Answer:
    """What the planner found. In a notebook it shows itself as a table."""

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

    def to_data(self) -> dict[str, Any]:
        """Return what ``zhenfa plan --json`` prints, as data: the document ``zhenfa.plans/1``."""
        from zhenfa.plan.documents import to_document

        return to_document(self).to_data()

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return what ``zhenfa plan --json`` prints."""
        return json.dumps(self.to_data(), indent=indent, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        from zhenfa.plan.notebook import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from zhenfa.plan.notebook import as_html

        return as_html(self)


def find_plans(request: Request, *, top: int = 5) -> Answer:
    """Return the ``top`` plans with the shortest step for a job on a machine.

    Raises :class:`MissingFactError` for an undisclosed value, :class:`InfeasibleError` with the nearest miss if nothing
    fits.
    """
    begun = time.perf_counter()
    job = request.job
    with cite.collect() as used:
        setting = setting_of(request)
        best, tally = Best(top), Tally()
        search_mixed(setting, job.name, request.training.global_batch, job.limits, best, tally)
        ranked = best.ranked()
        if not ranked:
            raise nothing_fits(setting, tally, job.limits)
        reports = [report(found.plan, setting, found.cost, list(used)) for found in ranked]
    plans = tuple(
        Ranked(index + 1, found.plan, estimate, found.cost, summary(found.plan), _lost_by(ranked[0], found))
        for index, (found, estimate) in enumerate(zip(ranked, reports, strict=True))
    )
    rejected = {reason: count for reason, count in tally.rejected.most_common() if count}
    return Answer(request, setting, plans, tally.considered, tally.costed, rejected, time.perf_counter() - begun)


def estimate_plan(request: Request, plan: Plan) -> Estimate:
    """Return the estimate of a plan that is given, feasible or not."""
    with cite.collect() as used:
        setting = setting_of(request)
        return report(plan, setting, cost(plan, setting), list(used))


def _lost_by(first: Found, other: Found) -> str:
    """Name the part of the step in which a plan lost most to the first, and where it won much of that back."""
    if other is first:
        return ""
    mine, best = step_parts(other.cost.worst), step_parts(first.cost.worst)
    gaps = {name: mine[name] - best[name] for name in mine}
    worst, won = max(gaps, key=lambda name: gaps[name]), min(gaps, key=lambda name: gaps[name])
    words = f"{other.step / first.step - 1:+.1%}: {units.show(gaps[worst], 'time')} more {worst}"
    if -gaps[won] > gaps[worst] / 2:
        words += f", {units.show(-gaps[won], 'time')} less {won}"
    return words
