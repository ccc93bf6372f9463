"""The answer of ``zhenfa plan`` in words: ranked plans, stages, the four walls, what it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.plan_ground import command_of, print_rejected, suggest
from zhenfa.cli.tables import Column, Table, table
from zhenfa.cli.walls import print_walls
from zhenfa.cli.wanted import PlanWanted
from zhenfa.cli.words import EMULATED, band, bare, batches, figure, of, parameters
from zhenfa.plan import Answer, Ranked
from zhenfa.plan.bridge import bridge_of
from zhenfa.plan.sparing import AWAY_WORDS
from zhenfa.plan.worth import COLUMNS, HEADINGS
from zhenfa.spec.machine import Precision
from zhenfa.spec.plan import Pipeline, Plan, Stage

if TYPE_CHECKING:
    from zhenfa.plan.explain import Why
    from zhenfa.plan.sensitivity import Sensitivity

SCHEDULES: Final = {
    "1f1b": "1F1B", "gpipe": "GPipe", "interleaved": "interleaved 1F1B", "zero-bubble": "zero-bubble (ZB-H1)",
    "zero-bubble-v": "zero-bubble (ZB-V)", "dualpipe": "DualPipe",
}  # fmt: skip
KINDS_SHOWN: Final = 4


def print_answer(
    answer: Answer, wanted: PlanWanted, output: Output, why: Why | None = None, moved: Sensitivity | None = None
) -> None:
    """Print the answer as far as it was asked for."""
    _print_subject(answer, output)
    left_out = _print_plans(answer, wanted.top, output)
    _print_stages(answer.best, output, _chosen(answer))
    _print_bridge(answer, output)
    out, walls = output.data, answer.best.estimate.walls
    out.head("Four walls of plan 1", f"(estimated; {walls.binding} binds)")
    print_walls(out, walls, empty="undisclosed")
    if wanted.detail:
        from zhenfa.cli import plan_detail

        left_out += plan_detail.print_detail(answer, output)
    if why is not None:
        from zhenfa.cli.plan_why import print_why

        left_out += print_why(why, output)
    if moved is not None:
        from zhenfa.cli.plan_sensitivity import print_sensitivity

        left_out += print_sensitivity(moved, output)
    _print_ground(answer, output)
    if output.cite:
        output.sources(answer.best.estimate.sources)
    suggest(wanted, len(answer.plans), _more(answer, wanted, output), output)
    output.left_out(left_out)


def _print_subject(answer: Answer, output: Output) -> None:
    request = answer.request
    graph, workload, formation = request.graph, request.training, request.formation
    output.data.text(
        f"{graph.name}, {parameters(graph.parameters)} parameters, {parameters(graph.active_parameters)} active; "
        f"{workload.global_batch:,} sequences x {workload.sequence_length:,} tokens a step, {workload.precision_words}",
        first=f"{request.job.name}: ",
    )
    mark = f" [{EMULATED}]" if formation.emulated else ""
    pools = " + ".join(f"{pool.count:,} {pool.accelerator.id}" for pool in formation.pools)
    output.data.text(pools, first=f"on {formation.name}{mark}: ")


def _print_plans(answer: Answer, top: int, output: Output) -> list[str]:
    out = output.data
    emulated = " for emulated cards" if answer.request.formation.emulated else ""
    out.head("Plans", f"(estimated{emulated}, {HEADINGS[answer.objective]})")
    left_out = out.table(plan_table(answer.plans[:top], COLUMNS.get(answer.objective, ""), _chosen(answer)))
    workload = answer.request.training
    batch = f"{workload.global_batch:,}"
    legend = {
        "layout": _degrees(answer, top),
        "batches": f"replicas x micro-batches x sequences = {batch}" if "batches" not in left_out else "",
        "p10-p90": "four of five measured steps of such jobs lay in this band" if _banded(answer, left_out) else "",
        "tokens/s": f"{batch} x {workload.sequence_length:,} tokens / step",
        "MFU": answer.best.estimate.figures.mfu.note or "",
        COLUMNS.get(answer.objective, ""): f"{answer.best.score.note}: {answer.best.score.tag}",
        "tags": tags(answer.best),
    }
    out.line()
    for label, words in legend.items():
        if label and words:
            out.text(words, first=f"   {label:<9} ", style="dim")
    out.line()
    if len(answer.plans) > 1:
        out.text(f"Plan 2 is behind by {answer.plans[1].lost_by}. ({answer.plans[1].layout})")
    if answer.best.taken:
        taken = ", ".join(f"{name} {share:.1%}" for name, share in answer.best.taken.items())
        out.text(taken, first="Of its limits plan 1 takes up: ")
    for reason in answer.bound_by:
        out.text(f"{reason}: a layout that is kept out might be better than plan 1", first="Bound by a limit: ")
    return left_out


def _degrees(answer: Answer, top: int) -> str:
    """Return what the letters of a layout multiply to, or that they are degrees where replicas may differ."""
    if len(answer.request.formation.pools) > 1:
        return "degrees of tensor, pipeline, data and context parallelism; a range where stages or replicas differ"
    cut = any(stage.context_parallel > 1 for one in answer.plans[:top] for stage in one.plan.pipelines[0].stages)
    return f"tensor x pipeline x data{' x context' if cut else ''} parallel = cards"


def _chosen(answer: Answer) -> bool:
    """Return whether the job leaves the precision to the plan."""
    return len(answer.request.training.precisions) > 1


def _banded(answer: Answer, left_out: list[str]) -> bool:
    return "p10-p90" not in left_out and answer.best.estimate.figures.step_time_s.p10 is not None


def plan_table(plans: tuple[Ranked, ...], scored: str = "", chosen: bool = False) -> Table:
    """Return one row for each plan, the winner first; ``scored`` heads what each is worth in the objective; ``chosen``:
    with the precisions that the plans choose."""
    columns = (
        Column("#", right=True), Column("layout"), Column("on", drop=4),
        Column("in" if chosen else "", drop=1), Column("batches", right=True, drop=8),
        Column("cards", right=True, drop=6), Column("step", right=True), Column("p10-p90", right=True, drop=3),
        Column("tokens/s", right=True), Column(scored, right=True),
        Column("per card", right=True, drop=7), Column("MFU", right=True), Column("memory", right=True, drop=5),
        Column("behind", right=True), Column("most of it", drop=9),
    )  # fmt: skip
    several = len({pool for one in plans for pool in one.plan.cards_by_pool()}) > 1
    return table(columns, [_row(one, several, scored, chosen) for one in plans], strong=[0])


def _row(one: Ranked, several: bool, scored: str, chosen: bool) -> tuple[str, ...]:
    pools = " + ".join(f"{count:,} {pool}" for pool, count in one.plan.cards_by_pool().items()) if several else ""
    figures, fullest = one.estimate.figures, one.cost.fullest
    behind, _, reason = one.lost_by.partition(": ")
    return (
        str(one.rank), one.layout, pools, _in(one) if chosen else "", batches(one.plan), f"{one.plan.cards:,}",
        units.show(figures.step_time_s.value, "time"), band(figures.step_time_s), bare(figures.tokens_per_s.value),
        _worth(one) if scored else "",
        bare(figures.tokens_per_s_per_card.value), units.show(figures.mfu.value, "ratio"),
        of(fullest.bytes, fullest.capacity), behind or "best", reason,
    )  # fmt: skip


def _in(one: Ranked) -> str:
    """Return the precisions of a plan's pools, in the order of the pools where they differ."""
    return " + ".join(dict.fromkeys(one.plan.precision_by_pool().values()))


def _worth(one: Ranked) -> str:
    """Return what a plan is worth in the objective; where the column says tokens/s, the number alone."""
    if one.score.unit == "CNY" and one.score.value is not None and one.score.value >= 1e6:
        return f"{parameters(one.score.value)} CNY"
    return bare(one.score.value) if one.score.unit == "tokens/s" else figure(one.score)


def tags(one: Ranked) -> str:
    """Return which tag each figure of the table carries, in words."""
    figures = one.estimate.figures
    found: dict[str, list[str]] = {}
    for name, value in (
        ("step", figures.step_time_s), ("tokens/s", figures.tokens_per_s), ("MFU", figures.mfu),
        ("memory", figures.memory_bytes_per_card),
    ):  # fmt: skip
        found.setdefault(value.tag, []).append(name)
    return "; ".join(f"{', '.join(names)}: {tag}" for tag, names in found.items())


def _print_stages(best: Ranked, output: Output, shown: bool) -> None:
    """Print who holds what; ``shown``: and in which precision it computes."""
    out = output.data
    out.head("Plan 1", best.layout)
    for entry in best.plan.pipelines[:KINDS_SHOWN]:
        replicas = f"{entry.count:,} replica{'s' if entry.count > 1 else ''}"
        size = f"{entry.micro_batch_size:,} sequence{'s' if entry.micro_batch_size > 1 else ''}"
        each = f"{'each ' if entry.count > 1 else ''}{entry.micro_batches:,} micro-batches of {size}"
        said = [each, SCHEDULES[best.plan.schedule], *usual_no_more(best.plan)]
        out.text(", ".join(said), first=f"{replicas}: ")
        for first, words in stage_lines(entry, best.plan.precision if shown else None):
            out.text(words, first=f"  {first}: ")
    if len(best.plan.pipelines) > KINDS_SHOWN:
        out.text(f"and {len(best.plan.pipelines) - KINDS_SHOWN} more kinds of replica")


def _print_bridge(answer: Answer, output: Output) -> None:
    found = bridge_of(answer.best.plan, answer.setting, answer.best.cost)
    if found is not None:
        output.data.head("Bridge between the pools of plan 1", "(estimated)")
        output.data.text(found.words)
        for one in found.crossings:
            output.data.text(one.words, first=f"  {one.where}: ")


def usual_no_more(plan: Plan) -> list[str]:
    """Return what a plan does that most plans do not: what lies in host memory, and norms that are not split."""
    found = [AWAY_WORDS[plan.offload]] if plan.offload != "none" else []
    return found + (["no sequence parallelism"] if plan.sequence_parallel is False else [])


def stage_lines(entry: Pipeline, usual: Precision | None = None) -> Iterator[tuple[str, str]]:
    """Yield who holds which layers, stages alike on one line: which stages, and what they hold.

    With the precision of each where that of the plan, ``usual``, is given.
    """
    for run in _runs(entry.stages):
        first, last = entry.stages[run[0]], entry.stages[run[-1]]
        where = f"stage {run[0]}" if len(run) == 1 else f"stages {run[0]}-{run[-1]}"
        layers = "no layer" if last.last == first.first else f"layers {first.first}-{last.last - 1}"
        words = [f"{layers} on {first.pool}"]
        words += [f"{first.layers} each"] if len(run) > 1 else []
        words += [f"TP{first.tensor_parallel}"] if first.tensor_parallel > 1 else []
        words += [f"CP{first.context_parallel}"] if first.context_parallel > 1 else []
        words += [f"{first.data_parallel} groups that share each micro-batch"] if first.data_parallel > 1 else []
        words += [f"EP{first.expert_parallel}"] if first.expert_parallel > 1 else []
        words += [f"ETP{first.expert_tensor_parallel}"] if first.expert_tensor_parallel > 1 else []
        words += [recomputation(first)] if first.recompute != "none" else []
        words += [f"matmuls in {first.precision or usual}"] if usual else []
        yield where, ", ".join(words)


def recomputation(stage: Stage) -> str:
    """Return what of a stage is computed again, in words."""
    some = stage.recompute_layers is not None and stage.recompute_layers < stage.layers
    part = f" of {stage.recompute_layers} layer{'s' if stage.recompute_layers != 1 else ''}" if some else ""
    return f"{stage.recompute} recomputation{part}"


def _runs(stages: tuple[Stage, ...]) -> list[list[int]]:
    """Return the indices of neighbouring stages that are alike."""
    runs: list[list[int]] = []
    for index, stage in enumerate(stages):
        if runs and _alike(stages[runs[-1][-1]], stage):
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _alike(one: Stage, other: Stage) -> bool:
    return (one.cut, one.layers, one.recompute, one.recomputed_layers) == (
        other.cut,
        other.layers,
        other.recompute,
        other.recomputed_layers,
    )


def _print_ground(answer: Answer, output: Output) -> None:
    out = output.data
    if answer.best.estimate.assumptions:
        out.head("Rests on")
        out.items(answer.best.estimate.assumptions)
    out.head("Considered", f"{answer.considered:,} layouts in {answer.seconds:.2f} s, {answer.costed:,} costed exactly")
    if answer.gap:
        out.text(f"The search stopped before its end: a plan may be better than plan 1 by {answer.gap:.1%} at most.")
    print_rejected(answer.rejected, output)
    if answer.refused:
        out.head("Not planned over several pools")
        out.items(answer.refused)


def _more(answer: Answer, wanted: PlanWanted, output: Output) -> list[str]:
    """Return what training may be asked besides. ``zhenfa run`` takes the objective and the limits of the job alone."""
    command = command_of(wanted)
    more = [] if output.cite else [f"{command} --cite"]
    if answer.request.formation.emulated and not (wanted.objective or wanted.limit):
        more.append(command.replace("zhenfa plan", "zhenfa run", 1))
    return more
