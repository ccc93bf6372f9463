"""What every page of ``zhenfa plan`` ends with: what was rejected, and what to ask next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.cli.wanted import PlanWanted, said

REASONS_SHOWN: Final = 5


def print_rejected(rejected: Mapping[str, int], output: Output) -> None:
    """Print how many were rejected and why, the most frequent reasons first."""
    reasons = list(rejected.items())
    rows = [(f"{count:,}", reason) for reason, count in reasons[:REASONS_SHOWN]]
    left = len(reasons) - REASONS_SHOWN
    if left > 0:
        rows.append(("", f"and {left} more reason{'s' if left > 1 else ''} (--json lists all)"))
    if rows:
        output.data.table(table((Column("rejected", right=True), Column("because", wrap=30)), rows), indent=2)


def command_of(wanted: PlanWanted) -> str:
    """Return the command that plans the same again, without what it shows besides."""
    words = ["zhenfa", "plan", wanted.job, *(["--on", wanted.on] if wanted.on else [])]
    words += said(wanted)
    words += ["--for", wanted.objective] if wanted.objective else []
    words += [part for text in wanted.limit for part in ("--limit", text)]
    return shlex.join(words)


def suggest(wanted: PlanWanted, plans: int, more: Sequence[str], output: Output) -> None:
    """Say on stderr which commands lead on from here: details, why the second lost, and ``more``."""
    command = command_of(wanted)
    output.talk.line()
    output.talk.line("Next:", "dim")
    if not wanted.detail:
        output.talk.line(f"  {command} --detail")
    if wanted.why is None and plans > 1:
        output.talk.line(f"  {command} --why 2")
    for line in more:
        output.talk.line(f"  {line}")
