"""From cards to the devices that a framework sees: a package of several dies is several devices."""

from __future__ import annotations

from zhenfa.errors import CapabilityError
from zhenfa.plan.emit.shape import experts_of, heads_of
from zhenfa.plan.emit.subject import Subject
from zhenfa.spec.machine import CardPool
from zhenfa.spec.plan import Pipeline, Stage


def devices_per_card(pool: CardPool) -> int:
    """Return how many devices a framework sees in one card."""
    return pool.accelerator.devices


def per_device(subject: Subject) -> tuple[Subject, tuple[str, ...]]:
    """Return the plan in devices: the devices of a card split what the card holds.

    Where a card is ``n`` devices, tensor parallelism is ``n`` times as deep, and the experts of a card are shared out
    over its devices, or split where they cannot be shared.
    """
    plan = subject.training
    several = [pool for pool in subject.pools() if devices_per_card(pool) > 1]
    if not several:
        return subject, ()
    experts = max((block.count for block in experts_of(subject.model)), default=1)
    pipelines = tuple(_pipeline(subject, pipeline, experts) for pipeline in plan.pipelines)
    notes = tuple(
        f"a framework sees {pool.accelerator.devices} devices in one {pool.accelerator.id}: degrees are written in "
        "devices, tensor parallelism over those of a card included"
        for pool in several
    )
    return subject.with_plan(plan.model_copy(update={"pipelines": pipelines})), notes


def _pipeline(subject: Subject, pipeline: Pipeline, experts: int) -> Pipeline:
    return pipeline.model_copy(update={"stages": tuple(_stage(subject, one, experts) for one in pipeline.stages)})


def _stage(subject: Subject, stage: Stage, experts: int) -> Stage:
    times = devices_per_card(subject.formation.pool(stage.pool))
    tensor = stage.tensor_parallel * times
    heads = heads_of(subject.model)
    if times > 1 and any(count % tensor for count in heads):
        raise CapabilityError(
            f"{stage.pool} shows {times} devices a card, and {tensor} of them cannot share {min(heads)} heads evenly.",
            hint="limits: {max_tensor_parallel: ...} in the job gives a plan with fewer.",
        )
    whole = experts % (stage.expert_parallel * times) == 0
    more = {"expert_parallel": stage.expert_parallel * times} if whole else {
        "expert_tensor_parallel": stage.expert_tensor_parallel * times
    }  # fmt: skip
    return stage.model_copy(update={"tensor_parallel": tensor, **(more if experts > 1 else {})})
