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
from zhenfa.plan.serving.space import Types
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
    clouds = list(_apart(space))
    found = [one for number, cloud in enumerate(clouds) for one in _edge(number, cloud)]
    for cloud in _together(space, _Edge.of(found)):
        clouds.append(cloud)
        found += _edge(len(clouds) - 1, cloud)
    kept = _Edge.of(found).points
    if len(kept) > POINTS:
        kept = [kept[at] for at in np.unique(np.linspace(0, len(kept) - 1, POINTS).astype(int))]
    return tuple(
        FrontPoint(
            float(user), float(card), float(running), summary(clouds[number].part(int(flat)).plan()),
            clouds[number].part(int(flat)).prefill is not None,
        )
        for user, card, running, number, flat in kept
    )  # fmt: skip


_Point = tuple[float, float, float, int, int]


def _edge(number: int, cloud: _Cloud) -> list[_Point]:
    """Return the points of a cloud that no other of it beats in both."""
    flat_user, flat_card, running = (np.ravel(one) for one in (cloud.user, cloud.card, cloud.running))
    known = np.isfinite(flat_user) & np.isfinite(flat_card) & (flat_user > 0) & (flat_card > 0)
    if not known.any():
        return []
    floor = _floor(np.where(known, flat_user, 0.0), np.where(known, flat_card, 0.0))
    hope = np.flatnonzero(known & (flat_card >= floor))
    best = hope[np.lexsort((-flat_card[hope], -flat_user[hope]))]
    user, card = flat_user[best], flat_card[best]
    rises = card > np.concatenate([[0.0], np.maximum.accumulate(card)[:-1]])
    return [(user[at], card[at], running[best[at]], number, best[at]) for at in np.flatnonzero(rises)]


@dataclass(frozen=True)
class _Edge:
    """Points of a front, from fast to frugal."""

    points: list[_Point]
    users: Any
    cards: Any

    @classmethod
    def of(cls, found: list[_Point]) -> _Edge:
        kept: list[_Point] = []
        for one in sorted(found, key=lambda one: (-one[0], -one[1])):
            if not kept or one[1] > kept[-1][1]:
                kept.append(one)
        return cls(kept, np.array([-one[0] for one in kept]), np.array([one[1] for one in kept]))

    def beats(self, user: Any, card: Any) -> Any:
        """Return which points one of the front is no worse than in both."""
        if not self.points:
            return np.zeros(np.shape(user), bool)
        place = np.searchsorted(self.users, -np.asarray(user), side="right") - 1
        return (place >= 0) & (self.cards[np.maximum(place, 0)] >= card)


def _floor(user: Any, card: Any) -> Any:
    """Return what a point must reach per card to be on the front: what some point with at least its bin of tokens per
    second and user reaches. Proof: the best of all bins above its own beats it in both. Points of 0 are no points."""
    fastest = float(user.max())
    edges = np.geomspace(float(np.min(user, where=user > 0, initial=fastest)), fastest * (1 + 1e-9), BINS + 1)
    place = np.clip(np.searchsorted(edges, user, side="right") - 1, 0, BINS - 1)
    most = np.zeros(BINS + 1)
    np.maximum.at(most, place, card)
    return np.maximum.accumulate(most[::-1])[::-1][place + 1]


def _together(space: Space, edge: _Edge) -> Iterator[_Cloud]:
    """Yield what instances that do both reach, of the types that may add to a front.

    Proof: without any wait for the first token a type yields no less, so that one that is beaten even so adds nothing.
    """
    for pool in space.pools:
        types = pool.both
        if not len(types):
            continue
        counts = np.maximum(space.cards[pool.name] // types.cards.astype(int), 1)
        index = np.concatenate([
            np.arange(block.start, block.stop)[_may_add(types, block, edge)] for block in parts.blocks(len(types))
        ]).astype(int)  # fmt: skip
        for block in parts.blocks(len(index)):
            some = index[block]
            seen = types.points(some, counts[some])
            good = parts.first_on_time(types.workload, seen) & (seen.running >= 1)
            rate = np.where(good, seen.rate, 0.0) / (counts * types.cards)[some][:, None]

            def part(flat: int, pool: Pool = pool, some: Any = some) -> Part:
                return Part(pool.both, int(some[flat // FINE]), 1)

            yield _Cloud(1.0 / seen.tpot, rate * types.workload.mean_output, seen.running, part)


def _may_add(types: Types, block: slice, edge: _Edge) -> Any:
    """Return which types of a block reach a point that is not on or below a front, did nobody wait."""
    workload = types.workload
    pace = types.paces(block, np.ones(block.stop - block.start))
    batch, tpot, own = (finer(one, FINE) for one in (pace.running, pace.tpot, pace.own))
    card = batch / (workload.mean_decoded * tpot) / types.cards[block][:, None] * workload.mean_output
    good = (own <= parts.ceiling(workload.ttft_target)) & (batch >= 1)
    return np.any(good & ~edge.beats(1.0 / tpot, card), axis=-1)


def _apart(space: Space) -> Iterator[_Cloud]:
    for first, other, _ in space.pairs:
        if not np.any(first.givers.most > 0):
            continue
        source, target = first.prefill, other.decode
        workload = target.workload
        with np.errstate(divide="ignore"):
            need = source.cards / first.givers.most
        at = int(np.argmin(need))
        lines = target.curves
        tpot = serving_curves.decode_seconds(target.service, lines) / target.service.accepted
        batch, pace = finer(lines.running, FINE), finer(tpot, FINE)
        use = np.where(batch >= 1, target.cards[:, None] * workload.mean_decoded * pace / batch, np.inf)

        def part(flat: int, other: Pool = other, first: Pool = first, at: int = at) -> Part:
            return Part(other.decode, flat // FINE, 1, 0.0, first.prefill, at, 1)

        yield _Cloud(1.0 / pace, workload.mean_output / (float(need[at]) + use), batch, part)
