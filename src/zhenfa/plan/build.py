"""From a layout to a plan: split the layers exactly, number the stages, share out the micro-batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zhenfa.estimate.setting import RECOMPUTE, Setting, Units
from zhenfa.laws import memory
from zhenfa.laws.partition import partition
from zhenfa.spec.plan import Pipeline, Plan, Recompute, Schedule, Stage

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


def split_layers(setting: Setting, layout: Layout) -> list[tuple[int, int]] | None:
    """Return the split of layers over slots with the shortest busiest stage, exactly; None if none fits in memory."""
    blocks = [
        setting.cached_units(
            slot.pool, layout.size, slot.tensor, slot.expert, layout.replicas, layout.zero, slot.recompute
        )
        for slot in layout.slots
    ]
    kinds = np.asarray(setting.graph.layers)
    stages = len(blocks)
    flight = [
        int(memory.in_flight_micro_batches(index, stages, layout.micro_batches, layout.schedule))
        for index in range(stages)
    ]
    seconds = np.array([[float(unit.forward + unit.backward) for unit in units.kinds] for units in blocks])
    held = np.array([_bytes(units, times) for units, times in zip(blocks, flight, strict=True)])
    extra = np.zeros(stages)
    for index, units in enumerate(blocks):
        extra[index] = max(float(unit.working) for unit in units.kinds)
    first, last = blocks[0].stem, blocks[-1].head
    extra[0] += float(first.holding.state) + flight[0] * float(first.holding.activation)
    extra[-1] += float(last.holding.state) + flight[-1] * float(last.holding.activation)
    ends = np.zeros((2, stages))
    ends[0, 0] = float(first.forward + first.backward)
    ends[1, -1] = float(last.forward + last.backward)
    found = partition(
        seconds[:, kinds], ends[0], ends[1], layer_memory=held[:, kinds], memory_extra=extra,
        capacity=np.array([setting.chips[slot.pool].usable for slot in layout.slots]),
    )  # fmt: skip
    if found is None:
        return None
    return list(itertools.pairwise(found))


def _bytes(units: Units, in_flight: int) -> list[float]:
    return [float(unit.holding.state + in_flight * unit.holding.activation) for unit in units.kinds]


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
