"""A training step of one plan, exactly as the laws compose it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zhenfa import units
from zhenfa.estimate.holding import Holding
from zhenfa.estimate.setting import RECOMPUTE, Setting, Unit, Units
from zhenfa.laws import communication, compute, memory, pipeline
from zhenfa.laws.arrays import Array
from zhenfa.laws.communication import Fabric
from zhenfa.spec.plan import Pipeline, Plan, Schedule, Stage

OPTIMIZER_BYTES = 30.0
"""Bytes read and written per parameter by mixed-precision AdamW: gradient 4, master, m and v 12 read and 12 written,
weight 2 written."""

OPTIMIZER_BYTES_FP32 = 28.0
"""The same in fp32: gradient, weight, m and v read (16); weight, m and v written (12)."""


@dataclass(frozen=True)
class StageCost:
    """One stage of one group of pipelines. Seconds are per micro-batch unless the name says otherwise."""

    stage: Stage
    forward: float
    backward: float
    arithmetic: float
    recomputed: float
    tensor: float
    expert: float
    ideal: float
    transfer: float
    """Seconds for one activation to reach the next stage (0 for the last)."""
    crosses: bool
    """Whether the next stage belongs to another pool."""
    synchronise: float
    """Seconds a step to sum gradients inside the pool."""
    across: float
    """Seconds a step to sum gradients between pools."""
    optimizer: float
    """Seconds a step to update the weights."""
    memory: dict[str, float]
    capacity: float
    activation: float
    """Bytes that one micro-batch in flight keeps."""
    working: float
    """Bytes of the layer being computed again."""

    @property
    def busy(self) -> float:
        """Return seconds of work for one micro-batch."""
        return self.forward + self.backward

    @property
    def bytes(self) -> float:
        """Return the bytes held at the peak."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class GroupCost:
    """Identical pipelines together: the schedule's time and what follows it."""

    stages: tuple[StageCost, ...]
    micro_batches: int
    schedule: Schedule
    pipeline: float
    tail: float
    """Seconds from the schedule's end until the last stage has summed its gradients and updated its weights."""
    tail_parts: dict[str, float] = field(default_factory=dict)

    @property
    def without_transfers(self) -> float:
        """Return what the schedule would take if activations arrived at once."""
        return schedule_time(self.stages, self.micro_batches, self.schedule, 0.0, 0.0)

    @property
    def without_bridges(self) -> float:
        """Return what the schedule would take if activations crossed from pool to pool at once."""
        return schedule_time(self.stages, self.micro_batches, self.schedule, 1.0, 0.0)

    @property
    def step(self) -> float:
        """Return the seconds from first forward to weights updated."""
        return self.pipeline + self.tail


@dataclass(frozen=True)
class PlanCost:
    """What a plan costs. ``problem`` says why it cannot run (empty if it can)."""

    groups: tuple[GroupCost, ...]
    step: float
    problem: str = ""

    @property
    def worst(self) -> GroupCost:
        """Return the group that everybody waits for."""
        return max(self.groups, key=lambda group: group.step)

    @property
    def stages(self) -> list[StageCost]:
        """Return all stages of all groups."""
        return [stage for group in self.groups for stage in group.stages]

    @property
    def fullest(self) -> StageCost:
        """Return the stage closest to (or furthest over) its card's memory."""
        return max(self.stages, key=lambda stage: stage.bytes / stage.capacity)


def groups_of(plan: Plan) -> dict[tuple[tuple[Stage, ...], int], list[Pipeline]]:
    """Return the pipelines that share their stages, which sum gradients together inside their pools."""
    groups: dict[tuple[tuple[Stage, ...], int], list[Pipeline]] = {}
    for entry in plan.pipelines:
        groups.setdefault((entry.stages, entry.micro_batch_size), []).append(entry)
    return groups


def cost(plan: Plan, setting: Setting) -> PlanCost:
    """Return the seconds and bytes of one training step under ``plan``.

    Counts arithmetic, recomputation, tensor, expert and pipeline communication, the schedule's exact timeline over
    unequal stages, the gradient sum (hidden behind the last micro-batch's backward where the engine overlaps it) and
    the optimizer step. Omits data loading, checkpoints and failures: see the reliability wall.
    """
    groups = groups_of(plan)
    found = [
        _group_cost(plan, setting, stages, size, entries, len(groups)) for (stages, size), entries in groups.items()
    ]
    result = PlanCost(tuple(found), max(group.step for group in found))
    return PlanCost(result.groups, result.step, _problem(result))


def _problem(result: PlanCost) -> str:
    if not math.isfinite(result.step):
        return "crosses a tier whose bandwidth is undisclosed"
    fullest = result.fullest
    if fullest.bytes > fullest.capacity:
        has = units.show(fullest.capacity, "data")
        return f"needs {units.show(fullest.bytes, 'data')} on a {fullest.stage.pool} card with {has} usable"
    return ""


def stage_units(setting: Setting, stage: Stage, size: int, replicas: int, zero: int) -> Units:
    """Return the building blocks of one stage."""
    return setting.cached_units(
        stage.pool, size, stage.tensor_parallel, stage.expert_parallel, replicas, zero, RECOMPUTE.index(stage.recompute)
    )


def _group_cost(
    plan: Plan, setting: Setting, stages: tuple[Stage, ...], size: int, entries: Sequence[Pipeline], owners: int
) -> GroupCost:
    replicas = sum(entry.count for entry in entries)
    micro_batches = max(entry.micro_batches for entry in entries)
    memo: dict[object, StageCost] = {}
    flight = memory.in_flight_micro_batches(np.arange(len(stages)), len(stages), micro_batches, plan.schedule)
    in_flight = np.broadcast_to(flight, len(stages)).tolist()
    hops = _transfers(plan, setting, stages, size, replicas)
    found = tuple(
        replace(
            _stage_cost(
                plan, setting, stages, index, size, replicas, micro_batches, owners, int(in_flight[index]), memo
            ),
            transfer=seconds, crosses=crosses,
        )
        for index, (seconds, crosses) in enumerate(hops)
    )  # fmt: skip
    ends = _schedule_ends(found, micro_batches, plan.schedule)
    parts = _tail(setting, found, ends, micro_batches if plan.zero > 1 else 1)
    return GroupCost(found, micro_batches, plan.schedule, float(ends[0]), sum(parts.values()), parts)


def schedule_time(
    stages: Sequence[StageCost], micro_batches: int, schedule: Schedule, within: float = 1.0, across: float = 1.0
) -> float:
    """Return the schedule's seconds, with transfers inside and between pools scaled by ``within`` and ``across``."""
    return float(_schedule_ends(stages, micro_batches, schedule, within, across)[0])


def _schedule_ends(
    stages: Sequence[StageCost], micro_batches: int, schedule: Schedule, within: float = 1.0, across: float = 1.0
) -> npt.NDArray[np.float64]:
    """Return when each stage's last backward ends."""
    forward = np.array([stage.forward for stage in stages])
    backward = np.array([stage.backward for stage in stages])
    if any(math.isnan(stage.transfer) for stage in stages):
        return np.full(len(stages), math.nan)
    hops = np.array([stage.transfer * (across if stage.crosses else within) for stage in stages[:-1]])
    return pipeline.stage_ends(forward, backward, hops, micro_batches, schedule)


def _tail(
    setting: Setting, stages: Sequence[StageCost], ends: npt.NDArray[np.float64], windows: int
) -> dict[str, float]:
    """Return the seconds that the last stage to finish adds to the schedule, by what it does then.

    Each stage sums its gradients when its own last backward ends. Where the engine overlaps, all but the first layer's
    hide behind that backward, or with ZeRO-2 and 3 behind all ``windows`` micro-batches.
    """
    last, latest = stages[0], -1.0
    for stage, end in zip(stages, ends.tolist(), strict=True):
        finish = end + _exposed(setting, stage, windows) + stage.across + stage.optimizer
        if finish > latest or math.isnan(finish):
            last, latest = stage, finish
    beyond = latest - float(ends[0])
    optimizer = min(last.optimizer, beyond)
    bridge = min(last.across, beyond - optimizer)
    return {"data": beyond - optimizer - bridge, "bridge": bridge, "optimizer": optimizer}


def _exposed(setting: Setting, stage: StageCost, windows: int) -> float:
    """Return the seconds of a stage's gradient sum that no arithmetic hides."""
    if not setting.traits.gradient_overlap:
        return stage.synchronise
    pieces = max(stage.stage.layers, 1) * windows
    work = stage.backward if windows == 1 else stage.busy * windows
    return max(stage.synchronise - work * (1 - 1 / pieces), stage.synchronise / pieces)


def _stage_cost(
    plan: Plan, setting: Setting, stages: tuple[Stage, ...], index: int, size: int, replicas: int, micro_batches: int,
    owners: int, in_flight: int, memo: dict[object, StageCost],
) -> StageCost:  # fmt: skip
    """Return the cost of one stage; equal stages of a group differ only in what is in flight."""
    stage = stages[index]
    layers = setting.graph.layers[stage.first : stage.last]
    key = (
        stage.pool, stage.tensor_parallel, stage.expert_parallel, stage.recompute, layers, index == 0,
        index == len(stages) - 1,
    )  # fmt: skip
    known = memo.get(key)
    if known is not None:
        parts = {**known.memory, "activations": in_flight * known.activation + known.working}
        return replace(known, stage=stage, memory=parts)
    built = stage_units(setting, stage, size, replicas, plan.zero)
    counts = np.bincount(layers, minlength=len(built.kinds))
    blocks = [(unit, int(count)) for unit, count in zip(built.kinds, counts, strict=True) if count]
    if index == 0:
        blocks.append((built.stem, 1))
    if index == len(stages) - 1:
        blocks.append((built.head, 1))
    held = _sum_holdings(blocks)
    working = max((float(unit.working) for unit, _ in blocks), default=0.0)
    chip = setting.chips[stage.pool]
    inside, across = _gradient_sum(plan, setting, stage, held, replicas, micro_batches, owners)
    memo[key] = StageCost(
        stage=stage,
        forward=_sum(blocks, lambda unit: unit.forward),
        backward=_sum(blocks, lambda unit: unit.backward),
        arithmetic=_sum(blocks, lambda unit: unit.cost.forward + unit.cost.backward),
        recomputed=_sum(blocks, lambda unit: unit.recomputed),
        tensor=_sum(blocks, lambda unit: unit.cost.tensor_forward + unit.cost.tensor_backward),
        expert=_sum(blocks, lambda unit: unit.cost.expert_forward + unit.cost.expert_backward),
        ideal=_sum(blocks, lambda unit: unit.cost.ideal),
        transfer=0.0,
        crosses=False,
        synchronise=inside,
        across=across,
        optimizer=_optimizer(plan, setting, stage, held, replicas),
        memory={
            "weights": float(held.weights),
            "gradients": float(held.gradients),
            "optimizer": float(held.optimizer),
            "activations": in_flight * float(held.activation) + working,
        },
        capacity=chip.usable,
        activation=float(held.activation),
        working=working,
    )
    return memo[key]


def _sum(blocks: Sequence[tuple[Unit, int]], part: Callable[[Unit], Array]) -> float:
    return float(sum(float(part(unit)) * count for unit, count in blocks))


def _sum_holdings(blocks: Sequence[tuple[Unit, int]]) -> Holding:
    names = Holding.__dataclass_fields__
    return Holding(*(sum(float(getattr(unit.holding, name)) * count for unit, count in blocks) for name in names))


def _transfers(
    plan: Plan, setting: Setting, stages: tuple[Stage, ...], size: int, replicas: int
) -> list[tuple[float, bool]]:
    """Return, per stage, the seconds of one activation to the next and whether that stands on another pool.

    The cards of a stage's replicas stand next to each other, and the stages of a pool one after the other.
    """
    activation = size * plan.sequence_length * setting.graph.hidden * _wide(plan.precision)
    overhead = setting.traits.message_overhead_s
    hops: list[tuple[float, bool]] = [(0.0, False)] * len(stages)
    inside: dict[str, list[tuple[int, float, int, int]]] = {}
    taken: dict[str, int] = {}
    for index, (here, there) in enumerate(itertools.pairwise(stages)):
        volume = activation / min(here.tensor_parallel, there.tensor_parallel)
        distance = here.tensor_parallel * replicas
        start = taken.get(here.pool, 0)
        taken[here.pool] = start + distance
        if here.pool == there.pool:
            inside.setdefault(here.pool, []).append((index, volume, start, distance))
        else:
            hops[index] = ((setting.bridge.time(volume) if setting.bridge else math.nan) + overhead, True)
    for pool, rows in inside.items():
        indices, volumes, starts, distances = (np.array(column) for column in zip(*rows, strict=True))
        times = communication.point_to_point_time(volumes, distances, setting.fabrics[pool], start=starts)
        for index, seconds in zip(indices.tolist(), np.broadcast_to(times, indices.shape).tolist(), strict=True):
            hops[index] = (seconds + overhead, False)
    return hops


def _wide(precision: str) -> float:
    """Return the bytes of a weight or an activation on the wire."""
    return 4.0 if precision in {"fp32", "tf32"} else 2.0


def _gradient_sum(
    plan: Plan, setting: Setting, stage: Stage, held: Holding, replicas: int, micro_batches: int, owners: int
) -> tuple[float, float]:
    fabric, size = setting.fabrics[stage.pool], setting.traits.gradient_bytes
    rounds = _Rounds.of(plan.zero, micro_batches)
    wide = _wide(plan.precision)
    shared = _sum_over(rounds, float(held.shared), size, wide, replicas, stage.tensor_parallel, fabric)
    peers = max(replicas * stage.tensor_parallel // stage.expert_parallel, 1)
    routed = _sum_over(rounds, float(held.routed), size, wide, peers, stage.expert_parallel, fabric)
    across = 0.0
    if owners > 1:
        volume = 2 * (owners - 1) / owners * size * (float(held.shared) / replicas + float(held.routed) / peers)
        across = setting.bridge.time(volume) if setting.bridge else math.nan
    return shared + routed, across


class _Rounds(NamedTuple):
    """How often a step reduces gradients to their owners, and gathers weights from them (0: all-reduce instead)."""

    scatters: int
    gathers: int

    @classmethod
    def of(cls, zero: int, micro_batches: int) -> _Rounds:
        """Return the rounds of a ZeRO stage. Sharded gradients (2) are reduced after every micro-batch; sharded weights
        (3) are gathered for every forward and backward."""
        return (cls(1, 0), cls(1, 1), cls(micro_batches, 1), cls(micro_batches, 2 * micro_batches))[zero]


def _sum_over(
    rounds: _Rounds, elements: float, size: float, wide: float, group: int, stride: int, fabric: Fabric
) -> float:
    """Return the seconds a step to sum gradients of ``size`` bytes and, with ZeRO, to gather weights of ``wide``."""
    if rounds.gathers == 0:
        return float(communication.all_reduce_time(elements * size, float(group), float(stride), fabric))
    scatter = communication.reduce_scatter_time(elements * size, float(group), float(stride), fabric)
    gather = communication.all_gather_time(elements * wide, float(group), float(stride), fabric)
    return float(scatter * rounds.scatters + gather * rounds.gathers)


def _optimizer(plan: Plan, setting: Setting, stage: Stage, held: Holding, replicas: int) -> float:
    peers = max(replicas * stage.tensor_parallel // stage.expert_parallel, 1)
    elements = float(held.shared) / (replicas if plan.zero else 1) + float(held.routed) / (peers if plan.zero else 1)
    chip = setting.chips[stage.pool]
    moved = OPTIMIZER_BYTES_FP32 if plan.precision in {"fp32", "tf32"} else OPTIMIZER_BYTES
    return float(
        compute.optimizer_time(
            elements, bytes_per_parameter=moved, bandwidth=chip.bandwidth, memory_share=chip.memory_share
        )
    )
