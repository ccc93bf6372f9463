"""What crosses between makers: places, bytes and seconds of the bridge in a plan."""

from __future__ import annotations

import pytest

from plan_pools import dense, even, machine, model, pipeline, plan_of, pool
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import cost
from zhenfa.plan.bridge import bridge_of
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import Tier

HIDDEN, SEQUENCE, LAYERS = 1024, 512, 8


def setting_of(bandwidth: float = 25e9, *, host_staged: bool = True) -> Setting:
    tiers = [Tier(name="node", size=4, bandwidth="400 GB/s", latency="1 us")]
    pools = [
        pool(name, 4, tiers, peak=peak, capacity=80e9, bandwidth=2e12, matmul=0.8)
        for name, peak in (("p0", 300e12), ("p1", 150e12))
    ]
    graph = model(HIDDEN, 32000, [dense(HIDDEN, 8, 8, 4 * HIDDEN)], [0] * LAYERS)
    formation = machine(*pools, bandwidth=bandwidth, host_staged=host_staged)
    return look_up(graph, Workload(sequence_length=SEQUENCE, global_batch=16), formation)


def test_stages_on_two_pools_send_activations_and_gradients_back() -> None:
    setting = setting_of()
    held = pipeline(even(LAYERS, 4), ["p0", "p0", "p1", "p1"], count=2, micro_batches=4, size=2)
    plan = plan_of(setting, [held])
    outcome = cost(plan, setting)
    found = bridge_of(plan, setting, outcome)
    assert found is not None
    assert found.host_staged
    (one,) = found.crossings
    message = 2 * SEQUENCE * HIDDEN * 2
    assert (one.what, one.pools, one.stages, one.replicas) == ("activations", ("p0", "p1"), (1, 2), 2)
    assert one.message_bytes == message
    assert one.step_bytes == 2 * 2 * 4 * message
    assert one.message_s == pytest.approx(found.latency + message / found.bandwidth + 2 * message / 63e9, rel=0.2)
    assert one.where == "stage 1 to 2, p0 to p1"
    assert 0 < found.exposed < outcome.step


def test_a_wider_link_and_one_past_the_hosts_expose_less() -> None:
    exposed = []
    for setting in (setting_of(1e9), setting_of(25e9), setting_of(25e9, host_staged=False)):
        plan = plan_of(setting, [pipeline(even(LAYERS, 2), ["p1", "p0"])])
        outcome = cost(plan, setting)
        found = bridge_of(plan, setting, outcome)
        assert found is not None
        exposed.append(found.exposed)
        free = outcome.step - found.exposed
        assert free == pytest.approx(outcome.worst.without_bridges + outcome.worst.tail, rel=1e-9)
    assert exposed[0] > exposed[1] > exposed[2] > 0


def test_replicas_on_two_pools_sum_gradients_over_the_bridge() -> None:
    setting = setting_of()
    entries = [pipeline([(0, LAYERS)], [name], count=2, micro_batches=4) for name in ("p0", "p1")]
    plan = plan_of(setting, entries)
    outcome = cost(plan, setting)
    found = bridge_of(plan, setting, outcome)
    assert found is not None
    (one,) = found.crossings
    assert (one.what, one.pools, one.stages, one.replicas) == ("gradients", ("p0", "p1"), (), 4)
    # what is summed inside the pool first is then shared out over the two cards that hold the same
    size = setting.traits.reduced_bytes or setting.traits.gradient_bytes
    each = size * setting.graph.parameters / 2
    assert one.message_bytes == pytest.approx(2 * (2 - 1) / 2 * each, rel=0.01)
    assert one.step_bytes == pytest.approx(4 * one.message_bytes)
    assert one.message_s == max(stage.across for stage in outcome.stages)


def test_one_pool_has_no_bridge() -> None:
    setting = setting_of()
    plan = plan_of(setting, [pipeline(even(LAYERS, 2), ["p0", "p0"])])
    assert bridge_of(plan, setting, cost(plan, setting)) is None
