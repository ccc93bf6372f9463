"""What a plan that serves draws at its own load, and what it counts for: from the functions that its answer shows."""

from __future__ import annotations

import numpy as np

from zhenfa.estimate.energy_wall import pue_at
from zhenfa.estimate.rows import finer
from zhenfa.estimate.serving_report import Role, group_draw
from zhenfa.estimate.serving_state import FINE
from zhenfa.plan.request import Request
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.wish import Wish


def running(part: Part) -> float:
    """Return the requests that decode at once in one instance of a part, at its rate."""
    types = part.decode
    batch, tpot = finer(types.curves.running[part.at], FINE), finer(types.tpot[part.at], FINE)
    rate = np.maximum.accumulate(batch / (types.workload.mean_decoded * tpot))
    return float(np.interp(part.rate / part.count, rate, batch))


def watts(request: Request, chosen: tuple[Part, ...]) -> float:
    """Return what all cards of a choice draw at the meter. Every power is known: :class:`Wish` has asked for them."""
    total = 0.0
    for part in chosen:
        groups: list[tuple[Role, str, int]] = [("both", part.decode.family.pool.name, part.decode_cards)]
        if part.prefill is not None:
            groups = [
                ("decode", part.decode.family.pool.name, part.decode_cards),
                ("prefill", part.prefill.family.pool.name, part.prefill_cards),
            ]
        held = running(part)
        for role, pool, cards in groups:
            drawn = group_draw(
                request.formation.pool(pool), request.formation, request.graph, part.decode.workload, rate=part.rate,
                running=held, cards=cards, role=role,
            )  # fmt: skip
            total += cards * (drawn.busy if drawn else 0.0)
    return total * (pue_at(request.formation, total).value or 1.0)


def worth(request: Request, wish: Wish, chosen: tuple[Part, ...]) -> float:
    """Return what the cards of a choice count for together: cards, CNY/s or W."""
    if wish.objective == "energy":
        return watts(request, chosen)
    return sum(wish.counts(pool) * count for part in chosen for pool, count in part.cards_by_pool().items())
