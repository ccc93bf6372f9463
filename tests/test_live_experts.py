"""Mixtures of experts: the model is the published one, and every layout trains it alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cli_runner import ROOT, Call, caller
from live_pools import LENGTH, TINY, formation, pipeline, plan, pool
from zhenfa.catalog import find_model
from zhenfa.errors import CapabilityError, InputError
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live import checkpoint, data
from zhenfa.live.decoder import StageModule
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.feed_forward import balance_loss
from zhenfa.live.flops import FlopCount
from zhenfa.live.model import sizes_of
from zhenfa.live.placement import place
from zhenfa.live.run import run_plan
from zhenfa.live.sizes import Mixture, Sizes
from zhenfa.live.weights import load_weights
from zhenfa.live.weights import sizes_with as with_weights
from zhenfa.plan import find_plans, read_request
from zhenfa.spec.huggingface import from_huggingface
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Tier
from zhenfa.spec.plan import Pipeline, Plan, Stage

MIXTURE = Mixture(experts=4, active=2, size=24, layers=(1, 2, 3), shared=16)
ROUTED = replace(TINY, layers=4, mixture=MIXTURE)
"""A dense layer and three mixtures of four experts with a shared one."""

MACHINE = formation(pool("a", 4), pool("b", 4))
EXECUTION = Execution(
    steps=3, learning_rate=3e-3, clip_gradient_norm=0.5, evaluate_every=3, auxiliary_loss_coefficient=0.1, seed=7
)


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    return caller(capsys, monkeypatch)


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
            data.corpus("python-stdlib"), seed=7, step=step, global_batch=batch, length=LENGTH,
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
        cut(pipeline([2, 2], "ab", 2), EP2, {}, count=2),
        cut(pipeline([2, 2], "ab", 1), EP2, {}, count=2),
        schedule="zero-bubble",
        zero=1,
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
    "groups that share micro-batches out, and experts": plan(
        cut(pipeline([2, 2], "ab", 3, size=2), {"data_parallel": 2} | EP2, {})
    ),
    "the same over replicas of unlike shares, ZeRO-1": plan(
        cut(pipeline([3, 1], "ab", 2, size=2), {"data_parallel": 2, "expert_parallel": 4}, EP2),
        cut(pipeline([3, 1], "ab", 1, size=2), {"data_parallel": 2, "expert_parallel": 4}, EP2),
        zero=1,
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


@pytest.mark.live
@pytest.mark.parametrize("name", ["EP4, two stages, uneven micro-batches", "split experts over replicas",
                                  "EP4 over tensor-parallel cards of replicas, ZeRO-1"])  # fmt: skip
def test_checkpoints_hold_every_expert_and_go_on_at_any_layout(engine: LocalEngine, name: str, tmp_path: Path) -> None:
    chosen: Plan = SHARED[name]
    execution = EXECUTION.model_copy(update={"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 5})
    whole = run_plan(chosen, MACHINE, ROUTED, execution, engine=engine, out_dir=tmp_path / "whole")
    half = tmp_path / "whole" / "checkpoint-000002"
    module = StageModule(ROUTED, 0, 4, stem=True, head=True, seed=99)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    checkpoint.load(half, module, optimizer)
    assert "layers.1.mlp.experts.3.up.weight" in dict(module.named_parameters())
    assert all(int(optimizer.state[weight]["step"]) == 2 for weight in module.parameters())
    same = run_plan(chosen, MACHINE, ROUTED, execution, engine=engine, out_dir=tmp_path / "same", resume=half)
    assert same.losses == whole.losses[2:]
    assert same.gradient_norms == whole.gradient_norms[2:]
    for other in (PLANS["pipeline"], SHARED["EP2 over two replicas"], SHARED["split experts over replicas"]):
        rest = run_plan(other, MACHINE, ROUTED, execution, engine=engine, out_dir=tmp_path / "o", resume=half)
        assert rest.losses == pytest.approx(whole.losses[2:], rel=1e-5)


@pytest.mark.live
@pytest.mark.parametrize("left", [EP2, {}], ids=["the same layout", "one card for all experts"])
def test_a_run_goes_on_when_a_card_with_experts_dies(left: dict[str, int], tmp_path: Path) -> None:
    chosen = plan(cut(pipeline([4], "a", 3), EP2, count=2))
    kind = "kill" if left else "lose"
    execution = Execution(**EXECUTION.model_dump() | {"steps": 4, "faults": ({"kind": kind, "step": 3, "card": 1},)})
    run = run_plan(
        chosen, formation(pool("a", 2)), ROUTED, execution, out_dir=tmp_path,
        replan=lambda _: plan(cut(pipeline([4], "a", 6), left)),
    )  # fmt: skip
    assert [incident.action for incident in run.incidents] == ["restart" if left else "re-form"]
    plain = Plain(ROUTED, 7)
    assert run.losses == pytest.approx(plain.train(EXECUTION.model_copy(update={"steps": 4}), 6)[0], rel=1e-5)


@pytest.mark.live
def test_bf16_is_near_on_every_layout(engine: LocalEngine) -> None:
    one = PLANS["one card"].model_copy(update={"precision": "bf16"})
    alone = run_plan(one, MACHINE, ROUTED, EXECUTION, engine=engine)
    for name in ("pipeline", "EP2 over two replicas", "two stages to a card"):
        run = run_plan(
            SHARED.get(name, PLANS["pipeline"]).model_copy(update={"precision": "bf16"}), MACHINE, ROUTED, EXECUTION,
            engine=engine,
        )  # fmt: skip
        if name == "pipeline":
            assert run.losses == alone.losses, "micro-batches in one order give the same to the bit"
        assert run.losses == pytest.approx(alone.losses, rel=1e-3)
    assert alone.losses == pytest.approx(expected("shared", 6)[0], rel=1e-2)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_decoder_is_the_published_one(kind: str, tmp_path: Path) -> None:
    import transformers

    common = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 256, "num_experts_per_tok": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "mixtral":
        config = transformers.MixtralConfig(**common, intermediate_size=24, num_local_experts=4)
        theirs = transformers.MixtralForCausalLM(config).eval()
    else:
        config = transformers.Qwen2MoeConfig(
            **common, intermediate_size=48, moe_intermediate_size=24, shared_expert_intermediate_size=40,
            num_experts=4, mlp_only_layers=[0], qkv_bias=False,
        )  # fmt: skip
        theirs = transformers.Qwen2MoeForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    sizes = with_weights(tmp_path, sizes_of(from_huggingface(json.loads((tmp_path / "config.json").read_text()))))
    ours = StageModule(sizes, 0, 3, stem=True, head=True, seed=3)
    load_weights(ours, tmp_path)
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_of_experts_alike_the_lower_number_is_taken() -> None:
    module = StageModule(
        replace(ROUTED, layers=2, mixture=replace(MIXTURE, layers=(1,))), 0, 2, stem=True, head=True, seed=1
    )
    block = module.layers["1"].mlp
    with torch.no_grad():
        block.router.weight.zero_()
    module.routed.counting = True
    module(torch.zeros((1, 8), dtype=torch.int64))
    assert module.routed.chosen[1].tolist() == [8, 8, 0, 0]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 8), st.data())
def test_balance_is_one_where_tokens_are_spread_evenly_and_never_above_the_experts(
    batch: int, length: int, experts: int, draw: st.DataObject
) -> None:
    active = draw.draw(st.integers(1, experts))
    logits = torch.randn(
        (batch, length, experts), generator=torch.Generator().manual_seed(draw.draw(st.integers(0, 9)))
    )
    shares = torch.softmax(3 * logits, -1)
    chosen = shares.topk(active).indices
    found = float(balance_loss(shares, chosen))
    assert 0 < found <= batch * experts / active * (1 + 1e-6)
    alone = sum(float(balance_loss(shares[row : row + 1], chosen[row : row + 1])) for row in range(batch))
    assert found == pytest.approx(alone, rel=1e-5), "sequences count apart, whatever micro-batch they fall into"
    even = torch.full_like(shares, 1 / experts)
    assert float(balance_loss(even, chosen)) == pytest.approx(batch, rel=1e-5)


def test_flops_are_those_of_the_active_experts() -> None:
    module = StageModule(ROUTED, 0, 4, stem=True, head=True, seed=0)
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    with FlopCount() as forward:
        module(tokens)
    hidden, rows = ROUTED.hidden, 32
    attention = sum(p.numel() for name, p in module.named_parameters() if "attention." in name)
    dense = 3 * hidden * ROUTED.intermediate + hidden * 256
    experts = 3 * hidden * MIXTURE.size * MIXTURE.active
    routed = 3 * (hidden * MIXTURE.experts + 3 * hidden * MIXTURE.shared + experts)
    scores = 4 * (2 * 4 * 16 * 17 / 2) * 4 * 8
    assert forward.total == pytest.approx(2 * rows * (attention + dense + routed) + scores)
    assert module.routed.flops == 2 * rows * 3 * experts


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (plan(cut(pipeline([4], "a", 1), {"expert_parallel": 3}, count=3)), "4 experts over 3 cards do not go evenly"),
        (plan(cut(pipeline([4], "a", 1), {"tensor_parallel": 2, "expert_tensor_parallel": 4})),
         "split over the tensor-parallel cards of its stage or not at all"),
    ],
)  # fmt: skip
def test_groups_that_do_not_run_are_refused(chosen: Plan, words: str) -> None:
    with pytest.raises(CapabilityError, match=words):
        run_plan(chosen, MACHINE, ROUTED)


def test_groups_that_are_not_whole_are_refused() -> None:
    with pytest.raises(
        InputError, match="3 cards of the replicas cut alike hold stage 0-4, which are no whole groups of 2"
    ):
        run_plan(plan(cut(pipeline([4], "a", 1), EP2, count=3)), MACHINE, ROUTED)
    with pytest.raises(CapabilityError, match="a dense model has no experts to share"):
        run_plan(plan(cut(pipeline([8], "a", 1), EP2, count=2)), MACHINE, TINY)


def test_catalog_models_are_read_or_refused_by_name() -> None:
    sizes = sizes_of(find_model("tiny-byte-moe"))
    assert (sizes.mixture.layers, sizes.intermediate) == ((1, 2, 3, 4, 5), 384)
    assert sizes.parameters == find_model("tiny-byte-moe").graph().parameters
    assert sizes_of(find_model("mixtral-8x7b")).parameters == 46_702_792_704
    for name, words in {
        "qwen3-30b-a3b": "attention with qk_norm",
        "deepseek-v3": "latent-attention layers|mtp",
    }.items():
        with pytest.raises(CapabilityError, match=words):
            sizes_of(find_model(name))


BOARD = Tier(name="board", size=4, bandwidth="1 GB/s", latency="100 us")
PACED = formation(pool("a", 4, speed=2e9, tiers=[BOARD]), pool("b", 2, speed=1e9, tiers=[BOARD]))


@pytest.mark.live
def test_cards_are_paced_by_the_tokens_that_they_get() -> None:
    """Whatever is shared out, all cards together do the same work, and none of it twice."""
    steady = EXECUTION.model_copy(update={"steps": 2, "evaluate_every": 0, "snapshot_every": 0})
    done = {}
    for degree in (1, 2, 4):
        with LocalEngine(protect=False) as emulated:
            chosen = plan(cut(pipeline([4], "a", 2, size=2), {"expert_parallel": degree}, count=4))
            run = run_plan(chosen, PACED, ROUTED, steady, engine=emulated)
        done[degree] = run.share_of_sum_of_speeds * run.figures.step_time_s.value
        routing = run.routing
        assert routing.experts == 12
        assert 1 <= routing.busiest_expert.value <= 4 / MIXTURE.active
        assert (routing.busiest_card.value is None) == (degree == 1)
        held = {stage.memory_parts["parameters"] for stage in run.stages}
        assert held == {4.0 * (ROUTED.parameters - 3 * (4 - 4 // degree) * MIXTURE.expert_parameters(ROUTED.hidden))}
        if degree > 1:
            assert 1 <= routing.busiest_card.value <= degree
    assert done[2] == pytest.approx(done[1], rel=1e-9)
    assert done[4] == pytest.approx(done[1], rel=1e-9)


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"limits": "{micro_batch_size: 2}"},
        {"limits": "{max_pipeline_parallel: 1}", "workload.global_batch": 20},
        {"limits": "{schedules: all}", "workload.global_batch": 24},
        {"machine": "emulated-quartet", "limits": "{micro_batch_size: 4}", "workload.precision": "fp32"},
    ],
    ids=str,
)
def test_every_plan_of_the_planner_has_a_place(job: dict[str, object]) -> None:
    model = find_model("tiny-byte-moe")
    settings = [f"{key}={value}" for key, value in job.items()]
    request = replace(read_request(str(ROOT / "examples/moe-pretrain.yaml"), settings=settings), traits=OWN_RUNTIME)
    found = [one.plan for one in find_plans(request).plans]
    for chosen in found:
        places = place(chosen, request.formation, sizes_of(model))
        for number, index in {(one.pipeline, one.stage) for one in places}:
            here = [one for one in places if (one.pipeline, one.stage) == (number, index)]
            stage = chosen_stage(chosen, number, index)
            for one in here:
                assert one.rank in one.expert_ranks
                assert len(one.expert_ranks) == stage.expert_parallel
                everyone = [expert for rank in one.expert_ranks for expert in places[rank].experts(8)]
                assert everyone == list(range(8)), "a group holds every expert once"
    assert any(stage.expert_parallel > 1 for one in found for row in one.pipelines for stage in row.stages)


def chosen_stage(chosen: Plan, number: int, index: int) -> Stage:
    rows = [row for row in chosen.pipelines for _ in range(row.count)]
    return rows[number].stages[index]


@pytest.mark.live
def test_the_example_trains(zhenfa: Call, tmp_path: Path) -> None:
    outcome = zhenfa("run", str(ROOT / "examples/moe-pretrain.yaml"), "--steps", "2", "--json", "--out", str(tmp_path))
    run = json.loads(outcome.out)
    assert {stage["expert_parallel"] for row in run["plan"]["pipelines"] for stage in row["stages"]} == {2}
    shares = {row["stages"][0]["pool"]: row["micro_batches"] for row in run["plan"]["pipelines"]}
    assert shares["hygon"] > shares["cambricon"], "the faster pair takes more of the batch"
    assert run["losses"][1] < run["losses"][0]
    assert run["routing"]["busiest_card"]["value"] >= 1
    passes_end = max(one["end_s"] for one in run["events"] if one["card"] == 0 and one["kind"] == "backward")
    sums = [one["start_s"] < passes_end for one in run["events"] if one["card"] == 0 and one["kind"] == "sum"]
    assert sums == [True] * 5 + [False], "experts are summed while backward passes run; the rest with the stem"
