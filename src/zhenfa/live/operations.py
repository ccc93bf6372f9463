"""In which order a card runs its forwards and backwards: the orders that the planner's laws are about."""

from __future__ import annotations

from functools import lru_cache

from zhenfa.laws import orders
from zhenfa.laws.orders import Orders
from zhenfa.laws.pipeline import schedule_order


@lru_cache(maxsize=64)
def operations(schedule: str, places: int, virtual_stages: int, micro_batches: int) -> Orders:
    """Return for each place of a pipeline its moments: operations ``(kind, stage, micro_batch)`` that run as one.

    Kinds are ``forward``, ``backward`` (whole), ``input`` and ``weight`` (its two halves). Raises
    :class:`~zhenfa.errors.InputError` for an unknown schedule, or micro-batches that it cannot run.
    """
    if schedule not in ("gpipe", "1f1b"):
        return orders.orders(schedule, places, virtual_stages, micro_batches)
    return tuple(
        tuple(((kind, place, micro),) for kind, micro in schedule_order(place, places, micro_batches, schedule))
        for place in range(places)
    )


def homes(rows: Orders) -> dict[tuple[int, int], int]:
    """Return at which place each stage of each micro-batch is worked on, by ``(stage, micro_batch)``."""
    return {
        (stage, micro): place
        for place, row in enumerate(rows)
        for moment in row
        for kind, stage, micro in moment
        if kind == "forward"
    }
