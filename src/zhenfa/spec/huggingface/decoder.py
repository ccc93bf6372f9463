"""The common decoder: most architectures differ from it by a few traits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import (
    Attention,
    Dense,
    Embedding,
    Experts,
    FeedForward,
    Head,
    Layer,
    Mixer,
    NormKind,
    Piece,
    SharedExpert,
)

Fields = dict[str, Any]
"""Keyword arguments of a :class:`~zhenfa.spec.model.Model`, name and source aside."""

Switch = bool | str
"""A trait that is fixed, or the name of the yes-or-no key that decides it."""

KindRule = Callable[[Config], list[str]]
SparseRule = Callable[[Config], list[bool]]
MixerRule = Callable[[Config, int, str], Mixer | tuple[Mixer, ...]]
FeedForwardRule = Callable[[Config, int], FeedForward | tuple[FeedForward, ...]]


def on(c: Config, switch: Switch) -> bool:
    """Return whether a trait holds in this configuration."""
    return c.flag(switch) if isinstance(switch, str) else switch


def every(pattern_key: str, default: int, *, rest: str = "sliding_attention", hit: str = "full_attention") -> KindRule:
    """Return the rule that makes each ``n``-th layer a ``hit`` and the others ``rest``; ``n`` from a key."""

    def rule(c: Config) -> list[str]:
        step = c.whole(pattern_key, default)
        return c.layer_types(lambda index: rest if step and (index + 1) % step else hit)

    return rule


def all_full(c: Config) -> list[str]:
    """Return the types of a model whose layers see the whole context unless the file lists otherwise."""
    return c.layer_types(lambda index: "full_attention")


def all_windowed(c: Config) -> list[str]:
    """Return the types of a model whose layers all keep to ``sliding_window``, where there is one."""
    kind = "sliding_attention" if c.get("sliding_window") else "full_attention"
    return c.layer_types(lambda index: kind)


def late_windows(c: Config) -> list[str]:
    """Return the types of Qwen2 and its kin: windows from ``max_window_layers`` on, if switched on."""
    windowed = c.flag("use_sliding_window") and c.get("sliding_window")
    start = c.whole("max_window_layers", 0)
    return c.layer_types(lambda index: "sliding_attention" if windowed and index >= start else "full_attention")


def first_dense(key: str = "first_k_dense_replace", default: int = 0) -> SparseRule:
    """Return the rule of ``mlp_layer_types``, or of the first so many layers being dense and the rest sparse."""

    def rule(c: Config) -> list[bool]:
        given = c.listed("mlp_layer_types", c.layers)
        if given is not None:
            return [str(kind) != "dense" for kind in given]
        dense = c.whole(key, default)
        step = c.get("moe_layer_freq")
        if isinstance(step, list):
            return [bool(item) for item in step]
        frequency = c.count("moe_layer_freq", 1)
        return [index >= dense and index % frequency == 0 for index in range(c.layers)]

    return rule


def every_sparse(c: Config) -> list[bool]:
    """Return that all layers are mixtures of experts."""
    return [True] * c.layers


def stepped(c: Config) -> list[bool]:
    """Return the layers that are sparse by ``decoder_sparse_step`` and ``mlp_only_layers`` (Qwen-MoE)."""
    step, dense = c.count("decoder_sparse_step", 1), c.listed("mlp_only_layers") or []
    return [index not in dense and (index + 1) % step == 0 for index in range(c.layers)]


@dataclass(frozen=True)
class MoE:
    """Where a family keeps what its mixtures of experts are made of.

    The width of the shared experts is the count under ``shared_count`` (1 without) times what stands under
    ``shared_size`` (``size`` without). ``selection_bias``: the router holds one more parameter per expert.
    """

    sparse: SparseRule = every_sparse
    size: tuple[str, ...] = ("moe_intermediate_size", "intermediate_size")
    shared_count: str | None = None
    shared_size: str | None = None
    shared_gate: bool = False
    shared_bias: Switch = False
    bias: bool = False
    gated: bool = True
    router_bias: bool = False
    selection_bias: bool = False
    count: tuple[str, ...] = ("num_experts", "num_local_experts", "n_routed_experts")
    active: tuple[str, ...] = ("num_experts_per_tok",)


@dataclass(frozen=True)
class Traits:
    """How an architecture differs from the plain decoder (RMS norms, grouped-query attention, gated feed-forward).

    ``norms`` counts the norms of a layer. ``never_tied``: the head has its own weights whatever the file says.
    ``qk_norm_when`` is the flag that turns ``qk_norm`` on. ``mixer`` and ``feed_forward`` replace the plain ones;
    ``pieces`` adds operators to each layer, ``attention_pieces`` and ``mlp_pieces`` to its blocks. ``positions``: key
    and offset of a learnt position table.
    """

    norm: NormKind = "rms"
    final_norm: NormKind | None = None
    norms: int = 2
    bias: Switch = False
    output_bias: Switch = False
    mlp_bias: Switch = False
    head_bias: Switch = False
    gated: bool = True
    qk_norm: Literal["none", "head", "full"] = "none"
    qk_norm_when: str | None = None
    qk_norm_bias: bool = False
    gate: Literal["none", "feature", "head"] = "none"
    gate_bias: Switch = False
    sinks: bool = False
    round_head: bool = False
    never_tied: bool = False
    kinds: KindRule = all_full
    moe: MoE | None = None
    mixer: MixerRule | None = None
    feed_forward: FeedForwardRule | None = None
    pieces: Callable[[Config], tuple[Piece, ...]] | None = None
    attention_pieces: Callable[[Config], tuple[Piece, ...]] | None = None
    mlp_pieces: Callable[[Config], tuple[Piece, ...]] | None = None
    positions: tuple[str, int] | None = None
    embedding_norm: NormKind | None = None
    fields: Fields = field(default_factory=dict)


def head_dim(c: Config, *, rounded: bool = False) -> int:
    """Return the features of a head: as given, else the width over the heads (``rounded`` down where that is odd)."""
    given = c.maybe("head_dim")
    if given:
        return given
    if rounded:
        return max(1, c.count("hidden_size") // c.count("num_attention_heads"))
    return c.divide("hidden_size", "num_attention_heads")


def window(c: Config, kind: str) -> int | None:
    """Return how many tokens a layer of this kind sees, None for all."""
    if kind == "sliding_attention":
        return c.maybe("sliding_window") if c.get("sliding_window") else None
    if kind == "chunked_attention":
        return c.maybe("attention_chunk_size")
    return None


def attention(c: Config, kind: str, t: Traits, **changes: Any) -> Attention:
    """Return the attention of a plain decoder with these traits; ``changes`` override its fields."""
    heads = changes.pop("heads", None) or c.count("num_attention_heads")
    normed = t.qk_norm if t.qk_norm_when is None or c.flag(t.qk_norm_when) else "none"
    kv_heads = changes.pop("kv_heads", None) or c.maybe("num_key_value_heads") or heads
    if heads % kv_heads:
        raise c.fail("num_key_value_heads", f"num_key_value_heads is {kv_heads}, which does not divide {heads} heads.")
    values: Fields = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": changes.pop("head_dim", None) or head_dim(c, rounded=t.round_head),
        "bias": on(c, t.bias),
        "output_bias": on(c, t.output_bias),
        "qk_norm": normed,
        "qk_norm_bias": t.qk_norm_bias and normed != "none",
        "gate": t.gate,
        "gate_bias": on(c, t.gate_bias),
        "sinks": t.sinks,
        "window": window(c, kind),
        "extra": t.attention_pieces(c) if t.attention_pieces else (),
    }
    return Attention(**values | changes)


def dense(c: Config, t: Traits, size: int | None = None) -> Dense:
    """Return the dense feed-forward of a plain decoder with these traits."""
    return Dense(
        size=size or c.count("intermediate_size"), gated=t.gated, bias=on(c, t.mlp_bias),
        extra=t.mlp_pieces(c) if t.mlp_pieces else (),
    )  # fmt: skip


def first_of(c: Config, keys: Sequence[str]) -> str:
    """Return the first of the keys that has a value, or the first."""
    return next((key for key in keys if c.get(key) is not None), keys[0])


SIGMOID: Final = frozenset(
    {
        "afmoe", "axk1", "axk2", "bailing_hybrid", "beam", "deepseek_v3", "deepseek_v32", "dots1", "dots3_note",
        "exaone_moe", "flint", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm5_next", "glm_moe_dsa", "hy_v3", "hy_v4",
        "inkling", "kimi_k2", "kimi_k25", "kimi_linear", "laguna", "lfm2_moe", "llama4", "llama4_text",
        "mimo_v2_flash", "minimax_m2", "minimax_m3_vl", "nemotron_h", "solar_open", "step3p7",
    }
)  # fmt: skip
"""Types whose routers take a sigmoid for each expert (transformers 5.23, modeling files), whatever ``scoring_func``."""
NOT_NORMALIZED: Final = frozenset(
    {"deepseek_v2", "doge", "dots1", "flex_olmo", "kolibri1", "olmoe", "qwen2_moe", "qwen3_moe"}
)
"""Types that leave weights as the softmax gives them where ``norm_topk_prob`` is not said (transformers 5.23)."""


def experts(c: Config, moe: MoE) -> Experts:
    """Return the mixture of experts described by ``moe``."""
    count, active = c.count(first_of(c, moe.count)), c.count(first_of(c, moe.active))
    size = c.count(first_of(c, moe.size))
    if active > count:
        raise c.fail(moe.active[0], f"{moe.active[0]} is {active}, but there are {count} experts.")
    shared = 0
    if moe.shared_size or moe.shared_count:
        given = c.whole(moe.shared_size, 0) if moe.shared_size else 0
        times = c.whole(moe.shared_count, 0) if moe.shared_count else 1
        shared = times * (given or (size if moe.shared_count else 0))
    return Experts(
        count=count, active=active, size=size, gated=moe.gated, bias=moe.bias, router_bias=moe.router_bias,
        router_parameters=count if moe.selection_bias else 0,
        score="sigmoid" if c.model_type in SIGMOID or c.get("scoring_func") == "sigmoid" else "softmax",
        normalized=bool(c.get("norm_topk_prob", c.model_type not in NOT_NORMALIZED)),
        shared=SharedExpert(size=shared, gated=moe.gated, gate=moe.shared_gate, bias=on(c, moe.shared_bias))
        if shared
        else None,
    )  # fmt: skip


def decoder(c: Config, t: Traits) -> Fields:
    """Return the model fields of a decoder with these traits."""
    kinds = t.kinds(c)
    sparse = t.moe.sparse(c) if t.moe else [False] * len(kinds)
    if len(sparse) < len(kinds):
        raise c.fail("moe_layer_freq", f"moe_layer_freq has {len(sparse)} items, but there are {len(kinds)} layers.")
    extra = t.pieces(c) if t.pieces else ()
    layers = []
    for index, kind in enumerate(kinds):
        mixer = t.mixer(c, index, kind) if t.mixer else attention(c, kind, t)
        if sparse[index] and t.moe:
            body: FeedForward | tuple[FeedForward, ...] = experts(c, t.moe)
        else:
            body = t.feed_forward(c, index) if t.feed_forward else dense(c, t)
        mixers, bodies = tupled(mixer), tupled(body)
        norms = None if t.norms == len(mixers) + len(bodies) else t.norms
        layers.append(Layer(mixer=mixers, feed_forward=bodies, norms=norms, extra=extra))
    return ends(c, t) | {"layers": runs(layers)}


def tupled(value: Any) -> tuple[Any, ...]:
    """Return the value as a tuple of blocks."""
    return value if isinstance(value, tuple) else (value,)


def ends(c: Config, t: Traits) -> Fields:
    """Return what surrounds the layers: sizes, embedding, head."""
    positions = 0
    if t.positions:
        positions = c.count(t.positions[0]) + t.positions[1]
    fields: Fields = {
        "hidden_size": c.count("hidden_size"),
        "vocabulary_size": c.count("vocab_size"),
        "max_position": c.maybe("max_position_embeddings") if _plain_number(c) else None,
        "norm": t.norm,
        "embedding": Embedding(positions=positions, norm=t.embedding_norm),
        "head": Head(
            tied=c.flag("tie_word_embeddings") and not t.never_tied, bias=on(c, t.head_bias), norm=t.final_norm
        ),
    }
    return fields | t.fields


def _plain_number(c: Config) -> bool:
    value = c.get("max_position_embeddings")
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def runs(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Write a list of single layers as runs of layers alike and of repeating patterns of up to 12 layers."""
    table: dict[Layer, int] = {}
    ids = [table.setdefault(layer, len(table)) for layer in layers]
    found: list[Layer] = []
    start = 0
    while start < len(layers):
        period, times = _best_period(ids, start)
        pattern = layers[start : start + period]
        if period == 1:
            found.append(pattern[0].model_copy(update={"repeat": times}))
        else:
            found.append(Layer(repeat=times, each=tuple(_folded(pattern))))
        start += period * times
    return tuple(found)


def _best_period(ids: Sequence[int], start: int) -> tuple[int, int]:
    """Return the period and the number of repeats that cover most layers from ``start``, one layer if none repeats."""
    best = (1, 1)
    for period in range(1, min(12, len(ids) - start) + 1):
        end = start + period
        while end < len(ids) and ids[end] == ids[end - period]:
            end += 1
        times = (end - start) // period
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _folded(pattern: Sequence[Layer]) -> list[Layer]:
    """Join neighbours alike inside one pattern."""
    folded: list[Layer] = []
    for layer in pattern:
        last = folded[-1] if folded else None
        if last is not None and last.model_copy(update={"repeat": 1}) == layer:
            folded[-1] = last.model_copy(update={"repeat": last.repeat + 1})
        else:
            folded.append(layer)
    return folded
