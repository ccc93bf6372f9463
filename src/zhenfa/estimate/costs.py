"""What a plan costs, as tables: stages, places that hold them, groups of identical pipelines, the whole plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from zhenfa.laws import pipeline, schedules
from zhenfa.spec.plan import Schedule, Stage

SIMPLE = ("gpipe", "1f1b")
"""Schedules with one stage to a place and whole backward passes."""


@dataclass(frozen=True)
class StageCost:
    """One stage of one group of pipelines, or all that one place holds together. Seconds are per micro-batch unless the
    name says otherwise."""

    stage: Stage
    forward: float
    backward: float
    weight: float
    """Part of ``backward`` that computes gradients of weights."""
    arithmetic: float
    recomputed: float
    tensor: float
    expert: float
    context: float
    waited: float
    """Seconds that the host takes beyond the card, and that weights take to be gathered beyond what hides it."""
    ideal: float
    transfer: float
    """Seconds for one activation to reach the next stage (0 for the last)."""
    crosses: bool
    """Whether the next stage belongs to another pool."""
    reduce: float
    """Seconds a step to reduce gradients inside the pool that a last backward pass may hide."""
    gather: float
    """Seconds a step to gather weights that a first forward pass may hide."""
    across: float
    """Seconds a step to sum gradients between pools."""
    optimizer: float
    """Seconds a step to update the weights."""
    memory: dict[str, float]
    capacity: float
    activation: float
    """Bytes that one micro-batch in flight keeps."""
    working: float
    """Bytes held only while a layer, or the head, is at work: the larger."""
    cached: float = 0.0
    """The smaller: both are never needed together, but a caching allocator keeps what each took."""

    @property
    def busy(self) -> float:
        """Return seconds of work for one micro-batch."""
        return self.forward + self.backward

    @property
    def bytes(self) -> float:
        """Return the bytes held at the peak."""
        return sum(self.memory.values())


SUMMED = (
    "forward", "backward", "weight", "arithmetic", "recomputed", "tensor", "expert", "context", "waited", "ideal",
    "reduce", "gather", "across", "optimizer",
)  # fmt: skip


@dataclass(frozen=True)
class GroupCost:
    """Identical pipelines together: the schedule's time and what follows it.

    ``stages`` in the order of the model; ``places`` what each set of cards holds together (the stages themselves where
    each has its own place).
    """

    stages: tuple[StageCost, ...]
    places: tuple[StageCost, ...]
    micro_batches: int
    schedule: Schedule
    pipeline: float
    tail: float
    """Seconds beyond the schedule until the last place has gathered and summed what it must and updated its weights."""
    tail_parts: dict[str, float] = field(default_factory=dict)

    @cached_property
    def without_transfers(self) -> float:
        """Return what the schedule would take if activations arrived at once."""
        return schedule_time(self, 0.0, 0.0)

    @cached_property
    def without_bridges(self) -> float:
        """Return what the schedule would take if activations crossed from pool to pool at once."""
        return schedule_time(self, 1.0, 0.0) if any(stage.crosses for stage in self.stages[:-1]) else self.pipeline

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


def schedule_time(group: GroupCost, within: float = 1.0, across: float = 1.0) -> float:
    """Return the schedule's seconds, with transfers inside and between pools scaled by ``within`` and ``across``."""
    virtual = len(group.stages) // len(group.places)
    return float(ends(group.stages, group.micro_batches, group.schedule, virtual, within, across).max())


def ends(
    stages: Sequence[StageCost],
    micro_batches: int,
    schedule: Schedule,
    virtual_stages: int = 1,
    within: float = 1.0,
    across: float = 1.0,
) -> npt.NDArray[np.float64]:
    """Return when each place's last operation ends."""
    forward = [stage.forward for stage in stages]
    backward = [stage.backward for stage in stages]
    if any(np.isnan(stage.transfer) for stage in stages):
        return np.full(len(stages) // virtual_stages, np.nan)
    hops = [stage.transfer * (across if stage.crosses else within) for stage in stages[:-1]]
    if schedule in SIMPLE:
        return pipeline.stage_ends(np.array(forward), np.array(backward), np.array(hops), micro_batches, schedule)
    weight = [stage.weight for stage in stages]
    hidden = [stage.expert for stage in stages]
    durations = schedules.Durations(forward, backward, weight, hops, hidden)
    return schedules.schedule_ends(durations, micro_batches, schedule, virtual_stages=virtual_stages)
