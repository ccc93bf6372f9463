"""Several sorts of instances behind one door: a part for each pool, and prefill and decode across two of them.

A fleet has at most one part on each pool's own cards, and at most one pair of types across two pools. What each pool
takes on its own cards adds up, so that fleets without a pair across are exact. With one, let ``e`` be the most requests
per second and card of each pool alone (a bound), and ``a`` and ``b`` the cards that a request per second needs for
prefill on one pool and decode on the other. ``r`` requests across leave less for the pools' own parts, so that

    total <= sum of cards x e + r x (1 - a e_prefill - b e_decode)

and a pair can gain only where the last factor is positive: where prefill and decode are cheap where they stand. Pairs
are looked at in the order of that bound, with every number of instances where a pool has at most :data:`SMALL` cards,
which is exact; with :data:`STEPS` numbers and :data:`PAIRS` pairs otherwise, and the bound is part of the answer.

Where pools share a limit (of cards, or of power), their own parts are given cards in steps (:mod:`shares`), one by one
where every pool has at most :data:`SMALL`; pairs across then stand alone, and the bound is that without the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from zhenfa.plan.serving import parts, search, tabled
from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.ordered import descending
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.power import worth
from zhenfa.plan.serving.search import Pair, Space

SMALL: Final = 16
STEPS: Final = 24
PAIRS: Final = 12
MOST_STATES: Final = 512
"""States of a fleet that are kept from pool to pool at most."""


class Own:
    """What each pool takes with some of its cards on its own: the best part, kept once found."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._found: dict[tuple[str, int], Part | None] = {}
        self._liked: dict[str, list[Part]] = {}
        self._each: dict[str, float] = {}

    def part(self, pool: str, cards: int) -> Part | None:
        """Return the best part with at most so many cards of a pool; None where none meets the targets.

        Of a pool with more than :data:`SMALL` cards, types are those that are best with all of them.
        """
        key = (pool, cards)
        if key not in self._found:
            whole = self.space.cards[pool]
            if cards < 1:
                self._found[key] = None
            elif whole <= SMALL or cards == whole:
                best = Best(4, allows=self._affordable)
                search.most(self.space, {pool: cards}, best)
                ranked = [chosen[0] for _, chosen in best.ranked()]
                self._found[key] = ranked[0] if ranked else None
                if cards == whole:
                    self._liked[pool] = ranked
            else:
                self.part(pool, whole)
                self._found[key] = self._scaled(pool, cards)
        return self._found[key]

    def _affordable(self, chosen: tuple[Part, ...]) -> bool:
        return self.space.over(chosen) <= 1

    def rate(self, pool: str, cards: int) -> float:
        """Return the requests/s of that part."""
        found = self.part(pool, cards)
        return found.rate if found else 0.0

    def _scaled(self, pool: str, cards: int) -> Part | None:
        tried = [again for one in self._liked[pool] if (again := self._with(one, cards)) is not None]
        return max(tried, key=lambda one: one.rate, default=None)

    def _with(self, part: Part, cards: int) -> Part | None:
        if part.prefill is not None:
            first = next(one for one in self.space.pools if one.prefill is part.prefill)
            other = next(one for one in self.space.pools if one.decode is part.decode)
            return search.best_of_pair(self.space, (first, other, None), (part.prefill_at, part.at), (cards, cards))
        count = cards // int(part.decode.cards[part.at])
        if not count:
            return None
        rate = float(parts.most_together(part.decode, [part.at], [count])[0])
        return Part(part.decode, part.at, count, rate) if rate > 0 else None

    def per_card(self, pool: str) -> float:
        """Return requests/s that a card of a pool cannot exceed on its own pool, whatever the plan."""
        if pool not in self._each:
            self._each[pool] = self._per_card(pool)
        return self._each[pool]

    def _per_card(self, pool: str) -> float:
        most = 0.0
        for one in self.space.pools:
            if one.name == pool and len(one.both):
                most = max(most, float(np.nan_to_num(one.together / one.both.cards).max()))
        for first, other, _ in self.space.pairs:
            if first.name == pool == other.name:
                need, use = search.needs(first, other)
                most = max(most, 1.0 / (float(np.nanmin(need)) + float(np.nanmin(use))))
        return most


def most(space: Space, best: Best) -> float:
    """Offer the fleets that take the most requests/s. Return a rate that no fleet can exceed."""
    own, names = Own(space), list(space.cards)
    base = {name: space.cards[name] * own.per_card(name) for name in names}
    whole = sum(base.values())
    crossing = [pair for pair in space.pairs if pair[2] is not None]
    if space.wish.budgets or space.wish.power is not None:
        _offer(space, given_out(space, own, None), best)
        return max([whole, *(float(np.max(_bounds(space, own, pair, whole), initial=0.0)) for pair in crossing)])
    _offer(space, [part for name in names if (part := own.part(name, space.cards[name])) is not None], best)
    left_out = max((_across(space, own, pair, whole, best) for pair in crossing), default=0.0)
    return max(left_out, whole) if space.wish.shares else left_out


def _offer(space: Space, chosen: list[Part], best: Best) -> None:
    chosen = _with_shares(space, chosen)
    rate = sum(one.rate for one in chosen)
    if rate > 0:
        kept = tuple(sorted(chosen, key=lambda one: -one.rate))
        best.offer(kept, (rate, -float(sum(one.cards for one in kept))))


def _with_shares(space: Space, chosen: list[Part]) -> list[Part]:
    """Return a fleet with less on the other cards where too small a share of the work is on a maker's."""
    for _, pools, least in space.wish.shares:
        inside = [one for one in chosen if set(one.cards_by_pool()) <= pools]
        others = [one for one in chosen if not set(one.cards_by_pool()) & pools]
        rate = sum(one.rate for one in others)
        allowed = sum(one.rate for one in inside) * (1 - least) / least
        if rate > allowed:
            scale = allowed / rate
            mixed = [one for one in chosen if one not in inside and one not in others]
            chosen = [*inside, *mixed, *(_fewer(one, scale) for one in others if scale > 0)]
    return chosen


def _fewer(part: Part, scale: float) -> Part:
    """Return a part with so much of its rate, and the instances that it then needs."""
    count, givers = (max(int(np.ceil(one * scale - 1e-9)), 1) for one in (part.count, max(part.prefill_count, 1)))
    return replace(part, rate=part.rate * scale, count=count, prefill_count=givers if part.prefill else 0)


def _bounds(space: Space, own: Own, pair: Pair, base: float) -> Any:
    """Return, for each pair of types across two pools, a rate that no fleet with it can exceed."""
    first, other, _ = pair
    need, use = search.needs(first, other)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = 1.0 - need[:, None] * own.per_card(first.name) - use[None, :] * own.per_card(other.name)
        most_across = np.minimum((space.cards[first.name] / need)[:, None], (space.cards[other.name] / use)[None, :])
        bound = base + np.where(np.isfinite(gain), most_across * np.maximum(gain, 0.0), 0.0)
    return np.where(most_across > 0, bound, 0.0)


def _across(space: Space, own: Own, pair: Pair, base: float, best: Best) -> float:
    """Offer fleets with one pair of types across two pools; return a rate that none of those left out can exceed."""
    first, other, _ = pair
    bound = _bounds(space, own, pair, base)
    if max(space.cards[first.name], space.cards[other.name]) <= SMALL:
        _every_pair(space, own, pair, best)
        return 0.0
    for number, (at, to) in enumerate(descending(bound)):
        if not bound[at, to] > max(best.last, 0.0) * (1 + parts.SLACK):
            return 0.0
        if number >= PAIRS:
            return float(bound[at, to])
        _pair(space, own, pair, (at, to), best)
    return 0.0


def _every_pair(space: Space, own: Own, pair: Pair, best: Best) -> None:
    """Offer the best fleet with each type of instances that decode on another pool than prefill stands on."""
    first, other, _ = pair
    here, there = first.name, other.name
    room, more = space.cards[here], space.cards[there]
    found = tabled.table_of(space, pair, {here: room, there: more})
    left, beyond = (
        np.array([own.rate(name, cards) for cards in range(space.cards[name] + 1)]) for name in (here, there)
    )
    rest = sum(own.rate(name, cards) for name, cards in space.cards.items() if name not in (here, there))
    total = found.rates + left[room - np.arange(room + 1)][:, None] + beyond[more - found.taken][None, :] + rest
    for rate, part in found.best(total):
        if not rate > max(best.last, 0.0) * (1 + parts.SLACK):
            return
        _offer(space, [part, *_beside(space, own, part)], best)


def _beside(space: Space, own: Own, part: Part) -> list[Part]:
    """Return the pools' own parts with the cards that a part across two pools leaves."""
    used = part.cards_by_pool()
    free = {name: cards - used.get(name, 0) for name, cards in space.cards.items()}
    return [one for name, cards in free.items() if (one := own.part(name, cards)) is not None]


def _numbers(most: int) -> Any:
    """Return the numbers of instances that are tried: all where there are few."""
    if most <= SMALL:
        return np.arange(1, most + 1)
    return np.unique(np.linspace(1, most, STEPS).astype(int))


def _pair(space: Space, own: Own, pair: Pair, at: tuple[int, int], best: Best) -> None:
    first, other, joint = pair
    here, there = first.name, other.name
    size, each = int(first.prefill.cards[at[0]]), int(other.decode.cards[at[1]])
    decoders, givers = _numbers(space.cards[there] // each), _numbers(space.cards[here] // size)
    if not (len(decoders) and len(givers)):
        return
    counts, left = (np.ravel(one) for one in np.meshgrid(givers, decoders, indexing="ij"))
    rates = np.minimum(*search.pair_rates(first, other, joint, at, counts, left))
    rest = {name: own.rate(name, space.cards[name]) for name in space.cards if name not in (here, there)}
    free = {here: space.cards[here] - size * counts, there: space.cards[there] - each * left}
    hope = rates + sum(rest.values()) + sum(own.per_card(name) * cards for name, cards in free.items())
    total = np.zeros(len(rates))
    for at_ in np.argsort(-hope, kind="stable"):
        if not hope[at_] > max(best.last, float(total.max())):
            break
        spent = sum(own.rate(name, int(cards[at_])) for name, cards in free.items())
        total[at_] = rates[at_] + spent if rates[at_] > 0 else 0.0
    if not total.any():
        return
    place = int(np.argmax(np.where(rates > 0, total, 0.0)))
    if not rates[place] > 0:
        return
    n, m = int(counts[place]), int(left[place])
    across = Part(other.decode, at[1], m, float(rates[place]), first.prefill, at[0], n)
    _offer(space, [across, *_beside(space, own, across)], best)


def fewest(space: Space, rate: float, best: Best) -> None:
    """Offer the fleet of the pools' own parts that takes a rate with the cards that count least.

    Exact where every pool has at most :data:`SMALL` cards; otherwise cards are given out in :data:`STEPS` steps of each
    pool, and each part then keeps only the cards that its share needs.
    """
    found = given_out(space, Own(space), rate)
    if len(found) > 1:
        scale = rate / sum(one.rate for one in found)
        kept = tuple(sorted((replace(one, rate=one.rate * scale) for one in found), key=lambda one: -one.rate))
        best.offer(kept, (-worth(space.request, space.wish, kept), 0.0))


@dataclass(frozen=True)
class _State:
    """Parts of some pools: what they take and count for, and what they use of each limit that pools share."""

    rate: float
    spent: float
    used: tuple[float, ...]
    chosen: tuple[Part, ...]


def given_out(space: Space, own: Own, rate: float | None) -> list[Part]:
    """Return the pools' own parts that take a rate and count least, or (None) take most, within what pools share."""
    wish = space.wish
    limits = (*(float(one.most) for one in wish.budgets), *(() if wish.power is None else (wish.power,)))
    states = [_State(0.0, 0.0, (0.0,) * len(limits), ())]
    for name, whole in space.cards.items():
        steps = range(whole + 1) if whole <= SMALL else np.unique(np.linspace(0, whole, STEPS).astype(int))
        tried = {id(part): part for cards in map(int, steps) if (part := own.part(name, cards)) is not None}.values()
        grown = list(states)
        for part in tried:
            spent, used = worth(space.request, wish, (part,)), _uses(space, part)
            for state in states:
                again = tuple(a + b for a, b in zip(state.used, used, strict=True))
                if all(a <= b * (1 + parts.SLACK) for a, b in zip(again, limits, strict=True)):
                    total = state.rate + part.rate
                    grown.append(_State(total, state.spent + spent, again, (*state.chosen, part)))
        states = _frontier(grown, rate, limits)
    if rate is None:
        return list(max(states, key=lambda one: one.rate).chosen)
    enough = [one for one in states if one.rate >= rate * (1 - parts.SLACK)]
    allowed = (one for one in sorted(enough, key=lambda one: one.spent) if space.allows(one.chosen))
    return list(next((one.chosen for one in allowed), ()))


def _uses(space: Space, part: Part) -> tuple[float, ...]:
    """Return what a part uses of each limit that pools share."""
    wish, cards = space.wish, part.cards_by_pool()
    counted = [float(sum(some for name, some in cards.items() if name in one.pools)) for one in wish.budgets]
    return (*counted, *(() if wish.power is None else (space.over((part,)) * wish.power,)))


def _frontier(states: list[_State], rate: float | None, limits: tuple[float, ...]) -> list[_State]:
    """Return the states that no other beats in all of rate, worth and use; of too many, the best of each bucket."""
    most = np.inf if rate is None else rate
    table = np.array([[-min(one.rate, most), one.spent if rate is not None else 0.0, *one.used] for one in states])
    order = np.lexsort(table.T[::-1])
    kept: list[int] = []
    for at in order:
        if not kept or not np.any(np.all(table[kept] <= table[at] + 1e-12, axis=1)):
            kept.append(int(at))
    if len(kept) > MOST_STATES:
        kept = [kept[at] for at in np.unique(np.linspace(0, len(kept) - 1, MOST_STATES).astype(int))]
    return [states[at] for at in kept]
