"""The answers of ``zhenfa compare`` and ``zhenfa swap`` as the published JSON documents ``zhenfa.comparison/1`` and
``zhenfa.swap/1``."""

from __future__ import annotations

from typing import ClassVar, Literal

from zhenfa.errors import InternalError
from zhenfa.plan.compare import Comparison, Entry, Kind
from zhenfa.plan.counting import rate_of
from zhenfa.plan.documents import FrontPart
from zhenfa.plan.merit import By, hourly_price
from zhenfa.plan.swap import Swap
from zhenfa.spec.machine import Formation
from zhenfa.spec.printed import Item, PlanData, Printed, ServingPlanData
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
    plan: PlanData | ServingPlanData | None
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
    front: tuple[FrontPart, ...]
    quality: tuple[str, ...]
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


class Side(Item):
    """One side of a swap: the cards that are there, or those that replace them, and their best plan."""

    machine: str
    title: str
    cards: tuple[Cards, ...]
    cards_used: int
    layout: str
    plan: PlanData | ServingPlanData
    figures: Figures
    per_kw: Figure
    per_hour: Figure
    walls: Walls
    parts_s: dict[str, float]
    operating: Operating
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]


class Count(Item):
    """A number of cards that was planned, and the tokens/s of its best plan, or why there is none."""

    cards: int
    tokens_per_s: float | None
    no_plan: str | None


class Spent(Item):
    """Card-seconds that a million useful tokens take, of the old and the new cards."""

    old: float
    new: float


class SwapDocument(Printed):
    """``zhenfa swap``: how many new cards replace the old ones at the same throughput. All figures are estimates.

    ``cards`` new ones, between ``cards_lower`` and ``cards_upper`` at the ends of the band (empty where that end is not
    reached, or no band is known); ``ratio`` of them to those that work in the old plan. ``systems`` whole ones, of
    ``system_cards`` cards together, reach it as well (a machine may be taken in part otherwise, ``step`` cards at a
    time). ``spent`` by wall and by part; ``decided_by`` the wall and the part of it that make the most of the
    difference. ``counts`` are all numbers of cards that were planned; ``falls`` two of them of which the larger is
    slower.
    """

    schema_name: ClassVar[str] = "zhenfa.swap/1"

    job: str
    task: Literal["train", "serve"]
    old: Side
    new: Side
    shape: str
    step: int
    cards: int
    cards_lower: int | None
    cards_upper: int | None
    ratio: float
    ratio_lower: float | None
    ratio_upper: float | None
    systems: int
    system_cards: int
    whole_system: int
    spent_by_wall: dict[str, Spent]
    spent_by_part: dict[str, Spent]
    decided_by: tuple[str, str]
    counts: tuple[Count, ...]
    falls: tuple[int, int] | None
    seconds: float


def to_document(found: Comparison) -> ComparisonDocument:
    """Return the contest as a document."""
    return ComparisonDocument(
        job=found.job.name, task=found.job.workload.task, by=found.by, cards=found.cards,
        equal_cards=found.equal_cards, equal_power_w=found.equal_power_w,
        machines=tuple(_contestant(found, entry) for entry in found.entries), seconds=found.seconds,
    )  # fmt: skip


def _contestant(found: Comparison, entry: Entry) -> Contestant:
    best, problem = entry.best, entry.problem
    return Contestant(
        machine=entry.name, title=entry.title, rank=found.rank(entry),
        level_with=tuple(one.name for one in found.level_with(entry)),
        emulated=bool(entry.formation and entry.formation.emulated), cards=cards_of(entry.formation),
        cards_used=best.plan.cards if best else None, layout=best.layout if best else "",
        plan=best.plan.to_data() if best else None, figures=best.figures if best else Figures(),
        per_kw=entry.per_kilowatt, per_cny=entry.per_money, equal_cards=found.at_equal_cards(entry),
        equal_power=found.at_equal_power(entry), walls=best.walls if best else None,
        parts_s=best.parts_s if best else {}, operating=best.operating if best else Operating(),
        assumptions=best.assumptions if best else (), sources=best.sources if best else (),
        no_plan=NoPlan(kind=problem.kind, message=problem.message, hint=problem.hint) if problem else None,
        front=tuple(FrontPart(**vars(one)) for one in best.front) if best else (), quality=best.quality if best else (),
        considered=entry.considered, seconds=entry.seconds,
    )  # fmt: skip


def cards_of(formation: Formation | None) -> tuple[Cards, ...]:
    """Return the cards of a machine, pool by pool."""
    return tuple(
        Cards(pool=pool.name, accelerator=pool.accelerator.id, maker=pool.maker, count=pool.count)
        for pool in (formation.pools if formation else ())
    )


def swap_document(found: Swap) -> SwapDocument:
    """Return a swap as a document."""
    systems, cards = found.systems
    return SwapDocument(
        job=found.job.name, task=found.job.workload.task, old=_side(found.old), new=_side(found.new),
        shape=found.shape.name, step=found.shape.step, cards=found.cards, cards_lower=found.lower,
        cards_upper=found.upper, ratio=found.ratio, ratio_lower=found.ratio_lower, ratio_upper=found.ratio_upper,
        systems=systems, system_cards=cards, whole_system=found.shape.whole,
        spent_by_wall={name: Spent(old=old, new=new) for name, (old, new) in found.walls.items()},
        spent_by_part={name: Spent(old=old, new=new) for name, (old, new) in found.spent.items()},
        decided_by=found.decided_by, counts=tuple(_count(found, steps) for steps in sorted(found.counts.points)),
        falls=found.counts.falls[:2] if found.counts.falls else None, seconds=found.seconds,
    )  # fmt: skip


def _count(found: Swap, steps: int) -> Count:
    entry = found.counts.points[steps]
    return Count(
        cards=steps * found.counts.step, tokens_per_s=rate_of(entry) or None,
        no_plan=entry.problem.message if entry.problem else None,
    )  # fmt: skip


def _side(entry: Entry) -> Side:
    best, formation = entry.best, entry.formation
    if best is None or formation is None:
        raise InternalError("a side of a swap has no plan.")
    return Side(
        machine=entry.name, title=entry.title, cards=cards_of(formation), cards_used=best.plan.cards,
        layout=best.layout, plan=best.plan.to_data(), figures=best.figures, per_kw=entry.per_kilowatt,
        per_hour=hourly_price(best, formation), walls=best.walls, parts_s=best.parts_s,
        operating=best.operating, assumptions=best.assumptions, sources=best.sources,
    )  # fmt: skip
