"""``zhenfa plan --sensitivity``: which input moves the answer most, a bar for each."""

from __future__ import annotations

from typing import Final, cast

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.cli.words import bare, signed
from zhenfa.plan.sensitivity import Row, Sensitivity

SHOWN: Final = 14
BAR: Final = 10
ANSWERS: Final = {"cost": "money for a token", "energy": "energy of a token"}
TIME: Final = "time for a token, failures included"


def print_sensitivity(found: Sensitivity, output: Output, counted: str = "") -> list[str]:
    """Print the inputs that move the answer, widest first; return the columns for which there was no room."""
    out = output.data
    answer = counted or ANSWERS.get(found.objective, TIME)
    out.head("What moves the answer most", f"({answer}, of plan 1; each input by its own uncertainty, estimated)")
    rows = found.widest(SHOWN)
    columns = (
        Column("input", style="strong", wrap=28), Column("now", right=True, drop=2), Column("moved by", drop=1),
        Column("answer"), Column("energy", drop=4), Column("elasticity", right=True, drop=3), Column(""),
    )  # fmt: skip
    cells = [
        (
            row.input.name, _now(row), f"x{row.input.low:.2f}-{row.input.high:.2f}", _ends(row, "answer"),
            "" if row.now.energy is None else _ends(row, "energy"),
            _elasticity(row),
            out.bar(found.share(row), BAR),
        )
        for row in rows
    ]  # fmt: skip
    left_out = out.table(table(columns, cells, notes=[_note(row) for row in rows]), indent=2)
    left = len(found.rows) - len(rows)
    if left:
        out.text(f"{left} more move it less; --json lists them.", first="  ", style="dim")
    if found.still:
        out.text(", ".join(found.still), first="  moves nothing: ", style="dim")
    out.text("answer and energy at the low and at the high end of the input; elasticity: per cent of the answer for "
             "each per cent of the input", first="  ", style="dim")  # fmt: skip
    _print_ask(found, output)
    return left_out


def _print_ask(found: Sensitivity, output: Output) -> None:
    first = found.ask_first
    if first is None:
        return
    name, end = first.input.name, f"({first.input.tag}: {_ends(first, 'answer')})"
    if first.input.asked == "measure":
        output.data.text(f"{name} {end}, on one card with `zhenfa calibrate`", first="Measure this first: ")
    else:
        output.data.text(f"{name} {end}; supply it with --assume", first="Ask the maker for this first: ")


def _now(row: Row) -> str:
    value, dimension = row.input.value, row.input.dimension
    if value is None or dimension == "count":
        return bare(value)
    return units.show(value, cast(units.Dimension, dimension))


def _elasticity(row: Row) -> str:
    value = row.elasticity
    if value is None:
        return "-"
    return "0.00" if abs(value) < 0.005 else f"{value:+.2f}"


def _ends(row: Row, name: str) -> str:
    low, high = row.ends(name)
    return f"{signed(low)} / {signed(high)}"


def _note(row: Row) -> str:
    """Say where the range is from, and what becomes of the plan."""
    words = [row.input.why if row.input.tag in row.input.why else f"{row.input.tag}; {row.input.why}"]
    if row.low.problem or row.high.problem:
        words.append("the plan no longer fits at an end")
    if row.searched and not row.others:
        words.append("searched again: the same plan stays the best")
    words += [f"at x{other.at:.2f} {other.layout} is the best" + _by(other.better) for other in row.others]
    return "; ".join(words)


def _by(better: float) -> str:
    return f", {better:.1%} better" if better < 1 else ""
