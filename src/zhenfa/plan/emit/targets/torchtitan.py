"""torchtitan: a Python module with one configuration, as its ``--module`` and ``--config`` take it."""

from __future__ import annotations

from typing import Final

from zhenfa import __version__
from zhenfa.errors import CapabilityError
from zhenfa.estimate.report import summary
from zhenfa.plan.emit import megatron_words as share
from zhenfa.plan.emit import rules
from zhenfa.plan.emit.devices import per_device
from zhenfa.plan.emit.launch import CARDS_PER_NODE, Group
from zhenfa.plan.emit.shell import comments
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File, Rule, Target, Written
from zhenfa.spec.plan import Pipeline, Plan, RecomputeModule, Schedule, Stage

TITLE: Final = "torchtitan"
VERSION: Final = "0.3.0"
SCHEDULES: Final[dict[Schedule, str]] = {
    "gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zero-bubble-v": "ZBVZeroBubble",
}  # fmt: skip
MODELS: Final = {
    "llama3-8b": ("llama3", "llama3_8b"), "llama3-70b": ("llama3", "llama3_70b"),
    "llama3-405b": ("llama3", "llama3_405b"), "deepseek-v3": ("deepseek_v3", "deepseek_v3_671b"),
    "deepseek-r1": ("deepseek_v3", "deepseek_v3_671b"), "qwen3-0.6b": ("qwen3", "qwen3_0_6b"),
    "qwen3-1.7b": ("qwen3", "qwen3_1_7b"), "qwen3-14b": ("qwen3", "qwen3_14b"), "qwen3-32b": ("qwen3", "qwen3_32b"),
    "qwen3-30b-a3b": ("qwen3", "qwen3_30b_a3b"),
}  # fmt: skip
"""Catalog models by torchtitan's module and the configuration that has their shape."""

SELECTIVE: Final[tuple[RecomputeModule, ...]] = ("norm", "activation", "alternate-matmul")
"""What torchtitan's selective recomputation computes again: all but every other matmul, attention and messages."""

RESHARD: Final = {None: "always", "layer": "always", "micro-batch": "never"}


def write(subject: Subject) -> Written:
    """Return the module, and the script that starts it."""
    if subject.model.name not in MODELS:
        raise CapabilityError(
            f"torchtitan {VERSION} has no configuration of {subject.model.name}.", hint=f"it has {', '.join(MODELS)}."
        )
    group = share.one_group(subject)
    subject, notes = per_device(subject)
    files = (
        File("zhenfa_job.py", _module(subject)),
        File("torchtitan.sh", _launch(subject, group), executable=True),
    )
    return Written(files, (*notes, *_notes(subject)))


def _module(subject: Subject) -> str:
    plan = subject.training
    package, base = MODELS[subject.model.name]
    job = subject.job
    head = f"{subject.model.name} on {subject.formation.name}: {summary(plan)}. Written by zhenfa {__version__} for " \
           f"torchtitan {VERSION}."  # fmt: skip
    lines = [
        f'"""{head}"""', "",
        *(["from torchtitan.components.optimizer import default_adamw"] if job else []),
        "from torchtitan.config import ParallelismConfig",
        *_activation_import(share.degrees(plan)), f"from torchtitan.models.{package}.config_registry import {base}",
        "", "", "def job():", f"    config = {base}()", *(f"    config.training.{line}" for line in _training(subject)),
        "    config.parallelism = ParallelismConfig(", *(f"        {line}," for line in _parallelism(plan)), "    )",
        f"    config.activation_checkpoint = {_activation(share.degrees(plan))}",
        *([f"    config.optimizer = default_adamw(lr={job.execution.learning_rate!r})"] if job else []),
        "    return config",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _training(subject: Subject) -> list[str]:
    """Return the batches, number format and length of the run."""
    plan, job = subject.training, subject.job
    pipe = plan.pipelines[0]
    local = pipe.micro_batch_size * (pipe.micro_batches if pipe.places > 1 else 1)
    found = [
        f"local_batch_size = {local}", f"global_batch_size = {plan.global_batch}", f"seq_len = {plan.sequence_length}",
        f'mixed_precision_param = "{"bfloat16" if rules.precision_of(plan) == "bf16" else "float32"}"',
    ]  # fmt: skip
    if pipe.places > 1 or share.degrees(plan).expert_parallel > 1:
        found.append("disable_cuda_graphs = True")
    tokens = getattr(job.workload, "tokens", None) if job else None
    return found + ([f"steps = {int(tokens // (plan.global_batch * plan.sequence_length))}"] if tokens else [])


def _parallelism(plan: Plan) -> list[str]:
    """Return the degrees, the split of the layers and the schedule."""
    stage, pipe = share.degrees(plan), plan.pipelines[0]
    replicate, shard = _shards(plan)
    found = [
        f"data_parallel_replicate_degree={replicate}", f"data_parallel_shard_degree={shard}",
        f'fsdp_reshard_after_forward="{RESHARD.get(plan.reshard, "default")}"',
        f"tensor_parallel_degree={stage.tensor_parallel}",
        f"enable_sequence_parallel={plan.sequence_parallel is not False}",
        f"context_parallel_degree={stage.context_parallel}", f"expert_parallel_degree={stage.expert_parallel}",
        f"pipeline_parallel_degree={pipe.places}",
    ]  # fmt: skip
    if pipe.places > 1:
        found += [
            f'pipeline_parallel_schedule="{SCHEDULES[plan.schedule]}"',
            f"pipeline_parallel_microbatch_size={pipe.micro_batch_size}",
            f"module_fqns_per_model_part={_split(pipe)}",
        ]
    return found


def _split(pipe: Pipeline) -> str:
    """Return the modules of every stage as Python: layers by a range, the ends with the first and the last."""
    parts = []
    for index, stage in enumerate(pipe.stages):
        layers = f'[f"layers.{{i}}" for i in range({stage.first}, {stage.last})]'
        first = '["tok_embeddings"] + ' if index == 0 else ""
        last = ' + ["norm", "lm_head"]' if index == len(pipe.stages) - 1 else ""
        parts.append(f"            {first}{layers}{last},")
    return "[\n" + "\n".join(parts) + "\n        ]"


def _shards(plan: Plan) -> tuple[int, int]:
    """Return over how many replicas weights are copied, and over how many shared out."""
    if plan.zero == 0:
        return plan.replicas, 1
    over = plan.replicas if plan.shard_group is None else plan.shard_group // share.degrees(plan).context_parallel
    return plan.replicas // over, over


def _activation_import(stage: Stage) -> list[str]:
    names = {"full": "FullAC", "selective": "SelectiveAC"}
    if stage.recompute == "none":
        return []
    return [f"from torchtitan.distributed.activation_checkpoint import {names[stage.recompute]}"]


def _activation(stage: Stage) -> str:
    return {"none": "None", "full": "FullAC.Config()", "selective": "SelectiveAC.Config()"}[stage.recompute]


def _launch(subject: Subject, group: Group) -> str:
    per_node = group.devices_per_node
    size = f"${{DEVICES_PER_NODE:-{per_node}}}" if per_node else "${DEVICES_PER_NODE:?devices of one host}"
    head = ["Run it on every host with NODE_RANK=0, 1, ... and MASTER_ADDR the address of host 0; what is added to the "
            "command line changes the configuration, such as --training.steps 10."]  # fmt: skip
    lines = [
        "#!/usr/bin/env bash", comments(head), "set -euo pipefail", "",
        f"DEVICES_PER_NODE={size}", f"WORLD_SIZE={group.devices}",
        "NNODES=${NNODES:-$(((WORLD_SIZE + DEVICES_PER_NODE - 1) / DEVICES_PER_NODE))}",
        'export PYTHONPATH="$(cd "$(dirname "$0")" && pwd)${PYTHONPATH:+:$PYTHONPATH}"',
        'exec torchrun --nproc_per_node "$DEVICES_PER_NODE" --nnodes "$NNODES" --node_rank "${NODE_RANK:-0}" \\',
        '  --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \\',
        '  -m torchtitan.train --module zhenfa_job --config job "$@"',
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _notes(subject: Subject) -> list[str]:
    found = ["the tokenizer is looked for where torchtitan keeps it (--hf_assets_path)"]
    if subject.job is None:
        found.append("no --job was given, so learning rate and length of the run are torchtitan's own for this model")
    if subject.model.mtp:
        found.append("the plan is of the main model; multi-token prediction is not in it")
    maker = subject.pools()[0].maker
    if maker not in ("NVIDIA", "AMD", "Intel"):
        found.append(f"torchtitan itself is not tested on {maker}: it is that maker's port that runs this")
    return found


# What it cannot express.


def _shared_out(plan: Plan, subject: Subject) -> str:
    if plan.zero in (1, 2):
        return f"ZeRO-{plan.zero} is not in torchtitan, which shares out weights too or nothing"
    if plan.zero == 3 and plan.reshard == "step":
        return "weights kept over a step (reshard step) are not in torchtitan"
    usual = {None, "micro-batch" if plan.zero == 3 else "step"}
    return "" if plan.reduce_every in usual else f"under ZeRO-{plan.zero} it does not reduce every {plan.reduce_every}"


def _share_out(plan: Plan, subject: Subject) -> list[Plan]:
    usual = {"reduce_every": None, "shard_group": plan.shard_group if plan.zero == 3 else None}
    kept: list[object] = ["micro-batch", None]
    return [plan.model_copy(update={"zero": 3, "reshard": one, **usual}) for one in kept]


def _selective(plan: Plan, subject: Subject) -> str:
    stages = [stage for pipe in plan.pipelines for stage in pipe.stages]
    if any(stage.recompute_layers is not None for stage in stages):
        return "recomputing some layers of a stage is not in torchtitan"
    other = [stage for stage in stages if stage.recompute == "selective" and {*rules.modules_of(stage)} != {*SELECTIVE}]
    if not other:
        return ""
    return f"selective recomputation of {' and '.join(rules.modules_of(other[0]))} alone is not in torchtitan"


def _selected(plan: Plan, subject: Subject) -> list[Plan]:
    return [_with(plan, "selective", SELECTIVE), _with(plan, "none", ()), _with(plan, "full", ())]


def _with(plan: Plan, how: str, modules: tuple[RecomputeModule, ...]) -> Plan:
    update = {"recompute": how, "recompute_modules": modules, "recompute_layers": None}
    return rules.each_stage(plan, lambda stage: update)


def _experts(plan: Plan, subject: Subject) -> str:
    stage = share.degrees(plan)
    if stage.expert_tensor_parallel > 1:
        return "experts that are split (expert tensor parallelism) are not in torchtitan"
    ranks = _shards(plan)[1] * stage.cards
    return "" if ranks % stage.expert_parallel == 0 else (
        f"experts over {stage.expert_parallel} cards do not fit into the {ranks} that share out one copy"
    )  # fmt: skip


TARGET: Final = Target(
    name="torchtitan",
    title=TITLE,
    tasks=("train",),
    version=VERSION,
    source="torchtitan 0.3.0 wheel: torchtitan/config/configs.py, torchtitan/models, torchtitan/distributed",
    write=write,
    settings={"cards-per-node": CARDS_PER_NODE},
    rules=(
        rules.one_maker(TITLE),
        rules.full_weights(TITLE),
        rules.precisions(TITLE, ("bf16", "fp32")),
        rules.schedules(TITLE, tuple(SCHEDULES)),
        rules.one_cut(TITLE),
        rules.equal_replicas(TITLE),
        rules.same_recompute(TITLE),
        Rule(_selective, _selected),
        rules.one_of("offload", ("none",), f"{TITLE} cannot offload {{value}} alone", ("none",)),
        Rule(_shared_out, _share_out),
        rules.one_of(
            "context_exchange", (None, "gather"), f"context exchange {{value}} is not named in {TITLE}", (None,)
        ),
        Rule(_experts),
    ),
)
