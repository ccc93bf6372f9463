"""What is wanted of plans that serve: what a card counts for, the rate that is needed, and the limits on cards.

Four questions are searched for apart:

``most``    no load and no price: the most requests per second on the cards there are;
``least``   a rate is needed: the cards that count least and take it;
``each``    no load, but cost or energy: the requests that count least each;
``closed``  so many requests in the system at all times: the requests that count least each.

What a card counts for (``weights``) is 1, its CNY per second, or the W that it draws at least. A plan counts what its
cards do, but for energy, where what it draws at its own load counts (:mod:`zhenfa.plan.serving.power`); the weights are
then a bound from below.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from zhenfa.errors import CapabilityError, InputError
from zhenfa.estimate.energy_wall import draw_at
from zhenfa.plan.request import Request
from zhenfa.plan.supply import is_maker, is_one
from zhenfa.spec.fact import missing
from zhenfa.spec.job import Job, Objective
from zhenfa.spec.machine import Formation

Question = Literal["most", "least", "each", "closed"]

OF_TRAINING: Final = {
    "schedules": "it is of pipelines that train",
    "micro_batch_size": "plans that serve choose how many requests run at once themselves; set max_batch in a plan",
    "deadline": "it is of a run that ends; write request_rate, or limits.tokens_per_s",
}
"""Limits that have no meaning where a job serves, and why."""

ANY: Final = 1e-9
"""Requests/s that stand for any load at all."""


@dataclass(frozen=True)
class Budget:
    """At most ``most`` cards of these pools together."""

    pools: frozenset[str]
    most: int
    name: str


@dataclass(frozen=True)
class Wish:
    """What is wanted. ``rate``: requests/s that a plan must take (None: none is needed). ``power``: W at most at the
    meter. ``shares``: of all tokens, prompts included, at least so much on these pools."""

    question: Question
    objective: Objective
    weights: Mapping[str, float]
    rate: float | None = None
    budgets: tuple[Budget, ...] = ()
    power: float | None = None
    shares: tuple[tuple[str, frozenset[str], float], ...] = ()
    prompt: float = 0.0
    """The share of a request's tokens that are its prompt's."""

    requests: float = 0.0
    """Requests in the system at all times, of a closed loop."""

    watts: Mapping[str, float] = field(default_factory=dict)
    """What a card of each pool draws at least, where power decides or is limited."""

    def counts(self, pool: str) -> float:
        """Return what a card of a pool counts for."""
        return self.weights[pool]

    def room(self, pool: str, count: int) -> int:
        """Return the cards of a pool that may be used where no other pool's are."""
        return min([count, *(one.most for one in self.budgets if pool in one.pools)])

    def room_of(self, pools: Collection[str], count: int) -> int:
        """Return the cards of several pools together that may be used, of so many."""
        return min([count, *(one.most for one in self.budgets if one.pools >= set(pools))])

    def fits(self, cards: Mapping[str, Any]) -> Any:
        """Return whether so many cards of each pool, or which of many, keep to what pools share."""
        inside: Any = True
        for one in self.budgets:
            used = sum(count for pool, count in cards.items() if pool in one.pools)
            inside = inside & np.less_equal(used, one.most)
        return inside

    def left(self, pool: str, count: int, used: Mapping[str, Any]) -> Any:
        """Return the cards of a pool that may be used beside those of other pools that are."""
        found: Any = count
        for one in self.budgets:
            if pool in one.pools:
                found = np.minimum(found, one.most - sum(some for name, some in used.items() if name in one.pools))
        return found


def wish_of(request: Request) -> Wish:
    """Return what a request wants.

    Raises :class:`CapabilityError` for a limit or an objective that has no meaning here, :class:`MissingFactError` for
    a price or a power that is undisclosed.
    """
    job, workload, formation = request.job, request.serving, request.formation
    _refuse(job)
    wanted = job.limits.tokens_per_s.value
    rate = workload.request_rate
    if wanted is not None:
        rate = max(rate or 0.0, wanted / workload.mean_output)
    question: Question = "most"
    if workload.concurrency is not None:
        question = "closed"
    elif workload.request_rate is not None or job.objective == "cards":
        question, rate = "least", rate or ANY
    elif job.objective in ("cost", "energy"):
        question = "each"
    names = {pool.name for pool in formation.pools}
    budgets = [
        Budget(frozenset(chosen), most, f"limits.supply of {name!r}")
        for name, most in job.limits.supply.items()
        if len(chosen := [pool.name for pool in formation.pools if is_one(pool, [name])]) > 1
    ]
    if job.limits.max_cards is not None:
        budgets.append(Budget(frozenset(names), job.limits.max_cards, "limits.max_cards"))
    shares = tuple(
        (maker, frozenset(pool.name for pool in formation.pools if is_maker(pool, maker)), least.value)
        for maker, least in job.limits.least_share.items()
        if least.value
    )
    for maker, pools, least in shares:
        if not pools:
            raise InputError(
                f"limits.least_share wants {least:.0%} of the work on cards of {maker!r}, and {formation.name} has "
                "none that may be used.",
                hint="leave it out, or plan for a machine that has them.",
            )
    new = workload.mean_input * (1 - workload.cached_prefix)
    weights, watts = _weights(request)
    return Wish(
        question, job.objective, weights, rate, tuple(budgets), job.limits.power.value, shares,
        new / (new + workload.mean_output), workload.concurrency or 0.0, watts,
    )  # fmt: skip


def _refuse(job: Job) -> None:
    for name, why in OF_TRAINING.items():
        value = getattr(job.limits, name)
        if value and getattr(value, "known", True):
            raise CapabilityError(f"limits.{name} is not kept to by plans that serve: {why}.", hint="leave it out.")
    if job.objective == "time":
        raise CapabilityError(
            "objective: time is of a training run, and this job serves.",
            hint="leave it out for the most output, or write cost, energy or cards.",
        )


def _weights(request: Request) -> tuple[dict[str, float], dict[str, float]]:
    """Return what a card of each pool counts for, and, where power matters, what it draws at least at the meter."""
    job, formation = request.job, request.formation
    ones = {pool.name: 1.0 for pool in formation.pools}
    if job.objective == "cost":
        ones = {pool.name: pool.accelerator.price.require(f"{pool.name}.price") for pool in formation.pools}
    if job.objective != "energy" and job.limits.power.value is None:
        return ones, {}
    if formation.emulated:
        raise InputError(
            f"{formation.name} is emulated: its cards draw no power of their own.",
            hint="plan for another objective, and leave limits.power out.",
        )
    watts = {}
    for pool in formation.pools:
        drawn = draw_at(pool, formation, flops=0.0, bytes_per_second=0.0, share=1.0)
        if drawn is None:
            raise missing(f"{pool.name}.power_per_card", "power")
        watts[pool.name] = drawn.busy * least_pue(formation)
    return watts if job.objective == "energy" else ones, watts


def least_pue(formation: Formation) -> float:
    """Return the PUE of a building, or the part of it in proportion to the load where it follows the load."""
    facility = formation.facility
    if not facility.known:
        return formation.pue.value or 1.0
    return 1.0 + facility.proportional.require("facility.proportional")
