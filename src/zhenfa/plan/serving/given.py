"""A serving plan that the user brings: read, held against its job and machine, and what it takes within the targets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from zhenfa.errors import InputError, UnknownNameError
from zhenfa.estimate import serving, serving_curves
from zhenfa.estimate.serving_curves import Cut, Group
from zhenfa.estimate.serving_engine import Engine
from zhenfa.estimate.serving_state import meet
from zhenfa.estimate.serving_step import Layout
from zhenfa.plan.request import Request
from zhenfa.plan.serving import closed, parts
from zhenfa.plan.serving.givers import Givers
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.search import Pool, supplied_by
from zhenfa.plan.serving.space import Family, Role, Types
from zhenfa.spec.serving import Instance, ServingPlan

Tuned = Callable[[Engine], Engine]
"""What is done to an engine's coefficients before a plan is looked at."""


def as_it_is(engine: Engine) -> Engine:
    """Return an engine unchanged."""
    return engine


def read_serving_plan(path: str | os.PathLike[str], request: Request) -> ServingPlan:
    """Read a serving plan for a request. Raises :class:`DocumentError`, or :class:`InputError` for another job's."""
    plan = ServingPlan.from_file(path)
    belongs(plan, request, name=str(path))
    return plan


def belongs(plan: ServingPlan, request: Request, *, name: str = "the plan") -> None:
    """Raise :class:`InputError` unless a plan is for the model, machine and engine of a request."""
    said = [
        ("model", plan.model, request.model.name, "take a job with that model, or plan this one with --out."),
        ("machine", plan.machine, request.formation.name, f"add --on {plan.machine}, or plan this machine with --out."),
        ("engine", plan.engine, request.serving.engine, "give job and plan the same."),
    ]
    for what, mine, wanted, hint in said:
        if mine != wanted:
            raise InputError(f"{name}: {what} is {mine!r}, but the job's is {wanted!r}.", hint=hint)
    known = [pool.name for pool in request.formation.pools]
    for pool in plan.cards_by_pool():
        if pool not in known:
            raise UnknownNameError("pool", pool, known, hint=f"{request.formation.name} has {', '.join(known)}.")


def faults(plan: ServingPlan, request: Request) -> list[str]:
    """Return what keeps a plan from running at all: cards that are not there, heads or experts that do not divide."""
    found = []
    for name, count in plan.cards_by_pool().items():
        there = request.formation.pool(name).count
        if count > there:
            found.append(f"takes {count:,} cards of {name}, which has {there:,}")
    operators = [one for kind in request.graph.kinds for one in kind.operators]
    heads = next((one.heads for one in operators if one.kind == "attention"), 1)
    held = max((one.experts for one in operators), default=1) or 1
    for part in plan.parts:
        for instance in filter(None, (part.prefill, part.decode)):
            if heads % instance.tensor_parallel:
                found.append(
                    f"tensor parallelism of {instance.tensor_parallel} does not divide {heads} attention heads"
                )
            if instance.expert_parallel > 2 * held:
                found.append(f"expert parallelism of {instance.expert_parallel} is more than twice the {held} experts")
    return list(dict.fromkeys(found))


def choice_of(plan: ServingPlan, request: Request, tuned: Tuned = as_it_is) -> tuple[Part, ...]:
    """Return a plan as the choice of a search: types of one row, and what each part takes within the targets (0: it
    misses one however little comes)."""
    return tuple(_part(one, request, tuned) for one in plan.parts)


def _part(plan: ServingPlan, request: Request, tuned: Tuned) -> Part:
    decode = _types(plan, plan.decode, request, "both" if plan.prefill is None else "decode", tuned)
    workload = request.serving
    if plan.prefill is None:
        part = Part(decode, 0, plan.decode.count)
        if workload.concurrency is not None:
            service, lines = decode.counted([0], [part.count])
            own = workload.model_copy(update={"concurrency": workload.concurrency * plan.share})
            state = meet(service, own, serving_curves.paces(service, own, lines))
            rate = float(np.ravel(state.through)[0]) if bool(closed.met(workload, state)[0]) else 0.0
        else:
            rate = float(parts.most_together(decode, [0], [part.count])[0])
        return replace(part, rate=rate)
    prefill = _types(serving.of_prefill(plan), plan.prefill, request, "prefill", tuned)
    first = Pool(prefill.family, prefill, prefill, prefill, supplied=supplied_by(prefill))
    other = Pool(decode.family, decode, decode, decode, decoded=parts.decode_limit(decode))
    joint = serving.crossing(request.graph, prefill.group, decode.group, request.formation)
    counts, left = np.array([plan.prefill.count]), np.array([plan.decode.count])
    if workload.concurrency is not None:
        state = closed.pair_state(first, other, joint, (0, 0), counts, left)
        rate = float(np.ravel(state.through)[0]) if bool(closed.met(workload, state)[0]) else 0.0
    else:
        givers = Givers(prefill, plan.prefill.count * plan.prefill.cards, 0.0)
        taken = givers.limit(0, counts, parts.one_of(decode, 0), joint, left)
        rate = float(min(taken[0], plan.decode.count * float(other.decoded[0])))
    return Part(decode, 0, plan.decode.count, rate, prefill, 0, plan.prefill.count)


def _types(plan: ServingPlan, instance: Instance, request: Request, role: Role, tuned: Tuned) -> Types:
    pool = request.formation.pool(instance.pool)
    engine = tuned(serving.engine_on(plan.engine, pool))
    family = Family(pool, plan.weights, plan.cache, plan.speculation, engine)
    notes: list[str] = []
    group = serving.group(request.graph, plan, instance, pool, engine, notes, _column(serving.cut_of(instance, engine)))
    service = serving_curves.Service(
        request.graph, plan, engine, group, group, group.setup.cards.tag, tuple(dict.fromkeys(notes))
    )
    return Types(family, role, service, request.serving)


def _column(cut: Cut) -> Cut:
    """Return a cut as a table of one row."""

    def one(value: object) -> np.ndarray:
        return np.full((1, 1), float(value))  # type: ignore[arg-type]

    layout = cut.layout
    degrees = (layout.tensor, layout.data, layout.context, layout.expert, layout.pipeline)
    return replace(
        cut, layout=Layout(*map(one, degrees)), count=one(cut.count), chunk=one(cut.chunk), most=one(cut.most)
    )


def fits(group: Group, request: Request, *, outputs: bool) -> bool:
    """Return whether the weights and one request fit on the cards of a group."""
    return float(np.ravel(serving_curves.room(group, request.graph, request.serving, outputs=outputs))[0]) >= 1
