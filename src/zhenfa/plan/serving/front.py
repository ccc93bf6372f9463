"""What can be had: output tokens per second and card against tokens per second that one user sees (Pareto)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zhenfa.estimate import serving_curves
from zhenfa.estimate.rows import finer
from zhenfa.estimate.serving_state import FINE
from zhenfa.plan.serving import parts
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.search import Pool, Space
from zhenfa.plan.serving.words import summary

BINS: Final = 256
"""Bins of tokens per second and user in which points that are beaten are sorted out before the others are sorted."""

POINTS: Final = 48
"""Points of the front that are kept at most."""


@dataclass(frozen=True)
class FrontPoint:
    """Nothing in the space yields more of both. ``running``: requests that decode at once in one instance.

    Where prefill is apart, cards of both are in the proportion that leaves neither idle, whole instances aside.
    """

    tokens_per_s_per_user: float
    tokens_per_s_per_card: float
    running: float
    layout: str
    apart: bool


@dataclass(frozen=True)
class _Cloud:
    user: Any
    card: Any
    running: Any
    part: Any


def front(space: Space) -> tuple[FrontPoint, ...]:
    """Return the Pareto front of a space under its TTFT target, whatever the TPOT, from fast to frugal.

    What rests on an undisclosed bandwidth is on no front.
    """
    clouds = [*_together(space), *_apart(space)]
    found: list[tuple[float, float, float, int, int]] = []
    for number, cloud in enumerate(clouds):
        flat_user, flat_card, running = (np.ravel(one) for one in (cloud.user, cloud.card, cloud.running))
        known = np.isfinite(flat_user) & np.isfinite(flat_card) & (flat_user > 0) & (flat_card > 0)
        if not known.any():
            continue
        floor = _floor(np.where(known, flat_user, 0.0), np.where(known, flat_card, 0.0))
        hope = np.flatnonzero(known & (flat_card >= floor))
        best = hope[np.lexsort((-flat_card[hope], -flat_user[hope]))]
        user, card = flat_user[best], flat_card[best]
        rises = card > np.concatenate([[0.0], np.maximum.accumulate(card)[:-1]])
        found += [(user[at], card[at], running[best[at]], number, best[at]) for at in np.flatnonzero(rises)]
    found.sort(key=lambda one: (-one[0], -one[1]))
    kept, most = [], 0.0
    for one in found:
        if one[1] > most:
            kept.append(one)
            most = one[1]
    if len(kept) > POINTS:
        kept = [kept[at] for at in np.unique(np.linspace(0, len(kept) - 1, POINTS).astype(int))]
    return tuple(
        FrontPoint(
            float(user), float(card), float(running), summary(clouds[number].part(int(flat)).plan()),
            clouds[number].part(int(flat)).prefill is not None,
        )
        for user, card, running, number, flat in kept
    )  # fmt: skip


def _floor(user: Any, card: Any) -> Any:
    """Return what a point must reach per card to be on the front: what some point with at least its bin of tokens per
    second and user reaches. Proof: the best of all bins above its own beats it in both. Points of 0 are no points."""
    fastest = float(user.max())
    edges = np.geomspace(float(np.min(user, where=user > 0, initial=fastest)), fastest * (1 + 1e-9), BINS + 1)
    place = np.clip(np.searchsorted(edges, user, side="right") - 1, 0, BINS - 1)
    most = np.zeros(BINS + 1)
    np.maximum.at(most, place, card)
    return np.maximum.accumulate(most[::-1])[::-1][place + 1]


def _together(space: Space) -> Iterator[_Cloud]:
    for pool in space.pools:
        types = pool.both
        if not len(types):
            continue
        counts = np.maximum(space.cards[pool.family.pool.name] // types.cards.astype(int), 1)
        seen = types.points(slice(None), counts)
        good = seen.ttft <= parts.ceiling(types.workload.ttft_target)
        rate = np.where(good & (seen.running >= 1), seen.rate, 0.0) / (counts * types.cards)[:, None]

        def part(flat: int, pool: Pool = pool) -> Part:
            return Part(pool.both, flat // FINE, 1)

        yield _Cloud(1.0 / seen.tpot, rate * types.workload.mean_output, seen.running, part)


def _apart(space: Space) -> Iterator[_Cloud]:
    for first, other, _ in space.pairs:
        source, target = first.prefill, other.decode
        if not (len(source) and len(target)) or not np.any(first.supplied > 0):
            continue
        workload = target.workload
        with np.errstate(divide="ignore"):
            need = source.cards / first.supplied
        at = int(np.argmin(need))
        lines = target.curves
        tpot = serving_curves.decode_seconds(target.service, lines) / target.service.accepted
        batch, pace = finer(lines.running, FINE), finer(tpot, FINE)
        use = np.where(batch >= 1, target.cards[:, None] * workload.mean_decoded * pace / batch, np.inf)

        def part(flat: int, other: Pool = other, first: Pool = first, at: int = at) -> Part:
            return Part(other.decode, flat // FINE, 1, 0.0, first.prefill, at, 1)

        yield _Cloud(1.0 / pace, workload.mean_output / (float(need[at]) + use), batch, part)
