"""Zamba: Mamba layers, and now and then a transformer block whose weights are the same each time."""

from __future__ import annotations

from typing import Final

from zhenfa.spec.huggingface import recurrences
from zhenfa.spec.huggingface.classic_types import norm_piece
from zhenfa.spec.huggingface.decoder import Fields, Traits, ends, runs
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Attention, Dense, Layer, Piece, Recurrent


def _kinds(c: Config, otherwise: list[str]) -> list[str]:
    given = c.listed("layers_block_type", c.layers)
    kinds = otherwise if given is None else [str(kind) for kind in given]
    return ["hybrid" if kind == "hybrid" else "mamba" for kind in kinds]


def _layers(c: Config, kinds: list[str], mamba: Recurrent, blocks: int, adapters: dict[str, int]) -> tuple[Layer, ...]:
    """Return the layers; the first ``blocks`` transformer blocks hold weights, the later ones use them in turn."""
    width = c.count("hidden_size")
    plain = Layer(mixer=(mamba,), norms=1)
    layers, seen = [], 0
    for kind in kinds:
        if kind == "mamba":
            layers.append(plain)
            continue
        shared = seen >= blocks
        seen += 1
        own = (Piece(name="shared.linear", inputs=width, outputs=width),)
        layers.append(
            Layer(
                mixer=(_attention(c, shared, adapters), mamba),
                feed_forward=(_feed_forward(c, shared, adapters),),
                norms=1,
                extra=(*own, *_norms(c, shared)),
            )
        )
    return runs(layers)


def _attention(c: Config, shared: bool, adapters: dict[str, int]) -> Attention:
    heads = c.count("num_attention_heads")
    wide = c.maybe("attention_hidden_size") or 2 * c.count("hidden_size")
    dim = c.maybe("attention_head_dim") or 2 * c.count("hidden_size") // heads
    rank = adapters.get("attention", 0)
    extra = []
    if rank:
        for name in ("query", "key", "value"):
            extra += [
                Piece(name=f"{name}_adapter_down", inputs=wide, outputs=rank),
                Piece(name=f"{name}_adapter_up", inputs=rank, outputs=wide),
            ]
    return Attention(
        heads=heads, kv_heads=c.maybe("num_key_value_heads"), head_dim=dim, inputs=wide, shared=shared,
        extra=tuple(extra),
    )  # fmt: skip


def _feed_forward(c: Config, shared: bool, adapters: dict[str, int]) -> Dense:
    width, size = c.count("hidden_size"), c.maybe("intermediate_size") or 4 * c.count("hidden_size")
    rank = adapters.get("mlp", 0)
    extra: tuple[Piece, ...] = ()
    if rank:
        extra = (
            Piece(name="adapter_down", inputs=width, outputs=rank),
            Piece(name="adapter_up", inputs=rank, outputs=2 * size, shard="column"),
        )
    return Dense(size=size, bias=c.flag("add_bias_linear"), shared=shared, extra=extra)


def _norms(c: Config, shared: bool) -> tuple[Piece, ...]:
    width = c.count("hidden_size")
    wide = c.maybe("attention_hidden_size") or 2 * width
    both = norm_piece("shared.norm", wide, wide), norm_piece("shared.norm", width, width)
    return tuple(piece.model_copy(update={"shared": shared}) for piece in both)


def _zamba(c: Config) -> Fields:
    period, offset = c.count("attn_layer_period"), c.whole("attn_layer_offset")
    rest = ["hybrid" if index % period == offset else "mamba" for index in range(max(0, c.layers - 3))]
    kinds = _kinds(c, ["mamba", "mamba", "hybrid", *rest][: c.layers])
    mamba = recurrences.mamba(
        int(c.number("mamba_expand", 2) * c.count("hidden_size")), c.count("mamba_d_state"),
        recurrences.time_step_rank(c, "mamba_dt_rank"), c.count("mamba_d_conv"),
        conv_bias=c.flag("mamba_conv_bias", True), bias=c.flag("mamba_proj_bias"),
    )  # fmt: skip
    return ends(c, Traits()) | {"layers": _layers(c, kinds, mamba, 1, {})}


_ZAMBA2: Final = [
    "mamba",
    *(["mamba"] * 5 + ["hybrid"]) * 7,
    *["mamba"] * 4,
    "hybrid",
    *["mamba"] * 3,
    "hybrid",
    *["mamba"] * 2,
]


def _zamba2(c: Config) -> Fields:
    """Return Zamba2: Mamba-2 layers and ``num_mem_blocks`` shared blocks in turn, each use with low-rank adapters."""
    default = _ZAMBA2
    if c.own("layers_block_type") is None and c.layers != len(_ZAMBA2):
        raise c.fail(
            "num_hidden_layers", f"num_hidden_layers is {c.layers}, and layers_block_type is missing.",
            f"without it there are {len(_ZAMBA2)} layers.",
        )  # fmt: skip
    heads = c.count("n_mamba_heads")
    inner = int(c.number("mamba_expand", 2) * c.count("hidden_size"))
    mamba = recurrences.mamba2(
        heads, inner // heads, c.count("mamba_d_state"), c.count("mamba_ngroups", 1), c.count("mamba_d_conv"),
        inner=inner, bias=c.flag("add_bias_linear"),
    )  # fmt: skip
    rank = c.count("adapter_rank")
    adapters = {"mlp": rank} | ({"attention": rank} if c.flag("use_shared_attention_adapter") else {})
    layers = _layers(c, _kinds(c, default), mamba, c.count("num_mem_blocks", 1), adapters)
    return ends(c, Traits()) | {"layers": layers}


BUILDERS: Final = {"zamba": _zamba, "zamba2": _zamba2}
