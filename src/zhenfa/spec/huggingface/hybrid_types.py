"""Recurrent decoders and hybrids of recurrence and attention."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Final

from zhenfa.spec.huggingface import recurrences
from zhenfa.spec.huggingface.decoder import (
    Fields,
    MoE,
    Traits,
    attention,
    decoder,
    dense,
    every,
    experts,
    first_dense,
    head_dim,
    stepped,
)
from zhenfa.spec.huggingface.latent_types import latent
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Dense, FeedForward, Mixer, Piece, Pieces, SharedExpert

LINEAR: Final = "linear_attention"
_BIASED: Final = Traits(bias="attention_bias", output_bias="attention_bias")
_LLAMA: Final = replace(_BIASED, mlp_bias="mlp_bias")


def _mamba(c: Config) -> Fields:
    inner = c.maybe("intermediate_size") or int(c.number("expand", 2) * c.count("hidden_size"))
    block = recurrences.mamba(
        inner, c.count("state_size"), recurrences.time_step_rank(c, "time_step_rank"), c.count("conv_kernel", 4),
        conv_bias=c.flag("use_conv_bias", True), bias=c.flag("use_bias"),
    )  # fmt: skip
    return decoder(c, Traits(norms=1, mixer=lambda *_: block, feed_forward=lambda *_: ()))


def _mamba2(c: Config) -> Fields:
    block = recurrences.mamba2(
        c.count("num_heads"), c.count("head_dim"), c.count("state_size"), c.count("n_groups", 1),
        c.count("conv_kernel", 4), inner=int(c.number("expand", 2) * c.count("hidden_size")),
        conv_bias=c.flag("use_conv_bias", True), bias=c.flag("use_bias"),
    )  # fmt: skip
    return decoder(c, Traits(norms=1, mixer=lambda *_: block, feed_forward=lambda *_: ()))


def _bamba(c: Config) -> Fields:
    chosen = c.listed("attn_layer_indices") or []
    block = recurrences.mamba2_of(c)
    return decoder(
        c,
        replace(
            _LLAMA,
            kinds=lambda c: ["full_attention" if index in chosen else LINEAR for index in range(c.layers)],
            mixer=lambda c, index, kind: block if kind == LINEAR else attention(c, kind, _LLAMA),
        ),
    )


def _falcon_h1(c: Config) -> Fields:
    """Return Falcon-H1: attention and Mamba-2 side by side in every layer."""
    block = recurrences.mamba2_of(c, norm=c.flag("mamba_rms_norm"), output_bias=c.flag("projectors_bias"))
    return decoder(c, replace(_LLAMA, mixer=lambda c, _, kind: (attention(c, kind, _LLAMA), block), norms=2))


def _granite_hybrid(c: Config) -> Fields:
    block = recurrences.mamba2_of(c) if LINEAR in _granite_kinds(c) else None
    shared = c.count("shared_intermediate_size")

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        return block if kind == LINEAR and block else attention(c, kind, _BIASED)

    def feed_forward(c: Config, index: int) -> FeedForward:
        if not c.whole("num_local_experts", 0):
            return Dense(size=shared)
        moe = experts(c, MoE(size=("intermediate_size",)))
        return moe.model_copy(update={"shared": SharedExpert(size=shared)})

    return decoder(c, Traits(kinds=_granite_kinds, mixer=mixer, feed_forward=feed_forward))


def _granite_kinds(c: Config) -> list[str]:
    return c.layer_types(lambda index: LINEAR, known=(LINEAR, "full_attention"))


def _jamba(c: Config) -> Fields:
    period, offset = c.count("attn_layer_period"), c.whole("attn_layer_offset")
    expert_period, expert_offset = c.count("expert_layer_period"), c.whole("expert_layer_offset")
    block = recurrences.mamba(
        int(c.number("mamba_expand", 2) * c.count("hidden_size")), c.count("mamba_d_state"),
        recurrences.time_step_rank(c, "mamba_dt_rank"), c.count("mamba_d_conv"),
        conv_bias=c.flag("mamba_conv_bias", True), bias=c.flag("mamba_proj_bias"), norms=True,
    )  # fmt: skip
    many = c.whole("num_experts", 1) > 1
    moe = MoE(
        sparse=lambda c: [many and index % expert_period == expert_offset for index in range(c.layers)],
        size=("intermediate_size",),
    )
    traits = Traits(
        kinds=lambda c: ["full_attention" if index % period == offset else LINEAR for index in range(c.layers)],
        mixer=lambda c, index, kind: block if kind == LINEAR else attention(c, kind, Traits()),
        moe=moe,
    )
    return decoder(c, traits)


_NEMOTRON_LETTERS: Final = {"M": LINEAR, "*": "full_attention", "-": "mlp", "E": "moe"}
_NEMOTRON_NAMES: Final = {"mamba": LINEAR, "attention": "full_attention"}


def _nemotron_kinds(
    c: Config, list_key: str = "layer_types", pattern_key: str = "hybrid_override_pattern"
) -> list[str]:
    given = c.own(list_key)
    pattern = c.own(pattern_key)
    if given is None and isinstance(pattern, str):
        unknown = sorted(set(pattern) - set(_NEMOTRON_LETTERS))
        if unknown:
            raise c.fail(pattern_key, f"{pattern_key} has the letter {unknown[0]!r}.", "known: M, *, -, E.")
        return [_NEMOTRON_LETTERS[letter] for letter in pattern]
    kinds = c.listed(list_key) or [LINEAR, "moe", "full_attention", "mlp"]
    kinds = [_NEMOTRON_NAMES.get(str(kind), str(kind)) for kind in kinds]
    unknown = sorted(set(kinds) - set(_NEMOTRON_LETTERS.values()))
    if unknown:
        raise c.fail(
            list_key, f"{list_key} holds {unknown[0]!r}.", "known: linear_attention, full_attention, mlp, moe."
        )
    return kinds


def _nemotron_h(c: Config) -> Fields:
    """Return Nemotron-H: every layer is one block, Mamba-2, attention, feed-forward or mixture of experts."""
    kinds = _nemotron_kinds(c)
    mlp = Traits(gated=False, mlp_bias="mlp_bias")

    def mixer(c: Config, index: int, kind: str) -> Mixer | tuple[Mixer, ...]:
        if kind == LINEAR:
            return _nemotron_mamba(c)
        return attention(c, kind, Traits()) if kind == "full_attention" else ()

    def feed_forward(c: Config, index: int) -> FeedForward | tuple[FeedForward, ...]:
        if kinds[index] == "mlp":
            return dense(c, mlp)
        return _nemotron_experts(c) if kinds[index] == "moe" else ()

    return decoder(c, Traits(norms=1, kinds=lambda _: kinds, mixer=mixer, feed_forward=feed_forward, never_tied=True))


def _nemotron_mamba(c: Config) -> Mixer:
    return recurrences.mamba2(
        c.count("mamba_num_heads"), c.count("mamba_head_dim"), c.count("ssm_state_size"),
        c.count("mamba_n_groups" if c.own("mamba_n_groups") else "n_groups"),
        c.count("mamba_d_conv" if c.own("mamba_d_conv") else "conv_kernel"),
        conv_bias=c.flag("mamba_conv_bias" if c.own("mamba_conv_bias") is not None else "use_conv_bias", True),
        bias=c.flag("use_bias"), output_bias=c.flag("use_bias"),
    )  # fmt: skip


def _nemotron_experts(c: Config) -> FeedForward:
    """Return ungated experts, behind a projection to fewer features where ``moe_latent_size`` says so."""
    width, narrow = c.count("hidden_size"), c.maybe("moe_latent_size")
    shared = SharedExpert(size=c.count("moe_shared_expert_intermediate_size"), gated=False, bias=c.flag("mlp_bias"))
    block = experts(c, MoE(gated=False)).model_copy(update={"shared": shared})
    if not narrow:
        return block
    grouped = {"kind": "grouped_matmul", "experts": block.count, "active": block.active, "shard": "expert"}
    bias = c.flag("mlp_bias")
    return Pieces(
        family="latent-experts",
        extra=(
            Piece(name="experts.router", inputs=width, outputs=block.count),
            Piece(name="experts.narrow", inputs=width, outputs=narrow, bias=bias),
            Piece(name="experts.up", inputs=narrow, outputs=block.size, **grouped),
            Piece(name="experts.down", inputs=block.size, outputs=narrow, **grouped),
            Piece(name="experts.widen", inputs=narrow, outputs=width, bias=bias),
            Piece(name="shared.up", inputs=width, outputs=shared.size, bias=bias, shard="column"),
            Piece(name="shared.down", inputs=shared.size, outputs=width, bias=bias, shard="row"),
        ),
    )


def _every_fourth_full(c: Config) -> list[str]:
    return every("full_attention_interval", 4, rest=LINEAR)(c)


def _qwen_next(c: Config) -> Fields:
    """Return Qwen3-Next and Qwen3.5: gated delta nets, and each fourth layer gated attention."""
    block = recurrences.gated_delta_of(c)
    traits = replace(_BIASED, qk_norm="head", gate="feature", gate_bias="attention_bias", kinds=_every_fourth_full)
    moe = None
    if c.get("num_experts") is not None:
        sparse = stepped if c.model_type == "qwen3_next" else lambda c: [True] * c.layers
        moe = MoE(sparse=sparse, shared_size="shared_expert_intermediate_size", shared_gate=True)
    mixed = replace(
        traits, moe=moe, mixer=lambda c, index, kind: block if kind == LINEAR else attention(c, kind, traits)
    )
    return decoder(c, mixed)


def _olmo_hybrid(c: Config) -> Fields:
    heads = c.count("num_attention_heads")
    key_heads = c.maybe("linear_num_key_heads") or heads
    value_heads = c.maybe("linear_num_value_heads") or heads
    key_dim = c.maybe("linear_key_head_dim") or int(0.75 * c.count("hidden_size") / key_heads)
    value_dim = c.maybe("linear_value_head_dim") or 2 * key_dim
    block = recurrences.gated_delta(key_heads, value_heads, key_dim, value_dim, c.count("linear_conv_kernel_dim"))
    full = replace(_BIASED, qk_norm="full")

    def kinds(c: Config) -> list[str]:
        types = c.layer_types(lambda index: "full_attention" if index % 4 == 3 else LINEAR)
        return types if "full_attention" in types else [*types[:-1], "full_attention"]

    return decoder(
        c, replace(full, kinds=kinds, mixer=lambda c, _, kind: block if kind == LINEAR else attention(c, kind, full))
    )


def _minimax(c: Config) -> Fields:
    block = recurrences.lightning(c.count("num_attention_heads"), head_dim(c))
    traits = Traits(
        kinds=lambda c: c.layer_types(lambda index: LINEAR if index % 2 else "full_attention"),
        mixer=lambda c, index, kind: block if kind == LINEAR else attention(c, kind, Traits()),
        moe=MoE(size=("intermediate_size",)),
    )
    return decoder(c, traits)


def _lfm2_size(c: Config) -> int:
    size = c.count("block_ff_dim" if c.own("block_ff_dim") else "intermediate_size")
    if not c.flag("block_auto_adjust_ff_dim"):
        return size
    size = int(2 * size / 3)
    if c.get("block_ffn_dim_multiplier") is None:
        return size
    multiple = c.count("block_multiple_of", 256)
    return multiple * ceil(int(c.number("block_ffn_dim_multiplier", 1.0) * size) / multiple)


def _lfm2(c: Config) -> Fields:
    indices = c.listed("full_attn_idxs")
    block = recurrences.short_convolution(c.count("hidden_size"), c.count("conv_L_cache"), bias=c.flag("conv_bias"))
    traits = Traits(qk_norm="head")
    size = _lfm2_size(c) if c.model_type == "lfm2" else c.count("intermediate_size")
    chosen = range(c.layers) if indices is None else indices
    moe = MoE(sparse=first_dense("num_dense_layers", 2)) if c.model_type == "lfm2_moe" else None
    fields = decoder(
        c,
        Traits(
            kinds=lambda c: c.layer_types(
                lambda index: "full_attention" if index in chosen else "conv", known=("conv", "full_attention")
            ),
            mixer=lambda c, _, kind: block if kind == "conv" else attention(c, kind, traits),
            feed_forward=lambda *_: Dense(size=size),
            moe=moe,
        ),
    )
    tied = c.own("tie_embedding")
    if isinstance(tied, bool):
        fields["head"] = fields["head"].model_copy(update={"tied": tied})
    return fields


def _lfm3(c: Config) -> Fields:
    block = recurrences.short_convolution(c.count("hidden_size"), c.count("conv_L_cache"), bias=c.flag("conv_bias"))
    traits = replace(_BIASED, qk_norm="head", gate="head" if c.flag("use_attention_gate") else "none")

    def kinds(c: Config) -> list[str]:
        def rule(index: int) -> str:
            if index % 4 == 2:
                return "full_attention"
            return "sliding_attention" if index % 4 == 0 and index else "conv"

        return c.layer_types(rule, known=("conv", "full_attention", "sliding_attention"))

    return decoder(
        c,
        Traits(
            norms=4 if c.flag("use_sandwich_norm") else 2, kinds=kinds,
            mixer=lambda c, _, kind: block if kind == "conv" else attention(c, kind, traits),
        ),
    )  # fmt: skip


def _kimi_linear(c: Config) -> Fields:
    """Return Kimi Linear: Kimi Delta Attention, and latent attention without rotation in some layers."""
    own = c.sub("linear_attn_config")
    heads = own.maybe("num_heads") or c.count("linear_num_heads", 32)
    dim = own.maybe("head_dim") or c.count("linear_head_dim", 128)
    taps = own.maybe("short_conv_kernel_size") or c.count("linear_conv_kernel_dim", 4)
    full = own.listed("full_attn_layers")
    block = recurrences.kimi_delta(heads, dim, taps, low_rank=True)

    def kinds(c: Config) -> list[str]:
        def rule(index: int) -> str:
            hit = index + 1 in full if full is not None else index and index % 4 == 0
            return "full_attention" if hit else LINEAR

        return c.layer_types(rule, known=(LINEAR, "full_attention"))

    moe = MoE(sparse=first_dense("first_k_dense_replace", 1), shared_count="num_shared_experts")
    mixed = Traits(
        kinds=kinds, moe=moe, never_tied=True,
        mixer=lambda c, _, kind: block if kind == LINEAR else latent(c, kind),
    )  # fmt: skip
    return decoder(c, mixed)


def _bailing(c: Config) -> Fields:
    """Return Ling hybrid: Kimi Delta Attention with straight gates, latent attention gated per head each group."""
    dim = c.maybe("linear_head_dim") if c.own("linear_head_dim") else None
    block = recurrences.kimi_delta(
        c.count("num_attention_heads"), dim or c.count("head_dim", 128), c.count("short_conv_kernel_size", 4),
        low_rank=False,
    )  # fmt: skip
    moe = MoE(sparse=first_dense("first_k_dense_replace", 2), shared_count="num_shared_experts")
    return decoder(
        c,
        Traits(
            kinds=every("layer_group_size", 6, rest=LINEAR), moe=moe, never_tied=True,
            mixer=lambda c, _, kind: block if kind == LINEAR else latent(c, kind, gate="head"),
        ),
    )  # fmt: skip


def _recurrent_gemma(c: Config) -> Fields:
    pattern = c.listed("block_types") or c.listed("_block_types") or ["recurrent"]
    inner = c.maybe("lru_width") or c.count("hidden_size")
    if inner % c.count("num_attention_heads"):
        raise c.fail("lru_width", f"lru_width is {inner}, which {c.count('num_attention_heads')} heads do not divide.")
    block = recurrences.real_gated(inner, c.count("num_attention_heads"), c.count("conv1d_width"))
    full = Traits(bias="attention_bias", output_bias=True)
    size = c.count("intermediate_size") // 2
    dim = c.divide("hidden_size", "num_attention_heads")
    return decoder(
        c,
        Traits(
            kinds=lambda c: [str(pattern[index % len(pattern)]) for index in range(c.layers)],
            mixer=lambda c, _, kind: block if kind in ("recurrent", LINEAR) else attention(
                c, kind, full, window=c.count("attention_window_size"), head_dim=dim
            ),
            feed_forward=lambda *_: Dense(size=size, bias=True),
        ),
    )  # fmt: skip


def _rwkv(c: Config) -> Fields:
    width = c.count("hidden_size")
    inner, size = c.maybe("attention_hidden_size") or width, c.maybe("intermediate_size") or 4 * width
    block = recurrences.rwkv4(width, inner)
    channel = Dense(
        size=size, gated=False,
        extra=(
            Piece(name="receptance", inputs=width, outputs=width),
            Piece(name="time_mix", kind="elementwise", parameters=2 * width, inputs=width, outputs=width),
        ),
    )  # fmt: skip
    fields = decoder(c, Traits(norm="layer", mixer=lambda *_: block, feed_forward=lambda *_: channel))
    return fields | {"embedding": fields["embedding"].model_copy(update={"norm": "layer"})}


def _xlstm(c: Config) -> Fields:
    width, bias = c.count("hidden_size"), c.flag("use_bias")
    keys, values = int(width * c.number("qk_dim_factor", 0.5)), int(width * c.number("v_dim_factor", 1.0))
    multiple = c.count("ffn_round_up_to_multiple_of", 64)
    size = int(-(-width * c.number("ffn_proj_factor", 2.667) // multiple) * multiple)
    block = recurrences.matrix_lstm(width, c.count("num_heads"), keys, values, bias=bias)
    traits = Traits(
        norm="layer" if bias else "rms", final_norm="rms", mixer=lambda *_: block, never_tied=True,
        kinds=lambda c: ["mlstm"] * c.count("num_blocks" if c.get("num_blocks") else "num_hidden_layers"),
        feed_forward=lambda *_: Dense(size=size, bias=bias),
    )  # fmt: skip
    fields = decoder(c, traits)
    return fields | {"embedding": fields["embedding"].model_copy(update={"width": c.maybe("embedding_dim")})}


BUILDERS: Final = {
    "bailing_hybrid": _bailing,
    "bamba": _bamba,
    "falcon_h1": _falcon_h1,
    "falcon_mamba": _mamba,
    "granitemoehybrid": _granite_hybrid,
    "jamba": _jamba,
    "kimi_linear": _kimi_linear,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "lfm3": _lfm3,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "minimax": _minimax,
    "nemotron_h": _nemotron_h,
    "olmo_hybrid": _olmo_hybrid,
    "qwen3_5_moe_text": _qwen_next,
    "qwen3_5_text": _qwen_next,
    "qwen3_next": _qwen_next,
    "recurrent_gemma": _recurrent_gemma,
    "rwkv": _rwkv,
    "xlstm": _xlstm,
}
