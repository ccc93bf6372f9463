"""Which model documents this runtime can build, and the sizes that it reads from them."""

from __future__ import annotations

from typing import Any, Final

from zhenfa.errors import CapabilityError
from zhenfa.live.sizes import Mixture, Sizes
from zhenfa.spec.document import Part
from zhenfa.spec.model import Model
from zhenfa.spec.model_blocks import Attention, Dense, Experts, Layer, SharedExpert

WAY_OUT: Final = (
    "plan and estimate work for this model; `zhenfa run` trains decoders such as tiny-byte-gpt and tiny-byte-moe."
)

LEFT_OUT: Final[dict[type[Part], frozenset[str]]] = {
    Attention: frozenset({"heads", "kv_heads", "head_dim", "value_dim", "kind"}),
    Dense: frozenset({"size", "gated", "down_bias", "kind"}),
    Experts: frozenset({"count", "active", "size", "gated", "normalized", "shared", "kind"}),
    SharedExpert: frozenset({"size", "gated", "gate"}),
}
"""Keys of a block that are sizes; every other key must stand at its default."""


def sizes_of(model: Model) -> Sizes:
    """Return the sizes of a decoder with RMS norms, grouped-query attention, and MLPs or mixtures of experts.

    Raises :class:`CapabilityError` that names the first thing which this version cannot run.
    """
    _check_ends(model)
    layers = [_layer(model, layer) for run in model.layers for layer in _unrolled(run) for _ in range(layer.repeat)]
    attentions = {attention for attention, _ in layers}
    dense = {body for _, body in layers if isinstance(body, Dense)}
    experts = {body for _, body in layers if isinstance(body, Experts)}
    if len(attentions) != 1 or len(dense) > 1 or len(experts) > 1:
        raise _refusal(model, "layers of different sizes")
    (attention,), plain = attentions, next(iter(dense), None)
    routed = tuple(index for index, (_, body) in enumerate(layers) if isinstance(body, Experts))
    return Sizes(
        hidden=model.hidden_size,
        layers=len(layers),
        heads=attention.heads,
        kv_heads=attention.key_value_heads,
        head_dim=attention.head_dim,
        intermediate=0 if plain is None else plain.size,
        vocabulary=model.vocabulary_size,
        gated=True if plain is None else plain.gated,
        tied=model.head.tied,
        mixture=next((_mixture(one, routed) for one in experts), None),
    )


def _mixture(block: Experts, layers: tuple[int, ...]) -> Mixture:
    shared = block.shared
    return Mixture(
        experts=block.count, active=block.active, size=block.size, layers=layers, gated=block.gated,
        normalized=block.normalized, shared=0 if shared is None else shared.size,
        shared_gated=True if shared is None else shared.gated, shared_gate=shared is not None and shared.gate,
    )  # fmt: skip


def _unrolled(run: Layer) -> list[Layer]:
    return [layer for _ in range(run.repeat) for layer in run.each] if run.each else [run]


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


def _layer(model: Model, layer: Layer) -> tuple[Attention, Dense | Experts]:
    """Return the blocks of a layer with all but the sizes at their defaults."""
    plain = layer.norm in {None, "rms"} and layer.norm_count == 2 and not layer.extra
    if not plain or layer.width not in {None, model.hidden_size}:
        raise _refusal(model, "layers with other norms, widths or extra operators")
    if len(layer.mixer) != 1 or len(layer.feed_forward) != 1:
        raise _refusal(model, "layers without exactly one mixer and one feed-forward")
    mixer, feed_forward = layer.mixer[0], layer.feed_forward[0]
    if not isinstance(mixer, Attention):
        raise _refusal(model, f"{mixer.kind} layers")
    if not isinstance(feed_forward, Dense | Experts):
        raise _refusal(model, f"{feed_forward.kind} layers")
    for block in (mixer, feed_forward):
        changed = _changed(block, LEFT_OUT[type(block)])
        if changed:
            raise _refusal(model, f"{block.kind} with {changed}")
    if mixer.value_features != mixer.head_dim or mixer.head_dim % 2:
        raise _refusal(model, "heads of odd or differing sizes")
    if isinstance(feed_forward, Dense) and feed_forward.down_bias:
        raise _refusal(model, "dense with down_bias")
    shared = feed_forward.shared if isinstance(feed_forward, Experts) else None
    if shared is not None and (changed := _changed(shared, LEFT_OUT[SharedExpert])):
        raise _refusal(model, f"a shared expert with {changed}")
    return mixer, feed_forward


def _changed(block: Part, sizes: frozenset[str]) -> str | None:
    """Return the first key that is not at its default, sizes apart."""
    fields: dict[str, Any] = type(block).model_fields
    keys = (name for name, info in fields.items() if name not in sizes and getattr(block, name) != info.default)
    return next(keys, None)


def _refusal(model: Model, what: str) -> CapabilityError:
    return CapabilityError(f"{model.name} has {what}, which this version cannot run in torch.", hint=WAY_OUT)
