"""Compile a model document into operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from zhenfa.spec.graph import Graph, LayerKind, Operator
from zhenfa.spec.model_blocks import (
    NORM_WEIGHTS,
    Attention,
    Dense,
    Experts,
    FeedForward,
    Indexer,
    LatentAttention,
    Layer,
    Mixer,
    NormKind,
    Piece,
    Pieces,
    Quantization,
    Recurrent,
)

if TYPE_CHECKING:
    from zhenfa.spec.model import Model

_QUANTISED: Final = ("matmul", "grouped_matmul")


def compile_graph(model: Model) -> Graph:
    """Return the operators of a model. Cost grows with its distinct layers, not with its depth."""
    kinds: list[LayerKind] = []
    known: dict[tuple[Operator, ...], int] = {}
    order: list[int] = []
    for layer in _unrolled(model.layers):
        operators = _quantised(layer_operators(layer, model.hidden_size, model.norm), model.quantization)
        if operators not in known:
            known[operators] = len(kinds)
            kinds.append(LayerKind(name=_kind_name(layer, [kind.name for kind in kinds]), operators=operators))
        order += [known[operators]] * layer.repeat
    return Graph(
        name=model.name,
        hidden=model.hidden_size,
        vocabulary=model.vocabulary_size,
        stem=_stem(model),
        kinds=tuple(kinds),
        layers=tuple(order),
        head=_head(model),
        extra=_extra(model),
        tied=model.head.tied,
        encoders=tuple(_encoders(model)),
    )


def _unrolled(runs: Iterable[Layer]) -> Iterator[Layer]:
    for run in runs:
        if run.each:
            for _ in range(run.repeat):
                yield from run.each
        else:
            yield run


def _kind_name(layer: Layer, taken: list[str]) -> str:
    blocks = [getattr(block, "family", block.kind) for block in (*layer.mixer, *layer.feed_forward)]
    name = layer.name or "+".join(blocks) or "layer"
    if name not in taken:
        return name
    return next(f"{name}-{index}" for index in range(2, len(taken) + 3) if f"{name}-{index}" not in taken)


def _quantised(operators: Iterable[Operator], quantization: Quantization | None) -> tuple[Operator, ...]:
    if quantization is None:
        return tuple(operators)
    return tuple(_with_bits(operator, quantization) for operator in operators)


def _with_bits(operator: Operator, quantization: Quantization) -> Operator:
    kept = any(operator.name == name or operator.name.startswith(f"{name}.") for name in quantization.keep)
    if operator.kind not in _QUANTISED or operator.name.endswith("router") or kept:
        return operator
    routed = operator.kind == "grouped_matmul"
    if quantization.scope == "experts" and not routed:
        return operator
    bits = quantization.expert_bits if routed and quantization.expert_bits else quantization.bits
    return dataclasses.replace(operator, bits=bits)


def layer_operators(layer: Layer, width: int, norm: NormKind) -> tuple[Operator, ...]:
    """Return the operators of one layer, in order, for a model of this width and kind of norm."""
    width = layer.width or width
    norm = layer.norm or norm
    count = layer.norm_count
    first = min(count, 1) if layer.mixer else 0
    operators = [_norm("norm", width, norm) for _ in range(first)]
    for mixer in layer.mixer:
        operators += _mixer(mixer, width, norm)
    if layer.mixer:
        operators.append(_residual(width))
    operators += [_norm("norm", width, norm) for _ in range(count - first)]
    for feed_forward in layer.feed_forward:
        operators += _feed_forward(feed_forward, width)
    if layer.feed_forward:
        operators.append(_residual(width))
    return (*operators, *_pieces(layer.extra))


def _norm(name: str, width: int, kind: NormKind, features: int | None = None) -> Operator:
    features = features or width
    return Operator(name, "norm", parameters=NORM_WEIGHTS[kind] * width, inputs=features, outputs=features)


def _residual(width: int) -> Operator:
    return Operator("residual", "elementwise", inputs=2 * width, outputs=width)


def _matmul(
    name: str, inputs: int, outputs: int, *, bias: bool = False, shard: str = "none", held: bool = True
) -> Operator:
    parameters = (inputs * outputs + (outputs if bias else 0)) if held else 0
    return Operator(name, "matmul", parameters=parameters, inputs=inputs, outputs=outputs, shard=shard)  # type: ignore[arg-type]


def _pieces(pieces: Iterable[Piece], prefix: str = "") -> list[Operator]:
    return [_piece(piece, prefix) for piece in pieces for _ in range(piece.count)]


def _piece(piece: Piece, prefix: str) -> Operator:
    parameters = piece.parameters
    if parameters is None:
        parameters = 0
        if piece.kind in _QUANTISED:
            parameters = (piece.inputs * piece.outputs + (piece.outputs if piece.bias else 0)) * piece.experts
        elif piece.kind == "embedding":
            parameters = piece.inputs * piece.outputs
    return Operator(
        prefix + piece.name,
        piece.kind,
        parameters=0 if piece.shared else parameters,
        inputs=piece.inputs,
        outputs=piece.outputs,
        shard=piece.shard,
        experts=piece.experts,
        active_experts=piece.active,
        heads=piece.heads,
        kv_heads=piece.kv_heads,
        key_dim=piece.key_dim,
        value_dim=piece.value_dim,
        window=piece.window,
        causal=piece.causal,
        cache=piece.cache,
        state=piece.state,
    )


def _mixer(mixer: Mixer, width: int, norm: NormKind) -> list[Operator]:
    if isinstance(mixer, Attention):
        return _attention(mixer, width)
    if isinstance(mixer, LatentAttention):
        return _latent(mixer, width)
    if isinstance(mixer, Recurrent):
        return _recurrent(mixer, width)
    return _pieces(mixer.extra)


def _attention(block: Attention, width: int) -> list[Operator]:
    name = "cross" if block.cross else "attention"
    held = not block.shared
    inputs = block.inputs or width
    queries = block.heads * block.head_dim
    keys = block.key_value_heads * block.head_dim
    values = block.key_value_heads * block.value_features
    mixed = block.heads * block.value_features
    computed_keys = 0 if block.reuses_cache else keys
    computed_values = 0 if block.reuses_cache or block.keys_are_values else values
    projected = queries + computed_keys + computed_values
    operators = [_matmul(f"{name}.qkv", inputs, projected, bias=block.bias, shard="column", held=held)]
    if block.qk_norm != "none":
        heads = 1 if block.qk_norm == "head" else block.heads
        kv_heads = 0 if block.reuses_cache else 1 if block.qk_norm == "head" else block.key_value_heads
        weights = (heads + kv_heads) * block.head_dim * (2 if block.qk_norm_bias else 1)
        features = queries + computed_keys
        operators.append(
            Operator(f"{name}.qk_norm", "norm", parameters=weights if held else 0, inputs=features, outputs=features)
        )
    operators.append(
        Operator(
            f"{name}.core", "attention", parameters=block.heads if block.sinks and held else 0,
            inputs=queries + keys + values, outputs=mixed, shard="heads", heads=block.heads,
            kv_heads=block.key_value_heads, key_dim=block.head_dim, value_dim=block.value_features,
            window=block.window, causal=block.causal and not block.cross,
            cache=0 if block.reuses_cache else keys + values,
        )
    )  # fmt: skip
    operators += _gate(block, name, inputs, mixed)
    operators += _pieces(block.extra, f"{name}.")
    operators.append(_matmul(f"{name}.output", mixed, width, bias=block.output_bias, shard="row", held=held))
    return operators


def _gate(block: Attention | LatentAttention, name: str, inputs: int, mixed: int) -> list[Operator]:
    if block.gate == "none":
        return []
    outputs = mixed if block.gate == "feature" else block.heads
    held = biased = False
    if isinstance(block, Attention):
        held, biased = not block.shared, block.gate_bias
    else:
        held = True
    return [_matmul(f"{name}.gate", inputs, outputs, bias=biased, shard="column", held=held)]


def _latent(block: LatentAttention, width: int) -> list[Operator]:
    query_dim = block.nope_dim + block.rope_dim
    queries, mixed = block.heads * query_dim, block.heads * block.value_dim
    cached = block.latent_rank + block.rope_dim
    operators = []
    if block.query_rank:
        operators.append(_matmul("attention.query_down", width, block.query_rank, bias=block.bias))
        operators += _latent_norm(block, "attention.query_norm", block.query_rank)
        operators.append(_matmul("attention.query_up", block.query_rank, queries, shard="column"))
    else:
        operators.append(_matmul("attention.query", width, queries, shard="column"))
    operators.append(_matmul("attention.latent_down", width, cached, bias=block.bias))
    operators += _latent_norm(block, "attention.latent_norm", block.latent_rank)
    up = block.heads * (block.nope_dim + block.value_dim)
    operators.append(_matmul("attention.latent_up", block.latent_rank, up, shard="column"))
    if block.indexer and not block.indexer.shared:
        operators += _indexer(block.indexer, width, block.query_rank or width)
    window = block.window or (block.indexer.top if block.indexer else None)
    operators.append(
        Operator(
            "attention.core", "attention", parameters=block.heads if block.sinks else 0, inputs=queries + cached,
            outputs=mixed, shard="heads", heads=block.heads, kv_heads=1, key_dim=query_dim, value_dim=block.value_dim,
            window=window, cache=cached, latent=block.latent_rank,
        )
    )  # fmt: skip
    operators += _gate(block, "attention", width, mixed)
    operators += _pieces(block.extra, "attention.")
    operators.append(_matmul("attention.output", mixed, width, bias=block.output_bias, shard="row"))
    return operators


def _latent_norm(block: LatentAttention, name: str, width: int) -> list[Operator]:
    return [_norm(name, width, "rms")] if block.norms else []


def _indexer(block: Indexer, width: int, query_width: int) -> list[Operator]:
    """Queries from the query latent, one key head with a layer norm, one weight per head (DeepSeek-V3.2)."""
    return [
        _matmul("attention.indexer.query", query_width, block.heads * block.head_dim),
        _matmul("attention.indexer.key", width, block.head_dim),
        _norm("attention.indexer.key_norm", block.head_dim, "layer"),
        _matmul("attention.indexer.weights", width, block.heads),
        Operator(
            "attention.indexer.core", "attention", inputs=(block.heads + 1) * block.head_dim, outputs=block.top,
            heads=block.heads, kv_heads=1, key_dim=block.head_dim, cache=block.head_dim,
        ),
    ]  # fmt: skip


def _recurrent(block: Recurrent, width: int) -> list[Operator]:
    held = not block.shared
    name = block.family
    projections = [
        (
            item.shard,
            _matmul(
                f"{name}.{item.name}", item.inputs or width, item.outputs or width, bias=item.bias, shard=item.shard,
                held=held,
            ),
        )
        for item in block.projections
    ]  # fmt: skip
    operators = [operator for shard, operator in projections if shard != "row"]
    if block.convolution:
        taps = block.convolution
        per_channel = taps.width * (taps.channels // taps.groups if taps.groups else 1) + (1 if taps.bias else 0)
        operators.append(
            Operator(
                f"{name}.convolution", "convolution", parameters=taps.channels * per_channel if held else 0,
                inputs=taps.channels, outputs=taps.channels, shard="column", state=taps.channels * (taps.width - 1),
            )
        )  # fmt: skip
    held_parameters = block.parameters if held else 0
    if block.heads:
        features = 2 * (block.groups or block.heads) * block.key_dim + block.heads * block.value_dim
        operators.append(
            Operator(
                f"{name}.core", "scan", parameters=held_parameters, inputs=features,
                outputs=block.heads * block.value_dim, shard="heads", heads=block.heads, key_dim=block.key_dim,
                value_dim=block.value_dim, state=block.heads * block.key_dim * block.value_dim,
            )
        )  # fmt: skip
    elif block.parameters:
        operators.append(
            Operator(f"{name}.mix", "elementwise", parameters=held_parameters, inputs=width, outputs=width)
        )
    if block.norm:
        features = max(block.norm, block.heads * block.value_dim)
        weights = block.norm if held else 0
        operators.append(Operator(f"{name}.norm", "norm", parameters=weights, inputs=features, outputs=features))
    operators += _pieces(block.extra, f"{name}.")
    return operators + [operator for shard, operator in projections if shard == "row"]


def _feed_forward(block: FeedForward, width: int) -> list[Operator]:
    if isinstance(block, Dense):
        held = not block.shared
        down_bias = block.bias if block.down_bias is None else block.down_bias
        operators = _mlp("mlp", width, block.size, block.gated, block.bias, down_bias, held)
        return [*operators, *_pieces(block.extra, "mlp.")]
    if isinstance(block, Pieces):
        return _pieces(block.extra)
    return _experts(block, width)


def _mlp(name: str, width: int, size: int, gated: bool, bias: bool, down_bias: bool, held: bool) -> list[Operator]:
    up = 2 * size if gated else size
    return [
        _matmul(f"{name}.up", width, up, bias=bias, shard="column", held=held),
        Operator(f"{name}.activation", "elementwise", inputs=up, outputs=size, shard="column"),
        _matmul(f"{name}.down", size, width, bias=down_bias, shard="row", held=held),
    ]


def _experts(block: Experts, width: int) -> list[Operator]:
    up = 2 * block.size if block.gated else block.size
    operators = []
    if block.router:
        outputs = block.router_outputs or block.count
        router = _matmul("experts.router", width, outputs, bias=block.router_bias)
        operators.append(dataclasses.replace(router, parameters=router.parameters + block.router_parameters))
    operators += [
        _grouped("experts.up", block, width, up),
        Operator(
            "experts.activation", "elementwise", inputs=up * block.active, outputs=block.size * block.active,
            shard="expert",
        ),
        _grouped("experts.down", block, block.size, width),
    ]  # fmt: skip
    if block.shared:
        shared = block.shared
        operators += _mlp("shared", width, shared.size, shared.gated, shared.bias, shared.bias, True)
        if shared.gate:
            operators.append(_matmul("shared.gate", width, 1))
    return operators + _pieces(block.extra, "experts.")


def _grouped(name: str, block: Experts, inputs: int, outputs: int) -> Operator:
    per_expert = inputs * outputs + (outputs if block.bias else 0)
    return Operator(
        name, "grouped_matmul", parameters=block.count * per_expert, inputs=inputs, outputs=outputs, shard="expert",
        experts=block.count, active_experts=min(block.active, block.count),
    )  # fmt: skip


def _stem(model: Model) -> tuple[Operator, ...]:
    stem = model.embedding
    width = stem.width or model.hidden_size
    rows = stem.rows or model.vocabulary_size
    operators = [
        Operator("embedding", "embedding", parameters=rows * width, inputs=rows, outputs=width, shard="vocabulary")
    ]
    for name, count in (("positions", stem.positions), ("types", stem.types)):
        if count:
            operators.append(Operator(name, "embedding", parameters=count * width, inputs=count, outputs=width))
    if stem.norm:
        operators.append(_norm("embedding.norm", width, stem.norm))
    if stem.projection:
        operators.append(_matmul("embedding.projection", width, model.hidden_size, bias=stem.projection_bias))
    return (*operators, *_pieces(stem.extra))


def _head(model: Model) -> tuple[Operator, ...]:
    head = model.head
    tied_width = model.embedding.width if head.tied else None
    width = head.width or tied_width or model.hidden_size
    rows = head.rows or model.vocabulary_size
    operators = [_norm("norm", model.hidden_size, head.norm or model.norm), *_pieces(head.extra)]
    projection = Operator(
        "head", "matmul", parameters=(0 if head.tied else width * rows) + (rows if head.bias else 0), inputs=width,
        outputs=rows, shard="vocabulary",
    )  # fmt: skip
    if model.quantization and model.quantization.scope == "all" and not head.tied:
        projection = _with_bits(projection, model.quantization)
    return (*operators, projection)


def _extra(model: Model) -> tuple[Operator, ...]:
    if model.mtp is None:
        return ()
    width = model.hidden_size
    rows = model.head.rows or model.vocabulary_size
    operators = [_norm("mtp.norm", width, model.norm) for _ in range(model.mtp.norms)]
    if model.mtp.projection:
        operators.append(_matmul("mtp.projection", 2 * width, width))
    operators += layer_operators(model.mtp.layer, width, model.norm)
    head = Operator("mtp.head", "matmul", inputs=model.head.width or width, outputs=rows, shard="vocabulary")
    return _quantised(operators, model.quantization) * model.mtp.modules + (head,) * model.mtp.modules


def _encoders(model: Model) -> Iterator[Operator]:
    for encoder in model.encoders:
        for layer in _unrolled(encoder.layers):
            operators = layer_operators(layer, encoder.width, encoder.norm)
            for _ in range(layer.repeat):
                yield from (dataclasses.replace(item, name=f"{encoder.name}.{item.name}") for item in operators)
        yield from _pieces(encoder.extra, f"{encoder.name}.")
