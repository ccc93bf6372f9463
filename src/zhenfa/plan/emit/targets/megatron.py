"""Megatron-LM: ``pretrain_gpt.py`` with the arguments of one plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zhenfa.plan.emit import megatron_words as share
from zhenfa.plan.emit import rules
from zhenfa.plan.emit.devices import per_device
from zhenfa.plan.emit.launch import CARDS_PER_NODE
from zhenfa.plan.emit.recorded import recorded
from zhenfa.plan.emit.script import Launch, launch_script
from zhenfa.plan.emit.shape import Shape, experts_of, shape_of
from zhenfa.plan.emit.shell import words
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File, Rule, Target, Written
from zhenfa.spec.machine import Precision
from zhenfa.spec.model_blocks import LatentAttention
from zhenfa.spec.plan import Plan, RecomputeModule, Stage

TITLE: Final = "Megatron-LM"
MODULES: Final[dict[RecomputeModule, tuple[str, ...]]] = {
    "norm": ("layernorm",), "attention": ("core_attn",), "feed-forward": ("mlp",), "experts": ("moe",),
    "expert-activation": ("moe_act",), "up-projection": ("mla_up_proj",),
}  # fmt: skip
STRATEGIES: Final = {2: "optim_grads", 3: "optim_grads_params"}
PRECISION: Final[dict[Precision, list[str]]] = {
    "bf16": ["--bf16"], "fp16": ["--fp16"], "fp32": [], "fp8": ["--bf16", "--fp8-format", "hybrid"],
    "fp4": ["--bf16", "--fp4-format", "e2m1"],
}  # fmt: skip


def write(subject: Subject) -> Written:
    """Return one script for all hosts."""
    group = share.one_group(subject)
    subject, notes = per_device(subject)
    plan, shape = subject.training, shape_of(subject.model, TITLE)
    variables = {"CUDA_DEVICE_MAX_CONNECTIONS": "32" if plan.zero >= 2 else "1"}
    arguments = {
        "MODEL_ARGS": [*share.shape_words(shape, plan), *attention_words(shape), *expert_words(shape)],
        "PARALLEL_ARGS": [*share.parallel_words(plan, experts=shape.experts is not None), *grid_words(plan, shape)],
        "BATCH_ARGS": share.batch_words(plan),
        "MEMORY_ARGS": [*recompute_words(plan, shape), *zero_words(plan), *offload_words(plan)],
        "PRECISION_ARGS": PRECISION[rules.precision_of(plan)],
        "RUN_ARGS": share.run_words(subject),
    }
    data = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(shape.vocabulary - 1)]
    launch = Launch("megatron", TITLE, "MEGATRON", "pretrain_gpt.py", arguments, data, variables)
    return Written((File("megatron.sh", launch_script(subject, group, launch), executable=True),),
                   (*notes, *_notes(subject, shape)))  # fmt: skip


def attention_words(shape: Shape) -> list[str]:
    """Return what latent attention adds."""
    attention = shape.attention
    if not isinstance(attention, LatentAttention):
        return words(window_size=f"{attention.window - 1},0" if attention.window else None)
    return words(
        multi_latent_attention=True, q_lora_rank=attention.query_rank, kv_lora_rank=attention.latent_rank,
        qk_head_dim=attention.nope_dim, qk_pos_emb_head_dim=attention.rope_dim, v_head_dim=attention.value_dim,
    )  # fmt: skip


def expert_words(shape: Shape) -> list[str]:
    """Return what experts add."""
    experts = shape.experts
    if experts is None:
        return []
    return words(
        num_experts=experts.count, moe_router_topk=experts.active, moe_ffn_hidden_size=experts.size,
        moe_layer_freq=None if all(shape.sparse) else share.frequency(shape.sparse),
        moe_shared_expert_intermediate_size=experts.shared.size if experts.shared else None,
        moe_router_enable_expert_bias=experts.router_parameters > 0,
        moe_grouped_gemm=True, **{"moe_token_dispatcher_type": "alltoall"},
    )  # fmt: skip


def grid_words(plan: Plan, shape: Shape) -> list[str]:
    """Return how layers are split over the stages, and how the sequence is exchanged."""
    pipe = plan.pipelines[0]
    layers = [stage.layers for stage in pipe.stages]
    found: list[str] = []
    if len(set(layers)) > 1:
        found += words(pipeline_model_parallel_layout=layout(layers))
    elif pipe.virtual_stages > 1:
        found += words(num_layers_per_virtual_pipeline_stage=layers[0])
    if share.degrees(plan).context_parallel > 1 and plan.context_exchange:
        found += words(cp_comm_type=share.EXCHANGES[plan.context_exchange])
    return found


def layout(layers: list[int]) -> str:
    """Return the layers of every stage in Megatron's letters: ``Et*10|t*11|t*9L``."""
    parts = [f"t*{count}" if count > 1 else "t" * count for count in layers]
    parts[0], parts[-1] = "E" + parts[0], parts[-1] + "L"
    return "|".join(parts)


def recompute_words(plan: Plan, shape: Shape) -> list[str]:
    """Return what is computed again."""
    stage = share.degrees(plan)
    if stage.recompute == "none":
        return []
    if stage.recompute == "full":
        return share.full_words(stage)
    named = [name for module in rules.modules_of(stage) for name in _names(module, shape)]
    return words(recompute_granularity="selective", recompute_modules=list(dict.fromkeys(named)))


def _names(module: RecomputeModule, shape: Shape) -> tuple[str, ...]:
    if module == "feed-forward":
        dense = ("mlp",) if not all(shape.sparse) else ()
        return dense + (("shared_experts",) if shape.experts and shape.experts.shared else ())
    return MODULES[module]


def zero_words(plan: Plan) -> list[str]:
    """Return what replicas share out."""
    if plan.zero == 0:
        return []
    copies = None
    if plan.shard_group is not None:
        copies = plan.replicas * share.degrees(plan).context_parallel // plan.shard_group
    found = words(
        use_distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True,
        num_distributed_optimizer_instances=copies if copies and copies > 1 else None,
    )  # fmt: skip
    if plan.zero >= 2:
        found += words(
            use_megatron_fsdp=True, data_parallel_sharding_strategy=STRATEGIES[plan.zero],
            init_model_with_meta_device=True, ckpt_format="fsdp_dtensor",
        )  # fmt: skip
    return found


def offload_words(plan: Plan) -> list[str]:
    """Return what is kept in host memory.

    That takes the precision-aware optimizer, and this the distributed one (megatron/core/optimizer/optimizer_config.py,
    0.15.0), which over one card shares nothing out. Neither is refused beside Megatron-FSDP, nor that beside pipelines.
    """
    if plan.offload != "optimizer":
        return []
    alone = True if plan.zero == 0 else None
    return words(optimizer_cpu_offload=True, use_precision_aware_optimizer=True, use_distributed_optimizer=alone)


def _notes(subject: Subject, shape: Shape) -> list[str]:
    """Return what the reader should know."""
    found = [
        "the plan knows the model's shape; RoPE base, norm epsilon and the router's scoring are the checkpoint's own: "
        "add them to the script's own arguments"
    ]
    if subject.job is None:
        found.append(
            "no --job was given, so learning rate and length of the run are yours to add (--lr, --train-iters)"
        )
    if subject.model.mtp:
        found.append("the plan is of the main model; multi-token prediction (--mtp-num-layers) is not in it")
    maker = subject.pools()[0].maker
    if maker != "NVIDIA":
        found.append(f"on {maker} it is that maker's port of Megatron-LM that takes these arguments")
    return found


# What it cannot express.


def _if(problem: Callable[[Plan, Stage, bool], str], instead: Callable[[Plan], list[Plan]]) -> Rule:
    """Return a rule on a plan, its degrees, and whether the model has experts."""

    def reason(plan: Plan, subject: Subject) -> str:
        return problem(plan, share.degrees(plan), bool(experts_of(subject.model)))

    return Rule(reason, lambda plan, subject: instead(plan))


def _sequence(plan: Plan, stage: Stage, experts: bool) -> str:
    off = plan.sequence_parallel is False and stage.tensor_parallel > 1
    return "with experts and tensor parallelism Megatron-LM needs sequence parallelism" if experts and off else ""


def _drops(plan: Plan, stage: Stage, experts: bool) -> str:
    if plan.zero == 3 and plan.reshard not in (None, "layer"):
        return f"weights kept after a layer (reshard {plan.reshard}) are not in Megatron-FSDP"
    usual = {None, "step" if plan.zero < 2 else "micro-batch"}
    return "" if plan.reduce_every in usual else f"under ZeRO-{plan.zero} it does not reduce every {plan.reduce_every}"


def _whole(plan: Plan, stage: Stage, experts: bool) -> str:
    copies = plan.replicas * stage.context_parallel
    if plan.offload != "optimizer" or plan.zero or copies == 1:
        return ""
    return "with an optimizer in host memory Megatron-Core shares out its state (ZeRO stage 1), and the plan does not"


def _usual_drops(plan: Plan) -> list[Plan]:
    return [plan.model_copy(update={"reshard": None, "reduce_every": None})]


def _rounds(plan: Plan, stage: Stage, experts: bool) -> str:
    pipe = plan.pipelines[0]
    if plan.schedule != "interleaved" or pipe.micro_batches % pipe.places == 0:
        return ""
    return (
        f"interleaved, it runs micro-batches in rounds of {pipe.places}, and {pipe.micro_batches} are no whole rounds"
    )


def _half(plan: Plan, stage: Stage, experts: bool) -> str:
    return "Megatron-LM has no experts in fp16" if rules.precision_of(plan) == "fp16" and experts else ""


def _halves(plan: Plan, stage: Stage, experts: bool) -> str:
    parts = 2 * stage.context_parallel
    uneven = stage.context_parallel > 1 and plan.sequence_length % parts
    return f"{plan.sequence_length} tokens do not divide into {parts} parts of context parallelism" if uneven else ""


def _ascend(plan: Plan, subject: Subject) -> str:
    ascend = any(pool.maker.startswith("Huawei") for pool in subject.pools())
    return "Megatron-LM itself does not run on Ascend cards (--to mindspeed does)" if ascend else ""


TARGET: Final = Target(
    name="megatron",
    title=TITLE,
    tasks=("train",),
    version=recorded("megatron").version,
    source=recorded("megatron").source,
    write=write,
    settings={"cards-per-node": CARDS_PER_NODE},
    rules=(
        rules.one_maker(TITLE),
        Rule(_ascend, maker=lambda maker: not maker.startswith("Huawei")),
        rules.full_weights(TITLE),
        rules.precisions(TITLE, tuple(PRECISION)),
        _if(_half, lambda plan: []),
        rules.schedules(TITLE, ("1f1b", "interleaved")),
        rules.one_cut(TITLE),
        rules.equal_replicas(TITLE),
        _if(_rounds, lambda plan: [rules.as_1f1b(plan)]),
        rules.same_recompute(TITLE),
        rules.modules(TITLE, tuple(MODULES), {"activation": ("feed-forward",)}),
        rules.offloads(TITLE, ("none", "optimizer")),
        _if(_sequence, lambda plan: [plan.model_copy(update={"sequence_parallel": True})]),
        _if(_halves, lambda plan: []),
        _if(_drops, _usual_drops),
        _if(_whole, lambda plan: [plan.model_copy(update={"zero": 1})]),
    ),
)
