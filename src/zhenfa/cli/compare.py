"""``zhenfa compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zhenfa.cli.console import Output
from zhenfa.errors import InfeasibleError

if TYPE_CHECKING:
    from zhenfa.cli.contest_documents import Cards, ComparisonDocument, Contestant
    from zhenfa.plan.compare import Comparison, Entry
    from zhenfa.plan.merit import By
    from zhenfa.spec.machine import Formation


@dataclass(frozen=True)
class Wanted:
    """What was asked of ``zhenfa compare``."""

    job: str
    on: Sequence[str] = ()
    assume: Sequence[str] = ()
    by: By = "throughput"
    cards: int | None = None
    jobs: int | None = None
    detail: bool = False
    picture: str | None = None

    @property
    def machines(self) -> list[str]:
        """Return the machines, commas taken apart."""
        return [name.strip() for text in self.on for name in text.split(",") if name.strip()]


def compare_machines(wanted: Wanted, output: Output) -> None:
    """Plan a job on several machines and print them side by side.

    Raises :class:`InfeasibleError`, the answer printed, if none of them has a plan.
    """
    from zhenfa.plan.compare import compare, read_contest

    job, contenders = read_contest(wanted.job, wanted.machines, assume=wanted.assume, cards=wanted.cards)
    with output.progress(f"planning on {len(contenders)} machines") as progress:
        found = compare(
            job, contenders, by=wanted.by, processes=wanted.jobs, cards=wanted.cards, progress=progress
        )  # fmt: skip
    if output.as_json:
        output.document(to_document(found))
    else:
        from zhenfa.cli.compare_report import print_comparison

        print_comparison(found, wanted, output)
    if not found.planned:
        raise InfeasibleError(
            f"none of the {len(found.entries)} machines has a plan for {job.name}.",
            hint="each machine's reason, and the way out, stands in the answer.",
        )
    if wanted.picture:
        from zhenfa.cli.compare_picture import draw

        output.say(f"picture written to {draw(found, Path(wanted.picture))}")


def to_document(found: Comparison) -> ComparisonDocument:
    """Return the answer as the published JSON document ``zhenfa.comparison/1``."""
    from zhenfa.cli.contest_documents import ComparisonDocument

    return ComparisonDocument(
        job=found.job.name, task=found.job.workload.task, by=found.by, cards=found.cards,
        equal_cards=found.equal_cards, equal_power_w=found.equal_power_w,
        machines=tuple(_contestant(found, entry) for entry in found.entries), seconds=found.seconds,
    )  # fmt: skip


def _contestant(found: Comparison, entry: Entry) -> Contestant:
    from zhenfa.cli.contest_documents import Contestant, NoPlan
    from zhenfa.spec.result import Figures, Operating

    estimate, problem = entry.estimate, entry.problem
    return Contestant(
        machine=entry.name, title=entry.title,
        rank=found.ranked.index(entry) + 1 if entry in found.ranked else None,
        level_with=tuple(one.name for one in found.level_with(entry)),
        emulated=bool(entry.formation and entry.formation.emulated), cards=cards_of(entry.formation),
        cards_used=estimate.plan.cards if estimate else None, layout=entry.layout,
        plan=estimate.plan.to_data() if estimate else None, figures=estimate.figures if estimate else Figures(),
        per_kw=entry.per_kilowatt, per_cny=entry.per_money, equal_cards=found.at_equal_cards(entry),
        equal_power=found.at_equal_power(entry), walls=estimate.walls if estimate else None,
        parts_s=estimate.parts_s if estimate else {}, operating=estimate.operating if estimate else Operating(),
        assumptions=estimate.assumptions if estimate else (), sources=estimate.sources if estimate else (),
        no_plan=NoPlan(kind=problem.kind, message=problem.message, hint=problem.hint) if problem else None,
        considered=entry.considered, seconds=entry.seconds,
    )  # fmt: skip


def cards_of(formation: Formation | None) -> tuple[Cards, ...]:
    """Return the cards of a machine, pool by pool."""
    from zhenfa.cli.contest_documents import Cards

    return tuple(
        Cards(pool=pool.name, accelerator=pool.accelerator.id, maker=pool.maker, count=pool.count)
        for pool in (formation.pools if formation else ())
    )
