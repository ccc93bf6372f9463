"""Search for serving plans of one part: prefill and decode together on a pool, or apart on one pool or two.

Under a load at random (or the most that meets the targets) the search is exact over :mod:`zhenfa.plan.serving.space`:

* together, every type is evaluated with as many instances as there is room for, or as few as take the load;
* apart, ``r`` requests per second need ``a r`` cards for prefill and ``b r`` for decode at least, so that a pair of
  types takes no more than ``cards / (a + b)``. Pairs are looked at in the order of that bound until none can be among
  the best. Of one pair, all numbers of prefill instances, the rest of the cards decoding, are evaluated as one array.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from zhenfa.errors import CapabilityError
from zhenfa.estimate import serving
from zhenfa.estimate.rows import take
from zhenfa.estimate.serving_curves import Crossing
from zhenfa.plan.request import Request
from zhenfa.plan.serving import parts
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.space import Family, Types, families, types_of

MISSED: Final = "misses a target at any load"
FIRST_LOOK: Final = 512
"""Pairs that are put in order at first; eight times as many each time that was not enough."""


@dataclass
class Pool:
    """The types of one family, by role, with what one instance of each can take at most."""

    family: Family
    both: Types
    decode: Types
    prefill: Types
    together: Any = None
    decoded: Any = None
    supplied: Any = None


@dataclass
class Space:
    """Everything that is looked at for a request. ``cards``: of each pool that may be used."""

    request: Request
    pools: list[Pool]
    cards: dict[str, int]
    whole: int = 0
    """Cards of all pools together that may be used."""
    tally: Counter[str] = field(default_factory=Counter)
    considered: int = 0
    costed: int = 0

    @cached_property
    def pairs(self) -> list[tuple[Pool, Pool, Crossing | None]]:
        """Return families for prefill and decode that can work together, and what joins their pools."""
        return list(self._pairs())

    def _pairs(self) -> Iterator[tuple[Pool, Pool, Crossing | None]]:
        for first, other in itertools.product(self.pools, self.pools):
            if not parts.fits_together(first.family, other.family):
                continue
            try:
                joint = serving.crossing(
                    self.request.graph, first.prefill.group, other.decode.group, self.request.formation
                )
            except CapabilityError as problem:
                self.tally[problem.message] += len(first.prefill) * len(other.decode)
                continue
            yield first, other, joint


def open_space(request: Request) -> Space:
    """Return the space of a request, every type evaluated."""
    space = Space(request, [], {})
    limit = request.job.limits.max_cards
    for pool in request.formation.pools:
        space.cards[pool.name] = min(pool.count, limit or pool.count)
    space.whole = min(request.formation.cards, limit or request.formation.cards)
    for family in families(request):
        found = Pool(family, *(types_of(request, family, role, space.tally) for role in ("both", "decode", "prefill")))
        space.considered += len(found.both)
        if len(found.both):
            found.together = parts.together_bound(found.both)
        if len(found.decode):
            found.decoded = parts.decode_limit(found.decode)
        if len(found.prefill):
            found.supplied = _supplied(found.prefill)
        space.pools.append(found)
    space.considered += sum(space.tally.values())
    space.costed = space.considered - sum(space.tally.values())
    return space


def _supplied(types: Types) -> Any:
    """Return prompts/s that one instance of each prefill type cannot exceed: 0 where its first token is late alone."""
    given, engine = types.supply, types.service.engine
    first = engine.entry + engine.handover + given.seconds
    return np.where(first <= parts.ceiling(types.workload.ttft_target), given.rate, 0.0)[:, 0]


class Best:
    """The best choices so far: the highest score, one for each key, of at most so many ``cards``.

    A choice is one part, or several of a fleet.
    """

    def __init__(self, keep: int, cards: float = np.inf) -> None:
        self.keep, self.cards = keep, cards
        self.found: dict[tuple[object, ...], tuple[tuple[float, ...], tuple[Part, ...]]] = {}

    @property
    def last(self) -> float:
        """Return the score that must be beaten to be kept."""
        if len(self.found) < self.keep:
            return -np.inf
        return min(score[0] for score, _ in self.found.values())

    def limit(self, key: tuple[object, ...]) -> float:
        """Return the score that a choice of one part with this key must beat to be kept."""
        known = self.found.get((key,))
        return self.last if known is None else max(self.last, known[0][0])

    @property
    def first(self) -> float:
        """Return the highest score so far."""
        return max((score[0] for score, _ in self.found.values()), default=-np.inf)

    def offer(self, part: Part | tuple[Part, ...], score: tuple[float, ...]) -> None:
        """Keep a choice if it is among the best."""
        chosen = (part,) if isinstance(part, Part) else part
        if sum(one.cards for one in chosen) > self.cards:
            return
        key = tuple(one.key for one in chosen)
        known = self.found.get(key)
        if known is not None and known[0] >= score:
            return
        self.found[key] = (score, chosen)
        if len(self.found) > self.keep:
            del self.found[min(self.found, key=lambda key: self.found[key][0])]

    def ranked(self) -> list[tuple[tuple[float, ...], tuple[Part, ...]]]:
        """Return scores and choices, best first."""
        return sorted(self.found.values(), key=lambda one: one[0], reverse=True)


def most(space: Space, cards: dict[str, int], best: Best) -> None:
    """Offer the parts that take the most requests/s with at most so many cards of each pool named."""
    for pool in space.pools:
        if cards.get(pool.family.pool.name):
            _most_together(space, pool, cards[pool.family.pool.name], best)
    for first, other, joint in space.pairs:
        if cards.get(first.family.pool.name) and cards.get(other.family.pool.name):
            _most_apart(first, other, joint, cards, best)


def _most_together(space: Space, pool: Pool, cards: int, best: Best) -> None:
    types = pool.both
    if not len(types):
        return
    counts = cards // types.cards.astype(int)
    index = np.flatnonzero((counts > 0) & (pool.together > 0))
    space.tally[MISSED] += int(np.sum(pool.together <= 0))
    if not len(index):
        return
    rates = parts.most_together(types, index, counts[index])
    for at, rate in zip(index, rates, strict=True):
        if rate > 0:
            best.offer(Part(types, int(at), int(counts[at]), float(rate)), _score(rate, counts[at] * types.cards[at]))


def _score(rate: float, cards: float) -> tuple[float, ...]:
    return (float(rate), -float(cards))


def descending(bound: Any) -> Iterator[tuple[int, int]]:
    """Yield the places of a table from the highest value down; a few are put in order at a time."""
    flat, width = np.ravel(bound), bound.shape[1]
    done, many = 0, FIRST_LOOK
    while done < len(flat):
        many = min(many, len(flat))
        top = np.argpartition(-flat, many - 1)[:many] if many < len(flat) else np.arange(len(flat))
        for place in top[np.argsort(-flat[top], kind="stable")][done:]:
            yield divmod(int(place), width)
        done, many = many, many * 8


def _most_apart(first: Pool, other: Pool, joint: Crossing | None, cards: dict[str, int], best: Best) -> None:
    source, target = first.prefill, other.decode
    if not (len(source) and len(target)):
        return
    same = first.family.pool.name == other.family.pool.name
    room, rest = cards[first.family.pool.name], cards[other.family.pool.name]
    with np.errstate(divide="ignore", invalid="ignore"):
        need, use = source.cards / first.supplied, target.cards / other.decoded
        apart = np.minimum((room / need)[:, None], (rest / use)[None, :])
        bound = room / (need[:, None] + use[None, :]) if same else apart
    keys = [Part(target, to, 1, 0.0, source).key for to in range(len(target))]
    for at, to in descending(bound):
        if not bound[at, to] > max(best.last, 0.0):
            break
        if not bound[at, to] > best.limit(keys[to]):
            continue
        part = best_of_pair(first, other, joint, (at, to), (room, rest))
        if part is not None:
            best.offer(part, _score(part.rate, part.cards))


def best_of_pair(
    first: Pool, other: Pool, joint: Crossing | None, at: tuple[int, int], cards: tuple[int, int]
) -> Part | None:
    """Return the instances of a pair of types that take most, with so many cards for prefill and for decode.

    On one pool both numbers are the same cards.
    """
    source, target = first.prefill, other.decode
    size, each = int(source.cards[at[0]]), int(target.cards[at[1]])
    if first.family.pool.name != other.family.pool.name:
        counts = np.array([cards[0] // size])
        left = np.array([cards[1] // each])
    else:
        counts = np.arange(1, max((cards[0] - each) // size, 0) + 1)
        left = (cards[0] - counts * size) // each
    if not len(counts) or counts[0] < 1 or left[0] < 1:
        return None
    taken, given = pair_rates(first, other, joint, at, counts, left)
    rates = np.minimum(taken, given)
    here = int(np.argmax(rates))
    if not rates[here] > 0:
        return None
    part = Part(target, at[1], int(left[here]), float(rates[here]), source, at[0], int(counts[here]))
    return _trimmed(part, other)


def pair_rates(
    first: Pool, other: Pool, joint: Crossing | None, at: tuple[int, int], counts: Any, left: Any
) -> tuple[Any, Any]:
    """Return what the prefill instances and what the decode instances take."""
    decode = one_of(other.decode, at[1])
    return parts.prefill_limit(first.prefill, at[0], counts, decode, joint, left), left * other.decoded[at[1]]


def one_of(types: Types, at: int) -> Any:
    """Return the service of one type, as it would stand in a plan."""
    group = replace(types.group, cut=take(types.group.cut, [at]))
    return replace(types.service, decode=group)


def _trimmed(part: Part, other: Pool) -> Part:
    """Return the part without decode instances that are not needed for its rate."""
    count = int(np.ceil(part.rate / other.decoded[part.at] * (1 - 1e-12)))
    return replace(part, count=max(min(count, part.count), 1))


def fewest(space: Space, rate: float, best: Best) -> None:
    """Offer the parts that take ``rate`` requests/s with the fewest cards (the score is their number, negative)."""
    for pool in space.pools:
        _fewest_together(space, pool, rate, best)
    for first, other, joint in space.pairs:
        _fewest_apart(space, first, other, joint, rate, best)


def _least(rate: float, each: Any) -> Any:
    """Return how many instances take a rate at least."""
    with np.errstate(divide="ignore"):
        return np.where(each > 0, np.ceil(rate / np.maximum(each, 1e-300) * (1 - 1e-12)), np.inf)


def _fewest_together(space: Space, pool: Pool, rate: float, best: Best) -> None:
    types, cards = pool.both, space.cards[pool.family.pool.name]
    if not len(types):
        return
    space.tally[MISSED] += int(np.sum(pool.together <= 0))
    counts = _least(rate, pool.together)
    open_ = np.flatnonzero(counts * types.cards <= cards)
    while len(open_):
        open_ = open_[counts[open_] * types.cards[open_] <= min(cards, -best.last if best.last > -np.inf else cards)]
        if not len(open_):
            return
        taken = parts.most_together(types, open_, counts[open_])
        for at in open_[taken >= rate * (1 - parts.SLACK)]:
            used = float(counts[at] * types.cards[at])
            best.offer(Part(types, int(at), int(counts[at]), rate), (-used, float(taken.max())))
        open_ = open_[taken < rate * (1 - parts.SLACK)]
        counts[open_] += 1


def _fewest_apart(space: Space, first: Pool, other: Pool, joint: Crossing | None, rate: float, best: Best) -> None:
    source, target = first.prefill, other.decode
    if not (len(source) and len(target)):
        return
    same = first.family.pool.name == other.family.pool.name
    room, rest = space.cards[first.family.pool.name], space.cards[other.family.pool.name]
    need, use = _least(rate, first.supplied), _least(rate, other.decoded)
    used = (need * source.cards)[:, None] + (use * target.cards)[None, :]
    fits = used <= room if same else ((need * source.cards)[:, None] <= room) & ((use * target.cards)[None, :] <= rest)
    for at, to in descending(-np.where(fits, used, np.inf)):
        if not (fits[at, to] and -used[at, to] > best.last):
            break
        limit = (room - int(use[to] * target.cards[to])) if same else room
        counts = np.arange(int(need[at]), int(limit // source.cards[at]) + 1)
        if not len(counts):
            continue
        left = np.full(len(counts), use[to])
        enough = np.flatnonzero(pair_rates(first, other, joint, (at, to), counts, left)[0] >= rate)
        if len(enough):
            part = Part(target, to, int(use[to]), rate, source, at, int(counts[enough[0]]))
            best.offer(part, (-float(part.cards), 0.0))
