"""Model types that transformers does not hold itself but that checkpoints carry the code of, and second names."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from zhenfa.spec.huggingface.decoder import Fields, MoE, Traits, decoder, first_dense
from zhenfa.spec.huggingface.latent_types import latent
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Attention, Dense, NormKind

ALIASES: Final[dict[str, str]] = {
    "aquila": "llama",
    "deepseek_vl_v2_text": "deepseek_v2",
    "glm4v_moe_text": "glm4_moe",
    "glm4v_text": "glm4",
    "gpt-sw3": "gpt2",
    "kimi_k2": "deepseek_v3",
    "qwen2_5_omni_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_omni_moe_text": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
    "yi": "llama",
}
"""Types that are built exactly as another."""


def _internlm2(c: Config) -> Fields:
    return decoder(c, Traits(bias="bias", output_bias="bias"))


def _baichuan(c: Config) -> Fields:
    return decoder(c, Traits())


def _qwen(c: Config) -> Fields:
    """Return the first Qwen: ``intermediate_size`` counts both halves of the gated feed-forward."""
    body = Dense(size=c.count("intermediate_size") // 2)
    return decoder(c, Traits(bias=True, feed_forward=lambda *_: body))


def _chatglm(c: Config) -> Fields:
    heads = c.count("num_attention_heads")
    kv_heads = c.count("multi_query_group_num", 1) if c.flag("multi_query_attention") else heads
    linear = c.flag("add_bias_linear")
    block = Attention(
        heads=heads, kv_heads=kv_heads, head_dim=c.count("kv_channels", 128),
        bias=linear or c.flag("add_qkv_bias"), output_bias=linear,
    )  # fmt: skip
    body = Dense(size=c.count("ffn_hidden_size"), bias=linear)
    norm: NormKind = "rms" if c.flag("rmsnorm", True) else "layer"
    fields = decoder(c, Traits(norm=norm, mixer=lambda *_: block, feed_forward=lambda *_: body))
    return fields | {"vocabulary_size": c.count("padded_vocab_size")}


def _deepseek(c: Config) -> Fields:
    """Return DeepSeekMoE, the first generation, with plain attention."""
    moe = MoE(sparse=first_dense("first_k_dense_replace", 0), shared_count="n_shared_experts")
    return decoder(c, Traits(bias="attention_bias", output_bias="attention_bias", moe=moe))


def _bailing_moe(c: Config) -> Fields:
    """Return Ling and Ring with softmax attention."""
    moe = MoE(sparse=first_dense("first_k_dense_replace", 0), shared_count="num_shared_experts")
    traits = Traits(bias="use_qkv_bias", output_bias="use_bias", moe=moe)
    return decoder(c, replace(traits, qk_norm="head", qk_norm_when="use_qk_norm"))


def common_rules(c: Config) -> Fields:
    """Return a decoder read by the rules that most follow, for a type that is not known by name."""
    moe = None
    if c.get("num_experts") is not None and c.whole("num_experts") > 1:
        shared = next((key for key in ("n_shared_experts", "num_shared_experts") if c.get(key) is not None), None)
        width = "shared_expert_intermediate_size"
        dense = next(
            (key for key in ("first_k_dense_replace", "num_dense_layers") if c.get(key) is not None),
            "first_k_dense_replace",
        )
        size = "moe_intermediate_size" if c.get("moe_intermediate_size") is not None else "intermediate_size"
        moe = MoE(
            sparse=first_dense(dense, 0), size=(size,), shared_count=shared,
            shared_size=width if c.get(width) is not None and not shared else None,
        )  # fmt: skip
    traits = Traits(
        bias=c.flag("attention_bias") or c.flag("qkv_bias"), output_bias=c.flag("attention_bias"),
        mlp_bias=c.flag("mlp_bias"), qk_norm="head" if c.flag("use_qk_norm") or c.flag("qk_norm") else "none", moe=moe,
    )  # fmt: skip
    if c.get("kv_lora_rank") is not None:
        traits = replace(traits, mixer=lambda c, _, kind: latent(c, kind))
    return decoder(c, traits)


BUILDERS: Final = {
    "baichuan": _baichuan,
    "bailing_moe": _bailing_moe,
    "bailing_moe_v2": _bailing_moe,
    "chatglm": _chatglm,
    "deepseek": _deepseek,
    "internlm2": _internlm2,
    "qwen": _qwen,
}
