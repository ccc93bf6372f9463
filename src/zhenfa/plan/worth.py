"""What a plan scores in the objective, as a figure with unit, tag and note, and the plan's share of what limits it."""

from __future__ import annotations

from typing import Final

from zhenfa.estimate.training import PlanCost
from zhenfa.plan.goal import Goal, power_of
from zhenfa.spec.fact import Tag
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Figure

HEADINGS: Final = {
    "step": "quickest first",
    "throughput": "most tokens/s that failures leave first",
    "time": "shortest run first",
    "cost": "cheapest first",
    "energy": "least energy first",
    "cards": "fewest cards first",
}
"""How plans are ordered, by objective."""

COLUMNS: Final = {"throughput": "kept tokens/s", "time": "run", "cost": "cost", "energy": "energy/token"}
"""What a plan's score is called, where no figure of every answer says it."""

LASTING: Final = "ETTR, and the share of time in which as many nodes are up as the plan needs, counted"


def worth(goal: Goal, plan: Plan, cost: PlanCost, score: float, tag: Tag) -> Figure:
    """Return what a plan is worth by the objective of a goal; ``tag`` is that of its step."""
    tokens = float(plan.global_batch * plan.sequence_length)
    emulated = goal.setting is not None and goal.setting.formation.emulated
    lasting = "no failures are modelled on emulated cards" if emulated else LASTING
    length = None if goal.setting is None else goal.setting.workload.tokens
    if goal.objective == "throughput":
        return Figure(value=tokens / score, unit="tokens/s", tag=tag if emulated else "assumed", note=lasting)
    if goal.objective == "time":
        return Figure(value=score, unit="s", tag=tag if emulated else "assumed", note=f"whole run; {lasting}")
    if goal.objective == "cost" and length is not None:
        return Figure(
            value=score * length, unit="CNY", tag="assumed", note="cards in use over the whole run, with ETTR"
        )
    if goal.objective == "cost":
        return Figure(value=score * 1e6, unit="CNY", tag="assumed", note="cards in use, a million tokens, with ETTR")
    if goal.objective == "energy":
        return Figure(value=score, unit="J", tag="assumed", note="a token at the meter, lost work and waiting included")
    if goal.objective == "cards":
        return Figure(value=float(plan.cards), unit="cards", tag="derived", note="of plans with as many, the quicker")
    return Figure(value=cost.step, unit="s", tag=tag, note="a step, failures left out")


def kept_to(goal: Goal, plan: Plan, cost: PlanCost) -> dict[str, float]:
    """Return how much of each limit a plan takes up: 1 is all of it."""
    found: dict[str, float] = {}
    setting, limits = goal.setting, goal.limits
    if setting is None:
        return found
    if limits.power.value:
        found["power"] = power_of(plan, setting, cost) / limits.power.value
    counted = cost.step / goal.kept(plan)
    pace = plan.global_batch * plan.sequence_length / counted
    if limits.deadline.value and setting.workload.tokens:
        found["deadline"] = setting.workload.tokens / pace / limits.deadline.value
    if limits.tokens_per_s.value:
        found["tokens_per_s"] = limits.tokens_per_s.value / pace
    if limits.max_cards:
        found["max_cards"] = plan.cards / limits.max_cards
    return found
