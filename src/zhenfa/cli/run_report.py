"""The report of ``zhenfa run``: what was predicted beside what was measured."""

from __future__ import annotations

from typing import Final

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.cli.walls import print_walls
from zhenfa.cli.words import EMULATED, figure, ratio
from zhenfa.live.learn.words import NOTHING, signed, weighed
from zhenfa.plan import Answer
from zhenfa.spec import run_words
from zhenfa.spec.result import Figures, Run

LAWS: Final = 12
"""Laws that are shown one by one: those that add or take most."""

FIGURES: Final = {
    "step_time_s": "step time",
    "tokens_per_s": "throughput",
    "tokens_per_s_per_card": "throughput per card",
    "mfu": "MFU",
    "memory_bytes_per_card": "memory, fullest card",
}
WHERE_KNOWN: Final = {"energy_j_per_token": "energy per token"}
"""Figures that are shown where the run has them."""


def print_run(run: Run, answer: Answer, files: dict[str, str], seconds: float, output: Output) -> None:
    """Print the report of a run."""
    out = output.data
    mark = f" [{EMULATED} cards]" if run.emulated else ""
    out.text(
        f"{run.steps} steps on {run.plan.cards} cards of {run.plan.machine}{mark}, engine {run.engine}, "
        f"{answer.best.layout}",
        first=f"{run.plan.job}: ", style="head",
    )  # fmt: skip
    if run.emulated:
        out.text(
            "The cards are emulated: the time is that of the emulation, and says nothing of any maker's silicon.",
            style="warn",
        )
    out.head("Predicted beside measured", "(predicted: estimated before the run)")
    out.table(table(_columns("figure"), _rows(run)), indent=2)
    _print_notes(run, output)
    _print_speeds(run, output)
    out.head("Four walls", f"(measured; {run.walls.binding} binds)")
    print_walls(out, run.walls, empty="not measured by a run")
    _print_laws(run, output)
    _print_incidents(run, output)
    _print_cards(run, output)
    out.head("Files")
    for name, path in files.items():
        out.line(f"  {name:<10} {path}")
    output.say(f"{seconds:.0f} s in all")


def _columns(first: str) -> tuple[Column, ...]:
    return (
        Column(first, style="strong"), Column("predicted", right=True), Column("measured", right=True),
        Column("measured / predicted", right=True),
    )  # fmt: skip


def _rows(run: Run) -> list[tuple[str, ...]]:
    predicted = run.estimate.figures if run.estimate else Figures()
    rows: list[tuple[str, ...]] = []
    known = {field: label for field, label in WHERE_KNOWN.items() if getattr(run.figures, field).value is not None}
    for field, label in (FIGURES | known).items():
        before, after = getattr(predicted, field), getattr(run.figures, field)
        rows.append((label, figure(before), figure(after), ratio(after.value, before.value)))
    return rows


def _print_notes(run: Run, output: Output) -> None:
    """Say what MFU and memory count on either side, and what else the run has to say."""
    predicted = run.estimate.figures if run.estimate else Figures()
    for label, words in (
        ("MFU, predicted", predicted.mfu.note), ("MFU, measured", run.figures.mfu.note),
        ("memory, measured", run.figures.memory_bytes_per_card.note),
        *(("note", note) for note in run.notes),
    ):  # fmt: skip
        if words:
            output.data.text(words, first=f"  {label}: ", style="dim")


def _print_speeds(run: Run, output: Output) -> None:
    out = output.data
    out.head("What the run showed")
    out.text(f"{run.losses[0]:.4f} -> {run.losses[-1]:.4f} over {len(run.losses)} steps", first="  loss: ")
    if run.evaluations:
        last = run.evaluations[-1]
        out.text(
            f"{run.evaluations[0].loss:.4f} -> {last.loss:.4f}, after steps {run.evaluations[0].step} and {last.step}",
            first="  loss on held-out data: ",
        )
    if run.routing is not None:
        out.text(run_words.of_routing(run.routing), first="  tokens over experts: ")
    if run.share_of_sum_of_speeds is not None:
        out.text(
            f"{run.share_of_sum_of_speeds:.1%}, the ideal step with every card busy all the time over the measured one",
            first="  share of the sum of speeds: ",
        )
    if run.even_split:
        share = run.even_split.get("share_of_sum_of_speeds")
        of_sum = f", {share:.1%} of the sum of speeds" if share else ""
        out.text(
            f"{units.show(run.even_split['step_time_s'], 'time')} a step{of_sum}; the plan is "
            f"{run.even_split['speed_up']:.2f} times as fast",
            first="  the same cards with an even split: ",
        )
    for label, words in () if run.bridge is None else run_words.of_bridge(run.bridge):
        out.text(words, first=f"  {label}: ")
    if run.fidelity:
        label = "fidelity of the emulation" if run.emulated else "left alone"
        out.text(
            f"{run.fidelity.get('verdict')}; protection: {run.fidelity.get('protection')}",
            first=f"  {label}: ", style=None if run.fidelity.get("valid") else "warn",
        )  # fmt: skip


def _print_laws(run: Run, output: Output) -> None:
    """Say which law was off, and what each of them adds to the step; the largest first."""
    found = run.attribution
    if found is None:
        return
    steps = "one step" if found.steps == 1 else f"{found.steps} steps"
    output.data.head("Law by law", f"(seconds of a step, mean of {steps}; what being off adds to the step)")
    output.data.text(found.verdict, first="  ", style="warn" if found.off or not found.judged else None)
    for words in found.wrong:
        output.data.text(words, first="  wrong: ", style="warn")
    columns = (
        Column("law", style="strong"), Column("where", wrap=32), Column("predicted", right=True),
        Column("measured", right=True), Column("ratio", right=True), Column("adds to the step", right=True),
    )  # fmt: skip
    off = [one for one in weighed(found) if abs(one.effect_s) >= NOTHING]
    shown = (off or weighed(found)[:1])[:LAWS]
    rows: list[tuple[str, ...]] = [
        (
            one.law, one.where, units.show(one.predicted_s, "time"), units.show(one.measured_s, "time"),
            "-" if one.ratio is None else f"{one.ratio:.3g}", signed(one.effect_s),
        )
        for one in shown
    ]  # fmt: skip
    rest = weighed(found)[len(shown) :]
    if rest:
        rows.append(("others", f"{len(rest)} more", "", "", "", signed(sum(one.effect_s for one in rest))))
    rows.append(("no law", "remainder", "", "", "", signed(found.remainder_s)))
    output.left_out(output.data.table(table(columns, rows), indent=2))


def _print_incidents(run: Run, output: Output) -> None:
    """Say what happened to cards, and what was done about it; nothing where nothing happened."""
    if not run.incidents:
        return
    kept = "" if run.effective_share is None else f"; {run.effective_share:.1%} of the time went into steps that stayed"
    count = len(run.incidents)
    output.data.head("Recovery log", f"({count} incident{'s' * (count > 1)}{kept})")
    columns = (
        Column("step", right=True), Column("card", style="strong"), Column("what happened"), Column("done about it"),
        Column("steps again", right=True), Column("noticed after", right=True), Column("down", right=True),
    )  # fmt: skip
    rows = [
        (
            str(one.step), one.card.split(" (")[0], f"{one.kind}: {one.words}", one.action, str(one.steps_lost),
            "-" if one.noticed_s is None else units.show(one.noticed_s, "time"), units.show(one.down_s, "time"),
        )
        for one in run.incidents
    ]  # fmt: skip
    output.left_out(output.data.table(table(columns, rows), indent=2))


def _print_cards(run: Run, output: Output) -> None:
    output.data.head("Cards", "(seconds per micro-batch, predicted / measured; memory measured)")
    predicted = {(stage.pool, stage.layers): stage for stage in run.estimate.stages} if run.estimate else {}
    spread = any(stage.host is not None for stage in run.stages)
    rows: list[tuple[str, ...]] = []
    for number, stage in enumerate(run.stages):
        twin = predicted.get((stage.pool, stage.layers))
        host = (stage.host or "-",) if spread else ()
        rows.append((
            str(number if stage.card is None else stage.card), *host, stage.pool,
            f"{stage.layers[0]}-{stage.layers[1] - 1}",
            _pair(twin.forward_s if twin else None, stage.forward_s),
            _pair(twin.backward_s if twin else None, stage.backward_s), units.show(stage.memory_bytes, "data"),
        ))  # fmt: skip
    columns = (
        Column("card", right=True), *((Column("host"),) if spread else ()), Column("pool", style="strong"),
        Column("layers"), Column("forward", right=True),
        Column("backward", right=True), Column("memory", right=True),
    )  # fmt: skip
    output.left_out(output.data.table(table(columns, rows), indent=2))


def _pair(predicted: float | None, measured: float) -> str:
    before = units.show(predicted, "time") if predicted is not None else "-"
    return f"{before} / {units.show(measured, 'time')}"
