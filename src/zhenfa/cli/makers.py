"""``zhenfa doctor --makers``: every maker's plug-in, what it cannot do and why, and on which silicon it has run."""

from __future__ import annotations

import os

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.live.makers import Maker, makers, problems


def list_makers(output: Output) -> None:
    """Print the makers, then for each what it cannot do, in sentences, and its time-outs as they stand here."""
    for problem in problems():
        output.talk.text(problem, first="warning: ", style="warn")
    columns = (
        Column("maker", style="strong", wrap=12), Column("id"), Column("torch device"), Column("collective", drop=2),
        Column("tool", drop=3), Column("shown by", drop=4), Column("tried on silicon", wrap=16, drop=1),
    )  # fmt: skip
    output.left_out(output.data.table(table(columns, [_row(one) for one in makers().values()])))
    for one in makers().values():
        _print(one, output)
    if output.cite:
        output.sources(source for one in makers().values() for source in one.sources)


def _row(one: Maker) -> tuple[str, ...]:
    tool = one.smi[0] if one.smi else ""
    shown = one.visible_devices or ""
    return one.name, one.id, one.torch_device or "", one.collective or "", tool, shown, one.tried or "nobody here has"


def _print(one: Maker, output: Output) -> None:
    out = output.data
    out.head(one.name, f"(can: {', '.join(each.name for each in one.capabilities() if each.able) or 'nothing yet'})")
    for name, sentence in one.missing.items():
        out.text(sentence, first=f"  no {name}: ")
    for each in one.timeouts_in_force(os.environ):
        seconds = "its default is not published" if each.seconds is None else units.show(each.seconds, "time")
        problem = f"; {each.problem}" if each.problem else ""
        out.text(f"{each.what}: {seconds} ({each.told_by}){problem}", first=f"  {each.variable}: ")
