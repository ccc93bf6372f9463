"""Several sorts of instances behind one door: a part for each pool, and prefill and decode across two of them.

A fleet has at most one part on each pool's own cards, and at most one pair of types across two pools. What each pool
takes on its own cards adds up, so that fleets without a pair across are exact. With one, let ``e`` be the most requests
per second and card of each pool alone (a bound), and ``a`` and ``b`` the cards that a request per second needs for
prefill on one pool and decode on the other. ``r`` requests across leave less for the pools' own parts, so that

    total <= sum of cards x e + r x (1 - a e_prefill - b e_decode)

and a pair can gain only where the last factor is positive: where prefill and decode are cheap where they stand. Pairs
are looked at in the order of that bound, with every number of instances where a pool has at most :data:`SMALL` cards,
which is exact; with :data:`STEPS` numbers and :data:`PAIRS` pairs otherwise, and the bound is part of the answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from zhenfa.estimate.serving_curves import Crossing
from zhenfa.plan.serving import parts, search
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.search import Best, Pool, Space

SMALL: Final = 16
STEPS: Final = 24
PAIRS: Final = 12


class Own:
    """What each pool takes with some of its cards on its own: the best part, kept once found."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._found: dict[tuple[str, int], Part | None] = {}
        self._liked: dict[str, list[Part]] = {}

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
                best = Best(4)
                search.most(self.space, {pool: cards}, best)
                ranked = [chosen[0] for _, chosen in best.ranked()]
                self._found[key] = ranked[0] if ranked else None
                if cards == whole:
                    self._liked[pool] = ranked
            else:
                self.part(pool, whole)
                self._found[key] = self._scaled(pool, cards)
        return self._found[key]

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
            return search.best_of_pair(first, other, None, (part.prefill_at, part.at), (cards, cards))
        count = cards // int(part.decode.cards[part.at])
        if not count:
            return None
        rate = float(parts.most_together(part.decode, [part.at], [count])[0])
        return Part(part.decode, part.at, count, rate) if rate > 0 else None

    def per_card(self, pool: str) -> float:
        """Return requests/s that a card of a pool cannot exceed on its own pool, whatever the plan."""
        most = 0.0
        for one in self.space.pools:
            if one.family.pool.name == pool and len(one.both):
                most = max(most, float(np.max(one.together / one.both.cards)))
        for first, other, _ in self.space.pairs:
            if first.family.pool.name == pool == other.family.pool.name and len(first.prefill) and len(other.decode):
                need, use = _needs(first, other)
                most = max(most, 1.0 / (float(need.min()) + float(use.min())))
        return most


def _needs(first: Pool, other: Pool) -> tuple[Any, Any]:
    """Return the cards that one request per second needs at least, for prefill and for decode, by type."""
    with np.errstate(divide="ignore"):
        return first.prefill.cards / first.supplied, other.decode.cards / other.decoded


def most(space: Space, best: Best) -> float:
    """Offer the fleets that take the most requests/s. Return a rate that no fleet can exceed."""
    own, names = Own(space), list(space.cards)
    if sum(space.cards.values()) > space.whole:  # a limit on the cards of all pools together
        return np.inf
    alone = [part for name in names if (part := own.part(name, space.cards[name])) is not None]
    _offer(alone, best)
    base = {name: space.cards[name] * own.per_card(name) for name in names}
    bound = sum(base.values())
    for first, other, joint in space.pairs:
        if joint is not None and len(first.prefill) and len(other.decode):
            bound = max(bound, _across(space, own, (first, other, joint), sum(base.values()), best))
    return bound


def _offer(chosen: list[Part], best: Best) -> None:
    rate = sum(one.rate for one in chosen)
    if rate > 0:
        kept = tuple(sorted(chosen, key=lambda one: -one.rate))
        best.offer(kept, (rate, -float(sum(one.cards for one in kept))))


def _across(space: Space, own: Own, pair: tuple[Pool, Pool, Crossing], base: float, best: Best) -> float:
    """Offer fleets with one pair of types across two pools; return a rate that none of those left out can exceed."""
    first, other, _ = pair
    here, there = first.family.pool.name, other.family.pool.name
    need, use = _needs(first, other)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = 1.0 - need[:, None] * own.per_card(here) - use[None, :] * own.per_card(there)
        most_across = np.minimum((space.cards[here] / need)[:, None], (space.cards[there] / use)[None, :])
        bound = base + np.where(np.isfinite(gain), most_across * np.maximum(gain, 0.0), 0.0)
    bound = np.where(most_across > 0, bound, 0.0)
    small = max(space.cards[here], space.cards[there]) <= SMALL
    for number, (at, to) in enumerate(search.descending(bound)):
        if not bound[at, to] > max(best.last, 0.0) * (1 + parts.SLACK):
            return 0.0
        if number >= PAIRS and not small:
            return float(bound[at, to])
        _pair(space, own, pair, (at, to), best)
    return 0.0


def _numbers(most: int) -> Any:
    """Return the numbers of instances that are tried: all where there are few."""
    if most <= SMALL:
        return np.arange(1, most + 1)
    return np.unique(np.linspace(1, most, STEPS).astype(int))


def _pair(space: Space, own: Own, pair: tuple[Pool, Pool, Crossing], at: tuple[int, int], best: Best) -> None:
    first, other, joint = pair
    here, there = first.family.pool.name, other.family.pool.name
    size, each = int(first.prefill.cards[at[0]]), int(other.decode.cards[at[1]])
    decoders, givers = _numbers(space.cards[there] // each), _numbers(space.cards[here] // size)
    if not (len(decoders) and len(givers)):
        return
    counts, left = (np.ravel(one) for one in np.meshgrid(givers, decoders, indexing="ij"))
    rates = np.minimum(*search.pair_rates(first, other, joint, at, counts, left))
    rest = {name: own.rate(name, space.cards[name]) for name in space.cards if name not in (here, there)}
    total = np.array([
        rate + own.rate(here, space.cards[here] - size * int(n)) + own.rate(there, space.cards[there] - each * int(m))
        for rate, n, m in zip(rates, counts, left, strict=True)
    ])  # fmt: skip
    place = int(np.argmax(np.where(rates > 0, total, 0.0)))
    if not rates[place] > 0:
        return
    n, m = int(counts[place]), int(left[place])
    across = Part(other.decode, at[1], m, float(rates[place]), first.prefill, at[0], n)
    spare = {here: space.cards[here] - size * n, there: space.cards[there] - each * m}
    spare |= {name: space.cards[name] for name in rest}
    added = [part for name, cards in spare.items() if (part := own.part(name, cards)) is not None]
    _offer([across, *added], best)


def fewest(space: Space, rate: float, best: Best) -> None:
    """Offer the fleet of the pools' own parts that takes a rate with the fewest cards.

    Exact where every pool has at most :data:`SMALL` cards; otherwise cards are given out in :data:`STEPS` steps of each
    pool, and each part then keeps only the cards that its share needs.
    """
    own = Own(space)
    table: dict[float, tuple[int, dict[str, int]]] = {0.0: (0, {})}
    for name, whole in space.cards.items():
        steps = range(whole + 1) if whole <= SMALL else np.unique(np.linspace(0, whole, STEPS).astype(int))
        joined: dict[float, tuple[int, dict[str, int]]] = {}
        for taken, (used, chosen) in table.items():
            for cards in map(int, steps):
                part = own.part(name, cards)
                total, spent = min(taken + (part.rate if part else 0.0), rate), used + (part.cards if part else 0)
                if spent <= space.whole and (total not in joined or joined[total][0] > spent):
                    joined[total] = (spent, {**chosen, name: cards})
        table = _frontier(joined)
    enough = [one for total, one in table.items() if total >= rate * (1 - parts.SLACK)]
    if not enough:
        return
    _, chosen = min(enough, key=lambda one: one[0])
    found = [part for name, cards in chosen.items() if (part := own.part(name, cards)) is not None]
    if len(found) > 1:
        scale = rate / sum(one.rate for one in found)
        kept = tuple(sorted((_part_of(one, scale) for one in found), key=lambda one: -one.rate))
        best.offer(kept, (-float(sum(one.cards for one in kept)), 0.0))


def _part_of(part: Part, scale: float) -> Part:
    return replace(part, rate=part.rate * scale)


def _frontier(table: dict[float, tuple[int, dict[str, int]]]) -> dict[float, tuple[int, dict[str, int]]]:
    """Return the entries that no other beats in both rate and cards."""
    kept: dict[float, tuple[int, dict[str, int]]] = {}
    fewest_so_far = np.inf
    for total in sorted(table, reverse=True):
        if table[total][0] < fewest_so_far:
            kept[total] = table[total]
            fewest_so_far = table[total][0]
    return kept
