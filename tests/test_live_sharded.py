"""Weights and gradients shared out by rows (ZeRO-2 and ZeRO-3) train, save and recover like whole ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from test_live_experts import ROUTED
from test_live_tensor import split
from zhenfa.errors import CapabilityError, RunError
from zhenfa.live import checkpoint
from zhenfa.live.decoder import StageModule
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.placement import place
from zhenfa.live.run import run_plan
from zhenfa.live.shard_layout import Presence, arrivals, course_of, rows_of, shared_parts, times_of, worked
from zhenfa.spec.job import Bridge, Execution, Fault
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Pipeline, Plan, Schedule
from zhenfa.spec.result import Run

MACHINE = formation(pool("a", 4), pool("b", 2), pool("c", 2))
EXECUTION = Execution(steps=3, learning_rate=1e-3, seed=7)
CLIPPED = EXECUTION.model_copy(update={"clip_gradient_norm": 0.7, "evaluate_every": 2, "evaluate_batches": 2})


def virtual(one: Pipeline) -> Pipeline:
    return one.model_copy(update={"virtual_stages": 2})


UNEQUAL = plan(pipeline([8], "a", 3), pipeline([8], "b", 2))
"""Two makers, one replica each, with unequal shares of the batch."""
CUT = plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2))
PLANS = {
    "two makers, unequal shares": UNEQUAL,
    "replicas cut differently": CUT,
    "three replicas": plan(pipeline([5, 3], "ac", 2), pipeline([8], "a", 3), pipeline([2, 6], "bc", 1)),
    "recomputing": plan(pipeline([6, 2], "ac", 4, recompute="full"), pipeline([3, 5], "bc", 2, recompute="full")),
    "gpipe, larger micro-batches": plan(pipeline([8], "a", 2, size=3), pipeline([4, 4], "bb", 2), schedule="gpipe"),
    "zero bubble": CUT.model_copy(update={"schedule": "zero-bubble"}),
    "there and back": plan(
        virtual(pipeline([2, 2, 2, 2], "abba", 4)), virtual(pipeline([2, 2, 2, 2], "acca", 4)), schedule="zero-bubble-v"
    ),
    "interleaved": plan(
        virtual(pipeline([2, 2, 2, 2], "abab", 4)), virtual(pipeline([1, 3, 3, 1], "acac", 2)), schedule="interleaved"
    ),
    "dualpipe": plan(pipeline([4, 4], "ab", 4), pipeline([4, 4], "ac", 4), schedule="dualpipe"),
    "matrices split": plan(split(pipeline([8], "a", 3), 2), split(pipeline([8], "b", 2), 2)),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


def shared(chosen: Plan, zero: int, **more: object) -> Plan:
    return chosen.model_copy(update={"zero": zero, **more})


def held(run: Run, part: str) -> list[float]:
    """What each card holds, which several stages may stand on."""
    return list({stage.card: stage.memory_parts.get(part, 0.0) for stage in run.stages}.values())


@pytest.mark.live
@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("name", PLANS)
def test_the_same_losses_with_less_memory(engine: LocalEngine, name: str, zero: int) -> None:
    chosen = PLANS[name]
    whole = run_plan(chosen, MACHINE, TINY, CLIPPED, engine=engine)
    run = run_plan(shared(chosen, zero), MACHINE, TINY, CLIPPED, engine=engine)
    assert run.losses == pytest.approx(whole.losses, rel=1e-6)
    assert run.gradient_norms == pytest.approx(whole.gradient_norms, rel=1e-5)
    assert [one.loss for one in run.evaluations] == pytest.approx([one.loss for one in whole.evaluations], rel=1e-5)
    assert sum(held(run, "optimizer")) == pytest.approx(2 * 4 * TINY.parameters, rel=0.02), "each once"
    assert all(one < 0.6 * two for one, two in zip(held(run, "optimizer"), held(whole, "optimizer"), strict=True))
    if zero == 3:
        weights, before = held(run, "parameters"), held(whole, "parameters")
        assert all(one < 0.6 * two for one, two in zip(weights, before, strict=True))


@pytest.mark.live
@pytest.mark.parametrize("zero", [2, 3])
def test_losses_equal_one_process(engine: LocalEngine, zero: int) -> None:
    for chosen in (UNEQUAL, CUT):
        run = run_plan(shared(chosen, zero), MACHINE, TINY, EXECUTION, engine=engine)
        expected = reference_losses(TINY, EXECUTION, steps=3, global_batch=chosen.global_batch)
        assert run.losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.live
def test_each_stage_holds_what_it_says(engine: LocalEngine) -> None:
    """Deep enough that one layer is little: bytes of each kind against those of whole weights, four cards sharing."""
    deep = replace(TINY, layers=24)
    chosen = plan(pipeline([24], "a", 3).model_copy(update={"count": 4}))
    runs = {
        zero: run_plan(shared(chosen, zero), MACHINE, deep, EXECUTION.model_copy(update={"steps": 2}), engine=engine)
        for zero in (0, 1, 2, 3)
    }
    parts = {zero: {part: max(held(run, part)) for part in ("parameters", "gradients", "optimizer", "gathered")}
             for zero, run in runs.items()}  # fmt: skip
    whole = 4 * deep.parameters
    assert parts[0] == {"parameters": whole, "gradients": whole, "optimizer": 2 * whole, "gathered": 0}
    largest = 4 * max(deep.layer_parameters, deep.vocabulary * deep.hidden)
    assert parts[2]["parameters"] == whole
    for zero in (2, 3):
        assert parts[zero]["optimizer"] == pytest.approx(2 * whole / 4, rel=0.01)
        assert whole / 4 < parts[zero]["gradients"] <= 1.01 * (whole / 4 + 3 * largest)
    assert parts[3]["parameters"] == pytest.approx(whole / 4, rel=0.01)
    assert 0 < parts[3]["gathered"] <= 2 * largest
    sums = [sum(parts[zero].values()) for zero in (0, 1, 2, 3)]
    assert sums == sorted(sums, reverse=True)
    assert sums[3] < 0.4 * sums[0]


@pytest.mark.live
def test_weights_are_dropped_as_the_plan_says(engine: LocalEngine) -> None:
    runs = [run_plan(shared(CUT, 3, reshard=reshard), MACHINE, TINY, EXECUTION, engine=engine)
            for reshard in ("layer", "micro-batch", "step")]  # fmt: skip
    assert runs[0].losses == runs[1].losses == runs[2].losses
    layer, micro, step = (sum(held(run, "gathered")) for run in runs)
    assert layer < 0.5 * micro
    assert layer < 0.5 * step
    whole = sum(held(run_plan(CUT, MACHINE, TINY, EXECUTION, engine=engine), "parameters"))
    assert step >= whole


@pytest.mark.live
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_may_leave_once_a_step(engine: LocalEngine, precision: str) -> None:
    chosen = CUT.model_copy(update={"precision": precision})
    whole = run_plan(chosen, MACHINE, TINY, CLIPPED, engine=engine)
    late = run_plan(shared(chosen, 3, reduce_every="step"), MACHINE, TINY, CLIPPED, engine=engine)
    often = run_plan(shared(chosen, 3), MACHINE, TINY, CLIPPED, engine=engine)
    tolerance = 1e-6 if precision == "fp32" else 2e-4
    assert late.losses == pytest.approx(whole.losses, rel=tolerance)
    assert often.losses == pytest.approx(whole.losses, rel=tolerance)
    assert all(one < two for one, two in zip(held(often, "gradients"), held(late, "gradients"), strict=True))


@pytest.mark.live
@pytest.mark.parametrize("zero", [2, 3])
def test_sixteen_bits_keep_a_wide_copy_of_their_rows_alone(engine: LocalEngine, zero: int) -> None:
    narrow = UNEQUAL.model_copy(update={"precision": "bf16"})
    whole = run_plan(narrow, MACHINE, TINY, EXECUTION, engine=engine)
    run = run_plan(shared(narrow, zero), MACHINE, TINY, EXECUTION, engine=engine)
    assert run.losses == pytest.approx(whole.losses, rel=2e-4)
    assert sum(held(run, "optimizer")) == 12 * TINY.parameters
    assert sum(held(run, "parameters")) == 2 * TINY.parameters * (2 if zero == 2 else 1)


@pytest.mark.live
@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("sizes", [replace(TINY, tied=True), replace(TINY, gated=False, kv_heads=4)])
def test_other_models_too(engine: LocalEngine, sizes: object, zero: int) -> None:
    for chosen in (UNEQUAL, CUT):
        run = run_plan(shared(chosen, zero), MACHINE, sizes, EXECUTION, engine=engine)
        expected = reference_losses(sizes, EXECUTION, steps=3, global_batch=chosen.global_batch)
        assert run.losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.live
@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("experts", [1, 2])
def test_mixtures_share_out_their_experts_rows(engine: LocalEngine, zero: int, experts: int) -> None:
    one = pipeline([4], "a", 2)
    stages = tuple(stage.model_copy(update={"expert_parallel": experts}) for stage in one.stages)
    chosen = plan(one.model_copy(update={"count": 4, "stages": stages}))
    whole = run_plan(chosen, MACHINE, ROUTED, EXECUTION, engine=engine)
    run = run_plan(shared(chosen, zero), MACHINE, ROUTED, EXECUTION, engine=engine)
    assert run.losses == pytest.approx(whole.losses, rel=1e-5)
    assert all(one < 0.55 * two for one, two in zip(held(run, "optimizer"), held(whole, "optimizer"), strict=True))


@pytest.mark.live
@pytest.mark.parametrize("zero", [2, 3])
def test_a_checkpoint_of_rows_is_whole(engine: LocalEngine, tmp_path: Path, zero: int) -> None:
    for number, name in enumerate(("three replicas", "matrices split")):
        folder = tmp_path / str(number)
        run = run_plan(shared(PLANS[name], zero), MACHINE, TINY, EXECUTION, engine=engine, out_dir=folder)
        plain = run_plan(PLANS[name], MACHINE, TINY, EXECUTION, engine=engine, out_dir=folder / "plain")
        states = []
        for path in (run.checkpoint, plain.checkpoint):
            module = StageModule(TINY, 0, 8, stem=True, head=True, seed=99)
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
            assert checkpoint.load(Path(path or ""), module, optimizer)["step"] == 3
            states.append((module, optimizer))
        for one, other in zip(states[0][0].parameters(), states[1][0].parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)
            mine, theirs = states[0][1].state[one], states[1][1].state[other]
            assert int(mine["step"]) == 3
            assert torch.allclose(mine["exp_avg"], theirs["exp_avg"], atol=1e-7)
            assert torch.allclose(mine["exp_avg_sq"], theirs["exp_avg_sq"], atol=1e-9)


@pytest.mark.live
def test_resumed_to_the_bit_there_and_nearly_elsewhere(engine: LocalEngine, tmp_path: Path) -> None:
    execution = Execution(steps=6, learning_rate=1e-3, seed=7, clip_gradient_norm=0.7, checkpoint_every=3)

    def gone_on(first: Plan, then: Plan, name: str) -> tuple[Run, Run]:
        half = run_plan(first, MACHINE, TINY, execution, steps=3, engine=engine, out_dir=tmp_path / name)
        path = Path(half.checkpoint or "")
        return half, run_plan(then, MACHINE, TINY, execution, engine=engine, resume=path)

    expected = run_plan(CUT, MACHINE, TINY, execution, engine=engine).losses
    for number, chosen in enumerate((shared(CUT, 2), shared(CUT, 3), shared(CUT, 3, precision="bf16"))):
        straight = run_plan(chosen, MACHINE, TINY, execution, engine=engine)
        half, rest = gone_on(chosen, chosen, f"same {number}")
        assert half.losses + rest.losses == straight.losses, "to the bit"
    ways = [(shared(CUT, 3), CUT), (CUT, shared(CUT, 3)), (shared(CUT, 1), shared(CUT, 2)),
            (shared(CUT, 3), shared(PLANS["three replicas"], 1)), (shared(PLANS["three replicas"], 2), shared(CUT, 3)),
            (shared(CUT, 3), shared(PLANS["matrices split"], 3))]  # fmt: skip
    for number, way in enumerate(ways):
        first, then = (one.model_copy(update={"pipelines": _batch_of_six(one)}) for one in way)
        half, rest = gone_on(first, then, str(number))
        assert half.losses + rest.losses == pytest.approx(expected, rel=1e-5)


def _batch_of_six(chosen: Plan) -> tuple[Pipeline, ...]:
    """The pipelines with their shares changed so that the batch is that of ``CUT``."""
    more = CUT.global_batch - chosen.global_batch
    first = chosen.pipelines[0]
    return (first.model_copy(update={"micro_batches": first.micro_batches + more}), *chosen.pipelines[1:])


@pytest.mark.live
@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize(
    ("kind", "what"), [("kill", "death"), ("hang", "hang"), ("nan", "poison"), ("scale", "poison")]
)
def test_a_fault_changes_no_loss(engine: LocalEngine, kind: str, what: str, zero: int) -> None:
    execution = Execution(steps=6, learning_rate=1e-3, seed=7, faults=(Fault(step=4, card=1, kind=kind, factor=1e4),))
    run = run_plan(shared(CUT, zero), MACHINE, TINY, execution, engine=engine)
    assert [incident.kind for incident in run.incidents] == [what]
    assert run.losses == pytest.approx(reference_losses(TINY, execution, steps=6, global_batch=6), rel=1e-5)


@pytest.mark.live
def test_a_lost_card_s_rows_come_back_under_another_plan(engine: LocalEngine) -> None:
    machine = formation(pool("a", 2), pool("b", 1))
    chosen = shared(plan(pipeline([8], "a", 2), pipeline([8], "a", 2), pipeline([5 + 3], "b", 2)), 3)

    def left(here: Formation) -> Plan:
        assert {one.name: one.count for one in here.pools} == {"a": 1, "b": 1}
        return shared(plan(pipeline([8], "a", 4), pipeline([8], "b", 2)), 3)

    execution = Execution(steps=6, learning_rate=1e-3, seed=7, faults=(Fault(step=4, card=1, kind="lose"),))
    run = run_plan(chosen, machine, TINY, execution, replan=left)
    assert [incident.action for incident in run.incidents] == ["re-form"]
    assert run.losses == pytest.approx(reference_losses(TINY, execution, steps=6, global_batch=6), rel=1e-5)


def test_what_cannot_be_shared_out_is_refused() -> None:
    unlike = plan(split(pipeline([8], "a", 2), 2), pipeline([8], "b", 2))
    with pytest.raises(CapabilityError, match="ZeRO-3 over replicas that split layer 0 over 1 and 2 cards") as told:
        run_plan(shared(unlike, 3), MACHINE, TINY)
    assert "tensor_parallel: 1 in every replica" in (told.value.hint or "")
    packed = EXECUTION.model_copy(update={"bridge": Bridge(gradients="int8")})
    with pytest.raises(CapabilityError, match=r"ZeRO-2 and execution\.bridge\.gradients for int8"):
        run_plan(shared(UNEQUAL, 2), MACHINE, TINY, packed)
    with pytest.raises(CapabilityError, match="several shard groups"):
        run_plan(shared(plan(pipeline([8], "a", 2).model_copy(update={"count": 4})), 3, shard_group=2), MACHINE, TINY)


@pytest.mark.live
def test_a_checkpoint_of_another_model_is_refused(engine: LocalEngine, tmp_path: Path) -> None:
    run = run_plan(shared(UNEQUAL, 3), MACHINE, TINY, EXECUTION, engine=engine, out_dir=tmp_path)
    wider = replace(TINY, intermediate=64)
    with pytest.raises(RunError, match=r"has no 'layers\.0\..*' of shape"):
        run_plan(shared(UNEQUAL, 3), MACHINE, wider, EXECUTION, engine=engine, resume=Path(run.checkpoint or ""))


# What cards know of each other in advance

SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "zero-bubble")


@st.composite
def layouts(draw: st.DrawFn) -> Plan:
    """Plans of one to three replicas of one or two stages on eight cards."""
    cards = {"a": 4, "b": 2, "c": 2}
    replicas = []
    for _ in range(draw(st.integers(1, 3))):
        stages = draw(st.integers(1, 2))
        pools = []
        for _ in range(stages):
            name = draw(st.sampled_from([name for name, left in cards.items() if left]))
            cards[name] -= 1
            pools.append(name)
        first = draw(st.integers(0, 8))
        cut = [8] if stages == 1 else [first, 8 - first]
        recompute = draw(st.sampled_from(["none", "full"]))
        size = draw(st.integers(1, 2))
        replicas.append(pipeline(cut, pools, draw(st.integers(stages, 4)), size=size, recompute=recompute))
    schedule = draw(st.sampled_from(SCHEDULES))
    found = plan(*replicas, schedule=schedule, zero=draw(st.sampled_from([2, 3])))
    reshard = draw(st.sampled_from([None, "layer", "micro-batch", "step"]))
    return found.model_copy(
        update={"reshard": reshard, "reduce_every": draw(st.sampled_from([None, "step", "micro-batch"]))}
    )


@given(layouts(), st.booleans())
def test_nothing_is_added_up_before_what_it_depends_on(chosen: Plan, tied: bool) -> None:
    sizes = replace(TINY, tied=tied)
    places = place(chosen, MACHINE, sizes)
    times = times_of(places, sizes, chosen.schedule)
    for card in places:
        own = [times[card.rank][one] for one in worked(card, chosen.schedule)]
        assert all(one[0] + one[1] <= two[0] + 1e-9 for one, two in pairwise(own))
        assert all(seconds > 0 for _, seconds in own)
    for card in places:
        for (kind, stage, micro), (start, _) in times[card.rank].items():
            before = ("forward", stage - 1) if kind == "forward" else ("backward", stage + 1)
            for other in places:
                if kind != "weight" and other.pipeline == card.pipeline:
                    for name in {before[0], "input" if before[0] == "backward" else "forward"}:
                        done = times[other.rank].get((name, before[1], micro))
                        assert done is None or done[0] + done[1] <= start + 1e-9


def test_predicted_times_know_speeds_and_sizes_of_micro_batches() -> None:
    machine = formation(pool("a", 1, speed=1e9), pool("b", 1, speed=2e9))
    places = place(plan(pipeline([8], "a", 2, size=3), pipeline([8], "b", 2)), machine, TINY)
    times = times_of(places, TINY, "1f1b")
    (_, large), (_, small) = (times[rank]["forward", 0, 0] for rank in (0, 1))
    assert large == pytest.approx(6 * small)


@given(layouts(), st.booleans())
def test_every_card_hears_of_every_gradient_and_of_no_other(chosen: Plan, tied: bool) -> None:
    sizes = replace(TINY, tied=tied)
    places = place(chosen, MACHINE, sizes)
    times = times_of(places, sizes, chosen.schedule)
    presence = Presence(chosen.reshard or "layer")
    every = chosen.reduce_every != "step"
    courses = {
        card.rank: course_of(card, sizes, chosen.schedule, presence, times, every=every) for card in places
    }  # fmt: skip
    for card in places:
        held_parts = sorted(courses[card.rank].gives)
        parts = shared_parts(places, card.rank, sizes, held_parts)
        order = arrivals(list(parts.values()), courses)
        for part in held_parts:
            got = [rank for one, rank in order if one.name == part]
            assert set(got) == set(parts[part].ranks)
            times_given = {rank: got.count(rank) for rank in set(got)}
            assert times_given == {rank: len(courses[rank].gives[part]) for rank in parts[part].ranks}
        passes = 2 if presence.reshard == "layer" else 1
        if presence.reshard != "micro-batch":
            rounds = card.micro_batches if presence.reshard == "layer" else 1
            for layer in card.layers:
                assert courses[card.rank].gathers[f"layer {layer}"] == passes * rounds


@given(st.integers(0, 1000), st.integers(1, 64))
def test_rows_go_to_one_card_each_and_evenly(rows: int, cards: int) -> None:
    found = rows_of(rows, cards)
    assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
    assert found[-1][1] == rows
    lengths = [last - first for first, last in found]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.live
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts(), st.booleans())
def test_random_layouts_equal_one_process(engine: LocalEngine, chosen: Plan, tied: bool) -> None:
    sizes = replace(TINY, tied=tied)
    run = run_plan(chosen, MACHINE, sizes, EXECUTION, steps=2, engine=engine)
    expected = reference_losses(sizes, EXECUTION, steps=2, global_batch=chosen.global_batch)
    assert run.losses == pytest.approx(expected, rel=1e-5)
