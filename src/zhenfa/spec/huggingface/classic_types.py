"""Decoders of the GPT-2 generation: layer norms, biases, learnt positions, ungated feed-forwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from zhenfa.spec.huggingface.decoder import Fields, Traits, all_full, attention, decoder
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Attention, Dense, Layer, Mixer, Piece, Pieces

_GPT: Final = Traits(norm="layer", bias=True, output_bias=True, mlp_bias=True, gated=False)


def norm_piece(name: str, count: int, width: int) -> Piece:
    """Return a norm that is no norm of the layer's width and kind."""
    return Piece(name=name, kind="norm", parameters=count, inputs=width, outputs=width)


def vector(name: str, count: int) -> Piece:
    """Return learnt numbers applied to features in place."""
    return Piece(name=name, kind="elementwise", parameters=count, inputs=count, outputs=count)


def _inner(c: Config, key: str = "n_inner") -> int:
    return c.maybe(key) or 4 * c.count("hidden_size")


def _gpt(c: Config, t: Traits, size: int, **mixer: Any) -> Fields:
    """Return a GPT with heads of ``hidden_size / heads`` and a feed-forward of ``size``."""
    dim = c.divide("hidden_size", "num_attention_heads")
    changes = {"head_dim": dim, "kv_heads": c.count("num_attention_heads")} | mixer
    body = Dense(size=size, gated=t.gated, bias=bool(t.mlp_bias))
    return decoder(
        c, replace(t, mixer=lambda c, _, kind: attention(c, kind, t, **changes), feed_forward=lambda *_: body)
    )


def _gpt2(c: Config) -> Fields:
    return _crossed(c, _gpt(c, replace(_GPT, positions=("max_position_embeddings", 0)), _inner(c)))


def _crossed(c: Config, fields: Fields) -> Fields:
    """Return the fields with cross-attention in every layer where the file asks for it."""
    if not c.flag("add_cross_attention"):
        return fields
    return fields | {"layers": tuple(with_cross_attention(layer) for layer in fields["layers"])}


def with_cross_attention(layer: Layer) -> Layer:
    """Return the layer with a cross-attention like its self-attention, and a norm before it."""
    own = next(block for block in layer.mixer if isinstance(block, Attention))
    cross = own.model_copy(update={"cross": True, "window": None, "kv_heads": own.heads})
    return layer.model_copy(update={"mixer": (*layer.mixer, cross), "norms": layer.norm_count + 1})


def _gpt_bigcode(c: Config) -> Fields:
    kv_heads = 1 if c.flag("multi_query", True) else c.count("num_attention_heads")
    return _crossed(c, _gpt(c, replace(_GPT, positions=("max_position_embeddings", 0)), _inner(c), kv_heads=kv_heads))


def _neo_kinds(c: Config) -> list[str]:
    """Return "global" or "local" for each layer: as listed, or by patterns, each with the times it repeats."""
    listed = c.listed("attention_layers")
    if listed is not None and len(listed) == c.layers:
        return [str(kind) for kind in listed]
    kinds: list[str] = []
    for item in c.listed("attention_types") or [[["global", "local"], c.layers]]:
        whole = isinstance(item, list) and len(item) == 2 and isinstance(item[0], list)
        if not whole or isinstance(item[1], bool) or not isinstance(item[1], int):
            raise c.fail("attention_types", f"attention_types holds {item!r}, and [[names], times] is wanted.")
        kinds += [str(kind) for kind in item[0]] * min(max(item[1], 0), c.layers)
    return (kinds + ["global"] * c.layers)[: c.layers]


def _gpt_neo(c: Config) -> Fields:
    """Return GPT-Neo: every other layer sees ``window_size`` tokens."""
    kinds = _neo_kinds(c)
    traits = replace(_GPT, bias=False, positions=("max_position_embeddings", 0))
    dim = c.divide("hidden_size", "num_attention_heads")

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        seen = c.count("window_size") if kind == "local" else None
        return attention(c, kind, traits, head_dim=dim, kv_heads=c.count("num_attention_heads"), window=seen)

    body = Dense(size=_inner(c, "intermediate_size"), gated=False, bias=True)
    return decoder(c, replace(traits, kinds=lambda _: kinds, mixer=mixer, feed_forward=lambda *_: body))


def _gpt_neox_japanese(c: Config) -> Fields:
    traits = Traits(norm="layer", gated=False)
    size = c.count("hidden_size") * c.count("intermediate_multiple_size", 4)
    fields = _gpt(c, traits, size)
    runs = list(fields["layers"])
    last = runs.pop()
    if last.repeat > 1:
        runs.append(last.model_copy(update={"repeat": last.repeat - 1}))
    biased = last.mixer[0].model_copy(update={"output_bias": True})
    runs.append(last.model_copy(update={"repeat": 1, "mixer": (biased,)}))
    return fields | {"layers": tuple(runs)}


def _gptj(c: Config) -> Fields:
    traits = Traits(norm="layer", norms=1, gated=False, mlp_bias=True, head_bias=True)
    return _gpt(c, traits, _inner(c))


def _openai_gpt(c: Config) -> Fields:
    traits = replace(_GPT, final_norm="plain", positions=("max_position_embeddings", 0))
    return _gpt(c, traits, 4 * c.count("hidden_size"))


def _opt(c: Config) -> Fields:
    biased = c.flag("enable_bias", True)
    learnt = c.flag("layer_norm_elementwise_affine", True)
    ended = c.flag("do_layer_norm_before", True) and not c.flag("_remove_final_layer_norm")
    traits = Traits(
        norm="layer" if learnt else "plain", bias=biased, output_bias=biased, mlp_bias=biased, gated=False,
        final_norm=None if ended else "plain", positions=("max_position_embeddings", 2),
    )  # fmt: skip
    fields = _gpt(c, traits, c.count("ffn_dim"))
    narrow, width = c.maybe("word_embed_proj_dim") or c.count("hidden_size"), c.count("hidden_size")
    if narrow == width:
        return fields
    positions = fields["embedding"].positions
    table = Piece(name="positions", kind="embedding", inputs=positions, outputs=width)
    stem = fields["embedding"].model_copy(
        update={"width": narrow, "projection": True, "positions": 0, "extra": (table,)}
    )
    end = (Piece(name="head.projection", inputs=width, outputs=narrow),)
    return fields | {"embedding": stem, "head": fields["head"].model_copy(update={"extra": end, "width": narrow})}


def _xglm(c: Config) -> Fields:
    return _crossed(c, _gpt(c, _GPT, c.count("ffn_dim")))


def _biogpt(c: Config) -> Fields:
    traits = replace(_GPT, positions=("max_position_embeddings", 2))
    return _gpt(c, traits, c.count("intermediate_size"))


def _bloom(c: Config) -> Fields:
    return _gpt(c, replace(_GPT, embedding_norm="layer"), 4 * c.count("hidden_size"))


def _falcon(c: Config) -> Fields:
    """Return Falcon: one key-value head, or groups of them in the newer decoder, which has two norms in parallel."""
    heads, newer = c.count("num_attention_heads"), c.flag("new_decoder_architecture")
    kv_heads = heads
    if newer:
        kv_heads = c.maybe("num_kv_heads") or heads
    elif c.flag("multi_query", True):
        kv_heads = 1
    one_norm = c.flag("parallel_attn", True) and not newer
    if newer and c.get("num_ln_in_parallel_attn") == 1:
        one_norm = True
    biased = c.flag("bias")
    traits = Traits(
        norm="layer", bias=biased, output_bias=biased, mlp_bias=biased, gated=False, norms=1 if one_norm else 2
    )
    return _gpt(c, traits, _inner(c, "ffn_hidden_size"), kv_heads=kv_heads)


def _mpt(c: Config) -> Fields:
    return _gpt(c, Traits(norm="layer-no-bias", gated=False), 4 * c.count("hidden_size"))


def _ctrl(c: Config) -> Fields:
    return _gpt(c, replace(_GPT, head_bias=True), c.count("dff"))


def _cpmant(c: Config) -> Fields:
    """Return CPM-Ant: prompts are rows of the embedding, positions a table of biases per head."""
    width, heads = c.count("hidden_size"), c.count("num_attention_heads")
    segments, buckets = c.count("segment_types"), c.count("position_bias_num_buckets")
    traits = Traits(never_tied=True)
    block = Attention(heads=heads, head_dim=c.count("dim_head"))
    body = Dense(size=c.count("dim_ff"))
    fields = decoder(c, replace(traits, mixer=lambda *_: block, feed_forward=lambda *_: body))
    extra = (
        Piece(name="segments", kind="embedding", inputs=segments, outputs=width),
        Piece(name="position_bias", kind="embedding", inputs=segments * segments + buckets, outputs=heads),
    )
    rows = c.count("vocab_size") + c.count("prompt_types") * c.count("prompt_length")
    return fields | {"embedding": fields["embedding"].model_copy(update={"rows": rows, "extra": extra})}


def _moshi(c: Config) -> Fields:
    """Return Moshi's language model; its audio codec and depth decoder are models of their own."""
    body = Dense(size=c.count("ffn_dim") // 2)
    fields = decoder(c, Traits(never_tied=True, feed_forward=lambda *_: body, kinds=all_full))
    rows = c.count("vocab_size") + 1
    return fields | {"embedding": fields["embedding"].model_copy(update={"rows": rows})}


def _hrm(c: Config) -> Fields:
    """Return a hierarchical reasoning model: a low stack runs ``L_cycles`` times, then a high stack once, and again.

    A stack that runs again uses the weights of its first run.
    """
    depth = c.maybe("num_layers_per_stack") or c.layers
    high, low = c.count("H_cycles"), c.count("L_cycles")
    traits = Traits(
        norm="plain", bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias", gate="feature",
        gate_bias="attention_bias", kinds=lambda _: ["full_attention"],
    )  # fmt: skip
    fields = decoder(c, traits)
    first = fields["layers"][0].model_copy(update={"repeat": depth})
    again = first.model_copy(
        update={
            "mixer": tuple(block.model_copy(update={"shared": True}) for block in first.mixer),
            "feed_forward": tuple(block.model_copy(update={"shared": True}) for block in first.feed_forward),
        }
    )
    layers = [first]
    if low > 1:
        layers.append(again.model_copy(update={"repeat": depth * (low - 1)}))
    layers.append(first)
    if high > 1:
        layers.append(again.model_copy(update={"repeat": depth * (low + 1) * (high - 1)}))
    start = vector("start", c.count("hidden_size"))
    return fields | {
        "layers": tuple(layers),
        "embedding": fields["embedding"].model_copy(update={"extra": (start,)}),
    }


def _reformer(c: Config) -> Fields:
    """Return Reformer: local and hashing attention in turn, axial positions, a reversible trunk of twice the width."""
    width, heads, dim = c.count("hidden_size"), c.count("num_attention_heads"), c.count("attention_head_size")
    features = heads * dim
    chunk = {"local": "local_attn_chunk_length", "lsh": "lsh_attn_chunk_length"}
    kinds = c.listed("attn_layers") or []
    body = Dense(size=c.count("feed_forward_size"), gated=False, bias=True)

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        if kind not in chunk:
            raise c.fail("attn_layers", f"attn_layers[{index}] is {kind!r}.", "known: local, lsh.")
        seen = c.count(chunk[kind], 64) * (1 + c.whole(f"{kind}_num_chunks_before", 1))
        return Pieces(
            family=f"{kind}-attention",
            extra=(
                Piece(name="attention.qkv", inputs=width, outputs=(3 if kind == "local" else 2) * features,
                      shard="column"),
                Piece(name="attention.core", kind="attention", inputs=3 * features, outputs=features, heads=heads,
                      kv_heads=heads, key_dim=dim, value_dim=dim, window=seen, cache=2 * features, shard="heads"),
                Piece(name="attention.output", inputs=features, outputs=width, shard="row"),
            ),
        )  # fmt: skip

    traits = Traits(norm="layer", kinds=lambda _: [str(kind) for kind in kinds], mixer=mixer)
    fields = decoder(c, replace(traits, feed_forward=lambda *_: body, never_tied=True))
    wide = 2 * width
    extra = _reformer_positions(c)
    head = fields["head"].model_copy(
        update={"norm": "plain", "width": wide, "bias": True, "extra": (norm_piece("head.norm", 2 * wide, wide),)}
    )
    return fields | {"embedding": fields["embedding"].model_copy(update={"extra": extra}), "head": head}


def _reformer_positions(c: Config) -> tuple[Piece, ...]:
    width = c.count("hidden_size")
    if not c.flag("axial_pos_embds", True):
        rows = c.count("max_position_embeddings")
        return (Piece(name="positions", kind="embedding", inputs=rows, outputs=width),)
    shape, dims = c.listed("axial_pos_shape") or [], c.listed("axial_pos_embds_dim") or []
    return tuple(
        Piece(name="positions", kind="embedding", inputs=rows, outputs=dim)
        for rows, dim in zip(shape, dims, strict=False)
    )


BUILDERS: Final = {
    "biogpt": _biogpt,
    "bloom": _bloom,
    "codegen": _gptj,
    "cpmant": _cpmant,
    "ctrl": _ctrl,
    "falcon": _falcon,
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neo": _gpt_neo,
    "gpt_neox_japanese": _gpt_neox_japanese,
    "gptj": _gptj,
    "hrm_text": _hrm,
    "moshi": _moshi,
    "mpt": _mpt,
    "openai-gpt": _openai_gpt,
    "opt": _opt,
    "reformer": _reformer,
    "xglm": _xglm,
}
