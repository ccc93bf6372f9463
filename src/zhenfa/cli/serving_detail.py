"""``zhenfa plan --detail`` where the job serves: steps operator by operator, TTFT and memory by part, the front."""

from __future__ import annotations

from typing import Final

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.plan_detail import figure_table, print_light
from zhenfa.cli.tables import Column, Table, table
from zhenfa.cli.words import bare
from zhenfa.estimate.serving_detail import StepDetail
from zhenfa.estimate.serving_report import PartEstimate
from zhenfa.plan.serving import ServingAnswer

FRONT_SHOWN: Final = 10


def print_detail(answer: ServingAnswer, output: Output) -> list[str]:
    """Print the first plan in detail; return the columns for which there was no room."""
    out, best = output.data, answer.best
    out.head("Figures of plan 1", "(estimated)")
    left_out = out.table(figure_table(best.estimate.figures), indent=2)
    steps = answer.detail()
    for number, part in enumerate(best.estimate.parts, 1):
        which = f" of part {number}" if len(best.estimate.parts) > 1 else ""
        for title, seconds in seconds_of(part).items():
            _print_seconds(f"{title}{which}", seconds, output)
        for one in steps[2 * (number - 1) : 2 * number]:
            left_out += _print_step(one, which, output)
        out.head(f"Memory of a card{which}", "(estimated)")
        for role, held in part.memory.items():
            words = ", ".join(f"{name} {units.show(size, 'data')}" for name, size in held.items())
            out.text(words, first=f"  {role}: ")
    out.head("What can be had", "(Pareto under the TTFT target, whatever the TPOT; estimated)")
    return left_out + out.table(front_table(answer), indent=2)


def seconds_of(part: PartEstimate) -> dict[str, dict[str, float]]:
    """Return where the steps of a part and its TTFT go."""
    return {
        "Where a decode step goes": part.decode_s, "Where a prompt's step goes": part.prefill_s,
        "Where TTFT goes": part.first_s,
    }  # fmt: skip


def _print_seconds(title: str, seconds: dict[str, float], output: Output) -> None:
    out, whole = output.data, sum(seconds.values())
    out.head(title, f"({units.show(whole, 'time')}, estimated)")
    for name, one in seconds.items():
        share = one / whole if whole else 0.0
        out.line(f"  {name:<12} {units.show(one, 'time'):>8} {share:>6.1%} {out.bar(max(share, 0.0))}")


def _print_step(found: StepDetail, which: str, output: Output) -> list[str]:
    """Print the operators of one step, the longest first."""
    out, shown = output.data, found.largest()
    words = f"({found.carries}, on {found.pool}; estimated)"
    out.head(f"Operators of a {found.role} step{which}", words)
    rows: list[tuple[str, ...]] = [
        (
            one.name, bare(one.runs), units.show(one.seconds, "time"),
            units.show(one.links, "time") if one.links else "", f"{found.share(one.step):.1%}",
            "-" if one.share is None else f"{one.share:.0%}", one.bound, one.origin.tag,
        )
        for one in shown
    ]  # fmt: skip
    for name, seconds in (("all others", found.others(shown)), ("engine", found.engine)):
        rows.append((name, "", "", "", f"{found.share(seconds):.1%}", "", "", ""))
    columns = (
        Column("operator", style="strong"), Column("runs", right=True), Column("kernel", right=True),
        Column("links", right=True, drop=2), Column("of step", right=True), Column("of light", right=True),
        Column("bound by", drop=3), Column("tag", drop=1),
    )  # fmt: skip
    left_out = out.table(table(columns, rows), indent=2)
    print_light([one.origin for one in shown], "those of the kernel", output)
    return left_out


def front_table(answer: ServingAnswer) -> Table:
    """Return some points of the front, from fast to frugal."""
    points = answer.front
    step = max(len(points) // FRONT_SHOWN, 1)
    columns = (
        Column("per user", right=True), Column("per card", right=True), Column("running", right=True, drop=1),
        Column("layout", wrap=20),
    )  # fmt: skip
    rows = [
        (bare(one.tokens_per_s_per_user), bare(one.tokens_per_s_per_card), f"{one.running:,.0f}", one.layout)
        for one in points[::step]
    ]
    return table(columns, rows)
