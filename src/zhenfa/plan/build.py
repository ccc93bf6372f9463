"""From a layout to a plan: split the layers exactly, number the stages, share out the micro-batches."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from zhenfa.estimate.setting import RECOMPUTE, Setting, Units
from zhenfa.laws import memory
from zhenfa.laws.partition import partition
from zhenfa.spec.plan import Pipeline, Plan, Recompute, Schedule, Stage

Floats = npt.NDArray[np.float64]

CODES: tuple[Recompute, ...] = ("none", "selective", "full")
assert CODES == RECOMPUTE  # noqa: S101


@dataclass(frozen=True)
class Slot:
    """Where a stage stands: a pool and how the stage's layers are cut there."""

    pool: str
    tensor: int
    expert: int
    recompute: int


@dataclass(frozen=True)
class Layout:
    """A pipeline of slots in ``replicas`` copies, before the layers are split."""

    slots: tuple[Slot, ...]
    replicas: int
    size: int
    micro_batches: int
    zero: int
    schedule: Schedule = "1f1b"


@dataclass(frozen=True)
class Split:
    """Layers of each stage, and the seconds of one micro-batch that each stage works."""

    ranges: list[tuple[int, int]]
    loads: Floats

    def bound(self, micro_batches: int) -> float:
        """Return seconds that no 1F1B step over these loads can beat (see :mod:`zhenfa.plan.bounds`)."""
        stages = len(self.loads)
        behind = self.loads[::-1].cumsum()[::-1] - self.loads
        before = self.loads.cumsum() - self.loads
        flight = np.minimum(stages - np.arange(stages), micro_batches)
        waits = np.maximum(2 * behind - (flight - 1) * self.loads, 0.0)
        return float(np.max(before + micro_batches * self.loads + waits))


class Refused(Enum):
    """Why a layout has no split worth costing."""

    MEMORY = "memory"
    TIME = "time"


def split_layers(setting: Setting, layout: Layout, limit: float = math.inf) -> Split | Refused:
    """Return the split of layers over slots with the shortest busiest stage, exactly.

    Refused where no split fits in memory, or where none can bring a step under ``limit`` seconds: every stage of a
    step works ``micro_batches`` times.
    """
    known = {
        slot: setting.cached_units(
            slot.pool, layout.size, slot.tensor, slot.expert, layout.replicas, layout.zero, slot.recompute
        )
        for slot in set(layout.slots)
    }
    blocks = [known[slot] for slot in layout.slots]
    kinds = np.asarray(setting.graph.layers)
    stages = len(blocks)
    counted = memory.in_flight_micro_batches(np.arange(stages), stages, layout.micro_batches, layout.schedule)
    flight = np.broadcast_to(counted, stages).astype(int).tolist()
    rows = {slot: _rows(units) for slot, units in known.items()}
    table = np.array([rows[slot] for slot in layout.slots])
    seconds = table[:, 0][:, kinds]
    held = (table[:, 1] + np.array(flight)[:, None] * table[:, 2])[:, kinds]
    extra = table[:, 3].max(axis=1)
    first, last = blocks[0].stem, blocks[-1].head
    extra[0] += float(first.holding.state) + flight[0] * float(first.holding.activation)
    extra[-1] += float(last.holding.state) + flight[-1] * float(last.holding.activation)
    ends = np.zeros((2, stages))
    ends[0, 0] = float(first.forward + first.backward)
    ends[1, -1] = float(last.forward + last.backward)
    capacity = np.array([setting.chips[slot.pool].usable for slot in layout.slots])
    if not _reaches(held, capacity - extra):
        return Refused.MEMORY
    if not _reaches(held, capacity - extra, seconds, limit / layout.micro_batches - ends.sum(axis=0)):
        return Refused.TIME
    found = partition(seconds, ends[0], ends[1], layer_memory=held, memory_extra=extra, capacity=capacity)
    if found is None:
        return Refused.MEMORY
    ranges = list(itertools.pairwise(found))
    loads = ends.sum(axis=0) + [seconds[index, begin:end].sum() for index, (begin, end) in enumerate(ranges)]
    return Split(ranges, loads)


def _reaches(held: Floats, room: Floats, seconds: Floats | None = None, time: Floats | None = None) -> bool:
    """Return whether stages that each take as many layers as they can reach the last layer.

    Exact: a part of what a stage can take can be taken, so taking all of it never bars the stages behind.
    """
    stages, layers = held.shape
    sums = [(np.concatenate([np.zeros((stages, 1)), held.cumsum(axis=1)], axis=1).tolist(), room.tolist())]
    if seconds is not None and time is not None:
        sums.append((np.concatenate([np.zeros((stages, 1)), seconds.cumsum(axis=1)], axis=1).tolist(), time.tolist()))
    here = 0
    for stage in range(stages):
        ends = [bisect_right(rows[stage], rows[stage][here] + caps[stage] * (1 + 1e-9)) - 1 for rows, caps in sums]
        reach = (
            min(*ends, layers - (stages - 1 - stage)) if len(ends) > 1 else min(ends[0], layers - (stages - 1 - stage))
        )
        if reach <= here:
            return False
        here = reach
    return here == int(layers)


def _rows(units: Units) -> list[list[float]]:
    """Return, per kind of layer: seconds, bytes of state, bytes of one micro-batch, bytes of recomputation."""
    return [
        [float(unit.forward + unit.backward) for unit in units.kinds],
        [float(unit.holding.state) for unit in units.kinds],
        [float(unit.holding.activation) for unit in units.kinds],
        [float(unit.working) for unit in units.kinds],
    ]


def pipelines(layout: Layout, ranges: Sequence[tuple[int, int]], total: int) -> tuple[Pipeline, ...]:
    """Return the replicas with ``total`` micro-batches shared out as evenly as whole numbers allow."""
    stages = tuple(
        Stage(
            pool=slot.pool, first=first, last=last, tensor_parallel=slot.tensor, expert_parallel=slot.expert,
            recompute=CODES[slot.recompute],
        )
        for slot, (first, last) in zip(layout.slots, ranges, strict=True)
    )  # fmt: skip
    few, more = divmod(total, layout.replicas)
    shares = [(more, few + 1), (layout.replicas - more, few)]
    return tuple(
        Pipeline(count=count, micro_batches=times, micro_batch_size=layout.size, stages=stages)
        for count, times in shares
        if count and times
    )


def make_plan(setting: Setting, job: str, layout: Layout, entries: tuple[Pipeline, ...]) -> Plan:
    """Return the plan document."""
    return Plan(
        job=job, model=setting.graph.name, machine=setting.formation.name,
        sequence_length=setting.workload.sequence_length, precision=setting.workload.precision,
        schedule=layout.schedule, zero=layout.zero, pipelines=entries,
    )  # fmt: skip
