"""Search under a closed loop: so many requests are in the system at all times; the most output per card is wanted.

With ``n`` instances, each holds a share of the requests, so that fewer instances run larger batches and put out more
per card until a target is missed. Instances that do both are looked at from the fewest on, until their bound, the most
that a batch of no more than ``requests / n`` puts out per card, is no better than what is kept: exact. Where prefill is
apart, pairs of types are looked at in the order of such a bound, each with every number of instances of both that may
be among the best; at most :data:`PAIRS` pairs, and the answer says how far the bound of the others is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from zhenfa.estimate import serving_curves
from zhenfa.estimate.rows import along, take
from zhenfa.estimate.serving_curves import Crossing, Paces
from zhenfa.estimate.serving_spread import wait_factor
from zhenfa.estimate.serving_state import State, meet
from zhenfa.plan.serving import parts
from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.ordered import table
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.power import worth
from zhenfa.plan.serving.search import Pair, Pool, Space
from zhenfa.spec.serving import ServingWorkload

PAIRS: Final = 200
"""Pairs of prefill and decode types that are looked at, at most."""

NUMBERS: Final = 64
MOST_BLOCKS: Final = 64
"""Numbers of decode instances of a pair that are looked at together, and how often."""

LITTLE: Final = 1.0 - 1e-6
"""How closely the steady state obeys Little's law at least: rates below this share of what it asks for are left out."""

MORE: Final = 3
"""Prefill instances beyond those that the rate needs which are tried, to bring the first token in time."""


def closed(space: Space, requests: float, best: Best) -> float:
    """Offer the parts that put out most per card with so many requests in the system.

    The score is requests per second and card. Return a score that none can exceed.
    """
    bound = 0.0
    for pool in space.pools:
        _together(space, pool, requests, best)
    for pair in space.pairs:
        bound = max(bound, _apart(space, pair, requests, best))
    return max(bound, best.first)


def met(workload: ServingWorkload, state: State) -> Any:
    """Return which states meet the targets."""
    within = state.tpot <= parts.ceiling(workload.tpot_target)
    level = workload.ttft_percentile
    first = state.first.mean if level is None else state.first.within(level / 100.0)
    return np.ravel(within & (np.asarray(first) <= parts.ceiling(workload.ttft_target)))


def least_rate(workload: ServingWorkload, requests: float) -> float:
    """Return the requests/s below which no plan meets both targets with so many requests in the system.

    Proof (Little): each is in the system for no longer than the mean TTFT and TPOT that are allowed, so that they leave
    it at ``requests`` over that time at least. A percentile below that of the mean allows a longer mean. 0 where a
    target is missing, or where the mean TTFT counts the wave that a run starts with.
    """
    if workload.ttft_target is None or workload.tpot_target is None or workload.first_share:
        return 0.0
    first = workload.ttft_target / min(wait_factor(workload.ttft_percentile), 1.0)
    return requests / (first + workload.mean_decoded * workload.tpot_target) * LITTLE


def most_with(share: Any, running: Any, tpot: Any, mean: float) -> Any:
    """Return the most requests/s of one instance in which no more than ``share`` requests run.

    Proof: between two points of its curves TPOT is straight, so that batch over TPOT rises or falls all the way: it is
    highest at one of the points up to the share, or at the share itself.
    """
    at = np.minimum(share, running[..., -1:])
    here = at / (mean * along(at, running, tpot))
    before = np.max(np.where(running <= at, running / (mean * tpot), 0.0), axis=-1, keepdims=True)
    return np.maximum(here, before)


def _offer(space: Space, part: Part, best: Best) -> None:
    counted = worth(space.request, space.wish, (part,))
    best.offer(part, (part.rate / counted, -counted))


def _together(space: Space, pool: Pool, requests: float, best: Best) -> None:
    types, room = pool.both, space.wish.room(pool.name, space.cards[pool.name])
    if not len(types):
        return
    workload, each = types.workload, space.wish.counts(pool.name)
    pace = types.paces(slice(None), np.ones(len(types)))
    open_ = np.flatnonzero(pool.together > 0)
    counts = np.ones(len(types))
    counts[open_] = np.maximum(np.ceil(least_rate(workload, requests) / pool.together[open_]), 1.0)
    while len(open_):
        share = (requests / counts[open_])[:, None]
        most = most_with(share, pace.running[open_], pace.tpot[open_], workload.mean_decoded)[:, 0]
        most = np.minimum(most, pool.together[open_])
        ceiling = most / (types.cards[open_] * each)
        open_ = open_[(ceiling > best.last) & (counts[open_] * types.cards[open_] <= room)]
        if not len(open_):
            return
        service, lines = types.counted(open_, counts[open_])
        state = meet(service, workload, serving_curves.paces(service, workload, lines))
        good = met(workload, state)
        through = np.ravel(state.through)
        for at, here, number in zip(open_[good], through[good], counts[open_][good], strict=True):
            _offer(space, Part(types, int(at), int(number), float(here)), best)
        counts[open_] += 1


def _apart(space: Space, pair: Pair, requests: float, best: Best) -> float:
    """Offer pairs of types; return what a request per second of those left out counts for at least, one over it.

    Each of ``m`` decode instances holds at most ``requests / m``, so that together they give at most ``m R(requests /
    m)`` requests/s, ``R`` being the most with no more than that batch; of ``n`` prefill instances each gives at most
    its own rate.
    """
    first, other, _ = pair
    source, target, wish = first.prefill, other.decode, space.wish
    lines, tpot = target.curves, target.tpot
    mean, everyone = target.workload.mean_decoded, np.full((len(target), 1), requests)
    decoded = parts.most_within(lines.running, tpot, mean, (tpot, parts.ceiling(target.workload.tpot_target)))
    alone = np.minimum(most_with(everyone, lines.running, tpot, mean)[:, 0], decoded)
    each = wish.counts(first.name), wish.counts(other.name)
    with np.errstate(divide="ignore", invalid="ignore"):
        need = source.cards * each[0] / first.supplied
        use = target.cards * each[1] / alone

    def bound(some: Any, more: Any) -> Any:
        return 1.0 / (some + more)

    for number, (limit, at) in enumerate(table(need, use, bound, max(best.last, 0.0)).descending()):
        if not limit > max(best.last, 0.0):
            return 0.0
        if number >= PAIRS:
            return limit
        _pair(space, pair, requests, at, (lines.running[at[1]], tpot[at[1]], float(decoded[at[1]])), best)
    return 0.0


def _pair(
    space: Space, pair: Pair, requests: float, at: tuple[int, int], curve: tuple[Any, Any, float], best: Best
) -> None:
    """Offer the numbers of instances of a pair of types that may be among the best.

    ``curve``: batches and TPOT of those that decode, and what one of them gives within the target.
    """
    first, other, _ = pair
    wish, target, workload = space.wish, other.decode, other.decode.workload
    size, each = int(first.prefill.cards[at[0]]), int(target.cards[at[1]])
    here, there = (wish.room(one.name, space.cards[one.name]) for one in (first, other))
    least = float(first.supplied[at[0]])
    key = Part(target, at[1], 1, 0.0, first.prefill).key
    for block in range(MOST_BLOCKS):
        left = np.arange(block * NUMBERS + 1, (block + 1) * NUMBERS + 1)
        left = left[left * each <= there]
        if not len(left):
            return
        running, tpot, decoded = curve
        each_most = most_with((requests / left)[:, None], running, tpot, workload.mean_decoded)[:, 0]
        most = left * np.minimum(each_most, decoded)
        worth_of = left * each * wish.counts(other.name)
        limit = max(best.limit(key), 0.0)
        hope = most / (most * size * wish.counts(first.name) / least + worth_of)
        if not np.any(hope > limit):
            return
        givers = np.arange(1, min(here // size, int(np.ceil(np.max(most) / least)) + MORE) + 1)
        counts, decoders = (np.ravel(one) for one in np.meshgrid(givers, left[hope > limit], indexing="ij"))
        top = np.minimum(counts * least, np.repeat(most[hope > limit][None], len(givers), 0).ravel())
        spent = counts * size * wish.counts(first.name) + decoders * each * wish.counts(other.name)
        cards = {first.name: counts * size, other.name: decoders * each}
        cards = {first.name: counts * size + decoders * each} if first.name == other.name else cards
        good = (
            (top / spent > limit)
            & (top >= least_rate(workload, requests))
            & wish.fits(cards)
            & (cards[first.name] <= here)
        )
        if np.any(good):
            _evaluate(space, pair, at, counts[good], decoders[good], workload, best)


def _evaluate(
    space: Space, pair: Pair, at: tuple[int, int], counts: Any, left: Any, workload: ServingWorkload, best: Best
) -> None:
    first, other, joint = pair
    for block in parts.blocks(len(counts)):
        state = pair_state(first, other, joint, at, counts[block], left[block])
        good = met(workload, state)
        rates = np.broadcast_to(np.ravel(state.through), good.shape)
        for n, m, through in zip(counts[block][good], left[block][good], rates[good], strict=True):
            _offer(space, Part(other.decode, at[1], int(m), float(through), first.prefill, at[0], int(n)), best)


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
        bound, lines.capacity, given,
    )  # fmt: skip
    return meet(service, workload, pace)
