"""A few steps of plans that use every card and every link of a machine: what they measured over what was predicted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from zhenfa import units
from zhenfa.errors import CapabilityError, InputError
from zhenfa.estimate.report import report
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.engine import Engine
from zhenfa.live.learn.attribute import Predicted, attribute
from zhenfa.live.learn.feedback import Lesson, applied, lesson, with_lesson
from zhenfa.live.model import sizes_of
from zhenfa.live.placement import check
from zhenfa.live.routing import busiest_card
from zhenfa.live.run import run_plan
from zhenfa.live.sizes import Sizes
from zhenfa.live.train import Measured
from zhenfa.plan.request import Request, setting_of
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Formation, Machine
from zhenfa.spec.plan import Pipeline, Plan, Stage

STEPS: Final = (2, 6)
"""Steps of a plan at least and at most; the first is not timed."""
MICRO_BATCHES: Final = 4
"""Of a pipeline of as many stages or fewer; more stages take as many as there are."""

Say = Callable[[str], None]


def probed(
    request: Request, within: float, say: Say, sizes: Sizes | None = None
) -> tuple[Machine, str, bool]:  # fmt: skip
    """Return a request's machine with what its cards taught within about so many seconds, what was done in words, and
    whether all of it was measured. ``sizes`` are those of the request's model, where they are not read from it.

    Raises :class:`InputError` where no plan fits the machine, or none can be run in that time.
    """
    from zhenfa.live.engine_local import LocalEngine

    machine, formation = request.machine, request.formation
    if machine is None:
        raise InputError("there is no machine document to measure.", hint="name a machine, or a file of one.")
    request = replace(request, traits=OWN_RUNTIME)
    begun = time.monotonic()
    told: list[str] = []
    left_out: list[str] = []
    with LocalEngine() as engine:
        plans = dict(plans_of(request, sizes))
        for number, (name, plan) in enumerate(plans.items()):
            left = (within - (time.monotonic() - begun)) / (len(plans) - number)
            what = _predicted(replace(request, formation=formation), plan)
            steps = min(int(left / what.cost.step), STEPS[1])
            if what.cost.problem or steps < STEPS[0]:
                why = what.cost.problem or f"a step takes {units.show(what.cost.step, 'time')}"
                left_out.append(f"{name} ({why})")
                continue
            say(f"measuring {name}, {steps} steps")
            taught = _taught(request, what, engine, steps, sizes)
            if taught is None:
                left_out.append(f"{name} (the timing was not valid)")
                continue
            formation, machine = applied(formation, taught), with_lesson(machine, taught)
            told.append(f"{name}, {steps} steps")
    if not told and not left_out:
        raise InputError("no plan uses all cards of this machine.", hint="leave --calibrate out.")
    words = f"measured {' and '.join(told)}" if told else "nothing was measured"
    missing = f"; left out: {', '.join(left_out)}" if left_out else ""
    return machine, words + missing, not left_out


def _predicted(request: Request, plan: Plan) -> Predicted:
    setting = setting_of(request)
    costed = cost(plan, setting)
    step = report(plan, setting, costed).figures.step_time_s
    return Predicted(plan, setting, costed, step, request.formation)


def _taught(
    request: Request, what: Predicted, engine: Engine, steps: int, sizes: Sizes | None
) -> Lesson | None:  # fmt: skip
    """Run a plan on the machine as its document says, and return what it taught; None where its timing is not valid."""
    told: list[Measured] = []
    execution = Execution(steps=steps, recover=False, snapshot_every=0)
    run = run_plan(what.plan, request.formation, sizes or request.model, execution, engine=engine, learn=told.append)
    (measured,) = told
    if not run.fidelity.get("valid"):
        return None
    busiest = busiest_card(measured.reports)
    found = attribute(what, measured.places, measured.timings, measured.step_time, valid=True, busiest=busiest)
    return lesson(found, f"{request.job.name}, before it", emulated=request.formation.emulated)


def plans_of(request: Request, sizes: Sizes | None = None) -> Iterator[tuple[str, Plan]]:
    """Yield, with what each is called, the plans that a machine is measured by: the whole model on every card, and one
    pipeline through all of them, as far as it has a layer for each."""
    formation, layers = request.formation, len(request.graph.layers)
    stages = (Stage(pool=pool.name, first=0, last=layers) for pool in formation.pools)
    replicas = [Pipeline(count=pool.count, micro_batches=1, micro_batch_size=1, stages=(stage,))
                for pool, stage in zip(formation.pools, stages, strict=True)]  # fmt: skip
    places = _places(formation, layers)
    edges = [layers * number // len(places) for number in range(len(places) + 1)]
    line = tuple(Stage(pool=pool, first=edges[at], last=edges[at + 1]) for at, pool in enumerate(places))
    pipeline = Pipeline(micro_batches=max(MICRO_BATCHES, len(places)), micro_batch_size=1, stages=line)
    ways = {"replicas on all cards": replicas, "a pipeline through all cards": [pipeline] * (len(places) > 1)}
    for name, pipelines in ways.items():
        if not pipelines:
            continue
        plan = Plan(
            job=request.job.name, model=request.model.name, machine=formation.name,
            sequence_length=request.training.sequence_length, precision=request.training.precisions[0],
            pipelines=tuple(pipelines),
        )  # fmt: skip
        try:
            check(plan, sizes or sizes_of(request.model))
        except (CapabilityError, InputError):
            continue
        yield name, plan


def _places(formation: Formation, layers: int) -> list[str]:
    """Return the pool of each place of a pipeline: every card, or, of more cards than layers, as many as there are
    layers, of each pool as many as of any other while they last."""
    left = {pool.name: pool.count for pool in formation.pools}
    taken = dict.fromkeys(left, 0)
    while sum(taken.values()) < layers and any(left.values()):
        for name, still in list(left.items()):
            if still and sum(taken.values()) < layers:
                left[name], taken[name] = still - 1, taken[name] + 1
    return [name for name, count in taken.items() for _ in range(count)]
