"""Dense decoders: one row of traits per model type."""

from __future__ import annotations

from typing import Final

from zhenfa.spec.huggingface.decoder import (
    Fields,
    Traits,
    all_windowed,
    attention,
    decoder,
    every,
    head_dim,
    late_windows,
)
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Mixer, Piece


def _weights(name: str, count: int) -> Piece:
    """Return learnt numbers that scale features in place."""
    return Piece(name=name, kind="elementwise", parameters=count, inputs=count, outputs=count)


def _norm(name: str, count: int) -> Piece:
    return Piece(name=name, kind="norm", parameters=count, inputs=count, outputs=count)


def _first_of_four(c: Config) -> list[str]:
    return c.layer_types(lambda index: "sliding_attention" if index % 4 else "full_attention")


def _exaone4(c: Config) -> list[str]:
    if not c.get("sliding_window"):
        return c.layer_types(lambda index: "full_attention")
    step = c.count("sliding_window_pattern", 4)
    return c.layer_types(lambda index: "sliding_attention" if (index + 1) % step else "full_attention")


def _smollm3(c: Config) -> list[str]:
    step = c.count("no_rope_layer_interval", 4)
    rope = c.listed("no_rope_layers", c.layers) or [(index + 1) % step for index in range(c.layers)]
    windowed = c.flag("use_sliding_window") and c.get("sliding_window")
    return c.layer_types(lambda index: "sliding_attention" if windowed and not rope[index] else "full_attention")


def _doge(c: Config) -> Fields:
    width = c.count("hidden_size")
    heads = c.maybe("num_key_value_heads") or c.count("num_attention_heads")
    mask = Piece(name="mask", inputs=heads * head_dim(c), outputs=heads, bias=c.flag("attention_bias"))
    traits = Traits(
        bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias", qk_norm="head",
        attention_pieces=lambda _: (mask, _weights("mask_scale", heads)),
        mlp_pieces=_doge_experts if c.flag("is_moe") else None,
        pieces=lambda _: (_weights("residual_scale", 2 * width),),
    )  # fmt: skip
    return decoder(c, traits)


def _doge_experts(c: Config) -> tuple[Piece, ...]:
    """Return a million tiny experts: two tables whose rows are found by two product keys."""
    width, count, active = c.count("hidden_size"), c.count("num_experts"), c.count("num_experts_per_tok")
    keys = int(count**0.5)
    shape = {"kind": "grouped_matmul", "experts": count, "active": min(active, count), "shard": "expert"}
    tables = (
        Piece(name="retrieval_down", inputs=width, outputs=1, **shape),
        Piece(name="retrieval_up", inputs=1, outputs=width, **shape),
    )
    return (Piece(name="retrieval_router", inputs=width, outputs=2 * keys), *tables)


def _bitnet(c: Config) -> Fields:
    mixed = c.count("num_attention_heads") * head_dim(c)
    traits = Traits(
        bias="attention_bias", output_bias="attention_bias",
        attention_pieces=lambda _: (_norm("inner_norm", mixed),),
        mlp_pieces=lambda _: (_norm("inner_norm", c.count("intermediate_size")),),
    )  # fmt: skip
    return decoder(c, traits)


def _stablelm(c: Config) -> Fields:
    parallel = c.flag("use_parallel_residual")
    traits = Traits(
        norm="layer", bias="use_qkv_bias", qk_norm="full", qk_norm_when="qk_layernorm", norms=1 if parallel else 2
    )
    return decoder(c, traits)


def _hyperclovax(c: Config) -> Fields:
    norms = 4 if c.flag("use_post_norm") else 2
    return decoder(c, Traits(norms=norms, bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"))


def _gpt_neox(c: Config) -> Fields:
    return decoder(
        c, Traits(norm="layer", bias="attention_bias", output_bias="attention_bias", mlp_bias=True, gated=False)
    )


def _mllama(c: Config) -> Fields:
    """Return Llama with gated cross-attention to an image encoder in some layers, and 8 more rows of embedding."""
    given = c.listed("cross_attention_layers")
    crossed = [3, 8, 13, 18, 23, 28, 33, 38] if given is None else given
    plain = Traits()

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        if index not in crossed:
            return attention(c, kind, plain)
        gates = (_weights("gates", 2),)
        return attention(c, kind, plain, qk_norm="head", cross=True, extra=gates)

    fields = decoder(c, Traits(mixer=mixer))
    fields["embedding"] = fields["embedding"].model_copy(update={"rows": c.count("vocab_size") + 8})
    return fields


def _diffllama(c: Config) -> tuple[Piece, ...]:
    return (_weights("lambda", 4 * head_dim(c)),)


def _granite_sinks(c: Config, index: int, kind: str) -> Mixer:
    return attention(c, kind, _GRANITE, sinks=True)


def _neo(c: Config, index: int, kind: str) -> Mixer:
    seen = c.maybe("window_size") if kind == "sliding_attention" else None
    return attention(c, kind, _NEO, window=seen)


_BIASED: Final = Traits(bias="attention_bias", output_bias="attention_bias")
_LLAMA: Final = Traits(bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias")
_GRANITE: Final = _LLAMA
_NEO: Final = Traits(norm="layer", output_bias=True, mlp_bias=True, gated=False)

TRAITS: Final[dict[str, Traits]] = {
    "llama": _LLAMA,
    "internlm3": Traits(bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "iquestcoder": _LLAMA,
    "granite": _GRANITE,
    "granite_swa": Traits(mlp_bias="mlp_bias", kinds=_first_of_four, mixer=_granite_sinks),
    "helium": Traits(bias="attention_bias", mlp_bias="mlp_bias"),
    "emu3_text_model": Traits(bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": Traits(kinds=all_windowed),
    "ministral": Traits(kinds=all_windowed),
    "ministral3": Traits(kinds=all_windowed),
    "qwen2": Traits(bias=True, kinds=late_windows),
    "qwen3": Traits(bias="attention_bias", output_bias="attention_bias", qk_norm="head", kinds=late_windows),
    "arcee": Traits(bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias", gated=False),
    "apertus": Traits(
        bias="attention_bias", output_bias="attention_bias", qk_norm="head", gated=False,
        mlp_pieces=lambda c: (_weights("xielu", 2),) if c.text("hidden_act", "xielu") == "xielu" else (),
    ),
    "cohere": Traits(
        norm="layer-no-bias", norms=1, bias="attention_bias", output_bias="attention_bias", qk_norm="full",
        qk_norm_when="use_qk_norm",
    ),
    "cohere2": Traits(
        norm="layer-no-bias", norms=1, bias="attention_bias", output_bias="attention_bias",
        kinds=every("sliding_window_pattern", 4),
    ),
    "cohere_compass_text": Traits(norm="layer-no-bias", norms=1, bias="attention_bias", output_bias="attention_bias"),
    "cwm": Traits(mlp_bias="mlp_bias", kinds=_first_of_four),
    "diffllama": Traits(bias="attention_bias", output_bias="attention_bias", attention_pieces=_diffllama),
    "ernie4_5": Traits(bias="use_bias", output_bias="use_bias", mlp_bias="use_bias"),
    "exaone4": Traits(qk_norm="head", kinds=_exaone4),
    "gemma": _BIASED,
    "gemma2": Traits(
        bias="attention_bias", output_bias="attention_bias", norms=4, kinds=every("sliding_window_pattern", 2)
    ),
    "gemma3_text": Traits(
        bias="attention_bias", output_bias="attention_bias", norms=4, qk_norm="head",
        kinds=every("sliding_window_pattern", 6),
    ),
    "vaultgemma": Traits(
        bias="attention_bias", output_bias="attention_bias", kinds=every("sliding_window_pattern", 2)
    ),
    "glm": Traits(bias="attention_bias"),
    "glm4": Traits(bias="attention_bias", norms=4),
    "hunyuan_v1_dense": Traits(
        bias="attention_bias", output_bias="attention_bias", qk_norm="head",
    ),
    "jais2": Traits(
        norm="layer", gated=False, bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "nanochat": Traits(norm="plain", gated=False, bias="attention_bias", output_bias="attention_bias"),
    "nemotron": Traits(
        norm="layer", gated=False, bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "olmo": Traits(norm="plain", bias="attention_bias", output_bias="attention_bias"),
    "olmo2": Traits(bias="attention_bias", output_bias="attention_bias", qk_norm="full"),
    "olmo3": Traits(
        bias="attention_bias", output_bias="attention_bias", qk_norm="full", kinds=every("sliding_window_pattern", 4)
    ),
    "persimmon": Traits(
        norm="layer", gated=False, bias=True, output_bias=True, mlp_bias=True, qk_norm="head",
        qk_norm_when="qk_layernorm", qk_norm_bias=True,
    ),
    "phi": Traits(
        norm="layer", norms=1, gated=False, bias=True, output_bias=True, mlp_bias=True, head_bias=True, qk_norm="head",
        qk_norm_when="qk_layernorm", qk_norm_bias=True,
    ),
    "phi3": Traits(kinds=all_windowed),
    "phi4_multimodal": Traits(kinds=all_windowed),
    "seed_oss": Traits(bias="attention_bias", output_bias="attention_out_bias", mlp_bias="mlp_bias"),
    "smollm3": Traits(
        bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias", kinds=_smollm3
    ),
    "starcoder2": Traits(
        norm="layer", gated=False, bias="use_bias", output_bias="use_bias", mlp_bias="use_bias", kinds=all_windowed
    ),
}  # fmt: skip

BUILDERS: Final = {
    "doge": _doge,
    "bitnet": _bitnet,
    "stablelm": _stablelm,
    "hyperclovax": _hyperclovax,
    "gpt_neox": _gpt_neox,
    "mllama_text_model": _mllama,
}
