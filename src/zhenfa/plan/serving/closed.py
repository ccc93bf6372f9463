"""Search under a closed loop: so many requests are in the system at all times; the most output per card is wanted.

With ``n`` instances, each holds a share of the requests, so that fewer instances run larger batches and put out more
per card until a target is missed. Instances that do both are looked at from the fewest on, until their bound, the most
that a batch of no more than ``requests / n`` puts out per card, is no better than what is kept: exact. Where prefill is
apart, pairs of types are looked at in the order of the bound of :mod:`zhenfa.plan.serving.search`, each with a few
numbers of instances of both, and at most :data:`PAIRS` of them: the answer says how far the bound is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from zhenfa.estimate import serving_curves
from zhenfa.estimate.rows import along, finer, take
from zhenfa.estimate.serving_curves import Crossing, Paces
from zhenfa.estimate.serving_state import FINE, State, meet
from zhenfa.plan.serving import parts, search
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.search import Best, Pool, Space
from zhenfa.spec.serving import ServingWorkload

PAIRS: Final = 200
"""Pairs of prefill and decode types that are looked at, at most."""

TRIES: Final = 6
"""Numbers of instances of each side of a pair that are tried."""


def closed(space: Space, requests: float, best: Best) -> float:
    """Offer the parts that put out most per card with so many requests in the system.

    The score is requests per second and card. Return a score that none can exceed.
    """
    bound = 0.0
    for pool in space.pools:
        _together(space, pool, requests, best)
    for first, other, joint in space.pairs:
        bound = max(bound, _apart(space, first, other, joint, requests, best))
    return max(bound, best.first)


def met(workload: ServingWorkload, state: State) -> Any:
    """Return which states meet the targets."""
    within = state.tpot <= parts.ceiling(workload.tpot_target)
    return np.ravel(within & (np.asarray(state.first.mean) <= parts.ceiling(workload.ttft_target)))


def _together(space: Space, pool: Pool, requests: float, best: Best) -> None:
    types, room = pool.both, space.cards[pool.family.pool.name]
    if not len(types):
        return
    workload = types.workload
    pace = types.paces(slice(None), np.ones(len(types)))
    batch, tpot = finer(pace.running, FINE), finer(pace.tpot, FINE)
    rate = np.maximum.accumulate(batch / (workload.mean_decoded * tpot), axis=-1)
    counts = np.ones(len(types))
    open_ = np.flatnonzero(pool.together > 0)
    while len(open_):
        share = (requests / counts[open_])[:, None]
        ceiling = along(share, batch[open_], rate[open_])[:, 0] / types.cards[open_]
        open_ = open_[(ceiling > best.last) & (counts[open_] * types.cards[open_] <= room)]
        if not len(open_):
            return
        service, lines = types.counted(open_, counts[open_])
        state = meet(service, workload, serving_curves.paces(service, workload, lines))
        good = met(workload, state)
        used = counts[open_] * types.cards[open_]
        through = np.ravel(state.through)
        for at, here, cards, each in zip(open_[good], through[good], used[good], counts[open_][good], strict=True):
            best.offer(Part(types, int(at), int(each), float(here)), (float(here / cards), -float(cards)))
        counts[open_] += 1


def _apart(space: Space, first: Pool, other: Pool, joint: Crossing | None, requests: float, best: Best) -> float:
    source, target = first.prefill, other.decode
    if not (len(source) and len(target)):
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = 1.0 / ((source.cards / first.supplied)[:, None] + (target.cards / other.decoded)[None, :])
    for number, (at, to) in enumerate(search.descending(bound)):
        if not bound[at, to] > max(best.last, 0.0):
            return 0.0
        if number >= PAIRS:
            return float(bound[at, to])
        _pair(space, first, other, joint, requests, (at, to), best)
    return 0.0


def _pair(
    space: Space, first: Pool, other: Pool, joint: Crossing | None, requests: float, at: tuple[int, int], best: Best
) -> None:
    source, target, workload = first.prefill, other.decode, other.decode.workload
    size, each = source.cards[at[0]], target.cards[at[1]]
    stay = workload.mean_decoded * (workload.tpot_target or 0.0) + (workload.ttft_target or 0.0)
    least = np.ceil(requests / max(other.decoded[at[1]] * stay, 1e-300)) if stay else 1.0
    decoders = np.maximum(least, 1.0) + np.arange(TRIES)
    needed = np.maximum(np.floor(decoders * other.decoded[at[1]] / first.supplied[at[0]]), 1.0)
    fewer = np.maximum(needed[:, None] + np.arange(-1, TRIES - 1)[None, :], 1.0)
    left, counts = np.ravel(np.broadcast_to(decoders[:, None], fewer.shape)), np.ravel(fewer)
    here, there = space.cards[first.family.pool.name], space.cards[other.family.pool.name]
    same = first.family.pool.name == other.family.pool.name
    fits = counts * size + left * each <= here if same else (counts * size <= here) & (left * each <= there)
    left, counts = left[fits], counts[fits]
    if not len(left):
        return
    state = pair_state(first, other, joint, at, counts, left)
    good = met(workload, state)
    for n, m, through in zip(counts[good], left[good], np.ravel(state.through)[good], strict=True):
        part = Part(target, at[1], int(m), float(through), source, at[0], int(n))
        best.offer(part, (through / part.cards, -float(part.cards)))


def pair_state(first: Pool, other: Pool, joint: Crossing | None, at: tuple[int, int], counts: Any, left: Any) -> State:
    """Return what a pair of types does under the job's load, with so many instances of each, as arrays."""
    source, target, workload = first.prefill, other.decode, other.decode.workload
    rows = np.full(len(counts), at[0])
    given = take(source.supply, rows)
    given = replace(given, cut=replace(given.cut, count=np.asarray(counts, float)[:, None]))
    service, lines = target.counted(np.full(len(left), at[1]), left)
    service = replace(service, crossing=joint)
    alone = serving_curves.decode_seconds(service, lines)
    own, bound = serving_curves.first_apart(service, workload, given, service.decode.cut)
    pace = Paces(
        lines.running, alone / service.accepted, own + 0.0 * alone, alone, given.prompt, given.cut.count * given.rate,
        bound, lines.capacity,
    )  # fmt: skip
    return meet(service, workload, pace)
