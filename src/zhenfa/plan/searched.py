"""Whether the space that is searched holds a plan, and why the plan is not among those listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from zhenfa import units
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost
from zhenfa.plan import bounds
from zhenfa.plan.beside import Searched
from zhenfa.plan.build import CODES
from zhenfa.plan.change import Form
from zhenfa.plan.even import Variant, even_ranges
from zhenfa.plan.search import family_of
from zhenfa.plan.sequence import without
from zhenfa.plan.space import (
    FEW_REPLICAS,
    Candidates,
    context_degrees,
    divisors,
    enumerate_pool,
    experts,
    fewer_replicas,
    micro_batch_sizes,
    tensor_degrees,
    zero_stages,
)
from zhenfa.plan.sparing import computes_some
from zhenfa.plan.split import all_are_tried
from zhenfa.plan.variants import first_bound, takes, variants
from zhenfa.plan.ways import MAX_MIXED_TENSOR, shared_over
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import USUAL_MODULES, Pipeline, Plan


def searched(
    plan: Plan, setting: Setting, limits: Limits, found: PlanCost | None, listed: Sequence[tuple[Plan, float]]
) -> Searched:
    """Return whether the search looked at a plan, and what kept it out of ``listed``: plans with their steps."""
    outside = _never_searched(plan, setting)
    form = Form.of(plan)
    if form is None and plan.schedule not in ("1f1b", "interleaved"):
        outside.append(f"schedule {plan.schedule} over several sorts of stages: searched are 1f1b and interleaved")
    if form is None:
        outside += _mixed(plan, setting, limits)
        if outside:
            return Searched(False, tuple(outside))
        words = "pipelines over several pools, or replicas of several sorts: their bounds are looked at together"
        if plan.schedule == "interleaved":
            words = "interleaved over several sorts of stages: tried on those listed, where limits.schedules names it"
        return Searched(None, (words, *_placed(plan, found, listed)))
    outside += [*_outside(form, setting, limits), *_schedule(form, plan, setting)]
    if plan.sequence_parallel not in (None, setting.traits.sequence_parallel) and without(setting) is None:
        outside.append(f"sequence_parallel {plan.sequence_parallel}, where the engine has no choice")
    if outside:
        return Searched(False, tuple(outside))
    row = _row(form, plan, setting, limits)
    if row is None:
        tried = f"every number up to {FEW_REPLICAS} groups of replicas is searched, and of more those that change the "
        return Searched(False, (f"{form.replicas} replicas: {tried}micro-batches of the busiest",))
    return Searched(True, (*_split_words(plan, setting), *_left_out(plan, form, setting, found, row, listed)))


def _never_searched(plan: Plan, setting: Setting) -> list[str]:
    """Return what a plan says that no search tries."""
    said = []
    for name, usual in (
        ("shard_group", None), ("reshard", None), ("reduce_every", None),
        ("context_exchange", None), ("expert_imbalance", None), ("trainable", "full"),
    ):  # fmt: skip
        value = getattr(plan, name)
        if value != usual:
            said.append(f"{name} {value}: the search leaves it as {'it is usual' if usual is None else usual}")
    stages = [stage for pipe in plan.pipelines for stage in pipe.stages if stage.recompute == "selective"]
    for pool, modules in dict.fromkeys((stage.pool, stage.recompute_modules) for stage in stages):
        own = setting.planned_again(pool)
        if set(modules or USUAL_MODULES) != set(own or USUAL_MODULES):
            said.append(
                f"recomputation of {' and '.join(modules or USUAL_MODULES)} on {pool}: the search computes "
                f"{' and '.join(own or USUAL_MODULES)} again, or whole layers"
            )
    return said


def _mixed(plan: Plan, setting: Setting, limits: Limits) -> list[str]:
    """Return why the search of several pools cannot have seen a plan."""
    said = []
    several = len({pipe.stages for pipe in plan.pipelines}) > 1
    if several and plan.offload not in ("none", "optimizer"):
        said.append(f"offload {plan.offload} over replicas of unlike stages")
    elif plan.offload not in setting.traits.offloads:
        said.append(f"offload {plan.offload}: searched are {', '.join(setting.traits.offloads)}")
    if plan.sequence_parallel is not None:
        said.append(f"sequence_parallel {plan.sequence_parallel} with unlike stages")
    if any(stage.recompute_layers is not None for pipe in plan.pipelines for stage in pipe.stages):
        said.append("recomputation of some layers of a stage, with unlike stages or other than in full")
    for pipe in plan.pipelines:
        pools = [stage.pool for stage in pipe.stages]
        turns = [pool for index, pool in enumerate(pools) if index == 0 or pools[index - 1] != pool]
        if len(turns) != len(set(turns)):
            said.append("a pool whose stages do not stand together")
        for pool in set(pools):
            if len({(one.cut, one.recompute) for one in pipe.stages if one.pool == pool}) > 1:
                said.append(f"stages of {pool} that are cut in unlike ways")
        if len(set(turns)) > 1 and any(one.tensor_parallel > MAX_MIXED_TENSOR for one in pipe.stages):
            said.append(f"tensor parallelism above {MAX_MIXED_TENSOR} in a mixed pipeline")
        if pipe.micro_batch_size not in micro_batch_sizes(plan.global_batch, limits):
            said.append(_size(pipe.micro_batch_size, plan.global_batch, limits))
        said += _shared(pipe, shared_over(setting, limits))
    if plan.zero and plan.zero not in zero_stages(setting):
        said.append(f"ZeRO stage {plan.zero}: searched are {_list(zero_stages(setting))}")
    return list(dict.fromkeys(said))


def _shared(pipe: Pipeline, over: tuple[int, ...]) -> list[str]:
    """Return why the search of several pools does not share micro-batches out as a plan does."""
    groups = {stage.data_parallel for stage in pipe.stages}
    if groups == {1}:
        return []
    if 1 not in groups:
        return ["micro-batches shared out on every stage: more replicas with smaller ones do the same"]
    if len({stage.pool for stage in pipe.stages}) == 1:
        return ["micro-batches shared out on stages of one pool: all its stages have the same"]
    return [
        f"micro-batches shared out over {one} groups of cards: searched are {_list(over)}"
        for one in sorted(groups - set(over))
    ]


def _outside(form: Form, setting: Setting, limits: Limits) -> list[str]:
    """Return which numbers of a form the search does not try."""
    said = []
    pool, layers = setting.formation.pool(form.pool), len(setting.graph.layers)
    tensor = tensor_degrees(setting, form.pool, limits)
    if form.tensor not in tensor:
        inner = pool.tiers[0].size
        why = "which straddles the innermost tier" if inner % form.tensor and form.tensor % inner else "not tried"
        said.append(f"tensor parallelism of {form.tensor}, {why}: searched are {_list(tensor)}")
    deepest = min(layers, limits.max_pipeline_parallel or layers)
    if form.places > deepest:
        said.append(f"{form.places} pipeline stages: at most {deepest} are searched")
    context = context_degrees(setting, form.pool, limits)
    if form.context not in context:
        said.append(f"context parallelism of {form.context}: searched are {_list(context)}")
    ways = divisors(experts(setting), 4096)
    if form.expert not in ways:
        said.append(f"expert parallelism of {form.expert}: searched are the divisors of {experts(setting)} experts")
    if form.expert_tensor not in (1, form.tensor):
        said.append(f"experts split over {form.expert_tensor} cards: searched are 1 and the tensor degree")
    if form.recompute not in setting.traits.recompute:
        said.append(f"{CODES[form.recompute]} recomputation, which the engine does not do")
    sequences = setting.workload.global_batch
    if form.size not in micro_batch_sizes(sequences, limits):
        said.append(_size(form.size, sequences, limits))
    if form.offload not in setting.traits.offloads:
        said.append(f"offload {form.offload}: searched are {', '.join(setting.traits.offloads)}")
    if form.again is not None and not computes_some(setting):
        said.append("recomputation of some layers of a stage, which the engine does not do")
    if form.zero and form.zero not in zero_stages(setting):
        said.append(f"ZeRO stage {form.zero}: searched are {_list(zero_stages(setting))}")
    return said


def _schedule(form: Form, plan: Plan, setting: Setting) -> list[str]:
    """Return why no search tries the schedule of a plan."""
    simple = "1f1b" in setting.traits.schedules
    if form.schedule == "1f1b" and (simple or form.places == 1):
        return []
    every = variants(setting)
    if form.schedule not in {one.schedule for one in every}:
        known = dict.fromkeys([*(["1f1b"] if simple else []), *(one.schedule for one in every)])
        return [f"schedule {form.schedule}: searched are {', '.join(known)}"]
    if (form.schedule, form.virtual) not in {(one.schedule, one.virtual) for one in every}:
        most = max(one.virtual for one in every if one.schedule == form.schedule)
        return [f"{form.virtual} stages to a place: searched are up to {most}"]
    ranges = [(stage.first, stage.last) for stage in plan.pipelines[0].stages]
    if ranges != even_ranges(len(setting.graph.layers), form.places, form.virtual):
        return [f"layers split unevenly: under {form.schedule} even splits are searched"]
    return []


def _variant(form: Form, setting: Setting) -> Variant | None:
    found = (one for one in variants(setting) if (one.schedule, one.virtual) == (form.schedule, form.virtual))
    return next(found, None)


def _size(size: int, sequences: int, limits: Limits) -> str:
    return f"micro-batches of {size}: searched are {_list(micro_batch_sizes(sequences, limits))}"


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _row(form: Form, plan: Plan, setting: Setting, limits: Limits) -> Candidates | None:
    """Return the candidate that the search looks at, one row; None where it has none with as many replicas."""
    rejected: Counter[str] = Counter()
    here = enumerate_pool(setting, form.pool, plan.global_batch, limits, rejected)
    wanted = {
        "tensor": form.tensor, "pipeline": form.places, "expert": form.expert, "size": form.size,
        "recompute": CODES.index("none") if form.again else form.recompute, "context": form.context,
        "expert_tensor": form.expert_tensor,
    }  # fmt: skip
    for name, value in wanted.items():
        here = here.where(getattr(here, name) == value)
    same = here.where(here.zero == form.zero)
    here = same if len(same) else here
    while len(here):
        if int(here.data[0]) == form.replicas:
            return here.where(np.array([0]))
        here, _ = fewer_replicas(here)
    return None


def _split_words(plan: Plan, setting: Setting) -> list[str]:
    stages = len(plan.pipelines[0].stages)
    if plan.schedule != "1f1b" or all_are_tried(stages, plan.layers):
        return []
    return ["of the ways to split its layers, too many to try, the search takes the shortest busiest stage and moves "
            "single layers"]  # fmt: skip


def _left_out(
    plan: Plan, form: Form, setting: Setting, found: PlanCost | None, row: Candidates,
    listed: Sequence[tuple[Plan, float]],
) -> list[str]:  # fmt: skip
    if found is not None and found.problem:
        return ["left out because it does not fit in memory" if "bandwidth" not in found.problem else found.problem]
    work = bounds.work_per_micro_batch(setting, form.pool, row)
    variant = _variant(form, setting)
    if variant is not None and not bool(takes(setting, variant, row)[1][0]):
        return ["left out because the schedule cannot take so many micro-batches"]
    bound = float(
        (bounds.step_bound(setting, work, row.pipeline, row.micro_batches) if variant is None
         else first_bound(setting, variant, row, work))[0]
    )  # fmt: skip
    last = listed[-1][1] if listed else float("inf")
    if bound >= last and plan not in [one for one, _ in listed]:
        return [
            f"left out by its bound: no split of its layers takes less than {units.show(bound, 'time')}, and the last "
            f"plan listed takes {units.show(last, 'time')}"
        ]
    return _placed(plan, found, listed)


def _placed(plan: Plan, found: PlanCost | None, listed: Sequence[tuple[Plan, float]]) -> list[str]:
    """Return where a plan stands beside those listed."""
    if found is None or found.problem or not listed:
        return []
    for rank, (other, step) in enumerate(listed, 1):
        same = ("pipelines", "zero", "schedule", "offload", "sequence_parallel")
        if all(getattr(other, name) == getattr(plan, name) for name in same):
            return [f"it is plan {rank} of the list"]
        if family_of(other) == family_of(plan) and step <= found.step:
            alike = f"plan {rank} has the same pools, TP, stages and micro-batch size"
            return [f"{alike}, and of such plans only the quickest is listed"]
    if found.step > listed[-1][1]:
        return [f"slower than the last plan listed ({units.show(listed[-1][1], 'time')})"]
    return ["quicker than a plan that is listed: the search did not find its split of the layers"]
