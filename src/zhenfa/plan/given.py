"""A plan that the user brings: read, held against its job and machine, costed, and what keeps it from running."""

from __future__ import annotations

import math
import os

from zhenfa import units
from zhenfa.errors import InputError, UnknownNameError
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.meeting import unmet
from zhenfa.plan.request import Request
from zhenfa.plan.space import experts
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Plan


def read_plan(path: str | os.PathLike[str], request: Request) -> Plan:
    """Read a plan for a request. Raises :class:`DocumentError`, or :class:`InputError` for a plan of another job."""
    plan = Plan.from_file(path)
    belongs(plan, request, name=str(path))
    return plan


def belongs(plan: Plan, request: Request, *, name: str = "the plan") -> None:
    """Raise :class:`InputError` unless a plan is for the model, machine and workload of a request."""
    formation, workload = request.formation, request.training
    said: list[tuple[str, object, object, str]] = [
        ("model", plan.model, request.graph.name, "take a job with that model, or plan this one with --out."),
        ("machine", plan.machine, formation.name, f"add --on {plan.machine}, or plan this machine with --out."),
        ("sequence_length", plan.sequence_length, workload.sequence_length, "give job and plan the same."),
        ("sequences of a step", plan.global_batch, workload.global_batch, "count x micro_batches x micro_batch_size "
         "over its pipelines must be the job's global_batch."),
        ("layers", plan.layers, len(request.graph.layers), "its last stage must end at the model's last layer."),
    ]  # fmt: skip
    for what, mine, wanted, hint in said:
        if mine != wanted:
            raise InputError(f"{name}: {what} is {mine!r}, but the job's is {wanted!r}.", hint=hint)
    for pool, one in plan.precision_by_pool().items():
        if one not in workload.precisions:
            allowed = workload.precisions
            wanted = repr(allowed[0]) if len(allowed) == 1 else f"one of {', '.join(allowed)}"
            where = "" if len(set(plan.precision_by_pool().values())) == 1 else f" on {pool}"
            raise InputError(
                f"{name}: precision{where} is {one!r}, but the job's is {wanted}.",
                hint=f"give job and plan the same, or allow both: workload.precision: [{', '.join((*allowed, one))}].",
            )
    known = [pool.name for pool in formation.pools]
    for pool in plan.cards_by_pool():
        if pool not in known:
            raise UnknownNameError("pool", pool, known, hint=f"{formation.name} has {', '.join(known)}.")


def costed(plan: Plan, setting: Setting) -> PlanCost:
    """Return the cost of a plan. Raises :class:`InputError` where its schedule cannot run it."""
    return cost(plan, setting)


def faults(plan: Plan, setting: Setting, limits: Limits) -> list[str]:
    """Return what keeps a plan from running at all, memory apart: cards, heads, experts that do not divide, limits."""
    found = []
    for name, count in plan.cards_by_pool().items():
        there = setting.formation.pool(name).count
        if count > there:
            found.append(f"takes {count:,} cards of {name}, which has {there:,}")
    if limits.max_cards is not None and plan.cards > limits.max_cards:
        found.append(f"takes {plan.cards:,} cards, and limits.max_cards is {limits.max_cards:,}")
    found += unmet(plan, setting)
    heads = [one.heads for kind in setting.graph.kinds for one in kind.operators if one.kind in {"attention", "scan"}]
    common, held = math.gcd(*heads) if heads else setting.graph.hidden, experts(setting)
    for pipeline in plan.pipelines:
        for stage in dict.fromkeys(stage.model_copy(update={"first": 0, "last": 0}) for stage in pipeline.stages):
            if common % stage.tensor_parallel:
                found.append(f"tensor parallelism of {stage.tensor_parallel} does not divide {common} attention heads")
            if held % stage.expert_parallel:
                found.append(f"expert parallelism of {stage.expert_parallel} does not divide {held} experts")
            replicas = sum(one.count for one in plan.pipelines if one.stages == pipeline.stages)
            if replicas * stage.cards % (stage.expert_parallel * stage.expert_tensor_parallel):
                found.append(
                    f"a stage has {replicas * stage.cards:,} cards over its replicas, which are no whole groups of "
                    f"{stage.expert_parallel * stage.expert_tensor_parallel} that share the experts out"
                )
    return list(dict.fromkeys(found))


def misfits(result: PlanCost) -> list[str]:
    """Return, for each sort of stage that does not fit in memory, by how much and with what."""
    found: dict[str, list[int]] = {}
    number = 0
    for group in result.groups:
        for index, stage in enumerate(group.stages):
            if stage.bytes > stage.capacity:
                largest = sorted(stage.memory.items(), key=lambda part: -part[1])
                parts = ", ".join(f"{name} {units.show(held, 'data')}" for name, held in largest if held > 0)
                words = (
                    f"{units.show(stage.bytes - stage.capacity, 'data')} too much on each {stage.stage.pool} card: "
                    f"{units.show(stage.bytes, 'data')} of {units.show(stage.capacity, 'data')} usable ({parts})"
                )
                found.setdefault(words, []).append(index)
            number += 1
    return [f"stage {_ranges(stages)}: {words}" for words, stages in found.items()]


def _ranges(numbers: list[int]) -> str:
    numbers = sorted(set(numbers))
    if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))
