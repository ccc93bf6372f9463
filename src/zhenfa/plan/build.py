"""From a layout to a plan: split the layers exactly, number the stages, share out the micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zhenfa.estimate.holding import Holding
from zhenfa.estimate.setting import RECOMPUTE, Cut, Setting, Unit, Units
from zhenfa.laws.arrays import Array
from zhenfa.plan.bounds import Work, shape_of
from zhenfa.plan.space import Candidates
from zhenfa.spec.machine import BETWEEN, Precision
from zhenfa.spec.plan import PLACED_AS_V, Offload, Pipeline, Plan, Recompute, Schedule, Stage

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
    context: int = 1
    expert_tensor: int = 1
    precision: Precision | None = field(default=None, kw_only=True)
    """None: the one in which the pool computes."""
    data: int = field(default=1, kw_only=True)
    """Groups of cards of one replica's stage that share out its micro-batches."""

    @property
    def cards(self) -> int:
        """Return the cards of one replica's stage."""
        return self.tensor * self.context * self.data


@dataclass(frozen=True)
class Layout:
    """A pipeline of slots in ``replicas`` copies, before the layers are split."""

    slots: tuple[Slot, ...]
    replicas: int
    size: int
    micro_batches: int
    zero: int
    schedule: Schedule = "1f1b"
    virtual: int = 1
    """Stages to a place; ``slots`` are places."""
    offload: Offload = "none"
    sequence_parallel: bool | None = None
    """None: as the engine does."""
    partly: bool = False
    """Of full recomputation: only as many layers of each stage are computed again as memory asks for."""
    again: int | None = None
    """So many (None: all of them)."""


class Rows(NamedTuple):
    """What a slot's blocks cost: the last axis is seconds of a micro-batch, bytes of state, bytes of a micro-batch in
    flight, and bytes of which a stage holds only the largest. ``kinds`` has shape ``[kinds, 4]``, the ends ``[4]``."""

    kinds: Floats
    stem: Floats
    head: Floats


def rows_of(units: Units) -> Rows:
    """Return the costs of one layout's building blocks."""
    return Rows(np.array([_four(unit) for unit in units.kinds]), _four(units.stem), _four(units.head))


def rows_of_many(setting: Setting, pool: str, candidates: Candidates, work: Work) -> Rows:
    """Return the costs of the building blocks of many layouts of a pool, with a last axis of ``[candidates]``."""
    shape = shape_of(setting, candidates)
    held = setting.memory(pool, shape, candidates.zero, candidates.recompute)
    bytes_ = [_three(*parts, shape.tokens) for parts in held]
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


def rows_for(setting: Setting, layout: Layout) -> dict[Slot, Rows]:
    """Return the costs of every slot of one layout."""
    return {
        slot: rows_of(
            setting.computing({} if slot.precision is None else {slot.pool: slot.precision}).units_of(
                Cut(
                    slot.pool,
                    layout.size // slot.data,
                    slot.tensor,
                    slot.expert,
                    layout.replicas * slot.data,
                    layout.zero,
                    slot.recompute,
                    slot.context,
                    slot.expert_tensor,
                    setting.planned_again(slot.pool) if CODES[slot.recompute] == "selective" else (),
                )
            )
        )
        for slot in set(layout.slots)
    }


def pipelines(layout: Layout, ranges: Sequence[tuple[int, int]], total: int) -> tuple[Pipeline, ...]:
    """Return the replicas with ``total`` micro-batches shared out as evenly as whole numbers allow."""
    stages = tuple(
        Stage(
            pool=slot.pool, first=first, last=last, tensor_parallel=slot.tensor, context_parallel=slot.context,
            data_parallel=slot.data, expert_parallel=slot.expert, expert_tensor_parallel=slot.expert_tensor,
            recompute=CODES[slot.recompute], recompute_layers=layout.again,
        )
        for slot, (first, last) in zip(_over_places(layout), ranges, strict=True)
    )  # fmt: skip
    few, more = divmod(total, layout.replicas)
    shares = [(more, few + 1), (layout.replicas - more, few)]
    return tuple(
        Pipeline(
            count=count, micro_batches=times, micro_batch_size=layout.size, virtual_stages=layout.virtual,
            stages=stages,
        )
        for count, times in shares
        if count and times
    )  # fmt: skip


def _over_places(layout: Layout) -> list[Slot]:
    """Return the place of each stage, in the order of the model."""
    there = list(layout.slots)
    back = there[::-1] if layout.schedule in PLACED_AS_V else there
    return [slot for turn in range(layout.virtual) for slot in (back if turn % 2 else there)]


def make_plan(setting: Setting, job: str, layout: Layout, entries: tuple[Pipeline, ...]) -> Plan:
    """Return the plan document."""
    ways = {slot.pool: slot.precision or setting.chips[slot.pool].precision for slot in layout.slots}
    usual, entries = in_precisions(with_modules(setting, entries), ways)
    return Plan(
        job=job, model=setting.graph.name, machine=setting.formation.name,
        sequence_length=setting.workload.sequence_length, precision=usual,
        schedule=layout.schedule, zero=layout.zero, offload=layout.offload,
        sequence_parallel=layout.sequence_parallel, pipelines=entries,
    )  # fmt: skip


def with_modules(setting: Setting, entries: tuple[Pipeline, ...]) -> tuple[Pipeline, ...]:
    """Return pipelines whose stages say what the engine's selective recomputation computes again, where they do not."""

    def update(stage: Stage) -> Stage:
        named = setting.planned_again(stage.pool) if stage.recompute == "selective" else ()
        return stage.model_copy(update={"recompute_modules": stage.recompute_modules or named}) if named else stage

    if all(stage.recompute != "selective" for entry in entries for stage in entry.stages):
        return entries
    return tuple(
        entry.model_copy(update={"stages": tuple(update(stage) for stage in entry.stages)}) for entry in entries
    )


def in_precisions(
    entries: tuple[Pipeline, ...], ways: Mapping[str, Precision]
) -> tuple[Precision, tuple[Pipeline, ...]]:
    """Return the precision of a plan whose pools compute in these, and its pipelines: where pools differ, that of what
    flows between them, and the stages of the others say their own."""
    usual = next(iter(ways.values()))
    if len(set(ways.values())) == 1:
        if all(stage.precision is None for entry in entries for stage in entry.stages):
            return usual, entries
    else:
        usual = BETWEEN[usual]
    own = {pool: None if one == usual else one for pool, one in ways.items()}
    return usual, tuple(
        entry.model_copy(
            update={"stages": tuple(stage.model_copy(update={"precision": own[stage.pool]}) for stage in entry.stages)}
        )
        for entry in entries
    )
