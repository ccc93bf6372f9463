"""Cards that split the matrices of a stage train the same model, and save and recover it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from test_live_training import reference
from zhenfa.errors import CapabilityError
from zhenfa.live import checkpoint
from zhenfa.live.decoder import StageModule
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Pipeline, Plan

MACHINE = formation(pool("a", 4), pool("b", 2))
EXECUTION = Execution(steps=3, learning_rate=1e-3, seed=7)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


def split(one: Pipeline, *degrees: int) -> Pipeline:
    stages = [
        stage.model_copy(update={"tensor_parallel": degree}) for stage, degree in zip(one.stages, degrees, strict=True)
    ]
    return one.model_copy(update={"stages": tuple(stages)})


PLANS = {
    "one stage over two cards": plan(split(pipeline([8], "a", 4), 2)),
    "a wider stage before a narrow one": plan(split(pipeline([5, 3], "ab", 4), 2, 1)),
    "a narrow stage before a wider one": plan(split(pipeline([3, 5], "ba", 4, size=2), 1, 2)),
    "two stages, zero bubble": plan(split(pipeline([5, 3], "ab", 4), 2, 2), schedule="zero-bubble"),
    "recomputing": plan(split(pipeline([8], "b", 2, recompute="full"), 2)),
    "replicas split unlike": plan(pipeline([3, 5], "ba", 2), split(pipeline([6, 2], "ab", 3), 2, 1)),
    "replicas split alike": plan(split(pipeline([6, 2], "aa", 2), 2, 2), split(pipeline([8], "b", 3), 2)),
}


@pytest.mark.live
@pytest.mark.parametrize(
    ("name", "tied"), [*((name, False) for name in PLANS), *((name, True) for name in PLANS if "replicas" in name)]
)
def test_losses_equal_one_process(engine: LocalEngine, name: str, tied: bool) -> None:
    chosen, sizes = PLANS[name], replace(TINY, tied=tied)
    run = run_plan(chosen, MACHINE, sizes, EXECUTION, engine=engine)
    expected = reference_losses(sizes, EXECUTION, steps=3, global_batch=chosen.global_batch)
    assert run.losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.live
@pytest.mark.parametrize("zero", [0, 1])
def test_clipping_and_evaluation_count_every_weight_once(engine: LocalEngine, zero: int) -> None:
    from test_live_training import EXECUTION as CLIPPING

    alike = plan(split(pipeline([6, 2], "aa", 4), 2, 2), split(pipeline([8], "b", 2), 2), zero=zero)
    unlike = plan(pipeline([8], "b", 4), split(pipeline([6, 2], "aa", 2), 2, 1), zero=zero)
    losses, norms, held_out = reference(TINY, 6)
    for chosen in (alike, unlike):
        run = run_plan(chosen, MACHINE, TINY, CLIPPING, engine=engine)
        assert run.losses == pytest.approx(losses, rel=1e-5)
        assert run.gradient_norms == pytest.approx(norms, rel=1e-5)
        assert [one.loss for one in run.evaluations] == pytest.approx(held_out, rel=1e-5)


@pytest.mark.live
@pytest.mark.parametrize(
    ("name", "zero"), [("replicas split alike", 0), ("replicas split alike", 1), ("replicas split unlike", 0)]
)
def test_checkpoints_are_whole_and_resumed_to_the_bit(
    engine: LocalEngine, name: str, zero: int, tmp_path: Path
) -> None:
    chosen: Plan = PLANS[name].model_copy(update={"zero": zero})
    execution = EXECUTION.model_copy(update={"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 5})
    whole = run_plan(chosen, MACHINE, TINY, execution, engine=engine, out_dir=tmp_path / "whole")
    half = tmp_path / "whole" / "checkpoint-000002"
    module = StageModule(TINY, 0, 8, stem=True, head=True, seed=99)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    checkpoint.load(half, module, optimizer)
    assert all(int(optimizer.state[weight]["step"]) == 2 for weight in module.parameters())
    rest = run_plan(chosen, MACHINE, TINY, execution, engine=engine, out_dir=tmp_path / "rest", resume=half)
    assert rest.losses == whole.losses[2:]
    other = run_plan(
        plan(pipeline([5, 3], "ab", 5)), MACHINE, TINY, execution, engine=engine, out_dir=tmp_path / "o", resume=half
    )
    assert other.losses == pytest.approx(whole.losses[2:], rel=1e-5)


@pytest.mark.live
def test_a_run_goes_on_when_one_of_two_cards_dies(tmp_path: Path) -> None:
    execution = EXECUTION.model_copy(update={"steps": 4})
    execution = Execution(**execution.model_dump() | {"faults": ({"kind": "kill", "step": 3, "card": 1},)})
    run = run_plan(PLANS["one stage over two cards"], MACHINE, TINY, execution, out_dir=tmp_path)
    assert [incident.kind for incident in run.incidents] == ["death"]
    assert run.losses == pytest.approx(reference_losses(TINY, execution, steps=4, global_batch=4), rel=1e-5)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (plan(split(pipeline([8], "a", 1), 4)), "2 kv-heads over 4 cards do not split evenly"),
        (PLANS["one stage over two cards"].model_copy(update={"sequence_parallel": True}), "sequence parallelism"),
    ],
)
def test_splits_that_do_not_run_are_refused(chosen: Plan, words: str) -> None:
    with pytest.raises(CapabilityError, match=words):
        run_plan(chosen, MACHINE, TINY)
