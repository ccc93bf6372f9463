"""A training step of one plan, exactly as the laws compose it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from zhenfa import units
from zhenfa.estimate import costs, traffic
from zhenfa.estimate.costs import SIMPLE, GroupCost, PlanCost, StageCost
from zhenfa.estimate.reduction import Terms
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.stage import Blocks, Key, key_of, stage_cost, together
from zhenfa.laws import memory, schedules
from zhenfa.laws.arrays import Array
from zhenfa.laws.overlap import exposed_time
from zhenfa.spec.plan import Pipeline, Plan, Stage

__all__ = ["GroupCost", "PlanCost", "StageCost", "cost", "groups_of", "timed_again"]


def groups_of(plan: Plan) -> dict[tuple[tuple[Stage, ...], int], list[Pipeline]]:
    """Return the pipelines that share their stages, which sum gradients together inside their pools."""
    groups: dict[tuple[tuple[Stage, ...], int], list[Pipeline]] = {}
    for entry in plan.pipelines:
        groups.setdefault((entry.stages, entry.micro_batch_size), []).append(entry)
    return groups


def cost(plan: Plan, setting: Setting) -> PlanCost:
    """Return the seconds and bytes of one training step under ``plan``.

    Counts arithmetic, recomputation, communication of every kind beyond what hides it, the schedule's exact timeline
    over unequal stages, gathers and gradient sums (behind the first forward and the last backward where the engine
    overlaps them), the optimizer step and the engine's own time a step. Omits data loading that outlasts a step,
    checkpoints and failures: see the reliability wall.
    """
    setting = setting.for_plan(plan)
    groups = groups_of(plan)
    found = [
        _group_cost(plan, setting, stages, size, entries, len(groups)) for (stages, size), entries in groups.items()
    ]
    result = PlanCost(tuple(found), max(group.step for group in found))
    return PlanCost(result.groups, result.step, _problem(result))


def memory_problem(plan: Plan, setting: Setting) -> str:
    """Return why a plan does not fit in memory (empty if it does), without following its schedule."""
    return _overflow(max(_all_stages(plan, setting), key=lambda stage: stage.bytes / stage.capacity))


def offloaded_bytes(plan: Plan, setting: Setting) -> float:
    """Return the most bytes that a card keeps in its host's memory."""
    here, there = (_all_stages(one, setting) for one in (plan.model_copy(update={"offload": "none"}), plan))
    return max(one.bytes - other.bytes for one, other in zip(here, there, strict=True))


def _all_stages(plan: Plan, setting: Setting) -> list[StageCost]:
    setting = setting.for_plan(plan)
    groups = groups_of(plan)
    return [
        stage
        for (held, size), entries in groups.items()
        for stage in _group_stages(plan, setting, held, size, entries, len(groups))
    ]


def share_cost(plan: Plan, setting: Setting, owners: int) -> GroupCost:
    """Return what the replicas of a plan, all alike, cost as one of ``owners`` groups that share the model."""
    setting, groups = setting.for_plan(plan), groups_of(plan)
    (stages, size), entries = next(iter(groups.items()))
    return _group_cost(plan, setting, stages, size, entries, owners)


def step_with(plan: Plan, setting: Setting, group: GroupCost, micro_batches: int) -> float:
    """Return the step of one group of several with another number of micro-batches, memory aside."""
    setting, virtual = setting.for_plan(plan), len(group.stages) // len(group.places)
    ends = costs.ends(group.stages, micro_batches, group.schedule, virtual)
    waits = _lockstep(setting, tuple(one.stage for one in group.stages), alone=False) * float(ends.max())
    return float(ends.max()) + sum(_tail(setting, Terms.of(plan), group.places, ends).values()) + waits


def _problem(result: PlanCost) -> str:
    if not math.isfinite(result.step):
        return "crosses a tier whose bandwidth is undisclosed"
    return _overflow(result.fullest)


def _overflow(fullest: StageCost) -> str:
    if fullest.bytes > fullest.capacity:
        has = units.show(fullest.capacity, "data")
        largest = sorted(fullest.memory.items(), key=lambda part: -part[1])
        parts = ", ".join(f"{name} {units.show(held, 'data')}" for name, held in largest if held > 0)
        return f"needs {units.show(fullest.bytes, 'data')} on a {fullest.stage.pool} card with {has} usable ({parts})"
    return ""


def _group_cost(
    plan: Plan, setting: Setting, stages: tuple[Stage, ...], size: int, entries: Sequence[Pipeline], owners: int
) -> GroupCost:
    micro_batches, virtual = max(entry.micro_batches for entry in entries), entries[0].virtual_stages
    order = [entries[0].place_of(index, plan.schedule) for index in range(len(stages))]
    found = _blocking(setting, _group_stages(plan, setting, stages, size, entries, owners), size)
    alone = plan.cards == 1 and owners == 1
    return _joined(plan, setting, found, order, (micro_batches, virtual), alone=alone)


def timed_again(plan: Plan, setting: Setting, cost: PlanCost, number: int, stages: Sequence[StageCost]) -> GroupCost:
    """Return group ``number`` of a costed plan with other seconds for its stages, such as measured ones.

    With the group's own stages it is the group as it was costed.
    """
    setting = setting.for_plan(plan)
    entry = list(groups_of(plan).values())[number][0]
    order = [entry.place_of(index, plan.schedule) for index in range(len(stages))]
    alone = plan.cards == 1 and len(cost.groups) == 1
    runs = (cost.groups[number].micro_batches, entry.virtual_stages)
    return _joined(plan, setting, tuple(stages), order, runs, alone=alone)


def _joined(
    plan: Plan, setting: Setting, found: tuple[StageCost, ...], order: Sequence[int], runs: tuple[int, int],
    *, alone: bool,
) -> GroupCost:  # fmt: skip
    """Return stages as a group: their schedule's time for so many micro-batches and virtual stages, and its tail."""
    micro_batches, virtual = runs
    held = found if plan.schedule in SIMPLE else _merged(plan, found, order)
    ends = costs.ends(found, micro_batches, plan.schedule, virtual)
    parts = _tail(setting, Terms.of(plan), held, ends)
    parts["host"] += _lockstep(setting, tuple(one.stage for one in found), alone=alone) * float(ends.max())
    return GroupCost(found, held, micro_batches, plan.schedule, float(ends.max()), sum(parts.values()), parts)


def _group_stages(
    plan: Plan, setting: Setting, stages: tuple[Stage, ...], size: int, entries: Sequence[Pipeline], owners: int
) -> tuple[StageCost, ...]:
    """Return what the stages of a group of identical pipelines cost, and what the cards of their places hold."""
    replicas = sum(entry.count for entry in entries)
    micro_batches = max(entry.micro_batches for entry in entries)
    virtual = entries[0].virtual_stages
    order = [entries[0].place_of(index, plan.schedule) for index in range(len(stages))]
    places = [(stage.pool, stage.cards) for stage in stages[: entries[0].places]]
    hops = traffic.transfers(setting, places, size, replicas, order if virtual > 1 else None)
    keys = [key_of(setting, stages, index) for index in range(len(stages))]
    terms = Terms.of(plan)
    known = {
        key: _stage(plan, setting, terms, stages, index, (key, size, replicas, owners)) for index, key in _first(keys)
    }
    found = tuple(
        replace(known[key], stage=stage, transfer=seconds, crosses=crosses)
        for key, stage, (seconds, crosses) in zip(keys, stages, hops, strict=True)
    )
    return _placed(plan, setting, found, order, micro_batches, size)


def _stage(
    plan: Plan, setting: Setting, terms: Terms, stages: tuple[Stage, ...], index: int, key: tuple[Key, int, int, int]
) -> StageCost:
    """Return what one stage costs, wherever it stands in the pipeline, computed once; the key is what it follows from
    with what the plan says as a whole."""
    _, size, replicas, owners = key
    whole = (*key, terms, plan.sequence_length)
    if whole not in setting.stages:
        sharers = plan.replicas if plan.zero in setting.traits.shared_by_all else replicas
        blocks = Blocks.of(plan, setting, stages, index, size, sharers)
        setting.stages[whole] = stage_cost(terms, setting, stages[index], blocks, owners)
    found: StageCost = setting.stages[whole]
    return found


def _first(keys: Sequence[Key]) -> list[tuple[int, Key]]:
    """Return each key with the place where it comes first."""
    return [(keys.index(key), key) for key in dict.fromkeys(keys)]


def _blocking(setting: Setting, stages: tuple[StageCost, ...], size: int) -> tuple[StageCost, ...]:
    """Return the stages with the part of each message that both ends wait for as work of theirs."""
    traits = setting.traits
    if traits.pipeline_overlap >= 1 or len(stages) == 1:
        return stages
    whole = traffic.activation_bytes(setting, size)
    cards = [stage.stage.cards for stage in stages]
    small = [whole / min(pair) <= traits.buffer_bytes for pair in pairwise(cards)]
    share = [1.0 if buffered else traits.pipeline_overlap for buffered in small]
    waits = [0.0, *((1 - part) * stage.transfer for part, stage in zip(share, stages, strict=False)), 0.0]
    found = []
    for stage, part, before, after in zip(stages, [*share, 0.0], waits, waits[1:], strict=False):
        wait = max(before, after)
        found.append(
            replace(
                stage, forward=stage.forward + wait, backward=stage.backward + wait, waited=stage.waited + 2 * wait,
                transfer=part * stage.transfer,
            )
        )  # fmt: skip
    return tuple(found)


def _placed(
    plan: Plan, setting: Setting, stages: tuple[StageCost, ...], order: Sequence[int], micro_batches: int, size: int
) -> tuple[StageCost, ...]:
    """Return the stages with what the card of their place holds, the place's other stages included."""
    count = len(stages)
    if plan.schedule in SIMPLE:
        flight = memory.in_flight_micro_batches(np.arange(count), count, micro_batches, plan.schedule)
        held = [
            {**one.memory, "activations": kept * one.activation + one.working}
            for one, kept in zip(stages, np.broadcast_to(flight, count).tolist(), strict=True)
        ]
    else:
        held = _held_together(plan, stages, order, micro_batches)
    buffers = _buffers(setting, count, micro_batches, size) if setting.traits.receives_apart else [0.0] * count
    return tuple(
        replace(one, memory={**bytes_, "buffers": bytes_.get("buffers", 0.0) + buffer} if buffer else bytes_)
        for one, bytes_, buffer in zip(stages, held, buffers, strict=True)
    )


def _buffers(setting: Setting, stages: int, micro_batches: int, size: int) -> list[float]:
    """Return the bytes in which each stage receives a step's messages, one buffer for each."""
    one = micro_batches * traffic.activation_bytes(setting, size)
    return [one * ((index > 0) + (index < stages - 1)) for index in range(stages)]


def homes_of(plan: Plan, count: int, order: Sequence[int]) -> list[list[int]]:
    """Return the stages that each place holds, from the place of each stage (``order``).

    Under DualPipe a place holds one of each direction.
    """
    if plan.schedule == "dualpipe":
        return [sorted({place, count - 1 - place}) for place in range(count)]
    return [[index for index in range(count) if order[index] == place] for place in range(max(order) + 1)]


def _held_together(
    plan: Plan, stages: tuple[StageCost, ...], order: Sequence[int], micro_batches: int
) -> list[dict[str, float]]:
    count = len(stages)
    homes = homes_of(plan, count, order)
    kept = schedules.held_micro_batches(len(homes), micro_batches, plan.schedule, virtual_stages=count // len(homes))
    activation = np.array([stage.activation for stage in stages])
    totals = []
    for home, moments in zip(homes, kept, strict=True):
        sums = {name: sum(stages[index].memory[name] for index in home) for name in stages[0].memory}
        working = max(stages[index].working for index in home)
        totals.append({**sums, "activations": float((moments @ activation).max()) + working})
    return [totals[place] for place in order]


def _merged(plan: Plan, stages: tuple[StageCost, ...], order: Sequence[int]) -> tuple[StageCost, ...]:
    share = 0.5 if plan.schedule == "dualpipe" else 1.0
    homes = homes_of(plan, len(stages), order)
    found = [
        together([stages[index] for index in home], stages[home[0]].memory, share if len(home) > 1 else 1.0)
        for home in homes
    ]
    terms = Terms.of(plan)  # with every micro-batch, one layer's part is left of one stage, not of each
    once = [name for name, every in (("reduce", terms.every_reduce), ("gather", terms.gathers)) if every]
    return tuple(
        replace(place, **{name: max(getattr(stages[index], name) for index in home) for name in once})
        for place, home in zip(found, homes, strict=True)
    )


def _tail(
    setting: Setting, terms: Terms, places: Sequence[StageCost], ends: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Return the seconds that the last place to finish adds to the schedule, by what it does then.

    Each place sums its gradients when its own last backward ends. Where the engine overlaps, all but the first layer's
    hide behind that backward. Weights gathered at the start hide behind the first forward in the same way; a place that
    waits for its first activation gathers meanwhile. Of what goes with every micro-batch one layer's part is left.
    """
    last, latest = places[0], -1.0
    for place, end in zip(places, ends.tolist(), strict=True):
        finish = end + sum(_exposed_sums(setting, terms, place)) + place.optimizer
        if finish > latest or math.isnan(finish):
            last, latest = place, finish
    beyond = latest - float(ends.max())
    optimizer = min(last.optimizer, beyond)
    bridge = min(_exposed_sums(setting, terms, last)[1], beyond - optimizer)
    start = _late_start(setting, terms, places)
    return {
        "data": beyond - optimizer - bridge + start, "bridge": bridge, "optimizer": optimizer,
        "host": setting.traits.step_overhead_s,
    }  # fmt: skip


def _lockstep(setting: Setting, stages: tuple[Stage, ...], *, alone: bool) -> float:
    """Return what waiting for the last of several cards adds to their work, as far as that was measured of them."""
    if alone:
        return 0.0
    return max(setting.chips[stage.pool].lockstep for stage in stages) - 1.0


def _exposed_sums(setting: Setting, terms: Terms, place: StageCost) -> tuple[float, float]:
    """Return the seconds of a place's gradient sums, inside its pool and across, that no arithmetic hides."""
    parts, _ = terms.parts(place.stage.layers)
    behind, across = exposed_sums(setting, place.reduce, place.across, place.backward, parts)
    return float(behind), float(across)


def exposed_sums(
    setting: Setting, reduce: Array, across: Array, backward: Array, parts: Array
) -> tuple[Array, Array]:  # fmt: skip
    """Return the seconds of gradient sums, inside a pool and across pools, that no arithmetic hides: floats or arrays.

    What goes across comes behind what goes inside, and hides behind the rest of the same backward pass.
    """
    traits = setting.traits
    behind = at_an_end(setting, reduce, backward, parts, traits.gradient_overlap)
    if traits.bridge_overlap == 0:
        return behind, across
    both = at_an_end(setting, reduce + across, backward, parts, traits.bridge_overlap)
    return behind, np.maximum(both - behind, 0.0)


def _late_start(setting: Setting, terms: Terms, places: Sequence[StageCost]) -> float:
    """Return the seconds by which gathering weights delays the step."""
    late, arrival = 0.0, 0.0
    for place in places:
        _, parts = terms.parts(place.stage.layers)
        exposed = float(at_an_end(setting, place.gather, place.forward, parts, setting.traits.gather_overlap))
        late = max(late, exposed - arrival)
        arrival += place.forward + place.transfer
    return late


def at_an_end(setting: Setting, seconds: Array, work: Array, layers: Array, share: float) -> Array:
    """Return what communication of so many layers adds where it goes layer by layer beside one pass, all but one
    layer's part of it (:meth:`zhenfa.estimate.reduction.Terms.parts`): floats or arrays."""
    beside = 1 - 1 / np.maximum(layers, 1)
    hidden = exposed_time(seconds * beside, work * beside, share=share, contention=setting.traits.contention)
    return hidden + seconds * (1 - beside)
