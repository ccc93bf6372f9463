"""A training step of one plan, exactly as the laws compose it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from zhenfa import units
from zhenfa.estimate import traffic
from zhenfa.estimate.holding import Holding
from zhenfa.estimate.setting import RECOMPUTE, Setting, Unit, Units
from zhenfa.laws import compute, memory, pipeline
from zhenfa.laws.arrays import Array
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
    hops = traffic.transfers(setting, [(stage.pool, stage.tensor_parallel) for stage in stages], size, replicas)
    flight = memory.in_flight_micro_batches(np.arange(len(stages)), len(stages), micro_batches, plan.schedule)
    keys = [_key(setting, stages, index) for index in range(len(stages))]
    alike = {key: _Blocks.of(plan, setting, stages, index, size, replicas) for index, key in _first(keys)}
    sums = _gradient_sums(plan, setting, alike, replicas, micro_batches, owners)
    costs = {key: _stage_cost(plan, setting, blocks, sums[key], replicas) for key, blocks in alike.items()}
    found = tuple(
        _placed(costs[key], stage, in_flight, *hop)
        for key, stage, in_flight, hop in zip(
            keys, stages, np.broadcast_to(flight, len(stages)).tolist(), hops, strict=True
        )
    )
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


_Key = tuple[object, ...]


def _key(setting: Setting, stages: tuple[Stage, ...], index: int) -> _Key:
    """Return what makes two stages of a group cost the same, but for what is in flight and the way to the next."""
    stage = stages[index]
    layers = setting.graph.layers[stage.first : stage.last]
    ends = (index == 0, index == len(stages) - 1)
    return (stage.pool, stage.tensor_parallel, stage.expert_parallel, stage.recompute, layers, ends)


def _first(keys: Sequence[_Key]) -> list[tuple[int, _Key]]:
    """Return each key with the place where it comes first."""
    return [(keys.index(key), key) for key in dict.fromkeys(keys)]


@dataclass(frozen=True)
class _Blocks:
    """The building blocks of a stage with how many of each, and what they make a card hold together."""

    stage: Stage
    blocks: list[tuple[Unit, int]]
    held: Holding
    working: float

    @classmethod
    def of(
        cls, plan: Plan, setting: Setting, stages: tuple[Stage, ...], index: int, size: int, replicas: int
    ) -> _Blocks:
        """Look up the blocks of one stage."""
        stage = stages[index]
        built = stage_units(setting, stage, size, replicas, plan.zero)
        layers = setting.graph.layers[stage.first : stage.last]
        blocks = [(unit, layers.count(kind)) for kind, unit in enumerate(built.kinds) if kind in layers]
        if index == 0:
            blocks.append((built.stem, 1))
        if index == len(stages) - 1:
            blocks.append((built.head, 1))
        names = Holding.__dataclass_fields__
        sums = (sum(float(getattr(unit.holding, name)) * count for unit, count in blocks) for name in names)
        return cls(stage, blocks, Holding(*sums), max((float(unit.working) for unit, _ in blocks), default=0.0))

    def sum(self, part: Callable[[Unit], Array]) -> float:
        """Return the sum of one part over the blocks."""
        return float(sum(float(part(unit)) * count for unit, count in self.blocks))


def _gradient_sums(
    plan: Plan, setting: Setting, alike: dict[_Key, _Blocks], replicas: int, micro_batches: int, owners: int
) -> dict[_Key, tuple[float, float]]:
    """Return the gradient sums of every distinct stage; those that are cut alike are computed as one array."""
    cuts: dict[tuple[str, int, int], list[_Key]] = {}
    for key, blocks in alike.items():
        stage = blocks.stage
        cuts.setdefault((stage.pool, stage.tensor_parallel, stage.expert_parallel), []).append(key)
    found: dict[_Key, tuple[float, float]] = {}
    for keys in cuts.values():
        held = [alike[key].held for key in keys]
        sums = traffic.gradient_sums(plan, setting, alike[keys[0]].stage, held, replicas, micro_batches, owners)
        found.update(zip(keys, sums, strict=True))
    return found


def _stage_cost(plan: Plan, setting: Setting, blocks: _Blocks, sums: tuple[float, float], replicas: int) -> StageCost:
    held, stage = blocks.held, blocks.stage
    return StageCost(
        stage=stage,
        forward=blocks.sum(lambda unit: unit.forward),
        backward=blocks.sum(lambda unit: unit.backward),
        arithmetic=blocks.sum(lambda unit: unit.cost.forward + unit.cost.backward),
        recomputed=blocks.sum(lambda unit: unit.recomputed),
        tensor=blocks.sum(lambda unit: unit.cost.tensor_forward + unit.cost.tensor_backward),
        expert=blocks.sum(lambda unit: unit.cost.expert_forward + unit.cost.expert_backward),
        ideal=blocks.sum(lambda unit: unit.cost.ideal),
        transfer=0.0,
        crosses=False,
        synchronise=sums[0],
        across=sums[1],
        optimizer=_optimizer(plan, setting, stage, held, replicas),
        memory={
            "weights": float(held.weights),
            "gradients": float(held.gradients),
            "optimizer": float(held.optimizer),
            "activations": blocks.working,
        },
        capacity=setting.chips[stage.pool].usable,
        activation=float(held.activation),
        working=blocks.working,
    )


def _placed(cost: StageCost, stage: Stage, in_flight: float, transfer: float, crosses: bool) -> StageCost:
    """Return a stage's cost at its place in the pipeline."""
    held = {**cost.memory, "activations": in_flight * cost.activation + cost.working}
    return replace(cost, stage=stage, memory=held, transfer=transfer, crosses=crosses)


def _optimizer(plan: Plan, setting: Setting, stage: Stage, held: Holding, replicas: int) -> float:
    peers = traffic.expert_peers(stage, replicas)
    elements = float(held.shared) / (replicas if plan.zero else 1) + float(held.routed) / (peers if plan.zero else 1)
    chip = setting.chips[stage.pool]
    moved = OPTIMIZER_BYTES_FP32 if plan.precision in {"fp32", "tf32"} else OPTIMIZER_BYTES
    return float(
        compute.optimizer_time(
            elements, bytes_per_parameter=moved, bandwidth=chip.bandwidth, memory_share=chip.memory_share
        )
    )
