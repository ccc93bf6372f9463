"""What a card holds: weights, gradients, optimizer state and the activations of micro-batches in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zhenfa.estimate.shape import Shape
from zhenfa.estimate.streams import MASK_BYTES, adds
from zhenfa.estimate.traits import MEGATRON_LIKE, Traits
from zhenfa.laws import memory
from zhenfa.laws.arrays import Array
from zhenfa.laws.memory import LOGSUMEXP_BYTES
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES, Precision

NORM_BYTES = 4.0
"""Bytes per element that a norm in elementary operations keeps beyond a fused one: in 16 bits the input widened to 32
(in place of the stream) and the normalised one; in 32 bits the latter."""

LOGIT_BYTES = 4.0
"""Bytes per logit: the loss is computed in 32 bits (korthikanti2022, section 4.3)."""

MASTER_BYTES: Final = 4.0
"""Bytes of a weight that is updated in 32 bits."""


@dataclass(frozen=True)
class Sharding:
    """Who shares out the state. ``group`` cards at most (None: all that hold the same); ``adapter``: only adapters of
    this rank are trained (0: all weights); ``offload``: the optimizer's state lies in host memory; ``whole``: gathered
    weights stay until the step ends; ``late``: gradients are summed once a step, until when each card holds its own,
    whole."""

    zero: Array = 0
    group: Array | None = None
    adapter: float = 0.0
    offload: bool = False
    whole: bool = False
    late: bool = False

    def over(self, peers: Array) -> Array:
        """Return over how many of ``peers`` cards the state is shared out."""
        return peers if self.group is None else np.minimum(peers, self.group)


@dataclass(frozen=True)
class Holding:
    """Bytes on one card. ``activation`` is of one micro-batch; ``shared`` counts elements held whose gradients are
    summed over all replicas and ``routed`` those of experts; ``trained`` and ``trained_routed`` those of them that are
    trained."""

    weights: Array
    gradients: Array
    optimizer: Array
    activation: Array
    shared: Array
    routed: Array
    trained: Array = 0.0
    trained_routed: Array = 0.0

    @property
    def state(self) -> Array:
        """Return the bytes held whatever the micro-batches do."""
        return self.weights + self.gradients + self.optimizer

    def times(self, count: Array) -> Holding:
        """Return what so many of it hold."""
        return Holding(*(getattr(self, name) * count for name in self.__dataclass_fields__))

    def plus(self, other: Holding) -> Holding:
        """Return the sum of two holdings."""
        return Holding(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


EMPTY = Holding(*(0.0,) * 8)

Again = Callable[[Operator], bool] | None
"""Which operators' outputs selective recomputation brings back (None: norms and activation functions)."""


def holding(
    operators: Sequence[Operator],
    shape: Shape,
    precision: Precision,
    sharding: Sharding | Array,
    recompute: Array,
    traits: Traits,
    hidden: int,
    again: Again = None,
) -> Holding:
    """Return what a sequence of operators makes one card hold.

    ``sharding`` may be a ZeRO stage alone.
    ``recompute`` is 0 (none), 1 (selective: outputs of norms and activation functions, or of the operators that
    ``again`` names, are computed again) or 2 (full: only the layer's input is kept). Counts what the backward pass
    reads, each tensor once, at its producer, two bytes an element (four in fp32; one where a matmul reads it in 8
    bits): matmul inputs and outputs, the residual stream, queries, keys, values and the output of attention, the inputs
    of experts once per copy, logits in 32 bits, and where the engine stores them scores and dropout masks. The output
    of a row-split matmul is added to the stream and not kept. Flash attention never stores its scores, only one 32-bit
    number per query and head. Agrees with :func:`zhenfa.laws.memory.layer_activation_bytes`. Omits copies of keys that
    rotary or latent attention puts together.
    """
    sharding = _sharding(sharding)
    shared = sum(_elements(operator, shape) for operator in operators if operator.shard != "expert") + 0.0
    routed = sum(_elements(operator, shape) for operator in operators if operator.shard == "expert") + 0.0
    trained, trained_routed = shared, routed
    if sharding.adapter:
        trained = sum(_adapter(operator, shape, sharding.adapter) for operator in operators) + 0.0
        trained_routed = 0.0 * routed
    wide = 4.0 if precision in {"fp32", "tf32"} else 2.0
    parts = [
        _state(held, learnt, peers, wide, BYTES[precision], sharding, traits)
        for held, learnt, peers in ((shared, trained, shape.peers), (routed, trained_routed, shape.expert_peers))
    ]
    weights, gradients, optimizer = (parts[0][part] + parts[1][part] for part in range(3))
    if sharding.offload:
        optimizer = 0.0 * optimizer
        gradients = gradients * (0.0 if traits.offloads_gradients else 1.0)
    activation = _saved(operators, shape, _Widths.of(precision, shape, traits), recompute, hidden, again)
    return Holding(
        weights, gradients, optimizer, activation * traits.activation_slack, shared, routed, trained, trained_routed
    )


def _sharding(given: Sharding | Array) -> Sharding:
    return given if isinstance(given, Sharding) else Sharding(given)


def _state(
    held: Array, learnt: Array, peers: Array, wide: float, stored: float, sharding: Sharding, traits: Traits
) -> tuple[Array, Array, Array]:
    copy = stored if traits.low_precision_weights and stored < wide else 0.0
    over = sharding.over(peers)
    only = 4.0 if traits.wide_weights else wide
    weights, gradients, optimizer = memory.training_state_bytes(
        held, zero=sharding.zero, data_parallel=over, weight_bytes=only, gradient_bytes=traits.gradient_bytes,
        optimizer_bytes=8.0 if only == 4.0 else 12.0,
    )  # fmt: skip
    if traits.masters_whole and wide < MASTER_BYTES:
        optimizer = optimizer + MASTER_BYTES * held * np.where(np.equal(sharding.zero, 1), 1.0 - 1.0 / over, 0.0)
    if sharding.adapter:
        _, gradients, optimizer = memory.training_state_bytes(
            learnt, zero=sharding.zero, data_parallel=over, gradient_bytes=traits.gradient_bytes
        )
        weights = weights + wide * learnt
    return weights + copy * held, gradients, optimizer


def _adapter(operator: Operator, shape: Shape, rank: float) -> Array:
    """Return the adapter's elements on a matmul of the layers."""
    if operator.kind != "matmul" or operator.shard in {"vocabulary"} or operator.name.endswith("router"):
        return 0.0
    inputs = operator.inputs / shape.tensor if operator.shard == "row" else operator.inputs
    outputs = operator.outputs / shape.tensor if operator.shard in {"column", "heads"} else operator.outputs
    return rank * (inputs + outputs)


def _elements(operator: Operator, shape: Shape) -> Array:
    match operator.shard:
        case "none":
            return float(operator.parameters)
        case "expert":
            return operator.parameters / (shape.expert * shape.expert_tensor)
        case _:
            return operator.parameters / shape.tensor


@dataclass(frozen=True)
class _Widths:
    """Bytes of an element kept: ``size`` as a rule, ``read`` where only a matmul in few bits reads it again;
    ``scores`` bytes kept per query, head and position attended to; ``mask`` bytes of a dropout mask and ``stream``
    bytes of the residual stream per element; ``split``: sequence parallelism splits what tensor parallelism does not;
    ``logits``: the share of them that is ever whole; ``norm`` bytes that a norm keeps of each element beside its output
    and the stream; ``gate`` those that a gated activation keeps of the activated gate; ``gathered``: what a norm hands
    to a column-split matmul is kept whole."""

    size: float
    read: float
    scores: float
    mask: float
    stream: float
    sequence: float
    split: bool
    logits: float
    norm: float = 0.0
    gate: float = 0.0
    gathered: bool = False

    @classmethod
    def of(cls, precision: Precision, shape: Shape, traits: Traits) -> _Widths:
        size = max(BYTES[precision], 2.0)
        read = BYTES[precision] if BYTES[precision] < size else size
        stored = size + (size + MASK_BYTES if traits.dropout else 0.0) if traits.attention == "unfused" else 0.0
        return cls(
            size, read, stored, MASK_BYTES if traits.dropout else 0.0, 4.0 if traits.autocast else size, shape.sequence,
            traits.sequence_parallel, 0.0 if "logits" in traits.fused else 1.0,
            0.0 if "norm" in traits.fused | traits.lean else NORM_BYTES,
            0.0 if "activation" in traits.fused | traits.lean else size,
            traits.gathers_kept,
        )  # fmt: skip


def _saved(
    operators: Sequence[Operator], shape: Shape, widths: _Widths, recompute: Array, hidden: int, again: Again
) -> Array:
    heavy, light = _kept(operators, shape, widths, again)
    whole = hidden * widths.stream / (shape.tensor if widths.split else 1.0)
    per_token = np.select([np.equal(recompute, 0), np.equal(recompute, 1)], [heavy + light, heavy], whole)
    return shape.tokens * per_token


def _kept(operators: Sequence[Operator], shape: Shape, widths: _Widths, again: Again = None) -> tuple[Array, Array]:
    """Return the bytes per token that no operator computed again can bring back, and those that one can.

    What tensor parallelism does not split, every card of the group keeps, unless sequence parallelism does.
    """
    heavy: Array = 0.0
    light: Array = 0.0
    for operator in operators:
        kept: Array = _bytes_kept(operator, widths)
        if operator.shard != "none" or (widths.split and not (widths.gathered and operator.kind == "norm")):
            kept = kept / shape.tensor
        cheap = operator.kind == "norm" or (operator.kind == "elementwise" and not adds(operator))
        if not (cheap if again is None else again(operator)):
            heavy = heavy + kept
        elif operator.kind == "attention":  # its output is the next matmul's input; only what is inside comes back
            output = operator.heads * operator.value_dim * widths.size / shape.tensor
            heavy, light = heavy + output, light + kept - output
        else:
            light = light + kept
    return heavy, light


def _bytes_kept(operator: Operator, widths: _Widths) -> float:
    """Return the bytes per token that one operator leaves for the backward pass."""
    size = widths.size
    match operator.kind:
        case "norm":
            return operator.outputs * (widths.read + widths.norm)
        case "elementwise" if adds(operator):
            return operator.outputs * (widths.stream + widths.mask)
        case "elementwise":
            gated = operator.inputs > operator.outputs
            return operator.outputs * (widths.read + (widths.gate if gated else 0.0))
        case "attention":
            scores = widths.scores * widths.sequence if widths.scores else LOGSUMEXP_BYTES
            return operator.heads * (operator.value_dim * size + scores)
        case "scan":
            return operator.heads * operator.value_dim * size
        case "grouped_matmul":
            return operator.outputs * size * operator.active_experts
        case "matmul" if operator.shard == "row":
            return 0.0
        case "matmul" if operator.shard == "vocabulary":
            return operator.outputs * max(size, LOGIT_BYTES) * widths.logits
        case _:
            return operator.outputs * size


def working_set(
    operators: Sequence[Operator],
    shape: Shape,
    precision: Precision,
    recompute: Array,
    traits: Traits = MEGATRON_LIKE,
    again: Again = None,
) -> Array:
    """Return the bytes held only while a layer is at work: its activations while they are computed again (none without
    recomputation), the gradients of its widest operator, the gradient of the logits in the head."""
    widths = _Widths.of(precision, shape, traits)
    heavy, light = _kept(operators, shape, widths, again)
    needed = np.select([np.equal(recompute, 0), np.equal(recompute, 1)], [0.0 * light, light], heavy + light)
    passing = _widest(operators, shape, widths) if traits.passing else 0.0
    return shape.tokens * (needed + passing + _loss(operators, shape, widths, traits))


def _widest(operators: Sequence[Operator], shape: Shape, widths: _Widths) -> Array:
    """Return the bytes per token of the gradients around one operator: those of an activation function's inputs and
    output, or of stored scores before and after the softmax."""
    most: Array = 0.0
    for operator in operators:
        if operator.kind == "elementwise" and not adds(operator):
            split = shape.tensor if widths.split or operator.shard != "none" else 1.0
            most = np.maximum(most, (operator.inputs + operator.outputs) * widths.size / split)
        elif operator.kind == "attention" and widths.scores:
            most = np.maximum(most, 2 * widths.size * operator.heads * widths.sequence / shape.tensor)
    return most


def _loss(operators: Sequence[Operator], shape: Shape, widths: _Widths, traits: Traits) -> Array:
    """Return the bytes per token that the gradient of the loss takes beside the logits, of one projection at a time."""
    each: Array | None = traits.loss_bytes
    if each is None:
        each = widths.size if "cross-entropy" in traits.fused else 2 * widths.size + LOGIT_BYTES
    each = each + np.where(np.greater(shape.tensor, 1), traits.loss_split_bytes, 0.0)
    logits = [one.outputs for one in operators if one.kind == "matmul" and one.shard == "vocabulary"]
    return max(logits, default=0) * each * widths.logits / shape.tensor


def gathered(held: Holding, precision: Precision, sharding: Sharding | Array, traits: Traits = MEGATRON_LIKE) -> Array:
    """Return the bytes of whole weights that ZeRO-3 holds while it computes: this layer's and the next one's, and this
    layer's gradients, as they are computed and as they are sent."""
    sharding = _sharding(sharding)
    wide = 4.0 if precision in {"fp32", "tf32"} else 2.0
    sent = traits.gradient_bytes if traits.reduced_bytes is None else traits.reduced_bytes
    gradients = wide + (sent if sent != wide else 0.0)
    each = (0.0 if sharding.whole else 2 * wide) + gradients
    return np.where(np.equal(sharding.zero, 3), each * (held.shared + held.routed), 0.0)


def buffered(held: Holding, precision: Precision, sharding: Sharding | Array, traits: Traits) -> Array:
    """Return the bytes that an engine's buffers take for a card's whole share: gradients that wait to be reduced, and
    under ZeRO-3 weights kept gathered beyond those at work."""
    sharding = _sharding(sharding)
    if not traits.bucket_elements and not traits.live_elements:
        return 0.0
    wide = 4.0 if precision in {"fp32", "tf32"} else 2.0
    whole = held.shared + held.routed
    bucket = np.where(np.greater(sharding.zero, 0), np.minimum(whole, traits.bucket_elements), 0.0)
    live = np.where(np.equal(sharding.zero, 3), np.minimum(whole, traits.live_elements), 0.0)
    return wide * (bucket + live)


def held_whole(held: Holding, precision: Precision, sharding: Sharding, traits: Traits) -> Holding:
    """Return a holding whose weights are whole where gathered ones stay for the step, and whose gradients are where
    replicas that share them out (ZeRO-2 and 3) sum them at the end of the step alone."""
    if sharding.whole and np.any(np.equal(sharding.zero, 3)):
        wide = 4.0 if precision in {"fp32", "tf32"} else 2.0
        held = replace(held, weights=held.weights + wide * (held.shared + held.routed))
    if sharding.late and np.any(np.greater_equal(sharding.zero, 2)):
        own = traits.gradient_bytes * (held.trained + held.trained_routed)
        held = replace(held, gradients=held.gradients + np.where(np.greater_equal(sharding.zero, 2), own, 0.0))
    return held
