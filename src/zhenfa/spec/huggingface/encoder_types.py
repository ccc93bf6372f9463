"""Encoders with a language-model head (BERT and its kin), as they are when they write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from zhenfa.spec.huggingface.classic_types import norm_piece, vector
from zhenfa.spec.huggingface.decoder import Fields, Traits, attention, decoder, runs
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Attention, Dense, Head, Layer, Mixer, NormKind, Piece

_BERT: Final = Traits(norm="layer", bias=True, output_bias=True, mlp_bias=True, gated=False, final_norm="plain")


@dataclass(frozen=True)
class Bert:
    """How a relative of BERT differs from it.

    ``transform``: a dense layer and a norm before the output projection. ``final_norm``: a norm after the last layer.
    ``bias``: the flag on the biases of queries, keys and values. ``never_tied``: the head has weights of its own.
    """

    positions: bool = True
    types: bool = True
    embedding_norm: bool = True
    transform: bool = True
    final_norm: bool = False
    bias: bool | str = True
    never_tied: bool = False


def _bert(c: Config, b: Bert, stem: Sequence[Piece] = (), pieces: Sequence[Piece] = ()) -> Fields:
    """Return a BERT with these differences; ``stem`` and ``pieces`` add to the embedding and to each layer."""
    width = c.count("hidden_size")
    traits = replace(
        _BERT, bias=b.bias, final_norm="layer" if b.final_norm else "plain",
        positions=("max_position_embeddings", 0) if b.positions else None,
        embedding_norm="layer" if b.embedding_norm else None, never_tied=b.never_tied, pieces=lambda _: tuple(pieces),
    )  # fmt: skip
    fields = decoder(c, traits)
    types = c.whole("type_vocab_size", 0) if b.types else 0
    fields["embedding"] = fields["embedding"].model_copy(update={"types": types, "extra": tuple(stem)})
    extra = _transform(width, width) if b.transform else ()
    fields["head"] = _biased_head(c, fields["head"], extra)
    return fields


def _transform(width: int, outputs: int) -> tuple[Piece, ...]:
    return (
        Piece(name="head.transform", inputs=width, outputs=outputs, bias=True),
        norm_piece("head.norm", 2 * outputs, outputs),
    )


def _biased_head(c: Config, head: Head, extra: Sequence[Piece]) -> Head:
    """Return the head with its bias; an untied projection holds a second bias beside the model's."""
    second = () if head.tied else (vector("head.bias", c.count("vocab_size")),)
    return head.model_copy(update={"bias": True, "extra": (*extra, *second)})


def _ernie(c: Config) -> Fields:
    tasks = c.count("task_type_vocab_size") if c.flag("use_task_id") else 0
    table = Piece(name="tasks", kind="embedding", inputs=tasks, outputs=c.count("hidden_size"))
    return _bert(c, Bert(), stem=(table,) if tasks else ())


def _big_bird(c: Config) -> Fields:
    """Return BigBird: windows, global tokens and random blocks instead of full attention, and an unused pooler."""
    width = c.count("hidden_size")
    fields = _bert(c, Bert(bias="use_bias"))
    pooler = Piece(name="pooler", inputs=width, outputs=width, bias=True)
    fields["head"] = fields["head"].model_copy(update={"extra": (pooler, *fields["head"].extra)})
    if c.text("attention_type", "block_sparse") != "block_sparse":
        return fields
    blocks = 3 + 2 + c.whole("num_random_blocks", 3)
    return fields | {"layers": _windowed(fields["layers"], blocks * c.count("block_size", 64))}


def _windowed(layers: Sequence[Layer], window: int) -> tuple[Layer, ...]:
    return tuple(
        layer.model_copy(update={"mixer": tuple(block.model_copy(update={"window": window}) for block in layer.mixer)})
        for layer in layers
    )


def _electra(c: Config) -> Fields:
    width, narrow = c.count("hidden_size"), c.count("embedding_size")
    fields = _bert(c, Bert(transform=False))
    return fields | {
        "embedding": fields["embedding"].model_copy(
            update={"width": narrow, "projection": narrow != width, "projection_bias": True}
        ),
        "head": fields["head"].model_copy(update={"width": narrow, "extra": _transform(width, narrow)}),
    }


def _roformer(c: Config) -> Fields:
    """Return RoFormer: rotary positions, kept as a table of one head's width."""
    width, narrow = c.count("hidden_size"), c.maybe("embedding_size") or c.count("hidden_size")
    dim = c.divide("hidden_size", "num_attention_heads")
    rotary = Piece(name="rotary", kind="embedding", inputs=c.count("max_position_embeddings"), outputs=dim)
    fields = _bert(c, Bert(positions=False, transform=False), stem=(rotary,))
    return fields | {
        "embedding": fields["embedding"].model_copy(
            update={"width": narrow, "projection": narrow != width, "projection_bias": True}
        ),
        "head": fields["head"].model_copy(
            update={"width": narrow, "extra": (*_transform(width, narrow), *fields["head"].extra)}
        ),
    }


def _rembert(c: Config) -> Fields:
    """Return RemBERT: a narrow input embedding and a wide output embedding of its own."""
    width, wide = c.count("hidden_size"), c.count("output_embedding_size")
    fields = _bert(c, Bert(transform=False, never_tied=True))
    return fields | {
        "embedding": fields["embedding"].model_copy(
            update={"width": c.count("input_embedding_size"), "projection": True, "projection_bias": True}
        ),
        "head": fields["head"].model_copy(update={"width": wide, "extra": _transform(width, wide)}),
    }


def _roc_bert(c: Config) -> Fields:
    """Return RoCBert: embeddings of sound and shape beside the character's, mapped to one."""
    width = c.count("hidden_size")
    stem, joined = [], width
    sides = (
        ("pronunciation", "pronunciation_vocab_size", "pronunciation_embed_dim", "enable_pronunciation"),
        ("shape", "shape_vocab_size", "shape_embed_dim", "enable_shape"),
    )
    for name, rows, features, switch in sides:
        dim = c.count(features)
        stem.append(Piece(name=name, kind="embedding", inputs=c.count(rows), outputs=dim))
        joined += dim if c.flag(switch, True) else 0
    if c.flag("concat_input", True):
        stem.append(Piece(name="join", inputs=joined, outputs=width, bias=True))
    return _bert(c, Bert(), stem=stem)


def _xmod(c: Config) -> Fields:
    """Return X-MOD: one adapter per language in every layer, of which a text passes through one."""
    width = c.count("hidden_size")
    factor = c.number("adapter_reduction_factor", 2)
    if factor <= 0:
        raise c.fail("adapter_reduction_factor", f"adapter_reduction_factor is {factor}, and a positive one is wanted.")
    narrow = int(width / factor)
    languages = len(c.listed("languages") or ["en_XX"])
    held = languages * width * narrow
    pieces = [
        Piece(name="adapter.down", inputs=width, outputs=narrow, parameters=held + languages * narrow),
        Piece(name="adapter.up", inputs=narrow, outputs=width, parameters=held + languages * width),
    ]
    if c.flag("adapter_layer_norm"):
        pieces.append(norm_piece("adapter.norm", 2 * width, width))
    return _bert(c, Bert(final_norm=c.flag("pre_norm")), pieces=pieces)


def _git(c: Config) -> Fields:
    """Return GIT's text decoder."""
    fields = _bert(c, Bert(types=False, transform=False))
    head = fields["head"]
    return fields | {"head": head.model_copy(update={"extra": ()})}


def _xlm(c: Config) -> Fields:
    traits = replace(_BERT, positions=("max_position_embeddings", 0), embedding_norm="layer")
    body = Dense(size=4 * c.count("hidden_size"), gated=False, bias=True)
    fields = decoder(c, replace(traits, feed_forward=lambda *_: body))
    languages = c.whole("n_langs", 1)
    if languages > 1 and c.flag("use_lang_emb", True):
        table = Piece(name="languages", kind="embedding", inputs=languages, outputs=c.count("hidden_size"))
        fields["embedding"] = fields["embedding"].model_copy(update={"extra": (table,)})
    fields["head"] = fields["head"].model_copy(update={"bias": True})
    return fields


def _xlnet(c: Config) -> Fields:
    """Return XLNet: relative positions projected like keys, three biases on queries and a segment embedding a head."""
    width, heads = c.count("hidden_size"), c.count("num_attention_heads")
    dim = c.maybe("d_head") or c.divide("hidden_size", "num_attention_heads")
    features = heads * dim
    extra = (
        Piece(name="relative", inputs=width, outputs=features, shard="column"),
        vector("biases", 3 * features),
        vector("segments", 2 * features),
    )
    block = Attention(heads=heads, head_dim=dim, extra=extra)
    body = Dense(size=c.count("d_inner"), gated=False, bias=True)
    fields = decoder(c, replace(_BERT, mixer=lambda *_: block, feed_forward=lambda *_: body))
    stem = fields["embedding"].model_copy(update={"extra": (vector("mask", width),)})
    return fields | {"embedding": stem, "head": fields["head"].model_copy(update={"bias": True})}


def _modernbert(c: Config) -> Fields:
    """Return the ModernBERT decoder: windows in two layers of three, no norm before the first attention."""
    step = c.count("global_attn_every_n_layers", 3)
    norm: NormKind = "layer" if c.flag("norm_bias") else "layer-no-bias"
    traits = Traits(norm=norm, bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias")

    def mixer(c: Config, index: int, kind: str) -> Mixer:
        seen = c.count("local_attention", 128) if kind == "sliding_attention" else None
        return attention(c, kind, traits, window=seen)

    def kinds(c: Config) -> list[str]:
        return c.layer_types(lambda index: "sliding_attention" if index % step else "full_attention")

    fields = decoder(c, replace(traits, kinds=kinds, mixer=mixer, embedding_norm=norm))
    width = c.count("hidden_size")
    singles = [layer.model_copy(update={"repeat": 1}) for layer in unrolled(fields["layers"])]
    singles[0] = singles[0].model_copy(update={"norms": 1})
    end = (
        Piece(name="head.transform", inputs=width, outputs=width, bias=c.flag("classifier_bias")),
        norm_piece("head.norm", width * (2 if norm == "layer" else 1), width),
    )
    head = fields["head"].model_copy(update={"extra": end, "bias": c.flag("decoder_bias", True)})
    return fields | {"layers": runs(singles), "head": head}


def unrolled(layers: Sequence[Layer]) -> list[Layer]:
    """Return single layers, one for each layer of the runs."""
    found: list[Layer] = []
    for run in layers:
        for _ in range(run.repeat):
            found += [layer for item in run.each for layer in [item] * item.repeat] if run.each else [run]
    return found


BUILDERS: Final = {
    "bert": lambda c: _bert(c, Bert()),
    "bert-generation": lambda c: _bert(c, Bert(types=False, transform=False)),
    "big_bird": _big_bird,
    "camembert": lambda c: _bert(c, Bert()),
    "data2vec-text": lambda c: _bert(c, Bert()),
    "electra": _electra,
    "ernie": _ernie,
    "git": _git,
    "megatron-bert": lambda c: _bert(c, Bert(embedding_norm=False, final_norm=True)),
    "modernbert-decoder": _modernbert,
    "rembert": _rembert,
    "roberta": lambda c: _bert(c, Bert()),
    "roberta-prelayernorm": lambda c: _bert(c, Bert(final_norm=True)),
    "roc_bert": _roc_bert,
    "roformer": _roformer,
    "xlm": _xlm,
    "xlm-roberta": lambda c: _bert(c, Bert()),
    "xlm-roberta-xl": lambda c: _bert(c, Bert(embedding_norm=False, final_norm=True)),
    "xlnet": _xlnet,
    "xmod": _xmod,
}
