"""``zhenfa plan --why``: a plan beside the first, what bound it, and which single change would help."""

from __future__ import annotations

import math

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.plan_detail import LABELS, NEGLIGIBLE_S, seconds
from zhenfa.cli.tables import Column, table
from zhenfa.cli.why_parts import mine, print_changes, print_differences, print_head, print_searched
from zhenfa.cli.words import amount, difference, signed
from zhenfa.plan.beside import Gap
from zhenfa.plan.change import Change
from zhenfa.plan.explain import Why
from zhenfa.spec.result import Figures

BARRED_SHOWN = 5


def print_why(why: Why, output: Output) -> list[str]:
    """Print why a plan lost to the first; return the columns for which there was no room."""
    out, left_out = output.data, list[str]()
    print_head(why, output)
    left_out += _print_parts(why, output)
    left_out += print_differences(why, output)
    left_out += _print_figures(why, output)
    if why.constraints:
        out.head("What bound it", "(dearest first, estimated)")
        for one in why.constraints:
            cost = "" if one.seconds is None else f" ({seconds(one.seconds)} a step)"
            out.text(f"{one.words}{cost}", first=f"  {one.kind + ':':<14} ")
    left_out += print_changes(
        why, output, tried="each costed for real", figure="step",
        row=lambda one: _change_row(one, why), barred_shown=BARRED_SHOWN,
    )  # fmt: skip
    print_searched(why, output)
    return left_out


def _print_parts(why: Why, output: Output) -> list[str]:
    """Print the parts of both steps side by side, the largest loss first."""
    if not why.parts or why.step is None or not math.isfinite(why.step):
        return []
    rows = [
        (one.what, seconds(one.first), seconds(one.other), _gap(one), signed(one.share))
        for one in why.parts
        if max(abs(one.first), abs(one.other)) > NEGLIGIBLE_S
    ]
    rows.append((
        "step", units.show(why.first_step, "time"), units.show(why.step, "time"),
        difference(why.step, why.first_step), signed(why.longer or 0.0),
    ))  # fmt: skip
    columns = (
        Column("part of the step", style="strong"), Column("plan 1", right=True), Column(mine(why), right=True),
        Column("difference", right=True), Column("share", right=True),
    )  # fmt: skip
    return output.data.table(table(columns, rows), indent=2)


def _gap(one: Gap) -> str:
    return difference(one.other, one.first) if abs(one.gap) > NEGLIGIBLE_S else "0 s"


def _print_figures(why: Why, output: Output) -> list[str]:
    """Print figures, walls and the memory of the fullest card side by side."""
    rows = [_figure_row(one) for one in why.figures]
    rows += [(f"{one.what} wall", f"{one.first:.1%}", f"{one.other:.1%}", signed(one.gap)) for one in why.walls]
    rows += [
        (f"memory: {one.what}", units.show(one.first, "data"), units.show(one.other, "data"), signed(one.share))
        for one in why.memory
    ]
    if not rows:
        return []
    output.data.head("Side by side", "(walls: share of the time; memory: of the fullest card; estimated)")
    columns = (
        Column("figure", style="strong", wrap=16), Column("plan 1", right=True), Column(mine(why), right=True),
        Column("difference", right=True),
    )  # fmt: skip
    return output.data.table(table(columns, rows), indent=2)


def _figure_row(one: Gap) -> tuple[str, str, str, str]:
    unit = Figures.model_fields[one.what].default.unit
    return LABELS[one.what], amount(one.first, unit), amount(one.other, unit), signed(one.share)


def _change_row(one: Change, why: Why) -> tuple[str, str, str]:
    if one.step is None or one.score is None:
        return one.words, "-", "-"
    return one.words, units.show(one.step, "time"), signed(why.behind_by(one.score))
