"""A model's shape as training frameworks spell it: one attention for all layers, dense and expert feed-forwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zhenfa.errors import CapabilityError
from zhenfa.spec.model import Model
from zhenfa.spec.model_blocks import Attention, Dense, Experts, LatentAttention, Layer, NormKind


@dataclass(frozen=True)
class Shape:
    """A decoder whose layers have one kind of attention, and a feed-forward that is dense or of experts."""

    layers: int
    hidden: int
    vocabulary: int
    positions: int
    attention: Attention | LatentAttention
    dense: Dense | None
    experts: Experts | None
    sparse: tuple[bool, ...]
    """Of each layer, whether its feed-forward is of experts."""
    norm: NormKind
    tied: bool
    learnt_positions: bool

    @property
    def heads(self) -> int:
        """Return the attention heads."""
        return self.attention.heads


def each_layer(model: Model) -> Iterator[Layer]:
    """Yield the layers one by one."""
    for run in model.layers:
        for _ in range(run.repeat):
            for layer in run.each or (run,):
                yield from [layer] * (layer.repeat if run.each else 1)


def experts_of(model: Model) -> list[Experts]:
    """Return the mixtures of experts of a model, one of each kind."""
    found = [block for layer in each_layer(model) for block in layer.feed_forward if isinstance(block, Experts)]
    return list(dict.fromkeys(found))


def heads_of(model: Model) -> set[int]:
    """Return the numbers of heads that tensor parallelism has to divide."""
    return {
        block.heads
        for layer in each_layer(model)
        for block in layer.mixer
        if isinstance(block, Attention | LatentAttention)
    }


def shape_of(model: Model, framework: str) -> Shape:
    """Return the shape. Raises :class:`CapabilityError` naming what such a framework has no words for."""
    layers = list(each_layer(model))
    odd = _odd(model, layers)
    if odd:
        raise CapabilityError(
            f"{framework} has no words for {model.name}: {odd}.",
            hint="models of one kind of attention with dense or expert feed-forwards can be written.",
        )
    mixers = {layer.mixer[0] for layer in layers}
    attention = mixers.pop()
    assert isinstance(attention, Attention | LatentAttention)  # noqa: S101
    blocks = [layer.feed_forward[0] for layer in layers]
    return Shape(
        layers=len(layers), hidden=model.hidden_size, vocabulary=model.vocabulary_size,
        positions=model.max_position or 0, attention=attention,
        dense=next((one for one in blocks if isinstance(one, Dense)), None),
        experts=next((one for one in blocks if isinstance(one, Experts)), None),
        sparse=tuple(isinstance(one, Experts) for one in blocks), norm=model.norm, tied=model.head.tied,
        learnt_positions=model.embedding.positions > 0,
    )  # fmt: skip


def _odd(model: Model, layers: list[Layer]) -> str:
    """Say what cannot be spelled; empty if all can."""
    if any(len(layer.mixer) != 1 or len(layer.feed_forward) != 1 for layer in layers):
        return "not every layer is one mixer and one feed-forward"
    mixers = {layer.mixer[0] for layer in layers}
    strange = [one for one in mixers if not isinstance(one, Attention | LatentAttention)]
    if strange:
        return f"it mixes tokens by {getattr(strange[0], 'family', strange[0].kind)}"
    if len(mixers) > 1:
        return f"its layers have {len(mixers)} kinds of attention"
    blocks = {layer.feed_forward[0] for layer in layers}
    for kind in (Dense, Experts):
        if len([one for one in blocks if isinstance(one, kind)]) > 1:
            return f"its {kind.__name__.lower()} feed-forwards differ from layer to layer"
    if any(not isinstance(one, Dense | Experts) for one in blocks):
        return "its feed-forwards are neither dense nor of experts"
    extras = (model.embedding.extra, model.head.extra, *(layer.extra for layer in layers))
    if any(extras) or any(one.extra for one in (*mixers, *blocks) if not isinstance(one, str)):
        return "it has pieces of its own"
    mixer = next(iter(mixers))
    if getattr(mixer, "indexer", None) or getattr(mixer, "sinks", False) or getattr(mixer, "gate", "none") != "none":
        return "its attention has gates, sinks or an indexer"
    if model.encoders:
        return "it has encoders beside the language model"
    return "" if model.norm in ("rms", "layer") else f"its norm is {model.norm}"
