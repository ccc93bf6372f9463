"""``zhenfa doctor``: what a run needs and whether it is here, and a job's own messages over its cards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.cli.words import EMULATED
from zhenfa.errors import CapabilityError, RunError, ZhenfaError
from zhenfa.live.discovery import devices, refuse_unreachable
from zhenfa.live.doctor import cards, host
from zhenfa.live.doctor.check import Check, judged
from zhenfa.live.makers import makers

if TYPE_CHECKING:
    from zhenfa.cli.doctor_documents import Diagnosis
    from zhenfa.live.doctor.preflight import Timed

STYLE: Final = {"ok": None, "warn": "warn", "fail": "error"}


@dataclass(frozen=True)
class Wanted:
    """What was asked of ``zhenfa doctor``."""

    job: str | None = None
    on: str | None = None
    assume: Sequence[str] = ()
    settings: Sequence[str] = ()
    makers: bool = False


class UnsoundError(ZhenfaError):
    """A run would fail."""


def examine(wanted: Wanted, output: Output) -> None:
    """Print the checks, or the makers. Raises :class:`UnsoundError` if a check failed."""
    if wanted.makers and not output.as_json:
        from zhenfa.cli.makers import list_makers

        list_makers(output)
        return
    timed: list[Timed] | None = None
    with output.working("looking around"):
        software = cards.checks(devices())
        rows = [*host.checks(), *software]
    if wanted.job is not None and not _failed(rows):
        rows, timed = _with_job(wanted, software, output)
    if output.as_json:
        output.document(_document(rows, timed))
    else:
        _print(rows, timed, output)
        if output.cite:
            output.sources(source for one in makers().values() for source in one.sources)
    failed = _failed(rows)
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise UnsoundError(
            f"a run would fail: {failed[0].what} ({failed[0].found.rstrip('.')}){more}.", hint=failed[0].way_out
        )


def _failed(rows: Sequence[Check]) -> list[Check]:
    return [row for row in rows if row.verdict == "fail"]


def _with_job(wanted: Wanted, software: list[Check], output: Output) -> tuple[list[Check], list[Timed] | None]:
    """Plan the job, look at the host again for its size, and try its messages."""
    from zhenfa.estimate.traits import own_runtime
    from zhenfa.live.doctor.preflight import check_of, preflight
    from zhenfa.live.foreign.subject import subject_of
    from zhenfa.live.placement import place
    from zhenfa.live.planned import best_plans
    from zhenfa.live.run import open_engine
    from zhenfa.plan import make_request
    from zhenfa.plan.asked import read_assumptions, read_job

    job, folder = read_job(str(wanted.job), wanted.settings), Path(str(wanted.job)).resolve().parent
    subject = subject_of(job, folder)
    request = make_request(
        job, folder=folder, on=wanted.on, assume=read_assumptions(wanted.assume), model=subject.model
    )
    with output.working("planning"):
        answer = best_plans(replace(request, traits=own_runtime(job.execution, request.formation, whole=subject.whole)))
    sizes, plan = subject.sizes, answer.best.plan
    mark = f" [{EMULATED} cards]" if request.formation.emulated else ""
    output.say(f"plan: {answer.best.layout} on {request.formation.name}{mark}, {plan.cards} cards")
    rows = [*host.checks(plan.cards, sizes.parameters), *software]
    if _failed(rows):
        return rows, None
    try:
        refuse_unreachable(one.provider for one in place(plan, request.formation, sizes))
    except CapabilityError as problem:
        return [*rows, judged("plan", problem.message, fail=True, way_out=problem.hint or "")], None
    try:
        with open_engine("local") as engine:
            timed = preflight(engine, plan, request.formation, sizes, output.say)
    except RunError as problem:
        return [*rows, check_of(problem)], None
    return [*rows, check_of(timed)], timed


def _document(rows: Sequence[Check], timed: Sequence[Timed] | None) -> Diagnosis:
    from zhenfa.cli.doctor_documents import Capable, Diagnosis, TimedExchange

    return Diagnosis(
        sound=not _failed(rows), checks=tuple(rows),
        makers=tuple(
            Capable(
                id=one.id, name=one.name, torch_device=one.torch_device, collective=one.collective,
                able=tuple(each.name for each in one.capabilities() if each.able), missing=dict(one.missing),
                mark=one.mark,
            )
            for one in makers().values()
        ),
        preflight=None if timed is None else tuple(
            TimedExchange(
                kind=one.exchange.kind, what=one.exchange.what, ranks=one.exchange.ranks, bytes=one.exchange.size,
                measured_s=one.seconds, expected_s=one.expected, slow=one.slow,
            )
            for one in timed
        ),
    )  # fmt: skip


def _print(rows: Sequence[Check], timed: Sequence[Timed] | None, output: Output) -> None:
    out = output.data
    label = max(len(row.what) for row in rows)
    for row in rows:
        out.text(row.found, first=f"{row.verdict:4}  {row.what:{label}}  ", style=STYLE[row.verdict])
        if row.way_out:
            out.text(row.way_out, first=f"{'':4}  {'':{label}}  way out: ", style="hint")
    if timed:
        out.head("Messages and sums of the plan", "(through host memory, as a run sends them)")
        columns = (
            Column("what", style="strong", wrap=16), Column("cards", wrap=14), Column("size", right=True),
            Column("measured", right=True), Column("links say", right=True), Column("times", right=True, drop=1),
            Column("verdict"),
        )  # fmt: skip
        output.left_out(out.table(table(columns, [_row(one) for one in timed]), indent=2))


def _row(one: Timed) -> tuple[str, ...]:
    times = "" if one.expected is None else f"{one.seconds / (one.expected or math.inf):.2f}"
    verdict = "slow" if one.slow else "ok" if one.expected is not None else "unknown"
    return (
        one.exchange.what, one.cards, units.show(one.exchange.size, "data"), units.show(one.seconds, "time"),
        "" if one.expected is None else units.show(one.expected, "time"), times, verdict,
    )  # fmt: skip
