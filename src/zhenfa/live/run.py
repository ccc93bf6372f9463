"""Run a plan for real: start cards, take steps, write a checkpoint, return a :class:`~zhenfa.spec.result.Run`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from zhenfa.errors import CapabilityError, RunError
from zhenfa.live.engine import Engine
from zhenfa.live.model import sizes_of
from zhenfa.live.placement import place
from zhenfa.live.report import run_of
from zhenfa.live.sizes import Sizes
from zhenfa.live.train import Driver, Measured, Progress
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Formation
from zhenfa.spec.model import Model
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.result import Run

Phase = Callable[[str], None]
"""Called with a few words when a new phase begins."""

EngineName = Literal["local", "ray"]


def run_plan(
    plan: Plan,
    formation: Formation,
    model: Model | Sizes,
    execution: Execution | None = None,
    *,
    steps: int | None = None,
    on_progress: Progress | None = None,
    on_phase: Phase | None = None,
    engine: EngineName | Engine | None = None,
    out_dir: Path | None = None,
) -> Run:
    """Execute a plan and return what happened.

    Arguments: ``model`` as a document, or the sizes read from one; ``execution`` settings, of which
    ``steps`` and ``engine`` may be overridden here (an engine that is passed in is left running); ``out_dir`` takes
    the checkpoint, none is written without it. If ``execution.compare_even_steps`` is not 0, the same cards first
    train with equally many layers on each stage for that many steps.
    Returns: the run; its mean step time leaves the first step out.
    Raises :class:`InputError` or :class:`CapabilityError` before anything starts, :class:`RunError` afterwards; no
    process, port or temporary folder is left in either case.
    """
    execution = execution or Execution()
    if steps is not None:
        execution = execution.model_copy(update={"steps": steps})
    sizes = model if isinstance(model, Sizes) else sizes_of(model)
    place(plan, formation, sizes)
    say = on_phase or (lambda _: None)
    say(f"starting {plan.cards} cards")
    carrier = engine if isinstance(engine, Engine) else open_engine(engine or execution.engine)
    try:
        driver = Driver(carrier, formation, sizes, execution)
        return _phases(driver, plan, on_progress, say, out_dir)
    except RunError:
        _keep_log(carrier, out_dir)
        raise
    finally:
        if carrier is not engine:
            carrier.close()


def open_engine(name: str) -> Engine:
    """Return a new engine by name. Raises :class:`CapabilityError` if what it needs is not installed."""
    if name == "local":
        from zhenfa.live.engine_local import LocalEngine

        return LocalEngine()
    if name == "ray":
        from zhenfa.live.engine_ray import RayEngine

        return RayEngine()
    raise CapabilityError(f"there is no engine {name!r}.", hint="engines: local, ray.")


def even_split(plan: Plan) -> Plan:
    """Return the plan with equally many layers on every stage of a pipeline; what is left over goes to the first."""
    return plan.model_copy(update={"pipelines": tuple(_even(pipeline) for pipeline in plan.pipelines)})


def _even(pipeline: Pipeline) -> Pipeline:
    layers, stages = pipeline.stages[-1].last, len(pipeline.stages)
    ends = [layers * (index + 1) // stages for index in range(stages)]
    even: list[Stage] = []
    for stage, end in zip(pipeline.stages, ends, strict=True):
        even.append(stage.model_copy(update={"first": even[-1].last if even else 0, "last": end}))
    return pipeline.model_copy(update={"stages": tuple(even)})


def _phases(driver: Driver, plan: Plan, on_progress: Progress | None, say: Phase, out_dir: Path | None) -> Run:
    execution, engine = driver.execution, driver.engine
    try:
        even: Measured | None = None
        if execution.compare_even_steps:
            say(f"even split, {execution.compare_even_steps} steps")
            even = driver.train(even_split(plan), execution.compare_even_steps)
        say(f"training, {execution.steps} steps")
        measured = driver.train(plan, execution.steps, on_progress)
        saved = None
        if out_dir is not None:
            say("saving the checkpoint")
            saved = driver.save(measured, out_dir)
    finally:
        driver.close()
    return run_of(measured, even, protection=engine.protection, engine=engine.name, checkpoint=saved)


def _keep_log(engine: Engine, out_dir: Path | None) -> None:
    """Keep what the cards said, for whoever looks for the cause."""
    log = engine.folder / "cards.log"
    if out_dir is not None and log.exists() and log.stat().st_size:
        out_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, out_dir / "cards.log")
