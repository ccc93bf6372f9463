"""The answer for a job that serves as the published JSON document ``zhenfa.plans/1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zhenfa.plan.documents import FrontPart, Plans, RankedPlan
from zhenfa.spec.result import Operating

if TYPE_CHECKING:
    from zhenfa.plan.serving.answer import ServingAnswer, ServingRanked


def to_document(answer: ServingAnswer, top: int | None = None) -> Plans:
    """Return the first ``top`` plans of an answer (default: all) as a document."""
    formation = answer.request.formation
    return Plans(
        job=answer.request.job.name, machine=formation.name, emulated=formation.emulated, cards=formation.cards,
        plans=tuple(_plan(one, answer.sources) for one in answer.plans[:top]), considered=answer.considered,
        costed=answer.costed, rejected=answer.rejected, seconds=answer.seconds, task="serve",
        front=tuple(FrontPart(**vars(one)) for one in answer.front), gap=answer.gap,
    )  # fmt: skip


def _plan(one: ServingRanked, sources: tuple[str, ...]) -> RankedPlan:
    return RankedPlan(
        rank=one.rank, layout=one.layout, lost_by=one.lost_by, plan=one.plan.to_data(), estimate=one.estimate.figures,
        parts_s=one.estimate.parts[0].decode_s, stages=(), walls=one.estimate.walls, operating=Operating(),
        assumptions=one.estimate.assumptions, sources=sources, quality=one.quality,
    )  # fmt: skip
