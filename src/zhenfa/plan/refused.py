"""What to say when a job's limits leave no plan: which of them binds, the nearest miss, ways out that were tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zhenfa import units
from zhenfa.errors import InfeasibleError
from zhenfa.estimate.report import summary, work_by_pool
from zhenfa.plan.goal import Goal, power_of
from zhenfa.plan.search import Found, Tally
from zhenfa.plan.supply import is_maker
from zhenfa.spec.job import Limits, Objective

NAMES: Final = (
    "deadline", "tokens_per_s", "power", "least_share", "supply", "makers", "refuse", "spares", "memory", "headroom",
)  # fmt: skip
"""The limits that are relaxed one by one."""


@dataclass(frozen=True)
class Trial:
    """The best plan of a search with other limits or another objective."""

    goal: Goal
    found: Found


Attempt = Callable[[Objective, Limits], Trial | None]


def without(limits: Limits, *names: str) -> Limits:
    """Return limits without some of them."""
    free = {name: Limits.model_fields[name].get_default(call_default_factory=True) for name in names}
    return limits.model_copy(update=free)


def nothing_allowed(
    name: str, objective: Objective, limits: Limits, tally: Tally, attempt: Attempt
) -> InfeasibleError | None:
    """Return the error that says what binds and what would free it; None where leaving limits out gives no plan.

    Each limit is left out in turn, then all; what is named was searched again and gave a plan.
    """
    set_ = [one for one in NAMES if without(limits, one) != limits]
    if not set_:
        return None
    lines, ways = [], []
    for one in set_:
        trial = attempt(_best_for(one, objective), without(limits, one))
        if trial is not None:
            miss, way = _nearest(one, limits, trial)
            lines.append(miss)
            ways.append(way)
    if not ways:
        trial = attempt(objective, without(limits, *set_))
        if trial is None:
            return None
        lines = [f"no one of them alone: without any of limits.{', limits.'.join(set_)} there is {_plan(trial)}"]
        ways = ["relax several of them"]
    counts = ", ".join(f"{count:,} {reason}" for reason, count in tally.rejected.most_common(4) if count)
    message = f"no plan on {name} keeps the job's limits: {'; '.join(lines)}. Looked at {tally.considered:,}: {counts}."
    return InfeasibleError(message, hint="; or ".join(ways) + ".")


def _best_for(limit: str, objective: Objective) -> Objective:
    """Return the objective whose best plan comes nearest to a limit that was left out."""
    if limit in ("deadline", "tokens_per_s"):
        return "throughput"
    return "cards" if limit == "power" else objective


def _plan(trial: Trial) -> str:
    plan = trial.found.plan
    return f"{summary(plan)} on {plan.cards:,} cards"


def _nearest(limit: str, limits: Limits, trial: Trial) -> tuple[str, str]:
    """Return the nearest miss of one limit and the way out that its plan proves."""
    goal, plan, cost = trial.goal, trial.found.plan, trial.found.cost
    assert goal.setting is not None  # noqa: S101
    asked = getattr(limits, limit)
    pace = plan.global_batch * plan.sequence_length * goal.kept(plan) / cost.step
    if limit == "deadline":
        tokens = goal.setting.workload.tokens or 0.0
        days = tokens / pace / 86400
        return (
            f"limits.deadline of {asked.show()} binds, for the quickest, {_plan(trial)}, takes {days:.4g} d",
            f"a deadline of {_up(days)} d",
        )
    if limit == "tokens_per_s":
        return (
            f"limits.tokens_per_s of {asked.show()} binds, for the quickest, {_plan(trial)}, keeps {pace:.4g} tokens/s",
            f"tokens_per_s of {_down(pace)}",
        )
    if limit == "power":
        watts = power_of(plan, goal.setting, cost)
        return (
            f"limits.power of {asked.show()} binds, for the plan with the fewest cards, {_plan(trial)}, draws "
            f"{units.show(watts, 'power')}",
            f"a power of {_up(watts / 1e3)} kW",
        )
    if limit == "least_share":
        done = work_by_pool(plan, goal.setting, cost)
        pools = {pool: goal.setting.formation.pool(pool) for pool in done}
        parts = {maker: sum(part for pool, part in done.items() if is_maker(pools[pool], maker)) for maker in asked}
        short = [f"{maker} {part:.1%} of {asked[maker].value or 0:.1%}" for maker, part in parts.items()]
        return f"limits.least_share binds: without it, {_plan(trial)} gives {', '.join(short)}", "a smaller least_share"
    shown = ", ".join(_said(asked)) if not hasattr(asked, "show") else asked.show()
    return f"limits.{limit} ({shown}) binds: without it there is {_plan(trial)}", f"leave limits.{limit} out"


def _said(asked: object) -> list[str]:
    if isinstance(asked, dict):
        return [f"{name} {most:,}" for name, most in asked.items()]
    return [str(one) for one in asked] if isinstance(asked, tuple) else [str(asked)]


def _up(value: float) -> str:
    """Return a number with four digits, rounded up."""
    return f"{value * 1.0005:.4g}"


def _down(value: float) -> str:
    return f"{value * 0.9995:.4g}"
