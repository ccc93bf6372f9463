"""The answer of ``zhenfa compare`` as the published JSON document ``zhenfa.comparison/1``."""

from __future__ import annotations

from typing import ClassVar, Literal

from zhenfa.plan.compare import Comparison, Entry, Kind
from zhenfa.plan.merit import By
from zhenfa.spec.machine import Formation
from zhenfa.spec.printed import Item, PlanData, Printed
from zhenfa.spec.result import Figure, Figures, Operating, Walls


class NoPlan(Item):
    """Why there is no plan on a machine, and the way out."""

    kind: Kind
    message: str
    hint: str | None


class Cards(Item):
    """Cards of one kind."""

    pool: str
    accelerator: str
    maker: str
    count: int


class Contestant(Item):
    """One machine of a contest. ``rank`` is empty where the figure that is ranked by is unknown; ``level_with`` names
    the machines whose bands overlap with its own. ``equal_cards`` and ``equal_power`` are its tokens/s at the cards and
    the power that :class:`ComparisonDocument` names. Figures are empty where ``no_plan`` says why."""

    machine: str
    title: str
    rank: int | None
    level_with: tuple[str, ...]
    emulated: bool
    cards: tuple[Cards, ...]
    cards_used: int | None
    layout: str
    plan: PlanData | None
    figures: Figures
    per_kw: Figure
    per_cny: Figure
    equal_cards: Figure
    equal_power: Figure
    walls: Walls | None
    parts_s: dict[str, float]
    operating: Operating
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]
    no_plan: NoPlan | None
    considered: int
    seconds: float


class ComparisonDocument(Printed):
    """``zhenfa compare``: the best plan of each machine, best first. All figures are estimates.

    ``cards`` of each machine where that was asked for. ``equal_cards`` and ``equal_power_w`` are those of the smallest
    plan.
    """

    schema_name: ClassVar[str] = "zhenfa.comparison/1"

    job: str
    task: Literal["train", "serve"]
    by: By
    cards: int | None
    equal_cards: int | None
    equal_power_w: float | None
    machines: tuple[Contestant, ...]
    seconds: float


def to_document(found: Comparison) -> ComparisonDocument:
    """Return the contest as a document."""
    return ComparisonDocument(
        job=found.job.name, task=found.job.workload.task, by=found.by, cards=found.cards,
        equal_cards=found.equal_cards, equal_power_w=found.equal_power_w,
        machines=tuple(_contestant(found, entry) for entry in found.entries), seconds=found.seconds,
    )  # fmt: skip


def _contestant(found: Comparison, entry: Entry) -> Contestant:
    estimate, problem = entry.estimate, entry.problem
    return Contestant(
        machine=entry.name, title=entry.title, rank=found.rank(entry),
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
    return tuple(
        Cards(pool=pool.name, accelerator=pool.accelerator.id, maker=pool.maker, count=pool.count)
        for pool in (formation.pools if formation else ())
    )
