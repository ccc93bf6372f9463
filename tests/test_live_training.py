"""Clipping, learning rates, evaluation and bf16 give on every layout what one process gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from live_pools import LENGTH, TINY, formation, pipeline, plan, pool
from zhenfa.errors import InputError
from zhenfa.live import data
from zhenfa.live.decoder import StageModule
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.recipe import Recipe
from zhenfa.live.run import run_plan
from zhenfa.live.sizes import Sizes
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Run

QUARTET = formation(pool("a", 1), pool("b", 1), pool("c", 2))
EXECUTION = Execution(
    steps=4, learning_rate=3e-3, learning_rate_schedule="cosine", warmup_steps=1, minimum_learning_rate=1e-4, beta1=0.8,
    beta2=0.95, epsilon=1e-7, weight_decay=0.05, clip_gradient_norm=0.5, evaluate_every=2, evaluate_batches=2, seed=7,
)  # fmt: skip

PLANS = {
    "pipeline": plan(pipeline([4, 2, 1, 1], "abcc", 6)),
    "replicas with other splits": plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2)),
    "zero bubble over replicas": plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2), schedule="zero-bubble"),
    "both ends": plan(pipeline([5, 3], "ac", 6), schedule="dualpipe"),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


def loss(module: torch.nn.Module, batch: int, step: int, *, held_out: bool = False) -> torch.Tensor:
    inputs, targets = data.batch(
        data.corpus("python-stdlib"), seed=7, step=step, global_batch=batch, length=LENGTH,
        share=0.05, held_out=held_out,
    )  # fmt: skip
    logits = module(torch.from_numpy(inputs)).flatten(0, 1)
    return functional.cross_entropy(logits, torch.from_numpy(targets.copy()).flatten())


def reference(sizes: Sizes, batch: int) -> tuple[list[float], list[float], list[float]]:
    """The same training with torch's own clipping and schedules: losses, norms, and losses on held-out text."""
    torch.set_num_threads(1)
    module = StageModule(sizes, 0, sizes.layers, stem=True, head=True, seed=7)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.05)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3, eta_min=1e-4)
    losses, norms, held_out = [], [], []
    for step in range(1, 5):
        optimizer.zero_grad()
        found = loss(module, batch, step)
        found.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)))
        if step > 1:
            falling.step()
        optimizer.step()
        losses.append(found.item())
        if step % 2 == 0:
            with torch.no_grad():
                held_out.append(sum(float(loss(module, batch, index, held_out=True)) for index in range(2)) / 2)
    return losses, norms, held_out


@pytest.mark.live
@pytest.mark.parametrize(("name", "tied"), [*((name, False) for name in PLANS), ("replicas with other splits", True)])
def test_training_equals_torch_in_one_process(engine: LocalEngine, name: str, tied: bool) -> None:
    sizes = replace(TINY, tied=tied)
    run = run_plan(PLANS[name], QUARTET, sizes, EXECUTION, engine=engine)
    losses, norms, held_out = reference(sizes, 6)
    assert run.losses == pytest.approx(losses, rel=1e-5)
    assert run.gradient_norms == pytest.approx(norms, rel=1e-5)
    assert min(run.gradient_norms) > 0.5, "so that clipping is at work"
    assert [(one.step, one.loss) for one in run.evaluations] == [
        (step, pytest.approx(found, rel=1e-5)) for step, found in zip((2, 4), held_out, strict=True)
    ]


def in_bf16(chosen: Plan) -> Plan:
    return chosen.model_copy(update={"precision": "bf16"})


@pytest.fixture(scope="module")
def narrow(engine: LocalEngine) -> Run:
    """One card in bf16."""
    return run_plan(in_bf16(plan(pipeline([8], "a", 6))), QUARTET, TINY, EXECUTION, engine=engine)


@pytest.mark.live
@pytest.mark.parametrize("name", ["pipeline", "both ends", "replicas with other splits"])
def test_bf16_is_the_same_on_every_layout(engine: LocalEngine, narrow: Run, name: str) -> None:
    run = run_plan(in_bf16(PLANS[name]), QUARTET, TINY, EXECUTION, engine=engine)
    if name == "pipeline":
        assert run.losses == narrow.losses, "micro-batches in one order give the same to the bit"
    assert run.losses == pytest.approx(narrow.losses, rel=2e-4)
    wide, _, _ = reference(TINY, 6)
    assert run.losses == pytest.approx(wide, rel=1e-2)
    assert max(abs(one - other) for one, other in zip(run.losses, wide, strict=True)) > 1e-5, "not computed in fp32"
    parameters = 4 * run.stages[0].memory_parts["parameters"] / 2
    assert run.stages[0].memory_parts["gradients"] == parameters
    assert run.stages[0].memory_parts["optimizer"] == 3 * parameters, "moments and wide weights"


@given(
    st.integers(1, 200),
    st.integers(0, 50),
    st.floats(1e-6, 1),
    st.floats(0, 1),
    st.sampled_from(["constant", "cosine"]),
)
def test_rates_rise_once_and_fall_to_the_floor(steps: int, warm: int, peak: float, floor: float, kind: str) -> None:
    recipe = Recipe(steps, peak, kind, warmup_steps=warm, minimum_learning_rate=floor * peak)
    rates = [recipe.rate(step) for step in range(1, steps + 1)]
    assert all(0 < rate <= peak * (1 + 1e-12) or rate == pytest.approx(floor * peak) for rate in rates)
    assert rates[:warm] == sorted(rates[:warm])
    after = rates[warm:]
    assert after == sorted(after, reverse=True)
    if kind == "constant":
        assert set(after) <= {peak}
    elif after:
        assert after[-1] == pytest.approx(floor * peak, abs=1e-12)


def test_held_out_text_is_never_trained_on() -> None:
    text = data.Corpus("numbers", (), (1000,))
    read: list[int] = []

    class Reads(data.Corpus):
        def read(self, start: int, count: int) -> object:
            read.extend((start, start + count))
            return np.zeros(count, np.uint8)

    reader = Reads(text.name, text.paths, text.ends)
    for step in range(50):
        data.batch(reader, seed=1, step=step, global_batch=8, length=10, share=0.05)
    assert max(read) <= 950
    read.clear()
    for step in range(50):
        data.batch(reader, seed=1, step=step, global_batch=8, length=10, share=0.05, held_out=True)
    assert min(read) >= 950
    with pytest.raises(InputError, match="50 bytes held out, too few for sequences of 60"):
        data.batch(reader, seed=1, step=1, global_batch=8, length=60, share=0.05, held_out=True)


def test_a_floor_above_the_rate_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"minimum_learning_rate 0\.1 is above learning_rate 0\.01"):
        Execution(learning_rate=0.01, minimum_learning_rate=0.1)
