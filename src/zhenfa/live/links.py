"""Links between emulated cards: how long a message is held."""

from __future__ import annotations

from dataclasses import dataclass

from zhenfa.errors import InputError
from zhenfa.spec.machine import CardPool, Formation, Tier


@dataclass(frozen=True)
class Link:
    """A directed link: ``bandwidth`` in B/s, ``latency`` in s. It carries one message at a time, in order."""

    bandwidth: float
    latency: float

    def seconds(self, size: int) -> float:
        """Return the time in s that the link is busy with ``size`` bytes; the latency comes on top."""
        return size / self.bandwidth


def link_between(formation: Formation, one: tuple[str, int], other: tuple[str, int]) -> Link | None:
    """Return the emulated link between two cards, each a pool's name and the card's index in it.

    None where both cards are real: their messages take the time that they take. Raises
    :class:`~zhenfa.errors.MissingFactError` where the document leaves bandwidth or latency out.
    """
    first, second = formation.pool(one[0]), formation.pool(other[0])
    return joining(formation, one, other) if first.accelerator.emulated or second.accelerator.emulated else None


def joining(formation: Formation, one: tuple[str, int], other: tuple[str, int]) -> Link:
    """Return the link between two cards as the machine's document says, whether they are emulated or real.

    Raises :class:`~zhenfa.errors.MissingFactError` where it leaves bandwidth or latency out, :class:`InputError` where
    nothing joins them.
    """
    first, second = formation.pool(one[0]), formation.pool(other[0])
    tier = _shared_tier(first, one[1], other[1]) if first.name == second.name else None
    if tier is None:
        return _network(formation, first.name, second.name)
    name = f"{formation.name}.{first.name}.{tier.name}"
    bandwidth = tier.bandwidth.require(f"{name}.bandwidth")
    if tier.topology == "full-mesh":
        bandwidth /= max(tier.size - 1, 1)
    return Link(bandwidth, tier.latency.require(f"{name}.latency"))


def ring_seconds(size: int, links: list[Link]) -> float:
    """Return the seconds of a ring all-reduce of ``size`` bytes; ``links[i]`` leads from member i to its neighbour.

    Counts 2 (n - 1) rounds of ``size / n`` bytes over the slowest link; omits the additions. Source: Patarasuk and
    Yuan 2009, theorem 1.
    """
    count = len(links)
    if count < 2:
        return 0.0
    return 2 * (count - 1) * (size / count / _slowest(links) + _latest(links))


def gather_seconds(size: int, links: list[Link]) -> float:
    """Return the seconds in which every member of a ring gets the ``size`` bytes that each of the others has.

    Counts n - 1 rounds over the slowest link. Source: Chan et al. 2007, section 5.1 (bucket algorithm).
    """
    if len(links) < 2:
        return 0.0
    return (len(links) - 1) * (size / _slowest(links) + _latest(links))


def chain_seconds(size: int, links: list[Link]) -> float:
    """Return the seconds in which ``size`` bytes of one member reach all others, handed on piece by piece.

    Counts the bytes once over the slowest link and n - 1 latencies: pieces small enough to follow close on each other.
    """
    if len(links) < 2:
        return 0.0
    return size / _slowest(links) + (len(links) - 1) * _latest(links)


def _slowest(links: list[Link]) -> float:
    return min(link.bandwidth for link in links)


def _latest(links: list[Link]) -> float:
    return max(link.latency for link in links)


def ring_of(ranks: tuple[int, ...], links: dict[int, dict[int, Link]]) -> list[Link]:
    """Return the emulated links of the ring, empty if one of its hops is real."""
    hops = zip(ranks, (*ranks[1:], ranks[0]), strict=True)
    ring = [links.get(one, {}).get(other) for one, other in hops]
    return [link for link in ring if link is not None] if None not in ring else []


def _network(formation: Formation, one: str, other: str) -> Link:
    network = formation.network
    if network is None:
        pair = f"pools {one!r} and {other!r}" if one != other else f"all cards of pool {one!r}"
        raise InputError(
            f"no network of {formation.name!r} joins {pair}.",
            hint="give the machine a network with bandwidth and latency.",
        )
    return Link(
        network.bandwidth.require(f"{formation.name}.network.bandwidth"),
        network.latency.require(f"{formation.name}.network.latency"),
    )


def _shared_tier(pool: CardPool, one: int, other: int) -> Tier | None:
    return next((tier for tier in pool.tiers if one // tier.size == other // tier.size), None)
