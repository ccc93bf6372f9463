"""Mixture-of-experts decoders with plain attention: one row of traits per model type."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from zhenfa.spec.huggingface.decoder import (
    Fields,
    MoE,
    Traits,
    all_windowed,
    attention,
    decoder,
    dense,
    every,
    every_sparse,
    experts,
    first_dense,
    late_windows,
    stepped,
)
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Attention, Dense, Experts, FeedForward, Mixer, Piece, Pieces, SharedExpert

_BIASED: Final = Traits(bias="attention_bias", output_bias="attention_bias")


def _sparse_list(c: Config) -> list[bool]:
    """Return ``mlp_layer_types``, or all sparse but the first."""
    return first_dense("first_k_dense_replace", 1)(c)


def _llama4(c: Config) -> Fields:
    step = c.count("interleave_moe_layer_step", 1)
    sparse = c.listed("moe_layers")
    chosen = set(range(step - 1, c.layers, step)) if sparse is None else set(sparse)
    rope_step = c.count("no_rope_layer_interval", 4)
    rope = c.listed("no_rope_layers", c.layers) or [(index + 1) % rope_step for index in range(c.layers)]

    def kinds(c: Config) -> list[str]:
        return c.layer_types(lambda index: "chunked_attention" if rope[index] else "full_attention")

    def feed_forward(c: Config, index: int) -> FeedForward:
        if index not in chosen:
            return Dense(size=c.count("intermediate_size_mlp"))
        shared = SharedExpert(size=c.count("intermediate_size"))
        moe = MoE(size=("intermediate_size",))
        return experts(c, moe).model_copy(update={"shared": shared})

    return decoder(c, replace(_BIASED, kinds=kinds, feed_forward=feed_forward))


def _ernie(c: Config) -> Fields:
    start, end = c.whole("moe_layer_start_index", 0), c.whole("moe_layer_end_index", c.layers - 1, least=-1)
    step = c.count("moe_layer_interval", 1)
    last = c.layers - 1 if end == -1 else end

    def sparse(c: Config) -> list[bool]:
        return [(index + 1) % step == 0 and start <= index <= last for index in range(c.layers)]

    moe = MoE(sparse=sparse, shared_count="moe_num_shared_experts", selection_bias=True, shared_bias="use_bias")
    traits = Traits(bias="use_bias", output_bias="use_bias", mlp_bias="use_bias", head_bias="use_bias", moe=moe)
    return decoder(c, traits)


def _mimo(c: Config) -> Fields:
    """Return MiMo-V2: windowed layers have sinks and twice the key-value heads, values are narrower than keys."""

    def kinds(c: Config) -> list[str]:
        return c.layer_types(
            lambda index: "full_attention" if index == 0 or (index + 1) % 6 == 0 else "sliding_attention"
        )

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        windowed = kind == "sliding_attention"
        kv_heads = c.count("num_key_value_heads") * (2 if windowed else 1)
        return attention(
            c, kind, Traits(bias="attention_bias"), kv_heads=kv_heads, value_dim=c.count("v_head_dim"), sinks=windowed
        )

    moe = MoE(sparse=_sparse_list, shared_count="n_shared_experts")
    return decoder(c, Traits(bias="attention_bias", kinds=kinds, mixer=mixer, moe=moe))


def _laguna(c: Config) -> Fields:
    heads = c.listed("num_attention_heads_per_layer", c.layers)

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        gate = c.get("gating", True)
        changes = {"heads": heads[index]} if heads else {}
        chosen = "head" if gate is True or gate == "per-head" else "feature"
        traits = replace(_BIASED, qk_norm="head")
        return attention(c, kind, traits, gate=chosen, **changes)

    moe = MoE(sparse=_sparse_list, shared_size="shared_expert_intermediate_size", selection_bias=True)
    return decoder(c, Traits(mixer=mixer, moe=moe))


def _beam(c: Config) -> Fields:
    gate_bias = Piece(name="gate_bias", kind="elementwise", parameters=c.count("num_attention_heads"))

    def kinds(c: Config) -> list[str]:
        last = c.layers - 1
        return c.layer_types(
            lambda index: "full_attention" if (index + 1) % 6 == 0 or index == last else "sliding_attention"
        )

    moe = MoE(sparse=first_dense("first_k_dense_replace", min(3, c.layers)))
    traits = replace(
        _BIASED, norms=4, qk_norm="head", gate="feature", kinds=kinds, moe=moe, attention_pieces=lambda _: (gate_bias,)
    )
    return decoder(c, traits)


def _dbrx(c: Config) -> Fields:
    attn, ffn = c.sub("attn_config"), c.sub("ffn_config")
    heads, width = c.count("num_attention_heads"), c.count("hidden_size")
    block = Attention(
        heads=heads, kv_heads=attn.count("kv_n_heads", 1), head_dim=c.divide("hidden_size", "num_attention_heads")
    )
    moe = Experts(
        count=ffn.count("moe_num_experts", 4), active=ffn.count("moe_top_k", 1),
        size=ffn.count("ffn_hidden_size", 3584),
    )  # fmt: skip
    del width
    return decoder(c, Traits(norm="layer-no-bias", mixer=lambda *_: block, feed_forward=lambda *_: moe))


def _jetmoe(c: Config) -> Fields:
    """Return JetMoE: each expert of the attention has its own query and output projections over common keys."""
    width, dim = c.count("hidden_size"), c.count("kv_channels", 128)
    kv_heads, count, active = (
        c.count(key) for key in ("num_key_value_heads", "num_local_experts", "num_experts_per_tok")
    )
    keys = kv_heads * dim
    heads = kv_heads * active
    mixer = Pieces(
        family="attention-experts",
        extra=(
            Piece(name="attention.router", inputs=width, outputs=count),
            Piece(name="attention.query", kind="grouped_matmul", inputs=width, outputs=keys, experts=count,
                  active=active, shard="expert"),
            Piece(name="attention.key_value", inputs=width, outputs=2 * keys, shard="column"),
            Piece(name="attention.core", kind="attention", inputs=heads * dim + 2 * keys, outputs=heads * dim,
                  shard="heads", heads=heads, kv_heads=kv_heads, key_dim=dim, value_dim=dim, cache=2 * keys),
            Piece(name="attention.output", kind="grouped_matmul", inputs=keys, outputs=width, experts=count,
                  active=active, shard="expert"),
            Piece(name="attention.bias", kind="elementwise", parameters=width, inputs=width, outputs=width),
        ),
    )  # fmt: skip
    bias = Piece(name="bias", kind="elementwise", parameters=width, inputs=width, outputs=width)
    body = Experts(count=count, active=active, size=c.count("intermediate_size"), extra=(bias,))
    return decoder(c, Traits(mixer=lambda *_: mixer, feed_forward=lambda *_: body))


def _cohere2_moe(c: Config) -> Fields:
    dense_first = c.whole("first_k_dense_replace", 0)
    prefix, step = c.count("prefix_dense_sliding_window_pattern", 1), c.count("sliding_window_pattern", 4)

    def kinds(c: Config) -> list[str]:
        def rule(index: int) -> str:
            place, period = (index, prefix) if index < dense_first else (index - dense_first, step)
            return "sliding_attention" if (place + 1) % period else "full_attention"

        return c.layer_types(rule)

    moe = MoE(
        sparse=first_dense("first_k_dense_replace", 0), size=("intermediate_size",), shared_count="num_shared_experts"
    )
    traits = replace(_BIASED, norm="layer-no-bias", norms=1, kinds=kinds, moe=moe)

    def feed_forward(c: Config, index: int) -> FeedForward:
        return dense(c, traits, c.maybe("prefix_dense_intermediate_size"))

    return decoder(c, replace(traits, feed_forward=feed_forward))


def _granite_moe(c: Config, sinks: bool = False) -> Fields:
    shared = c.whole("shared_intermediate_size", 0)

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        return attention(c, kind, _BIASED, sinks=sinks)

    def kinds(c: Config) -> list[str]:
        if not sinks:
            return c.layer_types(lambda index: "full_attention")
        return c.layer_types(lambda index: "sliding_attention" if index % 4 else "full_attention")

    def feed_forward(c: Config, index: int) -> FeedForward:
        block = experts(c, MoE(size=("intermediate_size",)))
        return block.model_copy(update={"shared": SharedExpert(size=shared) if shared else None})

    return decoder(c, Traits(mixer=mixer, kinds=kinds, feed_forward=feed_forward))


def _flint(c: Config) -> Fields:
    def kinds(c: Config) -> list[str]:
        last = c.layers - 1
        return c.layer_types(
            lambda index: "full_attention" if index < 2 or index % 4 == 1 or index == last else "sliding_attention"
        )

    def sparse(c: Config) -> list[bool]:
        chosen = c.listed("mlp_only_layers")
        only = [0, 1] if chosen is None else chosen
        step = c.count("decoder_sparse_step", 1)
        return [index not in only and (index + 1) % step == 0 for index in range(c.layers)]

    moe = MoE(sparse=sparse, shared_size="shared_expert_intermediate_size")
    traits = Traits(
        bias="attention_bias", output_bias="attention_bias", qk_norm="head", sinks=True, kinds=kinds, moe=moe
    )
    return decoder(c, traits)


def _minimax_m3(c: Config) -> Fields:
    def kinds(c: Config) -> list[str]:
        sparse = c.sub("sparse_attention_config").listed("sparse_attention_freq")
        given = sparse if sparse is not None and len(sparse) == c.layers else None
        return c.layer_types(lambda index: "minimax_m3_sparse" if given and given[index] else "full_attention")

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        return attention(c, kind, Traits(qk_norm="head"))

    moe = MoE(sparse=first_dense("first_k_dense_replace", 0), size=("intermediate_size",),
              shared_size="shared_intermediate_size")  # fmt: skip
    traits = Traits(kinds=kinds, mixer=mixer, moe=moe)
    return decoder(c, replace(traits, feed_forward=lambda c, _: Dense(size=c.count("dense_intermediate_size"))))


def _afmoe(c: Config) -> Fields:
    moe = MoE(sparse=first_dense("num_dense_layers", 1), shared_count="num_shared_experts", selection_bias=True)
    traits = Traits(
        norms=4, qk_norm="head", gate="feature", kinds=every("global_attn_every_n_layers", 4), moe=moe,
        bias="attention_bias", output_bias="attention_bias",
    )  # fmt: skip
    return decoder(c, traits)


def _phimoe(c: Config) -> Fields:
    moe = MoE(size=("intermediate_size",))
    traits = replace(_BIASED, norm="layer", head_bias="lm_head_bias", kinds=all_windowed, moe=moe)
    return decoder(c, traits)


def _sliding_even(c: Config) -> list[str]:
    return c.layer_types(lambda index: "full_attention" if index % 2 else "sliding_attention")


TRAITS: Final[dict[str, Traits]] = {
    "aria_text": replace(
        _BIASED, mlp_bias="mlp_bias",
        moe=MoE(
            shared_bias="mlp_bias", size=("intermediate_size",), shared_count="moe_num_shared_experts",
            count=("moe_num_experts",), active=("moe_topk",),
        ),
    ),
    "dots1": replace(
        _BIASED, qk_norm="head", kinds=late_windows, moe=MoE(sparse=first_dense(), shared_count="n_shared_experts")
    ),
    "exaone_moe": Traits(
        qk_norm="head", kinds=every("sliding_window_pattern", 4),
        moe=MoE(sparse=_sparse_list, shared_count="num_shared_experts"),
    ),
    "flex_olmo": replace(_BIASED, qk_norm="full", moe=MoE(size=("intermediate_size",))),
    "glm4_moe": Traits(
        bias="attention_bias", qk_norm="head", qk_norm_when="use_qk_norm", round_head=True,
        moe=MoE(sparse=first_dense("first_k_dense_replace", 1), shared_count="n_shared_experts"),
    ),
    "gpt_oss": replace(
        _BIASED, sinks=True, kinds=_sliding_even, moe=MoE(size=("intermediate_size",), bias=True, router_bias=True)
    ),
    "hunyuan_v1_moe": replace(
        _BIASED, qk_norm="head", moe=MoE(size=("intermediate_size",), shared_size="intermediate_size")
    ),
    "hy_v3": replace(
        _BIASED, qk_norm="head", mlp_bias="mlp_bias",
        moe=MoE(sparse=_sparse_list, shared_count="num_shared_experts", shared_bias="mlp_bias"),
    ),
    "kolibri1": Traits(
        norms=4, qk_norm="head", kinds=every("sliding_window_pattern", 5),
        moe=MoE(shared_size="shared_expert_intermediate_size"),
    ),
    "mellum": replace(_BIASED, qk_norm="head", moe=MoE(sparse=first_dense())),
    "minimax_m2": Traits(qk_norm="full", moe=MoE(size=("intermediate_size",))),
    "mixtral": Traits(kinds=all_windowed, moe=MoE(size=("intermediate_size",))),
    "olmoe": replace(_BIASED, qk_norm="full", moe=MoE(size=("intermediate_size",))),
    "qwen2_moe": Traits(
        bias="qkv_bias", kinds=late_windows,
        moe=MoE(sparse=stepped, shared_size="shared_expert_intermediate_size", shared_gate=True),
    ),
    "qwen3_moe": replace(_BIASED, qk_norm="head", kinds=late_windows, moe=MoE(sparse=stepped)),
    "solar_open": Traits(bias="attention_bias", moe=MoE(sparse=every_sparse, shared_count="n_shared_experts")),
}  # fmt: skip

BUILDERS: Final = {
    "afmoe": _afmoe,
    "beam": _beam,
    "cohere2_moe": _cohere2_moe,
    "dbrx": _dbrx,
    "ernie4_5_moe": _ernie,
    "flint": _flint,
    "granitemoe": _granite_moe,
    "granitemoeshared": _granite_moe,
    "granitemoe_swa": lambda c: _granite_moe(c, sinks=True),
    "jetmoe": _jetmoe,
    "laguna": _laguna,
    "llama4_text": _llama4,
    "mimo_v2_flash": _mimo,
    "minimax_m3_vl_text": _minimax_m3,
    "phimoe": _phimoe,
}
