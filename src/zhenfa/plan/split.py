"""Which layers stand on which stage of a layout: all splits where they are few, else the shortest busiest stage."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import Final

import numpy as np

from zhenfa.estimate import traffic
from zhenfa.estimate.setting import Setting
from zhenfa.laws import memory
from zhenfa.laws.partition import ROUNDING, alike_partition, partition
from zhenfa.plan.bounds import Floats
from zhenfa.plan.build import Layout, Rows, Slot, rows_for
from zhenfa.plan.space import Bools, Ints

EVERY_SPLIT: Final = 128
"""Where the layers can be split in at most so many ways, all are tried."""


@dataclass(frozen=True)
class Split:
    """Layers of each stage, and seconds that no 1F1B step with them can beat."""

    ranges: list[tuple[int, int]]
    bound: float


def schedule_bound(loads: Floats, hops: Floats | float, micro_batches: int | Ints) -> Floats:
    """Return seconds that no 1F1B step can beat, shape ``[...]``.

    ``loads`` are seconds of one micro-batch, shape ``[..., stages]``; ``hops`` of one activation from each stage to the
    next, shape ``[stages - 1]`` or a number; ``micro_batches`` a number or ``[..., 1]``. A stage waits for the stages
    behind it once after its first forward and, where it has more micro-batches than may be in flight, once more after
    its last (see :mod:`zhenfa.plan.bounds`). And
    with ``k`` in flight at most, every ``k``-th micro-batch sets out when the one before it has come back.
    """
    stages = loads.shape[-1]
    ways = loads.copy()
    ways[..., :-1] += 2 * np.asarray(hops)
    before = ways.cumsum(axis=-1) - ways
    behind = ways[..., ::-1].cumsum(axis=-1)[..., ::-1] - loads
    flight = stages - np.arange(stages)
    once = behind - (micro_batches - 1) * loads
    twice = 2 * behind - (flight - 1) * loads
    waits = np.maximum(np.where(micro_batches > flight, twice, once), 0.0)
    trips = -(-micro_batches // flight) * (loads + behind)
    bound: Floats = np.max(before + np.maximum(micro_batches * loads + waits, trips), axis=-1)
    return bound


class Refused(Enum):
    """Why a layout has no split worth costing."""

    MEMORY = "memory"
    TIME = "time"


@dataclass(frozen=True)
class Problem:
    """The split of layers over slots as arrays ``[stages, layers]`` and ``[stages]``."""

    seconds: Floats
    held: Floats
    peak: Floats
    extra: Floats
    first: float
    last: float
    capacity: Floats
    hops: Floats
    """Seconds of one activation from each stage to the next, or less."""

    @classmethod
    def of(cls, setting: Setting, layout: Layout, known: Mapping[Slot, Rows]) -> Problem:
        """Return the problem of a layout whose slots' costs are known."""
        blocks = [known[slot] for slot in layout.slots]
        kinds = np.asarray(setting.graph.layers)
        stages = len(blocks)
        counted = memory.in_flight_micro_batches(np.arange(stages), stages, layout.micro_batches, layout.schedule)
        away = layout.offload in ("activations", "both")
        flight = np.broadcast_to(counted, stages) * (0.0 if away else 1.0)
        tables = {slot: rows.kinds.T[:, kinds] for slot, rows in known.items()}
        table = np.array([tables[slot] for slot in layout.slots])
        stem, head = blocks[0].stem, blocks[-1].head
        extra, peak = np.zeros(stages), table[:, 3].copy()
        extra[0] += stem[1] + flight[0] * stem[2]
        extra[-1] += head[1] + flight[-1] * head[2]
        peak[0], peak[-1] = np.maximum(peak[0], stem[3]), np.maximum(peak[-1], head[3])
        return cls(
            seconds=table[:, 0], held=table[:, 1] + flight[:, None] * table[:, 2], peak=peak, extra=extra,
            first=float(stem[0]), last=float(head[0]),
            capacity=np.array([setting.chips[slot.pool].usable for slot in layout.slots]),
            hops=_hops(setting, layout),
        )  # fmt: skip

    @cached_property
    def alike(self) -> bool:
        """Return whether every stage takes the same seconds for a layer."""
        return bool((self.seconds == self.seconds[:1]).all())

    @cached_property
    def ends(self) -> Floats:
        """Return the seconds of stem and head, on the stages that hold them."""
        seconds = np.zeros(len(self.seconds))
        seconds[0] += self.first
        seconds[-1] += self.last
        return seconds

    @cached_property
    def sums(self) -> tuple[Floats, Floats]:
        """Return the sums of seconds and of bytes over the layers before each, ``[stages, layers + 1]``."""
        return _summed(self.seconds), _summed(self.held)

    def bound(self, borders: Ints, micro_batches: int | Ints) -> Floats:
        """Return :func:`schedule_bound` of splits given by their borders, ``[splits, stages + 1]``."""
        return schedule_bound(self.ends + _between(self.sums[0], borders), self.hops, micro_batches)

    def held_by(self, borders: Ints) -> Floats:
        """Return the bytes that each stage of some splits holds, ``[splits, stages]``."""
        held: Floats = self.extra + _between(self.sums[1], borders)
        if (self.peak == self.peak[:, :1]).all():
            held = held + self.peak[:, 0]
        else:
            inside = np.arange(self.peak.shape[1])
            here = (inside >= borders[:, :-1, None]) & (inside < borders[:, 1:, None])
            held = held + np.where(here, self.peak, 0.0).max(axis=2)
        return held

    def fits(self, borders: Ints) -> Bools:
        """Return which splits fit in memory."""
        mask: Bools = np.all(self.held_by(borders) <= self.capacity * (1 + ROUNDING), axis=1)
        return mask


def _summed(per_layer: Floats) -> Floats:
    sums = np.zeros((len(per_layer), per_layer.shape[1] + 1))
    np.cumsum(per_layer, axis=1, out=sums[:, 1:])
    return sums


def _between(sums: Floats, borders: Ints) -> Floats:
    """Return the sums over each stage's layers, shape ``[splits, stages]``."""
    stages = np.arange(len(sums))
    between: Floats = sums[stages, borders[:, 1:]] - sums[stages, borders[:, :-1]]
    return between


def _hops(setting: Setting, layout: Layout) -> Floats:
    """Return the seconds of each hop between pools; those inside a pool are left out."""
    return np.array(
        [
            0.0 if here.pool == there.pool else traffic.crossing(setting, layout.size, here.cards, there.cards)
            for here, there in itertools.pairwise(layout.slots)
        ]
    )


def split_layers(
    setting: Setting, layout: Layout, limit: float = math.inf, known: Mapping[Slot, Rows] | None = None
) -> list[Split] | Refused:
    """Return splits of the layers over the slots that may be the best, in order of their bound, all below ``limit``.

    Where there are at most :data:`EVERY_SPLIT` splits: all that fit. Elsewhere two: that with the shortest busiest
    stage (exactly, see :func:`zhenfa.laws.partition.partition`), and one as short with busy stages early. Refused where
    no split fits in memory, or where none can bring a step under ``limit`` seconds. ``known`` holds what
    :func:`rows_for` returns, where that is at hand.
    """
    problem = Problem.of(setting, layout, rows_for(setting, layout) if known is None else known)
    room = problem.capacity - problem.extra
    least = problem.peak.min(axis=1)
    if not _reaches(problem.held, room - least):
        return Refused.MEMORY
    if limit < math.inf and not _reaches(
        problem.held, room - least, problem.seconds, limit / layout.micro_batches - problem.ends
    ):
        return Refused.TIME
    found = _every(problem, layout.micro_batches, limit)
    if found is None:
        found = _shortest(problem, layout.micro_batches)
    if isinstance(found, Refused):
        return found
    return [split for split in found if split.bound < limit] or Refused.TIME


def splits_worth(problem: Problem, micro_batches: int) -> Ints:
    """Return the borders of the splits that stand for a layout, ``[splits, stages + 1]``: see :func:`split_layers`."""
    stages, layers = problem.seconds.shape
    if all_are_tried(stages, layers):
        borders = _all_borders(layers, stages)
        return borders[problem.fits(borders)]
    found = _shortest(problem, micro_batches)
    if isinstance(found, Refused):
        return np.zeros((0, stages + 1), dtype=np.int64)
    return np.array([[0, *(last for _, last in one.ranges)] for one in found])


def _every(problem: Problem, micro_batches: int, limit: float) -> list[Split] | Refused | None:
    """Return all splits that fit, in order of their bound; None where there are too many to try."""
    stages, layers = problem.seconds.shape
    if not all_are_tried(stages, layers):
        return None
    borders = _all_borders(layers, stages)
    borders = borders[problem.fits(borders)]
    if not len(borders):
        return Refused.MEMORY
    bound = problem.bound(borders, micro_batches)
    return [_split(borders[index], bound[index]) for index in np.argsort(bound, kind="stable") if bound[index] < limit]


def some_borders(problem: Problem) -> Ints:
    """Return the borders of all splits where those are few, else of the shortest ones whatever memory they take."""
    stages, layers = problem.seconds.shape
    if all_are_tried(stages, layers):
        return _all_borders(layers, stages)
    return _without_memory(tuple(problem.seconds[0].tolist()), stages, problem.first, problem.last)


def all_are_tried(stages: int, layers: int) -> bool:
    """Return whether the layers can be split in so few ways that all are tried."""
    return math.comb(layers - 1, stages - 1) <= EVERY_SPLIT


@lru_cache(maxsize=256)
def _all_borders(layers: int, stages: int) -> Ints:
    """Return the borders of every split, shape ``[splits, stages + 1]``."""
    inner = list(itertools.combinations(range(1, layers), stages - 1))
    table = np.array(inner, dtype=np.int64).reshape(len(inner), stages - 1)
    return np.pad(table, ((0, 0), (1, 1)), constant_values=((0, 0), (0, layers)))


def _shortest(problem: Problem, micro_batches: int) -> list[Split] | Refused:
    """Return the split with the shortest busiest stage, and the one as short whose busy stages come early."""
    if problem.alike:
        both = _without_memory(tuple(problem.seconds[0].tolist()), len(problem.seconds), problem.first, problem.last)
        if problem.fits(both).all():
            bound = problem.bound(both, micro_batches)
            return [_split(both[index], bound[index]) for index in np.argsort(bound, kind="stable")]
    least = problem.peak.min(axis=1)
    constant = bool((problem.peak.max(axis=1) == least).all())
    found = partition(
        problem.seconds, problem.first, problem.last, layer_memory=problem.held,
        memory_extra=problem.extra + (least if constant else 0.0), capacity=problem.capacity,
        peak_memory=0.0 if constant else problem.peak,
    )  # fmt: skip
    if found is None:
        return Refused.MEMORY
    borders = np.array(found)
    early = _early(problem, borders)
    both = borders[None] if early is None or (early == borders).all() else np.stack([borders, early])
    bound = problem.bound(both, micro_batches)
    return [_split(both[index], bound[index]) for index in np.argsort(bound, kind="stable")]


@lru_cache(maxsize=1024)
def _without_memory(seconds: tuple[float, ...], stages: int, first: float, last: float) -> Ints:
    """Return the shortest splits over equal stages, their memory aside: with the busy stages early, and late."""
    early = alike_partition(seconds, stages, first, last)
    late = alike_partition(seconds[::-1], stages, last, first)
    assert early is not None  # noqa: S101
    assert late is not None  # noqa: S101
    mirrored = [len(seconds) - border for border in reversed(late)]
    return np.array([early] if early == mirrored else [early, mirrored])


def _early(problem: Problem, borders: Ints) -> Ints | None:
    """Return the split in which each stage in turn takes all it can while no stage is busier than the busiest.

    Busy stages are better early: fewer stages before them wait, and more micro-batches in flight hide the others.
    """
    longest = float((problem.ends + _between(problem.sums[0], borders[None])).max())
    room = problem.capacity - problem.extra - problem.peak.max(axis=1)
    return _greedy(problem.held, room, problem.seconds, longest - problem.ends)


def _split(borders: Ints, bound: float) -> Split:
    return Split(list(itertools.pairwise(borders.tolist())), float(bound))


def fits(setting: Setting, layout: Layout, known: Mapping[Slot, Rows]) -> bool:
    """Return whether some split of the layers surely fits in memory."""
    problem = Problem.of(setting, layout, known)
    return _reaches(problem.held, problem.capacity - problem.extra - problem.peak.max(axis=1), slack=0.0)


def _reaches(
    held: Floats, room: Floats, seconds: Floats | None = None, time: Floats | None = None, slack: float = 1e-9
) -> bool:
    """Return whether stages that each take as many layers as they can reach the last layer.

    Exact: a part of what a stage can take can be taken, so taking all of it never bars the stages behind.
    """
    return _greedy(held, room, seconds, time, slack) is not None


def _greedy(
    held: Floats, room: Floats, seconds: Floats | None = None, time: Floats | None = None, slack: float = 1e-9
) -> Ints | None:
    """Return the borders if each stage takes as many layers as it can; None where that does not reach the last."""
    stages, layers = held.shape
    sums = [(_summed(held).tolist(), (room * (1 + slack)).tolist())]
    if seconds is not None and time is not None:
        sums.append((_summed(seconds).tolist(), (time * (1 + slack)).tolist()))
    borders = [0]
    for stage in range(stages):
        here, reach = borders[-1], layers - (stages - 1 - stage)
        for rows, caps in sums:
            reach = min(reach, bisect_right(rows[stage], rows[stage][here] + caps[stage]) - 1)
        if reach <= here:
            return None
        borders.append(reach)
    return np.array(borders) if borders[-1] == layers else None
