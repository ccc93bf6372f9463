"""The JSON documents of ``zhenfa compare`` and ``zhenfa swap``."""

from __future__ import annotations

from typing import ClassVar, Literal

from zhenfa.cli.documents import Item, PlanData, Printed
from zhenfa.plan.compare import Kind
from zhenfa.plan.merit import By
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
