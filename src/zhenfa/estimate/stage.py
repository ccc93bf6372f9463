"""One stage of a plan: its building blocks, what they cost, and what they make a card hold together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from zhenfa.estimate import offload
from zhenfa.estimate.costs import SUMMED, StageCost
from zhenfa.estimate.holding import Holding, buffered
from zhenfa.estimate.reduction import Exchange, Terms, exchange
from zhenfa.estimate.setting import RECOMPUTE, Cut, Setting, Unit, Units
from zhenfa.estimate.shape import Shape
from zhenfa.estimate.traits import Traits
from zhenfa.laws import compute
from zhenfa.laws.arrays import Array
from zhenfa.laws.overlap import exposed_time
from zhenfa.spec.plan import Plan, Stage

OPTIMIZER_BYTES = 30.0
"""Bytes read and written per parameter by mixed-precision AdamW: gradient 4, master, m and v 12 read and 12 written,
weight 2 written."""

OPTIMIZER_BYTES_FP32 = 28.0
"""The same in fp32: gradient, weight, m and v read (16); weight, m and v written (12)."""

Key = tuple[object, ...]


def key_of(setting: Setting, stages: tuple[Stage, ...], index: int) -> Key:
    """Return what makes two stages of a group cost the same, but for what is in flight and the way to the next."""
    stage = stages[index]
    layers = setting.graph.layers[stage.first : stage.last]
    ends = (index == 0, index == len(stages) - 1)
    again = (stage.recompute, stage.recompute_layers, stage.recompute_modules, stage.offload_layers)
    return (stage.cut, again, layers, ends)


def units_of_stage(setting: Setting, stage: Stage, size: int, replicas: int, zero: int, mode: int) -> Units:
    """Return the building blocks of one stage in one recomputation mode."""
    return setting.units_of(
        Cut(
            stage.pool, size // stage.data_parallel, stage.tensor_parallel, stage.expert_parallel,
            replicas * stage.data_parallel, zero, mode, stage.context_parallel, stage.expert_tensor_parallel,
            stage.recompute_modules if RECOMPUTE[mode] == "selective" else (),
        )
    )  # fmt: skip


def shape_of_stage(stage: Stage, size: int, length: int, replicas: int) -> Shape:
    """Return how one stage is cut, with micro-batches of ``size`` sequences to a replica."""
    return Shape(
        float(size // stage.data_parallel), float(length), float(stage.tensor_parallel), float(stage.expert_parallel),
        float(replicas * stage.data_parallel), float(stage.context_parallel), float(stage.expert_tensor_parallel),
    )  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """The building blocks of a stage with how many of each, and what they make a card hold together.

    One stage, or one stage of every candidate: ``shape`` and what rests on it are floats or arrays. ``offloaded``: the
    share of its layers whose activations go to host memory where the plan offloads them.
    """

    pool: str
    shape: Shape
    blocks: list[tuple[Unit, Array]]
    layers: Array
    held: Holding
    working: Array
    cached: Array
    """Bytes of the other working sets: of layers where the head's is the largest, or the other way round."""
    offloaded: Array = 1.0

    @classmethod
    def of(
        cls, plan: Plan, setting: Setting, stages: tuple[Stage, ...], index: int, size: int, replicas: int
    ) -> Blocks:
        """Look up the blocks of one stage."""
        stage = stages[index]
        layers = setting.graph.layers[stage.first : stage.last]
        again = stage.recomputed_layers
        parts = [(layers[:again], RECOMPUTE.index(stage.recompute)), (layers[again:], 0)]
        blocks: list[tuple[Unit, Array]] = []
        for part, mode in parts:
            if part:
                built = units_of_stage(setting, stage, size, replicas, plan.zero, mode)
                blocks += [(unit, part.count(kind)) for kind, unit in enumerate(built.kinds) if kind in part]
        if index == 0 or index == len(stages) - 1:
            ends = units_of_stage(setting, stage, size, replicas, plan.zero, 0)
            blocks += [(ends.stem, 1)] * (index == 0) + [(ends.head, 1)] * (index == len(stages) - 1)
        shape = shape_of_stage(stage, size, plan.sequence_length, replicas)
        held = max(stage.layers, 1)
        offloaded = min(held if stage.offload_layers is None else stage.offload_layers, held) / held
        return cls.made(stage.pool, shape, blocks, held, head=index == len(stages) - 1, offloaded=offloaded)

    @classmethod
    def made(
        cls,
        pool: str,
        shape: Shape,
        blocks: list[tuple[Unit, Array]],
        layers: Array,
        *,
        head: bool,
        offloaded: Array = 1.0,
    ) -> Blocks:
        """Put blocks together; ``head``: the last of them is the head."""
        names = Holding.__dataclass_fields__
        sums = (sum(getattr(unit.holding, name) * count for unit, count in blocks) for name in names)
        last = blocks[-1:] if head else []
        body, end = _largest(blocks[: -len(last) or None]), _largest(last)
        held = Holding(*(one + 0.0 for one in sums))
        return cls(pool, shape, blocks, layers, held, np.maximum(body, end), np.minimum(body, end), offloaded)

    def sum(self, part: Callable[[Unit], Array]) -> Array:
        """Return the sum of one part over the blocks."""
        return sum(part(unit) * count for unit, count in self.blocks) + 0.0


def _largest(blocks: list[tuple[Unit, Array]]) -> Array:
    """Return the bytes of the largest working set of the blocks of which there are any."""
    largest: Array = 0.0
    for unit, count in blocks:
        largest = np.maximum(largest, np.where(np.greater(count, 0), unit.working, 0.0))
    return largest


@dataclass(frozen=True)
class Parts:
    """What one stage costs and holds, wherever it stands in the pipeline: the fields of :class:`StageCost`, each a
    float or an array over candidates."""

    forward: Array
    backward: Array
    weight: Array
    arithmetic: Array
    recomputed: Array
    tensor: Array
    expert: Array
    context: Array
    waited: Array
    ideal: Array
    reduce: Array
    gather: Array
    across: Array
    optimizer: Array
    memory: dict[str, Array]
    activation: Array
    working: Array
    cached: Array


def parts_of(terms: Terms, setting: Setting, blocks: Blocks, owners: int = 1) -> Parts:
    """Return what a stage costs and holds. ``owners`` groups of pipelines share the model."""
    held, shape = blocks.held, blocks.shape
    once = exchange(terms, setting, blocks.pool, shape, held, owners)
    each: list[Exchange] = []
    if terms.gathers or terms.every_reduce:
        each = [exchange(terms, setting, blocks.pool, shape, unit.holding, 1) for unit, _ in blocks.blocks]
    ahead, behind, reduce, gather = _beside_passes(terms, setting, blocks, once, each)
    cost = _passes(blocks)
    forward, backward = cost["forward"] + ahead, cost["backward"] + behind
    moved = held.activation * blocks.offloaded if terms.offload in ("activations", "both") else 0.0
    seconds, kept = offload.activations(setting, held.activation, moved, forward, backward)
    waiting = buffered(held, terms.precision, replace(setting.sharding, zero=terms.zero), setting.traits)
    memory = {
        "weights": held.weights, "gradients": held.gradients, "optimizer": held.optimizer,
        "activations": blocks.working,
    } | ({"buffers": waiting} if np.any(waiting) else {})  # fmt: skip
    return Parts(
        forward=forward + seconds[0], backward=backward + seconds[1], weight=cost["weight"],
        arithmetic=cost["arithmetic"], recomputed=cost["recomputed"], tensor=cost["tensor"], expert=cost["expert"],
        context=cost["context"], waited=ahead + behind + seconds[0] + seconds[1] + cost["host"], ideal=cost["ideal"],
        reduce=reduce, gather=gather, across=once.across,
        optimizer=update_seconds(terms, setting, blocks.pool, shape, held), memory=memory, activation=kept,
        working=blocks.working, cached=blocks.cached,
    )  # fmt: skip


def stage_cost(terms: Terms, setting: Setting, stage: Stage, blocks: Blocks, owners: int) -> StageCost:
    """Return what one stage costs, wherever it stands in the pipeline."""
    parts = vars(parts_of(terms, setting, blocks, owners))
    memory = {name: float(held) for name, held in parts.pop("memory").items()}
    plain = {name: float(value) for name, value in parts.items()}
    capacity = setting.chips[stage.pool].usable
    return StageCost(stage=stage, transfer=0.0, crosses=False, memory=memory, capacity=capacity, **plain)


_PASSES: Final[dict[str, Callable[[Unit], Array]]] = {
    "forward": lambda unit: unit.forward,
    "backward": lambda unit: unit.backward,
    "weight": lambda unit: unit.cost.weight,
    "arithmetic": lambda unit: unit.cost.forward + unit.cost.backward,
    "recomputed": lambda unit: unit.recomputed,
    "tensor": lambda unit: unit.cost.tensor_forward + unit.cost.tensor_backward,
    "expert": lambda unit: unit.cost.expert_forward + unit.cost.expert_backward,
    "context": lambda unit: unit.cost.context_forward + unit.cost.context_backward,
    "ideal": lambda unit: unit.cost.ideal,
}


def _passes(blocks: Blocks) -> dict[str, Array]:
    """Return the seconds of a stage's micro-batch by part; ``host`` is what the card waits for the host."""
    found = {name: blocks.sum(part) for name, part in _PASSES.items()}
    known = sum(found[name] for name in ("arithmetic", "recomputed", "tensor", "expert", "context"))
    found["host"] = np.maximum(found["forward"] + found["backward"] - known, 0.0)
    return found


def _beside_passes(
    terms: Terms, setting: Setting, blocks: Blocks, once: Exchange, each: list[Exchange]
) -> tuple[Array, Array, Array, Array]:
    """Return what gathers add to a forward and, with reductions, to a backward pass, and the seconds a step to reduce
    and to gather that are left for its end and its start.

    Gathered with every micro-batch, a layer's weights come beside the layer before; the first ones once a step beside
    nothing. Reduced with every micro-batch, gradients leave beside the layer behind, the last ones beside nothing.
    """
    if not each:
        return 0.0, 0.0, once.reduce, once.gather
    ahead: Array = 0.0
    behind: Array = 0.0
    for (unit, count), one in zip(blocks.blocks, each, strict=True):
        out, home = beside_block(terms, setting.traits, one, unit.forward, unit.backward)
        ahead, behind = ahead + count * out, behind + count * home
    return ahead, behind, *once.at_ends(terms, blocks.layers)


def beside_block(terms: Terms, traits: Traits, one: Exchange, forward: Array, backward: Array) -> tuple[Array, Array]:
    """Return what gathering a block's weights adds to its forward pass, and what that and reducing its gradients add to
    its backward pass, with every micro-batch."""
    out = one.gather if terms.gathers else 0.0
    home = one.gather if terms.gathers == 2 else 0.0 * one.gather
    sent = one.reduce if terms.every_reduce else 0.0 * one.reduce
    ahead = exposed_time(out, forward, share=traits.gather_overlap, contention=traits.contention)
    none = np.equal(home + sent, 0)
    both = np.where(none, 1.0, home + sent)
    share = np.where(none, 1.0, (traits.gather_overlap * home + traits.gradient_overlap * sent) / both)
    behind = exposed_time(home + sent, backward, share=share, contention=traits.contention)
    return ahead, behind


def update_seconds(terms: Terms, setting: Setting, pool: str, shape: Shape, held: Holding) -> Array:
    """Return the seconds to update the weights that a card holds."""
    over: list[Array] = [1.0, 1.0]
    if terms.zero:
        most = np.inf if terms.shard_group is None else terms.shard_group
        over = [np.minimum(one, most) for one in (shape.peers, shape.expert_peers)]
    elements = held.trained / over[0] + held.trained_routed / over[1]
    if setting.sharding.offload:
        return offload.update(elements, setting.traits)
    return update_rate(setting, pool, elements)


def update_rate(setting: Setting, pool: str, elements: Array = 1.0) -> Array:
    """Return the seconds in which a card of a pool updates so many weights in its own memory."""
    chip = setting.chips[pool]
    counted = OPTIMIZER_BYTES_FP32 if chip.precision in {"fp32", "tf32"} else OPTIMIZER_BYTES
    moved = setting.traits.optimizer_bytes_moved or counted
    return chip.learned_update * compute.optimizer_time(
        elements, bytes_per_parameter=moved, bandwidth=chip.bandwidth, memory_share=chip.memory_share
    )


def together(stages: Sequence[StageCost], memory: dict[str, float], share: float = 1.0) -> StageCost:
    """Return what one place holds as one cost; ``share`` of the micro-batches goes through each of its stages."""
    step = {"reduce", "gather", "across", "optimizer"}
    sums: dict[str, Any] = {
        name: sum(getattr(stage, name) for stage in stages) * (1.0 if name in step else share) for name in SUMMED
    }
    return replace(stages[0], **sums, memory=memory)
