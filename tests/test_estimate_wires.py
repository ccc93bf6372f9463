"""From a pool's tiers to what transfers reach: families of links, latencies of one's own, emulated cards exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from zhenfa import catalog
from zhenfa.estimate import wires
from zhenfa.laws import communication
from zhenfa.spec.fact import Fact


def pool_of(name: str):  # type: ignore[no-untyped-def]
    return catalog.resolve(catalog.load_machine(name)).pools[0]


@pytest.mark.parametrize(
    ("protocol", "family"),
    [
        ("NVLink4", "nvlink4"),
        ("NVLink7", "nvlink"),
        ("UB 1.0", "ub"),
        ("HCCS (8-card full mesh)", "hccs"),
        ("xGMI / Infinity Fabric", "xgmi"),
        ("MTLink", "other"),
        (None, "other"),
    ],
)
def test_a_protocol_belongs_to_a_family(protocol: str | None, family: str) -> None:
    assert wires.family_of(protocol).id == family


def test_the_network_is_told_from_the_cards_own_ports() -> None:
    pool = pool_of("cloudmatrix384")
    found = [wires.tier_family(pool.accelerator, tier, index).id for index, tier in enumerate(pool.tiers)]
    assert found == ["ub"] * len(found)
    superpod = pool_of("dgx-superpod-h100")
    found = [wires.tier_family(superpod.accelerator, tier, index).id for index, tier in enumerate(superpod.tiers)]
    assert found[0] == "nvlink4"
    assert set(found[1:]) == {"rdma"}


def test_every_family_is_whole() -> None:
    for item in catalog.link_families().values():
        share = wires.share_within(item, 8)
        assert 0.001 < share <= 1
        for name in ("share", "exchange", "forward_share", "low_latency_share", "peer_share", "switch_share"):
            value = getattr(item, name).value
            assert value is None or 0 < value <= 1.2
        assert item.spread


def test_emulated_cards_are_exact() -> None:
    pool = pool_of("emulated-quartet")
    net = wires.fabric(pool)[0]
    assert net.bandwidths[0] == pool.tiers[0].bandwidth.value
    assert net.start == 0
    group = float(min(pool.count, pool.tiers[0].size))
    if group > 1:
        wire = (group - 1) / group * 1e9 / net.bandwidths[0]
        assert communication.all_gather_time(1e9, group, 1.0, net) == pytest.approx(wire, rel=0.02)


def test_a_tier_s_own_latency_stands_before_the_family_s() -> None:
    pool = pool_of("hgx-h100")
    assert pool.tiers[0].latency.value is not None
    assert wires.fabric(pool)[0].latencies[0] == pool.tiers[0].latency.value
    bare = dataclasses.replace(
        pool,
        tiers=tuple(tier.model_copy(update={"latency": Fact(value=None, dimension="time")}) for tier in pool.tiers),
    )
    net, notes = wires.fabric(bare)
    assert net.latencies[0] == wires.family("nvlink4").latency.value
    assert any("latency" in note for note in notes)


def test_measured_bus_bandwidth_of_an_hgx() -> None:
    """nccl-tests on eight H100 at 8 GiB: 478.9 GB/s, with reduction in the switch; 64 cards over InfiniBand: 386."""
    net = wires.fabric(pool_of("dgx-superpod-h100"))[0]
    for ranks, measured in ((8.0, 478.9e9), (64.0, 386e9)):
        busbw = 2 * (ranks - 1) / ranks * 2**33 / communication.all_reduce_time(2.0**33, ranks, 1.0, net)
        assert busbw == pytest.approx(measured, rel=0.12)


def test_large_messages_come_near_the_share_and_small_ones_do_not() -> None:
    net = wires.fabric(pool_of("hgx-h100"))[0]
    sizes = 2.0 ** np.arange(10, 36)
    rate = 7 / 8 * sizes / np.asarray(communication.all_gather_time(sizes, 8.0, 1.0, net))
    assert np.all(np.diff(rate) > 0)
    assert rate[0] < 0.01 * net.bandwidths[0]
    assert 0.9 * net.bandwidths[0] < rate[-1] <= net.bandwidths[0]
