"""``zhenfa run``: plan, execute, and lay the prediction beside the measurement."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zhenfa.cli.console import Output
from zhenfa.cli.words import EMULATED
from zhenfa.errors import CapabilityError, InputError, RunError
from zhenfa.estimate.traits import own_runtime
from zhenfa.plan import Answer, make_request
from zhenfa.plan.asked import read_assumptions, read_job
from zhenfa.plan.request import Request
from zhenfa.spec.job import Execution, Job
from zhenfa.spec.machine import Machine
from zhenfa.spec.result import Run
from zhenfa.spec.serving import ServingWorkload

if TYPE_CHECKING:
    from zhenfa.live.foreign.subject import Subject
    from zhenfa.live.learn.learner import Learner
    from zhenfa.live.run import Phase
    from zhenfa.live.train import Progress


@dataclass(frozen=True)
class Wanted:
    """What was asked of ``zhenfa run``."""

    job: str
    on: str | None = None
    assume: Sequence[str] = ()
    settings: Sequence[str] = ()
    steps: int | None = None
    engine: str | None = None
    resume: str | None = None
    out: str | None = None
    calibrate: bool = False
    calibrate_within: str | None = None
    calibrate_anew: bool = False
    code: str | None = None
    plan: str | None = None

    @property
    def calibrates(self) -> bool:
        """Return whether the machine is measured first."""
        return self.calibrate or self.calibrate_anew or self.calibrate_within is not None

    def going_on(self, folder: Path) -> str:
        """Return the command that goes on with this run from the checkpoint in ``folder``."""
        words = ["zhenfa", "run", self.job, "--resume", str(folder)]
        single = {
            "on": self.on, "plan": self.plan, "code": self.code, "steps": self.steps, "engine": self.engine,
            "calibrate-within": self.calibrate_within,
        }  # fmt: skip
        words += [word for name, value in single.items() if value is not None for word in (f"--{name}", str(value))]
        for name, values in (("assume", self.assume), ("set", self.settings)):
            words += [word for value in values for word in (f"--{name}", value)]
        if self.calibrate or self.calibrate_anew:
            words.append("--calibrate")
        return shlex.join(words)


def run_job(wanted: Wanted, output: Output) -> None:
    """Plan a job, run it and report. Everything that was started is gone when this returns, however it returns."""
    begun = time.monotonic()
    request, subject = asked_for(wanted, output)
    with output.working("planning"):
        answer = planned(request, wanted.plan)
    from zhenfa.live.learn.learner import Learner

    plans = Learner(request, answer, measured_before=wanted.calibrates)
    result, folder, stopped = _execute(wanted, plans, subject, output)
    answer = plans.answer
    attribution = plans.attributed(valid=bool(result.fidelity.get("valid", True)))
    result = plans.with_energy(
        result.model_copy(
            update={
                "estimate": answer.best.estimate, "attribution": attribution, "notes": (*result.notes, *subject.notes),
            }
        )
    )  # fmt: skip
    files = write_files(result, request, folder, output, machine=plans.machine(attribution))
    if subject.counted:
        files["model"] = str(folder / "model.yaml")
    seconds = time.monotonic() - begun
    if output.as_json:
        from zhenfa.cli.documents import RunReport

        output.document(RunReport(**dict(result), files=files, seconds=seconds))
    else:
        from zhenfa.cli.run_report import print_run

        print_run(result, answer, files, seconds, output)
        if output.cite:
            output.sources(answer.best.estimate.sources)
    if stopped:
        asked = settings_of(request.job.execution, wanted.steps, wanted.engine).steps
        raise RunError(
            f"stopped by SIGTERM after step {result.steps} of {asked}; the checkpoint is saved.",
            hint=wanted.going_on(folder),
        )


def asked_for(wanted: Wanted, output: Output) -> tuple[Request, Subject]:
    """Return what is to be run, on a machine that is measured first where that was asked for, and what it trains."""
    from zhenfa.live.foreign.subject import subject_of

    job, folder = read_job(wanted.job, wanted.settings), Path(wanted.job).resolve().parent
    refuse_serving(job, wanted.job)
    with output.working("looking the model through"):
        subject = subject_of(job, folder, wanted.code)
    if wanted.calibrates:
        from zhenfa.cli.run_calibrated import measured_first

        found = measured_first(wanted, output, job, folder, subject)
    else:
        with output.working("planning"):
            found = make_request(
                job, folder=folder, on=wanted.on, assume=read_assumptions(wanted.assume), model=subject.model
            )
    traits = own_runtime(found.job.execution, found.formation, whole=subject.whole)
    return replace(found, traits=traits.but(rotary=False) if subject.counted else traits), subject


def planned(request: Request, own: str | None) -> Answer:
    """Return the best plans of a request for this runtime, or ``own``, a plan file of the user's."""
    if own is None:
        from zhenfa.live.planned import best_plans

        return best_plans(request)
    from zhenfa.plan import answer_with
    from zhenfa.plan.given import read_plan

    return answer_with(read_plan(own, request), request)


def refuse_serving(job: Job, path: str) -> None:
    """Raise :class:`CapabilityError` for a job that serves."""
    if isinstance(job.workload, ServingWorkload):
        raise CapabilityError(
            f"job {job.name!r} serves, and `zhenfa run` executes training only.",
            hint=f"plan it with `zhenfa plan {path}`; the engine named in the plan runs it.",
        )


def _execute(wanted: Wanted, plans: Learner, subject: Subject, output: Output) -> tuple[Run, Path, bool]:
    """Run the best plan; return what happened, the folder for its files, and whether a signal ended it."""
    from zhenfa.live.discovery import refuse_unreachable
    from zhenfa.live.makers import maker
    from zhenfa.live.placement import place
    from zhenfa.live.run import run_plan

    request, plan = plans.request, plans.answer.best.plan
    settings = settings_of(request.job.execution, wanted.steps, wanted.engine)
    places = place(plan, request.formation, subject.sizes)
    if settings.engine == "local":
        refuse_unreachable(one.provider for one in places)
        for mine in {one.provider: maker(one.provider) for one in places}.values():
            if not mine.tried:
                output.say(f"{mine.name}: {mine.mark}")
    resume = _resumed(wanted.resume, settings, output)
    folder = claim_folder(wanted.out or wanted.resume, request.job.name)
    if plans.measured_before and request.machine is not None:
        write_machine(request.machine, folder)
    if subject.counted:
        (folder / "model.yaml").write_text(subject.model.to_yaml(), encoding="utf-8")
    announce(plans.answer, output, wanted.plan)
    try:
        with _interruptible() as stop, _progress(output, settings) as (advance, phase):
            result = run_plan(
                plan, request.formation, subject.sizes, settings, on_progress=stop.after(advance, training=True),
                on_phase=stop.after(phase), out_dir=folder, replan=plans.anew, resume=resume,
                stop=lambda: stop.preempted, learn=plans.learn,
            )  # fmt: skip
    except BaseException:
        _remove_if_empty(folder)
        raise
    return result, folder, stop.preempted and result.steps < settings.steps


def _resumed(wanted: str | None, settings: Execution, output: Output) -> Path | None:
    """Return the newest whole checkpoint of a folder, or the one that is named itself. Raises :class:`InputError`."""
    if wanted is None:
        return None
    from zhenfa.live import checkpoint

    folder = Path(wanted)
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {wanted!r} to resume from.", hint="name the folder of a run, such as runs/NAME-1."
        )
    if (folder / checkpoint.MANIFEST).exists():
        checkpoint.verify(folder)
        path: Path | None = folder
        wanted = str(folder)
    else:
        path, refused = checkpoint.newest(folder)
        for words in refused:
            output.say(f"passed over: {words}")
    if path is None:
        raise InputError(
            f"{wanted!r} holds no whole checkpoint.", hint="name the folder of a run, such as runs/NAME-1."
        )
    step = int(checkpoint.manifest_of(path)["step"])
    if step >= settings.steps:
        raise InputError(
            f"{str(path)!r} was made after step {step}, and the run has {settings.steps}.",
            hint="ask for more with --steps.",
        )
    output.say(f"resuming from {path} (step {step})")
    return path


def settings_of(execution: Execution, steps: int | None, engine: str | None) -> Execution:
    """Return the job's settings with what the command line says instead."""
    changes: dict[str, Any] = {}
    if steps is not None:
        changes["steps"] = steps
    if engine is not None:
        changes["engine"] = engine
    return execution.model_copy(update=changes)


def claim_folder(wanted: str | None, name: str) -> Path:
    """Make and return the folder for a run's files: the one wanted, else the first free of ``runs/NAME-1`` and on.

    Others than the user and the group cannot look into a folder that is made here.

    Raises :class:`InputError` before anything is run if it cannot be made.
    """
    folder, number = Path(wanted) if wanted else Path("runs") / f"{name}-1", 1
    try:
        while True:
            try:
                folder.mkdir(0o750, parents=True, exist_ok=bool(wanted))
                return folder
            except FileExistsError:
                if wanted:
                    raise
                number += 1
                folder = Path("runs") / f"{name}-{number}"
    except OSError as problem:
        reason = "it is a file" if isinstance(problem, FileExistsError) else os.strerror(problem.errno or 0)
        words = f"{str(folder)!r} cannot hold the run's files: {reason}."
        raise InputError(words, hint="name another folder with --out.") from None


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


class _Stop:
    """Whether somebody asked the run to stop. ``preempted``: at the end of the step under way, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = self.preempted = self.training = False

    def ask(self, signum: int, frame: object) -> None:
        """Unwind from wherever the program is; at a first SIGTERM in training only note it."""
        if signum == signal.SIGTERM and self.training and not self.preempted:
            self.preempted = True
            return
        self.asked = True
        raise KeyboardInterrupt

    def after(self, callback: Callable[..., None] | None, *, training: bool = False) -> Callable[..., None]:
        """Return a callback that unwinds if a stop was asked for and lost; with ``training``, it tells of a step.

        Python drops an exception that a signal raises inside a weak reference's callback, as imports run many.
        """

        def call(*arguments: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.training = self.training or training
            if callback is not None:
                callback(*arguments)

        return call


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Let SIGTERM and Ctrl-C unwind alike, so that workers are ended either way."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(output: Output, settings: Execution) -> Iterator[tuple[Progress | None, Phase | None]]:
    """Show phases and steps on stderr: a bar on a terminal, else a line for each phase."""
    if output.quiet:
        yield None, None
        return
    if not output.talk.terminal:
        yield None, output.say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(16), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True, width=output.talk.width), transient=True) as bar:
        task = bar.add_task("planning", total=settings.steps, words="")

        def advance(step: int, total: int, loss: float, seconds: float) -> None:
            bar.update(task, completed=step, total=total, words=f"loss {loss:.4f}, {seconds:.2f} s a step")

        def phase(words: str) -> None:
            bar.update(task, description=words)

        yield advance, phase


def announce(answer: Answer, output: Output, own: str | None = None) -> None:
    """Say on stderr what is about to run."""
    best, formation = answer.best, answer.request.formation
    mark = f" [{EMULATED} cards]" if formation.emulated else ""
    whence = f"the best of {answer.considered:,} considered" if own is None else f"as {own} has it"
    output.say(f"plan: {best.layout} on {formation.name}{mark}, {whence}")
    for entry in best.plan.pipelines:
        cuts = ", ".join(f"{stage.pool} {stage.first}-{stage.last - 1}" for stage in entry.stages)
        output.talk.text(
            f"{entry.micro_batches} micro-batches; layers {cuts}", first=f"      {entry.count} x ", style="dim"
        )


def write_machine(machine: Machine, folder: Path) -> None:
    """Keep the machine of a run beside it. Raises :class:`OSError`."""
    (folder / "machine.yaml").write_text(machine.to_yaml(), encoding="utf-8")


def write_files(
    run: Run, request: Request, folder: Path, output: Output, *, machine: Machine | None = None
) -> dict[str, str]:
    """Write report, page, plan, machine, picture and trace; what an extra is missing for is said, not failed."""
    from zhenfa.live import timeline
    from zhenfa.live.page import write_page

    report, plan, page = folder / "run.json", folder / "plan.yaml", folder / "report.html"
    try:
        report.write_text(json.dumps(run.to_data(), indent=1, ensure_ascii=False), encoding="utf-8")
        plan.write_text(run.plan.to_yaml(), encoding="utf-8")
        write_page(run, request.formation, page)
        if machine is not None:
            write_machine(machine, folder)
    except OSError as problem:
        raise RunError(f"{str(folder)!r} cannot be written: {os.strerror(problem.errno or 0)}.") from None
    files = {"report": str(report), "page": str(page), "plan": str(plan)}
    if machine is not None:
        files["machine"] = str(folder / "machine.yaml")
    if run.checkpoint:
        files["checkpoint"] = run.checkpoint
    for name, file, write in (
        ("timeline", "timeline.png", timeline.draw),
        ("trace", "timeline.perfetto-trace", timeline.write_trace),
    ):
        try:
            files[name] = str(write(run, request.formation, folder / file))
        except CapabilityError as problem:
            output.say(f"no {name}: {problem.message} {problem.hint or ''}".strip())
    return files
