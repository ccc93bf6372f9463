"""What a model computes, as operators: the form in which the laws and the planner see every architecture.

A model is a stem (token and position embeddings), a sequence of layers of a few kinds, and a head (final norm, output
projection). Each layer kind is a tuple of :class:`Operator`. Sizes are per token; the estimate multiplies by tokens,
divides by parallel degrees and asks the laws for time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

OperatorKind = Literal[
    "matmul",  # inputs -> outputs for every token
    "grouped_matmul",  # the same, `experts` times over, each token through `active_experts` of them
    "attention",  # scores and values over the context
    "scan",  # linear attention or state space: work linear in the context
    "convolution",  # short causal convolution over channels
    "norm",
    "elementwise",
    "embedding",  # table look-up
]

Shard = Literal[
    "none",  # replicated over the tensor-parallel group
    "column",  # outputs split
    "row",  # inputs split; the partial sums are reduced
    "heads",  # heads split
    "expert",  # experts split over the expert-parallel group
    "vocabulary",  # vocabulary split
]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a layer.

    ``parameters`` counts every element held, biases included (for ``grouped_matmul`` over all experts).
    ``inputs`` and ``outputs`` are features per token; for ``norm``, ``elementwise`` and ``convolution`` they are the
    elements read and written per token; for ``embedding``, ``inputs`` is the number of rows.
    For ``attention``: ``heads`` query heads, ``kv_heads`` cached heads, ``key_dim`` and ``value_dim`` per head,
    ``window`` tokens seen at most (None: all), ``causal``, and ``cache`` elements kept per token over all heads;
    ``latent`` features of a cached latent that stands for keys and values (MLA; 0 elsewhere), which a decode step may
    attend to directly, at ``latent`` instead of ``key_dim`` and ``value_dim`` (arXiv:2405.04434, section 2.1.2).
    For ``scan``: ``heads`` states of ``key_dim`` by ``value_dim``; ``state`` elements kept per sequence.
    For ``convolution``: ``state`` elements kept per sequence. ``bits`` per weight as stored (16 unless quantised).
    """

    name: str
    kind: OperatorKind
    parameters: int = 0
    inputs: int = 0
    outputs: int = 0
    shard: Shard = "none"
    experts: int = 1
    active_experts: int = 1
    heads: int = 0
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int | None = None
    causal: bool = True
    cache: int = 0
    state: int = 0
    bits: float = 16.0
    latent: int = 0

    @property
    def active_parameters(self) -> int:
        """Return the parameters that one token passes through."""
        if self.kind == "grouped_matmul":
            return self.parameters * self.active_experts // self.experts
        return self.parameters

    def matmul_flops_per_token(self) -> float:
        """Return FLOPs of one token's forward pass, 2 per multiply-add, attention and scan left to the laws."""
        if self.kind == "matmul":
            return 2.0 * self.inputs * self.outputs
        if self.kind == "grouped_matmul":
            return 2.0 * self.inputs * self.outputs * self.active_experts
        return 0.0


@dataclass(frozen=True, slots=True)
class LayerKind:
    """A kind of layer, and the operators of one layer of it, in order."""

    name: str
    operators: tuple[Operator, ...]

    @property
    def parameters(self) -> int:
        """Return the parameters of one layer."""
        return sum(operator.parameters for operator in self.operators)

    @property
    def active_parameters(self) -> int:
        """Return the parameters of one layer that one token passes through."""
        return sum(operator.active_parameters for operator in self.operators)


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model as operators.

    ``layers[i]`` is the index into ``kinds`` of layer ``i``. ``stem`` runs before the first layer, ``head`` after the
    last, ``extra`` (multi-token prediction modules) after the head in training only. ``tied`` says that the output
    projection of ``head`` uses the stem's embedding table; its operator then has no parameters of its own. Layers that
    use another layer's weights are likewise of a kind without parameters. ``encoders`` are towers that read images or
    sound: their parameters are held, but no text token passes through them.
    """

    name: str
    hidden: int
    vocabulary: int
    stem: tuple[Operator, ...]
    kinds: tuple[LayerKind, ...]
    layers: tuple[int, ...]
    head: tuple[Operator, ...]
    extra: tuple[Operator, ...] = ()
    tied: bool = False
    encoders: tuple[Operator, ...] = ()

    @property
    def parameters(self) -> int:
        """Return all parameters of the main model, encoders included; ``extra`` is counted apart."""
        ends = sum(operator.parameters for operator in (*self.stem, *self.head, *self.encoders))
        return ends + sum(count * self.kinds[kind].parameters for kind, count in Counter(self.layers).items())

    @property
    def extra_parameters(self) -> int:
        """Return the parameters of the multi-token prediction modules."""
        return sum(operator.parameters for operator in self.extra)

    @property
    def active_parameters(self) -> int:
        """Return the parameters that one token passes through."""
        ends = sum(operator.active_parameters for operator in (*self.stem, *self.head))
        return ends + sum(self.kinds[kind].active_parameters for kind in self.layers)
