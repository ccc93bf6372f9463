"""Gemma 3n and Gemma 4: embeddings per layer, layers that reuse the cache of others, wide heads where all is seen."""

from __future__ import annotations

from typing import Final

from zhenfa.spec.huggingface.classic_types import norm_piece, vector
from zhenfa.spec.huggingface.decoder import Fields, MoE, Traits, attention, decoder, experts
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Dense, Experts, FeedForward, Mixer, Piece

_TRAITS: Final = Traits(bias="attention_bias", output_bias="attention_bias", qk_norm="head", norms=4)


def _shared_from(c: Config) -> int:
    """Return the first layer that reuses keys and values of an earlier one."""
    shared = c.whole("num_kv_shared_layers", 0)
    return c.layers - shared if shared else c.layers


def _per_layer_pieces(c: Config) -> tuple[Piece, ...]:
    """Return what mixes a layer's own embedding into the stream."""
    width, own = c.count("hidden_size"), c.whole("hidden_size_per_layer_input", 0)
    if not own:
        return ()
    return (
        Piece(name="per_layer.gate", inputs=width, outputs=own),
        Piece(name="per_layer.projection", inputs=own, outputs=width),
        norm_piece("per_layer.norm", width, width),
    )


def _per_layer_stem(c: Config) -> tuple[Piece, ...]:
    width, own = c.count("hidden_size"), c.whole("hidden_size_per_layer_input", 0)
    if not own:
        return ()
    rows, features = c.count("vocab_size_per_layer_input"), own * c.layers
    return (
        Piece(name="per_layer.embedding", kind="embedding", inputs=rows, outputs=features, shard="vocabulary"),
        Piece(name="per_layer.model_projection", inputs=width, outputs=features),
        norm_piece("per_layer.projection_norm", own, features),
    )


def _gemma3n(c: Config) -> Fields:
    """Return Gemma 3n: alternating updates (AltUp) over several streams and a low-rank residual (LAuReL)."""
    width, rank, streams = c.count("hidden_size"), c.count("laurel_rank"), c.count("altup_num_inputs")
    sizes, first = c.get("intermediate_size"), _shared_from(c)
    sizes = c.listed("intermediate_size", c.layers) if isinstance(sizes, list) else [sizes] * c.layers
    extra = (
        Piece(name="altup.router", inputs=width, outputs=streams),
        Piece(name="altup.predict", inputs=streams, outputs=streams * streams),
        Piece(name="altup.correct", inputs=streams, outputs=streams),
        norm_piece("altup.norm", width, width),
        vector("altup.scale", width),
        Piece(name="laurel.left", inputs=width, outputs=rank),
        Piece(name="laurel.right", inputs=rank, outputs=width),
        norm_piece("laurel.norm", width, width),
        *_per_layer_pieces(c),
    )

    def kinds(c: Config) -> list[str]:
        return c.layer_types(lambda index: "sliding_attention" if (index + 1) % 5 else "full_attention")

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        return attention(c, kind, _TRAITS, reuses_cache=index >= first)

    def feed_forward(c: Config, index: int) -> FeedForward:
        return Dense(size=sizes[index] if sizes else c.count("intermediate_size"))

    fields = decoder(c, Traits(norms=4, kinds=kinds, mixer=mixer, feed_forward=feed_forward, pieces=lambda _: extra))
    split = tuple(Piece(name="altup.split", inputs=width, outputs=width) for _ in range(streams - 1))
    joined = tuple(Piece(name="altup.join", inputs=width, outputs=width) for _ in range(streams - 1))
    return fields | {
        "embedding": fields["embedding"].model_copy(update={"extra": (*_per_layer_stem(c), *split)}),
        "head": fields["head"].model_copy(update={"extra": joined}),
    }


def _gemma4(c: Config) -> Fields:
    """Return Gemma 4's text model; layers that see all have heads of ``global_head_dim``."""
    first = _shared_from(c)
    same = c.flag("attention_k_eq_v")
    written = c.get("per_layer_config") is not None
    moe = c.flag("enable_moe_block")

    def kinds(c: Config) -> list[str]:
        types = c.layer_types(lambda index: "sliding_attention" if (index + 1) % 6 else "full_attention")
        return [*types[:-1], "full_attention"]

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        here, full = c.at(index), kind == "full_attention"
        changes: Fields = {"reuses_cache": index >= first, "keys_are_values": same and full}
        if full and not written:
            changes["head_dim"] = c.count("global_head_dim", 512)
            if same or "attention_k_eq_v" not in c.defaults:
                changes["kv_heads"] = c.maybe("num_global_key_value_heads")
        return attention(here, kind, _TRAITS, **changes)

    def feed_forward(c: Config, index: int) -> FeedForward | tuple[FeedForward, ...]:
        wide = 2 if c.flag("use_double_wide_mlp") and index >= first else 1
        dense = Dense(size=c.count("intermediate_size") * wide)
        return (dense, _gemma4_experts(c)) if moe else dense

    traits = Traits(
        norms=7 if moe else 4, kinds=kinds, mixer=mixer, feed_forward=feed_forward, pieces=_per_layer_pieces
    )
    fields = decoder(c, traits)
    return fields | {"embedding": fields["embedding"].model_copy(update={"extra": _per_layer_stem(c)})}


def _gemma4_experts(c: Config) -> Experts:
    block = experts(c, MoE(active=("top_k_experts", "num_experts_per_tok")))
    scales = c.count("hidden_size") + block.count
    return block.model_copy(update={"router_parameters": scales})


def _gemma4_assistant(c: Config) -> Fields:
    """Return a Gemma 4 drafter: a small text model between projections from and to the width of its target."""
    text = c.sub("text_config", "gemma4_text" if c.model_type == "gemma4_assistant" else "gemma4_unified_text")
    fields = _gemma4(text)
    width, target = fields["hidden_size"], c.count("backbone_hidden_size")
    enter = Piece(name="from_target", inputs=2 * target, outputs=width)
    leave = [Piece(name="to_target", inputs=width, outputs=target)]
    if c.flag("use_ordered_embeddings"):
        leave.append(Piece(name="centroids", inputs=width, outputs=c.count("num_centroids")))
    stem, head = fields["embedding"], fields["head"]
    return fields | {
        "embedding": stem.model_copy(update={"extra": (*stem.extra, enter)}),
        "head": head.model_copy(update={"extra": tuple(leave), "tied": c.flag("tie_word_embeddings", True)}),
    }


BUILDERS: Final = {
    "gemma3n_text": _gemma3n,
    "gemma4_assistant": _gemma4_assistant,
    "gemma4_text": _gemma4,
    "gemma4_unified_assistant": _gemma4_assistant,
    "gemma4_unified_text": _gemma4,
}
