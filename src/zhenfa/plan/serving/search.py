"""Search for serving plans of one part: prefill and decode together on a pool, or apart on one pool or two.

Under a load at random, the most that meets the targets, or the requests that count least, the search is exact over the
types of its space (:mod:`zhenfa.plan.serving.space`):

* together, types are evaluated in the order of a bound, with as many instances as there is room for, or as few as take
  the load;
* apart, ``r`` requests per second need ``a r`` cards for prefill and ``b r`` for decode at least, so that a pair of
  types takes no more than ``cards / (a + b)``, and a request counts for no less than what ``a`` and ``b`` cards count
  for. Pairs are looked at in the order of that bound until none can be among the best. Of one pair, all numbers of
  prefill instances, with as many that decode as go with them, are evaluated as one array.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from zhenfa.errors import CapabilityError
from zhenfa.estimate import serving
from zhenfa.estimate.serving_curves import Crossing
from zhenfa.plan.request import Request
from zhenfa.plan.serving import parts
from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.givers import Givers
from zhenfa.plan.serving.ordered import table
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.power import watts, worth
from zhenfa.plan.serving.space import ROLES, Family, Role, Types, Wanted, families, types_of
from zhenfa.plan.serving.tabled import table_of, tabled
from zhenfa.plan.serving.wish import ANY, Wish, wish_of

MISSED: Final = "misses a target at any load"
SHRINKS: Final = 6
"""Times that numbers of instances are lowered to keep to a limit of power."""

GRID: Final = 4096
"""Pairs of numbers of instances, across pools, up to which all are tried for the least cost."""

TRIED: Final = 64
"""Numbers of instances of a pair that are tried under a limit of power."""


@dataclass
class Pool:
    """The types of one family, by role, with what one instance of each can take at most: ``together``; ``decoded``;
    ``supplied`` without any wait for the first token, and by ``givers`` in time."""

    family: Family
    both: Types
    decode: Types
    prefill: Types
    together: Any = None
    decoded: Any = None
    supplied: Any = None
    givers: Givers = field(init=False)

    @property
    def name(self) -> str:
        """Return the name of the pool."""
        return self.family.pool.name


@dataclass
class Space:
    """Everything that is looked at for a request. ``cards``: of each pool that may be used."""

    request: Request
    wish: Wish
    pools: list[Pool]
    cards: dict[str, int]
    whole: int = 0
    """Cards of all pools together that may be used."""
    tally: Counter[str] = field(default_factory=Counter)
    considered: int = 0
    costed: int = 0

    def over(self, chosen: tuple[Part, ...]) -> float:
        """Return what a choice draws over what it may draw; 0 where there is no limit."""
        return 0.0 if self.wish.power is None else watts(self.request, chosen) / (self.wish.power * (1 + parts.SLACK))

    def allows(self, chosen: tuple[Part, ...]) -> bool:
        """Return whether a choice keeps to what pools share, to the power and to the least shares of the work."""
        used: Counter[str] = Counter()
        for one in chosen:
            used.update(one.cards_by_pool())
        if any(count > self.cards[name] for name, count in used.items()) or not self.wish.fits(used):
            return False
        for maker, pools, least in self.wish.shares:
            if parts.share_on(chosen, pools, self.wish.prompt) < least - parts.SLACK:
                self.tally[f"less than {least:.0%} of the work on cards of {maker} (limits.least_share)"] += 1
                return False
        wanted = self.wish.rate if self.wish.question in ("most", "closed") else None
        if wanted is not None and sum(one.rate for one in chosen) < wanted * (1 - parts.SLACK):
            self.tally["puts out less than limits.tokens_per_s"] += 1
            return False
        if self.over(chosen) > 1:
            self.tally["draws more than limits.power"] += 1
            return False
        return True

    @cached_property
    def pairs(self) -> list[tuple[Pool, Pool, Crossing | None]]:
        """Return families for prefill and decode that can work together, and what joins their pools."""
        return list(self._pairs())

    def _pairs(self) -> Iterator[tuple[Pool, Pool, Crossing | None]]:
        for first, other in itertools.product(self.pools, self.pools):
            if not (parts.fits_together(first.family, other.family) and len(first.prefill) and len(other.decode)):
                continue
            try:
                joint = serving.crossing(
                    self.request.graph, first.prefill.group, other.decode.group, self.request.formation
                )
            except CapabilityError as problem:
                self.tally[problem.message] += len(first.prefill) * len(other.decode)
                continue
            yield first, other, joint

    @cached_property
    def quickest(self) -> float:
        """Return the seconds to a first token that no engine does without, where prefill is apart."""
        return min(one.engine.entry + one.engine.handover for one in families(self.request))

    def add(self, family: Family, wanted: Mapping[Role, Wanted] | None = None) -> None:
        """Add the types of a family, every one evaluated; ``wanted``: of these degrees only, by role."""
        tally: Counter[str] = Counter()
        both, decode, prefill = (
            types_of(self.request, family, role, tally, None if wanted is None else wanted[role]) for role in ROLES
        )
        found = Pool(family, both, decode, prefill)
        self.considered += len(found.both) + tally.total()
        self.costed += len(found.both)
        self.tally.update(tally)
        if len(found.both):
            found.together = parts.together_bound(found.both)
            self.tally[MISSED] += int(np.sum(found.together <= 0))
        if len(found.decode):
            found.decoded = parts.decode_limit(found.decode)
        if len(found.prefill):
            found.supplied = supplied_by(found.prefill)
            found.givers = Givers(found.prefill, self.cards[family.pool.name], self.quickest)
        self.pools.append(found)
        self.__dict__.pop("pairs", None)


def open_space(request: Request) -> Space:
    """Return the space of a request, every type evaluated."""
    wish = wish_of(request)
    space = Space(request, wish, [], {})
    for pool in request.formation.pools:
        space.cards[pool.name] = wish.room(pool.name, pool.count)
    space.whole = min(request.formation.cards, request.job.limits.max_cards or request.formation.cards)
    for family in families(request):
        space.add(family)
    return space


def supplied_by(types: Types) -> Any:
    """Return prompts/s that one instance of each prefill type cannot exceed: 0 where its first token is late alone."""
    given, engine = types.supply, types.service.engine
    first = engine.entry + engine.handover + given.seconds
    return np.where(first <= parts.ceiling(types.workload.ttft_target), given.rate, 0.0)[:, 0]


def needs(first: Pool, other: Pool) -> tuple[Any, Any]:
    """Return the cards that one request per second needs at least, for prefill and for decode, by type."""
    with np.errstate(divide="ignore"):
        return first.prefill.cards / first.givers.most, other.decode.cards / other.decoded


# the most requests/s


def most(space: Space, cards: dict[str, int], best: Best) -> None:
    """Offer the parts that take the most requests/s with at most so many cards of each pool named."""
    for pool in space.pools:
        if cards.get(pool.name):
            _most_together(space, pool, cards[pool.name], best)
    for first, other, joint in space.pairs:
        if cards.get(first.name) and cards.get(other.name):
            _most_apart(space, (first, other, joint), cards, best)


def _most_together(space: Space, pool: Pool, cards: int, best: Best) -> None:
    types = pool.both
    if not len(types):
        return
    counts = _powered(space, pool.name, space.wish.room(pool.name, cards)) // types.cards.astype(int)
    hope = pool.together * counts
    order = np.argsort(-hope, kind="stable")
    for block in parts.blocks(len(order)):
        index = order[block]
        index = index[(counts[index] > 0) & (hope[index] > max(best.last, 0.0))]
        if not len(index):
            return
        rates = parts.most_together(types, index, counts[index])
        for at, rate in zip(index, rates, strict=True):
            if rate > 0:
                part = Part(types, int(at), int(counts[at]), float(rate))
                _offer_most(space, part, best)


def _powered(space: Space, pool: str, cards: int) -> int:
    """Return how many of some cards of a pool the limit of power allows, were each to draw the least."""
    power = space.wish.power
    return cards if power is None else min(cards, int(power * (1 + parts.SLACK) / space.wish.watts[pool]))


def _affordable(space: Space, part: Part) -> Part | None:
    """Return a part of instances that do both; where it draws too much, with fewer of them."""
    for _ in range(SHRINKS):
        over = space.over((part,))
        if over <= 1:
            break
        count = min(int(part.count / over), part.count - 1)
        if count < 1:
            return None
        rate = float(parts.most_together(part.decode, [part.at], [count])[0])
        part = replace(part, count=count, rate=rate)
    return part if part.rate > 0 else None


def _offer_most(space: Space, part: Part, best: Best) -> None:
    """Offer a part of instances that do both, as many as its power allows."""
    found = _affordable(space, part)
    if found is not None:
        best.offer(found, (found.rate, -float(found.cards)))


Pair = tuple[Pool, Pool, Crossing | None]


def _most_apart(space: Space, pair: Pair, cards: dict[str, int], best: Best) -> None:
    first, other, _ = pair
    wish, target = space.wish, other.decode
    room, rest = (wish.room(one.name, cards[one.name]) for one in (first, other))
    rooms = {first.name: room, other.name: rest}
    if wish.power is None and tabled(rooms):
        found = table_of(space, pair, rooms)
        for rate, one in found.best(found.rates):
            if not rate > max(best.last, 0.0):
                return
            best.offer(one, (rate, -float(one.cards)))
        return
    both = room if first.name == other.name else wish.room_of((first.name, other.name), room + rest)
    drawn = [wish.watts.get(one.name, 0.0) for one in (first, other)]

    def bound(need: Any, use: Any) -> Any:
        found = both / (need + use)
        if first.name != other.name:
            found = np.minimum(found, np.minimum(room / need, rest / use))
        return found if wish.power is None else np.minimum(found, wish.power / (need * drawn[0] + use * drawn[1]))

    def floor() -> float:
        return max(best.last, 0.0)

    def closer(at: Any, to: Any) -> Any:
        return whole_bound(space, pair, (at, to), (room, rest))

    need, use = _fitting(space, pair, (room, rest))
    for limit, at in table(need, use, bound, floor()).above(floor, closer):
        beaten = max(best.limit(Part(target, at[1], 1, 0.0, first.prefill).key), 0.0)
        if not limit > beaten:
            continue
        part = best_of_pair(space, pair, at, (room, rest), beaten)
        if part is not None:
            best.offer(part, (part.rate, -float(part.cards)))


def _fitting(space: Space, pair: Pair, cards: tuple[int, int]) -> tuple[Any, Any]:
    """Return :func:`needs`; infinite for types of which one leaves no room for the smallest of the other side."""
    first, other, _ = pair
    smallest = int(np.argmin(first.prefill.cards)), int(np.argmin(other.decode.cards))
    rows, columns = np.arange(len(first.prefill)), np.arange(len(other.decode))
    need, use = needs(first, other)
    beside = _decoders(space, pair, (rows, smallest[1]), cards, np.ones(len(rows)))
    under = _decoders(space, pair, (smallest[0], columns), cards, np.ones(len(columns)))
    return np.where(beside >= 1, need, np.inf), np.where(under >= 1, use, np.inf)


def _decoders(space: Space, pair: Pair, at: tuple[Any, Any], cards: tuple[int, int], counts: Any) -> Any:
    """Return for how many instances that decode there is room beside so many of prefill: cards, limits and power.

    Of one pair of types with many numbers, or of many pairs each with its own.
    """
    first, other, _ = pair
    wish = space.wish
    taken = counts * first.prefill.cards[at[0]]
    rest: Any = cards[1] - taken if first.name == other.name else np.full(len(counts), cards[1])
    rest = wish.left(other.name, rest, {first.name: taken})
    if wish.power is not None:
        spare = wish.power * (1 + parts.SLACK) - taken * wish.watts[first.name]
        rest = np.minimum(rest, np.maximum(spare, 0.0) / wish.watts[other.name])
    return np.maximum(rest, 0.0) // other.decode.cards[at[1]]


def whole_bound(space: Space, pair: Pair, at: tuple[Any, Any], cards: tuple[int, int]) -> Any:
    """Return requests/s that pairs of types cannot exceed with whole instances.

    Proof: with more prefill instances these give more and those that decode, for which less is left, no more. So the
    lesser of both is highest at the largest number of the former that gives no more than the latter takes, found by
    halving, or at the next.
    """
    first, other, _ = pair
    each, taken = first.givers.most[at[0]], np.asarray(other.decoded)[at[1]]

    def spared(counts: Any) -> Any:
        return _decoders(space, pair, at, cards, counts) * taken

    low, high = np.zeros(len(each)), cards[0] // first.prefill.cards[at[0]] + 1.0
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        under = middle * each <= spared(middle)
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    beyond = np.where(high * first.prefill.cards[at[0]] <= cards[0], spared(high), 0.0)
    return np.maximum(low * each, beyond)


def best_of_pair(
    space: Space, pair: Pair, at: tuple[int, int], cards: tuple[int, int], beaten: float = 0.0
) -> Part | None:
    """Return the instances of a pair of types that take most, with so many cards for prefill and for decode.

    On one pool both numbers are the same cards. None where whole instances cannot take more than ``beaten``.
    """
    first, other, joint = pair
    wish = space.wish
    counts = np.arange(1, cards[0] // int(first.prefill.cards[at[0]]) + 1)
    left = _decoders(space, pair, at, cards, counts).astype(int)
    most_of = np.minimum(counts * float(first.givers.most[at[0]]), left * float(other.decoded[at[1]]))
    hope = (left >= 1) & (most_of > beaten)
    counts, left = counts[hope], left[hope]
    if not len(counts):
        return None
    rates = np.minimum(*pair_rates(first, other, joint, at, counts, left))
    for here in np.argsort(-rates, kind="stable")[: 1 if wish.power is None else TRIED]:
        part = _part_of(pair, at, int(counts[here]), int(left[here]), float(rates[here]))
        if part is None or space.over((part,)) <= 1:
            return part
    return None


def _part_of(pair: Pair, at: tuple[int, int], count: int, left: int, rate: float) -> Part | None:
    """Return one choice of numbers as a part, without instances that decode and are not needed for its rate."""
    first, other, _ = pair
    if not rate > 0:
        return None
    least = max(rate / float(other.decoded[at[1]]), _crossing_cards(pair, rate) / float(other.decode.cards[at[1]]))
    decoders = max(min(int(np.ceil(least * (1 - 1e-12))), left), 1)
    return Part(other.decode, at[1], decoders, rate, first.prefill, at[0], count)


def _crossing_cards(pair: Pair, rate: float) -> float:
    """Return the cards that must stand on either side of the bridge for so many requests/s."""
    _, other, joint = pair
    if joint is None:
        return 0.0
    return rate / float(joint.rate(other.decode.workload.mean_input, 1.0, 1.0))


def pair_rates(
    first: Pool, other: Pool, joint: Crossing | None, at: tuple[int, int], counts: Any, left: Any
) -> tuple[Any, Any]:
    """Return what the prefill instances and what the decode instances take."""
    decode = parts.one_of(other.decode, at[1])
    return first.givers.limit(at[0], counts, decode, joint, left), left * other.decoded[at[1]]


# the cards that count least and take a rate


def fewest(space: Space, rate: float, best: Best) -> None:
    """Offer the parts that take ``rate`` requests/s with the cards that count least (the score is that, negative)."""
    for pool in space.pools:
        _fewest_together(space, pool, rate, best)
    for pair in space.pairs:
        _fewest_apart(space, pair, rate, best)


def _least(rate: float, each: Any) -> Any:
    """Return how many instances take a rate at least."""
    with np.errstate(divide="ignore"):
        return np.where(each > 0, np.ceil(rate / np.maximum(each, 1e-300) * (1 - 1e-12)), np.inf)


def _offer_least(space: Space, part: Part, best: Best, most: float) -> None:
    """Offer a part; of those that count as much, what takes ``most`` is the better."""
    if part.rate <= ANY:
        part = replace(part, rate=most)
    best.offer(part, (-worth(space.request, space.wish, (part,)), most))


def _fewest_together(space: Space, pool: Pool, rate: float, best: Best) -> None:
    types = pool.both
    if not len(types):
        return
    cards = _powered(space, pool.name, space.wish.room(pool.name, space.cards[pool.name]))
    each = space.wish.counts(pool.name)
    counts = np.maximum(_least(rate, pool.together), 1.0)
    open_ = np.flatnonzero(counts * types.cards <= cards)
    open_ = open_[np.argsort((counts * types.cards)[open_], kind="stable")]
    while len(open_):
        used = counts[open_] * types.cards[open_]
        open_ = open_[(used <= cards) & (used * each <= -best.last)]
        block = open_[: parts.BLOCK]
        if not len(block):
            return
        taken = parts.most_together(types, block, counts[block])
        enough = taken >= rate * (1 - parts.SLACK)
        for at, most_of in zip(block[enough], taken[enough], strict=True):
            _offer_least(space, Part(types, int(at), int(counts[at]), rate), best, float(most_of))
        counts[block[~enough]] += 1
        open_ = np.concatenate([block[~enough], open_[parts.BLOCK :]])


def _fewest_apart(space: Space, pair: Pair, rate: float, best: Best) -> None:
    first, other, joint = pair
    source, target, wish = first.prefill, other.decode, space.wish
    same = first.name == other.name
    room, rest = (wish.room(one.name, space.cards[one.name]) for one in (first, other))
    crossed = _crossing_cards(pair, rate)
    use = np.maximum(_least(rate, other.decoded), np.ceil(crossed / target.cards * (1 - 1e-12)))
    need = np.maximum(_least(rate, first.givers.most), np.ceil(crossed / source.cards * (1 - 1e-12)))
    taken, spent = need * source.cards, use * target.cards
    each = wish.counts(first.name), wish.counts(other.name)
    taken = np.where(taken <= room, taken, np.inf)
    spent = np.where(spent <= rest, spent, np.inf)

    drawn = [wish.watts.get(one.name, 0.0) for one in (first, other)]
    power = np.inf if wish.power is None else wish.power * (1 + parts.SLACK)

    def bound(some: Any, more: Any) -> Any:
        fits = ((some + more <= room) | (not same)) & (some * drawn[0] + more * drawn[1] <= power)
        return -np.where(fits, some * each[0] + more * each[1], np.inf)

    for limit, (at, to) in table(taken, spent, bound, best.last).descending():
        if not (np.isfinite(limit) and limit >= best.last):
            break
        limit_of = (room - int(spent[to])) if same else room
        limit_of = _powered(space, first.name, limit_of)
        counts = np.arange(int(need[at]), int(limit_of // source.cards[at]) + 1)
        if not len(counts):
            continue
        taken = np.minimum(*pair_rates(first, other, joint, (at, to), counts, np.full(len(counts), use[to])))
        enough = np.flatnonzero(taken >= rate * (1 - parts.SLACK))
        if len(enough):
            here = enough[0]
            part = Part(target, to, int(use[to]), rate, source, at, int(counts[here]))
            _offer_least(space, part, best, float(taken[here]))


# the requests that count least each


def least_each(space: Space, rate: float, best: Best) -> None:
    """Offer the parts of which a request counts least (the score is that, negative), of at least ``rate`` requests/s.

    Requests of more instances wait less, so that a part of instances that do both is best with as many as there is room
    for.
    """
    for pool in space.pools:
        _each_together(space, pool, rate, best)
    for pair in space.pairs:
        _each_apart(space, pair, rate, best)


def _offer_each(space: Space, part: Part, rate: float, best: Best) -> None:
    if part.rate >= rate * (1 - parts.SLACK):
        best.offer(part, (-worth(space.request, space.wish, (part,)) / part.rate, part.rate))


def _each_together(space: Space, pool: Pool, rate: float, best: Best) -> None:
    types = pool.both
    if not len(types):
        return
    room = _powered(space, pool.name, space.wish.room(pool.name, space.cards[pool.name]))
    counts = room // types.cards.astype(int)
    with np.errstate(divide="ignore"):
        hope = -space.wish.counts(pool.name) * types.cards / pool.together
    order = np.argsort(-hope, kind="stable")
    for block in parts.blocks(len(order)):
        index = order[block]
        index = index[(counts[index] > 0) & (pool.together[index] > 0) & (hope[index] > best.last)]
        if not len(index):
            return
        rates = parts.most_together(types, index, counts[index])
        for at, taken in zip(index, rates, strict=True):
            found = _affordable(space, Part(types, int(at), int(counts[at]), float(taken))) if taken > 0 else None
            if found is not None:
                _offer_each(space, found, rate, best)


def _each_apart(space: Space, pair: Pair, rate: float, best: Best) -> None:
    first, other, _ = pair
    each = space.wish.counts(first.name), space.wish.counts(other.name)
    room, rest = (space.wish.room(one.name, space.cards[one.name]) for one in (first, other))

    def bound(need: Any, use: Any) -> Any:
        return -(need * each[0] + use * each[1])

    def closer(at: Any, to: Any) -> Any:
        return -_whole_worth(space, pair, (at, to), (room, rest))

    for limit, at in table(*_fitting(space, pair, (room, rest)), bound, best.last).above(lambda: best.last, closer):
        if not limit > best.limit(Part(other.decode, at[1], 1, 0.0, first.prefill).key):
            continue
        part = _cheapest_of_pair(space, pair, at, (room, rest), rate)
        if part is not None:
            _offer_each(space, part, rate, best)


def _whole_worth(space: Space, pair: Pair, at: tuple[Any, Any], cards: tuple[int, int]) -> Any:
    """Return what a request of pairs of types counts for at least with whole instances.

    Proof: ``r`` requests/s need ``r`` over what one takes of either, and one at least, so that each counts for less the
    more there are: at least what it does at :func:`whole_bound`.
    """
    first, other, _ = pair
    most = whole_bound(space, pair, at, cards)
    worth_of = 0.0
    for pool, types, taken, place in (
        (first, first.prefill, first.givers.most, at[0]), (other, other.decode, np.asarray(other.decoded), at[1]),
    ):  # fmt: skip
        worth_of = worth_of + np.maximum(most / taken[place], 1.0) * types.cards[place] * space.wish.counts(pool.name)
    with np.errstate(divide="ignore"):
        return np.where(most > 0, worth_of / np.maximum(most, 1e-300), np.inf)


def _cheapest_of_pair(
    space: Space, pair: Pair, at: tuple[int, int], cards: tuple[int, int], rate: float
) -> Part | None:
    """Return the numbers of instances of a pair of types with which a request counts least.

    With a number for prefill goes the largest number that decodes without waiting for it, or one more, or, across
    pools where either may bound the bridge, any number.
    """
    first, other, joint = pair
    wish, same = space.wish, first.name == other.name
    size, each = int(first.prefill.cards[at[0]]), int(other.decode.cards[at[1]])
    alone = np.arange(1, cards[0] // size + 1)
    if not len(alone) or cards[1] < each:
        return None
    most_left = cards[1] // each
    if joint is None or len(alone) * most_left > GRID:
        free = pair_rates(first, other, joint, at, alone, np.full(len(alone), most_left))[0]
        near = np.floor(free / float(other.decoded[at[1]]) + 1e-9)
        counts = np.repeat(alone, 2)
        left = np.ravel(np.stack([near, near + 1], axis=-1)).astype(int)
    else:
        counts, left = (np.ravel(one) for one in np.meshgrid(alone, np.arange(1, most_left + 1), indexing="ij"))
    here = {first.name: counts * size, other.name: left * each}
    here = {first.name: counts * size + left * each} if same else here
    fits = (left >= 1) & (left <= most_left) & wish.fits(here) & (here[first.name] <= cards[0])
    fits &= left <= _decoders(space, pair, at, cards, counts)
    counts, left = counts[fits], left[fits]
    if not len(counts):
        return None
    rates = np.minimum(*pair_rates(first, other, joint, at, counts, left))
    with np.errstate(divide="ignore"):
        spent = (counts * size * wish.counts(first.name) + left * each * wish.counts(other.name)) / rates
    spent = np.where(rates >= rate * (1 - parts.SLACK), spent, np.inf)
    if not np.isfinite(np.min(spent)):
        return None
    order = np.lexsort((-rates, np.round(spent / np.min(spent), 9)))
    for best in order[np.isfinite(spent[order])][: 1 if wish.power is None else TRIED]:
        part = Part(other.decode, at[1], int(left[best]), float(rates[best]), first.prefill, at[0], int(counts[best]))
        if space.over((part,)) <= 1:
            return part
    return None
