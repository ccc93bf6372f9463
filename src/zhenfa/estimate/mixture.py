"""Experts inside a layer: grouped matmuls over uneven loads, permutation, dispatch and combine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zhenfa.estimate import kernels, streams
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.shape import Cost, Shape, alone
from zhenfa.estimate.traits import Traits
from zhenfa.laws import communication, compute
from zhenfa.laws.arrays import Array
from zhenfa.laws.expert_exchange import combine_time, dispatch_time
from zhenfa.laws.fabric import Fabric
from zhenfa.laws.overlap import exposed_time
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES


def copies(operator: Operator, shape: Shape) -> Array:
    """Return the copies of tokens that a card sends to experts in one micro-batch."""
    return shape.tokens / shape.tensor * operator.active_experts


def grouped(operator: Operator, shape: Shape, chip: Chip, traits: Traits) -> tuple[Cost, float]:
    """Return the cost of one matmul of the experts on a card, and how many kernels cast each way.

    Cards that split experts (``expert_tensor``) each work on the copies of all of them. The busiest card of the group
    sets the pace.
    """
    inside = np.maximum(operator.experts / shape.expert, 1.0)
    mean = copies(operator, shape) * shape.expert_tensor
    routed = mean * traits.expert_imbalance
    first = not operator.name.endswith("down")
    inputs = operator.inputs if first else operator.inputs / shape.expert_tensor
    outputs = operator.outputs / shape.expert_tensor if first else operator.outputs
    pace = 1 / traits.sustained(BYTES[chip.precision])
    forward = kernels.grouped_matmul(chip, routed, inside, inputs, outputs) * pace
    weight = kernels.matmul(chip, inputs, routed / inside, outputs, groups=inside) * pace
    through = kernels.grouped_matmul(chip, routed, inside, outputs, inputs) * pace
    cast = streams.casts(routed, inputs, outputs, chip, traits)
    added = streams.expert_bias(operator, kernels.ACTIVATION_BYTES, traits).times(routed / shape.expert_tensor)
    cast = cast if chip.emulated else cast.plus(added)
    sent, returned = cast.seconds(chip)
    ideal = 3 * compute.matmul_flops(mean, inputs, outputs) / chip.peak
    return Cost(
        forward + sent, through + weight + returned, ideal=ideal, weight=weight
    ), cast.kernels_forward  # fmt: skip


def exchange(routed: Sequence[Operator], shape: Shape, chip: Chip, fabric: Fabric, traits: Traits, layer: Cost) -> Cost:
    """Return the cost of bringing tokens to experts and back: router's choice, permutation, dispatch and combine.

    ``layer`` is what the other operators cost: what may hide the exchange, where the engine overlaps.
    """
    first, last = routed[0], routed[-1]
    sent = copies(first, shape)
    chain = streams.permutation(1.0, 1.0, streams.width(chip), traits).times(sent * first.inputs)
    picked = streams.routing(1.0, traits).times(shape.tokens / shape.tensor * first.experts)
    forward, backward = 0.0, 0.0  # type: Array, Array
    for part in (chain, picked):
        out, back = part.seconds(chip)
        forward, backward = forward + out, backward + back
    wire = _wire(first, last, shape, fabric, traits, streams.width(chip)) / traits.expert_pace
    wait = traits.expert_wait_s * (1 - traits.graphed)
    hidden = {"share": traits.expert_overlap, "contention": traits.contention}
    each = traits.host_s_per_kernel * (1 - traits.graphed)
    summed = _summed(first, shape, fabric, traits, streams.width(chip))
    return Cost(
        forward,
        backward,
        tensor_forward=summed,
        tensor_backward=summed,
        expert_forward=wait + (exposed_time(wire, layer.forward, **hidden) if traits.expert_overlap else wire),
        expert_backward=wait + (exposed_time(wire, layer.backward, **hidden) if traits.expert_overlap else wire),
        host_forward=each * (chain.kernels_forward + picked.kernels_forward + 2),
        host_backward=each * (chain.kernels_backward + picked.kernels_backward + 2),
    )


def _summed(first: Operator, shape: Shape, fabric: Fabric, traits: Traits, width: float) -> Array:
    """Return the seconds, each way, of a sum over the tensor-parallel cards that each hold all tokens: experts get a
    part of them from each card, or have a part of their features on each. Under sequence parallelism there is none."""
    if traits.sequence_parallel or alone(shape.tensor):
        return 0.0
    return communication.all_reduce_time(shape.tokens * first.inputs * width, shape.tensor, 1.0, fabric)


def _wire(first: Operator, last: Operator, shape: Shape, fabric: Fabric, traits: Traits, width: float) -> Array:
    """Return the seconds of one dispatch and one combine of activations of ``width`` bytes, whether hidden or not."""
    if alone(shape.expert) and alone(shape.expert_tensor):
        return 0.0
    busiest = traits.expert_imbalance
    stride = np.asarray(shape.expert_tensor, float)
    dispatched = traits.dispatch_bytes * width / kernels.ACTIVATION_BYTES
    if traits.expert_exchange == "forwarding":
        tokens = shape.tokens / shape.tensor * busiest
        count = float(first.experts)
        sent = dispatch_time(
            tokens, first.inputs, first.active_experts, shape.expert, stride, fabric,
            bytes_per_element=dispatched, experts=count,
        )  # fmt: skip
        back = combine_time(
            tokens, last.outputs, first.active_experts, shape.expert, stride, fabric, bytes_per_element=width,
            experts=count,
        )  # fmt: skip
        seconds = sent + back
    else:
        whole = 1.0 if traits.sequence_parallel else shape.expert_tensor  # cards that split experts send all tokens
        volume = copies(first, shape) * busiest * whole
        seconds = communication.all_to_all_time(
            volume * first.inputs * dispatched, shape.expert, stride, fabric
        ) + communication.all_to_all_time(volume * last.outputs * width, shape.expert, stride, fabric)
    if traits.sequence_parallel and np.any(np.greater(shape.expert_tensor, 1)):
        whole = copies(first, shape) * busiest * shape.expert_tensor * width
        seconds = (
            seconds
            + communication.all_gather_time(whole * first.inputs, shape.expert_tensor, 1.0, fabric)
            + communication.reduce_scatter_time(whole * last.outputs, shape.expert_tensor, 1.0, fabric)
        )
    return seconds
