"""Plans as arguments of Megatron-LM, MindSpeed-LLM and torchtitan: what the scripts really hand over, and refusals."""

from __future__ import annotations

import ast
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emit_plans import emitted, file_of, handed, options, subject
from zhenfa.errors import CapabilityError
from zhenfa.plan.answer import find_plans
from zhenfa.plan.emit import emit, read_subject
from zhenfa.plan.emit.door import reasons_against
from zhenfa.plan.emit.recorded import recorded
from zhenfa.plan.emit.registry import target
from zhenfa.plan.emit.rules import as_1f1b, equal_replicas
from zhenfa.plan.request import read_request
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.validation.train_layout import expand_layout

ROOT = Path(__file__).parent.parent
MEGATRON = ["deepseek-v3-superpod", "deepseek-v3-pipeline", "llama3-70b-superpod", "llama3-8b-interleaved"]
MINDSPEED = ["deepseek-v3-cloudmatrix384", "deepseek-v3-mixed-demo"]
NOWHERE = {("megatron", "deepseek-v3-cloudmatrix384"), *(("mindspeed", plan) for plan in MEGATRON)}
"""Plans on cards of which the target runs on none."""
CASES = [("megatron", "MEGATRON", plan) for plan in [*MEGATRON, "deepseek-v3-mixed-demo"]]
CASES += [("mindspeed", "MINDSPEED_LLM", plan) for plan in MINDSPEED]


def number(found: dict[str, list[str]], name: str) -> int:
    return int(found[name][0])


@pytest.mark.parametrize(("to", "home", "plan"), CASES)
def test_every_argument_exists_and_they_add_up(to: str, home: str, plan: str, tmp_path: Path) -> None:
    found = emitted(plan, to)
    words = handed(found, f"{to}.sh", "torchrun", tmp_path, **{home: "/m", "DEVICES_PER_NODE": "8"})
    start = words.index("/m/pretrain_gpt.py")
    launch, given_ = options(words[:start]), options(words[start + 1 :])
    assert recorded(to).problems(words[start + 1 :]) == []
    world = number(launch, "--nnodes") * number(launch, "--nproc_per_node")
    degrees = [number(given_, f"--{name}-size") for name in (
        "tensor-model-parallel", "pipeline-model-parallel", "context-parallel"
    )]  # fmt: skip
    replicas = world // (degrees[0] * degrees[1] * degrees[2])
    assert isinstance(found.plan, Plan)
    assert replicas == found.plan.replicas
    assert number(given_, "--global-batch-size") == found.plan.global_batch
    assert found.plan.global_batch % (replicas * number(given_, "--micro-batch-size")) == 0
    if "--num-experts" in given_:
        spread = number(given_, "--expert-model-parallel-size") * number(given_, "--expert-tensor-parallel-size")
        assert (world // degrees[1]) % spread == 0
        assert number(given_, "--num-experts") % number(given_, "--expert-model-parallel-size") == 0


def test_unequal_layers_become_a_layout(tmp_path: Path) -> None:
    found = emitted("deepseek-v3-pipeline", "megatron")
    given_ = options(handed(found, "megatron.sh", "torchrun", tmp_path, MEGATRON="/m"))
    assert given_["--pipeline-model-parallel-layout"] == ["Et*15|t*16|t*15|t*15L"]
    assert list(expand_layout("Et*15|t*16|t*15|t*15L")) == [15, 16, 15, 15]


def test_interleaved_stages_and_layers_recomputed_in_part(tmp_path: Path) -> None:
    found = emitted("llama3-8b-interleaved", "megatron")
    given_ = options(handed(found, "megatron.sh", "torchrun", tmp_path, MEGATRON="/m"))
    assert given_["--pipeline-model-parallel-layout"] == ["Et*7|t*9|t*9|t*7L"]
    assert given_["--pipeline-model-parallel-size"] == ["2"]
    assert given_["--recompute-method"] == ["block"]
    assert given_["--recompute-num-layers"] == ["3"]
    assert not found.changes


def test_an_optimizer_in_host_memory_shares_out_its_state(tmp_path: Path) -> None:
    read = subject("llama3-8b-interleaved")
    assert isinstance(read.plan, Plan)
    (pipe,) = read.plan.pipelines
    few = [pipe.model_copy(update={"count": 1, "micro_batches": pipe.micro_batches * pipe.count})]
    whole = read.plan.model_copy(update={"offload": "optimizer", "zero": 0})
    (reason,) = reasons_against(replace(read, plan=whole), target("megatron"))
    assert "ZeRO stage 1" in reason
    nearest = emit(replace(read, plan=whole), "megatron", nearest=True).plan
    assert isinstance(nearest, Plan)
    assert (nearest.zero, nearest.offload) == (1, "optimizer")
    for plan in (nearest, whole.model_copy(update={"pipelines": tuple(few)})):
        found = emit(replace(read, plan=plan), "megatron")
        words = options(handed(found, "megatron.sh", "torchrun", tmp_path, MEGATRON="/m", DEVICES_PER_NODE="8"))
        assert {"--optimizer-cpu-offload", "--use-precision-aware-optimizer", "--use-distributed-optimizer"} <= set(
            words
        )


def test_shape_comes_from_the_model(tmp_path: Path) -> None:
    found = emitted("deepseek-v3-superpod", "megatron")
    given_ = options(handed(found, "megatron.sh", "torchrun", tmp_path, MEGATRON="/m"))
    assert given_["--moe-layer-freq"] == ["([0]*3+[1]*58)"]
    assert given_["--kv-lora-rank"] == ["512"]
    assert given_["--moe-shared-expert-intermediate-size"] == ["2048"]
    assert given_["--vocab-size"] == ["129279"], "one less: the null tokenizer adds an end of document"
    assert given_["--data-parallel-sharding-strategy"] == ["optim_grads_params"]


def test_a_package_of_two_dies_is_two_devices(tmp_path: Path) -> None:
    found = emitted("deepseek-v3-cloudmatrix384", "mindspeed")
    words = handed(found, "mindspeed.sh", "torchrun", tmp_path, MINDSPEED_LLM="/m")
    given_ = options(words)
    assert number(given_, "--nnodes") * number(given_, "--nproc_per_node") == 768
    assert given_["--tensor-model-parallel-size"] == ["4"]
    assert given_["--expert-model-parallel-size"] == ["128"]
    assert given_["--num-layer-list"] == ["10,11,11,11,11,7"]
    assert {"--recompute-norm", "--recompute-activation-function"} <= given_.keys()
    assert not found.changes
    assert any("2 devices in one ascend-910c" in note for note in found.notes)
    last = [line for line in file_of(found, "mindspeed.sh").splitlines() if line.startswith("# ranks")][-1]
    assert last == "# ranks 640-767: layers 54-60 on ascend"


@pytest.mark.parametrize("plan", [*MEGATRON, "deepseek-v3-cloudmatrix384"])
def test_torchtitan_module_is_python_whose_batches_add_up(plan: str) -> None:
    found = emitted(plan, "torchtitan")
    assert isinstance(found.plan, Plan)
    module = ast.parse(file_of(found, "zhenfa_job.py"))
    values = {
        ast.unparse(node.targets[0]).rpartition(".")[2]: node.value
        for node in ast.walk(module) if isinstance(node, ast.Assign)
    }  # fmt: skip
    local, whole = ast.literal_eval(values["local_batch_size"]), ast.literal_eval(values["global_batch_size"])
    assert whole == found.plan.global_batch
    assert whole % (local * found.plan.replicas) == 0
    call = values["parallelism"]
    assert isinstance(call, ast.Call)
    degrees = {
        word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg != "module_fqns_per_model_part"
    }
    world = int(file_of(found, "torchtitan.sh").partition("WORLD_SIZE=")[2].split()[0])
    assert world == (
        degrees["data_parallel_replicate_degree"] * degrees["data_parallel_shard_degree"]
        * degrees["tensor_parallel_degree"] * degrees["context_parallel_degree"] * degrees["pipeline_parallel_degree"]
    )  # fmt: skip


# What cannot be expressed.


def test_unequal_batches_are_refused_with_the_nearest_plan() -> None:
    with pytest.raises(CapabilityError) as problem:
        emit(subject("deepseek-v3-superpod"), "megatron")
    assert problem.value.message == (
        "Megatron-LM cannot run this plan: 768 replicas run 4 micro-batches of 4 and 256 replicas run 3 micro-batches "
        "of 4, and Megatron-LM gives every replica the same."
    )
    assert problem.value.hint is not None
    assert problem.value.hint.startswith(
        "the nearest plan that Megatron-LM takes is TP1 PP1 DP1024 EP8 ZeRO-3 on 1,024"
    )
    assert "estimated step" in problem.value.hint
    assert problem.value.exit_code == 1


def test_makers_that_meet_are_refused_and_each_is_planned_alone() -> None:
    with pytest.raises(CapabilityError) as problem:
        emit(subject("deepseek-v3-mixed-demo"), "megatron")
    assert "Huawei Ascend and Hygon/Sugon and NVIDIA meet in data parallel" in problem.value.message
    hint = problem.value.hint or ""
    assert hint.index("--nearest writes it. ") < hint.index("--to slurm, k8s or ray") < hint.index("`zhenfa run`")
    instead = emitted("deepseek-v3-mixed-demo", "mindspeed").plan
    assert isinstance(instead, Plan)
    assert set(instead.cards_by_pool()) == {"ascend"}
    assert instead.global_batch == subject("deepseek-v3-mixed-demo").training.global_batch


@pytest.mark.parametrize(
    ("to", "plan"),
    [
        (to, plan)
        for to in ("megatron", "mindspeed", "torchtitan")
        for plan in [*MEGATRON, *MINDSPEED]
        if (to, plan) != ("torchtitan", "deepseek-v3-mixed-demo")
    ],
)
def test_what_is_written_instead_breaks_no_rule(to: str, plan: str) -> None:
    if (to, plan) in NOWHERE:
        with pytest.raises(CapabilityError) as problem:
            emitted(plan, to)
        assert "no plan near it was found" in str(problem.value.hint)
        return
    found = emitted(plan, to)
    given_ = subject(plan).training
    assert isinstance(found.plan, Plan)
    assert found.plan.global_batch == given_.global_batch
    assert reasons_against(subject(plan).with_plan(found.plan), target(to)) == []
    assert bool(found.changes) == bool(reasons_against(subject(plan), target(to)))


def test_a_model_without_words_is_refused() -> None:
    there = subject("llama3-8b-interleaved")
    from zhenfa import catalog

    odd = catalog.model("qwen3-next-80b-a3b")
    with pytest.raises(CapabilityError, match="Megatron-LM has no words for qwen3-next-80b-a3b"):
        target("megatron").write(type(there)(there.plan, odd, there.formation))
    with pytest.raises(CapabilityError, match=r"torchtitan 0\.3\.0 has no configuration of qwen3-next-80b-a3b"):
        target("torchtitan").write(type(there)(there.plan, odd, there.formation))


# The changes themselves, for any plan.


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw plans of one cut whose replicas run unequal numbers of micro-batches."""
    places, virtual = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2]))
    layers = draw(st.lists(st.integers(0, 5), min_size=places * virtual, max_size=places * virtual))
    tensor = draw(st.sampled_from([1, 2, 4]))
    ends = [sum(layers[:index]) for index in range(len(layers) + 1)]
    stages = tuple(Stage(pool="a", first=first, last=last, tensor_parallel=tensor) for first, last in pairwise(ends))
    size = draw(st.integers(1, 4))
    counts = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3))
    schedule = draw(st.sampled_from(["interleaved", "zero-bubble-v"])) if virtual == 2 else "1f1b"
    return Plan(
        job="j", model="m", machine="x", sequence_length=8, precision="bf16", schedule=schedule,
        pipelines=tuple(
            Pipeline(count=count, micro_batches=times, micro_batch_size=size, virtual_stages=virtual, stages=stages)
            for count, times in counts
        ),
    )  # fmt: skip


@given(plan=plans())
def test_one_stage_to_a_place_keeps_layers_and_cards(plan: Plan) -> None:
    simple = as_1f1b(plan)
    assert simple.layers == plan.layers
    assert simple.cards == plan.cards
    assert all(pipe.places == len(pipe.stages) == plan.pipelines[0].places for pipe in simple.pipelines)


@given(plan=plans())
def test_equal_replicas_keep_the_global_batch(plan: Plan) -> None:
    rule, there = equal_replicas("it"), subject("llama3-8b-interleaved")
    for changed in rule.change(plan, there):
        assert changed.global_batch == plan.global_batch
        assert changed.replicas <= plan.replicas
        assert rule.reason(changed, there) == ""


@pytest.mark.parametrize(
    ("job", "machine", "modules"),
    [
        ("llama3-70b-train", "dgx-superpod-h100", {("norm",)}),
        ("deepseek-v3-train", "dgx-superpod-h100", {("norm", "expert-activation", "up-projection")}),
        ("deepseek-v3-train", "cloudmatrix384", {()}),
    ],
)
def test_what_is_planned_computes_again_what_the_engine_can(
    job: str, machine: str, modules: set[tuple[str, ...]], tmp_path: Path
) -> None:
    """Megatron-Core has no way to compute activation functions of dense layers again alone; MindSpeed on Ascend has."""
    answer = find_plans(read_request(str(ROOT / f"examples/{job}.yaml"), on=machine))
    chosen = [
        stage.recompute_modules
        for one in answer.plans for pipe in one.plan.pipelines for stage in pipe.stages
        if stage.recompute == "selective"
    ]  # fmt: skip
    assert set(chosen) == modules
    path = tmp_path / "plan.yaml"
    path.write_text(answer.best.plan.to_yaml(), encoding="utf-8")
    to = "megatron" if machine.startswith("dgx") else "mindspeed"
    assert not [one for one in reasons_against(read_subject(str(path)), target(to)) if "recomputation" in one]
    if to == "megatron":
        assert emit(read_subject(str(path)), to).files
