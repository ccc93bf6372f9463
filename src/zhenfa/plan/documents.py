"""The answer of the planner as the published JSON document ``zhenfa.plans/1``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from zhenfa.plan.bridge import BridgeUse, bridge_of
from zhenfa.plan.why_documents import SensitivityPart, WhyPart, sensitivity_part, why_part
from zhenfa.spec.fact import Tag
from zhenfa.spec.job import Objective
from zhenfa.spec.machine import Precision
from zhenfa.spec.printed import Item, PlanData, Printed, ServingPlanData
from zhenfa.spec.result import Figure, Figures, Operating, StageFigures, Walls

if TYPE_CHECKING:
    from zhenfa.estimate.detail import Detail
    from zhenfa.plan.answer import Answer
    from zhenfa.plan.explain import Why
    from zhenfa.plan.sensitivity import Sensitivity


class OperatorPart(Item):
    """One operator of the busiest stage: seconds of one run forward, backward and again (recomputation); ``runs`` a
    step take ``step_s``. ``light_share``: the ideal seconds of forward and backward (at peak, or at the memory's
    bandwidth where that is longer: ``bound``) over those predicted. ``tag`` and ``rests_on``: of the weakest
    coefficient that carries it."""

    name: str
    kind: str
    runs: float
    forward_s: float
    backward_s: float
    again_s: float
    step_s: float
    share: float
    light_share: float | None
    bound: str
    tag: Tag
    rests_on: str


class LinkPart(Item):
    """Communication of one kind: exposed seconds of a step, cards that take part, the outermost link it crosses."""

    kind: str
    exposed_s: float
    share: float
    cards: int
    link: str
    bandwidth_bytes_per_s: float | None
    tag: Tag


class PlanDetail(Item):
    """``--detail``: the busiest place of the plan, operator by operator and link by link, and the bytes of a card of
    each stage by part. The operators and the seconds between them are the parts arithmetic at peak, below peak and
    recomputation of ``parts_s``; the links those of communication."""

    pool: str
    place: int
    layers: int
    micro_batches: int
    operators: tuple[OperatorPart, ...]
    between_operators_s: float
    links: tuple[LinkPart, ...]
    memory_bytes: tuple[dict[str, float], ...]


class ServedOperator(Item):
    """One operator of a step that serves: ``runs`` of ``kernel_s`` (the engine's pace included) and ``links_s`` of
    communication take ``step_s``. ``light_share``: ideal seconds (at peak, or at the memory's bandwidth where that is
    longer: ``bound``) over ``kernel_s``. ``tag`` and ``rests_on``: of the weakest coefficient that carries it."""

    name: str
    kind: str
    runs: float
    kernel_s: float
    links_s: float
    step_s: float
    share: float
    light_share: float | None
    bound: str
    tag: Tag
    rests_on: str


class ServedStep(Item):
    """One step: of running requests alone (``decode``), or of a prompt alone (``prefill``). Its operators, ``rest_s``
    (sampling, between stages) and ``engine_s`` (what the engine adds or hides) sum to ``seconds``."""

    role: Literal["decode", "prefill"]
    part: int
    pool: str
    carries: str
    seconds: float
    operators: tuple[ServedOperator, ...]
    rest_s: float
    engine_s: float


class ServingDetail(Item):
    """``--detail`` of a job that serves, for each part of the plan: its steps, the parts of TTFT, the bytes of a card
    by group of instances."""

    steps: tuple[ServedStep, ...]
    first_token_s: tuple[dict[str, float], ...]
    memory_bytes: tuple[dict[str, dict[str, float]], ...]


class CrossingPart(Item):
    """What crosses from pool to pool at one place: ``activations`` from stage to stage with every micro-batch (and
    gradients of as many bytes back), or ``gradients`` of weights once a step. ``message_bytes`` of one micro-batch of
    one replica and direction, or what one card sends a step, in ``message_s``; ``step_bytes`` of all replicas.
    ``choice``: which way it takes where the machine has one through the hosts and one past them."""

    what: Literal["activations", "gradients"]
    pools: tuple[str, ...]
    stages: tuple[int, ...]
    replicas: int
    message_bytes: float
    message_s: float
    step_bytes: float
    host_staged: bool
    choice: str


class BridgePart(Item):
    """The link between the pools of a plan, what crosses it, and the seconds of a step that wait for it.
    ``activations`` and ``gradients``: the number formats in which these cross."""

    link: str
    bandwidth_bytes_per_s: float
    latency_s: float
    host_staged: bool
    crossings: tuple[CrossingPart, ...]
    exposed_s: float
    share: float
    activations: Precision
    gradients: str


class RankedPlan(Item):
    """One plan of the answer. ``plan`` can be saved as a file; ``lost_by`` is empty for the first. ``bridge`` is there
    where it stands on several pools. ``score`` is what it is worth in the objective, ``limits_taken`` how much of each
    limit it takes up (1 is all of it). ``detail`` is there for the first where it is asked for."""

    rank: int
    layout: str
    lost_by: str
    plan: PlanData | ServingPlanData
    estimate: Figures
    parts_s: dict[str, float]
    stages: tuple[StageFigures, ...]
    walls: Walls
    operating: Operating
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]
    detail: PlanDetail | None = None
    bridge: BridgePart | None = None
    quality: tuple[str, ...] = ()
    score: Figure = Figure()
    limits_taken: dict[str, float] = {}
    serving_detail: ServingDetail | None = None


class FrontPart(Item):
    """One point of the front of a job that serves: nothing in the space puts out more of both. ``running``: requests
    that decode at once in one instance of the ``layout``; ``apart``: prefill has instances of its own."""

    tokens_per_s_per_user: float
    tokens_per_s_per_card: float
    running: float
    layout: str
    apart: bool


class Plans(Printed):
    """``zhenfa plan``: the best plans found, best first. All figures are estimates.

    ``task`` says whether the job trains or serves. ``gap``: by how much at most the first plan may be beaten by one of
    the space that the search stopped before (0: by none). Of a job that serves, ``front`` is what can be had of tokens
    per second and card against tokens per second of one user; ``parts_s`` of a plan are those of a decode step. Of one
    that trains, plans are ordered by the ``objective``, and ``bound_by`` names limits that kept out layouts which might
    have been better than the first. ``not_planned``: what is left out over several pools, by reason, with the
    combinations of pools that it is left out of.
    """

    schema_name: ClassVar[str] = "zhenfa.plans/1"

    job: str
    machine: str
    objective: Objective = "step"
    bound_by: tuple[str, ...] = ()
    emulated: bool
    cards: int
    plans: tuple[RankedPlan, ...]
    considered: int
    costed: int
    rejected: dict[str, int]
    seconds: float
    not_planned: dict[str, int] = {}
    why: WhyPart | None = None
    task: Literal["train", "serve"] = "train"
    front: tuple[FrontPart, ...] = ()
    gap: float = 0.0
    sensitivity: SensitivityPart | None = None


def detail_part(found: Detail) -> PlanDetail:
    """Return the detail of a plan as a part of a document."""
    return PlanDetail(
        pool=found.pool, place=found.place, layers=found.layers, micro_batches=found.micro_batches,
        operators=tuple(
            OperatorPart(
                name=one.name, kind=one.kind, runs=one.count, forward_s=one.forward, backward_s=one.backward,
                again_s=one.again, step_s=one.step, share=found.share(one.step), light_share=one.share,
                bound=one.bound, tag=one.origin.tag, rests_on=one.origin.words,
            )
            for one in found.operators
        ),
        between_operators_s=found.between,
        links=tuple(
            LinkPart(
                kind=one.kind, exposed_s=one.exposed, share=found.share(one.exposed), cards=one.cards, link=one.link,
                bandwidth_bytes_per_s=one.bandwidth, tag=one.tag,
            )
            for one in found.links
        ),
        memory_bytes=found.memory,
    )  # fmt: skip


def bridge_part(found: BridgeUse | None) -> BridgePart | None:
    """Return the bridge of a plan as a part of a document."""
    if found is None:
        return None
    return BridgePart(
        link=found.name, bandwidth_bytes_per_s=found.bandwidth, latency_s=found.latency,
        host_staged=found.host_staged, exposed_s=found.exposed, share=found.exposed / found.step,
        crossings=tuple(CrossingPart(**vars(one)) for one in found.crossings), activations=found.activations,
        gradients=found.sums,
    )  # fmt: skip


def to_document(
    answer: Answer,
    top: int | None = None,
    *,
    detailed: bool = False,
    why: Why | None = None,
    sensitivity: Sensitivity | None = None,
) -> Plans:
    """Return the first ``top`` plans of an answer (default: all) as a document."""
    from zhenfa.estimate.detail import detail

    plans = [
        RankedPlan(
            rank=one.rank, layout=one.layout, lost_by=one.lost_by, plan=one.plan.to_data(),
            estimate=one.estimate.figures, parts_s=one.estimate.parts_s, stages=one.estimate.stages,
            walls=one.estimate.walls, operating=one.estimate.operating,
            assumptions=one.estimate.assumptions, sources=one.estimate.sources,
            detail=detail_part(detail(one.plan, answer.setting, one.cost)) if detailed and one.rank == 1 else None,
            score=one.score, limits_taken=dict(one.taken),
            bridge=bridge_part(bridge_of(one.plan, answer.setting, one.cost)),
        )
        for one in answer.plans[:top]
    ]  # fmt: skip
    formation = answer.request.formation
    return Plans(
        job=answer.request.job.name, machine=formation.name, objective=answer.objective, bound_by=answer.bound_by,
        emulated=formation.emulated, cards=formation.cards,
        plans=tuple(plans), considered=answer.considered, costed=answer.costed, rejected=answer.rejected,
        seconds=answer.seconds, not_planned=dict(answer.refused), why=None if why is None else why_part(why),
        gap=answer.gap,
        sensitivity=None if sensitivity is None else sensitivity_part(sensitivity),
    )  # fmt: skip
