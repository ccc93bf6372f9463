"""Decoders with multi-head latent attention (DeepSeek-V2 and after)."""

from __future__ import annotations

from typing import Any, Final

from zhenfa.spec.huggingface.decoder import Fields, MoE, Traits, decoder, experts, first_dense, window
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Dense, Experts, Indexer, LatentAttention, Mixer, Piece

_SHARED: Final = "n_shared_experts"


def latent(c: Config, kind: str, **changes: Any) -> LatentAttention:
    """Return the latent attention of DeepSeek-V2; ``changes`` override its fields."""
    biased = c.flag("attention_bias")
    values: Fields = {
        "heads": c.count("num_attention_heads"),
        "query_rank": c.maybe("q_lora_rank"),
        "latent_rank": c.count("kv_lora_rank"),
        "nope_dim": c.count("qk_nope_head_dim"),
        "rope_dim": c.count("qk_rope_head_dim"),
        "value_dim": c.maybe("v_head_dim") or c.divide("hidden_size", "num_attention_heads"),
        "bias": biased,
        "output_bias": biased,
        "window": window(c, kind),
    }
    return LatentAttention(**values | changes)


def indexer(c: Config, *, shared: bool = False) -> Indexer:
    """Return the indexer of DeepSeek-V3.2's sparse attention."""
    return Indexer(
        heads=c.count("index_n_heads"), head_dim=c.count("index_head_dim"), top=c.count("index_topk"), shared=shared
    )


def _plain(c: Config, index: int, kind: str) -> Mixer:
    return latent(c, kind)


def _indexed(c: Config, index: int, kind: str) -> Mixer:
    return latent(c, kind, indexer=indexer(c))


def _indexed_kinds(c: Config) -> list[str]:
    return c.layer_types(lambda index: "indexed_attention")


def _indexer_types(c: Config, step: int = 1, offset: int = 2) -> list[str]:
    """Return for each layer whether it picks tokens itself ("full") or reuses the pick of a layer before ("shared")."""
    given = c.listed("indexer_types", c.layers)
    if given is not None:
        return [str(item) for item in given]
    pattern = c.get("index_topk_pattern")
    if isinstance(pattern, str):
        return ["full" if letter == "F" else "shared" for letter in pattern]
    if isinstance(pattern, list):
        return [str(item) for item in pattern]
    step, offset = c.count("index_topk_freq", step), c.whole("index_skip_topk_offset", offset)
    return ["full" if max(index - offset + 1, 0) % step == 0 else "shared" for index in range(c.layers)]


def _glm_dsa(c: Config) -> Fields:
    types = _indexer_types(c)

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        return latent(c, kind, indexer=indexer(c, shared=types[index] == "shared"))

    moe = MoE(sparse=first_dense("first_k_dense_replace", 3), shared_count=_SHARED)
    return decoder(c, Traits(mixer=mixer, kinds=_indexed_kinds, moe=moe))


def _axk1(c: Config) -> Fields:
    width = c.count("hidden_size")
    norm = Piece(name="norm", kind="norm", parameters=width, inputs=width, outputs=width)
    dense = first_dense("first_k_dense_replace", 1)
    sparse = dense(c)

    def feed_forward(c: Config, index: int) -> Dense | Experts:
        if not sparse[index]:
            return Dense(size=c.count("intermediate_size"))
        return experts(c, MoE(shared_count=_SHARED)).model_copy(update={"extra": (norm,)})

    return decoder(c, Traits(mixer=_plain, feed_forward=feed_forward))


def _axk2(c: Config) -> Fields:
    """Return A.X K2: queries and the output gate come from two query latents, norms are gated by a low rank."""
    heads, rank, width = c.count("num_attention_heads"), c.count("q_lora_rank"), c.count("hidden_size")
    dims = c.count("qk_nope_head_dim") + c.count("qk_rope_head_dim")
    gate_rank = c.count("gated_norm_rank")
    sparse = first_dense("first_k_dense_replace", 1)(c)
    queries = (
        Piece(name="query_up_2", inputs=rank, outputs=heads * dims, shard="column"),
        Piece(name="gate", inputs=2 * rank, outputs=heads * c.count("v_head_dim"), shard="column"),
    )
    norm_gate = (
        Piece(name="norm_gate_down", inputs=width, outputs=gate_rank),
        Piece(name="norm_gate_up", inputs=gate_rank, outputs=width),
    )

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        return latent(c, kind, indexer=indexer(c), extra=queries + norm_gate)

    def feed_forward(c: Config, index: int) -> Dense | Experts:
        if not sparse[index]:
            return Dense(size=c.count("intermediate_size"))
        return experts(c, MoE(shared_count=_SHARED)).model_copy(update={"extra": norm_gate})

    return decoder(c, Traits(mixer=mixer, kinds=_indexed_kinds, feed_forward=feed_forward))


_DOTS_WINDOWED: Final = {
    "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 1024, "kv_lora_rank": 1024, "head_dim": 256,
    "qk_nope_head_dim": 192, "v_head_dim": 128,
}  # fmt: skip


def _dots3(c: Config) -> Fields:
    """Return dots3: windowed layers have sizes of their own, every fourth layer picks tokens with an indexer."""
    sparse_attention = "indexed_attention" if c.flag("use_dsa", True) else "full_attention"
    windows = c.flag("use_sliding_window", True)

    def kinds(c: Config) -> list[str]:
        return c.layer_types(
            lambda index: sparse_attention if not windows or index < 2 or index % 4 == 1 else "sliding_attention"
        )

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        here = c.at(index)
        if kind == "sliding_attention" and here is c:
            own = {key: c.get(f"swa_{key}", value) for key, value in _DOTS_WINDOWED.items()}
            own["qk_rope_head_dim"] = c.get("swa_qk_rope_head_dim", own["head_dim"] - own["qk_nope_head_dim"])
            here = Config(c.data | own, source=c.source, model_type=c.model_type, path=c.path)
        rope = here.count("qk_rope_head_dim")
        key_norm = Piece(name="key_norm", kind="norm", parameters=rope, inputs=rope, outputs=rope)
        picked = indexer(here) if kind == "indexed_attention" else None
        seen = here.count("sliding_window", 512) if kind == "sliding_attention" else None
        return latent(here, kind, gate="head", extra=(key_norm,), indexer=picked, window=seen)

    moe = MoE(
        sparse=first_dense("first_k_dense_replace", 1), shared_count=_SHARED,
        shared_size="shared_experts_intermediate_size",
    )  # fmt: skip
    return decoder(c, Traits(kinds=kinds, mixer=mixer, moe=moe))


def hyper_connection(name: str, width: int, streams: int, outputs: int, scales: int) -> tuple[Piece, ...]:
    """Return the weights that mix ``streams`` residual streams into one and back (mHC, arXiv:2512.24880)."""
    return (
        Piece(
            name=f"{name}.mix", inputs=streams * width, outputs=outputs,
            parameters=streams * width * outputs + outputs + scales,
        ),
    )  # fmt: skip


def _hyper_head(c: Config, fields: Fields) -> Fields:
    streams, width = c.count("hc_mult"), c.count("hidden_size")
    extra = hyper_connection("streams", width, streams, streams, 1)
    return fields | {"head": fields["head"].model_copy(update={"extra": extra})}


def _hy_v4(c: Config) -> Fields:
    given = c.listed("indexer_types", c.layers)
    types = given or ["full" if index == 0 or (index - 1) % 4 == 0 else "shared" for index in range(c.layers)]
    streams = c.count("hc_mult")
    width = c.count("hidden_size")

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        return latent(c, kind, gate="feature", sinks=True, indexer=indexer(c, shared=types[index] == "shared"))

    pieces = tuple(
        piece
        for site in ("attention_streams", "mlp_streams")
        for piece in hyper_connection(site, width, streams, 2 * streams, 2)
    )
    moe = MoE(sparse=first_dense("first_k_dense_replace", 1), shared_count=_SHARED)
    traits = Traits(mixer=mixer, kinds=_indexed_kinds, moe=moe, pieces=lambda _: pieces)
    return _hyper_head(c, decoder(c, traits))


def _longcat(c: Config) -> Fields:
    """Return LongCat-Flash: two attentions and two dense feed-forwards per layer beside one mixture of experts.

    Zero experts pass a token through unchanged; of ``moe_topk`` choices only the share of real experts costs work.
    """
    real, free = c.count("n_routed_experts"), c.whole("zero_expert_num", 0)
    active = max(1, round(c.count("moe_topk") * real / (real + free)))
    moe = Experts(
        count=real, active=active, size=c.count("expert_ffn_hidden_size"), router_outputs=real + free,
        router_bias=c.flag("router_bias"),
    )  # fmt: skip
    dense = Dense(size=c.count("ffn_hidden_size"))
    traits = Traits(
        norms=4,
        mixer=lambda c, index, kind: (latent(c, kind), latent(c, kind)),
        feed_forward=lambda c, index: (moe, dense, dense),
        kinds=lambda c: ["full_attention"] * c.count("num_layers"),
    )
    return decoder(c, traits)


def _deepseek_v2(c: Config) -> Fields:
    sparse = first_dense("first_k_dense_replace", 0)
    if c.get("n_routed_experts") is None:
        return decoder(c, Traits(mixer=_plain, mlp_bias="mlp_bias"))
    moe = MoE(sparse=sparse, shared_count=_SHARED, shared_bias="mlp_bias")
    return decoder(c, Traits(mixer=_plain, mlp_bias="mlp_bias", moe=moe))


TRAITS: Final[dict[str, Traits]] = {
    "deepseek_v3": Traits(
        mixer=_plain, moe=MoE(sparse=first_dense("first_k_dense_replace", 3), shared_count=_SHARED)
    ),
    "deepseek_v32": Traits(
        mixer=_indexed, kinds=_indexed_kinds,
        moe=MoE(sparse=first_dense("first_k_dense_replace", 3), shared_count=_SHARED),
    ),
    "glm4_moe_lite": Traits(
        mixer=_plain, moe=MoE(sparse=first_dense("first_k_dense_replace", 1), shared_count=_SHARED)
    ),
    "minicpm3": Traits(mixer=_plain, mlp_bias="mlp_bias"),
    "youtu": Traits(mixer=_plain),
}  # fmt: skip

BUILDERS: Final = {
    "axk1": _axk1,
    "axk2": _axk2,
    "deepseek_v2": _deepseek_v2,
    "dots3_note_text": _dots3,
    "glm_moe_dsa": _glm_dsa,
    "hy_v4": _hy_v4,
    "longcat_flash": _longcat,
}
