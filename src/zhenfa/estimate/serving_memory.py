"""What serving holds on a card: weights, and the cache of each request; how many requests fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from zhenfa.estimate.serving_cards import Cards
from zhenfa.estimate.serving_step import Layout
from zhenfa.laws.arrays import Array, plain
from zhenfa.spec.graph import Graph, Operator

STATE_BYTES = 4.0
ACTIVATION_FEATURES = 12.0
"""Hidden-sized rows of 16 bits that live at once per token of a chunk: residual, projections, feed-forward. Assumed."""


@dataclass(frozen=True)
class Held:
    """Bytes on the fullest card of an instance.

    ``token``: cache bytes of one token of one request that the card serves; ``request``: state bytes of one request;
    ``shared``: over how many cards the requests of an instance are spread (attention data-parallel groups).
    """

    weights: Array
    token: Array
    request: Array
    groups: Array


def held(graph: Graph, cards: Cards, layout: Layout) -> Held:
    """Return what one card of an instance holds.

    Counts weights in their formats (embedding and head in 16 bits), keys and values, latents and states. Omits
    redundant experts, but for those that fill up cards. A pipeline spreads layers evenly.
    """
    layers = [(kind.operators, graph.layers.count(index)) for index, kind in enumerate(graph.kinds)]
    weights = sum(times * _weights(operators, cards, layout) for operators, times in layers) / layout.pipeline
    ends = _weights((*graph.stem, *graph.head, *graph.encoders), cards, layout) / np.minimum(layout.pipeline, 2.0)
    token = sum(times * _cached(operators, cards, layout) for operators, times in layers) / layout.pipeline
    state = sum(times * _state(operators, layout) for operators, times in layers) / layout.pipeline
    return Held(weights + ends, token, state, np.multiply(layout.data, layout.context))


def _weights(operators: Iterable[Operator], cards: Cards, layout: Layout) -> Array:
    total: Array = 0.0
    for operator in operators:
        cut: Array = 1.0 if operator.shard == "none" else layout.tensor
        size = cards.attention_bytes
        if operator.kind == "grouped_matmul":
            size, cut = cards.expert_bytes, layout.stage / _copies(operator, layout)
        elif (
            operator.shard == "vocabulary" or operator.kind in {"norm", "embedding"} or operator.name.endswith("router")
        ):
            size = 2.0
        elif operator.name.startswith(("mlp", "shared")):
            size = cards.dense_bytes
        total = total + operator.parameters * size / cut
    return total


def _copies(operator: Operator, layout: Layout) -> Array:
    """Return the experts that all cards hold over those there are: some twice where they do not come out even."""
    return np.ceil(operator.experts / layout.expert - 1e-9) * layout.expert / operator.experts


def token_bytes(graph: Graph, cards: Cards) -> float:
    """Return the bytes of one token's keys and values, or latents, over all layers."""
    return sum(
        graph.layers.count(index) * one.cache * cards.cache_bytes
        for index, kind in enumerate(graph.kinds)
        for one in kind.operators
        if one.kind == "attention"
    )


def _cached(operators: Iterable[Operator], cards: Cards, layout: Layout) -> Array:
    total: Array = 0.0
    for operator in operators:
        if operator.kind == "attention" and operator.cache:
            cut = 1.0 if operator.latent else np.minimum(layout.tensor, np.maximum(operator.kv_heads, 1))
            total = total + operator.cache * cards.cache_bytes / cut
    return total


def _state(operators: Iterable[Operator], layout: Layout) -> Array:
    return sum((one.state * STATE_BYTES / layout.tensor for one in operators if one.state), 0.0)


def capacity(kept: Held, usable: Array, tokens: Array, windowed: Array = 1.0) -> Array:
    """Return how many requests of ``tokens`` cached tokens each an instance holds.

    Arguments: ``usable`` bytes of a card for weights and cache; ``tokens`` per request; ``windowed`` share of the cache
    that sliding windows leave. Returns requests over the whole instance, 0 where the weights do not fit.
    """
    free = np.maximum(np.subtract(usable, kept.weights), 0.0)
    each = np.maximum(kept.token * tokens * windowed + kept.request, 1e-9)
    return plain(np.floor(free / each * kept.groups))
