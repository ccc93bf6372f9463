"""Modules that are not the runtime's own train on every layout as they do in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from foreign_modules import HAND_WRITTEN, MIXTURES, SMALL, configured, written
from live_pools import LENGTH, formation, pipeline, plan, pool
from zhenfa.errors import CapabilityError
from zhenfa.live import checkpoint, data
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.flops import FlopCount
from zhenfa.live.foreign.build import build, from_config, from_function
from zhenfa.live.foreign.fill import load_directory, stage_of
from zhenfa.live.foreign.look import Looked, look_through
from zhenfa.live.run import run_plan
from zhenfa.live.sizes import Sizes
from zhenfa.spec.graph import Operator
from zhenfa.spec.job import Execution, Fault
from zhenfa.spec.plan import Pipeline, Plan, Stage

QUARTET = formation(pool("a", 1), pool("b", 1), pool("c", 2))
EXECUTION = Execution(
    steps=4, learning_rate=3e-3, clip_gradient_norm=0.5, evaluate_every=2, evaluate_batches=2, seed=7, weight_decay=0.05
)  # fmt: skip
BATCH = 6
PLANS = {
    "uneven pipeline": plan(pipeline([4, 2, 1, 1], "abcc", 6)),
    "gpipe, ends alone": plan(pipeline([0, 8, 0], "abc", 6), schedule="gpipe"),
    "virtual stages": plan(
        pipeline([3, 2, 2, 1], "acac", 6).model_copy(update={"virtual_stages": 2}), schedule="interleaved"
    ),
    "replicas with other splits": plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2)),
    "two cards that share micro-batches out": plan(
        Pipeline(
            micro_batches=3,
            micro_batch_size=2,
            stages=(
                Stage(pool="c", first=0, last=5, data_parallel=2),
                Stage(pool="a", first=5, last=8),
            ),
        ),
    ),
    "ZeRO-1, recomputing": plan(
        pipeline([6, 2], "ac", 4, recompute="full"), pipeline([3, 5], "bc", 2, recompute="full"), zero=1
    ),
}
KINDS = {
    "hand-written": tuple(PLANS),
    "gpt2": ("virtual stages", "ZeRO-1, recomputing"),
    "qwen3": ("uneven pipeline", "two cards that share micro-batches out"),
    "gpt_neox": ("replicas with other splits",),
    "phi": ("virtual stages",),
    "qwen3_moe": ("ZeRO-1, recomputing", "uneven pipeline"),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Looked]:
    folder = tmp_path_factory.mktemp("models")
    found = {"hand-written": look_through("python", written(folder), "build", LENGTH)}
    for kind in (*SMALL, *MIXTURES):
        found[kind] = look_through("transformers", configured(folder / kind, kind), "", LENGTH)
    return found


def whole(sizes: Sizes, seed: int = 7) -> Any:
    """The plain module with the weights that a run of this seed begins from."""
    assert sizes.source is not None
    module = build(sizes.source)
    stage = stage_of(sizes, sizes.source, range(sizes.layers), first=True, last=True, seed=seed)
    left = module.load_state_dict(stage.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {"head.weight", "lm_head.weight"}, "the other name of a tied table"
    return module


def batch(step: int, *, held_out: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = data.batch(
        data.corpus("python-stdlib"), seed=7, step=step, global_batch=BATCH, length=LENGTH,
        share=0.05, held_out=held_out,
    )  # fmt: skip
    return torch.from_numpy(inputs), torch.from_numpy(targets.copy())


def loss_of(module: torch.nn.Module, step: int, *, held_out: bool = False) -> torch.Tensor:
    inputs, targets = batch(step, held_out=held_out)
    result = module(inputs)
    return functional.cross_entropy(getattr(result, "logits", result).flatten(0, 1), targets.flatten())


def reference(sizes: Sizes) -> tuple[list[float], list[float]]:
    """Losses of the same training by torch alone, and losses on held-out text."""
    torch.set_num_threads(1)
    module = whole(sizes)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.05)
    losses, held_out = [], []
    for step in range(1, 5):
        optimizer.zero_grad()
        found = loss_of(module, step)
        found.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        losses.append(found.item())
        if step % 2 == 0:
            with torch.no_grad():
                held_out.append(sum(float(loss_of(module, index, held_out=True)) for index in range(2)) / 2)
    return losses, held_out


@pytest.mark.live
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_trains_as_one_process_does(engine: LocalEngine, looked: dict[str, Looked], kind: str) -> None:
    sizes = looked[kind].sizes
    losses, held_out = reference(sizes)
    assert losses[-1] < losses[0] - 0.1, "so that what is compared has trained"
    for name in KINDS[kind]:
        run = run_plan(PLANS[name], QUARTET, sizes, EXECUTION, engine=engine)
        assert run.losses == pytest.approx(losses, rel=1e-5), name
        assert [one.loss for one in run.evaluations] == pytest.approx(held_out, rel=1e-5), name


@pytest.mark.live
@pytest.mark.parametrize("kind", ["hand-written", "gemma2"])
def test_bf16_is_the_same_on_every_layout(engine: LocalEngine, looked: dict[str, Looked], kind: str) -> None:
    sizes = looked[kind].sizes
    runs = [
        run_plan(one.model_copy(update={"precision": "bf16"}), QUARTET, sizes, EXECUTION, engine=engine)
        for one in (plan(pipeline([8], "a", 6)), PLANS["uneven pipeline"], PLANS["replicas with other splits"])
    ]
    for run in runs[1:]:
        assert run.losses == pytest.approx(runs[0].losses, rel=2e-4)
    wide, _ = reference(sizes)
    assert runs[0].losses == pytest.approx(wide, rel=1e-2)
    assert max(abs(one - other) for one, other in zip(runs[0].losses, wide, strict=True)) > 1e-5, "not computed in fp32"


@pytest.mark.live
@pytest.mark.parametrize("kind", ["hand-written", "qwen3"])
def test_a_run_goes_on_after_a_kill_and_from_a_checkpoint_of_another_layout(
    engine: LocalEngine, looked: dict[str, Looked], kind: str, tmp_path: Path
) -> None:
    sizes, chosen = looked[kind].sizes, PLANS["uneven pipeline"]
    plain = run_plan(chosen, QUARTET, sizes, EXECUTION, engine=engine)
    faults = (Fault(step=2, card=1, kind="kill"), Fault(step=3, card=3, kind="lose"))
    left = plan(pipeline([5, 2, 1], "abc", 6))
    disturbed = EXECUTION.model_copy(update={"faults": faults})
    run = run_plan(chosen, QUARTET, sizes, disturbed, engine=engine, replan=lambda _: left, out_dir=tmp_path)
    assert [one.action for one in run.incidents] == ["restart", "re-form"]
    assert run.losses == pytest.approx(plain.losses, rel=1e-5)
    assert run.checkpoint is not None
    more = EXECUTION.model_copy(update={"steps": 6})
    resumed = run_plan(
        PLANS["ZeRO-1, recomputing"], QUARTET, sizes, more, engine=engine, resume=Path(run.checkpoint)
    )  # fmt: skip
    straight = run_plan(chosen, QUARTET, sizes, more, engine=engine)
    assert resumed.losses == pytest.approx(straight.losses[4:], rel=1e-5)
    names = checkpoint._read_records(Path(run.checkpoint) / ".metadata").state_dict_metadata
    known = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert known == set(looked[kind].weights), "under the module's own names, a tied table once"


@pytest.mark.live
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "phi"])
def test_weights_of_a_directory_give_the_loss_that_transformers_gives(
    engine: LocalEngine, looked: dict[str, Looked], kind: str, tmp_path: Path
) -> None:
    sizes = looked[kind].sizes
    assert sizes.source is not None
    torch.manual_seed(3)
    theirs: Any = from_config(Path(sizes.source.path))
    with torch.no_grad():
        for one in theirs.parameters():
            one.add_(0.05 * torch.randn_like(one))
    theirs.save_pretrained(tmp_path)
    execution = EXECUTION.model_copy(update={"steps": 1, "weights": str(tmp_path)})
    run = run_plan(PLANS["replicas with other splits"], QUARTET, sizes, execution, engine=engine)
    inputs, targets = batch(1)
    tokens = torch.cat((inputs, targets[:, -1:]), 1)
    with torch.no_grad():
        loss = float(theirs(input_ids=tokens, labels=tokens).loss)
    assert run.losses[0] == pytest.approx(loss, rel=1e-5)
    assert abs(loss - loss_of(whole(sizes), 1).item()) > 1e-3, "other weights than fresh ones"


def test_a_directory_may_leave_out_the_prefix_of_the_body(looked: dict[str, Looked], tmp_path: Path) -> None:
    sizes = looked["gpt2"].sizes
    assert sizes.source is not None
    theirs: Any = from_config(Path(sizes.source.path))
    theirs.transformer.save_pretrained(tmp_path)  # as the files of the first GPT-2 are
    looked["gpt2"].check_weights(tmp_path)
    stage = stage_of(sizes, sizes.source, [2], first=False, last=False, seed=0)
    load_directory(stage, tmp_path)
    own = dict(theirs.named_parameters())
    assert all(torch.equal(weight, own[name]) for name, weight in stage.named_parameters())


@settings(max_examples=25, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["hand-written", *SMALL]), seed=st.integers(0, 1000))
def test_fresh_weights_do_not_depend_on_the_cut(
    looked: dict[str, Looked], data: st.DataObject, kind: str, seed: int
) -> None:
    sizes = looked[kind].sizes
    assert sizes.source is not None
    every = stage_of(sizes, sizes.source, range(8), first=True, last=True, seed=seed).state_dict()
    layers = sorted(data.draw(st.sets(st.integers(0, 7))))
    first, last = data.draw(st.booleans()), data.draw(st.booleans())
    stage = stage_of(sizes, sizes.source, layers, first=first, last=last, seed=seed)
    held = stage.state_dict()
    assert all(torch.equal(weight, every[name]) for name, weight in held.items())
    wanted = set(sizes.source.held(layers, first=first, last=last))
    assert {sizes.part_of(name) for name in held} == wanted
    assert sum(weight.numel() for weight in held.values()) == sum(sizes.source.weights(part) for part in wanted)
    tables = [name for name, weight in every.items() if weight.ndim == 2 and not torch.equal(weight, weight[:1])]
    other = stage_of(sizes, sizes.source, range(8), first=True, last=True, seed=seed + 1).state_dict()
    assert all(not torch.equal(every[name], other[name]) for name in tables)


def test_weights_of_transformers_have_the_spread_that_its_own_initialisation_gives(looked: dict[str, Looked]) -> None:
    for kind in SMALL:
        sizes = looked[kind].sizes
        assert sizes.source is not None
        torch.manual_seed(0)
        theirs = dict(from_config(Path(sizes.source.path)).named_parameters())
        ours = stage_of(sizes, sizes.source, range(8), first=True, last=True, seed=0)
        for name, weight in ours.named_parameters():
            if weight.numel() >= 1024:
                assert weight.std().item() == pytest.approx(theirs[name].std().item(), rel=0.2), (kind, name)
            elif weight.ndim == 1:
                assert torch.equal(weight, theirs[name]), (kind, name)


def test_a_function_of_a_file_keeps_the_weights_that_its_module_draws(
    looked: dict[str, Looked], tmp_path: Path
) -> None:
    sizes = looked["hand-written"].sizes
    assert sizes.source is not None
    torch.manual_seed(11)
    plain = from_function(Path(sizes.source.path), "build").state_dict()
    stage = stage_of(sizes, sizes.source, range(8), first=True, last=True, seed=11)
    assert all(torch.equal(weight, plain[name]) for name, weight in stage.state_dict().items())


def test_what_cards_are_told_of_a_module_survives_a_text(looked: dict[str, Looked]) -> None:
    for found in looked.values():
        assert Sizes(**json.loads(json.dumps(asdict(found.sizes)))) == found.sizes


# What is counted.


def flops(operator: Operator) -> float:
    """FLOPs of one token's forward pass at LENGTH, the causal half of attention where it is causal."""
    if operator.kind == "attention":
        context = (LENGTH + 1) / 2 if operator.causal else LENGTH
        return 2 * context * operator.heads * (operator.key_dim + operator.value_dim)
    return operator.matmul_flops_per_token()


@pytest.mark.parametrize("kind", ["hand-written", *SMALL])
def test_a_counted_document_has_the_weights_and_flops_of_the_module(looked: dict[str, Looked], kind: str) -> None:
    found = looked[kind]
    document = found.counted()
    graph = document.graph()
    module = whole(found.sizes)
    assert graph.parameters == sum(one.numel() for one in module.parameters()) == found.sizes.parameters
    assert len(graph.layers) == 8
    assert "counted" in str(document.note)
    assert "not published" in str(document.note)
    operators = [*graph.stem, *graph.head, *(one for kind in graph.layers for one in graph.kinds[kind].operators)]
    with FlopCount() as count, torch.no_grad():
        module(torch.zeros((1, LENGTH), dtype=torch.long))
    assert sum(map(flops, operators)) * LENGTH == pytest.approx(count.total, rel=1e-9)
    again = type(document).from_data(document.to_data())
    assert again.graph() == graph


def test_a_module_that_draws_numbers_in_training_is_told_apart(looked: dict[str, Looked], tmp_path: Path) -> None:
    assert looked["hand-written"].traced.drops
    without = written(tmp_path, HAND_WRITTEN.replace("nn.Dropout(0.1)", "nn.Dropout(0.0)"))
    assert not look_through("python", without, "build", LENGTH).traced.drops
    assert looked["gpt2"].traced.drops, "its configuration's 0.1"
    assert not looked["qwen3"].traced.drops


def test_a_model_of_any_size_is_looked_through_without_memory_for_it(tmp_path: Path) -> None:
    large = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    path = configured(tmp_path, "qwen2", **large, intermediate_size=29568, vocab_size=152064)
    found = look_through("transformers", path, "", 4096)
    assert found.sizes.parameters == found.counted().graph().parameters == 72_706_203_648
    assert all(one.is_meta for one in found.module.parameters())


# What is refused before anything starts.


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (plan(pipeline([4, 4], "ac", 6), schedule="zero-bubble"), "zero-bubble"),
        (plan(pipeline([5, 3], "ac", 6), schedule="dualpipe"), "dualpipe"),
        (
            plan(pipeline([8], "c", 6)).model_copy(
                update={
                    "pipelines": (
                        pipeline([8], "c", 6).model_copy(
                            update={
                                "stages": (pipeline([8], "c", 6).stages[0].model_copy(update={"tensor_parallel": 2}),)
                            }
                        ),
                    )
                }
            ),
            "tensor parallelism of 2",
        ),
    ],
    ids=["zero bubble", "dualpipe", "tensor parallel"],
)
def test_what_a_module_must_be_known_from_inside_for_is_refused(
    looked: dict[str, Looked], chosen: Plan, words: str
) -> None:
    with pytest.raises(CapabilityError, match=words) as caught:
        run_plan(chosen, QUARTET, looked["hand-written"].sizes, EXECUTION)
    assert caught.value.hint
