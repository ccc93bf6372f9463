"""What a job that serves may ask beyond its targets: which cards, and what the best plan is the best in."""

from __future__ import annotations

from typing import Final

from zhenfa.errors import CapabilityError, MissingFactError
from zhenfa.estimate.serving_report import ServingEstimate
from zhenfa.plan.supply import is_one
from zhenfa.spec.job import Job, Objective
from zhenfa.spec.machine import Formation

WIDER: Final = 24
"""Plans that are best by output among which those of least cost or energy are looked for."""

OF_TRAINING: Final = (
    "schedules", "micro_batch_size", "least_share", "memory", "headroom", "power", "deadline", "tokens_per_s",
)  # fmt: skip
"""Limits that the search for serving plans does not keep to."""


def check(job: Job, formation: Formation) -> None:
    """Raise :class:`CapabilityError` for a limit or an objective that the search for serving plans does not know."""
    for name in OF_TRAINING:
        value = getattr(job.limits, name)
        if value and getattr(value, "known", True):
            raise CapabilityError(
                f"limits.{name} is not kept to by plans that serve.",
                hint="leave it out; max_cards, makers, refuse, supply, spares and the parallel degrees are kept to.",
            )
    if job.objective == "time":
        raise CapabilityError(
            "objective: time is of a training run, and this job serves.",
            hint="leave it out for the most output per card, or write cost, energy or cards.",
        )
    for name, most in job.limits.supply.items():
        pools = [pool for pool in formation.pools if is_one(pool, [name])]
        if len(pools) > 1 and sum(pool.count for pool in pools) > most:
            raise CapabilityError(
                f"limits.supply of {name!r} bounds {len(pools)} pools together, which plans that serve do not keep to.",
                hint="bound each pool by its name.",
            )


def least(objective: Objective, estimate: ServingEstimate) -> float | None:
    """Return what an objective wants little of, for a token; None where plans are ranked by output.

    Raises :class:`MissingFactError` where a price or a power is undisclosed.
    """
    figure = {
        "cost": estimate.figures.cost_per_million_tokens, "energy": estimate.figures.energy_j_per_token,
    }.get(objective)  # fmt: skip
    if figure is None:
        return None
    if figure.value is None:
        raise MissingFactError(f"objective {objective}: {figure.note}.", hint="supply it, or leave the objective out.")
    return figure.value
