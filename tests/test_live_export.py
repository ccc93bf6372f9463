"""What a run has trained, as a Hugging Face directory: transformers computes with it what the run did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cli_runner import Call, caller
from foreign_modules import configured, written
from live_pools import LENGTH, TINY, formation, pipeline, plan, pool
from zhenfa.errors import CapabilityError, InputError
from zhenfa.live import data
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.export import export, kind_of
from zhenfa.live.foreign.build import from_function, weightless
from zhenfa.live.foreign.look import look_through
from zhenfa.live.run import run_plan
from zhenfa.live.sizes import Mixture, Sizes
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Plan

MACHINE = formation(pool("a", 4), pool("b", 4))
MIXTRAL = replace(TINY, layers=4, intermediate=0, mixture=Mixture(4, 2, 24, (0, 1, 2, 3)))
QWEN = replace(TINY, layers=4, mixture=Mixture(4, 2, 24, (1, 3), normalized=False, shared=16, shared_gate=True))
UNEQUAL = plan(pipeline([5, 3], "ab", 2), pipeline([8], "b", 2), zero=1)


def experts_over_two() -> Plan:
    base = pipeline([4], "a", 2)
    (stage,) = base.stages
    return plan(base.model_copy(update={"count": 2, "stages": (stage.model_copy(update={"expert_parallel": 2}),)}))


def split_matrices() -> Plan:
    base = pipeline([3, 1], "ab", 4)
    stages = tuple(stage.model_copy(update={"tensor_parallel": 2}) for stage in base.stages)
    return plan(base.model_copy(update={"stages": stages}))


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    return caller(capsys, monkeypatch)


def their_loss(folder: Path, step: int, batch: int) -> float:
    """The loss of a step's batch as transformers computes it with the weights of a directory."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs, targets = data.batch(data.corpus("python-stdlib"), seed=7, step=step, global_batch=batch, length=LENGTH)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(np.array(inputs))).logits.float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(np.array(targets)).flatten()))


@pytest.mark.live
@pytest.mark.parametrize(
    ("sizes", "chosen", "kind"),
    [
        (TINY, UNEQUAL, "llama"),
        (replace(TINY, tied=True, eps=1e-3, rope_theta=500.0), UNEQUAL, "llama"),
        (TINY, UNEQUAL.model_copy(update={"zero": 3}), "llama"),
        (MIXTRAL, experts_over_two(), "mixtral"),
        (QWEN, split_matrices(), "qwen2_moe"),
    ],
    ids=["llama", "tied", "rows of weights", "mixtral", "qwen2_moe"],
)
def test_transformers_computes_what_the_run_did(
    engine: LocalEngine, tmp_path: Path, sizes: Sizes, chosen: Plan, kind: str
) -> None:
    execution = Execution(steps=4, learning_rate=1e-2, seed=7, checkpoint_every=3)
    run = run_plan(chosen, MACHINE, sizes, execution, engine=engine, out_dir=tmp_path / "run")
    batch = sum(one.count * one.micro_batches * one.micro_batch_size for one in chosen.pipelines)
    found = export(tmp_path / "run/checkpoint-000003", tmp_path / "three", file_bytes=40_000)
    assert (found.step, found.model_type) == (3, kind)
    assert len(found.files) > 3, "the weights are spread over files, as large ones are"
    assert their_loss(tmp_path / "three", 4, batch) == pytest.approx(run.losses[3], rel=1e-5)
    newest = export(tmp_path / "run", tmp_path / "four", precision="bf16")
    assert (newest.step, newest.files) == (4, ("config.json", "model.safetensors"))
    assert newest.parameters == found.parameters == counted(tmp_path / "four")
    assert their_loss(tmp_path / "four", 4, batch) < run.losses[3], "a step further on its own batch"


@pytest.mark.live
def test_a_model_that_transformers_built_keeps_its_configuration_and_names(engine: LocalEngine, tmp_path: Path) -> None:
    sizes = look_through("transformers", configured(tmp_path / "gpt2", "gpt2"), "", LENGTH).sizes
    execution = Execution(steps=3, learning_rate=1e-2, seed=7, checkpoint_every=2)
    chosen = plan(pipeline([5, 3], "ab", 6))
    run = run_plan(chosen, MACHINE, sizes, execution, engine=engine, out_dir=tmp_path / "run")
    found = export(tmp_path / "run/checkpoint-000002", tmp_path / "out")
    assert (found.model_type, found.architecture, found.parameters) == ("gpt2", "gpt2", sizes.parameters)
    assert their_loss(tmp_path / "out", 3, 6) == pytest.approx(run.losses[2], rel=1e-5)
    config = tmp_path / "gpt2/config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(InputError, match="has changed since the run"):
        export(tmp_path / "run", tmp_path / "other")
    config.unlink()
    with pytest.raises(InputError, match="from which the model was built, cannot be read: No such file"):
        export(tmp_path / "run", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.live
def test_a_module_of_a_file_gives_its_weights_under_its_own_names(engine: LocalEngine, tmp_path: Path) -> None:
    file = written(tmp_path)
    sizes = look_through("python", file, "build", LENGTH).sizes
    run_plan(
        plan(pipeline([5, 3], "ab", 2)), MACHINE, sizes, Execution(steps=1), engine=engine, out_dir=tmp_path / "run"
    )
    found = export(tmp_path / "run", tmp_path / "out")
    assert (found.model_type, found.architecture, found.files) == (None, f"{file.name}:build", ("model.safetensors",))
    with weightless():
        module = from_function(file, "build")
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no mapping
    assert shapes == {name: list(weight.shape) for name, weight in module.named_parameters()}


def counted(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        rows = [tensors.get_tensor(name) for name in tensors.keys()]  # noqa: SIM118 - no mapping
    assert {row.dtype for row in rows} == {torch.bfloat16}
    return sum(row.numel() for row in rows)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (replace(TINY, gated=False), "MLPs of two matrices without biases"),
        (replace(MIXTRAL, mixture=replace(MIXTRAL.mixture, gated=False)), "experts or MLPs of two matrices"),
        (replace(QWEN, mixture=replace(QWEN.mixture, shared_gate=False)), "a shared expert that no learnt number"),
        (replace(MIXTRAL, mixture=replace(MIXTRAL.mixture, normalized=False)), "weights that are not normalized"),
        (replace(QWEN, mixture=Mixture(4, 2, 24, (1, 3))), "dense layers among them"),
    ],
)
def test_models_that_transformers_does_not_know_are_refused(sizes: Sizes, words: str) -> None:
    with pytest.raises(CapabilityError, match=words) as refused:
        kind_of(sizes)
    assert "LlamaForCausalLM, MixtralForCausalLM, Qwen2MoeForCausalLM" in (refused.value.hint or "")


@pytest.mark.live
def test_the_command(zhenfa: Call, engine: LocalEngine, tmp_path: Path) -> None:
    execution = Execution(steps=1, seed=7)
    run_plan(plan(pipeline([8], "a", 1)), MACHINE, TINY, execution, engine=engine, out_dir=tmp_path / "run")
    shown = zhenfa("export", tmp_path / "run", "--to", tmp_path / "out")
    assert (shown.code, shown.out.split()) == (
        0,
        [f"{tmp_path}/out/{one}" for one in ("config.json", "model.safetensors")],
    )
    assert "LlamaForCausalLM" in shown.err
    assert "after step 1" in shown.err
    assert oct((tmp_path / "out").stat().st_mode)[-1] == "0"
    told = json.loads(zhenfa("export", tmp_path / "run", "--to", tmp_path / "more", "--json", "--quiet").out)
    assert (told["schema"], told["step"], told["architecture"]) == ("zhenfa.exported/1", 1, "LlamaForCausalLM")
    again = zhenfa("export", tmp_path / "run", "--to", tmp_path / "out")
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err
    missing = zhenfa("export", tmp_path / "nothing", "--to", tmp_path / "x")
    assert missing.code == 2
    assert "hint: name the folder of a run" in missing.err
    (tmp_path / "empty").mkdir()
    assert "no whole checkpoint" in zhenfa("export", tmp_path / "empty", "--to", tmp_path / "x").err
    weights = next((tmp_path / "run/checkpoint-000001").glob("*.distcp"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    spoiled = zhenfa("export", tmp_path / "run", "--to", tmp_path / "x")
    assert spoiled.code == 2
    assert "has changed since it was written" in spoiled.err
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob("*.partial"))
