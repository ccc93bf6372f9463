"""Nothing serves within the targets: the nearest miss, what binds, and a way out that was tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final

import numpy as np

from zhenfa import units
from zhenfa.errors import InfeasibleError, ZhenfaError
from zhenfa.plan.request import Request
from zhenfa.plan.serving import fleet, search
from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.power import watts
from zhenfa.plan.serving.search import Space
from zhenfa.plan.serving.space import NO_TIER, Types, cuts, families, types_of
from zhenfa.plan.serving.words import cut_words
from zhenfa.spec import fact
from zhenfa.spec.job import Limits
from zhenfa.spec.serving import WEIGHT_BYTES, ServingWorkload

MOST_CARDS = 4096
ROOM_ABOVE = 1.05
"""How far above the nearest miss a target is tried."""


def nothing_serves(space: Space) -> ZhenfaError:
    """Return the error that says why no plan serves the job."""
    request = space.request
    name = f"{request.graph.name} on {request.formation.name}"
    if not any(len(pool.both) for pool in space.pools):
        return _undisclosed(space) or _no_room(space, name)
    workload = request.serving
    limited = _limited(space, name)
    if limited is not None:
        return limited
    if not workload.open_ended:
        most = _most(space)
        if most > 0:
            return _too_much(space, name, most)
    return _missed(space, name)


LIMITS: Final = ("tokens_per_s", "power", "least_share", "headroom", "memory", "supply", "spares", "max_cards")
"""Limits that may keep every plan out, those that are given up first first."""


def _limited(space: Space, name: str) -> InfeasibleError | None:
    """Return the error that names the limit without which there is a plan; None where no single one decides."""
    request = space.request
    for field in LIMITS:
        limits = request.job.limits
        free = limits.model_copy(update={field: Limits.model_fields[field].get_default(call_default_factory=True)})
        if free == limits:
            continue
        again = replace(request, job=request.job.model_copy(update={"limits": free}))
        _, chosen = _first(again)
        if chosen:
            rate = sum(one.rate for one in chosen)
            tokens = rate * request.serving.mean_output
            cards = sum(one.cards for one in chosen)
            held = f"Without it, {cards:,} cards put out {tokens:,.0f} tokens/s"
            held += "" if not space.wish.watts else f" and draw {units.show(watts(request, chosen), 'power')}"
            return InfeasibleError(
                f"{name}: no plan keeps to limits.{field}; without it there is one. The nearest miss: {held}.",
                hint=f"leave limits.{field} out, or set it to what the nearest miss needs.",
            )
    return None


def _first(request: Request) -> tuple[float, tuple[Part, ...]]:
    """Return the score and the parts of the best plan of a request; nothing where there is none."""
    from zhenfa.plan.serving.answer import ask

    space = search.open_space(request)
    best = Best(1, space.allows)
    ask(space, best)
    ranked = best.ranked()
    return (ranked[0][0][0], ranked[0][1]) if ranked else (0.0, ())


def _undisclosed(space: Space) -> ZhenfaError | None:
    """Return the error that names the tier which every instance that is large enough would cross, if there is one."""
    for pool in space.request.formation.pools if space.tally[NO_TIER] else ():
        for tier in pool.tiers:
            if tier.bandwidth.value is None:
                return fact.missing(f"{pool.name}.tiers.{tier.name}.bandwidth", "rate", tier.bandwidth.note)
    return None


def _most(space: Space) -> float:
    best = Best(1, space.allows)
    search.most(space, space.cards, best)
    if len(space.cards) > 1:
        fleet.most(space, best)
    return max(best.first, 0.0)


def _too_much(space: Space, name: str, most: float) -> InfeasibleError:
    """Return the error for a load that is too large within the targets."""
    workload = space.request.serving
    load = (
        f"{workload.request_rate:g} requests/s"
        if workload.request_rate
        else f"{workload.concurrency:g} requests at once"
    )
    held = f"The nearest miss: {space.whole:,} cards take {most:.3g} requests/s within the targets."
    hint = f"request_rate: {_down(most):g}"
    if workload.request_rate:
        cards = int(np.ceil(workload.request_rate / most * space.whole))
        hint += f"; or about {cards:,} cards like these"
    relaxed = _relaxed(space.request, {"tpot_target": 2.0}, open_ended=False)
    if relaxed is not None and workload.tpot_target:
        hint += f"; or tpot_target: {_time(2 * workload.tpot_target)}, with which {relaxed:,} cards take it"
    return InfeasibleError(f"{name}: no plan takes {load} within the targets. {held}", hint=hint + ".")


def _down(value: float) -> float:
    scale = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.floor(value / scale) * scale)


def _time(value: float) -> str:
    return units.show(value, "time")


def _relaxed(request: Request, times: dict[str, float], *, open_ended: bool) -> int | None:
    """Return the cards of the best plan with targets so many times as long; None where there still is none."""
    workload = request.serving
    changes = {name: one * factor for name, factor in times.items() if (one := getattr(workload, name)) is not None}
    again = with_workload(request, workload.model_copy(update=changes))
    space = search.open_space(again)
    best = Best(1, space.allows)
    if again.serving.request_rate is not None and not open_ended:
        search.fewest(space, again.serving.request_rate, best)
    elif open_ended:
        search.most(space, space.cards, best)
    ranked = best.ranked()
    return sum(one.cards for one in ranked[0][1]) if ranked else None


def with_workload(request: Request, workload: ServingWorkload) -> Request:
    """Return the request with another workload."""
    return replace(request, job=request.job.model_copy(update={"workload": workload}))


def _missed(space: Space, name: str) -> InfeasibleError:
    """Return the error for targets that no type meets however little comes, with targets that were tried."""
    workload = space.request.serving
    tpot, ttft, types, at = _nearest(space)
    wanted = {"tpot_target": (workload.tpot_target, tpot), "ttft_target": (workload.ttft_target, ttft)}
    missed = {key: (target, got) for key, (target, got) in wanted.items() if target is not None and got > target}
    binding = max(missed, key=lambda key: missed[key][1] / missed[key][0], default="tpot_target")
    words = "; ".join(f"{key} is {_time(target)}, {_time(got)} are reached" for key, (target, got) in missed.items())
    where = f"{cut_words(types.instance(at, 1))} on {types.family.pool.name}"
    stretch = {key: ROOM_ABOVE * got / target for key, (target, got) in missed.items()}
    enough = _relaxed(space.request, stretch, open_ended=True)
    tried = ", ".join(f"{key}: {_time(factor * wanted[key][0])}" for key, factor in stretch.items())  # type: ignore[operator]
    hint = f"{tried} would do (tried: a plan is found)." if enough else "a shorter input, or faster cards."
    return InfeasibleError(
        f"{name}: no plan meets the targets however few requests come; {binding} binds. The nearest miss, {where}: "
        f"{words or 'the two together'}.",
        hint=hint,
    )


def _nearest(space: Space) -> tuple[float, float, Types, int]:
    """Return the least TPOT and TTFT of the type that misses the targets least, one request at a time."""
    workload = space.request.serving
    best: tuple[float, float, float, Types, int] | None = None
    for pool in space.pools:
        types = pool.both
        if not len(types):
            continue
        pace = types.paces(slice(None), np.ones(len(types)))
        tpot, own = np.asarray(pace.tpot)[:, 0], np.asarray(pace.own)[:, 0]
        first = own + (0.5 + types.service.engine.polls) * np.asarray(pace.alone)[:, 0]
        miss = np.maximum(tpot / (workload.tpot_target or np.inf), first / (workload.ttft_target or np.inf))
        at = int(np.argmin(miss))
        if best is None or miss[at] < best[0]:
            best = (float(miss[at]), float(tpot[at]), float(first[at]), types, at)
    assert best is not None  # noqa: S101 - there are types
    return best[1:]


def _no_room(space: Space, name: str) -> InfeasibleError:
    """Return the error for weights that fit nowhere."""
    request, pool = space.request, space.pools[0]
    cards = space.cards[pool.family.pool.name]
    group = pool.both.group
    usable = float(np.ravel(group.usable)[0])
    held = request.graph.parameters * WEIGHT_BYTES[pool.family.weights]
    largest = float(np.max(np.asarray(cuts(request.graph, pool.family.pool, request.job.limits, "both").cards)))
    need = held / max(largest, 1.0)
    enough = _enough_cards(request, cards)
    way = f"{enough:,} cards like these joined as they are" if enough else "cards with more memory"
    narrow = next((one for one in ("fp8", "nvfp4") if WEIGHT_BYTES[one] < WEIGHT_BYTES[pool.family.weights]), None)
    if narrow:
        way += f", or weights: [{narrow}] in the workload (this may change what the model says)"
    return InfeasibleError(
        f"{name}: weights and one request do not fit in memory. The nearest miss: {units.show(held, 'data')} of "
        f"weights in {pool.family.weights} are {units.show(need, 'data')} a card on {largest:,.0f} of {cards:,} cards; "
        f"{units.show(usable, 'data')} are usable.",
        hint=f"{way}.",
    )


def _enough_cards(request: Request, cards: int) -> int | None:
    """Return how many cards of the first pool hold the model, doubled until it fits; its outermost tier joins them."""
    old, count = request.formation.pools[0], cards
    job = request.job.model_copy(update={"limits": request.job.limits.model_copy(update={"max_cards": None})})
    while count < MOST_CARDS:
        count *= 2
        last = old.tiers[-1].model_copy(update={"size": max(count, old.tiers[-1].size)})
        pool = replace(old, count=count, tiers=(*old.tiers[:-1], last))
        again = replace(request, job=job, formation=replace(request.formation, pools=(pool,)))
        if any(len(types_of(again, family, "both", Counter())) for family in families(again)):
            return count
    return None
