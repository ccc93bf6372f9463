"""What stops a plan, and how often: cards, hosts, networks, software, and whatever fails whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from zhenfa import cite
from zhenfa.catalog import operation
from zhenfa.estimate.setting import Setting
from zhenfa.laws import failure
from zhenfa.laws.arrays import Array, plain
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.upkeep import FailureDomain, FailureTimes

SUPERNODES: Final = frozenset({"supernode", "cabinet", "rack", "one-to-two-unit", "pod", "cube"})
"""Tiers whose cards share power, cooling or a scale-up fabric beyond one node."""

PER_NODE: Final = ("host", "network", "maintenance")
"""Kinds of failure that are counted per node."""

WHOLE_JOB: Final = "software"
"""The kind of failure that stops every replica."""


class Cause(NamedTuple):
    """One kind of failure on one pool: units, failures a unit-second, the cards that are out with one, repair time.

    ``stated``: the user gave the rate. ``pool`` is empty for what belongs to the whole job. ``units`` and ``cards`` are
    arrays where many plans are looked at together.
    """

    name: str
    pool: str
    units: Array
    rate: float
    cards: Array
    repair: float
    stated: bool

    @property
    def total(self) -> Array:
        """Return failures a second of all units."""
        return self.units * self.rate


class Failing(NamedTuple):
    """Every kind of failure that is counted, and by pool those for which nobody gives a rate."""

    causes: tuple[Cause, ...]
    unknown: dict[str, tuple[str, ...]]

    @property
    def mtbf(self) -> Array:
        """Return the mean time between failures of the job, in seconds."""
        return failure.combined_mtbf(*(cause.total for cause in self.causes))

    def share(self, *names: str) -> Array:
        """Return the share of all failures that are of these kinds."""
        whole = sum(cause.total for cause in self.causes) + 0.0
        these = sum(cause.total for cause in self.causes if cause.name in names) + 0.0
        return plain(np.where(np.greater(whole, 0), these / np.maximum(whole, 1e-300), 0.0))


def failing(plan: Plan, setting: Setting) -> Failing:
    """Return what stops a plan and how often."""
    return failing_cards(plan.cards_by_pool(), setting)


def failing_cards(cards: Mapping[str, Array], setting: Setting) -> Failing:
    """Return what stops a plan over so many cards of each pool, see :func:`failing_on`."""
    return failing_on(cards, setting.formation)


def failing_on(cards: Mapping[str, Array], formation: Formation) -> Failing:
    """Return what stops a plan over so many cards of each pool, at least one of each: floats, or arrays over plans.

    Counts cards, hosts, networks and maintenance of the nodes in use and the job's software, at the rates that the
    pool or the machine states or else those of the default cluster; and whatever is stated to fail whole. Omits nodes
    that fail more than others, and domains that nobody states a rate for.
    """
    table = operation.failures()
    cite.use(*dict.fromkeys(one.source for one in table.failures))
    causes, unknown = list[Cause](), {}
    for name, count in cards.items():
        causes.extend(_of_pool(name, count, formation.pool(name).failures, formation.failures))
        if _supernode(formation, name):
            said = [domain.name.casefold() for domain in _domains(formation, name)]
            rest = [one.what for one in table.domains if one.rate_per_day is None and one.id not in said]
            unknown[name] = tuple(rest)
    whole = sum(cards.values())
    causes.extend(_domain(one, "", whole) for one in formation.failures.domains)
    software = formation.failures.software
    rate = table.rate(WHOLE_JOB) if software.value is None else 1.0 / software.value
    causes.append(Cause(WHOLE_JOB, "", 1.0, rate, 0.0, 0.0, software.known))
    return Failing(tuple(causes), unknown)


def _of_pool(name: str, cards: Array, own: FailureTimes, common: FailureTimes) -> Iterator[Cause]:
    table, repair = operation.failures(), node_repair()
    each = table.cards_per_node
    nodes = plain(np.maximum(np.true_divide(cards, each), 1.0))
    for kind in ("card", *PER_NODE):
        given: Fact = next((fact for part in (own, common) if (fact := getattr(part, kind)).known), getattr(own, kind))
        rate = table.rate(kind) if given.value is None else 1.0 / given.value
        units = plain(np.asarray(cards, float)) if kind == "card" else nodes
        yield Cause(kind, name, units, rate, plain(np.minimum(each, cards)), repair, given.known)
    yield from (_domain(one, name, cards) for one in own.domains)


def _domain(domain: FailureDomain, pool: str, cards: Array) -> Cause:
    repair = node_repair() if domain.repair.value is None else domain.repair.value
    held = plain(np.minimum(float(domain.cards), cards))
    rate = 1.0 / domain.mtbf.require(f"failures.domains.{domain.name}.mtbf")
    return Cause(domain.name, pool, plain(np.ceil(np.true_divide(cards, domain.cards))), rate, held, repair, True)


def _domains(formation: Formation, pool: str) -> tuple[FailureDomain, ...]:
    return (*formation.pool(pool).failures.domains, *formation.failures.domains)


def node_repair() -> float:
    """Return the mean seconds until a broken node is back: a lognormal time, whose mean is far above its median."""
    process = operation.failures().process
    return float(failure.lognormal_mean(process.repair_median.require("process.repair_median"), process.repair_spread))


def node_rate(found: Failing, pool: str) -> Array:
    """Return failures a second of one node of a pool, its cards included."""
    causes = [cause for cause in found.causes if cause.pool == pool and cause.name in ("card", *PER_NODE)]
    nodes = next((cause.units for cause in causes if cause.name in PER_NODE), 1.0)
    return plain(sum(cause.total for cause in causes) / nodes)


def _supernode(formation: Formation, pool: str) -> bool:
    """Return whether a pool's cards stand in something larger than a node that can fail whole."""
    return any(tier.name in SUPERNODES for tier in formation.pool(pool).tiers)
