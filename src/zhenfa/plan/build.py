"""From a layout to a plan: split the layers exactly, number the stages, share out the micro-batches."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zhenfa.estimate import traffic
from zhenfa.estimate.holding import Holding
from zhenfa.estimate.layer import Shape
from zhenfa.estimate.setting import RECOMPUTE, Setting, Unit, Units
from zhenfa.laws import memory
from zhenfa.laws.arrays import Array
from zhenfa.laws.partition import partition
from zhenfa.plan.bounds import Work
from zhenfa.plan.space import Candidates
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


class Rows(NamedTuple):
    """What a slot's blocks cost: the last axis is seconds of a micro-batch, bytes of state, bytes of a micro-batch in
    flight, and bytes of which a stage holds only the largest. ``kinds`` has shape ``[kinds, 4]``, the ends ``[4]``."""

    kinds: Floats
    stem: Floats
    head: Floats


def rows_of(units: Units) -> Rows:
    """Return the costs of one layout's building blocks."""
    return Rows(np.array([_four(unit) for unit in units.kinds]), _four(units.stem), _four(units.head))


def rows_of_many(setting: Setting, candidates: Candidates, work: Work) -> Rows:
    """Return the costs of many layouts' building blocks, with a last axis of ``[candidates]``."""
    shape = Shape(
        candidates.size.astype(float), float(setting.workload.sequence_length), candidates.tensor.astype(float),
        candidates.expert.astype(float), candidates.data.astype(float),
    )  # fmt: skip
    bytes_ = [_three(*parts, shape.tokens) for parts in setting.memory(shape, candidates.zero, candidates.recompute)]
    seconds = [*work.layers, *work.ends]
    *kinds, stem, head = (np.stack([time, *parts]) for time, parts in zip(seconds, bytes_, strict=True))
    return Rows(np.array(kinds), stem, head)


def _three(held: Holding, working: Array, like: Array) -> list[Floats]:
    shape = np.shape(like)
    return [np.broadcast_to(np.asarray(part, float), shape) for part in (held.state, held.activation, working)]


def take(rows: Rows, index: int) -> Rows:
    """Return one candidate's costs of :func:`rows_of_many`."""
    return Rows(rows.kinds[:, :, index], rows.stem[:, index], rows.head[:, index])


def _four(unit: Unit) -> Floats:
    held = unit.holding
    return np.array([unit.forward + unit.backward, held.state, held.activation, unit.working], dtype=float)


@dataclass(frozen=True)
class Split:
    """Layers of each stage, and the seconds of one micro-batch that each stage works."""

    ranges: list[tuple[int, int]]
    loads: Floats
    hops: Floats | float = 0.0
    """Seconds of one activation from each stage to the next, or less."""

    def bound(self, micro_batches: int) -> float:
        """Return seconds that no 1F1B step over these loads can beat.

        A stage waits for the stages behind it once after its first forward and, where it has more micro-batches than
        may be in flight, once more after its last (see :mod:`zhenfa.plan.bounds`).
        """
        stages = len(self.loads)
        ways = self.loads.copy()
        ways[:-1] += 2 * np.asarray(self.hops)
        before = ways.cumsum() - ways
        behind = ways[::-1].cumsum()[::-1] - self.loads
        flight = stages - np.arange(stages)
        once = behind - (micro_batches - 1) * self.loads
        twice = 2 * behind - (flight - 1) * self.loads
        waits = np.maximum(np.where(micro_batches > flight, twice, once), 0.0)
        return float(np.max(before + micro_batches * self.loads + waits))


class Refused(Enum):
    """Why a layout has no split worth costing."""

    MEMORY = "memory"
    TIME = "time"


@dataclass(frozen=True)
class _Problem:
    """The split of layers over slots as arrays ``[stages, layers]`` and ``[stages]``."""

    seconds: Floats
    held: Floats
    peak: Floats
    extra: Floats
    first: float
    last: float
    capacity: Floats

    @property
    def ends(self) -> Floats:
        """Return the seconds of stem and head, on the stages that hold them."""
        seconds = np.zeros(len(self.seconds))
        seconds[0] += self.first
        seconds[-1] += self.last
        return seconds


def _problem(setting: Setting, layout: Layout, known: Mapping[Slot, Rows]) -> _Problem:
    blocks = [known[slot] for slot in layout.slots]
    kinds = np.asarray(setting.graph.layers)
    stages = len(blocks)
    counted = memory.in_flight_micro_batches(np.arange(stages), stages, layout.micro_batches, layout.schedule)
    flight = np.broadcast_to(counted, stages)
    tables = {slot: rows.kinds.T[:, kinds] for slot, rows in known.items()}
    table = np.array([tables[slot] for slot in layout.slots])
    stem, head = blocks[0].stem, blocks[-1].head
    extra, peak = np.zeros(stages), table[:, 3].copy()
    extra[0] += stem[1] + flight[0] * stem[2]
    extra[-1] += head[1] + flight[-1] * head[2]
    peak[0], peak[-1] = np.maximum(peak[0], stem[3]), np.maximum(peak[-1], head[3])
    return _Problem(
        seconds=table[:, 0], held=table[:, 1] + flight[:, None] * table[:, 2], peak=peak, extra=extra,
        first=float(stem[0]), last=float(head[0]),
        capacity=np.array([setting.chips[slot.pool].usable for slot in layout.slots]),
    )  # fmt: skip


def rows_for(setting: Setting, layout: Layout) -> dict[Slot, Rows]:
    """Return the costs of every slot of one layout."""
    return {
        slot: rows_of(
            setting.cached_units(
                slot.pool, layout.size, slot.tensor, slot.expert, layout.replicas, layout.zero, slot.recompute
            )
        )
        for slot in set(layout.slots)
    }


def split_layers(
    setting: Setting, layout: Layout, limit: float = math.inf, known: Mapping[Slot, Rows] | None = None
) -> Split | Refused:
    """Return the split of layers over slots with the shortest busiest stage, exactly.

    Refused where no split fits in memory, or where none can bring a step under ``limit`` seconds: every stage of a
    step works ``micro_batches`` times. ``known`` holds what :func:`rows_for` returns, where that is at hand.
    """
    problem = _problem(setting, layout, rows_for(setting, layout) if known is None else known)
    room = problem.capacity - problem.extra
    least = problem.peak.min(axis=1)
    if not _reaches(problem.held, room - least):
        return Refused.MEMORY
    if limit < math.inf and not _reaches(
        problem.held, room - least, problem.seconds, limit / layout.micro_batches - problem.ends
    ):
        return Refused.TIME
    constant = bool((problem.peak.max(axis=1) == least).all())
    found = partition(
        problem.seconds, problem.first, problem.last, layer_memory=problem.held,
        memory_extra=problem.extra + (least if constant else 0.0), capacity=problem.capacity,
        peak_memory=0.0 if constant else problem.peak,
    )  # fmt: skip
    if found is None:
        return Refused.MEMORY
    return Split(list(itertools.pairwise(found)), _loads(problem, found), _crossings(setting, layout))


def _crossings(setting: Setting, layout: Layout) -> Floats | float:
    """Return the seconds of each hop between pools, 0 for those inside one."""
    pools = {slot.pool for slot in layout.slots}
    if len(pools) == 1:
        return 0.0
    hops = [
        0.0 if here.pool == there.pool else traffic.crossing(setting, layout.size, here.tensor, there.tensor)
        for here, there in itertools.pairwise(layout.slots)
    ]
    return np.array(hops)


def _loads(problem: _Problem, bounds: Sequence[int]) -> Floats:
    sums = [problem.seconds[stage, first:last].sum() for stage, (first, last) in enumerate(itertools.pairwise(bounds))]
    loads: Floats = problem.ends + sums
    return loads


def fits(setting: Setting, layout: Layout, known: Mapping[Slot, Rows]) -> bool:
    """Return whether some split of the layers surely fits in memory."""
    problem = _problem(setting, layout, known)
    return _reaches(problem.held, problem.capacity - problem.extra - problem.peak.max(axis=1), slack=0.0)


def _reaches(
    held: Floats, room: Floats, seconds: Floats | None = None, time: Floats | None = None, slack: float = 1e-9
) -> bool:
    """Return whether stages that each take as many layers as they can reach the last layer.

    Exact: a part of what a stage can take can be taken, so taking all of it never bars the stages behind.
    """
    stages, layers = held.shape
    sums = [(_sums(held), (room * (1 + slack)).tolist())]
    if seconds is not None and time is not None:
        sums.append((_sums(seconds), (time * (1 + slack)).tolist()))
    here = 0
    for stage in range(stages):
        reach = layers - (stages - 1 - stage)
        for rows, caps in sums:
            reach = min(reach, bisect_right(rows[stage], rows[stage][here] + caps[stage]) - 1)
        if reach <= here:
            return False
        here = reach
    return bool(here == layers)


def _sums(per_layer: Floats) -> list[list[float]]:
    sums = np.zeros((len(per_layer), per_layer.shape[1] + 1))
    np.cumsum(per_layer, axis=1, out=sums[:, 1:])
    rows: list[list[float]] = sums.tolist()
    return rows


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
