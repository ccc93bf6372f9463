"""Which cards a job may use: makers allowed and refused, supplies and spares, taken off a machine before the search."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from zhenfa import catalog
from zhenfa.catalog import operation
from zhenfa.errors import InfeasibleError, UnknownNameError
from zhenfa.spec.job import Limits
from zhenfa.spec.machine import Accelerator, CardPool, Formation


def supplied(formation: Formation, limits: Limits) -> Formation:
    """Return a machine with the cards that the limits leave.

    A supply over several pools bounds each of them here; that their sum keeps to it is the goal's to see. Raises
    :class:`UnknownNameError` for a name that is no maker, accelerator or pool, and :class:`InfeasibleError` where no
    card is left.
    """
    check_names(formation, limits)
    pools = [(pool, cards_left(pool, limits)) for pool in formation.pools]
    kept = tuple(with_count(pool, count) for pool, count in pools if count)
    if kept == formation.pools:
        return formation
    if not kept:
        raise _nothing_left(formation, limits)
    gone = formation.cards - sum(pool.count for pool in kept)
    return replace(formation, pools=kept, kept_back=formation.kept_back + gone)


def cards_left(pool: CardPool, limits: Limits) -> int:
    """Return how many cards of a pool the limits leave."""
    if (limits.makers and not any(is_maker(pool, name) for name in limits.makers)) or is_one(pool, limits.refuse):
        return 0
    count = min([pool.count, *(most for name, most in limits.supply.items() if is_one(pool, [name]))])
    if limits.spares.value:
        node = int(operation.failures().cards_per_node)
        spare = node * math.ceil(limits.spares.value * pool.count / node - 1e-9)
        count = min(count, max(pool.count - spare, 0))
    return count


def is_one(pool: CardPool, names: Iterable[str]) -> bool:
    """Return whether a maker, an accelerator or a pool of these names is that of a pool."""
    wanted = {name.casefold() for name in names}
    return not wanted.isdisjoint(name.casefold() for name in _names(pool))


def is_maker(pool: CardPool, name: str) -> bool:
    """Return whether a pool's cards are of a maker, in full or by a first word: ``Huawei Ascend``, ``huawei``."""
    return name.casefold() in {one.casefold() for one in maker_names(pool.maker)}


def maker_names(maker: str) -> tuple[str, ...]:
    """Return the names that a maker goes by."""
    return tuple(dict.fromkeys((maker, *(part.split(maxsplit=1)[0] for part in maker.split("/") if part.strip()))))


def _names(pool: CardPool) -> tuple[str, ...]:
    one = pool.accelerator
    return (pool.name, *maker_names(pool.maker), one.id, *one.aliases)


def with_count(pool: CardPool, count: int) -> CardPool:
    """Return a pool of fewer cards, whose tiers end with the first that joins them all."""
    if count == pool.count:
        return pool
    last = next((index for index, tier in enumerate(pool.tiers) if tier.size >= count), len(pool.tiers) - 1)
    return replace(pool, count=count, tiers=pool.tiers[: last + 1])


def check_names(formation: Formation, limits: Limits) -> None:
    """Refuse a name that is no maker, accelerator or pool of this machine or of the catalog."""
    here = {name.casefold() for pool in formation.pools for name in _names(pool)}
    makers = {name.casefold() for pool in formation.pools for name in maker_names(pool.maker)}
    asked = [("maker", name, makers) for name in (*limits.makers, *limits.least_share)]
    asked += [("maker, accelerator or pool", name, here) for name in (*limits.refuse, *limits.supply)]
    unknown = [(kind, name) for kind, name, known in asked if name.casefold() not in known]
    if not unknown:
        return
    cards = catalog.accelerators().values()
    for kind, name in unknown:
        known = _known(kind, cards, formation)
        if name.casefold() not in {one.casefold() for one in known}:
            hint = f"this machine has cards of {', '.join(sorted({pool.maker for pool in formation.pools}))}."
            raise UnknownNameError(kind, name, known, hint=hint)


def _known(kind: str, cards: Iterable[Accelerator], formation: Formation) -> set[str]:
    known = {name for pool in formation.pools for name in maker_names(pool.maker)}
    known |= {name for card in cards for name in maker_names(card.maker)}
    if kind != "maker":
        known |= {name for pool in formation.pools for name in _names(pool)}
        known |= {name for card in cards for name in (card.id, *card.aliases)}
    return known


def _nothing_left(formation: Formation, limits: Limits) -> InfeasibleError:
    """Return the error for limits that leave no card, with a way out that does leave some."""
    there = ", ".join(f"{pool.count:,} {pool.accelerator.id} of {pool.maker} ({pool.name})" for pool in formation.pools)
    ways = []
    for name in ("makers", "refuse", "supply", "spares"):
        freed = limits.model_copy(update={name: Limits.model_fields[name].get_default(call_default_factory=True)})
        left = sum(cards_left(pool, freed) for pool in formation.pools)
        if left and freed != limits:
            ways.append(f"leave limits.{name} out ({left:,} cards)")
    hint = "; or ".join(ways) or "change the limits together: each of them alone leaves no card."
    return InfeasibleError(f"the job's limits leave no card of {formation.name}, which has {there}.", hint=hint + ".")
