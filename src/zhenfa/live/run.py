"""Run a plan for real: start cards, take steps, write a checkpoint, return a :class:`~zhenfa.spec.result.Run`."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from zhenfa.errors import CapabilityError, RunError
from zhenfa.live.compared import crosses, traffic, uncompressed
from zhenfa.live.data import located
from zhenfa.live.engine import CardError, Engine
from zhenfa.live.model import sizes_of
from zhenfa.live.placement import place
from zhenfa.live.report import run_of
from zhenfa.live.sizes import Sizes
from zhenfa.live.supervise import Learn, Replan, Supervisor
from zhenfa.live.train import CardFullError, Driver, Measured, Progress
from zhenfa.live.weights import sizes_with
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Formation
from zhenfa.spec.model import Model
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.result import Figure, Run, StageFigures

Phase = Callable[[str], None]
"""Called with a few words when a new phase begins."""

EngineName = Literal["local", "ray", "slurm"]


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
    replan: Replan | None = None,
    resume: Path | None = None,
    stop: Callable[[], bool] | None = None,
    learn: Learn | None = None,
) -> Run:
    """Execute a plan and return what happened.

    Arguments: ``model`` as a document, or the sizes read from one; ``execution`` settings, of which
    ``steps`` and ``engine`` may be overridden here (an engine that is passed in is left running); ``out_dir`` takes
    the checkpoint, none is written without it. If ``execution.compare_even_steps`` is not 0 and the plan is not even,
    the same cards first train with the :func:`even_split` of it for that many steps; if ``execution.bridge`` compresses
    anything between makers and has ``compare_steps``, they take that many steps uncompressed.
    ``learn`` is told what the cards measured with a plan, before they take up another one and at the end.
    Returns: the run; its mean step time leaves the first step out.
    Raises :class:`InputError` or :class:`CapabilityError` before anything starts, :class:`RunError` afterwards; no
    process, port or temporary folder is left in either case.
    """
    execution = execution or Execution()
    if steps is not None:
        execution = execution.model_copy(update={"steps": steps})
    sizes = model if isinstance(model, Sizes) else sizes_of(model)
    if execution.weights is not None and sizes.source is None:
        sizes = sizes_with(Path(execution.weights), sizes)
    execution = located(execution, sizes)
    place(plan, formation, sizes)
    _check_bridge(plan, formation, execution)
    say = on_phase or (lambda _: None)
    say(f"starting {plan.cards} cards")
    carrier = engine if isinstance(engine, Engine) else open_engine(engine or execution.engine)
    try:
        if not carrier.one_host:  # elsewhere, paths are not relative to the driver's folder
            out_dir, resume = (path and path.absolute() for path in (out_dir, resume))
        driver = Driver(carrier, formation, sizes, execution)
        supervisor = Supervisor(
            driver, plan, replan=replan, resume=resume, disk=out_dir, on_step=on_progress, say=say,
            stop=stop or (lambda: False), learn=learn or (lambda _: None),
        )  # fmt: skip
        return _phases(supervisor, say)
    except RunError:
        _keep_log(carrier, out_dir)
        raise
    finally:
        if carrier is not engine:
            carrier.close()


def _check_bridge(plan: Plan, formation: Formation, execution: Execution) -> None:
    """Refuse to pack gradients of which every micro-batch's go to the cards that add them up."""
    if plan.zero > 1 and execution.bridge.gradients != "none" and crosses(plan, formation):
        raise CapabilityError(
            f"the plan asks for ZeRO-{plan.zero} and execution.bridge.gradients for {execution.bridge.gradients}; "
            "gradients that leave with every micro-batch are not packed in this version.",
            hint="write execution.bridge.gradients: none, or plan with zero: 0 or 1.",
        )


def open_engine(name: str) -> Engine:
    """Return a new engine by name. Raises :class:`CapabilityError` if what it needs is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise CapabilityError("torch is not installed.", hint="pip install 'zhenfa[live]'.")
    if name == "local":
        from zhenfa.live.engine_local import LocalEngine

        return LocalEngine()
    if name == "ray":
        from zhenfa.live.engine_ray import RayEngine

        return RayEngine()
    if name == "slurm":
        from zhenfa.live.engine_slurm import SlurmEngine

        return SlurmEngine()
    raise CapabilityError(f"there is no engine {name!r}.", hint="engines: local, ray, slurm.")


def even_split(plan: Plan) -> Plan:
    """Return the plan with equally many layers on every stage of a pipeline, and equal shares for all replicas.

    What is left over goes to the first. Shares stay as they are where micro-batches differ in size, or where an equal
    share would be too few micro-batches for 1f1b.
    """
    pipelines = [_even_layers(pipeline) for pipeline in plan.pipelines]
    replicas = [pipeline.model_copy(update={"count": 1}) for pipeline in pipelines for _ in range(pipeline.count)]
    total = sum(replica.micro_batches for replica in replicas)
    shares = [total // len(replicas) + (index < total % len(replicas)) for index in range(len(replicas))]
    same_size = len({replica.micro_batch_size for replica in replicas}) == 1
    enough = all(share >= len(replica.stages) for share, replica in zip(shares, replicas, strict=True))
    equal = len({replica.micro_batches for replica in replicas}) == 1
    if equal or not same_size or not enough:
        return plan.model_copy(update={"pipelines": tuple(pipelines)})
    even = [
        replica.model_copy(update={"micro_batches": share}) for replica, share in zip(replicas, shares, strict=True)
    ]
    return plan.model_copy(update={"pipelines": tuple(even)})


def _even_layers(pipeline: Pipeline) -> Pipeline:
    each, over = divmod(pipeline.stages[-1].last, len(pipeline.stages))
    even: list[Stage] = []
    for index, stage in enumerate(pipeline.stages):
        first = even[-1].last if even else 0
        even.append(stage.model_copy(update={"first": first, "last": first + each + (index < over)}))
    return pipeline.model_copy(update={"stages": tuple(even)})


def _phases(supervisor: Supervisor, say: Phase) -> Run:
    driver, plan = supervisor.driver, supervisor.plan
    execution, engine = driver.execution, driver.engine
    even = plain = None
    notes: list[str] = []
    try:
        if execution.compare_even_steps and even_split(plan) != plan:
            say(f"even split, {execution.compare_even_steps} steps")
            steps = execution.compare_even_steps
            even = _aside(engine, notes, "the even split", lambda: driver.train(even_split(plan), steps))
        if execution.bridge.compresses and execution.bridge.compare_steps and crosses(plan, driver.formation):
            say(f"uncompressed, {execution.bridge.compare_steps} steps")
            plain = _aside(engine, notes, "the uncompressed run", lambda: uncompressed(driver, plan, supervisor.resume))
        say(f"training, {execution.steps} steps")
        measured = supervisor.run()
        wall = supervisor.reliability()
    finally:
        supervisor.watch.close()
        supervisor.snapshots.close()
        driver.close()
    notes += driver.notes + sorted({note for report in measured.reports for note in report["notes"]})
    run = run_of(
        measured, even, protection=engine.protection, engine=engine.name, checkpoint=supervisor.saved, notes=notes
    )
    return run.model_copy(
        update={
            "steps": measured.done, "losses": supervisor.losses, "incidents": tuple(supervisor.incidents),
            "effective_share": supervisor.effective_share, "gradient_norms": supervisor.gradient_norms,
            "evaluations": supervisor.evaluations, "telemetry": supervisor.watch.telemetry(),
            "training_s": supervisor.passed,
            "stages": tuple(_on_host(engine, stage) for stage in run.stages),
            "bridge": traffic(measured, execution.bridge, supervisor.losses, plain),
            "walls": run.walls.model_copy(update={"reliability": wall}),
            "figures": run.figures.model_copy(update={"ettr": _ettr(supervisor)}),
        }
    )  # fmt: skip


def _on_host(engine: Engine, stage: StageFigures) -> StageFigures:
    name = None if stage.card is None else engine.host_name(stage.card)
    return stage if name is None else stage.model_copy(update={"host": name})


def _aside(engine: Engine, notes: list[str], what: str, train: Callable[[], Measured]) -> Measured | None:
    """Train something to compare with; where that fails, note it and make the cards ready for the run itself."""
    try:
        return train()
    except CardFullError as problem:
        notes.append(f"{what} does not fit: {problem.message}")
    except CardError as problem:
        notes.append(f"{what} was not measured: {problem.message}")
        for one in problem.blamed:
            engine.discard(one.card)
        engine.settle()
    return None


def _ettr(supervisor: Supervisor) -> Figure:
    faults = ", faults on purpose among it" if supervisor.driver.execution.faults else ""
    note = f"share of this run's wall-clock time in steps that stayed{faults}"
    return Figure(value=supervisor.effective_share, tag="measured", note=note)


def _keep_log(engine: Engine, out_dir: Path | None) -> None:
    """Keep what the cards said, for whoever looks for the cause."""
    log = engine.folder / "cards.log"
    if out_dir is not None and log.exists() and log.stat().st_size:
        out_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, out_dir / "cards.log")
