"""Decoders of encoder-decoder models, as causal language models with their cross-attention weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from zhenfa.spec.huggingface.classic_types import vector
from zhenfa.spec.huggingface.decoder import Fields, Traits
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Attention, Dense, Embedding, Head, Layer, Piece

_LAYER: Final = Traits(norm="layer")


@dataclass(frozen=True)
class Seq2Seq:
    """How a decoder differs from BART's.

    ``offset`` rows more than positions; ``embedding_norm`` and ``final_norm``; ``bias`` of the attention,
    ``mlp_bias`` of the feed-forward; ``keys_unbiased``: keys have none.
    """

    offset: int = 0
    embedding_norm: bool = True
    final_norm: bool = False
    bias: bool = True
    mlp_bias: bool = True
    keys_unbiased: bool = False
    cross: bool = True
    positions: str | None = "max_position_embeddings"
    never_tied: bool = False


def _decoder(c: Config, s: Seq2Seq) -> Fields:
    """Return a decoder with these differences."""
    width = c.count("d_model")
    heads = c.count("decoder_attention_heads")
    if width % heads:
        raise c.fail("decoder_attention_heads", f"d_model is {width}, which {heads} heads do not divide.")
    layer = _layer(width, heads, c.count("decoder_ffn_dim"), s)
    positions = c.count(s.positions) + s.offset if s.positions else 0
    vocabulary = c.maybe("decoder_vocab_size") or c.count("vocab_size")
    return {
        "hidden_size": width,
        "vocabulary_size": vocabulary,
        "max_position": c.maybe("max_position_embeddings"),
        "norm": "layer",
        "embedding": Embedding(positions=positions, norm="layer" if s.embedding_norm else None),
        "layers": (layer.model_copy(update={"repeat": c.count("decoder_layers")}),),
        "head": Head(
            tied=c.flag("tie_word_embeddings", True) and not s.never_tied, norm="layer" if s.final_norm else "plain"
        ),
    }


def _layer(width: int, heads: int, size: int, s: Seq2Seq) -> Layer:
    biases = (vector("bias", 2 * width),) if s.bias and s.keys_unbiased else ()
    block = Attention(
        heads=heads, head_dim=width // heads, bias=s.bias and not s.keys_unbiased, output_bias=s.bias, extra=biases
    )
    cross = block.model_copy(update={"cross": True})
    body = Dense(size=size, gated=False, bias=s.mlp_bias)
    return Layer(mixer=(block, cross) if s.cross else (block,), feed_forward=(body,))


def _bigbird_pegasus(c: Config) -> Fields:
    return _decoder(c, Seq2Seq(bias=c.flag("use_bias"), never_tied=True))


def _trocr(c: Config) -> Fields:
    learnt = c.flag("use_learned_position_embeddings", True)
    s = Seq2Seq(offset=2, embedding_norm=c.flag("layernorm_embedding", True))
    return _decoder(c, s if learnt else replace(s, positions=None))


def _whisper(c: Config) -> Fields:
    s = Seq2Seq(embedding_norm=False, final_norm=True, keys_unbiased=True, positions="max_target_positions")
    return _decoder(c, s)


def _prophetnet(c: Config) -> Fields:
    """Return ProphetNet: ``ngram`` predicting streams and a table of relative positions from the input."""
    width, heads = c.count("hidden_size"), c.count("num_decoder_attention_heads")
    if width % heads:
        raise c.fail("num_decoder_attention_heads", f"hidden_size is {width}, which {heads} heads do not divide.")
    relative = Piece(name="relative", inputs=width, outputs=c.count("num_buckets") * heads, bias=True)
    s = Seq2Seq(cross=c.flag("add_cross_attention", True))
    layer = _layer(width, heads, c.count("decoder_ffn_dim"), s)
    own = layer.mixer[0].model_copy(update={"extra": (relative,)})
    stem = [Piece(name="streams", kind="embedding", inputs=c.count("ngram"), outputs=width)]
    tied = c.flag("tie_word_embeddings", True)
    if not tied:  # the decoder then holds a table of its own beside the model's
        stem.append(Piece(name="decoder_embedding", kind="embedding", inputs=c.count("vocab_size"), outputs=width))
    return {
        "hidden_size": width,
        "vocabulary_size": c.count("vocab_size"),
        "max_position": c.maybe("max_position_embeddings"),
        "norm": "layer",
        "embedding": Embedding(positions=c.count("max_position_embeddings"), norm="layer", extra=tuple(stem)),
        "layers": (
            layer.model_copy(update={"mixer": (own, *layer.mixer[1:]), "repeat": c.count("num_decoder_layers")}),
        ),
        "head": Head(tied=tied, norm="plain"),
    }


def _musicgen(c: Config) -> Fields:
    """Return MusicGen's decoder: one embedding and one head for each codebook."""
    width, heads = c.count("hidden_size"), c.count("num_attention_heads")
    if width % heads:
        raise c.fail("num_attention_heads", f"hidden_size is {width}, which {heads} heads do not divide.")
    books, vocabulary = c.count("num_codebooks"), c.count("vocab_size")
    melody = c.model_type == "musicgen_melody_decoder"
    layer = _layer(width, heads, c.count("ffn_dim"), Seq2Seq(bias=False, mlp_bias=False, cross=not melody))
    return {
        "hidden_size": width,
        "vocabulary_size": vocabulary,
        "max_position": c.maybe("max_position_embeddings"),
        "norm": "layer",
        "embedding": Embedding(rows=books * (vocabulary + 1)),
        "layers": (layer.model_copy(update={"repeat": c.layers}),),
        "head": Head(rows=books * vocabulary),
    }


BUILDERS: Final = {
    "bart": lambda c: _decoder(c, Seq2Seq(offset=2)),
    "bigbird_pegasus": _bigbird_pegasus,
    "blenderbot": lambda c: _decoder(c, Seq2Seq(embedding_norm=False, final_norm=True)),
    "blenderbot-small": lambda c: _decoder(c, Seq2Seq()),
    "marian": lambda c: _decoder(c, Seq2Seq(embedding_norm=False)),
    "mbart": lambda c: _decoder(c, Seq2Seq(offset=2, final_norm=True)),
    "musicgen_decoder": _musicgen,
    "musicgen_melody_decoder": _musicgen,
    "mvp": lambda c: _decoder(c, Seq2Seq(offset=2)),
    "pegasus": lambda c: _decoder(c, Seq2Seq(embedding_norm=False, final_norm=True)),
    "plbart": lambda c: _decoder(c, Seq2Seq(offset=2)),
    "prophetnet": _prophetnet,
    "trocr": _trocr,
    "whisper": _whisper,
}
