"""Dispatch and combine: what a token costs at every port."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.laws.expert_exchange import combine_time, dispatch_time, distinct_places
from zhenfa.laws.fabric import Fabric

NODES = Fabric(np.array([8.0, 4096]), np.array([160e9, 45e9]), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
ONE = Fabric(np.array([4096.0]), np.array([160e9]), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool))
SPLIT = Fabric(np.array([4.0, 4096]), np.full(2, 160e9), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))

groups, tokens, chosen = st.sampled_from([2, 4, 8, 16, 32, 64, 256]), st.integers(1, 8192), st.integers(1, 16)


def exact(top_k: int, places: int, experts: int) -> float:
    """Hypergeometric: places that hold at least one of the chosen experts."""
    return places * (1 - math.comb(experts - experts // places, top_k) / math.comb(experts, top_k))


@pytest.mark.parametrize(
    ("top_k", "places", "experts"), [(8, 8, 256), (8, 32, 256), (8, 256, 256), (2, 8, 8), (4, 4, 128)]
)
def test_places_are_those_of_draws_without_replacement(top_k: int, places: int, experts: int) -> None:
    assert distinct_places(top_k, places, experts) == pytest.approx(exact(top_k, places, experts), rel=0.01)


@given(chosen, groups, st.sampled_from([64, 256, np.inf]), st.sampled_from([1, 4, np.inf]))
def test_places_are_bounded(top_k: int, places: int, experts: float, limit: float) -> None:
    found = distinct_places(top_k, float(places), experts, limit)
    assert 1 <= found <= min(top_k, places, max(limit, 1)) + 1e-9


@given(tokens, chosen, groups, st.booleans())
def test_time_grows_with_tokens_and_a_lone_card_is_free(count: int, top_k: int, group: int, low: bool) -> None:
    less, more = dispatch_time(np.array([count, count + 1]), 7168, top_k, float(group), 1.0, NODES, low_latency=low)
    assert 0 < less <= more
    assert dispatch_time(count, 7168, top_k, 1.0, 1.0, NODES, low_latency=low) == 0


@given(tokens, chosen, groups)
def test_forwarding_never_sends_more_over_the_network(count: int, top_k: int, group: int) -> None:
    """Once per node against once per expert, where the network is the only port."""
    network = Fabric(np.array([8.0, 4096]), np.array([1e15, 45e9]), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    forward, post = (
        dispatch_time(count, 7168, top_k, float(group), 1.0, network, low_latency=low) for low in (False, True)
    )
    assert forward <= post * (1 + 1e-9)


@given(tokens, groups)
def test_combine_is_dispatch_backwards(count: int, group: int) -> None:
    there = dispatch_time(count, 7168, 8, float(group), 1.0, NODES, bytes_per_element=2)
    assert there == combine_time(count, 7168, 8, float(group), 1.0, NODES)


@given(tokens, groups, st.booleans())
def test_a_switched_domain_is_one_port_however_its_racks_are_told(count: int, group: int, low: bool) -> None:
    one, split = (dispatch_time(count, 7168, 8, float(group), 1.0, net, low_latency=low) for net in (ONE, SPLIT))
    assert one == pytest.approx(split)


def test_node_limited_routing_spares_the_network() -> None:
    free, limited = (
        dispatch_time(4096, 7168, 8, 64.0, 1.0, NODES, bytes_per_element=1, nodes_limited=nodes) for nodes in (8, 4)
    )
    assert limited < 0.75 * free
    payload = 4096 * 7168 / 45e9
    assert limited == pytest.approx(payload * distinct_places(8, 8, chosen=4) * 7 / 8)


def test_an_undisclosed_network_spoils_only_those_who_cross_it() -> None:
    net = Fabric(np.array([8.0, 64]), np.array([160e9, np.nan]), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    inside, across = dispatch_time(128, 7168, 8, np.array([8.0, 16.0]), 1.0, net)
    assert np.isfinite(inside)
    assert np.isnan(across)
