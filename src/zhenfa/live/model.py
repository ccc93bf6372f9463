"""Which model documents this runtime can build, and the sizes that it reads from them."""

from __future__ import annotations

from typing import Any, Final

from zhenfa.errors import CapabilityError
from zhenfa.live.sizes import Sizes
from zhenfa.spec.document import Part
from zhenfa.spec.model import Model
from zhenfa.spec.model_blocks import Attention, Dense, Layer

WAY_OUT: Final = "plan and estimate work for this model; `zhenfa run` trains dense decoders such as tiny-byte-gpt."

LEFT_OUT: Final[dict[type[Part], frozenset[str]]] = {
    Attention: frozenset({"heads", "kv_heads", "head_dim", "value_dim", "kind"}),
    Dense: frozenset({"size", "gated", "down_bias", "kind"}),
}
"""Keys of a block that are sizes; every other key must stand at its default."""


def sizes_of(model: Model) -> Sizes:
    """Return the sizes of a dense decoder with RMS norms and grouped-query attention.

    Raises :class:`CapabilityError` that names the first thing which this version cannot run.
    """
    _check_ends(model)
    layers = [layer for run in model.layers for _ in range(run.repeat) for layer in _unrolled(run)]
    shapes = {_layer(model, layer) for layer in layers}
    if len(shapes) != 1:
        raise _refusal(model, "layers of different sizes")
    (attention, dense), *_ = shapes
    return Sizes(
        hidden=model.hidden_size,
        layers=len(layers),
        heads=attention.heads,
        kv_heads=attention.key_value_heads,
        head_dim=attention.head_dim,
        intermediate=dense.size,
        vocabulary=model.vocabulary_size,
        gated=dense.gated,
        tied=model.head.tied,
    )


def _unrolled(run: Layer) -> list[Layer]:
    return [layer for layer in run.each for _ in range(layer.repeat)] if run.each else [run]


def _check_ends(model: Model) -> None:
    if model.norm != "rms" or model.head.norm not in {None, "rms"}:
        raise _refusal(model, f"{model.head.norm or model.norm} norms")
    for name, ends in (("embedding", model.embedding), ("head", model.head)):
        changed = _changed(ends, frozenset({"tied", "norm"} if name == "head" else ()))
        if changed:
            raise _refusal(model, f"an {name} with {changed}" if name == "embedding" else f"a head with {changed}")
    for name, value in (("mtp", model.mtp), ("encoders", model.encoders), ("quantization", model.quantization)):
        if value:
            raise _refusal(model, name)


def _layer(model: Model, layer: Layer) -> tuple[Attention, Dense]:
    """Return the blocks of a layer with all but the sizes at their defaults."""
    plain = layer.norm in {None, "rms"} and layer.norm_count == 2 and not layer.extra
    if not plain or layer.width not in {None, model.hidden_size}:
        raise _refusal(model, "layers with other norms, widths or extra operators")
    if len(layer.mixer) != 1 or len(layer.feed_forward) != 1:
        raise _refusal(model, "layers without exactly one mixer and one feed-forward")
    mixer, feed_forward = layer.mixer[0], layer.feed_forward[0]
    for block, wanted in ((mixer, Attention), (feed_forward, Dense)):
        if not isinstance(block, wanted):
            raise _refusal(model, f"{block.kind} layers")
        changed = _changed(block, LEFT_OUT[wanted])
        if changed:
            raise _refusal(model, f"{block.kind} with {changed}")
    if not isinstance(mixer, Attention) or not isinstance(feed_forward, Dense):
        raise _refusal(model, "these layers")
    if mixer.value_features != mixer.head_dim or mixer.head_dim % 2:
        raise _refusal(model, "heads of odd or differing sizes")
    if feed_forward.down_bias:
        raise _refusal(model, "dense with down_bias")
    return mixer, feed_forward


def _changed(block: Part, sizes: frozenset[str]) -> str | None:
    """Return the first key that is not at its default, sizes apart."""
    fields: dict[str, Any] = type(block).model_fields
    keys = (name for name, info in fields.items() if name not in sizes and getattr(block, name) != info.default)
    return next(keys, None)


def _refusal(model: Model, what: str) -> CapabilityError:
    return CapabilityError(f"{model.name} has {what}, which this version cannot run in torch.", hint=WAY_OUT)
