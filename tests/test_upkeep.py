"""What a machine and a job say of failures, storage, building and grid reaches what a user reads of a plan."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from zhenfa import catalog
from zhenfa.errors import DocumentError, InputError, UnknownNameError
from zhenfa.estimate.survival import leaving
from zhenfa.plan import Answer, estimate_plan, find_plans, make_request
from zhenfa.plan.documents import to_document
from zhenfa.spec.job import Job
from zhenfa.spec.machine import Machine
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Estimate

WORKLOAD = {"sequence_length": 4096, "global_batch": 256, "tokens": 1e11}
POOL = {"name": "cards", "system": "nvidia-hgx-h100-8", "count": 64, "tiers": [
    {"name": "node", "size": 8, "bandwidth": "450 GB/s", "latency": "2 us"},
    {"name": "cluster", "size": 4096, "bandwidth": "50 GB/s", "latency": "5 us", "topology": "clos"},
]}  # fmt: skip


def job(**recovery: Any) -> Job:
    return Job.model_validate({"name": "case", "model": "llama3-8b", "workload": WORKLOAD, "recovery": recovery})


def machine(pool: dict[str, Any] | None = None, **more: Any) -> Machine:
    return Machine.model_validate({"name": "mine", "pools": [{**POOL, **(pool or {})}], "pue": 1.2, **more})


@functools.cache
def answer() -> Answer:
    return find_plans(make_request(job().model_copy(update={"machine": machine()})))


def plan(**changes: Any) -> Plan:
    return answer().best.plan.model_copy(update=changes)


def estimate(
    recovery: dict[str, Any] | None = None, pool: dict[str, Any] | None = None, of: Plan | None = None, **more: Any
) -> Estimate:
    """Return the estimate of one plan on the machine with these changes."""
    assume = more.pop("assume", None)
    asked = job(**(recovery or {})).model_copy(update={"machine": machine(pool, **more)})
    return estimate_plan(make_request(asked, assume=assume), of or plan())


def test_a_checkpoint_is_the_states_over_links_and_store() -> None:
    found = estimate(storage={"write": "10 GB/s", "read": "20 GB/s"}).operating
    graph = answer().request.graph
    assert found.checkpoint_bytes.value == pytest.approx(14 * (graph.parameters + graph.extra_parameters))
    size = found.checkpoint_bytes.value or 0.0
    assert found.checkpoint_write_s.value == pytest.approx(size / 10e9)
    copied = size / plan().cards / (0.8 * 63e9)
    assert copied < 0.59, "published: cards that stop together for a small copy do so for longer than the copy"
    assert found.checkpoint_stall_s.value == pytest.approx(0.59)
    assert "yours" in (found.checkpoint_write_s.note or "")
    usual = estimate().operating
    assert usual.checkpoint_write_s.value == pytest.approx(size / (81e6 * 64)), "an assumed store"
    assert usual.checkpoint_write_s.tag == "assumed"
    assert any("is assumed" in line and "81 MB/s" in line for line in estimate().assumptions)
    narrow = estimate(storage={"write": "10 GB/s", "per_card": "50 MB/s"}).operating
    assert narrow.checkpoint_write_s.value == pytest.approx(size / plan().cards / 50e6)


def test_a_slower_store_costs_more_and_a_blocking_checkpoint_most() -> None:
    ettrs = [
        estimate(recovery, storage={"write": write}).figures.ettr.value or 0.0
        for recovery, write in (({}, "1 TB/s"), ({}, "1 GB/s"), ({"checkpoint": "blocking"}, "1 GB/s"))
    ]
    assert ettrs == sorted(ettrs, reverse=True)
    assert ettrs[0] > ettrs[1] > ettrs[2] > 0.5


@pytest.mark.parametrize("checkpoint", ["asynchronous", "blocking"])
def test_no_interval_beats_the_best_one(checkpoint: str) -> None:
    best = estimate({"checkpoint": checkpoint})
    for minutes in (2, 10, 60, 300):
        other = estimate({"checkpoint": checkpoint, "interval": f"{minutes} min"})
        assert other.operating.interval_s.value == 60 * minutes
        assert (other.figures.ettr.value or 0) <= (best.figures.ettr.value or 0) + 1e-9
    found = best.operating
    assert found.interval_s.value == pytest.approx(
        max(found.young_interval_s.value or 0, found.checkpoint_write_s.value or 0), rel=0.02
    )


def test_failures_that_are_stated_are_counted_and_said() -> None:
    usual, asked = estimate(), estimate(pool={"failures": {"card": "100 d"}}, failures={"software": "1000 d"})
    per_day = asked.operating.failures_per_day
    assert per_day["cards: card"] == pytest.approx(plan().cards / 100)
    assert per_day["software"] == pytest.approx(1 / 1000)
    assert per_day["cards: host"] == usual.operating.failures_per_day["cards: host"]
    assert sum(per_day.values()) == pytest.approx(86400 / (asked.operating.mtbf_s.value or 0))
    assert any("card, software as you state them" in line for line in asked.assumptions)
    common = estimate(failures={"card": "100 d"}).operating.failures_per_day
    assert common["cards: card"] == per_day["cards: card"], "the machine's, where the pool says nothing"
    both = estimate(pool={"failures": {"card": "50 d"}}, failures={"card": "100 d"}).operating.failures_per_day
    assert both["cards: card"] == pytest.approx(2 * common["cards: card"])
    assume = estimate(assume={"cards.failures.card": "100 d", "mine.failures.software": "1000 d"})
    assert assume.operating.failures_per_day == pytest.approx(per_day)


def test_a_domain_that_fails_whole_is_counted_once_it_is_stated() -> None:
    rack = {"name": "rack", "cards": 32, "mtbf": "200 d", "repair": "8 h"}
    tiers = [{**tier, "name": "rack"} if tier["name"] == "cluster" else tier for tier in POOL["tiers"]]
    silent = estimate(pool={"tiers": tiers}).operating
    assert any("rack" in name for name in silent.not_counted)
    stated = estimate(pool={"tiers": tiers, "failures": {"domains": [rack]}})
    assert stated.operating.failures_per_day["cards: rack"] == pytest.approx(plan().cards / 32 / 200)
    assert not any("rack or" in name for name in stated.operating.not_counted)
    assert len(stated.operating.not_counted) == len(silent.not_counted) - 1
    assert (stated.operating.cards_out.value or 0) > (silent.cards_out.value or 0)
    assert (stated.operating.scheduling.value or 0) < (silent.scheduling.value or 0)


def test_replicas_leave_alone_only_where_they_hold_the_whole_state() -> None:
    whole = plan(zero=0)
    assert whole.replicas > 1
    together, alone = estimate(of=whole), estimate({"elastic": True}, of=whole)
    assert (alone.figures.ettr.value or 0) > (together.figures.ettr.value or 0)
    assert any("replicas go on" in line for line in alone.assumptions)
    shared = estimate({"elastic": True}, of=plan(zero=1, shard_group=None))
    assert any("none can leave alone" in line for line in shared.assumptions)
    assert leaving(plan(zero=3, shard_group=2)) == plan().replicas // 2


def test_energy_follows_building_converters_and_grid() -> None:
    building = {"fixed": 0.1, "proportional": 0.05, "design_power": "200 kW"}
    plain, curve = estimate(), estimate(facility=building, grid="china-east")
    load = (curve.operating.facility_power_w.value or 0) / 200e3
    share = (plain.operating.facility_power_w.value or 0) / 1.2 / 200e3
    assert load == pytest.approx(share * (1 + 0.1 / share + 0.05))
    run = curve.operating.run_energy_j.value or 0.0
    assert curve.operating.carbon_kg.value == pytest.approx(run / 3.6e6 * 0.55)
    own = estimate(grid={"kg_per_kwh": 0.1}).operating
    assert own.carbon_kg.value == pytest.approx((own.run_energy_j.value or 0.0) / 3.6e6 * 0.1)
    lossy = estimate(facility={"converters": ["node-dc-dc"]}).operating
    nodes = plan().cards / 8
    before = (plain.operating.facility_power_w.value or 0) / 1.2
    assert (lossy.facility_power_w.value or 0) / 1.2 == pytest.approx((before + 13 * nodes) / 0.98)
    assert plain.operating.carbon_kg.value is None


def test_goodput_is_a_chain() -> None:
    found = estimate()
    chain = (found.operating.scheduling.value or 0) * (found.figures.ettr.value or 0) * (found.figures.mfu.value or 0)
    assert found.operating.goodput.value == pytest.approx(chain)
    spare = estimate(pool={"count": 128}).operating
    assert (spare.scheduling.value or 0) > (found.operating.scheduling.value or 0), "nodes that the plan leaves free"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"storage": {"write": "0 GB/s"}}, "storage.write is zero"),
        ({"failures": {"card": "0 d"}}, "failures.card is no mean time"),
        ({"pool": {"failures": {"domains": [{"name": "rack", "cards": 64, "mtbf": "0 d"}]}}}, "domains.rack.mtbf"),
        ({"facility": {"fixed": 0.1}}, "together"),
        ({"recovery": {"interval": "0 s"}}, "interval is zero"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        estimate(**more)
    assert caught.value.hint


def test_a_key_that_is_not_there_is_named() -> None:
    text = json.dumps({"schema": "zhenfa.machine/1", "name": "mine", "pools": [POOL], "failures": {"cards": "9 d"}})
    with pytest.raises(DocumentError, match="Did you mean 'card'"):
        Machine.from_text(text)


def test_what_is_not_known_by_name_is_said_with_a_near_miss() -> None:
    with pytest.raises(UnknownNameError, match="china-east"):
        estimate(grid="china-eats")
    with pytest.raises(UnknownNameError, match="rectifier"):
        estimate(facility={"converters": ["rectifyer"]})
    with pytest.raises(InputError, match="more than zero"):
        estimate(assume={"cards.failures.card": "0 d"})


def test_the_json_document_carries_it() -> None:
    shown = to_document(answer(), 1).to_data()["plans"][0]["operating"]
    assert shown["mtbf_s"]["value"] > 0
    assert set(shown["failures_per_day"]) >= {"cards: card", "software"}


def test_emulated_cards_do_not_fail() -> None:
    asked = Job.model_validate({
        "name": "case", "model": "tiny-byte-gpt", "machine": "emulated-quartet",
        "workload": {"sequence_length": 128, "global_batch": 16, "precision": "fp32"},
    })  # fmt: skip
    assert catalog.resolve(catalog.machine("emulated-quartet")).emulated
    assert find_plans(make_request(asked)).best.estimate.operating.mtbf_s.value is None
