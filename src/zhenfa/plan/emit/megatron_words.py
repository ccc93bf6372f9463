"""Options that Megatron-LM's ``pretrain_gpt.py`` and what is built on it share: batches, parallelism, precision."""

from __future__ import annotations

from zhenfa.plan.emit.launch import Group, groups
from zhenfa.plan.emit.shape import Shape
from zhenfa.plan.emit.shell import words
from zhenfa.plan.emit.subject import Subject
from zhenfa.spec.model_blocks import Attention
from zhenfa.spec.plan import Plan, Stage

EXCHANGES = {"ring": "p2p", "gather": "allgather", "all-to-all": "a2a"}


def shape_words(shape: Shape, plan: Plan) -> list[str]:
    """Return the model's size, attention and feed-forward, experts apart."""
    attention, ffn = shape.attention, shape.dense or shape.experts
    found = words(
        num_layers=shape.layers, hidden_size=shape.hidden, num_attention_heads=shape.heads,
        ffn_hidden_size=ffn.size if ffn else None, seq_length=plan.sequence_length,
        max_position_embeddings=max(shape.positions, plan.sequence_length),
        position_embedding_type="learned_absolute" if shape.learnt_positions else "rope",
        normalization="RMSNorm" if shape.norm == "rms" else "LayerNorm",
        swiglu=bool(ffn and ffn.gated), untie_embeddings_and_output_weights=not shape.tied,
    )  # fmt: skip
    if isinstance(attention, Attention):
        grouped = attention.key_value_heads != attention.heads
        found += words(
            kv_channels=attention.head_dim, group_query_attention=grouped,
            num_query_groups=attention.key_value_heads if grouped else None, qk_layernorm=attention.qk_norm != "none",
        )  # fmt: skip
        everywhere = attention.bias and attention.output_bias and bool(ffn and ffn.bias)
        found += words(disable_bias_linear=not everywhere, add_qkv_bias=attention.bias and not everywhere)
    else:
        found += words(disable_bias_linear=True, qk_layernorm=attention.norms)
    return found


def frequency(sparse: tuple[bool, ...]) -> str:
    """Return which layers have experts, as a Python expression: ``([0]*3+[1]*58)``."""
    runs: list[list[int]] = []
    for one in sparse:
        if runs and runs[-1][0] == int(one):
            runs[-1][1] += 1
        else:
            runs.append([int(one), 1])
    return "(" + "+".join(f"[{kind}]*{count}" for kind, count in runs) + ")"


def batch_words(plan: Plan) -> list[str]:
    """Return the batches."""
    return words(micro_batch_size=plan.pipelines[0].micro_batch_size, global_batch_size=plan.global_batch)


def degrees(plan: Plan) -> Stage:
    """Return a stage that has the degrees of all."""
    return plan.pipelines[0].stages[0]


def parallel_words(plan: Plan, *, experts: bool) -> list[str]:
    """Return the degrees of parallelism that all such frameworks spell alike."""
    stage = degrees(plan)
    sequence = stage.tensor_parallel > 1 and plan.sequence_parallel is not False
    return words(
        tensor_model_parallel_size=stage.tensor_parallel,
        pipeline_model_parallel_size=plan.pipelines[0].places,
        context_parallel_size=stage.context_parallel,
        expert_model_parallel_size=stage.expert_parallel if experts else None,
        expert_tensor_parallel_size=stage.expert_tensor_parallel if experts else None,
        sequence_parallel=sequence,
    )


def full_words(stage: Stage) -> list[str]:
    """Return what recomputing whole layers is called."""
    if stage.recompute_layers is None:
        return words(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)
    return words(recompute_granularity="full", recompute_method="block", recompute_num_layers=stage.recompute_layers)


def run_words(subject: Subject) -> list[str]:
    """Return the length of the run and its learning rate as far as the job says them."""
    job, plan = subject.job, subject.training
    tokens = getattr(job.workload, "tokens", None) if job else None
    return words(
        train_samples=int(tokens // plan.sequence_length) if tokens else None,
        lr=job.execution.learning_rate if job else None,
        weight_decay=job.execution.weight_decay if job else None,
        seed=job.execution.seed if job else None,
    )


def rank_lines(subject: Subject) -> list[str]:
    """Say which ranks hold which stage: pipeline stages are the outermost dimension of the grid."""
    plan = subject.training
    pipe = plan.pipelines[0]
    width = plan.replicas * degrees(plan).cards
    found = []
    for place in range(pipe.places):
        held = [one for index, one in enumerate(pipe.stages) if pipe.place_of(index, plan.schedule) == place]
        layers = ", ".join(f"{one.first}-{one.last - 1}" if one.layers else "none" for one in held)
        found.append(f"ranks {place * width}-{(place + 1) * width - 1}: layers {layers} on {pipe.stages[place].pool}")
    return found


def one_group(subject: Subject) -> Group:
    """Return the cards as one group: those of a maker, whose pools share one process grid."""
    found = groups(subject)
    first = found[0]
    nodes = {one.cards_per_node for one in found}
    per_node = nodes.pop() if len(nodes) == 1 else None
    return Group(first.pool, sum(one.cards for one in found), sum(one.devices for one in found), 0, per_node)
