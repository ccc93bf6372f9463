"""Recurrent mixers, each written from the sizes that its paper names."""

from __future__ import annotations

from math import ceil

from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Convolution, Piece, Projection, Recurrent


def mamba(
    inner: int,
    state: int,
    rank: int,
    width: int,
    *,
    conv_bias: bool = True,
    bias: bool = False,
    norms: bool = False,
    shared: bool = False,
) -> Recurrent:
    """Return a selective state space (Mamba, arXiv:2312.00752): each of ``inner`` channels carries ``state`` numbers.

    ``width`` is that of the convolution, ``rank`` that of the step-size projection; ``norms``: on step, B and C.
    """
    return Recurrent(
        family="mamba",
        projections=(
            Projection(name="input", outputs=2 * inner, bias=bias),
            Projection(name="select", inputs=inner, outputs=rank + 2 * state, shard="none"),
            Projection(name="step", inputs=rank, outputs=inner, bias=True),
            Projection(name="output", inputs=inner, bias=bias, shard="row"),
        ),
        convolution=Convolution(channels=inner, width=width, bias=conv_bias),
        heads=inner,
        groups=1,
        key_dim=state,
        value_dim=1,
        parameters=inner * state + inner,
        norm=rank + 2 * state if norms else 0,
        shared=shared,
    )


def mamba2(
    heads: int,
    head_dim: int,
    state: int,
    groups: int,
    width: int,
    *,
    inner: int | None = None,
    conv_bias: bool = True,
    bias: bool = False,
    output_bias: bool | None = None,
    norm: bool = True,
) -> Recurrent:
    """Return a state space duality mixer (Mamba-2, arXiv:2405.21060).

    There are ``heads`` states of ``state`` by ``head_dim``; ``groups`` of heads share what writes and reads them.
    """
    inner = heads * head_dim if inner is None else inner
    channels = inner + 2 * groups * state
    return Recurrent(
        family="mamba2",
        projections=(
            Projection(name="input", outputs=inner + channels + heads, bias=bias),
            Projection(name="output", inputs=inner, bias=bias if output_bias is None else output_bias, shard="row"),
        ),
        convolution=Convolution(channels=channels, width=width, bias=conv_bias),
        heads=heads,
        groups=groups,
        key_dim=state,
        value_dim=head_dim,
        parameters=3 * heads,
        norm=inner if norm else 0,
    )


def mamba2_of(c: Config, *, norm: bool = True, output_bias: bool | None = None) -> Recurrent:
    """Return the Mamba-2 mixer of a configuration with ``mamba_`` keys (Bamba, Granite 4, Falcon-H1)."""
    heads = c.count("mamba_n_heads")
    inner = c.maybe("mamba_d_ssm") or int(c.number("mamba_expand", 2) * c.count("hidden_size"))
    dim = c.get("mamba_d_head")
    if dim == "auto" or dim is None:
        if inner % heads:
            raise c.fail("mamba_n_heads", f"mamba_n_heads is {heads}, which does not divide the inner width {inner}.")
        dim = inner // heads
    else:
        dim = c.count("mamba_d_head")
    return mamba2(
        heads, dim, c.count("mamba_d_state"), c.count("mamba_n_groups", 1), c.count("mamba_d_conv", 4), inner=inner,
        conv_bias=c.flag("mamba_conv_bias", True), bias=c.flag("mamba_proj_bias"), norm=norm, output_bias=output_bias,
    )  # fmt: skip


def time_step_rank(c: Config, key: str) -> int:
    """Return the rank of Mamba's step projection; ``auto``: a sixteenth of the width, rounded up."""
    value = c.get(key, "auto")
    return ceil(c.count("hidden_size") / 16) if value == "auto" else c.count(key)


def gated_delta(
    key_heads: int, value_heads: int, key_dim: int, value_dim: int, width: int, *, norm: bool = True
) -> Recurrent:
    """Return a gated delta net (arXiv:2412.06464): queries, keys, values, an output gate, a decay and a rate a head."""
    keys, values = key_heads * key_dim, value_heads * value_dim
    return Recurrent(
        family="gated-delta",
        projections=(
            Projection(name="qkv", outputs=2 * keys + values),
            Projection(name="gate", outputs=values),
            Projection(name="decay_rate", outputs=2 * value_heads),
            Projection(name="output", inputs=values, shard="row"),
        ),
        convolution=Convolution(channels=2 * keys + values, width=width),
        heads=value_heads,
        groups=key_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        parameters=2 * value_heads,
        norm=value_dim if norm else 0,
    )


def gated_delta_of(c: Config) -> Recurrent:
    """Return the gated delta net of a configuration with ``linear_`` keys (Qwen3-Next, OLMo hybrid)."""
    return gated_delta(
        c.count("linear_num_key_heads"), c.count("linear_num_value_heads"), c.count("linear_key_head_dim"),
        c.count("linear_value_head_dim"), c.count("linear_conv_kernel_dim"),
    )  # fmt: skip


def kimi_delta(heads: int, dim: int, width: int, *, low_rank: bool) -> Recurrent:
    """Return Kimi Delta Attention (arXiv:2510.26692): a delta net whose decay is per channel.

    ``low_rank``: decay and output gate come through ``dim`` features, else straight from the input.
    """
    features = heads * dim
    gates: tuple[Projection, ...]
    if low_rank:
        gates = (
            Projection(name="decay_down", outputs=dim, shard="none"),
            Projection(name="decay_up", inputs=dim, outputs=features),
            Projection(name="gate_down", outputs=dim, shard="none"),
            Projection(name="gate_up", inputs=dim, outputs=features),
        )
    else:
        gates = (Projection(name="decay", outputs=features), Projection(name="gate", outputs=features))
    return Recurrent(
        family="kimi-delta",
        projections=(
            Projection(name="qkv", outputs=3 * features),
            *gates,
            Projection(name="rate", outputs=heads),
            Projection(name="output", inputs=features, shard="row"),
        ),
        convolution=Convolution(channels=3 * features, width=width),
        heads=heads,
        key_dim=dim,
        value_dim=dim,
        parameters=heads + features,
        norm=dim,
    )


def lightning(heads: int, dim: int) -> Recurrent:
    """Return lightning attention (MiniMax-01, arXiv:2501.08313): linear attention with fixed decays and a gate."""
    features = heads * dim
    return Recurrent(
        family="lightning",
        projections=(
            Projection(name="qkv", outputs=3 * features),
            Projection(name="gate", outputs=features),
            Projection(name="output", inputs=features, shard="row"),
        ),
        heads=heads,
        key_dim=dim,
        value_dim=dim,
        norm=features,
    )


def short_convolution(width: int, taps: int, *, bias: bool = False) -> Recurrent:
    """Return the gated short convolution of LFM2 (arXiv:2511.23404)."""
    return Recurrent(
        family="short-convolution",
        projections=(
            Projection(name="input", outputs=3 * width, bias=bias),
            Projection(name="output", inputs=width, bias=bias, shard="row"),
        ),
        convolution=Convolution(channels=width, width=taps, bias=bias),
    )


def real_gated(inner: int, blocks: int, width: int) -> Recurrent:
    """Return the RG-LRU block of Griffin (arXiv:2402.19427): gates are block-diagonal, each channel one number."""
    block = inner // blocks
    gates = tuple(
        Piece(name=name, inputs=block, outputs=inner, bias=True, shard="column")
        for name in ("input_gate", "decay_gate")
    )
    return Recurrent(
        family="rg-lru",
        projections=(
            Projection(name="input", outputs=2 * inner, bias=True),
            Projection(name="output", inputs=inner, bias=True, shard="row"),
        ),
        convolution=Convolution(channels=inner, width=width, bias=True),
        heads=inner,
        key_dim=1,
        value_dim=1,
        parameters=inner,
        extra=gates,
    )


def rwkv4(width: int, inner: int) -> Recurrent:
    """Return the time mixing of RWKV-4 (arXiv:2305.13048): each channel carries a numerator and a denominator."""
    return Recurrent(
        family="rwkv",
        projections=(
            Projection(name="receptance_key_value", outputs=3 * inner),
            Projection(name="output", inputs=inner, shard="row"),
        ),
        heads=inner,
        key_dim=1,
        value_dim=2,
        parameters=2 * inner + 3 * width,
    )


def matrix_lstm(width: int, heads: int, keys: int, values: int, *, bias: bool = False) -> Recurrent:
    """Return the mLSTM of xLSTM-7B (arXiv:2503.13427): ``heads`` matrix memories with exponential gates."""
    return Recurrent(
        family="mlstm",
        projections=(
            Projection(name="qkv_gate", outputs=2 * keys + 2 * values, bias=bias),
            Projection(name="input_forget", outputs=2 * heads, bias=True),
            Projection(name="output", inputs=values, bias=bias, shard="row"),
        ),
        heads=heads,
        key_dim=keys // heads,
        value_dim=values // heads,
        norm=values * (2 if bias else 1),
    )
