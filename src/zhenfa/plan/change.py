"""One thing of a plan changed at a time, and costed for real: which single change helps, and what bars the others.

A plan whose stages are all cut alike is laid out anew with the change: as many replicas as its own cards allow, its
layers split as the search splits them. Of any other plan what needs no new cards is changed: recomputation of a pool,
ZeRO stage, schedule, micro-batch size, the split of the layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from zhenfa import units
from zhenfa.errors import InputError
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.beside import SingleChange
from zhenfa.plan.build import CODES, Layout, Slot, in_precisions, make_plan, pipelines
from zhenfa.plan.even import even_ranges
from zhenfa.plan.given import faults
from zhenfa.plan.goal import QUICKEST, Goal
from zhenfa.plan.polish import improved
from zhenfa.plan.space import context_degrees, divisors, experts, micro_batch_sizes, tensor_degrees
from zhenfa.plan.sparing import kept_away
from zhenfa.plan.split import Refused, split_layers
from zhenfa.spec.job import Limits
from zhenfa.spec.machine import BETWEEN, Precision
from zhenfa.spec.plan import VIRTUAL, Offload, Pipeline, Plan, Schedule

SPLITS_TRIED: Final = 8


Change = SingleChange[Plan, PlanCost]
"""A training plan with one thing changed, and costed."""


@dataclass(frozen=True)
class Form:
    """A plan whose stages are all cut alike, as numbers."""

    pool: str
    tensor: int
    places: int
    virtual: int
    schedule: Schedule
    context: int
    expert: int
    expert_tensor: int
    recompute: int
    size: int
    zero: int
    replicas: int
    precision: Precision | None = None
    offload: Offload = "none"
    again: int | None = None
    """Layers of a stage that are computed again, where not all are."""

    @classmethod
    def of(cls, plan: Plan) -> Form | None:
        """Return the form of a plan; None where its stages differ in more than their layers."""
        first = plan.pipelines[0]
        cuts = {
            (stage.cut, stage.recompute, stage.recompute_layers) for pipe in plan.pipelines for stage in pipe.stages
        }
        sizes = {(pipe.stages, pipe.micro_batch_size) for pipe in plan.pipelines}
        stage = first.stages[0]
        some = stage.recompute_layers is not None and stage.recompute != "full"
        if len(cuts) > 1 or len(sizes) > 1 or some or stage.data_parallel > 1:
            return None
        return cls(
            stage.pool, stage.tensor_parallel, first.places, first.virtual_stages, plan.schedule,
            stage.context_parallel, stage.expert_parallel, stage.expert_tensor_parallel,
            CODES.index(stage.recompute), first.micro_batch_size, plan.zero, plan.replicas,
            stage.precision or plan.precision, plan.offload, stage.recompute_layers,
        )  # fmt: skip


def changes(plan: Plan, setting: Setting, limits: Limits, goal: Goal = QUICKEST) -> list[Change]:
    """Return every single change that was tried, the best possible first, then those that are barred."""
    form = Form.of(plan)
    tried = list(_of_form(plan, form, setting, limits)) if form else list(_of_any(plan, setting, limits))
    found = {change.words: _worth(change, goal) for change in tried}
    return sorted(found.values(), key=lambda one: (bool(one.barred), one.score is None, one.score or 0.0))


def _worth(change: Change, goal: Goal) -> Change:
    """Return a change with its score, barred where it breaks a limit of the goal."""
    if change.plan is None or change.cost is None or not math.isfinite(change.cost.step):
        return change
    scored = replace(change, score=goal.score(change.plan, change.cost))
    refused = "" if change.barred else goal.refusal(change.plan, change.cost)
    return replace(scored, barred=refused, by="limits") if refused else scored


_LABELS: Final = {
    "tensor": "tensor parallelism", "places": "pipeline stages", "virtual": "stages to a place",
    "schedule": "schedule", "context": "context parallelism", "expert": "expert parallelism",
    "expert_tensor": "cards that split an expert", "recompute": "recomputation", "size": "micro-batch size",
    "zero": "ZeRO stage", "replicas": "replicas", "precision": "precision", "offload": "in host memory",
    "again": "layers computed again",
}  # fmt: skip


def _of_form(plan: Plan, form: Form, setting: Setting, limits: Limits) -> Iterator[Change]:
    again = _laid(plan, form, setting, plan.cards)
    if again is not None and again.pipelines != plan.pipelines:
        yield _tried(Change("layers split anew", "", ""), again, setting, limits)
    for name, value in _neighbours(plan, form, setting):
        before, after = (_shown(name, getattr(form, name)), _shown(name, value))
        change = Change(_LABELS[name], before, after)
        extra: dict[str, Any] = {}
        if name == "schedule":
            extra["virtual"] = max(form.virtual, 2) if value in VIRTUAL else 1
        cards = _cards_for(plan, form, setting) if name == "replicas" else plan.cards
        other = _laid(plan, replace(form, **{name: value}, **extra), setting, cards)
        if other is None:
            yield replace(change, barred="its groups of cards do not come out whole", by="cards")
        else:
            yield _tried(change, other, setting, limits)


def _cards_for(plan: Plan, form: Form, setting: Setting) -> int:
    return max(plan.cards, setting.formation.pool(form.pool).count)


def _shown(name: str, value: object) -> str:
    return CODES[value] if name == "recompute" and isinstance(value, int) else f"{value}"


def _neighbours(plan: Plan, form: Form, setting: Setting) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each single change of a form: the nearest below and above of what there is."""
    free, traits = Limits(), setting.traits
    layers = len(setting.graph.layers)
    depths = sorted({form.places // 2, form.places - 1, form.places + 1, 2 * form.places} - {0})
    ladders: dict[str, list[int]] = {
        "tensor": tensor_degrees(setting, form.pool, free),
        "context": context_degrees(setting, form.pool, free),
        "expert": divisors(experts(setting), 4096),
        "size": micro_batch_sizes(plan.global_batch, free),
    }
    for name, rungs in ladders.items():
        here = getattr(form, name)
        yield from ((name, one) for one in [*[one for one in rungs if one < here][-1:],
                                            *[one for one in rungs if one > here][:1]])  # fmt: skip
    yield from (("places", one) for one in depths if one * form.virtual <= layers and one != form.places)
    yield from (("recompute", one) for one in traits.recompute if one != form.recompute)
    yield from (("zero", one) for one in traits.zero_stages if one != form.zero)
    yield from (("precision", one) for one in setting.precisions(form.pool) if one != form.precision)
    yield from (("offload", one) for one in traits.offloads if one != form.offload)
    if form.again is not None:
        yield from (("again", one) for one in (form.again - 1, form.again + 1) if one > 0)
    if experts(setting) > 1 and form.tensor > 1:
        yield "expert_tensor", 1 if form.expert_tensor > 1 else form.tensor
    if form.places > 1:
        for schedule in traits.schedules:
            virtual = 2 if schedule in VIRTUAL else 1
            if schedule != form.schedule and form.places * virtual <= layers:
                yield "schedule", schedule
    if form.schedule == "interleaved":
        yield from (("virtual", one) for one in (form.virtual - 1, form.virtual + 1)
                    if one > 1 and one * form.places <= layers)  # fmt: skip
    most = min(
        setting.formation.pool(form.pool).count // (form.tensor * form.context * form.places),
        plan.global_batch // form.size,
    )
    if most > form.replicas:
        yield "replicas", most


def _laid(plan: Plan, form: Form, setting: Setting, cards: int) -> Plan | None:
    """Return the plan of a form over so many cards at most; None where not one replica has whole groups."""
    width, total = form.tensor * form.context, plan.global_batch // form.size
    held = form.expert * form.expert_tensor
    step = held // math.gcd(held, width)
    replicas = min(cards // (width * form.places), total) // step * step
    if replicas < 1 or plan.global_batch % form.size:
        return None
    slot = Slot(
        form.pool, form.tensor, form.expert, form.recompute, form.context, form.expert_tensor, precision=form.precision
    )
    layout = Layout(
        (slot,) * form.places, replicas, form.size, -(-total // replicas), form.zero, form.schedule, form.virtual,
        form.offload, again=form.again if CODES[form.recompute] == "full" else None,
    )  # fmt: skip
    kept = {
        name: getattr(plan, name)
        for name in ("shard_group", "reshard", "reduce_every", "sequence_parallel", "context_exchange", "trainable",
                     "lora_rank", "expert_imbalance")
    }  # fmt: skip
    stage = plan.pipelines[0].stages[0]
    named = stage.recompute == CODES[form.recompute] == "selective"
    best: tuple[float, Plan] | None = None
    for ranges in _splits(setting, layout):
        other = make_plan(setting, plan.job, layout, pipelines(layout, ranges, total)).model_copy(update=kept)
        if named:
            entries = tuple(_with_stages(one, recompute_modules=stage.recompute_modules) for one in other.pipelines)
            other = other.model_copy(update={"pipelines": entries})
        score = _score(other, setting)
        if best is None or score < best[0]:
            best = (score, other)
    return None if best is None else best[1]


def _splits(setting: Setting, layout: Layout) -> list[list[tuple[int, int]]]:
    """Return splits of the layers to try: the likeliest of the search under 1F1B, an even one under other schedules or
    where none fits in memory."""
    even = [even_ranges(len(setting.graph.layers), len(layout.slots), layout.virtual)]
    if layout.schedule != "1f1b":
        return even
    found = split_layers(kept_away(setting, layout.offload), layout)
    return even if isinstance(found, Refused) else [split.ranges for split in found[:SPLITS_TRIED]]


def _score(plan: Plan, setting: Setting) -> float:
    try:
        found = cost(plan, setting)
    except InputError:
        return float("inf")
    over = found.fullest.bytes / found.fullest.capacity
    return found.step if over <= 1 else 1e9 * over


def _with_stages(pipe: Pipeline, **changed: Any) -> Pipeline:
    return pipe.model_copy(update={"stages": tuple(stage.model_copy(update=changed) for stage in pipe.stages)})


def _tried(change: Change, plan: Plan, setting: Setting, limits: Limits) -> Change:
    """Return a change with its plan costed, and what bars it."""
    try:
        found = cost(plan, setting)
    except InputError as problem:
        return replace(change, plan=plan, barred=problem.message.rstrip("."), by="micro-batches")
    if not found.problem:
        better = improved(setting, plan, found) if Form.of(plan) is not None and plan.schedule == "1f1b" else None
        plan, found = better or (plan, found)
    barred, by = _barred(plan, found, setting, limits)
    return replace(change, plan=plan, cost=found, barred=barred, by=by)


def _barred(plan: Plan, found: PlanCost, setting: Setting, limits: Limits) -> tuple[str, str]:
    broken = _beyond(plan, limits)
    if broken:
        return broken, "limits"
    wrong = faults(plan, setting, limits)
    if wrong:
        return wrong[0], "cards"
    if "bandwidth" in found.problem:
        return found.problem, "bandwidth"
    if found.problem:
        full = found.fullest
        stage = found.stages.index(full)
        largest = max(full.memory, key=lambda name: full.memory[name])
        over = units.show(full.bytes - full.capacity, "data")
        return f"{over} too much on stage {stage} (mostly {largest})", "memory"
    return "", ""


def _beyond(plan: Plan, limits: Limits) -> str:
    """Return which of the job's limits a plan breaks; empty for none."""
    stages = [stage for pipe in plan.pipelines for stage in pipe.stages]
    values = {
        "max_tensor_parallel": max(stage.tensor_parallel for stage in stages),
        "max_context_parallel": max(stage.context_parallel for stage in stages),
        "max_pipeline_parallel": max(pipe.places for pipe in plan.pipelines),
        "max_cards": plan.cards,
    }
    for name, value in values.items():
        most = getattr(limits, name)
        if most is not None and value > most:
            return f"limits.{name} is {most:,}"
    sizes = {pipe.micro_batch_size // stage.data_parallel for pipe in plan.pipelines for stage in pipe.stages}
    if limits.micro_batch_size is not None and sizes != {limits.micro_batch_size}:
        return f"limits.micro_batch_size is {limits.micro_batch_size}"
    return ""


def _of_any(plan: Plan, setting: Setting, limits: Limits) -> Iterator[Change]:
    """Yield changes of a plan whose stages differ: what needs no other cards."""
    traits = setting.traits
    try:
        better = improved(setting, plan, cost(plan, setting))
    except InputError:
        better = None
    if better is not None:
        yield Change("layers split anew", "", "", *better)
    for pool in plan.cards_by_pool():
        now = {stage.recompute for pipe in plan.pipelines for stage in pipe.stages if stage.pool == pool}
        for code in traits.recompute:
            if {CODES[code]} != now:
                entries = tuple(
                    pipe.model_copy(update={"stages": tuple(
                        stage.model_copy(update=_recomputing(code, pool, setting)) if stage.pool == pool else stage
                        for stage in pipe.stages
                    )})
                    for pipe in plan.pipelines
                )  # fmt: skip
                change = Change(f"recomputation on {pool}", "/".join(sorted(now)), CODES[code])
                yield _tried(change, plan.model_copy(update={"pipelines": entries}), setting, limits)
    yield from _other_precisions(plan, setting, limits)
    for zero in traits.zero_stages:
        if zero != plan.zero:
            yield _tried(Change("ZeRO stage", str(plan.zero), str(zero)), plan.model_copy(update={"zero": zero}),
                         setting, limits)  # fmt: skip
    if all(pipe.virtual_stages == 1 for pipe in plan.pipelines):
        for schedule in traits.schedules:
            if schedule not in VIRTUAL and schedule != plan.schedule:
                other = plan.model_copy(update={"schedule": schedule})
                yield _tried(Change("schedule", plan.schedule, schedule), other, setting, limits)
    yield from _sizes(plan, setting, limits)


def _other_precisions(plan: Plan, setting: Setting, limits: Limits) -> Iterator[Change]:
    for pool, before in plan.precision_by_pool().items():
        for one in setting.precisions(pool):
            if one != before and BETWEEN[one] == BETWEEN[before]:
                ways = {**plan.precision_by_pool(), pool: one}
                usual, entries = in_precisions(plan.pipelines, ways)
                other = plan.model_copy(update={"precision": usual, "pipelines": entries})
                yield _tried(Change(f"precision on {pool}", before, one), other, setting, limits)


def _sizes(plan: Plan, setting: Setting, limits: Limits) -> Iterator[Change]:
    for factor in (0.5, 2.0):
        entries = []
        for pipe in plan.pipelines:
            size, times = pipe.micro_batch_size * factor, pipe.micro_batches / factor
            if size != int(size) or times != int(times):
                break
            entries.append(pipe.model_copy(update={"micro_batch_size": int(size), "micro_batches": int(times)}))
        else:
            before, after = (
                "/".join(str(pipe.micro_batch_size) for pipe in pipes) for pipes in (plan.pipelines, entries)
            )
            other = plan.model_copy(update={"pipelines": tuple(entries)})
            yield _tried(Change("micro-batch size", before, after), other, setting, limits)


def _sizes_of(pipes: Sequence[Pipeline]) -> str:
    return "/".join(str(pipe.micro_batch_size) for pipe in pipes)


__all__ = ["Change", "Form", "changes"]


def _recomputing(code: int, pool: str, setting: Setting) -> dict[str, object]:
    """Return what a stage says that computes again as the search has it."""
    named = setting.planned_again(pool) if CODES[code] == "selective" else ()
    return {"recompute": CODES[code], "recompute_modules": named}
