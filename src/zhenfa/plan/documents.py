"""The answer of the planner as the published JSON document ``zhenfa.plans/1``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from zhenfa.spec.printed import Item, PlanData, Printed
from zhenfa.spec.result import Figures, Operating, StageFigures, Walls

if TYPE_CHECKING:
    from zhenfa.plan.answer import Answer


class RankedPlan(Item):
    """One plan of the answer. ``plan`` can be saved as a file; ``lost_by`` is empty for the first."""

    rank: int
    layout: str
    lost_by: str
    plan: PlanData
    estimate: Figures
    parts_s: dict[str, float]
    stages: tuple[StageFigures, ...]
    walls: Walls
    operating: Operating
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]


class Plans(Printed):
    """``zhenfa plan``: the quickest plans found, best first. All figures are estimates."""

    schema_name: ClassVar[str] = "zhenfa.plans/1"

    job: str
    machine: str
    emulated: bool
    cards: int
    plans: tuple[RankedPlan, ...]
    considered: int
    costed: int
    rejected: dict[str, int]
    seconds: float


def to_document(answer: Answer, top: int | None = None) -> Plans:
    """Return the first ``top`` plans of an answer (default: all) as a document."""
    plans = [
        RankedPlan(
            rank=one.rank, layout=one.layout, lost_by=one.lost_by, plan=one.plan.to_data(),
            estimate=one.estimate.figures, parts_s=one.estimate.parts_s, stages=one.estimate.stages,
            walls=one.estimate.walls, operating=one.estimate.operating,
            assumptions=one.estimate.assumptions, sources=one.estimate.sources,
        )
        for one in answer.plans[:top]
    ]  # fmt: skip
    formation = answer.request.formation
    return Plans(
        job=answer.request.job.name, machine=formation.name, emulated=formation.emulated, cards=formation.cards,
        plans=tuple(plans), considered=answer.considered, costed=answer.costed, rejected=answer.rejected,
        seconds=answer.seconds,
    )  # fmt: skip
