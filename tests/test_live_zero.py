"""Optimizer state shared out over the owners of each layer (ZeRO-1) trains, saves and recovers like whole state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from zhenfa import catalog
from zhenfa.estimate.report import report
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live import checkpoint
from zhenfa.live.decoder import StageModule
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.replicas import shares
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution, Workload
from zhenfa.spec.machine import Precision
from zhenfa.spec.plan import Plan

MACHINE = formation(pool("a", 2), pool("b", 1), pool("c", 2))
EXECUTION = Execution(steps=3, learning_rate=1e-3, seed=7, clip_gradient_norm=0.7)

PLANS = {
    "two replicas, other splits": plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2)),
    "three replicas": plan(pipeline([5, 3], "ac", 2), pipeline([8], "a", 3), pipeline([2, 6], "bc", 1)),
    "zero bubble": plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2), schedule="zero-bubble"),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


def shared(chosen: Plan) -> Plan:
    return chosen.model_copy(update={"zero": 1})


@pytest.mark.live
@pytest.mark.parametrize(("name", "tied"), [*((name, False) for name in PLANS), ("three replicas", True)])
def test_the_same_losses_with_less_state(engine: LocalEngine, name: str, tied: bool) -> None:
    sizes = replace(TINY, tied=tied)
    whole = run_plan(PLANS[name], MACHINE, sizes, EXECUTION, engine=engine)
    run = run_plan(shared(PLANS[name]), MACHINE, sizes, EXECUTION, engine=engine)
    assert run.losses == pytest.approx(whole.losses, rel=1e-6)
    assert run.gradient_norms == pytest.approx(whole.gradient_norms, rel=1e-6)
    assert all(one.memory_parts["optimizer"] < two.memory_parts["optimizer"] * 0.75
               for one, two in zip(run.stages, whole.stages, strict=True))  # fmt: skip
    assert sum(stage.memory_parts["optimizer"] for stage in run.stages) == 2 * 4 * sizes.parameters, "each once"


@pytest.mark.live
def test_bf16_shares_its_state_too(engine: LocalEngine) -> None:
    narrow = PLANS["two replicas, other splits"].model_copy(update={"precision": "bf16"})
    whole = run_plan(narrow, MACHINE, TINY, EXECUTION, engine=engine)
    assert run_plan(shared(narrow), MACHINE, TINY, EXECUTION, engine=engine).losses == pytest.approx(
        whole.losses, rel=2e-4
    )


@pytest.mark.live
def test_a_checkpoint_of_shares_is_whole(engine: LocalEngine, tmp_path: Path) -> None:
    plain = Execution(steps=3, learning_rate=1e-3, seed=7)
    run = run_plan(shared(PLANS["three replicas"]), MACHINE, TINY, plain, engine=engine, out_dir=tmp_path)
    module = StageModule(TINY, 0, 8, stem=True, head=True, seed=99)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    assert checkpoint.load(Path(run.checkpoint or ""), module, optimizer)["step"] == 3
    states = [optimizer.state[weight] for weight in module.parameters()]
    assert all(int(state["step"]) == 3 and state["exp_avg_sq"].abs().sum() > 0 for state in states)


@pytest.mark.live
def test_a_run_of_shares_goes_on_after_a_death(engine: LocalEngine, tmp_path: Path) -> None:
    fault = {"kind": "kill", "step": 3, "card": 1}
    execution = Execution(steps=5, learning_rate=1e-3, seed=7, faults=(fault,))
    chosen = shared(PLANS["two replicas, other splits"])
    run = run_plan(chosen, MACHINE, TINY, execution, out_dir=tmp_path)
    assert [incident.kind for incident in run.incidents] == ["death"]
    assert run.losses == pytest.approx(reference_losses(TINY, execution, steps=5, global_batch=6), rel=1e-5)


@given(st.lists(st.integers(0, 10_000), max_size=30), st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True))
def test_shares_hold_each_weight_once_and_are_even(sizes: list[int], ranks: list[int]) -> None:
    weights = [(f"weight {number}", size) for number, size in enumerate(sizes)]
    found = shares(weights, ranks)
    assert list(found) == ranks
    assert sorted(name for names in found.values() for name in names) == sorted(name for name, _ in weights)
    elements = dict(weights)
    loads = [sum(elements[name] for name in names) for names in found.values()]
    assert max(loads) <= sum(sizes) / len(ranks) + max(sizes, default=0)


@pytest.mark.live
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_the_state_that_cards_hold_is_what_was_predicted(
    engine: LocalEngine, zero: int, precision: Precision
) -> None:  # fmt: skip
    """Replicas on unlike cards share their state out, too: each card's weights and optimizer state, byte by byte."""
    machine = formation(pool("x", 1, 4e10), pool("y", 1, 2e10), pool("z", 1, 2e10))
    chosen = plan(pipeline([8], "x", 2), pipeline([5, 3], "yz", 2), zero=zero).model_copy(
        update={"precision": precision}
    )
    model = catalog.model("tiny-byte-gpt")
    workload = Workload(sequence_length=chosen.sequence_length, global_batch=4, precision=precision)
    setting = look_up(model.graph(), workload, machine, OWN_RUNTIME)
    predicted = report(chosen, setting, cost(chosen, setting)).stages
    run = run_plan(chosen, machine, model, Execution(steps=2, snapshot_every=0), engine=engine)
    for one, other in zip(predicted, run.stages, strict=True):
        for name, here in (("weights", "parameters"), ("optimizer", "optimizer")):
            assert other.memory_parts[here] == pytest.approx(one.memory_parts[name], rel=0.01), (one.pool, name)
