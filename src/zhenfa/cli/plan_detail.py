"""``zhenfa plan --detail`` and ``--why``: every figure with its tag, every stage, and two plans side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, Table, render, table
from zhenfa.cli.words import bare, figure
from zhenfa.estimate.detail import Detail, detail, with_memory
from zhenfa.estimate.origin import Origin
from zhenfa.plan import Answer
from zhenfa.spec.result import Figure, Figures, Operating, StageFigures

LABELS: Final = {
    "step_time_s": "step time",
    "tokens_per_s": "throughput",
    "tokens_per_s_per_card": "throughput per card",
    "mfu": "MFU",
    "memory_bytes_per_card": "memory per card",
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "tokens_per_s_per_user": "throughput per user",
    "requests_per_s": "requests",
    "cost_per_million_tokens": "cost of 1 M tokens",
    "energy_j_per_token": "energy per token",
    "ettr": "ETTR",
    "cost": "cost",
}
OPERATING: Final = {
    "mtbf_s": "time between failures", "checkpoint_bytes": "checkpoint", "checkpoint_stall_s": "checkpoint stall",
    "checkpoint_write_s": "checkpoint write", "interval_s": "checkpoint interval",
    "young_interval_s": "interval after Young", "daly_interval_s": "interval after Daly", "down_s": "down",
    "restart_s": "restart", "lost_s_per_failure": "lost to one failure", "kokolis_ettr": "ETTR after Kokolis",
    "cards_out": "cards out of work", "standby_nodes": "standby nodes", "scheduling": "scheduling",
    "goodput": "goodput",
    "facility_power_w": "power at the meter", "run_energy_j": "energy of the run", "carbon_kg": "carbon of the run",
}  # fmt: skip
NEGLIGIBLE_S: Final = 1e-9


def print_detail(answer: Answer, output: Output) -> list[str]:
    """Print figures, parts of the step, operators, links, and stages of the best plan; return the columns for which
    there was no room."""
    out, left_out, best = output.data, list[str](), answer.best
    out.head("Figures of plan 1", "(estimated)")
    left_out += out.table(figure_table(best.estimate.figures), indent=2)
    out.head("Where the step goes", "(busiest stage, estimated)")
    step = best.cost.step
    for name, spent in best.estimate.parts_s.items():
        share = spent / step
        out.line(f"  {name:<18} {seconds(spent):>8} {share:>6.1%} {out.bar(share)}")
    found = detail(best.plan, answer.setting, best.cost)
    left_out += _print_operators(found, output)
    left_out += _print_links(found, output)
    if best.estimate.operating.mtbf_s.value is not None:
        out.head("How a long run fares", "(estimated)")
        left_out += out.table(operating_table(best.estimate.operating), indent=2)
        failed = best.estimate.operating.failures_per_day
        out.text(", ".join(f"{name} {bare(rate)}" for name, rate in failed.items()), first="  failures a day: ")
        if best.estimate.operating.not_counted:
            out.text(", ".join(best.estimate.operating.not_counted), first="  not counted, no rate known: ")
    out.head("Stages", "(seconds per micro-batch, memory per card, estimated)")
    stages = with_memory(best.estimate.stages, found)
    left_out += out.table(_stages_that_fit(stages, out.width - 2), indent=2)
    return left_out


def _print_operators(found: Detail, output: Output) -> list[str]:
    """Print the operators of the busiest stage with their share of the step and of the speed of light."""
    out = output.data
    shown = found.largest()
    out.head("Operators", f"(place {found.place} on {found.pool}, {found.layers} layers; one run, estimated)")
    rows: list[tuple[str, ...]] = [
        (
            one.name, bare(one.count), seconds(one.forward), seconds(one.backward),
            seconds(one.again) if one.again else "", f"{found.share(one.step):.1%}",
            "-" if one.share is None else f"{one.share:.0%}", one.bound, one.origin.tag,
        )
        for one in shown
    ]  # fmt: skip
    rest = found.others(shown)
    if abs(rest) > NEGLIGIBLE_S:
        rows.append(("all others", "", "", "", "", f"{found.share(rest):.1%}", "", "", ""))
    columns = (
        Column("operator", style="strong"), Column("runs", right=True), Column("forward", right=True),
        Column("backward", right=True), Column("again", right=True, drop=2), Column("of step", right=True),
        Column("of light", right=True), Column("bound by", drop=3), Column("tag", drop=1),
    )  # fmt: skip
    left_out = out.table(table(columns, rows), indent=2)
    print_light([one.origin for one in shown], "those predicted", output)
    return left_out


def print_light(origins: Sequence[Origin], over: str, output: Output) -> None:
    """Say what the share of light of some operators is, and where their seconds come from."""
    tags: dict[str, dict[str, None]] = {}
    for one in origins:
        tags.setdefault(one.tag, {})[one.words] = None
    output.data.text(f"ideal seconds (at peak, or at the memory's bandwidth where that is longer) over {over}",
                     first="   of light  ", style="dim")  # fmt: skip
    words = "; ".join(f"{tag}: {', '.join(words)}" for tag, words in tags.items())
    output.data.text(words, first="   tags      ", style="dim")


def _print_links(found: Detail, output: Output) -> list[str]:
    """Print what each kind of communication runs on, and how much of it is exposed."""
    if not found.links:
        return []
    output.data.head("Links", "(what arithmetic does not hide, seconds of a step, estimated)")
    rows = [
        (
            one.kind, f"{one.cards:,}", one.link, "-" if one.bandwidth is None else units.show(one.bandwidth, "rate"),
            one.tag, seconds(one.exposed), f"{found.share(one.exposed):.1%}",
        )
        for one in found.links
    ]  # fmt: skip
    columns = (
        Column("communication", style="strong"), Column("cards", right=True), Column("over", wrap=16),
        Column("bandwidth", right=True, drop=1), Column("tag", drop=2), Column("exposed", right=True),
        Column("of step", right=True),
    )  # fmt: skip
    return output.data.table(table(columns, rows), indent=2)


def figure_table(figures: Figures) -> Table:
    """Return every figure with its tag and note; those that were not estimated are left out."""
    return _figures_of(figures, LABELS)


def operating_table(operating: Operating) -> Table:
    """Return every figure of how a long run fares."""
    return _figures_of(operating, OPERATING)


def _figures_of(part: Figures | Operating, labels: Mapping[str, str]) -> Table:
    values: list[tuple[str, Figure]] = [(label, getattr(part, name)) for name, label in labels.items()]
    known = [(label, value) for label, value in values if value.value is not None]
    missing = [(label, value) for label, value in values if value.value is None and value.note]
    columns = (Column("figure", style="strong"), Column("value", right=True), Column("tag"))
    rows = [(label, figure(value), value.tag) for label, value in known] + [(label, "-", "-") for label, _ in missing]
    return table(columns, rows, notes=[value.note or "" for _, value in (*known, *missing)])


def _stages_that_fit(stages: tuple[StageFigures, ...], room: int) -> Table:
    """Return the stages with the parts of their memory in columns, or in notes where not all columns have room."""
    wide = _stage_table(stages, apart=True)
    return _stage_table(stages, apart=False) if render(wide, room)[1] else wide


def _stage_table(stages: tuple[StageFigures, ...], *, apart: bool) -> Table:
    """Return one line for each stage; neighbours that look the same share one."""
    several = len({stage.pipeline for stage in stages}) > 1
    held = list(dict.fromkeys(name for stage in stages for name in stage.memory_parts))
    signs = [f"{'+' if at else '='} {name}" for at, name in enumerate(held)]
    columns = [
        Column("pipeline", right=True), Column("stage", right=True), Column("pool", style="strong"), Column("layers"),
        Column("forward", right=True), Column("backward", right=True), Column("to next", right=True, drop=1),
        Column("memory", right=True), *(Column(sign, right=True, drop=2) for sign in signs if apart),
    ]  # fmt: skip
    rows, notes = [], []
    for _, group in groupby(stages, key=_shown):
        run = list(group)
        first, last = run[0], run[-1]
        parts = [units.show(first.memory_parts.get(name, 0.0), "data") for name in held]
        rows.append((
            str(first.pipeline) if several else "",
            str(first.stage) if len(run) == 1 else f"{first.stage}-{last.stage}",
            first.pool, f"{first.layers[0]}-{last.layers[1] - 1}", *_shown(first)[3:7], *(parts if apart else ()),
        ))  # fmt: skip
        notes.append("" if apart else ", ".join(f"{name} {part}" for name, part in zip(held, parts, strict=True)))
    return table(columns, rows, notes=notes)


def _shown(stage: StageFigures) -> tuple[str, ...]:
    """Return what of a stage is shown, by which stages in a row are told to be alike."""
    return (
        str(stage.pipeline), stage.pool, str(stage.layers[1] - stage.layers[0]), units.show(stage.forward_s, "time"),
        units.show(stage.backward_s, "time"), units.show(stage.transfer_s, "time") if stage.transfer_s else "-",
        units.show(stage.memory_bytes, "data"),
    )  # fmt: skip


def seconds(value: float) -> str:
    """Return a part of a step; what rounding left over is nothing."""
    return units.show(value if abs(value) > NEGLIGIBLE_S else 0.0, "time")
