"""Mixtures of experts: the model is the published one, and every layout trains it alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from live_pools import LENGTH, TINY, formation, pipeline, plan, pool
from zhenfa.catalog import find_model
from zhenfa.errors import CapabilityError, InputError
from zhenfa.live import checkpoint, data
from zhenfa.live.decoder import StageModule
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.feed_forward import balance_loss
from zhenfa.live.flops import FlopCount
from zhenfa.live.model import sizes_of
from zhenfa.live.run import run_plan
from zhenfa.live.sizes import Mixture, Sizes
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Pipeline, Plan

MIXTURE = Mixture(experts=4, active=2, size=24, layers=(1, 2, 3), shared=16)
ROUTED = replace(TINY, layers=4, mixture=MIXTURE)
"""A dense layer and three mixtures of four experts with a shared one."""

MACHINE = formation(pool("a", 4), pool("b", 4))
EXECUTION = Execution(
    steps=3, learning_rate=3e-3, clip_gradient_norm=0.5, evaluate_every=3, auxiliary_loss_coefficient=0.1, seed=7
)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


class Plain:
    """The same model with no code of ours but attention and norms: each token on its own, expert by expert."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self.module = StageModule(sizes, 0, sizes.layers, stem=True, head=True, seed=seed)
        self.sizes, self.uneven = sizes, torch.zeros(())
        for layer in self.module.layers.values():
            if hasattr(layer.mlp, "router"):
                layer.mlp.forward = lambda hidden, block=layer.mlp: self.mixture(block, hidden)

    def mixture(self, block: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        mixture, weights = self.sizes.mixture, dict(block.named_parameters())
        rows = []
        for sequence in hidden:
            shares = torch.softmax(sequence @ weights["router.weight"].T, -1)
            top, chosen = shares.topk(mixture.active)
            used = functional.one_hot(chosen, mixture.experts).sum((0, 1)) / chosen.numel()
            self.uneven = self.uneven + mixture.experts * (used * shares.mean(0)).sum()
            if mixture.normalized:
                top = top / top.sum(-1, keepdim=True)
            for token, numbers, parts in zip(sequence, chosen, top, strict=True):
                rows.append(
                    sum(part * self.mlp(weights, f"experts.{int(number)}", token, gated=mixture.gated)
                        for number, part in zip(numbers, parts, strict=True))
                )  # fmt: skip
        found = torch.stack(rows).view_as(hidden)
        if mixture.shared:
            besides = self.mlp(weights, "shared", hidden, gated=mixture.shared_gated)
            if mixture.shared_gate:
                besides = besides * torch.sigmoid(hidden @ weights["shared_gate.weight"].T)
            found = found + besides
        return found

    def mlp(self, weights: dict[str, torch.Tensor], name: str, features: torch.Tensor, *, gated: bool) -> torch.Tensor:
        up = features @ weights[f"{name}.up.weight"].T
        gate = weights.get(f"{name}.gate.weight")
        inner = functional.silu(features @ gate.T) * up if gated else functional.gelu(up)
        return inner @ weights[f"{name}.down.weight"].T

    def train(self, execution: Execution, batch: int) -> tuple[list[float], list[float], float]:
        """Losses and norms of the gradients, and the loss on held-out text after the last step."""
        optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=execution.learning_rate, weight_decay=execution.weight_decay
        )
        losses, norms = [], []
        for step in range(1, execution.steps + 1):
            self.uneven = torch.zeros(())
            loss = self.loss(batch, step)
            optimizer.zero_grad()
            (loss + execution.auxiliary_loss_coefficient / batch * self.uneven).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), 0.5)))
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            return losses, norms, float(self.loss(batch, 0, held_out=True))

    def loss(self, batch: int, step: int, *, held_out: bool = False) -> torch.Tensor:
        inputs, targets = data.batch(
            data.corpus("python-stdlib"), seed=7, step=step, global_batch=batch, length=LENGTH, first=0, count=batch,
            share=0.05, held_out=held_out,
        )  # fmt: skip
        logits = self.module(torch.from_numpy(inputs)).flatten(0, 1)
        return functional.cross_entropy(logits, torch.from_numpy(targets.copy()).flatten())


def cut(one: Pipeline, *stages: dict[str, int], count: int = 1) -> Pipeline:
    """The pipeline with its stages cut so, several times."""
    changed = [stage.model_copy(update=update) for stage, update in zip(one.stages, stages, strict=True)]
    return one.model_copy(update={"stages": tuple(changed), "count": count})


EP2 = {"expert_parallel": 2}
PLANS = {
    "one card": plan(pipeline([4], "a", 6)),
    "pipeline": plan(pipeline([1, 2, 1], "aab", 6)),
    "pipeline, zero bubble": plan(pipeline([1, 2, 1], "aab", 6), schedule="zero-bubble"),
    "recomputing": plan(pipeline([2, 2], "ab", 3, size=2, recompute="full")),
    "unequal replicas": plan(pipeline([3, 1], "ab", 4), pipeline([1, 3], "ab", 2)),
}
SHARED = {
    "EP2 over two replicas": plan(cut(pipeline([4], "a", 3), EP2, count=2)),
    "EP4, two stages, uneven micro-batches": plan(
        cut(pipeline([1, 3], "ab", 2), {"expert_parallel": 4}, EP2, count=2),
        cut(pipeline([1, 3], "ab", 1), {"expert_parallel": 4}, EP2, count=2),
    ),
    "EP2 on one of two stages, zero bubble, ZeRO-1": plan(
        cut(pipeline([2, 2], "ab", 2), EP2, {}, count=2), cut(pipeline([2, 2], "ab", 1), EP2, {}, count=2),
        schedule="zero-bubble", zero=1,
    ),
    "EP2 beside a replica that holds all, recomputing": plan(
        cut(pipeline([4], "a", 2, recompute="full"), EP2, count=2), pipeline([1, 3], "bb", 2)
    ),
    "two stages to a card": plan(
        cut(pipeline([1, 1, 1, 1], "abba", 3), EP2, EP2, EP2, EP2, count=2).model_copy(update={"virtual_stages": 2}),
        schedule="zero-bubble-v",
    ),
    "experts over tensor-parallel cards": plan(cut(pipeline([4], "a", 6), {"tensor_parallel": 2} | EP2)),
    "tensor-parallel cards that hold all experts": plan(cut(pipeline([4], "a", 3), {"tensor_parallel": 2}, count=2)),
    "split experts over replicas": plan(
        cut(pipeline([2, 2], "ab", 3), {"tensor_parallel": 2, "expert_tensor_parallel": 2} | EP2, {}, count=2)
    ),
    "EP4 over tensor-parallel cards of replicas, ZeRO-1": plan(
        cut(pipeline([4], "a", 3), {"tensor_parallel": 2, "expert_parallel": 4}, count=2), zero=1
    ),
    "both ends": plan(
        cut(pipeline([2, 2], "ab", 6), EP2, EP2), cut(pipeline([2, 2], "ab", 4), EP2, EP2), schedule="dualpipe"
    ),
}
"""Plans that share experts out."""
SHAPES = {
    "shared": MIXTURE,
    "not normalized, shared by a gate": replace(MIXTURE, normalized=False, shared_gate=True, layers=(0, 1, 2, 3)),
    "one of four, GELU, nothing shared": replace(MIXTURE, active=1, gated=False, shared=0),
}


def sizes_with(mixture: Mixture) -> Sizes:
    return replace(ROUTED, mixture=mixture)


@cache
def expected(shape: str, batch: int) -> tuple[list[float], list[float], float]:
    torch.set_num_threads(1)
    return Plain(sizes_with(SHAPES[shape]), 7).train(EXECUTION, batch)


@pytest.mark.live
@pytest.mark.parametrize(
    ("name", "shape"),
    [*((name, "shared") for name in PLANS | SHARED), *(("unequal replicas", shape) for shape in SHAPES)],
)
def test_losses_equal_one_process(engine: LocalEngine, name: str, shape: str) -> None:
    chosen = (PLANS | SHARED)[name]
    run = run_plan(chosen, MACHINE, sizes_with(SHAPES[shape]), EXECUTION, engine=engine)
    losses, norms, held_out = expected(shape, chosen.global_batch)
    assert run.losses == pytest.approx(losses, rel=1e-5)
    assert run.gradient_norms == pytest.approx(norms, rel=1e-5)
    assert [one.loss for one in run.evaluations] == pytest.approx([held_out], rel=1e-5)
