"""The blocks that a model document is written in: mixers, feed-forwards, layers, ends.

A mixer moves information between tokens (attention, latent attention, recurrence), a feed-forward works on each token
alone. What no block describes is written as a :class:`Piece`: one operator, spelled out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from zhenfa.spec.document import Part
from zhenfa.spec.graph import OperatorKind, Shard

Size = Annotated[int, Field(ge=1, le=1_000_000_000, strict=True)]
Whole = Annotated[int, Field(ge=0, le=10_000_000_000_000, strict=True)]
Repeat = Annotated[int, Field(ge=1, le=100_000, strict=True)]

NormKind = Literal["rms", "layer", "layer-no-bias", "plain"]
"""``rms`` and ``layer-no-bias`` hold one weight per feature, ``layer`` a weight and a bias, ``plain`` nothing."""

NORM_WEIGHTS: dict[NormKind, int] = {"rms": 1, "layer": 2, "layer-no-bias": 1, "plain": 0}


def _as_tuple(value: Any) -> Any:
    return [value] if isinstance(value, dict | Part) else value


class Block(Part):
    """A block that says its kind: the key stays in the file even where it is the default."""

    @model_serializer(mode="wrap")
    def _keep_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": getattr(self, "kind"), **handler(self)}  # noqa: B009


class Piece(Part):
    """One operator, spelled out, where no block fits. Fields as in :class:`zhenfa.spec.graph.Operator`.

    ``parameters`` is worked out for a matmul (``inputs * outputs`` plus ``bias``, times ``experts`` when grouped) and
    for an embedding, and is 0 otherwise unless given. ``count`` repeats the piece. ``shared`` says that its weights are
    held elsewhere.
    """

    name: Annotated[str, Field(min_length=1, max_length=80)]
    kind: OperatorKind = "matmul"
    inputs: Whole = 0
    outputs: Whole = 0
    bias: bool = False
    parameters: Whole | None = None
    shard: Shard = "none"
    count: Repeat = 1
    shared: bool = False
    experts: Size = 1
    active: Size = 1
    heads: Whole = 0
    kv_heads: Whole = 0
    key_dim: Whole = 0
    value_dim: Whole = 0
    window: Size | None = None
    causal: bool = True
    cache: Whole = 0
    state: Whole = 0


class Attention(Block):
    """Softmax attention: multi-head, grouped-query or multi-query by the number of ``kv_heads``.

    ``kv_heads`` and ``value_dim`` default to ``heads`` and ``head_dim``. ``inputs`` is the width it reads, where that
    is not the layer's. ``bias`` is on queries, keys and values, ``output_bias`` on the output. ``qk_norm`` holds one
    weight per feature of a head (``head``) or of all heads (``full``), two with ``qk_norm_bias``. ``gate`` multiplies
    the output by a projection of the input, one per feature or one per head. ``sinks`` is one logit per head.
    ``keys_are_values``: no value projection. ``reuses_cache``: keys and values come from an earlier layer. ``cross``:
    they come from an encoder, whose length the estimate takes to be that of the context.
    """

    kind: Literal["attention"] = "attention"
    heads: Size
    kv_heads: Size | None = None
    head_dim: Size
    value_dim: Size | None = None
    inputs: Size | None = None
    bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    qk_norm_bias: bool = False
    gate: Literal["none", "feature", "head"] = "none"
    gate_bias: bool = False
    sinks: bool = False
    window: Size | None = None
    causal: bool = True
    keys_are_values: bool = False
    reuses_cache: bool = False
    cross: bool = False
    shared: bool = False
    extra: tuple[Piece, ...] = ()

    @property
    def key_value_heads(self) -> int:
        """Return how many heads are cached."""
        return self.kv_heads or self.heads

    @property
    def value_features(self) -> int:
        """Return the features of one value head."""
        return self.value_dim or self.head_dim

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.key_value_heads} key-value heads evenly")
        return self


class Indexer(Part):
    """A light attention that picks the ``top`` tokens that the main attention reads (sparse attention)."""

    heads: Size
    head_dim: Size
    top: Size
    shared: bool = False


class LatentAttention(Block):
    """Multi-head latent attention (MLA): keys and values are projections of one cached latent.

    The cache holds ``latent_rank + rope_dim`` elements per token (DeepSeek-V2, arXiv:2405.04434, section 2.1).
    ``query_rank`` None: queries are projected directly. ``gate`` as in :class:`Attention`.
    """

    kind: Literal["latent-attention"] = "latent-attention"
    heads: Size
    query_rank: Size | None = None
    latent_rank: Size
    nope_dim: Size
    rope_dim: Size
    value_dim: Size
    bias: bool = False
    output_bias: bool = False
    norms: bool = True
    gate: Literal["none", "feature", "head"] = "none"
    sinks: bool = False
    window: Size | None = None
    indexer: Indexer | None = None
    extra: tuple[Piece, ...] = ()


class Convolution(Part):
    """A short causal convolution over ``channels``, ``width`` tokens wide; ``groups`` None: depthwise."""

    channels: Size
    width: Size
    bias: bool = False
    groups: Size | None = None


class Projection(Part):
    """A linear map inside a recurrent mixer. ``inputs`` None: the layer's width; ``outputs`` None: likewise."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    inputs: Size | None = None
    outputs: Size | None = None
    bias: bool = False
    shard: Shard = "column"


class Recurrent(Block):
    """Linear attention, state space, recurrence or a short convolution alone.

    ``heads`` states of ``key_dim`` by ``value_dim`` are carried per sequence (``heads`` 0: no state, a convolution
    only); ``groups`` of them share keys and queries (None: none do). ``parameters`` counts what is neither a projection
    nor a convolution (decays, gates, step biases) and ``norm`` the weights of the inner norm. ``family`` names the kind
    for readers.
    """

    kind: Literal["recurrent"] = "recurrent"
    family: Annotated[str, Field(min_length=1, max_length=40)]
    projections: tuple[Projection, ...] = ()
    convolution: Convolution | None = None
    heads: Whole = 0
    groups: Size | None = None
    key_dim: Whole = 0
    value_dim: Whole = 0
    parameters: Whole = 0
    norm: Whole = 0
    shared: bool = False
    extra: tuple[Piece, ...] = ()


class Pieces(Block):
    """A mixer or feed-forward of no common kind, operator by operator."""

    kind: Literal["pieces"] = "pieces"
    family: Annotated[str, Field(min_length=1, max_length=40)]
    extra: Annotated[tuple[Piece, ...], Field(min_length=1)]


class Dense(Block):
    """A feed-forward of ``size`` inner features; ``gated``: two projections up (SwiGLU, GeGLU), else one.

    ``down_bias`` None: as ``bias``.
    """

    kind: Literal["dense"] = "dense"
    size: Size
    gated: bool = True
    bias: bool = False
    down_bias: bool | None = None
    shared: bool = False
    extra: tuple[Piece, ...] = ()


class SharedExpert(Part):
    """Experts that every token passes through, as one feed-forward of ``size``; ``gate``: scaled by a learnt scalar."""

    size: Size
    gated: bool = True
    bias: bool = False
    gate: bool = False


class Experts(Block):
    """A mixture of experts: each token passes through ``active`` of ``count`` feed-forwards of ``size``.

    The router's ``score`` of an expert is its share of a softmax over all of them or a sigmoid of its own; results are
    weighed by the scores of the active ones, divided by their sum if they are ``normalized``.
    ``router_outputs`` counts more outputs than experts where some choices cost nothing (zero experts), and
    ``router_parameters`` what the router holds beside its matrix (a selection bias).
    """

    kind: Literal["experts"] = "experts"
    count: Size
    active: Size
    size: Size
    gated: bool = True
    bias: bool = False
    router: bool = True
    router_bias: bool = False
    router_outputs: Size | None = None
    router_parameters: Whole = 0
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalized: bool = True
    shared: SharedExpert | None = None
    extra: tuple[Piece, ...] = ()

    @model_validator(mode="after")
    def _active_exist(self) -> Self:
        if self.active > (self.router_outputs or self.count):
            raise ValueError(f"{self.active} experts cannot be active of {self.count}")
        return self


Mixer = Annotated[Attention | LatentAttention | Recurrent | Pieces, Field(discriminator="kind")]
FeedForward = Annotated[Dense | Experts | Pieces, Field(discriminator="kind")]


class Layer(Part):
    """``repeat`` layers alike, or with ``each`` a pattern of layers that repeats.

    ``norms`` counts the norms of the layer's width; by default one before each mixer and each feed-forward. ``width``
    and ``norm`` override the model's. Several mixers or feed-forwards may be given as a list.
    """

    repeat: Repeat = 1
    name: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    width: Size | None = None
    mixer: Annotated[tuple[Mixer, ...], BeforeValidator(_as_tuple)] = ()
    feed_forward: Annotated[tuple[FeedForward, ...], BeforeValidator(_as_tuple)] = ()
    norms: Annotated[int, Field(ge=0, le=64, strict=True)] | None = None
    norm: NormKind | None = None
    extra: tuple[Piece, ...] = ()
    each: tuple[Layer, ...] = ()

    @property
    def norm_count(self) -> int:
        """Return how many norms of the layer's width it has."""
        return len(self.mixer) + len(self.feed_forward) if self.norms is None else self.norms

    @model_serializer(mode="wrap")
    def _unwrap(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        single = {key: data[key][0] for key in ("mixer", "feed_forward") if len(data.get(key, ())) == 1}
        return data | single

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.each and (self.mixer or self.feed_forward or self.extra):
            raise ValueError("a run holds either a pattern (each) or a mixer and a feed-forward, not both")
        if any(layer.each for layer in self.each):
            raise ValueError("a pattern inside a pattern is not read; write the runs one after the other")
        return self


class Embedding(Part):
    """The stem. ``width`` is the table's, where a projection leads to the model's; ``rows`` its rows if more than the
    vocabulary; ``positions`` and ``types`` are rows of learnt position and token-type tables."""

    width: Size | None = None
    rows: Size | None = None
    positions: Whole = 0
    types: Whole = 0
    norm: NormKind | None = None
    projection: bool = False
    projection_bias: bool = False
    extra: tuple[Piece, ...] = ()


class Head(Part):
    """The end: final norm (None: as the model's), pieces, and the output projection, tied to the embedding or not."""

    tied: bool = False
    norm: NormKind | None = None
    bias: bool = False
    width: Size | None = None
    rows: Size | None = None
    extra: tuple[Piece, ...] = ()


class Prediction(Part):
    """Multi-token prediction: ``modules`` times a projection of two widths to one, a layer and norms.

    ``head`` and embedding are those of the main model (DeepSeek-V3, arXiv:2412.19437, section 2.2).
    """

    modules: Repeat = 1
    layer: Layer
    norms: Annotated[int, Field(ge=0, le=16, strict=True)] = 3
    projection: bool = True


class Encoder(Part):
    """A tower that reads images or sound. Its parameters are held; text tokens do not pass through it."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    width: Size
    norm: NormKind = "layer"
    layers: tuple[Layer, ...] = ()
    extra: tuple[Piece, ...] = ()


class Quantization(Part):
    """Weights stored in fewer bits. ``bits`` includes scales and zero points; ``scope`` says which matrices.

    ``linear``: every matrix of the layers, router excepted; ``experts``: routed experts only; ``all``: head too.
    ``keep`` lists operators (by the first part of their name) that stay at 16 bits.
    """

    method: Annotated[str, Field(min_length=1, max_length=60)]
    bits: Annotated[float, Field(gt=0, le=32)]
    scope: Literal["linear", "experts", "all"] = "linear"
    keep: tuple[str, ...] = ()
    expert_bits: Annotated[float, Field(gt=0, le=32)] | None = None
