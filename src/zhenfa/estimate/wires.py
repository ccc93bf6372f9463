"""A pool's fabric and the bridge between pools as plain floats for the laws, with a list of what was assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from zhenfa.estimate import priors
from zhenfa.laws.arrays import Array
from zhenfa.laws.communication import Fabric
from zhenfa.spec.machine import CardPool, Network

PCIE_BYTES_PER_S: Final = 63e9
"""PCIe 5.0 x16, one direction: what a host-staged transfer crosses twice."""


def fabric(pool: CardPool) -> tuple[Fabric, tuple[str, ...]]:
    """Return a pool's tiers as arrays, inside-out, and what was assumed of them.

    An undisclosed bandwidth becomes NaN: layouts that would cross that tier are refused by name.
    """
    notes: list[str] = []
    sizes, bandwidths, latencies, meshes, reductions = [], [], [], [], []
    for index, tier in enumerate(pool.tiers):
        latency = tier.latency.value
        if latency is None:
            prior = priors.tier_latency(min(index, 1))
            latency = prior.value
            notes.append(f"{pool.name} {tier.name}: latency {1e6 * latency:.2g} us ({prior.why})")
        share = 1.0 if pool.accelerator.emulated else priors.NETWORK_SHARE
        sizes.append(float(tier.size))
        bandwidths.append(np.nan if tier.bandwidth.value is None else tier.bandwidth.value * share)
        latencies.append(latency)
        meshes.append(tier.topology == "full-mesh")
        reductions.append(tier.in_network_reduction)
    if not pool.accelerator.emulated:
        notes.append(
            f"{pool.name}: large transfers reach {priors.NETWORK_SHARE:.0%} of the link rate (stated constant)"
        )
    table = Fabric(
        sizes=np.array(sizes), bandwidths=np.array(bandwidths), latencies=np.array(latencies),
        full_mesh=np.array(meshes), in_network_reduction=np.array(reductions),
    )  # fmt: skip
    return table, tuple(notes)


@dataclass(frozen=True)
class Bridge:
    """What joins two pools: bytes/s per card, seconds, and whether traffic is staged through the hosts."""

    bandwidth: float
    latency: float
    host_staged: bool

    def time(self, volume: Array) -> Array:
        """Return the seconds that ``volume`` bytes per card take from one pool to another."""
        staging = 2 * volume / PCIE_BYTES_PER_S if self.host_staged else 0.0
        return self.latency + volume / self.bandwidth + staging


def bridge(network: Network | None, *, machine: str, emulated: bool) -> Bridge | None:
    """Return the link between pools; None where the machine has only one pool or names no network."""
    if network is None:
        return None
    share = 1.0 if emulated else priors.NETWORK_SHARE
    rate = network.bandwidth.require(f"{machine}.network.bandwidth") * share
    latency = network.latency.value
    if latency is None:
        latency = priors.tier_latency(1).value
    return Bridge(rate, latency, network.host_staged and not emulated)
