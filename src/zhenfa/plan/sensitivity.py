"""Which input moves the answer most: every number moved by its own uncertainty, the plan costed again each time, and
for those that matter most the search run again, to see whether another plan becomes the best.

The answer is what the job's objective counts for each token: seconds with what failures cost of them, or money, or
energy. Beside it stand the seconds of a step and the energy of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zhenfa.errors import ZhenfaError
from zhenfa.estimate.energy_wall import energy_wall
from zhenfa.estimate.report import step_parts, summary
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.survival import survival
from zhenfa.estimate.training import cost
from zhenfa.plan.answer import Answer
from zhenfa.plan.goal import Goal
from zhenfa.plan.inputs import Input, inputs
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.search import Best, Tally
from zhenfa.spec.plan import Plan

SEARCHED: Final = 4
SEARCHED_MIXED: Final = 2
"""Inputs for which the search is run again, at both ends: of one pool, and of several, where a search is longer."""

NOTHING: Final = 1e-6
"""Below this share of the answer an input moves nothing."""

BETTER: Final = 0.001
"""By how much another plan must be better to be the best one."""


@dataclass(frozen=True)
class Outcome:
    """What a plan gives with an input at one end: the answer per token, seconds of a step, joules per token (None:
    power undisclosed). ``problem``: why the plan cannot run there."""

    answer: float
    step: float
    energy: float | None
    problem: str = ""


@dataclass(frozen=True)
class Another:
    """Another plan that is the best at one end of an input, and how much better it is there than the first."""

    at: float
    layout: str
    better: float


@dataclass(frozen=True)
class Row:
    """One input moved. ``low`` and ``high``: what the plan gives at the two ends, as shares of what it gives now.

    ``searched``: the search was run again there; ``others``: the plans that then are better.
    """

    input: Input
    now: Outcome
    low: Outcome
    high: Outcome
    searched: bool = False
    others: tuple[Another, ...] = ()

    def span(self, name: str = "answer") -> float:
        """Return the whole range of an outcome over what it is now."""
        now = getattr(self.now, name)
        ends = [value for one in (self.low, self.high) if (value := getattr(one, name)) is not None]
        return (max(*ends, now) - min(*ends, now)) / now if now and ends else 0.0

    def ends(self, name: str = "answer") -> tuple[float, float]:
        """Return how much an outcome changes at the low and at the high end, as shares."""
        now = getattr(self.now, name) or math.nan
        return tuple((getattr(one, name) or now) / now - 1 for one in (self.low, self.high))  # type: ignore[return-value]

    @property
    def elasticity(self) -> float | None:
        """Return the per cent by which the answer changes for each per cent of the input."""
        ends = (self.low.answer, self.high.answer)  # infinite where the plan cannot run
        if self.input.high == self.input.low or not all(0 < one < math.inf for one in ends):
            return None
        return math.log(self.high.answer / self.low.answer) / math.log(self.input.high / self.input.low)

    @property
    def moves(self) -> bool:
        """Return whether the input moves anything, or keeps the plan from running."""
        problem = bool(self.low.problem or self.high.problem)
        return problem or max(self.span(), self.span("energy"), self.span("step")) > NOTHING

    @property
    def key(self) -> tuple[float, float]:
        """Return by what rows are ordered: range of the answer, then of the energy."""
        return self.span(), self.span("energy")


@dataclass(frozen=True)
class Sensitivity:
    """The answer: rows that move something, widest first; ``still``: names of inputs that move nothing."""

    objective: str
    layout: str
    now: Outcome
    rows: tuple[Row, ...]
    still: tuple[str, ...]

    @property
    def ask_first(self) -> Row | None:
        """Return the widest row of a number that is assumed or a claim: what to ask a maker for, or measure, first."""
        return next((one for one in self.rows if one.input.asked and one.input.tag in ("assumed", "claim")), None)

    @property
    def research(self) -> int:
        """Return for how many inputs the search was run again."""
        return sum(row.searched for row in self.rows)

    def widest(self, most: int, least: float = 0.0005) -> tuple[Row, ...]:
        """Return the first rows, those that move less than ``least`` of the answer and of the energy left out."""
        worth = [row for row in self.rows if max(row.key) >= least or row.low.problem or row.high.problem]
        return tuple(worth[:most])

    def share(self, row: Row) -> float:
        """Return a row's range over the widest."""
        widest = max(one.span() for one in self.rows)
        return row.span() / widest if widest else 0.0


Progress = Callable[[int, int], None]


def sensitivity(answer: Answer, *, searched: int | None = None, progress: Progress | None = None) -> Sensitivity:
    """Return which input moves the best plan of an answer most; the search is run again for the widest few."""
    plan, setting, goal = answer.best.plan, answer.setting, answer.goal
    if searched is None:
        searched = SEARCHED if len(setting.formation.pools) == 1 else SEARCHED_MIXED
    now = outcome(plan, setting, goal)
    every = inputs(plan, setting)
    rows = []
    for number, one in enumerate(every):
        rows.append(_row(one, now, goal))
        if progress:
            progress(number + 1, len(every) + searched)
    moving = sorted((row for row in rows if row.moves), key=lambda row: row.key, reverse=True)
    stopped = [row for row in moving if row.low.problem or row.high.problem]
    again = [row.input.name for row in dict.fromkeys([*stopped, *moving])][:searched]
    found: list[Row] = []
    for row in moving:
        found.append(_searched(row, answer, goal) if row.input.name in again else row)
        if progress:
            progress(len(every) + min(len(found), searched), len(every) + searched)
    shown = {row.input.name for row in found}
    return Sensitivity(
        goal.objective, answer.best.layout, now, tuple(found), tuple(one.name for one in every if one.name not in shown)
    )


def outcome(plan: Plan, setting: Setting, goal: Goal) -> Outcome:
    """Return what a plan gives in a setting."""
    found = cost(plan, setting)
    tokens = plan.global_batch * plan.sequence_length
    if setting.formation.emulated:
        return Outcome(found.step / tokens, found.step, None, found.problem)
    survived = survival(plan, setting)
    energy = energy_wall(plan, setting, found, step_parts(found.worst), survived).figure.value
    if goal.objective in ("cost", "energy"):
        own = Goal.of(goal.objective, setting, goal.limits).score(plan, found)
    else:
        own = found.step / survived.ettr / tokens
    return Outcome(own, found.step / tokens, energy, found.problem)


def _row(one: Input, now: Outcome, goal: Goal) -> Row:
    low, high = (outcome(plan, setting, goal) for setting, plan in (one.move(one.low), one.move(one.high)))
    return Row(one, now, low, high)


def _searched(row: Row, answer: Answer, goal: Goal) -> Row:
    """Return a row with the search run again at both ends."""
    others = []
    for factor, before in ((row.input.low, row.low), (row.input.high, row.high)):
        setting, plan = row.input.move(factor)
        best = _best(answer, setting, goal)
        if best is None:
            continue
        after = outcome(best, setting, goal)
        better = 1.0 if before.problem else 1 - after.answer / before.answer
        if better > BETTER and best.pipelines != plan.pipelines:
            others.append(Another(factor, summary(best), better))
    return Row(row.input, row.now, row.low, row.high, True, tuple(others))


def _best(answer: Answer, setting: Setting, goal: Goal) -> Plan | None:
    job = answer.request.job
    try:
        best = Best(1, goal=Goal.of(goal.objective, setting, job.limits))
        search_mixed(setting, job.name, setting.workload.global_batch, job.limits, best, Tally())
    except ZhenfaError:
        return None
    ranked = best.ranked()
    return ranked[0].plan if ranked else None
