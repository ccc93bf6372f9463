"""Decoders that share too little with the others: compressed attention, mixed streams, bytes."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, isqrt
from typing import Final

from zhenfa.spec.huggingface import recurrences
from zhenfa.spec.huggingface.classic_types import norm_piece, vector
from zhenfa.spec.huggingface.decoder import Fields, MoE, Traits, attention, decoder, every, experts, first_dense
from zhenfa.spec.huggingface.latent_types import hyper_connection
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import (
    Attention,
    Dense,
    Embedding,
    Encoder,
    Experts,
    FeedForward,
    Head,
    Layer,
    Mixer,
    Piece,
    Pieces,
    SharedExpert,
)

_RATES: Final = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
_MAX_TABLES: Final = 1024
_RATE_KINDS: Final = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}


def _deepseek_v4(c: Config) -> Fields:
    """Return DeepSeek-V4: a window of tokens beside compressed entries, one key-value head, four residual streams."""
    ratios = c.counts("compress_ratios")

    def kinds(c: Config) -> list[str]:
        if len(ratios) >= c.layers and c.own("layer_types") is None:
            return [_RATE_KINDS.get(ratio, "sliding_attention") for ratio in ratios[: c.layers]]
        heavy, sparse = "heavily_compressed_attention", "compressed_sparse_attention"
        return c.layer_types(lambda index: heavy if index < 2 or index % 2 == 0 else sparse)

    streams, width = c.count("hc_mult"), c.count("hidden_size")
    pieces = tuple(
        piece
        for site in ("attention_streams", "mlp_streams")
        for piece in hyper_connection(site, width, streams, streams * (streams + 2), 3)
    )
    block = experts(c, MoE(shared_size="moe_intermediate_size", shared_bias="mlp_bias"))
    traits = Traits(kinds=kinds, mixer=_v4_mixer, feed_forward=lambda *_: block, pieces=lambda _: pieces)
    fields = decoder(c, traits)
    extra = hyper_connection("streams", width, streams, streams, 1)
    return fields | {"head": fields["head"].model_copy(update={"extra": extra})}


def _v4_mixer(c: Config, index: int, kind: str) -> Mixer:
    """Return one attention of DeepSeek-V4.

    The graph knows no cache that grows by one entry per ``rate`` tokens: such an entry is written as one of ``1 /
    rate`` its size per token, which costs the same work and memory.
    """
    width, heads, dim = c.count("hidden_size"), c.count("num_attention_heads"), c.count("head_dim")
    rank, groups, out = c.count("q_lora_rank"), c.count("o_groups"), c.count("o_lora_rank")
    if heads * dim % groups:
        raise c.fail("o_groups", f"o_groups is {groups}, which does not divide {heads * dim} features.")
    pieces = [
        Piece(name="attention.query_down", inputs=width, outputs=rank),
        norm_piece("attention.query_norm", rank, rank),
        Piece(name="attention.query_up", inputs=rank, outputs=heads * dim, shard="column"),
        Piece(name="attention.key_value", inputs=width, outputs=dim),
        norm_piece("attention.key_value_norm", dim, dim),
        Piece(
            name="attention.core", kind="attention", parameters=heads, inputs=(heads + 1) * dim, outputs=heads * dim,
            heads=heads, kv_heads=1, key_dim=dim, value_dim=dim, window=c.count("sliding_window"), cache=dim,
            shard="heads",
        ),
    ]  # fmt: skip
    if kind in _RATES:
        pieces += _compressor(c, kind, c.sub("compress_rates").count(kind, _RATES[kind]))
    pieces += [
        Piece(name="attention.output_down", inputs=heads * dim // groups, outputs=groups * out, shard="row"),
        Piece(name="attention.output_up", inputs=groups * out, outputs=width),
    ]
    return Pieces(family=kind.replace("_", "-"), extra=tuple(pieces))


def _compressor(c: Config, kind: str, rate: int) -> list[Piece]:
    width, heads, dim = c.count("hidden_size"), c.count("num_attention_heads"), c.count("head_dim")
    sparse = kind == "compressed_sparse_attention"
    pieces = _compress("attention.compress", width, dim, rate, 2 if sparse else 1)
    top = None
    small = max(1, dim // rate)
    if sparse:
        count, index_dim, top = c.count("index_n_heads"), c.count("index_head_dim"), c.count("index_topk")
        tiny = max(1, index_dim // rate)
        small = dim  # a fixed number of entries is read, whatever the context
        pieces += _compress("attention.indexer.compress", width, index_dim, rate, 2)
        pieces += [
            Piece(name="attention.indexer.query", inputs=c.count("q_lora_rank"), outputs=count * index_dim),
            Piece(name="attention.indexer.weights", inputs=width, outputs=count),
            Piece(
                name="attention.indexer.core", kind="attention", inputs=(count + 1) * tiny, outputs=top, heads=count,
                kv_heads=1, key_dim=tiny, cache=tiny,
            ),
        ]  # fmt: skip
    pieces.append(
        Piece(
            name="attention.compressed_core", kind="attention", inputs=heads * dim, outputs=heads * dim, heads=heads,
            kv_heads=1, key_dim=small, value_dim=small, window=top, cache=max(1, dim // rate), shard="heads",
        )
    )  # fmt: skip
    return pieces


def _compress(name: str, width: int, dim: int, rate: int, copies: int) -> list[Piece]:
    return [
        Piece(name=name, inputs=width, outputs=2 * copies * dim, parameters=2 * copies * dim * width),
        vector(f"{name}.positions", rate * copies * dim),
        norm_piece(f"{name}.norm", dim, dim),
    ]


def _taps(name: str, channels: int, width: int) -> Piece:
    return Piece(
        name=name, kind="convolution", parameters=channels * width, inputs=channels, outputs=channels,
        state=channels * (width - 1),
    )  # fmt: skip


def _hybrid_sixth(c: Config) -> list[str]:
    local = c.listed("local_layer_ids")
    return c.layer_types(
        lambda index: "hybrid_sliding" if (index in local if local is not None else (index + 1) % 6) else "hybrid"
    )


def _inkling_sizes(c: Config, kind: str) -> tuple[int, int, int, int, int | None]:
    """Return heads, key-value heads, head features, reach of relative positions and window of a layer."""
    if kind == "hybrid_sliding":
        seen = c.count("sliding_window_size")
        heads = c.count("swa_num_attention_heads"), c.count("swa_num_key_value_heads"), c.count("swa_head_dim")
        return (*heads, seen, seen)
    heads = c.count("num_attention_heads"), c.count("num_key_value_heads"), c.count("head_dim")
    return (*heads, c.count("rel_extent"), None)


def _relative(c: Config, heads: int, reach: int) -> tuple[Piece, ...]:
    width, rank = c.count("hidden_size"), c.count("d_rel")
    return (
        Piece(name="relative", inputs=width, outputs=heads * rank, shard="column"),
        vector("relative_logits", rank * reach),
    )


def _inkling(c: Config) -> Fields:
    """Return Inkling: short convolutions on keys, values and both outputs, learnt relative positions."""
    width, taps = c.count("hidden_size"), c.count("conv_kernel_size")
    sparse = first_dense("dense_mlp_idx", 0)(c)
    shared = c.whole("n_shared_experts", 0)

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        heads, kv_heads, dim, reach, seen = _inkling_sizes(c, kind)
        keys = kv_heads * dim
        extra = (
            *_relative(c, heads, reach),
            _taps("key_convolution", keys, taps),
            _taps("value_convolution", keys, taps),
        )
        return Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, qk_norm="head", window=seen, extra=extra)

    def feed_forward(c: Config, index: int) -> FeedForward:
        scale = (vector("scale", 1),)
        if not sparse[index]:
            return Dense(size=c.count("intermediate_size"), extra=scale)
        block = experts(c, MoE())
        wide = SharedExpert(size=shared * block.size) if shared else None
        return block.model_copy(update={"shared": wide, "router_outputs": block.count + shared, "extra": scale})

    pieces = (_taps("attention_convolution", width, taps), _taps("mlp_convolution", width, taps))
    traits = Traits(kinds=_hybrid_sixth, mixer=mixer, feed_forward=feed_forward, pieces=lambda _: pieces)
    return decoder(c, replace(traits, embedding_norm="rms", never_tied=not c.flag("tie_word_embeddings")))


def _inkling2(c: Config) -> Fields:
    """Return Inkling 2: gated attention with learnt sinks, residuals that look back over blocks of layers."""
    width, taps, rank = c.count("hidden_size"), c.count("conv_kernel_size"), c.count("d_rel")
    kinds = _hybrid_sixth(c)

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        heads, kv_heads, dim, reach, seen = _inkling_sizes(c, kind)
        keys = kv_heads * dim
        extra = [
            *_relative(c, heads, reach),
            vector("query_clip", heads * dim),
            vector("relative_clip", heads * rank),
            Piece(name="sinks", inputs=width, outputs=heads, shard="column"),
        ]
        for name in ("key", "value"):
            extra.append(_taps(f"{name}_convolution", keys, taps))
            if kind == "hybrid":
                extra.append(Piece(name=f"{name}_convolution_weights", inputs=width, outputs=kv_heads * taps))
        queries = 0 if index == 0 else 3 if kind == "hybrid" else 1
        extra.append(vector("residual_queries", (queries + 1) * width))
        if kind == "hybrid":
            extra += [norm_piece("norm", width, width)] * 2
        return Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, gate="feature", window=seen, extra=tuple(extra))

    pieces = (_taps("attention_convolution", width, taps), _taps("mlp_convolution", width, taps))
    traits = Traits(kinds=lambda _: kinds, mixer=mixer, moe=MoE(), pieces=lambda _: pieces, embedding_norm="rms")
    fields = decoder(c, traits)
    end = (vector("residual_query", width),)
    return fields | {"head": fields["head"].model_copy(update={"extra": end})}


def _zaya(c: Config) -> Fields:
    """Return ZAYA1: attention over convolved queries and keys (CCA), a router with a state that runs through layers."""
    width, heads, kv_heads = (c.count(k) for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    dim, inner, count = c.count("head_dim"), c.count("router_hidden_size"), c.count("num_experts")
    channels = (heads + kv_heads) * dim
    depthwise, grouped = c.count("cca_time0", 2), c.count("cca_time1", 2)
    cca = (
        Piece(name="depthwise", kind="convolution", parameters=channels * (depthwise + 1), inputs=channels,
              outputs=channels, state=channels * (depthwise - 1)),
        Piece(name="grouped", inputs=dim, outputs=channels, parameters=channels * (dim * grouped + 1), shard="column"),
        vector("temperature", kv_heads),
    )  # fmt: skip
    biased = c.flag("attention_bias")
    residual = (vector("residual_scales", 8 * width),)

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        seen = c.maybe("sliding_window") if kind == "hybrid_sliding" else None
        return Attention(
            heads=heads, kv_heads=kv_heads, head_dim=dim, bias=biased, output_bias=biased, window=seen, extra=cca
        )

    def feed_forward(c: Config, index: int) -> FeedForward:
        router = [
            Piece(name="router.down", inputs=width, outputs=inner, bias=True),
            norm_piece("router.norm", inner, inner),
            Piece(name="router.hidden", inputs=inner, outputs=inner, bias=True, count=2),
            Piece(name="router.out", inputs=inner, outputs=count + 1),
        ]
        if index:
            router.append(vector("router.state", inner))
        return Experts(
            count=count, active=c.count("num_experts_per_tok"), size=c.count("moe_intermediate_size"), router=False,
            extra=tuple(router),
        )  # fmt: skip

    def kinds(c: Config) -> list[str]:
        return c.layer_types(lambda index: "hybrid", known=("hybrid", "hybrid_sliding"))

    traits = Traits(kinds=kinds, mixer=mixer, feed_forward=feed_forward, pieces=lambda _: residual)
    fields = decoder(c, replace(traits, head_bias="lm_head_bias"))
    scales = (vector("scales", 2 * width),)
    return fields | {"embedding": fields["embedding"].model_copy(update={"extra": scales})}


def _streams(name: str, width: int, streams: int, rank: int, *, combine: bool = True) -> tuple[Piece, ...]:
    """Return gated mixing of residual streams through a low rank (Qwen4)."""
    wide = streams * width
    pieces = [
        norm_piece(f"{name}.norm", wide, wide),
        Piece(name=f"{name}.down", inputs=wide, outputs=rank),
        Piece(name=f"{name}.up", inputs=rank, outputs=wide),
    ]
    if combine:
        pieces.append(Piece(name=f"{name}.inject", inputs=wide, outputs=streams))
    return tuple(pieces)


def _qwen4(c: Config) -> Fields:
    """Return Qwen4: gated delta nets, sparse attention over averaged blocks, four streams, hashed n-gram tables."""
    width, streams, rank = c.count("hidden_size"), c.count("hc_count"), c.count("hc_lowrank")
    block = recurrences.gated_delta_of(c)
    traits = Traits(
        bias="attention_bias", output_bias="attention_bias", qk_norm="head", gate="feature", gate_bias="attention_bias"
    )
    chosen = sorted(set(c.counts("ple_layer_ids")))
    heads = (c.count("ngram_size", 3) - 1) * c.count("heads_per_ngram", 8)
    if len(chosen) * heads > _MAX_TABLES:
        raise c.fail("ple_layer_ids", f"ple_layer_ids asks for {len(chosen) * heads} tables of n-grams.")
    primes = _primes_from(c.count("ngram_vocab_size_base"), len(chosen) * heads) if chosen else []
    mixing = (*_streams("attention_streams", width, streams, rank), *_streams("mlp_streams", width, streams, rank))
    kinds = [
        "linear_attention" if kind == "linear_attention" else "indexed_attention"
        for kind in every("full_attention_interval", 4, rest="linear_attention")(c)
    ]

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        if kind == "linear_attention":
            return block
        budget, ratio = c.count("indexer_budget"), c.count("indexer_compress_ratio")
        heads, kv_heads, dim = c.count("indexer_n_heads"), c.count("indexer_kv_heads", 1), c.count("indexer_head_dim")
        tiny = max(1, dim // ratio)
        extra = (
            Piece(name="indexer.query_key", inputs=width, outputs=(heads + kv_heads) * dim),
            norm_piece("indexer.norm", 2 * dim, (heads + kv_heads) * dim),
            Piece(name="indexer.core", kind="attention", inputs=(heads + kv_heads) * tiny, outputs=budget, heads=heads,
                  kv_heads=kv_heads, key_dim=tiny, cache=kv_heads * tiny),
        )  # fmt: skip
        return attention(c, kind, traits, window=budget, extra=extra)

    def feed_forward(c: Config, index: int) -> FeedForward:
        moe = experts(c, MoE(shared_size="shared_expert_intermediate_size", shared_gate=True))
        if index + 1 not in chosen:
            return moe
        place = chosen.index(index + 1) * heads
        return moe.model_copy(update={"extra": _ngrams(c, primes[place : place + heads])})

    fields = decoder(
        c, Traits(kinds=lambda _: kinds, mixer=mixer, feed_forward=feed_forward, pieces=lambda _: mixing, norms=0)
    )
    end = _streams("streams", width, streams, rank, combine=False)
    return fields | {"head": fields["head"].model_copy(update={"norm": "plain", "extra": end})}


def _ngrams(c: Config, primes: list[int]) -> tuple[Piece, ...]:
    """Return one module of hashed n-gram embeddings; each of its heads has a prime number of rows of its own."""
    width, streams = c.count("hidden_size"), c.count("hc_count")
    features = c.maybe("ple_embed_dim") or width
    heads = len(primes)
    if heads < 1 or features % heads:
        raise c.fail("ple_embed_dim", f"ple_embed_dim is {features}, which {heads} n-gram heads do not divide.")
    divisor = c.count("make_ngram_vocab_size_divisible_by", 128)
    rows = ceil(sum(primes) / divisor) * divisor
    wide = streams * width
    return (
        Piece(name="ngrams", kind="embedding", inputs=rows, outputs=features // heads),
        Piece(name="ngrams.key", inputs=features, outputs=wide),
        Piece(name="ngrams.value", inputs=features, outputs=width),
        norm_piece("ngrams.norms", 3 * wide, 3 * wide),
        _taps("ngrams.convolution", wide, c.count("ple_conv_kernel_size", 4)),
    )


def _primes_from(start: int, count: int) -> list[int]:
    """Return the first ``count`` primes that are at least ``start``."""
    found: list[int] = []
    value = start
    while len(found) < count:
        if value > 1 and all(value % divisor for divisor in range(2, isqrt(value) + 1)):
            found.append(value)
        value += 1
    return found


def _tower(c: Config, width: int, *, window: int | None = None, crossed: int = 0) -> list[Layer]:
    """Return the layers of one of BLT's four transformers; the first ``crossed`` of them also attend across."""
    heads = c.count("num_attention_heads")
    kv_heads = c.maybe("num_key_value_heads") or heads
    if width % heads:
        raise c.fail("num_attention_heads", f"hidden_size is {width}, which {heads} heads do not divide.")
    size = c.maybe("intermediate_size") or int(8 * width / 3)
    own = Attention(heads=heads, kv_heads=kv_heads, head_dim=width // heads, window=window)
    norms = (norm_piece("norms", 2 * width, 2 * width),)
    cross = Attention(heads=heads, kv_heads=kv_heads, head_dim=width // heads, cross=True, extra=norms)
    plain = Layer(width=width, mixer=(own,), feed_forward=(Dense(size=size),), norms=2)
    both = plain.model_copy(update={"mixer": (own, cross)})
    count = c.layers
    crossed = min(crossed, count)
    found = [both.model_copy(update={"repeat": crossed})] if crossed else []
    return found + ([plain.model_copy(update={"repeat": count - crossed})] if count > crossed else [])


def _blt(c: Config) -> Fields:
    """Return the Byte Latent Transformer: a small encoder and decoder over bytes around a transformer over patches.

    Work is written as if every byte were a patch: with patches of several bytes the middle costs that much less.
    """
    encoder, decoder_ = c.sub("encoder_config", "blt_local_encoder"), c.sub("decoder_config", "blt_local_decoder")
    middle = c.sub("global_config", "blt_global_transformer")
    small, large, end = encoder.count("hidden_size"), middle.count("hidden_size"), decoder_.count("hidden_size")
    times = c.count("cross_attn_k", 2)
    window = c.maybe("local_attention_window_len")
    groups = c.listed("encoder_hash_byte_group_size") or [3, 4, 5, 6, 7, 8]
    rows = c.count("encoder_hash_byte_group_vocab") * c.count("encoder_hash_byte_group_nb_functions", 1) * len(groups)
    stem = [
        Piece(name="hashes", kind="embedding", inputs=rows, outputs=small, shard="vocabulary"),
        Piece(name="patch_projection", inputs=small, outputs=small * encoder.count("cross_attn_k", times)),
    ]
    if small * times != large:
        stem.append(Piece(name="patch_entry", inputs=small * times, outputs=large))
    stem.append(
        Piece(name="patch_exit", inputs=decoder_.count("hidden_size_global"),
              outputs=end * decoder_.count("cross_attn_k", times))
    )  # fmt: skip
    layers = [
        *_tower(encoder, small, window=window, crossed=encoder.layers if encoder.flag("cross_attn_all_layers") else 1),
        *_tower(middle, large),
        *_tower(decoder_, end, window=window,
                crossed=decoder_.layers if decoder_.flag("cross_attn_all_layers", True) else 1),
    ]  # fmt: skip
    tied = c.flag("tie_word_embeddings")
    fields: Fields = {
        "hidden_size": large,
        "vocabulary_size": c.count("vocab_size"),
        "max_position": c.maybe("max_position_embeddings"),
        "embedding": Embedding(width=small, rows=encoder.count("vocab_size"), extra=tuple(stem)),
        "layers": tuple(layers),
        "head": Head(tied=tied, width=end, norm="plain", extra=(norm_piece("norm", end, end),)),
    }
    return fields | ({"encoders": (_patcher(c),)} if c.flag("patch_in_forward", True) else {})


def _patcher(c: Config) -> Encoder:
    """Return the small byte model whose entropy says where patches begin."""
    part = c.sub("patcher_config", "blt_patcher")
    width, rows = part.count("hidden_size"), part.count("vocab_size")
    extra = (
        Piece(name="embedding", kind="embedding", inputs=rows, outputs=width),
        norm_piece("norm", width, width),
        Piece(name="head", inputs=width, outputs=rows),
    )
    layers = _tower(part, width, window=part.maybe("sliding_window"))
    return Encoder(name="patcher", width=width, norm="rms", layers=tuple(layers), extra=extra)


BUILDERS: Final = {
    "blt": _blt,
    "deepseek_v4": _deepseek_v4,
    "inkling2_text": _inkling2,
    "inkling_text": _inkling,
    "qwen4_exp_text": _qwen4,
    "zaya": _zaya,
}
