"""Encoders of images and sound beside a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zhenfa.spec.huggingface.classic_types import norm_piece, vector
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Attention, Dense, Encoder, Layer, Piece

Tower = Callable[[Config, int], tuple[Encoder, ...]]


def _transformer(c: Config, *, key_bias: bool = True) -> Layer:
    """Return the layers of a plain bidirectional encoder: biased attention and feed-forward, two layer norms."""
    width, heads = c.count("hidden_size"), c.count("num_attention_heads")
    if width % heads:
        raise c.fail("num_attention_heads", f"hidden_size is {width}, which {heads} heads do not divide.")
    extra = () if key_bias else (vector("bias", 2 * width),)
    block = Attention(heads=heads, head_dim=width // heads, bias=key_bias, output_bias=True, causal=False, extra=extra)
    body = Dense(size=c.count("intermediate_size"), gated=False, bias=True)
    return Layer(repeat=c.layers, mixer=(block,), feed_forward=(body,))


def _patches(c: Config, *, bias: bool = True, classes: int = 0) -> list[Piece]:
    """Return the embedding of image patches and of their places."""
    width, patch, image = c.count("hidden_size"), c.count("patch_size"), c.count("image_size")
    places = (image // patch) ** 2 + classes
    return [
        Piece(name="patches", inputs=c.count("num_channels", 3) * patch * patch, outputs=width, bias=bias),
        Piece(name="positions", kind="embedding", inputs=places, outputs=width),
    ]


def _pooling(width: int, size: int) -> list[Piece]:
    """Return SigLIP's attention pooling head."""
    return [
        vector("pool.probe", width),
        Piece(name="pool.qkv", inputs=width, outputs=3 * width, bias=True),
        Piece(name="pool.output", inputs=width, outputs=width, bias=True),
        norm_piece("pool.norm", 2 * width, width),
        Piece(name="pool.up", inputs=width, outputs=size, bias=True),
        Piece(name="pool.down", inputs=size, outputs=width, bias=True),
    ]


def _siglip(c: Config, *, head: bool) -> list[Piece]:
    width = c.count("hidden_size")
    pieces = [*_patches(c), norm_piece("end.norm", 2 * width, width)]
    return pieces + (_pooling(width, c.count("intermediate_size")) if head else [])


def _gemma3(c: Config, width: int) -> tuple[Encoder, ...]:
    vision = c.sub("vision_config", "siglip_vision_model")
    own = vision.count("hidden_size")
    extra = [
        *_siglip(vision, head=vision.flag("vision_use_head", True)),
        Piece(name="projection", inputs=own, outputs=width),
        norm_piece("projection.norm", own, own),
    ]
    return (Encoder(name="vision", width=own, layers=(_transformer(vision),), extra=tuple(extra)),)


def _git(c: Config, width: int) -> tuple[Encoder, ...]:
    vision = c.sub("vision_config", "git_vision_model")
    own = vision.count("hidden_size")
    extra = (
        vector("class", own),
        *_patches(vision, bias=False, classes=1),
        norm_piece("begin.norm", 2 * own, own),
        norm_piece("end.norm", 2 * own, own),
        Piece(name="projection", inputs=own, outputs=width, bias=True),
        norm_piece("projection.norm", 2 * width, width),
    )
    return (Encoder(name="vision", width=own, layers=(_transformer(vision),), extra=extra),)


def _got_ocr2(c: Config, width: int) -> tuple[Encoder, ...]:
    """Return the SAM encoder of GOT-OCR2: windows with relative positions, some layers over the whole image."""
    vision = c.sub("vision_config", "got_ocr2_vision")
    own, heads = vision.count("hidden_size"), vision.count("num_attention_heads")
    dim, patch, out = own // heads, vision.count("patch_size"), vision.count("output_channels")
    side, window = vision.count("image_size") // patch, vision.count("window_size")
    whole = vision.listed("global_attn_indexes") or [2, 5, 8, 11]
    layers = []
    for index in range(vision.layers):
        reach = side if index in whole else window
        relative = (vector("relative", 2 * (2 * reach - 1) * dim),) if vision.flag("use_rel_pos", True) else ()
        biased = vision.flag("qkv_bias", True)
        block = Attention(heads=heads, head_dim=dim, bias=biased, output_bias=True, causal=False, extra=relative)
        body = Dense(size=vision.count("mlp_dim"), gated=False, bias=True)
        layers.append(Layer(mixer=(block,), feed_forward=(body,)))
    places = vector("positions", side * side * own) if vision.flag("use_abs_pos", True) else vector("positions", 1)
    extra = (
        Piece(name="patches", inputs=vision.count("num_channels", 3) * patch * patch, outputs=own, bias=True),
        places,
        Piece(name="neck.1", inputs=own, outputs=out),
        Piece(name="neck.2", inputs=9 * out, outputs=out),
        norm_piece("neck.norms", 4 * out, out),
        Piece(name="up.1", inputs=9 * out, outputs=2 * out),
        Piece(name="up.2", inputs=9 * 2 * out, outputs=4 * out),
        Piece(name="projection", inputs=4 * out, outputs=width, bias=True),
    )
    return (Encoder(name="vision", width=own, layers=tuple(layers), extra=extra),)


def _moss(c: Config, width: int) -> tuple[Encoder, ...]:
    """Return the Whisper encoder of MOSS-Transcribe and its projector over merged frames."""
    audio = c.sub("audio_config", "moss_transcribe_diarize_audio")
    own, bins = audio.count("hidden_size"), audio.count("num_mel_bins")
    merged = own * c.count("audio_merge_size", 4)
    biased = c.flag("projector_bias", True)
    extra = (
        Piece(name="frames.1", inputs=3 * bins, outputs=own, bias=True),
        Piece(name="frames.2", inputs=3 * own, outputs=own, bias=True),
        Piece(name="positions", kind="embedding", inputs=audio.count("max_source_positions"), outputs=own),
        norm_piece("end.norm", 2 * own, own),
        Piece(name="projection.1", inputs=merged, outputs=width, bias=biased),
        Piece(name="projection.2", inputs=width, outputs=width, bias=biased),
        norm_piece("projection.norm", 2 * width, width),
    )
    layer = _transformer(audio, key_bias=False)
    return (Encoder(name="audio", width=own, layers=(layer,), extra=extra),)


def _fuyu(c: Config, width: int) -> tuple[Encoder, ...]:
    patch = c.count("patch_size", 30)
    extra = (Piece(name="patches", inputs=c.count("num_channels", 3) * patch * patch, outputs=width, bias=True),)
    return (Encoder(name="vision", width=width, extra=extra),)


def _phi4(c: Config, width: int) -> tuple[Encoder, ...]:
    return (_phi4_vision(c.sub("vision_config", "phi4_multimodal_vision"), width),
            _phi4_audio(c.sub("audio_config", "phi4_multimodal_audio"), width))  # fmt: skip


def _phi4_vision(c: Config, width: int) -> Encoder:
    own, patch = c.count("hidden_size"), c.count("patch_size")
    crop = c.count("image_size") // patch
    extra = (
        vector("separators", 2 * own),
        *_patches(c)[:1],
        Piece(name="positions", kind="embedding", inputs=crop * crop, outputs=own),
        norm_piece("end.norm", 2 * own, own),
        *_pooling(own, c.count("intermediate_size")),
        Piece(name="projection.up", inputs=own, outputs=width, bias=True),
        Piece(name="projection.down", inputs=width, outputs=width, bias=True),
    )
    return Encoder(name="vision", width=own, layers=(_transformer(c),), extra=extra)


def _phi4_audio(c: Config, width: int) -> Encoder:
    """Return the conformer of Phi-4 multimodal and its two projectors."""
    own, heads, size = c.count("hidden_size"), c.count("num_attention_heads"), c.count("intermediate_size")
    inner, taps = c.count("ext_pw_out_channel", own), c.count("kernel_size", 3)
    channels = c.count("nemo_conv_channels", own)
    stages = c.count("time_reduction", 8).bit_length() - 1
    bins = c.count("input_size", 80)
    for _ in range(stages):
        bins = (bins - 1) // 2 + 1
    reach = c.count("bias_max_distance", 1000)
    rows = reach if c.flag("bias_symmetric") else 2 * reach
    convolution = (
        norm_piece("convolution.norm", 2 * own, own),
        Piece(name="convolution.gate", inputs=own, outputs=2 * inner, bias=True),
        vector("convolution.gate_bias", 2 * inner),
        Piece(name="convolution.depthwise", kind="convolution", parameters=own * (taps + 1), inputs=own, outputs=own),
        Piece(
            name="convolution.pointwise", inputs=own, outputs=c.count("depthwise_separable_out_channel", own), bias=True
        ),
        Piece(name="convolution.out", inputs=own, outputs=inner, bias=True),
    )
    halves = tuple(
        piece
        for side in ("before", "after")
        for piece in (
            norm_piece(f"mlp.{side}.norm", 2 * own, own),
            Piece(name=f"mlp.{side}.up", inputs=own, outputs=2 * size, bias=True),
            Piece(name=f"mlp.{side}.down", inputs=size, outputs=own, bias=True),
        )
    )
    block = Attention(heads=heads, head_dim=own // heads, bias=True, output_bias=True, causal=False)
    layer = Layer(repeat=c.count("num_blocks"), mixer=(block,), norms=2, extra=(*convolution, *halves))
    first = Piece(name="frames.1", kind="convolution", parameters=10 * channels, inputs=9, outputs=channels)
    later = tuple(
        piece
        for stage in range(1, stages)
        for piece in (
            Piece(name=f"frames.{stage + 1}", kind="convolution", parameters=10 * channels, inputs=channels,
                  outputs=channels),
            Piece(name=f"frames.{stage + 1}.mix", inputs=channels, outputs=channels, bias=True),
        )
    )  # fmt: skip
    projectors = tuple(
        piece
        for name in ("speech", "vision_speech")
        for piece in (
            Piece(name=f"{name}.up", inputs=own, outputs=width, bias=True),
            Piece(name=f"{name}.down", inputs=width, outputs=width, bias=True),
        )
    )
    extra = (
        first, *later, Piece(name="frames.out", inputs=channels * bins, outputs=own, bias=True),
        Piece(name="relative", kind="embedding", inputs=rows, outputs=heads), *projectors,
    )  # fmt: skip
    return Encoder(name="audio", width=own, layers=(layer,), extra=extra)


TOWERS: Final[dict[str, Tower]] = {
    "fuyu": _fuyu,
    "gemma3": _gemma3,
    "git": _git,
    "got_ocr2": _got_ocr2,
    "moss_transcribe_diarize": _moss,
    "phi4_multimodal": _phi4,
}
"""Encoders of the wrappers whose causal language model, as transformers builds it, holds them."""
