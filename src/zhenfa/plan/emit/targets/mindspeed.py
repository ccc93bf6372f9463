"""MindSpeed-LLM: Megatron-LM for Ascend, with its own names for splits, recomputation and experts."""

from __future__ import annotations

from typing import Final

from zhenfa.plan.emit import megatron_words as share
from zhenfa.plan.emit import rules
from zhenfa.plan.emit.devices import per_device
from zhenfa.plan.emit.launch import CARDS_PER_NODE
from zhenfa.plan.emit.recorded import recorded
from zhenfa.plan.emit.script import Launch, launch_script
from zhenfa.plan.emit.shape import Shape, shape_of
from zhenfa.plan.emit.shell import words
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File, Rule, Target, Written
from zhenfa.plan.emit.targets.megatron import attention_words
from zhenfa.spec.plan import ContextExchange, Plan, RecomputeModule

TITLE: Final = "MindSpeed-LLM"
MODULES: Final[dict[RecomputeModule, str]] = {
    "norm": "--recompute-norm", "activation": "--recompute-activation-function",
    "up-projection": "--recompute-mla-up-proj",
}  # fmt: skip
EXCHANGES: Final[dict[ContextExchange, str]] = {"ring": "megatron_cp_algo", "all-to-all": "ulysses_cp_algo"}
PRECISION: Final = {"bf16": ["--bf16"], "fp16": ["--fp16"], "fp32": list[str]()}


def write(subject: Subject) -> Written:
    """Return one script for all hosts."""
    group = share.one_group(subject)
    subject, notes = per_device(subject)
    plan, shape = subject.training, shape_of(subject.model, TITLE)
    arguments = {
        "MODEL_ARGS": [*share.shape_words(shape, plan), *attention_words(shape), *expert_words(shape), *KERNELS],
        "PARALLEL_ARGS": [*share.parallel_words(plan, experts=shape.experts is not None), *grid_words(plan)],
        "BATCH_ARGS": share.batch_words(plan),
        "MEMORY_ARGS": [*recompute_words(plan), *zero_words(plan)],
        "PRECISION_ARGS": PRECISION[rules.precision_of(plan)],
        "RUN_ARGS": share.run_words(subject),
    }
    data = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(shape.vocabulary - 1)]
    variables = {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1", "TASK_QUEUE_ENABLE": "2", "CPU_AFFINITY_CONF": "1",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True", "HCCL_CONNECT_TIMEOUT": "3600",
    }  # fmt: skip
    launch = Launch("mindspeed", TITLE, "MINDSPEED_LLM", "pretrain_gpt.py", arguments, data, variables)
    file = File("mindspeed.sh", launch_script(subject, group, launch), executable=True)
    return Written((file,), (*notes, *_notes(subject)))


KERNELS: Final = ("--use-mcore-models", "--use-flash-attn", "--use-fused-rmsnorm", "--no-masked-softmax-fusion",
                  "--attention-softmax-in-fp32")  # fmt: skip


def expert_words(shape: Shape) -> list[str]:
    """Return what experts add."""
    experts = shape.experts
    if experts is None:
        return []
    dense = shape.sparse.index(True)
    ahead = all(shape.sparse[dense:])
    shared = experts.shared.size // experts.size if experts.shared else None
    return words(
        num_experts=experts.count, moe_router_topk=experts.active, moe_ffn_hidden_size=experts.size,
        first_k_dense_replace=dense if ahead and dense else None,
        moe_layer_freq=1 if ahead else share.frequency(shape.sparse), n_shared_experts=shared,
        moe_router_enable_expert_bias=experts.router_parameters > 0, moe_grouped_gemm=True,
        moe_permutation_async_comm=True, **{"moe_token_dispatcher_type": "alltoall"},
    )  # fmt: skip


def grid_words(plan: Plan) -> list[str]:
    """Return how layers are split over the stages, and how the sequence is exchanged."""
    pipe = plan.pipelines[0]
    layers = [stage.layers for stage in pipe.stages]
    found: list[str] = []
    if len(set(layers)) > 1:
        found += words(num_layer_list=",".join(map(str, layers)))
    elif pipe.virtual_stages > 1:
        found += words(num_layers_per_virtual_pipeline_stage=layers[0])
    if share.degrees(plan).context_parallel > 1:
        found += words(context_parallel_algo=EXCHANGES[plan.context_exchange or "ring"])
    return found


def recompute_words(plan: Plan) -> list[str]:
    """Return what is computed again."""
    stage = share.degrees(plan)
    if stage.recompute == "none":
        return []
    if stage.recompute == "full":
        return share.full_words(stage)
    return [MODULES[module] for module in rules.modules_of(stage)]


def zero_words(plan: Plan) -> list[str]:
    """Return what replicas share out, and what is kept in host memory."""
    found = words(use_distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True)
    return (found if plan.zero else []) + words(swap_optimizer=plan.offload == "optimizer")


def _notes(subject: Subject) -> list[str]:
    found = [
        "the plan knows the model's shape; RoPE base, norm epsilon, the router's scoring and --spec are the "
        "checkpoint's own: add them to the script's own arguments"
    ]
    if subject.job is None:
        found.append(
            "no --job was given, so learning rate and length of the run are yours to add (--lr, --train-iters)"
        )
    if subject.model.mtp:
        found.append("the plan is of the main model; multi-token prediction (--mtp-num-layers) is not in it")
    return found


# What it cannot express.


def _virtual(plan: Plan, subject: Subject) -> str:
    pipe = plan.pipelines[0]
    uneven = plan.schedule == "interleaved" and len({stage.layers for stage in pipe.stages}) > 1
    return (
        "interleaved stages of unequal layers are not in MindSpeed-LLM (--num-layer-list is without them)"
        if uneven
        else ""
    )


def _shared(plan: Plan, subject: Subject) -> str:
    experts = shape_of(subject.model, TITLE).experts
    odd = experts is not None and experts.shared is not None and experts.shared.size % experts.size
    return "a shared expert that is no whole number of experts is not in MindSpeed-LLM" if odd else ""


def _usual(plan: Plan, subject: Subject) -> list[Plan]:
    return [plan.model_copy(update={"reduce_every": None, "reshard": None, "shard_group": None})]


def _drops(plan: Plan, subject: Subject) -> str:
    if plan.shard_group is not None:
        return f"optimizer state shared out over groups of {plan.shard_group} is not written for MindSpeed-LLM"
    return (
        "reducing gradients after every micro-batch is not in MindSpeed-LLM"
        if plan.reduce_every == "micro-batch"
        else ""
    )


TARGET: Final = Target(
    name="mindspeed",
    title=TITLE,
    tasks=("train",),
    version=recorded("mindspeed").version,
    source=recorded("mindspeed").source,
    write=write,
    settings={"cards-per-node": CARDS_PER_NODE},
    rules=(
        rules.makers_only(("Huawei Ascend",), TITLE),
        rules.full_weights(TITLE),
        rules.precisions(TITLE, ("bf16", "fp16", "fp32")),
        Rule(_shared),
        rules.schedules(TITLE, ("1f1b", "interleaved")),
        rules.one_cut(TITLE),
        rules.equal_replicas(TITLE),
        Rule(_virtual, lambda plan, subject: [rules.as_1f1b(plan)]),
        rules.same_recompute(TITLE),
        rules.modules(TITLE, tuple(MODULES), {}, part=False),
        rules.offloads(TITLE, ("none", "optimizer")),
        rules.one_of("zero", (0, 1), f"ZeRO-{{value}} is not in {TITLE}'s Megatron path", (1,)),
        rules.one_of(
            "context_exchange", (None, *EXCHANGES), f"context exchange {{value}} is not in {TITLE}", ("ring",)
        ),
        Rule(_drops, _usual),
    ),
)
