"""The best plan of a machine, whether it trains or serves, with what comparing machines needs of its estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zhenfa import cite
from zhenfa.plan.answer import find_plans
from zhenfa.plan.request import Request
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Estimate, Figure, Figures, Operating, Walls
from zhenfa.spec.serving import ServingPlan

if TYPE_CHECKING:
    from zhenfa.estimate.serving_report import ServingEstimate
    from zhenfa.plan.serving import FrontPoint, ServingAnswer

LOST: Final = "lost to failures"


@dataclass(frozen=True)
class BestPlan:
    """A plan and what the laws say of it. ``shares``: of the time of all its cards, by part; they add up to one.
    ``memory``: bytes on the fullest card, and those there are. ``front``: what else can be had of a machine that
    serves. ``quality``: what of the plan may change what the model says."""

    plan: Plan | ServingPlan
    layout: str
    figures: Figures
    walls: Walls
    shares: dict[str, float]
    parts_s: dict[str, float]
    operating: Operating
    assumptions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    memory: tuple[float, float] | None = None
    front: tuple[FrontPoint, ...] = ()
    quality: tuple[str, ...] = ()


def find_best(request: Request) -> tuple[BestPlan, int, float]:
    """Return the best plan of a job on a machine, the layouts considered and the seconds that took.

    Raises :class:`MissingFactError` for an undisclosed value, :class:`InfeasibleError` if nothing fits.
    """
    if request.serves:
        from zhenfa.plan.serving import find_serving

        served = find_serving(request, top=1)
        return of_serving(served), served.considered, served.seconds
    answer = find_plans(request, top=1)
    best = answer.best
    return of_training(best.estimate, best.layout), answer.considered, answer.seconds


def of_training(estimate: Estimate, layout: str = "") -> BestPlan:
    """Return a training plan with its estimate."""
    lasting = 1.0 if estimate.figures.ettr.value is None else estimate.figures.ettr.value
    step = sum(estimate.parts_s.values())
    shares = {name: lasting * seconds / step for name, seconds in estimate.parts_s.items()} if step > 0 else {}
    held = [(one.memory_bytes, one.capacity_bytes) for one in estimate.stages if one.capacity_bytes]
    return BestPlan(
        estimate.plan, layout, estimate.figures, estimate.walls, {**shares, LOST: 1.0 - lasting}, estimate.parts_s,
        estimate.operating, estimate.assumptions, estimate.sources,
        max(held, key=lambda one: one[0] / one[1], default=None),
    )  # fmt: skip


def of_serving(answer: ServingAnswer) -> BestPlan:
    """Return the best serving plan of an answer, with its estimate."""
    one, estimate = answer.best, answer.best.estimate
    figures = estimate.figures
    joules, rate = figures.energy_j_per_token, figures.tokens_per_s.value
    power = None if joules.value is None or rate is None else joules.value * rate
    operating = Operating(facility_power_w=Figure(value=power, unit="W", tag=joules.tag, note=joules.note))
    return BestPlan(
        one.plan, one.layout, figures, estimate.walls, _card_time(estimate), estimate.parts[0].decode_s, operating,
        estimate.assumptions, tuple(cite.text(key) for key in answer.sources), estimate.fullest, answer.front,
        one.quality,
    )  # fmt: skip


def _card_time(estimate: ServingEstimate) -> dict[str, float]:
    """Return the shares of the time of all cards, by group of instances and by part of the steps that it runs.

    Instances that do both are taken as they decode; an instance that waits for requests as if it worked.
    """
    found: dict[str, float] = {}
    for one in estimate.parts:
        service = one.service
        groups = [("decode" if service.apart else "both", service.decode.instance, one.decode_s)]
        groups += [("prefill", service.prefill.instance, one.prefill_s)] if service.apart else []
        for role, instance, seconds in groups:
            whole = sum(seconds.values()) or 1.0
            for part, took in seconds.items():
                name = f"{role}: {part}"
                found[name] = found.get(name, 0.0) + instance.count * instance.cards * took / whole
    cards = sum(found.values())
    return {name: amount / cards for name, amount in found.items()}
