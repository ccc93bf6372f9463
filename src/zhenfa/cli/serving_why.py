"""``zhenfa plan --why`` where the job serves: a plan beside the first, what binds it, which change would help."""

from __future__ import annotations

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.plan_detail import LABELS
from zhenfa.cli.tables import Column, table
from zhenfa.cli.why_parts import mine, print_changes, print_differences, print_head, print_searched
from zhenfa.cli.words import amount, signed
from zhenfa.plan.beside import Gap
from zhenfa.plan.serving.change import ServingChange
from zhenfa.plan.serving.explain import ServingWhy
from zhenfa.spec.result import Figures

BARRED_SHOWN = 4


def print_serving_why(why: ServingWhy, output: Output) -> list[str]:
    """Print why a plan lost to the first; return the columns for which there was no room."""
    out, left_out = output.data, list[str]()
    print_head(why, output)
    left_out += _print_parts(why, output)
    left_out += print_differences(why, output)
    left_out += _print_figures(why, output)
    if why.constraints:
        out.head("What binds it", "(estimated)")
        for one in why.constraints:
            out.text(one.words, first=f"  {one.kind + ':':<9} ")
    left_out += print_changes(
        why, output, tried="each taken to the most within the targets", figure="requests/s",
        row=lambda one: _change_row(one, why), barred_shown=BARRED_SHOWN,
    )  # fmt: skip
    print_searched(why, output)
    return left_out


def _print_parts(why: ServingWhy, output: Output) -> list[str]:
    """Print the card-seconds of a request side by side, the largest loss first."""
    rows = [_gap_row(one) for one in why.parts if max(abs(one.first), abs(one.other)) > 1e-4]
    if not rows:
        return []
    whole = [sum(getattr(one, side) for one in why.parts) for side in ("first", "other")]
    rows.append(("in all", f"{whole[0]:.3g}", f"{whole[1]:.3g}", f"{whole[1] - whole[0]:+.3g}",
                 signed(whole[1] / whole[0] - 1)))  # fmt: skip
    output.data.head("Card-seconds of a request", "(largest loss first, estimated)")
    columns = (
        Column("part", style="strong", wrap=16), Column("plan 1", right=True), Column(mine(why), right=True),
        Column("difference", right=True, drop=1), Column("share", right=True),
    )  # fmt: skip
    return output.data.table(table(columns, rows), indent=2)


def _gap_row(one: Gap) -> tuple[str, str, str, str, str]:
    return one.what, f"{one.first:.3g}", f"{one.other:.3g}", f"{one.gap:+.3g}", signed(one.share)


def _print_figures(why: ServingWhy, output: Output) -> list[str]:
    """Print figures, walls and the memory of a card side by side."""
    rows = [
        (LABELS[one.what], amount(one.first, _unit(one)), amount(one.other, _unit(one)), signed(one.share))
        for one in why.figures
    ]
    rows += [(f"{one.what} wall", f"{one.first:.1%}", f"{one.other:.1%}", signed(one.gap)) for one in why.walls]
    rows += [
        (f"memory, {one.what}", units.show(one.first, "data"), units.show(one.other, "data"), signed(one.share))
        for one in why.memory
    ]
    if not rows:
        return []
    output.data.head("Side by side", "(walls: share of a decode step; memory: of a card; estimated)")
    columns = (
        Column("figure", style="strong", wrap=16), Column("plan 1", right=True), Column(mine(why), right=True),
        Column("difference", right=True, drop=1),
    )  # fmt: skip
    return output.data.table(table(columns, rows), indent=2)


def _unit(one: Gap) -> str:
    return str(Figures.model_fields[one.what].default.unit)


def _change_row(one: ServingChange, why: ServingWhy) -> tuple[str, str, str]:
    rate = "-" if one.cost is None or one.cost.rate <= 0 else f"{one.cost.rate:.4g}"
    return one.words, rate, "-" if one.score is None else signed(why.behind_by(one.score))
