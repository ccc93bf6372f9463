"""Groups of cards that share out each micro-batch of their replica train the same model, and save and recover it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_pools import LENGTH, TINY, formation, pipeline, plan, pool, reference_losses
from test_live_training import reference
from zhenfa import catalog
from zhenfa.errors import CapabilityError
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.doctor.preflight import exchanges
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.hops import received, sent, standing
from zhenfa.live.placement import place
from zhenfa.live.run import run_plan
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.search import Best, Tally
from zhenfa.spec.job import Bridge, Execution, Limits, Workload
from zhenfa.spec.machine import Tier
from zhenfa.spec.plan import Pipeline

MACHINE = formation(pool("a", 4), pool("b", 4), pool("c", 1))
EXECUTION = Execution(steps=3, learning_rate=1e-3, seed=7)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


def shared(one: Pipeline, *groups: int, tensors: Sequence[int] = ()) -> Pipeline:
    """The pipeline with its micro-batches shared out over so many groups on each stage."""
    degrees = tensors or [1] * len(groups)
    stages = [
        stage.model_copy(update={"data_parallel": each, "tensor_parallel": degree})
        for stage, each, degree in zip(one.stages, groups, degrees, strict=True)
    ]
    return one.model_copy(update={"stages": tuple(stages)})


def interleaved(virtual: int, *groups: int) -> Pipeline:
    found = pipeline([2, 2, 2, 2], "abab" if virtual == 2 else "abcb", 4, size=2)
    return shared(found, *groups).model_copy(update={"virtual_stages": virtual})


V = pipeline([2, 2, 2, 2], "abba", 4, size=2).model_copy(update={"virtual_stages": 2})

PLANS = {
    "one stage": plan(shared(pipeline([8], "a", 2, size=2), 2)),
    "two cards, then one": plan(shared(pipeline([5, 3], "ab", 3, size=2), 2, 1)),
    "one card, then two": plan(shared(pipeline([3, 5], "ab", 3, size=2), 1, 2)),
    "two cards, then two": plan(shared(pipeline([4, 4], "ab", 2, size=4), 2, 2)),
    "four cards, two, one": plan(shared(pipeline([4, 3, 1], "abc", 3, size=4), 4, 2, 1)),
    "two cards, then three": plan(shared(pipeline([4, 4], "ab", 2, size=6), 2, 3)),
    "tensor-parallel groups": plan(shared(pipeline([5, 3], "ab", 3, size=2), 2, 1, tensors=(2, 1))),
    "a group of two, then two cards": plan(shared(pipeline([4, 4], "ab", 2, size=2), 1, 2, tensors=(2, 1))),
    "replicas of unlike widths": plan(
        shared(pipeline([5, 3], "ab", 2, size=2), 2, 1), shared(pipeline([6, 2], "ab", 3), 1, 1)
    ),
    "interleaved": plan(interleaved(2, 2, 1, 2, 1), schedule="interleaved"),
    "zero bubble": plan(shared(pipeline([4, 4], "ab", 4, size=2), 1, 2), schedule="zero-bubble"),
    "zero bubble, as a V": plan(shared(V, 2, 1, 1, 2), schedule="zero-bubble-v"),
    "dualpipe": plan(shared(pipeline([4, 4], "ab", 4, size=2), 2, 1), schedule="dualpipe"),
    "recomputing": plan(shared(pipeline([4, 4], "ab", 2, size=2, recompute="full"), 2, 1)),
}


@pytest.mark.live
@pytest.mark.parametrize(("name", "tied"), [*((name, False) for name in PLANS), ("two cards, then one", True)])
def test_losses_equal_one_process(engine: LocalEngine, name: str, tied: bool) -> None:
    chosen, sizes = PLANS[name], replace(TINY, tied=tied)
    run = run_plan(chosen, MACHINE, sizes, EXECUTION, engine=engine)
    expected = reference_losses(sizes, EXECUTION, steps=3, global_batch=chosen.global_batch)
    assert run.losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.live
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["two cards, then one", "tensor-parallel groups"])
def test_clipping_and_evaluation_count_every_weight_once(engine: LocalEngine, name: str, zero: int) -> None:
    from test_live_training import EXECUTION as CLIPPING

    chosen = PLANS[name].model_copy(update={"zero": zero})
    losses, norms, held_out = reference(TINY, chosen.global_batch)
    run = run_plan(chosen, MACHINE, TINY, CLIPPING, engine=engine)
    assert run.losses == pytest.approx(losses, rel=1e-5)
    assert run.gradient_norms == pytest.approx(norms, rel=1e-5)
    assert [one.loss for one in run.evaluations] == pytest.approx(held_out, rel=1e-5)


@pytest.mark.live
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_checkpoints_are_resumed_under_other_layouts(engine: LocalEngine, zero: int, tmp_path: Path) -> None:
    chosen = PLANS["two cards, then one"].model_copy(update={"zero": zero})
    execution = EXECUTION.model_copy(update={"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 5})
    whole = run_plan(chosen, MACHINE, TINY, execution, engine=engine, out_dir=tmp_path / "whole")
    half = tmp_path / "whole" / "checkpoint-000002"
    for number, other in enumerate((chosen, plan(pipeline([8], "c", 6)), PLANS["tensor-parallel groups"])):
        rest = run_plan(other, MACHINE, TINY, execution, engine=engine, out_dir=tmp_path / f"rest{number}", resume=half)
        if other is chosen:
            assert rest.losses == whole.losses[2:]
        assert rest.losses == pytest.approx(whole.losses[2:], rel=1e-5)


@pytest.mark.live
def test_bf16_sums_what_equal_replicas_would(engine: LocalEngine) -> None:
    chosen = PLANS["two cards, then one"].model_copy(update={"precision": "bf16"})
    alone = plan(pipeline([8], "c", 6)).model_copy(update={"precision": "bf16"})
    losses = [run_plan(one, MACHINE, TINY, EXECUTION, engine=engine).losses for one in (chosen, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


@pytest.mark.live
def test_parts_of_micro_batches_cross_the_bridge_compressed(engine: LocalEngine) -> None:
    """A message in parts is as many bytes as one whole: the format counts numbers, and its blocks fill."""
    execution = Execution(**EXECUTION.model_dump() | {"bridge": Bridge(activations="int8", gradients="bf16")})
    chosen = PLANS["two cards, then one"]
    run = run_plan(chosen, MACHINE, TINY, execution, engine=engine)
    whole = run_plan(plan(pipeline([5, 3], "ab", 3, size=2)), MACHINE, TINY, execution, engine=engine)
    assert run.losses == pytest.approx(whole.losses, rel=1e-3)
    assert run.bridge is not None
    assert whole.bridge is not None
    assert run.bridge.bytes_sent["activations"] == whole.bridge.bytes_sent["activations"]


@pytest.mark.live
@pytest.mark.parametrize(("kind", "action"), [("kill", "restart"), ("lose", "re-form")])
def test_a_run_goes_on_when_one_of_two_cards_dies(kind: str, action: str, tmp_path: Path) -> None:
    execution = EXECUTION.model_copy(update={"steps": 4})
    execution = Execution(**execution.model_dump() | {"faults": ({"kind": kind, "step": 3, "card": 1},)})
    run = run_plan(
        PLANS["two cards, then one"], formation(pool("a", 2), pool("b", 2)), TINY, execution, out_dir=tmp_path,
        replan=lambda _: plan(shared(pipeline([3, 5], "ab", 3, size=2), 1, 2)),
    )  # fmt: skip
    assert [incident.action for incident in run.incidents] == [action]
    assert run.losses == pytest.approx(reference_losses(TINY, execution, steps=4, global_batch=6), rel=1e-5)


@pytest.mark.live
def test_the_planner_shares_micro_batches_out_where_that_is_quicker(engine: LocalEngine) -> None:
    """Two cards that are twice as fast as a third, and a batch of eight."""
    tier = Tier(name="board", size=2, bandwidth="100 MB/s", latency="1 ms", topology="switch")
    machine = formation(pool("quick", 2, 6e8, [tier]), pool("slow", 1, 3e8, [tier]))
    model = catalog.model("tiny-byte-gpt")
    workload = Workload(sequence_length=LENGTH, global_batch=8, precision="fp32")
    found = []
    for traits in (OWN_RUNTIME, OWN_RUNTIME.but(shares_batches=False)):
        best = Best(5)
        search_mixed(look_up(model.graph(), workload, machine, traits), "test", 8, Limits(), best, Tally())
        found.append(best.ranked()[0])
    assert found[0].step < found[1].step
    assert any(stage.data_parallel == 2 for stage in found[0].plan.pipelines[0].stages)
    run = run_plan(found[0].plan, machine, model, EXECUTION, engine=engine)
    assert run.losses[-1] < run.losses[0]
    assert len(run.stages) == 3


# Who sends which rows to whom.


@given(
    st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.integers(1, 3),
    st.integers(1, 2),
)  # fmt: skip
def test_each_row_reaches_each_card_once(
    here: int, there: int, split: int, other_split: int, times: int, replicas: int
) -> None:
    size = math.lcm(here, there) * times
    two = shared(pipeline([4, 4], "ab", 2, size=size), here, there, tensors=(split, other_split))
    places = place(plan(two.model_copy(update={"count": replicas})), formation(pool("a", 24), pool("b", 24)), TINY)
    assert sorted(number for one in places if one.is_first and not one.tensor for number in one.sequences) == [
        *range(2 * size * replicas)
    ]
    for number in range(replicas):
        stages = standing(places, number)
        assert [len(groups) for groups in stages] == [here, there]
        for one in places:
            if one.pipeline != number:
                continue
            groups = stages[1 - one.stage]
            coming = [(rows.rank, row) for rows in received(one, groups) for row in range(rows.first, rows.last)]
            assert [row for _, row in coming] == [*range(one.micro_batch_size)]
            begin = one.group * one.micro_batch_size
            given = Counter(
                (peer.rank, peer.group * peer.micro_batch_size + row - begin)
                for group in groups
                for peer in (places[rank] for rank in group)
                for rows in sent(peer, stages[one.stage])
                if rows.rank == one.rank
                for row in range(rows.first, rows.last)
            )
            assert given == Counter(coming)
            assert here != there or [rows.beside for rows in received(one, groups)] == [1.0]
            for rows in received(one, groups):
                assert rows.beside * (rows.last - rows.first) == pytest.approx(size / min(here, there))


def test_cards_of_a_stage_are_named_by_their_part() -> None:
    places = place(PLANS["two cards, then one"], MACHINE, TINY)
    assert [one.label for one in places] == [
        "card 0 (a card, pool a, stage 0 of pipeline 0, part 0 of 2)",
        "card 1 (a card, pool a, stage 0 of pipeline 0, part 1 of 2)",
        "card 2 (b card, pool b, stage 1 of pipeline 0)",
    ]
    assert [one.sequences for one in places] == [[0, 2, 4], [1, 3, 5], [0, 1, 2, 3, 4, 5]]


def test_a_group_that_shares_state_out_is_all_who_hold_the_same() -> None:
    chosen = plan(shared(pipeline([4, 4], "ab", 2, size=2), 2, 2), zero=1)
    place(chosen.model_copy(update={"shard_group": 2}), MACHINE, TINY)
    with pytest.raises(CapabilityError, match="several shard groups"):
        place(chosen.model_copy(update={"shard_group": 1}), MACHINE, TINY)


def test_messages_in_parts_are_tried_before_a_run() -> None:
    places = place(PLANS["four cards, two, one"], MACHINE, TINY)
    messages = [(one.ranks, one.size) for one in exchanges(PLANS["four cards, two, one"], places, TINY)]
    row = LENGTH * TINY.hidden * 4
    hops = [((0, 4), row), ((1, 4), row), ((2, 5), row), ((3, 5), row), ((4, 6), 2 * row), ((5, 6), 2 * row)]
    assert messages[:6] == hops
