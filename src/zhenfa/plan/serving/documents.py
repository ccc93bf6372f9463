"""The answer for a job that serves as the published JSON document ``zhenfa.plans/1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zhenfa.plan.documents import FrontPart, Plans, RankedPlan, ServedOperator, ServedStep, ServingDetail
from zhenfa.plan.why_documents import sensitivity_part, why_part

if TYPE_CHECKING:
    from zhenfa.plan.sensitivity import Sensitivity
    from zhenfa.plan.serving.answer import ServingAnswer, ServingRanked
    from zhenfa.plan.serving.explain import ServingWhy


def to_document(
    answer: ServingAnswer,
    top: int | None = None,
    *,
    detailed: bool = False,
    why: ServingWhy | None = None,
    sensitivity: Sensitivity | None = None,
) -> Plans:
    """Return the first ``top`` plans of an answer (default: all) as a document."""
    formation = answer.request.formation
    return Plans(
        job=answer.request.job.name, machine=formation.name, emulated=formation.emulated, cards=formation.cards,
        plans=tuple(_plan(one, answer, detailed and one.rank == 1) for one in answer.plans[:top]),
        considered=answer.considered, costed=answer.costed, rejected=answer.rejected, seconds=answer.seconds,
        task="serve",
        front=tuple(FrontPart(**vars(one)) for one in answer.front), gap=answer.gap,
        objective=answer.request.job.objective, why=None if why is None else why_part(why),
        sensitivity=None if sensitivity is None else sensitivity_part(sensitivity),
    )  # fmt: skip


def _detail(one: ServingRanked, answer: ServingAnswer) -> ServingDetail:
    steps = answer.detail(one.rank)
    return ServingDetail(
        steps=tuple(
            ServedStep(
                role="decode" if found.role == "decode" else "prefill", part=number // 2 + 1, pool=found.pool,
                carries=found.carries, seconds=found.seconds, rest_s=found.rest, engine_s=found.engine,
                operators=tuple(
                    ServedOperator(
                        name=each.name, kind=each.kind, runs=each.runs, kernel_s=each.seconds, links_s=each.links,
                        step_s=each.step, share=found.share(each.step), light_share=each.share, bound=each.bound,
                        tag=each.origin.tag, rests_on=each.origin.words,
                    )
                    for each in found.operators
                ),
            )
            for number, found in enumerate(steps)
        ),
        first_token_s=tuple(part.first_s for part in one.estimate.parts),
        memory_bytes=tuple(part.memory for part in one.estimate.parts),
    )  # fmt: skip


def _plan(one: ServingRanked, answer: ServingAnswer, detailed: bool) -> RankedPlan:
    return RankedPlan(
        rank=one.rank, layout=one.layout, lost_by=one.lost_by, plan=one.plan.to_data(), estimate=one.estimate.figures,
        parts_s=one.estimate.parts[0].decode_s, stages=(), walls=one.estimate.walls, operating=one.estimate.operating,
        assumptions=one.estimate.assumptions, sources=answer.sources, quality=one.quality,
        serving_detail=_detail(one, answer) if detailed else None,
    )  # fmt: skip
