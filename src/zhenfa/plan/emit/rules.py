"""What training frameworks of one process grid cannot express, and the plans nearest to one that they cannot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from zhenfa.errors import quote
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import Rule
from zhenfa.spec.machine import BETWEEN, Precision
from zhenfa.spec.plan import USUAL_MODULES, Offload, Pipeline, Plan, Recompute, RecomputeModule, Schedule, Stage


def modules_of(stage: Stage) -> tuple[RecomputeModule, ...]:
    """Return what selective recomputation of a stage computes again."""
    return stage.recompute_modules or USUAL_MODULES


# One maker.


def one_maker(framework: str) -> Rule:
    """Return the rule that all cards are of one maker: a process grid has one collective library."""

    def reason(plan: Plan, subject: Subject) -> str:
        makers = subject.makers()
        if len(makers) < 2:
            return ""
        where = "in one pipeline" if any(_makers(one, subject) > 1 for one in plan.pipelines) else "in data parallel"
        return f"{' and '.join(makers)} meet {where}, and {framework} has one process grid with one collective library"

    return Rule(reason)


def makers_only(makers: Collection[str], framework: str) -> Rule:
    """Return the rule that the cards are of these makers."""

    def reason(plan: Plan, subject: Subject) -> str:
        others = [maker for maker in subject.makers() if maker not in makers]
        return f"{framework} runs on cards of {' and '.join(makers)}, not of {' and '.join(others)}" if others else ""

    return Rule(reason, maker=lambda maker: maker in makers)


def _makers(pipeline: Pipeline, subject: Subject) -> int:
    return len({subject.formation.pool(stage.pool).maker for stage in pipeline.stages})


# One shape for all replicas and stages.


def equal_replicas(framework: str) -> Rule:
    """Return the rule that all replicas are alike and run as many micro-batches."""

    def reason(plan: Plan, subject: Subject) -> str:
        if len({one.stages for one in plan.pipelines}) > 1:
            return f"replicas are cut in {len({one.stages for one in plan.pipelines})} ways, and {framework} has one"
        loads = {(one.micro_batches, one.micro_batch_size) for one in plan.pipelines}
        if len(loads) < 2:
            return ""
        said = " and ".join(
            f"{one.count:,} replicas run {one.micro_batches} micro-batches of {one.micro_batch_size}"
            for one in plan.pipelines
        )
        return f"{said}, and {framework} gives every replica the same"

    def change(plan: Plan, subject: Subject) -> list[Plan]:
        if len({one.stages for one in plan.pipelines}) > 1:
            return []
        return list(_equalised(plan))

    return Rule(reason, change)


def _equalised(plan: Plan) -> Sequence[Plan]:
    """Return plans of equal replicas with the same global batch: the most replicas for each size of micro-batch."""
    first, total = plan.pipelines[0], plan.global_batch
    stage_cards = first.stages[0].cards
    experts = first.stages[0].expert_parallel * first.stages[0].expert_tensor_parallel
    found = []
    for size in sorted({size for size in range(1, first.micro_batch_size + 1) if total % size == 0}, reverse=True):
        fits = (
            count
            for count in range(plan.replicas, 0, -1)
            if (total // size) % count == 0 and (count * stage_cards) % experts == 0
        )
        count = next(fits, None)
        if count:
            entry = {"count": count, "micro_batches": total // size // count, "micro_batch_size": size}
            found.append(plan.model_copy(update={"pipelines": (first.model_copy(update=entry),)}))
    return found


def one_cut(framework: str) -> Rule:
    """Return the rule that tensor, context and expert parallelism are the same in all stages, and that no stage shares
    micro-batches out."""

    def reason(plan: Plan, subject: Subject) -> str:
        if any(stage.data_parallel > 1 for pipe in plan.pipelines for stage in pipe.stages):
            return f"stages have micro-batch sizes of their own, and {framework} has one for all stages"
        for name in ("tensor_parallel", "context_parallel", "expert_parallel", "expert_tensor_parallel"):
            degrees = sorted({getattr(stage, name) for pipe in plan.pipelines for stage in pipe.stages})
            if len(degrees) > 1:
                words = name.replace("_", " ").replace(" parallel", " parallelism")
                return f"{words} is {' and '.join(map(str, degrees))}, and {framework} has one degree for all stages"
        return ""

    return Rule(reason)


# Recomputation.


def same_recompute(framework: str) -> Rule:
    """Return the rule that all stages recompute alike."""

    def reason(plan: Plan, subject: Subject) -> str:
        kinds = {_recompute(stage) for pipe in plan.pipelines for stage in pipe.stages}
        return f"stages recompute in {len(kinds)} ways, and {framework} has one for all" if len(kinds) > 1 else ""

    def change(plan: Plan, subject: Subject) -> list[Plan]:
        order: list[Recompute] = ["none", "selective", "full"]
        stages = [stage for pipe in plan.pipelines for stage in pipe.stages]
        most = max(stages, key=lambda stage: (order.index(stage.recompute), stage.recomputed_layers))
        return [each_stage(plan, lambda stage: {
            "recompute": most.recompute, "recompute_layers": None, "recompute_modules": most.recompute_modules
        })]  # fmt: skip

    return Rule(reason, change)


def _recompute(stage: Stage) -> tuple[object, ...]:
    part = stage.recompute_layers if stage.recompute == "full" else None
    return (stage.recompute, part, modules_of(stage) if stage.recompute == "selective" else ())


def modules(
    framework: str,
    allowed: Collection[RecomputeModule],
    instead: Mapping[RecomputeModule, tuple[RecomputeModule, ...]],
    *,
    part: bool = False,
) -> Rule:
    """Return the rule that selective recomputation names only what the framework can recompute alone.

    ``instead`` says what is recomputed in place of what it cannot; ``part``: of some layers only, too.
    """

    def wrong(plan: Plan) -> list[str]:
        named = [one for pipe in plan.pipelines for stage in pipe.stages if stage.recompute == "selective"
                 for one in modules_of(stage)]  # fmt: skip
        return list(dict.fromkeys(one for one in named if one not in allowed))

    def reason(plan: Plan, subject: Subject) -> str:
        found = wrong(plan)
        if found:
            return f"selective recomputation of {' and '.join(found)} alone is not in {framework}"
        chosen = [s for pipe in plan.pipelines for s in pipe.stages if s.recompute == "selective"]
        if not part and any(stage.recompute_layers is not None for stage in chosen):
            return f"selective recomputation of some layers of a stage is not in {framework}"
        return ""

    def change(plan: Plan, subject: Subject) -> list[Plan]:
        def update(stage: Stage) -> dict[str, object]:
            if stage.recompute != "selective":
                return {}
            named = [new for one in modules_of(stage) for new in ((one,) if one in allowed else instead.get(one, ()))]
            kept = tuple(dict.fromkeys(named))
            how = stage.recompute if kept else "full"
            return {"recompute": how, "recompute_modules": kept, "recompute_layers": None}

        full = each_stage(plan, lambda stage: {"recompute": "full", "recompute_modules": (), "recompute_layers": None})
        none = each_stage(plan, lambda stage: {"recompute": "none", "recompute_modules": (), "recompute_layers": None})
        return [each_stage(plan, update), none, full]

    return Rule(reason, change)


def each_stage(plan: Plan, update: Callable[[Stage], Mapping[str, object]]) -> Plan:
    """Return a plan with every stage updated."""
    pipelines = tuple(
        pipe.model_copy(update={"stages": tuple(one.model_copy(update=dict(update(one))) for one in pipe.stages)})
        for pipe in plan.pipelines
    )
    return plan.model_copy(update={"pipelines": pipelines})


# Schedule.


def schedules(framework: str, allowed: Collection[Schedule]) -> Rule:
    """Return the rule that the pipeline runs one of these schedules; one pipeline stage needs none."""

    def reason(plan: Plan, subject: Subject) -> str:
        if plan.schedule in allowed or all(len(pipe.stages) == 1 for pipe in plan.pipelines):
            return ""
        return f"schedule {plan.schedule} is not in {framework}"

    def change(plan: Plan, subject: Subject) -> list[Plan]:
        return [as_1f1b(plan)] if "1f1b" in allowed else []

    return Rule(reason, change)


def as_1f1b(plan: Plan) -> Plan:
    """Return the plan under 1F1B, with one stage to a place: each place keeps as many layers as it held."""
    pipelines = tuple(_one_to_a_place(pipe, plan.schedule) for pipe in plan.pipelines)
    return plan.model_copy(update={"schedule": "1f1b", "pipelines": pipelines})


def _one_to_a_place(pipe: Pipeline, schedule: Schedule) -> Pipeline:
    if pipe.virtual_stages == 1:
        return pipe
    held = [0] * pipe.places
    for index, stage in enumerate(pipe.stages):
        held[pipe.place_of(index, schedule)] += stage.layers
    stages, here = [], 0
    for place, layers in enumerate(held):
        stages.append(pipe.stages[place].model_copy(update={"first": here, "last": here + layers}))
        here += layers
    return pipe.model_copy(update={"virtual_stages": 1, "stages": tuple(stages)})


# The whole plan.


def one_of(name: str, allowed: Collection[object], says: str, instead: Sequence[object] = ()) -> Rule:
    """Return the rule that a field of the plan has one of these values; ``instead`` are values to try for others."""

    def reason(plan: Plan, subject: Subject) -> str:
        value = getattr(plan, name)
        return "" if value in allowed else says.format(value=quote(value) if isinstance(value, str) else value)

    def change(plan: Plan, subject: Subject) -> list[Plan]:
        return [plan.model_copy(update={name: value}) for value in instead]

    return Rule(reason, change)


def precisions(framework: str, allowed: Collection[Precision]) -> Rule:
    """Return the rule that all cards compute in one and the same of these number formats."""

    def reason(plan: Plan, subject: Subject) -> str:
        found = plan.precision_by_pool()
        if len(set(found.values())) > 1:
            said = " and ".join(f"{pool} computes in {one}" for pool, one in found.items())
            return f"{said}, and {framework} has one precision for all stages"
        one = precision_of(plan)
        return "" if one in allowed else f"{framework} does not train in {one!r}"

    def change(plan: Plan, subject: Subject) -> list[Plan]:
        if len(set(plan.precision_by_pool().values())) == 1:
            return []
        wide = BETWEEN[plan.precision]
        return [each_stage(plan, lambda stage: {"precision": None}).model_copy(update={"precision": wide})]

    return Rule(reason, change)


def precision_of(plan: Plan) -> Precision:
    """Return the precision in which all cards of a plan compute, or those of its first stage."""
    return next(iter(plan.precision_by_pool().values()))


def full_weights(framework: str) -> Rule:
    """Return the rule that all weights are trained."""
    return one_of("trainable", ["full"], f"{framework} trains all weights here, not adapters ({{value}})")


def offloads(framework: str, allowed: Collection[Offload]) -> Rule:
    """Return the rule about what is kept in host memory."""
    return one_of("offload", allowed, f"{framework} cannot offload {{value}}", ["none"])
