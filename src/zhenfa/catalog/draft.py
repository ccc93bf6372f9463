"""A machine with its names looked up and nothing yet derived: the state on which assumptions work."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from zhenfa.catalog import entries, files
from zhenfa.errors import InputError, MissingFactError, UnknownNameError
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Accelerator, Learned, Machine, Network, Pool, System, Tier
from zhenfa.spec.upkeep import Facility, FailureTimes, MachineFailures, Storage


@dataclass
class DraftPool:
    """A pool being looked up. ``tiers`` end with the first that joins all ``count`` cards."""

    name: str
    accelerator: Accelerator
    count: int
    tiers: tuple[Tier, ...]
    system: System | None
    power_per_card: Fact
    failures: FailureTimes
    learned: Learned
    hosts: tuple[str, ...] = ()


@dataclass
class Draft:
    """A machine being looked up."""

    name: str
    pools: list[DraftPool]
    network: Network | None
    pue: Fact
    storage: Storage
    failures: MachineFailures
    facility: Facility


def draft(machine: Machine) -> Draft:
    """Look up every name in a machine.

    Raises :class:`UnknownNameError`, :class:`InputError` for a pool that does not hold together, or
    :class:`MissingFactError` for a system whose card is not published.
    """
    files.sources()
    names = [pool.name for pool in machine.pools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"machine {machine.name!r} has two pools called {twice!r}.", hint="give each its own name.")
    pools = [_pool(pool) for pool in machine.pools]
    return Draft(
        machine.name, pools, _network(machine.network), machine.pue, machine.storage, machine.failures, machine.facility
    )


def _pool(pool: Pool) -> DraftPool:
    system = entries.system(pool.system) if pool.system else None
    count = pool.count or (system.count if system else None)
    if count is None:
        raise InputError(
            f"pool {pool.name!r} does not say how many cards it has.", hint="give count, or name a system."
        )
    tiers = _tiers(pool.name, count, pool.tiers or (system.tiers if system else ()))
    known = {tier.name for tier in tiers}
    for name in pool.learned.links:
        if name not in known:
            raise UnknownNameError("tier", name, sorted(known), hint=f"pool {pool.name!r}: learned.links names tiers.")
    return DraftPool(
        pool.name, _accelerator(pool, system), count, tiers, system, pool.power_per_card, pool.failures, pool.learned,
        pool.hosts,
    )  # fmt: skip


def _accelerator(pool: Pool, system: System | None) -> Accelerator:
    if isinstance(pool.accelerator, Accelerator):
        return pool.accelerator
    name = pool.accelerator or (system.accelerator if system else None)
    if name is not None:
        return entries.accelerator(name)
    if system is None:
        raise InputError(
            f"pool {pool.name!r} does not say what its cards are.", hint="name an accelerator, or a system."
        )
    raise MissingFactError(
        f"pool {pool.name!r}: the card of {system.id} is undisclosed.",
        hint="name an accelerator in the pool; `zhenfa show accelerators` lists them.",
    )


def _tiers(pool: str, count: int, tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
    """Check that tiers grow from inside out, and keep them up to the first that joins all cards."""
    for inner, outer in pairwise(tiers):
        if outer.size <= inner.size:
            raise InputError(
                f"pool {pool!r}: tier {outer.name!r} ({outer.size:,} cards) is not larger than {inner.name!r} in it.",
                hint="tiers are given inside-out, each larger than the last.",
            )
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise InputError(f"pool {pool!r} has two tiers of one name.", hint="give each tier its own name.")
    last = next((index for index, tier in enumerate(tiers) if tier.size >= count), None)
    if last is not None:
        return tiers[: last + 1]
    if count == 1:
        return tiers
    widest = f"its widest tier, {tiers[-1].name!r}, joins {tiers[-1].size:,}" if tiers else "it has no tiers"
    raise InputError(
        f"pool {pool!r} has {count:,} cards, but {widest}.",
        hint=f"add a tier of size {count} or more (name, size, bandwidth, latency), or ask for fewer cards.",
    )


def _network(network: Network | None) -> Network | None:
    """Fill what a network leaves open from the link it names."""
    if network is None or network.link is None:
        return network
    link = entries.link(network.link)
    filled = {name: getattr(link, name) for name in ("bandwidth", "latency") if not getattr(network, name).known}
    return network.model_copy(update={"link": link.id, **filled})
