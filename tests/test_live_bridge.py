"""What crosses the bridge between makers: compressed, summed alike on every card, refused when it is nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bridge_cards import COUNT, ROUNDS, beside, sums, together, vector, ways
from live_pools import LENGTH, TINY, formation, pipeline, plan, pool, reference_losses
from test_live_tensor import split
from zhenfa.live.codec import BLOCK, packed_bytes
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Bridge, Execution
from zhenfa.spec.plan import Plan

pytestmark = pytest.mark.live

KINDS = ["none", "bf16", "int8"]
MACHINE = formation(pool("a", 4), pool("b", 2), pool("c", 2))
REPLICAS = plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2))
LAYOUTS = {
    "two replicas, other splits": REPLICAS,
    "state shared out": REPLICAS.model_copy(update={"zero": 1}),
    "matrices split alike": plan(split(pipeline([8], "a", 4), 2), split(pipeline([8], "b", 2), 2)),
    "matrices split alike, state shared out": plan(
        split(pipeline([8], "a", 4), 2), split(pipeline([8], "b", 2), 2), zero=1
    ),
    "matrices split unlike": plan(pipeline([8], "b", 4), split(pipeline([6, 2], "aa", 2), 2, 1)),
    "several cards of a maker": plan(*(pipeline([8], [name], 2) for name in "aabc")),
}
COMPRESSED = Execution(
    steps=4, learning_rate=1e-3, seed=7, bridge={"activations": "int8", "gradients": "int8"}, checkpoint_every=2,
    keep_checkpoints=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


def test_sums_beside_do_not_get_in_the_way_of_those_of_a_crew(tmp_path: Path) -> None:
    assert together(beside, tmp_path) == [{(2.0 * COUNT, 16.0)}] * 2 + [set()] * 3


def test_every_card_comes_to_the_same_sum(tmp_path: Path) -> None:
    cards = together(sums, tmp_path, KINDS)
    exact = [sum(vector(rank, step).double() for rank in range(5)).numpy() for step in range(ROUNDS)]
    apart = {}
    for kind in KINDS:
        rows = [card[kind] for card in cards]
        for step in range(ROUNDS):
            assert all(np.array_equal(row["rows"][step], rows[0]["rows"][step]) for row in rows), "to the bit"
        assert all(np.array_equal(row["again"], rows[0]["again"]) for row in rows)
        assert all(np.isnan(row["bad"][7]) for row in rows), "a poisoned gradient is seen by all"
        assert np.isfinite(rows[0]["again"]).all(), "and leaves nothing behind"
        for owner, row in enumerate(rows):
            part = sum(vector(rank, owner).double() for rank in range(5)).numpy()
            assert np.abs(row["part"] - part).max() < {"none": 1e-5, "bf16": 0.02, "int8": 0.06}[kind]
        apart[kind] = np.abs(np.sum(rows[0]["rows"], axis=0) - np.sum(exact, axis=0)).max()
        left = sum(card[kind]["kept"].get("w", np.zeros(COUNT)) for card in cards)
        whole = np.sum([row.astype(float) for row in rows[0]["rows"]], axis=0) + left
        assert whole == pytest.approx(np.sum(exact, axis=0), abs=2e-5), "nothing is lost: what is cut off is kept"
        assert [row["packs"] for row in rows] == [kind != "none" and rank in (0, 2, 3) for rank in range(5)]
        sent = [row["volume"] for row in rows]
        size = 2 * packed_bytes(kind, COUNT, 4)
        ring = 2 * 4 / 5 * COUNT * 4
        heads = {0, 2, 3} if kind != "none" else {1, 2, 4}  # in a plain ring, the last card of each maker
        expected = (ring, ring) if kind == "none" else (2 * COUNT * 4, size)
        assert sent == [expected if rank in heads else (0.0, 0.0) for rank in range(5)]
    assert apart["none"] < 1e-5
    assert apart["int8"] < 0.06, "six steps are off by what is cut off in one"


def test_cards_of_one_maker_keep_their_tensors_and_others_go_through_the_host(tmp_path: Path) -> None:
    found = together(ways, tmp_path)
    assert [row.get("own", (None, None))[:2] for row in found] == [
        ("gloo", False), ("gloo", False), (None, None), ("gloo", False), ("gloo", False),
    ]  # fmt: skip
    assert all(row["mixed"][:2] == ("gloo", True) for row in found)
    assert [row["mixed"][2] for row in found] == [[10.0, 15.0, 20.0, 25.0]] * 5
    assert found[3]["own"][2] == [7.0, 9.0, 11.0, 13.0]
    assert found[1]["own"][4:] == ([1.0, 2.0, 3.0, 4.0], [[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]],
                                   [0.0, 1.0, 2.0, 3.0], 1.0)  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_compressed_training_stays_near_and_is_resumed_to_the_bit(
    engine: LocalEngine, name: str, tmp_path: Path
) -> None:
    chosen: Plan = LAYOUTS[name]
    whole = run_plan(chosen, MACHINE, TINY, COMPRESSED, engine=engine, out_dir=tmp_path / "whole")
    expected = reference_losses(TINY, COMPRESSED, steps=4, global_batch=chosen.global_batch)
    assert whole.losses == pytest.approx(expected, rel=2e-3)
    assert whole.losses != pytest.approx(expected, rel=1e-7), "something was compressed"
    half = tmp_path / "whole" / "checkpoint-000002"
    rest = run_plan(chosen, MACHINE, TINY, COMPRESSED, engine=engine, out_dir=tmp_path / "rest", resume=half)
    assert rest.losses == whole.losses[2:]
    other = plan(pipeline([5, 3], "ab", chosen.global_batch))
    moved = run_plan(other, MACHINE, TINY, COMPRESSED, engine=engine, out_dir=tmp_path / "o", resume=half)
    assert moved.losses == pytest.approx(whole.losses[2:], rel=2e-3), "another layout goes on from there as well"


@pytest.mark.parametrize("kind", ["nan", "kill"])
def test_a_fault_leaves_no_trace_in_compressed_training(kind: str, tmp_path: Path) -> None:
    quiet = COMPRESSED.model_copy(update={"checkpoint_every": 0, "steps": 6})
    loud = Execution(**quiet.model_dump() | {"faults": ({"kind": kind, "step": 5, "card": 1},)})
    with LocalEngine(protect=False) as engine:
        calm = run_plan(REPLICAS, MACHINE, TINY, quiet, engine=engine)
        run = run_plan(REPLICAS, MACHINE, TINY, loud, engine=engine)
    assert [one.kind for one in run.incidents] == [{"nan": "poison", "kill": "death"}[kind]]
    assert run.losses == calm.losses, "to the bit: what packing cut off is a part of the state"


def test_the_run_says_what_crossed_and_what_it_did_to_the_loss(engine: LocalEngine) -> None:
    chosen = plan(pipeline([5, 3], "ab", 4, size=2), pipeline([8], "b", 2))
    execution = Execution(
        steps=4, learning_rate=1e-3, bridge={"activations": "bf16", "gradients": "int8", "compare_steps": 3}
    )
    run = run_plan(chosen, MACHINE, TINY, execution, engine=engine)
    assert run.bridge is not None
    features = 2 * LENGTH * TINY.hidden * 4
    shared = TINY.parameters - 3 * TINY.layer_parameters - TINY.vocabulary * TINY.hidden - TINY.hidden
    padded = shared + (5 * 2) * (BLOCK - TINY.hidden)  # a block holds numbers of one weight, and norms are short
    assert run.bridge.bytes_raw == {"activations": 8 * features, "gradients": 2 * 4 * shared}
    assert run.bridge.bytes_sent["activations"] == 4 * features
    assert run.bridge.bytes_sent["gradients"] == 2 * packed_bytes("int8", padded, 4)
    compared = run.bridge.uncompressed
    assert compared is not None
    assert compared.steps == 3
    assert compared.bytes_sent == sum(run.bridge.bytes_raw.values())
    plain = run_plan(chosen, MACHINE, TINY, execution.model_copy(update={"bridge": Bridge()}), engine=engine)
    gaps = [one / other - 1 for one, other in zip(run.losses[:3], plain.losses[:3], strict=True)]
    assert compared.loss_difference == pytest.approx(max(abs(gap) for gap in gaps))
    assert compared.last_loss_difference == pytest.approx(gaps[-1])
    assert plain.bridge is not None
    assert plain.bridge.bytes_sent == plain.bridge.bytes_raw == run.bridge.bytes_raw
    assert plain.bridge.uncompressed is None
    alone = run_plan(plan(pipeline([5, 3], "aa", 4)), MACHINE, TINY, execution, steps=1, engine=engine)
    assert alone.bridge is None, "inside a maker nothing is compressed"


def test_links_are_charged_for_what_is_sent() -> None:
    machine = formation(pool("x", 1, speed=1e9), pool("y", 1, speed=1e9), bandwidth="1 MB/s", latency="3 ms")
    chosen = plan(pipeline([5, 3], "xy", 2))
    features = LENGTH * TINY.hidden
    with LocalEngine(protect=False) as engine:
        for kind in KINDS:
            run = run_plan(chosen, machine, TINY, Execution(steps=2, bridge={"activations": kind}), engine=engine)
            sends = [event for event in run.events if event.kind == "send"]
            assert len(sends) == 4
            size = packed_bytes(kind, features, 4)  # type: ignore[arg-type]
            assert all(one.end_s - one.start_s == pytest.approx(3e-3 + size / 1e6) for one in sends)
            assert sum(event.kind == "packing" for event in run.events) == (0 if kind == "none" else 8)


def test_formats_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValidationError, match="activations"):
        Execution(bridge={"activations": "int4"})
    assert not Bridge().compresses
    assert Bridge(gradients="bf16").compresses


def test_overlapped_sums_are_the_same_to_the_bit() -> None:
    machine = formation(pool("x", 2, speed=2e9), pool("y", 2, speed=1e9), bandwidth="50 MB/s", latency="20 us")
    for schedule in ("1f1b", "zero-bubble"):
        chosen = plan(pipeline([5, 3], "xy", 4), pipeline([2, 6], "xy", 2), schedule=schedule)
        with LocalEngine(protect=False) as engine:
            losses = [
                run_plan(
                    chosen, machine, TINY, Execution(steps=3, learning_rate=1e-3, overlap_gradient_sum=overlap),
                    engine=engine,
                ).losses
                for overlap in (True, False)
            ]  # fmt: skip
        assert losses[0] == losses[1]
        assert torch.tensor(losses).isfinite().all()
