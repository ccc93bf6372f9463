"""A pool's fabric and the bridge between pools as plain floats for the laws, with a list of what was assumed.

Data sheets give a link's rate; what transfers reach of it, and what the library on it adds, is a property of the link's
family (``fabrics.yaml``). What a machine's own document says of a tier's latency stands before the family's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np

from zhenfa import catalog
from zhenfa.estimate import priors
from zhenfa.laws.arrays import Array
from zhenfa.laws.fabric import SWITCH_GAIN, Fabric
from zhenfa.spec.fact import Fact
from zhenfa.spec.link_family import LinkFamily
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Network, Tier

PCIE_BYTES_PER_S: Final = 63e9
"""PCIe 5.0 x16, one direction: what a host-staged transfer crosses twice."""

NETWORK: Final = "rdma"
"""The family of networks between nodes: InfiniBand and RoCE, one interface per card."""

OTHER: Final = "other"
"""The family of scale-up links that nobody has measured."""

SLOTS: Final = {"3": 16e9, "4": 32e9, "5": 63e9}
"""Bytes/s of sixteen lanes of a PCIe generation, one direction."""

SLOT: Final = "pcie5"
"""The family of PCIe slots, where a card's own generation has none."""

_SCALE_UP_SHARE: Final = 0.5
"""A tier with at least this share of the card's own scale-up ports is made of them."""


@dataclass(frozen=True)
class Wire:
    """One tier as plain numbers: cards in an instance, bytes/s and seconds of its data sheet, family."""

    size: float
    bandwidth: float
    latency: float | None
    full_mesh: bool
    reduces: bool
    family: LinkFamily


@cache
def family(name: str) -> LinkFamily:
    """Return the family of links of that id."""
    return catalog.link_families()[name]


def family_of(protocol: str | None) -> LinkFamily:
    """Return the family of a scale-up protocol, by the beginning of its name; the unmeasured one where none fits."""
    words = (protocol or "").casefold()
    fitting = [
        (len(start), item)
        for item in catalog.link_families().values()
        for start in item.protocols
        if words.startswith(start.casefold())
    ]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else family(OTHER)


def measured_on(item: LinkFamily, name: str) -> bool:
    """Return whether a family was measured on what a name names: case, marks and the word for the box aside."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]|server", "", text.casefold())

    return any(plain(one) in plain(name) for one in item.measured)


def own_family(accelerator: Accelerator) -> LinkFamily:
    """Return the family of a card's own ports; of its slot where it has none but that."""
    if accelerator.scale_up.protocol is not None:
        return family_of(accelerator.scale_up.protocol)
    hosts = {item.id: item for item in catalog.link_families().values() if item.place == "host"}
    measured = next((item for item in hosts.values() if measured_on(item, accelerator.id)), None)
    if measured is not None:
        return measured
    generation = slot_generation(accelerator)
    return family(OTHER if generation is None else f"pcie{generation}" if f"pcie{generation}" in hosts else SLOT)


def slot_generation(accelerator: Accelerator) -> str | None:
    """Return the generation of PCIe of a card's slot, as a digit; None where it is not known."""
    text = None if accelerator.pcie is None else accelerator.pcie.value
    found = re.match(r"\d", text or "")
    return found[0] if found else None


def slot_rate(accelerator: Accelerator) -> float | None:
    """Return the bytes/s of a card's slot, one direction; None where its generation is not known."""
    return SLOTS.get(slot_generation(accelerator) or "")


def tier_family(accelerator: Accelerator, tier: Tier, index: int) -> LinkFamily:
    """Return the family of a tier: that of the card's own ports inside, the network's where they no longer reach."""
    ports, rate = accelerator.scale_up.bandwidth.value, tier.bandwidth.value
    own = index == 0 or (ports is not None and rate is not None and rate >= _SCALE_UP_SHARE * ports)
    return own_family(accelerator) if own else family(NETWORK)


def _value(fact: Fact, ideal: float) -> float:
    return ideal if fact.value is None else fact.value


def share_within(item: LinkFamily, size: float) -> float:
    """Return the share of the link rate that groups of so many cards reach."""
    for part in item.reaches:
        if size <= part.size:
            return _value(part.share, 1.0)
    return _value(item.share, 1.0)


def assemble(wires: Sequence[Wire]) -> Fabric:
    """Return the fabric of tiers, inside-out, each with what its family reaches."""
    inner = wires[0].family
    adding = next((wire.family for wire in wires if wire.reduces and wire.family.place != "scale-out"), inner)
    families = [wire.family for wire in wires]

    def column(name: str, ideal: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([_value(getattr(item, name), ideal) for item in families])

    return Fabric(
        sizes=np.array([wire.size for wire in wires], float),
        bandwidths=np.array([wire.bandwidth * share_within(wire.family, wire.size) for wire in wires]),
        latencies=np.array(
            [_value(wire.family.latency, np.nan) if wire.latency is None else wire.latency for wire in wires]
        )
        + column("step", 0.0),
        full_mesh=np.array([wire.full_mesh for wire in wires]),
        # switches of a network have shown no gain where it was measured: 386 GB/s on 64 cards is their ports' own rate
        in_network_reduction=np.array([wire.reduces and wire.family.place != "scale-out" for wire in wires]),
        fills=column("fill", 0.0),
        fill_bytes=column("fill_bytes", 1.0),
        start=_value(inner.start, 0.0),
        own_copy=_value(inner.own_copy, np.inf),
        switch_share=_value(adding.switch_share, 1.0),
        switch_gain=_value(adding.switch_gain, SWITCH_GAIN),
        switch_fill=_value(adding.switch_fill, 0.0),
        exits=_value(adding.exits, np.inf),
        exchange=column("exchange", 1.0),
        peer_share=_value(inner.peer_share, 1.0),
        peer_start=inner.peer_start.value,
        peer_step=_value(inner.peer_step, 0.0),
        expert_share=np.stack([column("forward_share", 1.0), column("low_latency_share", 1.0)]),
        expert_start=np.stack([column("forward_start", 0.0), column("low_latency_start", 0.0)]),
        expert_peer=column("expert_peer", 0.0),
    )


def fabric(pool: CardPool) -> tuple[Fabric, tuple[str, ...]]:
    """Return a pool's tiers as arrays, inside-out, and what was assumed of them.

    An undisclosed bandwidth becomes NaN: layouts that would cross that tier are refused by name. Emulated cards are
    exact: every message takes its latency and its bytes, nothing else; and where calibration measured a pool's tiers,
    what it measured is what transfers reach.
    """
    notes: dict[str, None] = {}
    wires = []
    exact = pool.accelerator.emulated or all(tier.bandwidth.confidence == "calibrated" for tier in pool.tiers)
    for index, tier in enumerate(pool.tiers):
        latency, found = tier.latency.value, tier_family(pool.accelerator, tier, index)
        if latency is None and (pool.accelerator.emulated or found.latency.value is None):
            prior = priors.tier_latency(min(index, 1))
            latency = prior.value
            notes[f"{pool.name} {tier.name}: latency {1e6 * latency:.2g} us ({prior.why})"] = None
        elif latency is None:
            notes[f"{pool.name} {tier.name}: latency {1e6 * found.latency.require(found.id):.2g} us ({found.id})"] = (
                None
            )
        bandwidth = np.nan if tier.bandwidth.value is None else tier.bandwidth.value
        mesh = tier.topology == "full-mesh"
        wires.append(Wire(float(tier.size), bandwidth, latency, mesh, tier.in_network_reduction, found))
        if not exact and tier.bandwidth.value is not None:
            notes[_share_note(pool.name, tier, found)] = None
    return _as_learned(_ideal(wires) if exact else assemble(wires), pool), tuple(notes)


def _as_learned(found: Fabric, pool: CardPool) -> Fabric:
    """Return a fabric whose tiers take as many times as long as runs have taught."""
    times = np.array([_value(pool.learned.links[tier.name], 1.0) if tier.name in pool.learned.links else 1.0
                      for tier in pool.tiers])  # fmt: skip
    if np.all(times == 1):
        return found
    fills = None if found.fills is None else found.fills * times
    return replace(
        found, bandwidths=found.bandwidths / times, latencies=found.latencies * times, fills=fills,
        start=found.start * float(times[0]),
    )  # fmt: skip


def _share_note(pool: str, tier: Tier, found: LinkFamily) -> str:
    share = share_within(found, tier.size)
    why = f"fitted on {', '.join(found.measured)}" if found.measured else "median of the measured families"
    return f"{pool} {tier.name}: large transfers reach {share:.0%} of the link rate ({found.id}, {why})"


def _ideal(wires: Sequence[Wire]) -> Fabric:
    return Fabric(
        sizes=np.array([wire.size for wire in wires], float),
        bandwidths=np.array([wire.bandwidth for wire in wires], float),
        latencies=np.array(
            [_value(wire.family.latency, np.nan) if wire.latency is None else wire.latency for wire in wires], float
        ),
        full_mesh=np.array([wire.full_mesh for wire in wires]),
        in_network_reduction=np.array([wire.reduces for wire in wires]),
    )


def with_families(wires: Sequence[Wire], changed: Mapping[str, LinkFamily]) -> list[Wire]:
    """Return wires whose families are those of a mapping by id, where it has them."""
    return [
        Wire(
            wire.size,
            wire.bandwidth,
            wire.latency,
            wire.full_mesh,
            wire.reduces,
            changed.get(wire.family.id, wire.family),
        )
        for wire in wires
    ]


@dataclass(frozen=True)
class Bridge:
    """What joins two pools: bytes/s per card, seconds, and whether traffic is staged through the hosts; and a second
    way, past them, where there is one. A message takes the quicker."""

    bandwidth: float
    latency: float
    host_staged: bool
    direct: Bridge | None = None

    def time(self, volume: Array) -> Array:
        """Return the seconds that ``volume`` bytes per card take from one pool to another."""
        seconds = self.latency + volume * self._each
        return seconds if self.direct is None else np.minimum(seconds, self.direct.time(volume))

    def volume(self, seconds: Array) -> Array:
        """Return the bytes per card that arrive within ``seconds``."""
        arrived = np.maximum(seconds - self.latency, 0.0) / self._each
        return arrived if self.direct is None else np.maximum(arrived, self.direct.volume(seconds))

    def flow(self, volume: Array) -> Array:
        """Return the seconds for which ``volume`` bytes per card fill the way that they take."""
        way = self.way(volume)
        return volume * way._each

    def way(self, volume: Array) -> Bridge:
        """Return the way on which so many bytes, all of them together, are quicker."""
        here = float(np.sum(self.latency + volume * self._each))
        if self.direct is None or float(np.sum(self.direct.time(volume))) >= here:
            return self
        return self.direct

    @property
    def _each(self) -> float:
        return 1 / self.bandwidth + (2 / PCIE_BYTES_PER_S if self.host_staged else 0.0)


def bridge_between(formation: Formation) -> tuple[Bridge | None, tuple[str, ...]]:
    """Return the bridge of a machine's pools, and what had to be taken for granted or left out of it."""
    network = formation.network
    found = bridge(network, machine=formation.name, emulated=formation.emulated)
    if network is None or found is None:
        return found, ()
    backends = {pool.name: pool.accelerator.software for pool in formation.pools}
    known = {name: one.collective_backend.rstrip("?") for name, one in backends.items() if one is not None}
    apart = len(set(known.values())) > 1 and network.joined_by is None and not formation.emulated
    said = " and ".join(f"{backend} on {pool}" for pool, backend in known.items())
    why = f"{said} have no collective library in common (network.joined_by says what joins them)"
    if apart and network.direct is not None:
        return replace(found, direct=None), (f"{network.direct.name} between pools is left out: {why}",)
    if apart and not network.host_staged:
        return found, (f"traffic between pools goes past the hosts as the machine says, though {why}",)
    if network.direct is not None and not network.direct.bandwidth.known:
        return found, (f"{network.direct.name} between pools is left out: its bandwidth is undisclosed",)
    return found, ()


def bridge(network: Network | None, *, machine: str, emulated: bool) -> Bridge | None:
    """Return the link between pools; None where the machine has only one pool or names no network."""
    if network is None:
        return None
    exact = emulated or network.bandwidth.confidence == "calibrated"
    share = 1.0 if exact else _value(family(NETWORK).share, 1.0)
    rate = network.bandwidth.require(f"{machine}.network.bandwidth") * share
    latency = network.latency.value
    if latency is None:
        latency = priors.tier_latency(1).value
    times = _value(network.learned, 1.0)
    direct = _direct(network, emulated)
    slower = None if direct is None else replace(direct, bandwidth=direct.bandwidth / times)
    return Bridge(rate / times, latency * times, network.host_staged and not emulated, slower)


def _direct(network: Network, emulated: bool) -> Bridge | None:
    """Return the way past the hosts; None where there is none, or nobody says how fast it is."""
    link = network.direct
    if link is None or link.bandwidth.value is None:
        return None
    exact = emulated or link.bandwidth.confidence == "calibrated"
    share = 1.0 if exact else _value(family(NETWORK).share, 1.0)
    return Bridge(link.bandwidth.value * share, _value(link.latency, priors.tier_latency(1).value), False)
