"""``zhenfa plan``."""

from __future__ import annotations

import os
from typing import Any

from rich.markup import escape

from zhenfa import units
from zhenfa.cli import console
from zhenfa.cli.walls import wall_lines
from zhenfa.errors import InputError, ZhenfaError
from zhenfa.estimate.report import batches, step_parts
from zhenfa.plan import Answer, Ranked, find_plans, read_request
from zhenfa.spec.result import StageFigures


def plan_job(
    job: str, *, on: str | None, assume: tuple[str, ...], top: int, why: int | None, detail: bool, out: str | None,
    as_json: bool, cite_sources: bool, quiet: bool,
) -> None:  # fmt: skip
    """Plan a job file and print the answer."""
    request = read_request(job, on=on, assume=assume)
    answer = find_plans(request, top=max(top, why or 1))
    if why is not None and why > len(answer.plans):
        raise InputError(
            f"there is no plan {why}: {len(answer.plans)} were found.", hint=f"--why 2 to {len(answer.plans)}."
        )
    if out:
        _write(out, answer)
    if as_json:
        console.print_json(to_json(answer, top))
        return
    _print(answer, top, detail=detail, job=job, on=on)
    if why is not None:
        _print_why(answer, why)
    if cite_sources:
        console.print_sources(answer.best.estimate.sources)


def to_json(answer: Answer, top: int) -> dict[str, Any]:
    """Return the answer as the published JSON document ``zhenfa.plans/1``."""
    return {
        "schema": "zhenfa.plans/1",
        "job": answer.request.job.name,
        "machine": answer.request.formation.name,
        "emulated": answer.request.formation.emulated,
        "plans": [
            {
                "rank": one.rank,
                "layout": one.layout,
                "lost_by": one.lost_by,
                "plan": one.plan.to_data(),
                "estimate": one.estimate.figures.model_dump(mode="json"),
                "parts_s": one.estimate.parts_s,
                "stages": [stage.model_dump(mode="json") for stage in one.estimate.stages],
                "walls": one.estimate.walls.model_dump(mode="json"),
                "assumptions": list(one.estimate.assumptions),
                "sources": list(one.estimate.sources),
            }
            for one in answer.plans[:top]
        ],
        "considered": answer.considered,
        "costed": answer.costed,
        "rejected": answer.rejected,
        "seconds": answer.seconds,
    }


def _write(out: str, answer: Answer) -> None:
    try:
        with open(out, "w", encoding="utf-8") as stream:
            stream.write(answer.best.plan.to_yaml())
    except OSError as problem:
        raise ZhenfaError(f"{out!r} cannot be written: {os.strerror(problem.errno or 0)}.") from None


def _print(answer: Answer, top: int, *, detail: bool, job: str, on: str | None) -> None:
    request, out = answer.request, console.data()
    formation = request.formation
    mark = " [EMULATED]" if formation.emulated else ""
    parameters = request.graph.parameters + request.graph.extra_parameters
    out.print(
        f"[bold]{escape(request.job.name)}[/bold]: {escape(request.graph.name)}, {parameters / 1e9:,.3g} B parameters, "
        f"{request.job.workload.global_batch:,} x {request.job.workload.sequence_length:,} tokens a step, "
        f"{request.job.workload.precision}"
    )
    pools = " + ".join(f"{pool.count:,} {pool.accelerator.id}" for pool in formation.pools)
    out.print(f"on [bold]{escape(formation.name)}[/bold]{escape(mark)}: {escape(pools)}\n")
    out.print(
        console.table(
            ("#", "layout", "batches", "cards", "step", "tokens/s", "per card", "MFU", "memory", "behind the first"),
            [_row(one) for one in answer.plans[:top]],
            right=(0, 2, 3, 4, 5, 6, 7, 8),
        )
    )
    best = answer.best
    out.print()
    for line in _stage_lines(best):
        out.print(line, markup=False)
    out.print(f"\n[bold]Four walls[/bold] of plan 1 (estimated; {escape(best.estimate.walls.binding)} binds)")
    for line in wall_lines(best.estimate.walls):
        out.print(f"  {line}", markup=False)
    if detail:
        _print_detail(best)
    _print_footer(answer, job, on)


def _row(one: Ranked) -> tuple[str, ...]:
    figures = one.estimate.figures
    fullest = one.cost.fullest
    return (
        str(one.rank),
        one.layout,
        batches(one.plan),
        f"{one.plan.cards:,}",
        units.show(figures.step_time_s.value, "time"),
        f"{figures.tokens_per_s.value or 0:,.0f}",
        f"{figures.tokens_per_s_per_card.value or 0:,.4g}",
        units.show(figures.mfu.value, "ratio"),
        f"{fullest.bytes / fullest.capacity:.0%} of {fullest.capacity / 1e9:.3g} GB",
        one.lost_by or "-",
    )


def _stage_lines(best: Ranked) -> list[str]:
    """Say who holds which layers, runs of equal stages on one line."""
    lines = []
    for number, entry in enumerate(best.plan.pipelines):
        batch = f"{entry.micro_batches} micro-batches of {entry.micro_batch_size}"
        lines.append(f"replicas {'x ' + format(entry.count, ',')}: {batch}")
        runs: list[list[int]] = []
        for index, stage in enumerate(entry.stages):
            last = entry.stages[runs[-1][-1]] if runs else None
            same = last and (last.pool, last.layers, last.tensor_parallel, last.recompute) == (
                stage.pool, stage.layers, stage.tensor_parallel, stage.recompute
            )  # fmt: skip
            if same:
                runs[-1].append(index)
            else:
                runs.append([index])
        for run in runs:
            first, last_stage = entry.stages[run[0]], entry.stages[run[-1]]
            stages = f"stage {run[0]}" if len(run) == 1 else f"stages {run[0]}-{run[-1]}"
            each = "" if len(run) == 1 else f" ({first.layers} each)"
            extra = [f"TP{first.tensor_parallel}"] if first.tensor_parallel > 1 else []
            extra += [f"EP{first.expert_parallel}"] if first.expert_parallel > 1 else []
            extra += [f"{first.recompute} recomputation"] if first.recompute != "none" else []
            tail = f", {', '.join(extra)}" if extra else ""
            lines.append(f"  {stages} on {first.pool}: layers {first.first}-{last_stage.last - 1}{each}{tail}")
        if number == 3 and len(best.plan.pipelines) > 4:
            lines.append(f"... {len(best.plan.pipelines) - 4} more kinds of replica")
            break
    return lines


def _print_detail(best: Ranked) -> None:
    out = console.data()
    out.print("\n[bold]Where the step goes[/bold] (busiest stage, estimated)")
    step = best.cost.step
    for name, seconds in step_parts(best.cost.worst).items():
        share = seconds / step
        out.print(f"  {name:<20} {units.show(seconds, 'time'):>9}  {share:>6.1%} {console.bar(share)}", markup=False)
    out.print("\n[bold]Stages[/bold]: seconds per micro-batch, memory per card")
    out.print(
        console.table(
            (
                "stage",
                "pool",
                "layers",
                "forward",
                "backward",
                "to next",
                "memory",
                "= weights + gradients + optimizer + activations",
            ),
            [_stage_row(stage) for stage in best.estimate.stages],
            right=(0, 3, 4, 5, 6),
        )
    )


def _stage_row(stage: StageFigures) -> tuple[str, ...]:
    parts = " + ".join(units.show(value, "data") for value in stage.memory_parts.values())
    return (
        str(stage.stage),
        stage.pool,
        f"{stage.layers[0]}-{stage.layers[1] - 1}",
        units.show(stage.forward_s, "time"),
        units.show(stage.backward_s, "time"),
        units.show(stage.transfer_s, "time") if stage.transfer_s else "-",
        units.show(stage.memory_bytes, "data"),
        parts,
    )


def _print_why(answer: Answer, why: int) -> None:
    out = console.data()
    other, best = answer.plans[why - 1], answer.best
    out.print(f"\n[bold]Why plan {why} lost[/bold] ({escape(other.layout)}): {escape(other.lost_by)}")
    mine, first = step_parts(other.cost.worst), step_parts(best.cost.worst)
    rows = [
        (name, units.show(first[name], "time"), units.show(mine[name], "time"), _difference(mine[name] - first[name]))
        for name in mine
        if max(abs(mine[name]), abs(first[name])) > 1e-9
    ]
    out.print(console.table(("part of the step", "plan 1", f"plan {why}", "difference"), rows, right=(1, 2, 3)))


def _difference(seconds: float) -> str:
    return ("+" if seconds >= 0 else "-") + units.show(abs(seconds), "time")


def _print_footer(answer: Answer, job: str, on: str | None) -> None:
    out = console.data()
    out.print("\n[bold]Rests on[/bold]")
    for line in answer.best.estimate.assumptions:
        out.print(f"  - {line}", markup=False)
    top = ", ".join(f"{count:,} {reason}" for reason, count in list(answer.rejected.items())[:4])
    out.print(
        f"\n{answer.considered:,} layouts considered in {answer.seconds:.2f} s, {answer.costed:,} costed exactly"
        + (f"; {top}" if top else ""),
        markup=False,
    )
    where = f" --on {on}" if on else ""
    out.print("\nNext:", style="dim")
    out.print(f"  zhenfa plan {job}{where} --detail --why 2", markup=False)
    out.print(f"  zhenfa plan {job}{where} --cite", markup=False)
    if answer.request.formation.emulated:
        out.print(f"  zhenfa run {job}", markup=False)
