"""What ``--why`` prints alike of plans that train and plans that serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.cli.words import signed
from zhenfa.plan.explain import Why
from zhenfa.plan.serving.explain import ServingWhy

AnyWhy = Why | ServingWhy

CHANGES_SHOWN: Final = 8


def print_head(why: AnyWhy, output: Output) -> None:
    """Print which plan it is about, and what keeps it from running."""
    title = f"Why {why.name} cannot run" if why.problems else f"Why {why.name} lost"
    if not why.problems and why.behind is not None and why.behind <= 0:
        title = f"{why.name} beside plan 1"
    behind = "" if why.behind is None else f": {signed(why.behind)}"
    output.data.head(title, f"({why.layout}){behind}")
    for problem in why.problems:
        output.data.text(problem, first="  - ")


def mine(why: AnyWhy) -> str:
    """Return what heads the column of the plan that is asked about."""
    return why.name if why.name.startswith("plan ") else "yours"


def print_differences(why: AnyWhy, output: Output) -> list[str]:
    """Print in what the layouts differ; return the columns for which there was no room."""
    if not why.differences:
        return []
    output.data.head("What differs in the layout")
    rows = [(one.what, one.first, one.other) for one in why.differences]
    columns = (Column("what", style="strong"), Column("plan 1", wrap=20), Column(mine(why), wrap=20))
    return output.data.table(table(columns, rows), indent=2)


def print_changes(
    why: AnyWhy, output: Output, *, tried: str, figure: str, row: Callable[[Any], Sequence[str]], barred_shown: int
) -> list[str]:
    """Print the single changes that were ``tried``, each with a ``figure``, and so many of those that cannot be."""
    out = output.data
    barred = [one for one in why.changes if one.barred]
    shown = [*why.possible[:CHANGES_SHOWN], *barred[:barred_shown]]
    if not shown:
        return []
    out.head("One change at a time", f"({tried}, estimated)")
    best = why.nearest
    if best is None or best.score is None:
        out.text("No single change makes it better.", first="  ")
    else:
        out.text(f"{best.words} brings it nearest to plan 1: {signed(why.behind_by(best.score))}.", first="  ")
    columns = (Column("change", wrap=24, style="strong"), Column(figure, right=True), Column("behind 1", right=True))
    found = table(columns, [row(one) for one in shown], notes=[one.barred for one in shown], title="barred by")
    left_out = out.table(found, indent=2)
    if left := len(why.changes) - len(shown):
        out.text(f"{left} more were tried; --json lists them.", first="  ", style="dim")
    return left_out


def print_searched(why: AnyWhy, output: Output) -> None:
    """Print whether the search looked at the plan."""
    output.data.head("Searched", {True: "(yes)", False: "(no)", None: "(not told)"}[why.searched.contained])
    output.data.items(why.searched.words)
