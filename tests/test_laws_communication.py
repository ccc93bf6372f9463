"""Collectives over nested tiers: bounds, free groups, undisclosed tiers, and published bandwidths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa.laws import communication as law
from zhenfa.laws.communication import Fabric

COLLECTIVES = (
    law.all_reduce_time,
    law.reduce_scatter_time,
    law.all_gather_time,
    law.all_to_all_time,
    law.broadcast_time,
)
GIB = 2.0**30


def fabric(*tiers: tuple[float, float, float], mesh: tuple[int, ...] = (), adds: tuple[int, ...] = ()) -> Fabric:
    sizes, bandwidths, latencies = np.array(tiers, float).T
    places = np.arange(len(tiers))
    return Fabric(sizes, bandwidths, latencies, np.isin(places, mesh), np.isin(places, adds))


@st.composite
def fabrics(draw: st.DrawFn) -> Fabric:
    sizes = np.cumprod([*draw(st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=3)), 4096])
    count = len(sizes)
    bandwidths = draw(st.lists(st.floats(1e9, 1e12), min_size=count, max_size=count))
    latencies = draw(st.lists(st.floats(0, 1e-4), min_size=count, max_size=count))
    flags = [draw(st.lists(st.booleans(), min_size=count, max_size=count)) for _ in range(2)]
    return Fabric(
        sizes.astype(float), np.array(bandwidths), np.array(latencies), np.array(flags[0]), np.array(flags[1])
    )


@st.composite
def real_fabrics(draw: st.DrawFn) -> Fabric:
    """Wires with a library on them: starts, copies, filling, shares."""
    net = draw(fabrics())
    several = st.lists(st.floats(0, 1e-3), min_size=net.tiers, max_size=net.tiers)
    return dataclasses.replace(
        net,
        fills=np.array(draw(several)),
        fill_bytes=1e9 * np.array(draw(several)) + 1e4,
        start=draw(st.floats(0, 1e-4)),
        own_copy=draw(st.sampled_from([1e12, 5e12, np.inf])),
        switch_share=draw(st.floats(0.5, 1.0)),
        switch_gain=draw(st.floats(1.0, law.SWITCH_GAIN)),
        switch_fill=draw(st.floats(0, 1e-4)),
        exchange=np.array(draw(st.lists(st.floats(0.5, 1.0), min_size=net.tiers, max_size=net.tiers))),
        peer_start=draw(st.sampled_from([None, 0.0, 3e-6])),
        peer_step=draw(st.floats(0, 1e-6)),
        peer_share=draw(st.floats(0.3, 1.0)),
    )


groups, strides = st.integers(1, 512), st.integers(1, 64)
payloads = st.one_of(st.just(0.0), st.floats(1e-3, 1e11))


@pytest.mark.parametrize("collective", COLLECTIVES)
@given(fabrics(), groups, strides, st.tuples(payloads, payloads))
def test_more_bytes_never_take_less_time(
    collective: Callable[..., Any], net: Fabric, group: int, stride: int, sizes: tuple[float, float]
) -> None:
    less, most = collective(np.sort(sizes), group, stride, net)
    assert 0 <= less <= most * (1 + 1e-12)


@pytest.mark.parametrize("collective", [*COLLECTIVES, law.direct_all_reduce_time])
@given(real_fabrics(), groups, strides, st.tuples(payloads, payloads))
@settings(max_examples=40)
def test_a_library_only_adds_and_more_bytes_never_take_less_time(
    collective: Callable[..., Any], net: Fabric, group: int, stride: int, sizes: tuple[float, float]
) -> None:
    less, most = collective(np.sort(sizes), group, stride, net)
    assert 0 <= less <= most * (1 + 1e-12)
    assert most == collective(max(sizes), group, stride, net)
    ideal = Fabric(net.sizes, net.bandwidths, net.latencies, net.full_mesh, net.in_network_reduction)
    if collective is not law.direct_all_reduce_time:
        assert most >= collective(max(sizes), group, stride, ideal) * (1 - 1e-9)
    else:
        assert most <= law.all_reduce_time(max(sizes), group, stride, net) * (1 + 1e-12)
    assert collective(max(sizes), 1, stride, net) == 0


def test_worked_example_of_a_ring_with_a_library() -> None:
    """Eight cards, 100 MB: start, seven steps, 87.5 MB over the wire, own 12.5 MB copied, half of the filling."""
    net = dataclasses.replace(
        fabric((8, 350e9, 1e-6)), start=6e-6, own_copy=1e12, fills=np.array([40e-6]), fill_bytes=np.array([87.5e6])
    )
    expected = 6e-6 + 7e-6 + 87.5e6 / 350e9 + 12.5e6 / 1e12 + 20e-6
    assert law.all_gather_time(100e6, 8, 1, net) == pytest.approx(expected)
    assert law.all_reduce_time(100e6, 8, 1, net) == pytest.approx(
        6e-6 + 14e-6 + 175e6 / 350e9 + 12.5e6 / 1e12 + 40e-6 * 2 / 3
    )


def test_a_switched_domain_reduces_as_one_however_its_racks_are_told() -> None:
    """72 cards on one switched link, told as one tier or as trays of four: the same bus bandwidth."""
    one, trays = fabric((72, 700e9, 0), adds=(0,)), fabric((4, 700e9, 0), (72, 700e9, 0), adds=(0, 1))
    assert law.all_reduce_time(1e9, 72, 1, one) == pytest.approx(law.all_reduce_time(1e9, 72, 1, trays))
    assert law.all_reduce_time(1e9, 72, 1, one) == pytest.approx(2 * 71 / 72 * 1e9 / (law.SWITCH_GAIN * 700e9))


def test_a_library_that_leaves_a_domain_through_few_cards() -> None:
    """Racks of 72 with 50 GB/s a card, eight of which a collective uses: 800 GB/s over two racks, 400 over twenty."""
    net = dataclasses.replace(fabric((72, 10e12, 0), (7200, 50e9, 0)), exits=8.0)

    def bus(racks: int) -> float:
        cards = 72 * racks
        return 2 * (1 - 1 / cards) * 1e9 / float(law.all_reduce_time(1e9, cards, 1, net))

    assert bus(2) == pytest.approx(800e9, rel=0.01)
    assert bus(20) == pytest.approx(400e9, rel=0.06)
    every = dataclasses.replace(net, exits=np.inf)
    assert law.all_gather_time(1e9, 144, 1, every) < law.all_gather_time(1e9, 144, 1, net)
    for few in (net, every):  # a group with one card in each rack has no more than its own port
        assert law.all_reduce_time(1e9, 4, 72, few) == law.all_reduce_time(1e9, 4, 72, every)


@pytest.mark.parametrize("collective", COLLECTIVES)
@given(fabrics(), strides, payloads)
def test_a_group_of_one_is_free(collective: Callable[..., Any], net: Fabric, stride: int, payload: float) -> None:
    assert collective(payload, 1, stride, net) == 0


@given(fabrics(), groups, strides, payloads)
def test_all_reduce_lies_between_its_halves_and_their_sum(net: Fabric, group: int, stride: int, payload: float) -> None:
    half = law.reduce_scatter_time(payload, group, stride, net)
    assert half == law.all_gather_time(payload, group, stride, net)
    whole = law.all_reduce_time(payload, group, stride, net)
    assert half * (1 - 1e-9) <= whole <= 2 * half * (1 + 1e-9)
    members = law.reach(group, stride, net)
    if np.all(group % members == 0):  # a card on its own in its instance needs less than two halves
        assert 2 * half / law.SWITCH_GAIN * (1 - 1e-9) <= whole


@given(fabrics(), groups, strides, st.floats(1, 1e11))
def test_nothing_beats_the_card_s_own_ports(net: Fabric, group: int, stride: int, payload: float) -> None:
    fastest = payload * (1 - 1 / group) / net.bandwidths.sum()
    for collective in (law.all_gather_time, law.all_to_all_time):
        assert collective(payload, group, stride, net) >= fastest * (1 - 1e-9)


@given(fabrics(), groups, strides)
def test_reach_grows_outwards_to_the_group(net: Fabric, group: int, stride: int) -> None:
    members = law.reach(group, stride, net)
    assert members.shape == (net.tiers,)
    assert np.all(np.diff(members) >= 0)
    assert members[-1] == group
    assert members[0] >= 1


def test_undisclosed_tier_spoils_only_those_who_cross_it() -> None:
    net = fabric((8, 400e9, 1e-6), (64, np.nan, 5e-6))
    for collective in COLLECTIVES:
        inside, across = collective(1e9, np.array([8, 16]), 1, net)
        assert np.isfinite(inside)
        assert np.isnan(across)
    near, far = law.point_to_point_time(1e9, np.array([7, 8]), net)
    assert np.isfinite(near)
    assert np.isnan(far)


def test_in_ring_every_port_of_a_node_works() -> None:
    """Two nodes of 8: each card's 50 GB/s carries an eighth of the buffer, so NVLink sets the pace."""
    net = fabric((8, 400e9, 0), (64, 50e9, 0))
    assert law.all_reduce_time(1e9, 16, 1, net) == pytest.approx(2 * 15 / 16 * 1e9 / 400e9)
    assert law.all_reduce_time(1e9, 8, 8, net) == pytest.approx(2 * 7 / 8 * 1e9 / 50e9)


def test_a_half_filled_node_is_the_bottleneck() -> None:
    net = fabric((8, 400e9, 0), (64, 50e9, 0))
    assert law.all_reduce_time(1e9, 9, 1, net) > 3 * law.all_reduce_time(1e9, 16, 1, net)


def test_small_buffers_take_the_tree() -> None:
    """A chain of eight cards, 7 steps, then 128 such chains by halving, 7 steps; there and back."""
    net = fabric((1024, 400e9, 1e-6))
    assert law.all_reduce_time(8, 1024, 1, net) == pytest.approx(28e-6, rel=0.01)


def test_full_mesh_pair_has_one_link_and_all_to_all_has_all() -> None:
    net = fabric((8, 420e9, 0), mesh=(0,))
    assert law.point_to_point_time(60e9, 3, net) == pytest.approx(1)
    assert law.all_to_all_time(480e9, 8, 1, net) == pytest.approx(1)
    assert law.all_reduce_time(60e9, 2, 1, net) == pytest.approx(1)


def test_point_to_point_sees_the_border() -> None:
    net = fabric((8, 400e9, 0), (64, 50e9, 0))
    inside, across = law.point_to_point_time(400e9, 4, net, start=np.array([0, 4]))
    assert (inside, across) == (1, 8)


def test_stride_spreads_a_group() -> None:
    net = fabric((8, 400e9, 0), (64, 50e9, 0))
    assert law.reach(8, np.array([1, 2, 8]), net).tolist() == [[8, 4, 1], [8, 8, 8]]


@pytest.mark.parametrize(
    ("link", "ring", "in_switch"),
    [(450e9, 365.6e9, 473e9), (900e9, 682e9, 838e9)],
    ids=["H200", "B200"],
)
def test_in_switch_reduction_of_eight_cards(link: float, ring: float, in_switch: float) -> None:
    """Bekman, Machine Learning Engineering, network chapter: bus bandwidth at 8 GiB without and with NVLS."""
    busbw = 2 * 7 / 8 * 8 * GIB
    plain, adding = fabric((8, link, 2e-6)), fabric((8, link, 2e-6), adds=(0,))
    reached = ring / link
    assert busbw / law.all_reduce_time(8 * GIB, 8, 1, plain, efficiency=reached) == pytest.approx(ring, rel=0.01)
    assert busbw / law.all_reduce_time(8 * GIB, 8, 1, adding, efficiency=reached) == pytest.approx(in_switch, rel=0.05)


def test_published_collectives_across_nodes() -> None:
    """CoreWeave nccl-tests results at 8 GiB: 8 HGX H100 with SHARP 386 GB/s; one GB200 rack 835, two racks 793."""
    h100 = fabric((8, 450e9, 2e-6), (1024, 50e9, 5e-6), adds=(0, 1))
    gb200 = fabric((72, 900e9, 2e-6), (1440, 50e9, 5e-6), adds=(0,))
    for net, group, efficiency, measured in (
        (h100, 64, 365.6 / 450, 386e9),
        (gb200, 72, 682 / 900, 835e9),
        (gb200, 144, 682 / 900, 793e9),
    ):
        busbw = 2 * (group - 1) / group * 8 * GIB
        ours = busbw / law.all_reduce_time(8 * GIB, group, 1, net, efficiency=efficiency)
        assert ours == pytest.approx(measured, rel=0.12)
