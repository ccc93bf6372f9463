"""What one layer costs on one card: seconds forward and backward, and communication as far as it is exposed.

Every function takes a :class:`Shape` whose fields are floats or arrays over candidates, and returns the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from zhenfa.estimate import kernels, mixture, streams
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.scores import attention_cost
from zhenfa.estimate.shape import ZERO, Cost, Shape, alone, total
from zhenfa.estimate.traits import Traits
from zhenfa.laws import communication, compute
from zhenfa.laws.arrays import Array
from zhenfa.laws.fabric import Fabric
from zhenfa.laws.overlap import exposed_time
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES

__all__ = ["ZERO", "Card", "Cost", "Shape", "layer_cost", "total"]

KERNELS = {"matmul": (1.0, 2.0), "scan": (4.0, 8.0)}
"""Kernels forward and backward of one operator."""

ACCUMULATED_APART = 6.0
"""Bytes per weight beyond the matmul's own, where its gradient is added to a 32-bit sum by another kernel."""


class Card(NamedTuple):
    """A card with its fabric and the engine on it. ``wide`` is the chip in 16 bits, where ``chip`` works in fewer."""

    chip: Chip
    wide: Chip
    fabric: Fabric
    traits: Traits
    adapter: float = 0.0
    """Rank of the adapters that alone are trained (0: all weights are)."""


def layer_cost(operators: Sequence[Operator], shape: Shape, card: Card) -> Cost:
    """Return the cost of a sequence of operators.

    Counts: every operator's arithmetic or memory traffic, whichever is longer, and its launch; element-wise chains as
    the engine fuses them; casts to low precision; stored scores where attention is not fused; what the collectives of
    tensor, context and expert parallelism take beyond the arithmetic that hides them; host time per kernel. Omits
    jitter, and waits of cards for each other.
    """
    parts = [(operator, operator_cost(operator, shape, card)) for operator in operators]
    found = total(cost for _, cost in parts)
    routed = [operator for operator in operators if operator.kind == "grouped_matmul"]
    if routed:
        found = found.plus(mixture.exchange(routed, shape, card.wide, card.fabric, card.traits, found))
    if card.traits.recompute_stops_early:
        found = found.but(last=_last(parts))
    return found


def _last(parts: Sequence[tuple[Operator, Cost]]) -> Array:
    for operator, cost in reversed(parts):
        if operator.kind in {"matmul", "grouped_matmul"}:
            return cost.forward + cost.tensor_forward
    return 0.0


def operator_cost(operator: Operator, shape: Shape, card: Card) -> Cost:
    """Return the cost of one operator; what experts exchange belongs to the layer."""
    found = _lawful(operator, shape, card)
    times = card.chip.learned
    return found if times == 1 else found.but(**{name: times * getattr(found, name) for name in LEARNED})


LEARNED: Final = ("forward", "backward", "light_forward", "weight", "host_forward", "host_backward")
"""Seconds that what runs have taught of a card's passes multiplies."""


def _lawful(operator: Operator, shape: Shape, card: Card) -> Cost:
    match operator.kind:
        case "matmul":
            return _matmul(operator, shape, card)
        case "grouped_matmul":
            cost, casts = mixture.grouped(operator, shape, card.chip, card.traits)
            return _hosted(cost, card, 1.0 + casts, 2.0 + casts)
        case "attention":
            ideal = _attention_ideal(operator, shape, card)
            return attention_cost(operator, shape, card.wide, card.fabric, card.traits, ideal)
        case "scan":
            return _scan(operator, shape, card)
        case _:
            return _streaming(operator, shape, card)


def _hosted(cost: Cost, card: Card, forward: float, backward: float) -> Cost:
    """Add the host's time for so many kernels; on a processor, that of automatic differentiation."""
    if card.chip.processor is not None:
        cost = cost.but(backward=cost.backward + card.chip.processor.autograd * backward)
    each = card.traits.host_s_per_kernel * (1 - card.traits.graphed)
    return cost.but(host_forward=each * forward, host_backward=each * backward) if each else cost


def _attention_ideal(operator: Operator, shape: Shape, card: Card) -> Array:
    window = float("inf") if operator.window is None else operator.window
    work = compute.attention_flops(
        shape.sequence, shape.sequence, operator.heads / shape.tensor, operator.key_dim, operator.value_dim,
        causal=operator.causal, window=window,
    )  # fmt: skip
    return 3 * shape.sequences * work / shape.context / card.chip.peak


def chip_of(operator: Operator, card: Card) -> Chip:
    """Return the chip in the precision in which a matmul runs: routers, and as a rule the logits, stay in 16 bits."""
    if operator.name.endswith("router"):
        return card.wide
    return card.wide if operator.shard == "vocabulary" and not card.traits.low_precision_head else card.chip


def matmul_sizes(operator: Operator, shape: Shape, traits: Traits) -> tuple[Array, Array, Array]:
    """Return the rows, inputs and outputs of one card's part of a matmul.

    A matmul that is not split runs on each card's own part of the sequence.
    """
    whole = operator.shard != "none" or not traits.sequence_parallel
    rows = shape.tokens if whole else shape.tokens / shape.tensor
    split_outputs = operator.shard in {"column", "vocabulary", "heads"}
    inputs = operator.inputs / shape.tensor if operator.shard == "row" else operator.inputs
    outputs = operator.outputs / shape.tensor if split_outputs else operator.outputs
    return rows, inputs, outputs


def _matmul(operator: Operator, shape: Shape, card: Card) -> Cost:
    traits, chip = card.traits, chip_of(operator, card)
    rows, inputs, outputs = matmul_sizes(operator, shape, traits)
    pace = traits.sustained(BYTES[chip.precision])
    forward = kernels.matmul(chip, rows, inputs, outputs) / pace
    through = kernels.matmul(chip, rows, outputs, inputs) / pace
    weight, adapted = _weight_pass(operator, rows, inputs, outputs, chip, card)
    cast = streams.casts(rows, inputs, outputs, chip, traits)
    if operator.parameters:
        cast = cast.plus(streams.weight_casts(inputs * outputs, traits))
    cast_forward, cast_backward = cast.seconds(chip)
    back = through + weight
    sent, returned = _reduced(operator, shape, card, forward, back)
    cost = Cost(
        forward + cast_forward + adapted,
        back + cast_backward + 2 * adapted,
        tensor_forward=0.0 if operator.shard == "vocabulary" else sent,  # the output projection reduces going back
        tensor_backward=returned,
        ideal=3 * compute.matmul_flops(rows, inputs, outputs) / card.chip.peak,
        weight=weight,
    )
    if operator.shard == "vocabulary":
        chain = streams.loss(1.0, streams.width(card.wide), traits).times(rows * outputs)
        chain = chain.paced(card.wide, "cross-entropy")
        lost, regained = chain.seconds(card.wide)
        cost = cost.but(forward=cost.forward + lost, backward=cost.backward + regained)
        return _hosted(cost, card, 1.0 + chain.kernels_forward, 2.0 + chain.kernels_backward)
    return _hosted(cost, card, 1.0 + cast.kernels_forward, 2.0 + cast.kernels_backward)


def _weight_pass(
    operator: Operator, rows: Array, inputs: Array, outputs: Array, chip: Chip, card: Card
) -> tuple[Array, Array]:
    """Return the seconds of the weight's gradient, and of an adapter's forward pass where only those are trained."""
    if card.adapter:
        only = card.traits.adapted
        if operator.shard == "vocabulary" or (only and operator.name not in only):
            return 0.0, 0.0
        adapted = kernels.matmul(card.wide, rows, inputs, card.adapter) + kernels.matmul(
            card.wide, rows, card.adapter, outputs
        )
        return 0.0, adapted
    seconds = kernels.matmul(chip, inputs, rows, outputs) / card.traits.sustained(BYTES[chip.precision])
    if "optimizer" not in card.traits.fused and not chip.emulated:
        seconds = seconds + kernels.stream(chip, ACCUMULATED_APART * inputs * outputs)
    return seconds, 0.0


def _reduced(operator: Operator, shape: Shape, card: Card, forward: Array, backward: Array) -> tuple[Array, Array]:
    """Return the exposed seconds of a split operator's collective, forward and backward.

    Under sequence parallelism the sum is a reduce-scatter behind the operator and an all-gather before the next.
    """
    if operator.shard not in {"row", "vocabulary"} or alone(shape.tensor):
        return 0.0, 0.0
    traits, fabric = card.traits, card.fabric
    features = operator.inputs if operator.shard == "vocabulary" and operator.kind == "matmul" else operator.outputs
    volume = shape.tokens * features * max(BYTES[card.chip.precision], 2.0)
    if traits.sequence_parallel:
        seconds = communication.reduce_scatter_time(volume, shape.tensor, 1.0, fabric)
        seconds = seconds + communication.all_gather_time(volume, shape.tensor, 1.0, fabric)
    else:
        seconds = communication.all_reduce_time(volume, shape.tensor, 1.0, fabric)
    if not traits.tensor_overlap:
        return seconds, seconds
    domain = fabric.sizes[fabric.outermost[0]]  # the kernels that overlap write into their peers' memory
    hidden = {
        "share": traits.tensor_overlap * np.less_equal(shape.tensor, domain), "contention": traits.contention
    }  # fmt: skip
    return exposed_time(seconds, forward, **hidden), exposed_time(seconds, backward, **hidden)


def _scan(operator: Operator, shape: Shape, card: Card) -> Cost:
    heads = operator.heads / shape.tensor
    forward = kernels.scan(
        card.wide, shape.tokens, heads, operator.key_dim, operator.value_dim, sequences=shape.sequences
    )
    work = compute.scan_flops(shape.tokens, heads, operator.key_dim, operator.value_dim)
    cost = Cost(forward, 2 * forward, ideal=3 * work / card.chip.peak)
    return _hosted(cost, card, *KERNELS["scan"])


def _streaming(operator: Operator, shape: Shape, card: Card) -> Cost:
    traits, chip = card.traits, card.wide
    split = shape.tensor if traits.sequence_parallel or operator.shard != "none" else 1.0
    if operator.kind == "embedding":
        split = 1.0 if operator.shard == "vocabulary" else split
    chain = streams.chain_of(operator, streams.width(chip), traits, chip).times(shape.tokens / split)
    if operator.shard == "expert":
        chain = chain.times(traits.expert_imbalance)
    forward, backward = chain.seconds(chip)
    cost = Cost(forward, backward, light_forward=0.0 if operator.kind == "embedding" else forward)
    if operator.kind == "embedding":
        sent, _ = _reduced(operator, shape, card, forward, backward)
        cost = cost.but(tensor_forward=sent)
    return _hosted(cost, card, chain.kernels_forward, chain.kernels_backward)
