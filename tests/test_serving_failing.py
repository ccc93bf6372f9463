"""What failures leave of a fleet: a share, less of large instances, more with idle nodes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zhenfa
from zhenfa import catalog
from zhenfa.estimate.serving_failing import kept
from zhenfa.laws import redundancy
from zhenfa.plan.serving import ServingAnswer
from zhenfa.spec.machine import Formation
from zhenfa.spec.serving import Instance, ServingPlan
from zhenfa.spec.upkeep import Recovery

JOB = {
    "name": "j", "model": "qwen3-235b-a22b",
    "workload": {"task": "serve", "input_length": 2000, "output_length": 400, "ttft_target": "3 s",
                 "tpot_target": "50 ms"},
}  # fmt: skip


def machine(nodes: int) -> Formation:
    found = catalog.resolve(catalog.machine("dgx-superpod-h100"))
    return replace(found, pools=(replace(found.pools[0], name="a", count=8 * nodes),))


def plan(count: int, cards: int, prefill: int = 0) -> ServingPlan:
    first = Instance(pool="a", count=prefill, tensor_parallel=8) if prefill else None
    decode = Instance(pool="a", count=count, data_parallel=cards, expert_parallel=cards)
    return ServingPlan(model="m", machine="n", engine="vllm", prefill=first, decode=decode)


def share(what: ServingPlan, nodes: int, **recovery: object) -> float:
    found = kept(what, machine(nodes), Recovery.model_validate(recovery))
    assert found is not None
    return found.share


def test_a_fleet_loses_a_share_and_a_large_instance_all_of_it() -> None:
    small, large = share(plan(16, 8), 16), share(plan(1, 128), 16)
    assert 0.99 < large < small < 1
    assert (1 - large) / (1 - small) == pytest.approx(16, rel=0.05)


def test_idle_nodes_bring_an_instance_back_sooner() -> None:
    none, one, many = (share(plan(1, 128), nodes) for nodes in (16, 17, 32))
    assert none < one < many
    brief = share(plan(1, 128), 32, down="1 s", restart="1 s")
    assert many < brief
    assert brief > 0.99999


def test_prefill_and_decode_need_each_other() -> None:
    both = share(plan(4, 32, prefill=4), 20)
    assert both < min(share(plan(4, 32), 16), share(plan(4, 8), 4))
    assert share(plan(8, 8), 16) == pytest.approx(share(plan(16, 4), 16), rel=1e-6)  # a node takes what stands on it


def test_emulated_cards_do_not_fail() -> None:
    emulated = catalog.resolve(catalog.machine("emulated-quartet"))
    instance = Instance(pool=emulated.pools[0].name)
    assert kept(plan(1, 8).model_copy(update={"decode": instance}), emulated, Recovery()) is None


@settings(max_examples=30, deadline=None)
@given(
    first=st.integers(1, 40), other=st.integers(1, 40), up=st.floats(0.2, 1), also=st.floats(0.2, 1),
)  # fmt: skip
def test_the_lesser_share_is_what_a_replay_shows(first: int, other: int, up: float, also: float) -> None:
    draw = random.Random(first * 41 + other)
    total = 0.0
    for _ in range(400):
        here = sum(draw.random() < up for _ in range(first)) / first
        total += min(here, sum(draw.random() < also for _ in range(other)) / other)
    law = redundancy.lesser_share(first, up, other, also)
    assert law <= min(up, also) + 1e-9
    assert total / 400 == pytest.approx(law, abs=0.08)


@given(units=st.integers(1, 200), spares=st.integers(0, 8), chance=st.floats(0, 1))
def test_missing_units_fall_with_spares(units: int, spares: int, chance: float) -> None:
    found = redundancy.missing_units(units, spares, chance)
    assert 0 <= redundancy.missing_units(units, spares + 1, chance) <= found + 1e-12
    assert redundancy.missing_units(units, 0, chance) == pytest.approx(units * chance, abs=1e-9)


def test_throughput_is_what_failures_leave() -> None:
    """Nodes that break every three days: large instances lose most of their time, and a plan of small ones is best."""
    pool = {"name": "p", "system": "nvidia-hgx-h100-8", "count": 128, "failures": {"host": "3 d"}}
    made = {"name": "m", "title": "t", "pools": [pool]}
    best, lasting = (zhenfa.plan({**JOB, "objective": one}, made, top=8) for one in ("step", "throughput"))
    assert isinstance(best, ServingAnswer)
    assert isinstance(lasting, ServingAnswer)
    left = [one.estimate.figures.requests_per_s_kept.value for one in lasting.plans]
    assert left == sorted(left, reverse=True)
    for one in (*best.plans, *lasting.plans):
        figures, wall = one.estimate.figures, one.estimate.walls.reliability
        assert figures.requests_per_s_kept.value == pytest.approx(figures.requests_per_s.value * (1 - wall.share))
        assert figures.requests_per_s_kept.value <= left[0] * (1 + 1e-9)
        assert one.estimate.operating.scheduling.value == pytest.approx(1 - wall.share)
    assert left[0] > best.best.estimate.figures.requests_per_s_kept.value
    assert lasting.gap >= 0
    assert "requests/s that failures leave" in lasting.plans[1].lost_by
    assert best.best.estimate.figures.requests_per_s.value <= left[0] * (1 + lasting.gap) / 0.9
    why = lasting.why(best.best.plan)
    assert why.behind is not None
    assert why.behind > 0
