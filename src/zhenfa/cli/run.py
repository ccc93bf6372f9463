"""``zhenfa run``: plan, execute, and lay the prediction beside the measurement."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zhenfa import units
from zhenfa.cli import console
from zhenfa.cli.walls import wall_lines
from zhenfa.errors import CapabilityError, RunError
from zhenfa.plan import Answer, find_plans, read_request
from zhenfa.plan.request import Request
from zhenfa.spec.job import Execution
from zhenfa.spec.result import Run


def run_job(
    job: str, *, on: str | None, assume: tuple[str, ...], steps: int | None, engine: str | None, out: str | None,
    as_json: bool, cite_sources: bool, quiet: bool,
) -> None:  # fmt: skip
    """Plan a job, run it and report. Everything that was started is gone when this returns, however it returns."""
    from zhenfa.live.run import run_plan

    begun = time.monotonic()
    request = read_request(job, on=on, assume=assume)
    answer = find_plans(request)
    settings = _settings(request.job.execution, steps, engine)
    folder = Path(out) if out else _free_folder(request.job.name)
    if not as_json and not quiet:
        _announce(answer)
    with _interruptible(), _progress(quiet or as_json, settings) as (advance, phase):
        result = run_plan(
            answer.best.plan, request.formation, request.model, settings, on_progress=advance, on_phase=phase,
            out_dir=folder,
        )  # fmt: skip
    result = result.model_copy(update={"estimate": answer.best.estimate})
    pictures = _write_files(result, request, folder)
    if as_json:
        console.print_json({**result.to_data(), "files": pictures, "seconds": time.monotonic() - begun})
        return
    _report(result, answer, pictures, time.monotonic() - begun)
    if cite_sources:
        console.print_sources(answer.best.estimate.sources)


def _settings(execution: Execution, steps: int | None, engine: str | None) -> Execution:
    changes: dict[str, Any] = {}
    if steps is not None:
        changes["steps"] = steps
    if engine is not None:
        changes["engine"] = engine
    return execution.model_copy(update=changes)


def _free_folder(name: str) -> Path:
    """Return ``runs/NAME-1`` or the first number that is free."""
    number = 1
    while (Path("runs") / f"{name}-{number}").exists():
        number += 1
    return Path("runs") / f"{name}-{number}"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that workers are ended either way."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(silent: bool, settings: Execution) -> Iterator[tuple[Any, Any]]:
    """Show phases and a bar of steps on stderr."""
    if silent:
        yield None, None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<34}"), BarColumn(30), MofNCompleteColumn(), TextColumn("steps"),
        TimeElapsedColumn(), TextColumn("{task.fields[words]}"),
    )  # fmt: skip
    screen = console.talk()
    with Progress(*columns, console=screen, transient=not screen.is_terminal) as bar:
        task = bar.add_task("planning", total=settings.steps, words="")

        def advance(step: int, total: int, loss: float, seconds: float) -> None:
            bar.update(task, completed=step, total=total, words=f"loss {loss:.4f}, {seconds:.2f} s a step")

        def phase(words: str) -> None:
            bar.update(task, description=words, completed=0)
            if not screen.is_terminal:
                screen.print(words, style="dim", markup=False)

        yield advance, phase


def _announce(answer: Answer) -> None:
    best, formation = answer.best, answer.request.formation
    screen = console.talk()
    mark = " [EMULATED cards]" if formation.emulated else ""
    screen.print(f"plan: {best.layout} on {formation.name}{mark}, of {answer.considered:,} considered", markup=False)
    for entry in best.plan.pipelines:
        cuts = ", ".join(f"{stage.pool} {stage.first}-{stage.last - 1}" for stage in entry.stages)
        screen.print(f"      {entry.count} x {entry.micro_batches} micro-batches: layers {cuts}", markup=False)


def _write_files(run: Run, request: Request, folder: Path) -> dict[str, str]:
    """Write report, picture and trace; what an extra is missing for is said, not failed."""
    from zhenfa.live import timeline

    try:
        folder.mkdir(parents=True, exist_ok=True)
        report = folder / "run.json"
        report.write_text(json.dumps(run.to_data(), indent=1, ensure_ascii=False), encoding="utf-8")
        plan = folder / "plan.yaml"
        plan.write_text(run.plan.to_yaml(), encoding="utf-8")
    except OSError as problem:
        raise RunError(f"{folder} cannot be written: {os.strerror(problem.errno or 0)}.") from None
    files = {"report": str(report), "plan": str(plan)}
    if run.checkpoint:
        files["checkpoint"] = run.checkpoint
    for name, file, write in (
        ("timeline", "timeline.png", timeline.draw),
        ("trace", "timeline.perfetto-trace", timeline.write_trace),
    ):
        try:
            files[name] = str(write(run, request.formation, folder / file))
        except CapabilityError as problem:
            console.talk().print(f"no {name}: {problem.message}", markup=False)
    return files


def _report(run: Run, answer: Answer, files: dict[str, str], seconds: float) -> None:
    out = console.data()
    mark = " [EMULATED cards: the time is that of the emulation]" if run.emulated else ""
    out.print(f"{answer.request.job.name}: {run.steps} steps on {run.plan.cards} cards, engine {run.engine}{mark}\n", markup=False, style="bold")
    out.print(console.table(("", "predicted", "measured", "measured / predicted"), _rows(run), right=(1, 2, 3)))
    out.print()
    _print_speeds(run)
    out.print(f"loss {run.losses[0]:.4f} -> {run.losses[-1]:.4f} over {run.steps} steps")
    if run.fidelity:
        out.print(f"emulation: {run.fidelity.get('verdict')}; protection: {run.fidelity.get('protection')}", markup=False)
    out.print(f"\n[bold]Four walls[/bold], measured ({run.walls.binding} binds)")
    for line in wall_lines(run.walls):
        out.print(f"  {line}", markup=False)
    out.print("\n[bold]Cards[/bold]: seconds per micro-batch, predicted / measured")
    out.print(console.table(("card", "pool", "layers", "forward", "backward", "memory"), _stage_rows(run), right=(0, 3, 4, 5)))
    for note in run.notes:
        out.print(f"note: {note}", markup=False)
    out.print()
    for name, path in files.items():
        out.print(f"{name:<11}{path}", markup=False)
    out.print(f"\n{seconds:.0f} s in all", style="dim")


_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("step time", "step_time_s", lambda value: units.show(value, "time")),
    ("tokens/s", "tokens_per_s", lambda value: f"{value:,.4g}"),
    ("MFU", "mfu", lambda value: units.show(value, "ratio")),
    ("memory, fullest card", "memory_bytes_per_card", lambda value: units.show(value, "data")),
)


def _rows(run: Run) -> list[tuple[str, ...]]:
    predicted, measured = (run.estimate.figures if run.estimate else None), run.figures
    rows: list[tuple[str, ...]] = []
    for label, field, show in _FIGURES:
        before = getattr(predicted, field).value if predicted else None
        after = getattr(measured, field).value
        ratio = f"{after / before:.3f}" if before and after else "-"
        rows.append((label, show(before) if before else "-", show(after) if after else "-", ratio))
    return rows


def _print_speeds(run: Run) -> None:
    out = console.data()
    if run.share_of_sum_of_speeds is not None:
        out.print(f"share of the sum of speeds: {run.share_of_sum_of_speeds:.1%}", markup=False)
    if run.even_split:
        share = run.even_split.get("share_of_sum_of_speeds")
        words = f" ({share:.1%} of the sum of speeds)" if share else ""
        out.print(
            f"an even split of the layers on the same cards: {units.show(run.even_split['step_time_s'], 'time')} a step{words}; "
            f"the plan is {run.even_split['speed_up']:.2f} times as fast",
            markup=False,
        )


def _stage_rows(run: Run) -> list[tuple[str, ...]]:
    predicted = {(stage.pool, stage.layers): stage for stage in run.estimate.stages} if run.estimate else {}
    rows: list[tuple[str, ...]] = []
    for number, stage in enumerate(run.stages):
        twin = predicted.get((stage.pool, stage.layers))
        first, last = stage.layers
        rows.append(
            (
                str(number),
                stage.pool,
                f"{first}-{last - 1}",
                _pair(twin.forward_s if twin else None, stage.forward_s),
                _pair(twin.backward_s if twin else None, stage.backward_s),
                units.show(stage.memory_bytes, "data"),
            )
        )
    return rows


def _pair(predicted: float | None, measured: float) -> str:
    before = units.show(predicted, "time") if predicted is not None else "-"
    return f"{before} / {units.show(measured, 'time')}"


