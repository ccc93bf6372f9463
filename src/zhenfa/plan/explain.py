"""Why a plan lost to the first: its step part by part, what bound it, which single change helps, and whether it was
searched. For a plan of the answer, or one that the user brings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

from zhenfa import units
from zhenfa.errors import InputError
from zhenfa.estimate.detail import memory_of
from zhenfa.estimate.links import Link, plan_links
from zhenfa.estimate.report import precisions, report, step_parts, summary
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.answer import Answer
from zhenfa.plan.beside import Beside, Constraint, Difference, Gap, Searched
from zhenfa.plan.change import Change, changes
from zhenfa.plan.given import belongs, faults, misfits
from zhenfa.plan.goal import Goal
from zhenfa.plan.meeting import unmet
from zhenfa.plan.searched import searched
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan
from zhenfa.spec.result import Estimate

WORTH: Final = 0.01
"""Share of the step below which neither a part nor a change is worth a word."""


Why = Beside[Plan, Estimate, PlanCost]
"""Why a training plan lost."""


def explain(answer: Answer, plan: Plan | int, *, name: str | None = None) -> Why:
    """Return why a plan of the answer (by rank), or one that the user brings, lost to the first.

    Raises :class:`InputError` for a plan of another model, machine or workload.
    """
    if isinstance(plan, int):
        name, plan = name or f"plan {plan}", answer.plans[plan - 1].plan
    name = name or "the plan"
    request, setting, best, goal = answer.request, answer.setting, answer.best, answer.goal
    limits = request.job.limits
    belongs(plan, request, name=name)
    found, problems = _costed(plan, setting, limits, goal)
    estimate = None if found is None or problems else report(plan, setting, found)
    known = all(pool in setting.chips for pool in plan.cards_by_pool())
    tried = changes(plan, setting, limits, goal) if known else []
    finite = found is not None and math.isfinite(found.step)
    listed = [(one.plan, one.cost.step) for one in answer.plans]
    return Why(
        name=name,
        layout=summary(plan),
        first_layout=best.layout,
        plan=plan,
        estimate=estimate,
        step=None if found is None else found.step,
        first_step=best.cost.step,
        score=goal.score(plan, found) if found is not None and finite else None,
        first_score=goal.score(best.plan, best.cost),
        problems=tuple(problems),
        parts=_parts(best.cost, found),
        memory=_memory(best.plan, best.cost, plan, found),
        figures=_figures(best.estimate, estimate),
        walls=_walls(best.estimate, estimate),
        differences=tuple(differences(best.plan, plan)),
        constraints=tuple(_constraints(plan, setting, found, tried)),
        changes=tuple(tried),
        searched=searched(plan, setting, limits, found, listed) if known else Searched(False, tuple(problems)),
    )


def _costed(plan: Plan, setting: Setting, limits: Limits, goal: Goal) -> tuple[PlanCost | None, list[str]]:
    """Return the cost of a plan, and what keeps it from running."""
    gone = [pool for pool in plan.cards_by_pool() if pool not in setting.chips]
    if gone:
        return None, [f"stands on {' and '.join(gone)}, which the job's limits leave out"]
    problems = faults(plan, setting, limits)
    try:
        found = cost(plan, setting)
    except InputError as problem:
        return None, [*problems, problem.message.rstrip(".")]
    unjoined = not math.isfinite(found.step) and any(True for _ in unmet(plan, setting))
    problems += misfits(found) or ([found.problem] if found.problem and not unjoined else [])
    if not problems and (refused := goal.refusal(plan, found)):
        problems.append(refused)
    return found, problems


def _parts(first: PlanCost, other: PlanCost | None) -> tuple[Gap, ...]:
    """Return the parts of the step side by side, the largest loss first."""
    if other is None:
        return ()
    mine, best = step_parts(other.worst), step_parts(first.worst)
    gaps = [Gap(name, best[name], mine[name], (mine[name] - best[name]) / first.step) for name in mine]
    return tuple(sorted(gaps, key=lambda one: -one.gap))


def _memory(first: Plan, first_cost: PlanCost, other: Plan, other_cost: PlanCost | None) -> tuple[Gap, ...]:
    """Return the parts of the fullest card's memory side by side."""
    if other_cost is None:
        return ()
    best, mine = _fullest(first, first_cost), _fullest(other, other_cost)
    whole = sum(best.values())
    gaps = [Gap(name, best[name], mine[name], (mine[name] - best[name]) / whole) for name in mine]
    return tuple(sorted((one for one in gaps if one.first or one.other), key=lambda one: -abs(one.gap)))


def _fullest(plan: Plan, found: PlanCost) -> dict[str, float]:
    return memory_of(plan, found)[found.stages.index(found.fullest)]


_FIGURES: Final = (
    "step_time_s", "tokens_per_s_per_card", "mfu", "memory_bytes_per_card", "energy_j_per_token", "ettr", "cost",
)  # fmt: skip


def _figures(first: Estimate, other: Estimate | None) -> tuple[Gap, ...]:
    """Return the figures that both plans have, the largest difference first."""
    found: list[Gap] = []
    if other is None:
        return ()
    for name in _FIGURES:
        best, mine = getattr(first.figures, name).value, getattr(other.figures, name).value
        if best and mine is not None:
            found.append(Gap(name, best, mine, mine / best - 1))
    return tuple(sorted(found, key=lambda one: -abs(one.share)))


def _walls(first: Estimate, other: Estimate | None) -> tuple[Gap, ...]:
    """Return the share of each wall side by side."""
    found: list[Gap] = []
    if other is None:
        return ()
    for name in ("compute", "communication", "energy", "reliability"):
        best, mine = getattr(first.walls, name).share, getattr(other.walls, name).share
        if best is not None and mine is not None:
            found.append(Gap(name, best, mine, mine - best))
    return tuple(sorted(found, key=lambda one: -abs(one.share)))


def differences(first: Plan, other: Plan) -> Iterator[Difference]:
    """Yield what differs in the layouts of two plans, degrees first."""
    rows = [(name, *(read(plan) for plan in (first, other))) for name, read in _LAYOUT.items()]
    yield from (Difference(name, best, mine) for name, best, mine in rows if best != mine)
    for name in Plan.model_fields:
        if name in ("job", "model", "machine", "pipelines", "zero", "schedule", "precision"):
            continue
        best, mine = getattr(first, name), getattr(other, name)
        if best != mine:
            yield Difference(name.replace("_", " "), _text(best), _text(mine))


def _text(value: object) -> str:
    return "as usual" if value is None else str(value)


def _of_stages(plan: Plan, name: str) -> str:
    """Return a value of the stages: once where all agree, else in the order of the stages."""
    values = [str(getattr(stage, name)) for pipe in plan.pipelines for stage in pipe.stages]
    return _once(values)


def _once(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else "/".join(dict.fromkeys(values))


def _sizes(plan: Plan) -> str:
    """Return the sequences of a micro-batch on each sort of stage."""
    return _once([f"{pipe.micro_batch_size // one.data_parallel:,}" for pipe in plan.pipelines for one in pipe.stages])


def _data(plan: Plan) -> str:
    """Return the data-parallel degree of each sort of stage."""
    return _once([f"{plan.replicas * one.data_parallel:,}" for pipe in plan.pipelines for one in pipe.stages])


def _of_pipes(plan: Plan, read: str) -> str:
    values = list(dict.fromkeys(f"{getattr(pipe, read):,}" for pipe in plan.pipelines))
    return "/".join(values)


_LAYOUT: Final[dict[str, Callable[[Plan], str]]] = {
    "pools": lambda plan: " + ".join(f"{count:,} {pool}" for pool, count in plan.cards_by_pool().items()),
    "TP": lambda plan: _of_stages(plan, "tensor_parallel"),
    "PP": lambda plan: _of_pipes(plan, "places"),
    "DP": _data,
    "CP": lambda plan: _of_stages(plan, "context_parallel"),
    "EP": lambda plan: _of_stages(plan, "expert_parallel"),
    "cards that split an expert": lambda plan: _of_stages(plan, "expert_tensor_parallel"),
    "ZeRO stage": lambda plan: str(plan.zero),
    "schedule": lambda plan: plan.schedule,
    "stages to a place": lambda plan: _of_pipes(plan, "virtual_stages"),
    "micro-batch size": _sizes,
    "micro-batches": lambda plan: _of_pipes(plan, "micro_batches"),
    "recomputation": lambda plan: _of_stages(plan, "recompute"),
    "precision": precisions,
    "layers": lambda plan: _layers(plan.pipelines[0]),
}


def _layers(pipe: Pipeline) -> str:
    counts = [stage.layers for stage in pipe.stages]
    if len(set(counts)) == 1:
        return f"{counts[0]} a stage"
    return f"{min(counts)}-{max(counts)} a stage" if len(counts) > 8 else "/".join(map(str, counts))


def _constraints(plan: Plan, setting: Setting, found: PlanCost | None, tried: list[Change]) -> Iterator[Constraint]:
    """Yield what bound a plan, the dearest first: quicker changes that something bars, and what its links cost."""
    if found is None:
        return
    rows = [*_barred(found, tried), *_slow_links(plan, setting, found), *_few_micro_batches(found)]
    yield from sorted(rows, key=lambda one: -(one.seconds or 0.0))
    idle = {
        pool.name: pool.count - plan.cards_by_pool().get(pool.name, 0)
        for pool in setting.formation.pools
        if pool.count > plan.cards_by_pool().get(pool.name, 0)
    }
    if idle:
        yield Constraint("cards", "idle: " + ", ".join(f"{count:,} of {name}" for name, count in idle.items()))
    yield _fill(found)


def _barred(found: PlanCost, tried: list[Change]) -> Iterator[Constraint]:
    """Yield, for each sort of bar, the quickest change that it forbids."""
    best: dict[str, Change] = {}
    for change in tried:
        if change.barred and change.step is not None and change.step < found.step * (1 - WORTH):
            known = best.get(change.by)
            if known is None or (known.step or 0.0) > change.step:
                best[change.by] = change
    for kind, change in best.items():
        saved = found.step - (change.step or 0.0)
        words = f"{change.words} would take {saved / found.step:.1%} off the step, but {change.barred}"
        yield Constraint(kind, words, saved)


def _slow_links(plan: Plan, setting: Setting, found: PlanCost) -> Iterator[Constraint]:
    """Yield communication that takes a part worth a word of the step, with the tier that it crosses."""
    for link in plan_links(plan, setting, found):
        if link.exposed > WORTH * found.step:
            yield Constraint("tier crossed", _crossing(link), link.exposed)


def _crossing(link: Link) -> str:
    rate = "" if link.bandwidth is None else f" at {units.show(link.bandwidth, 'rate')} a card"
    return f"{link.kind} traffic of {link.cards:,} cards goes over {link.link}{rate}"


def _few_micro_batches(found: PlanCost) -> Iterator[Constraint]:
    group = found.worst
    bubble = step_parts(group)["bubble"]
    if len(group.places) > 1 and bubble > WORTH * found.step:
        words = f"{group.micro_batches} micro-batches over {len(group.places)} places leave the bubble"
        yield Constraint("micro-batches", words, bubble)


def _fill(found: PlanCost) -> Constraint:
    full = found.fullest
    largest = max(full.memory, key=lambda name: full.memory[name])
    where = f"{found.stages.index(full)} on {full.stage.pool}"
    filled = f"{full.bytes / full.capacity:.0%} of {units.show(full.capacity, 'data')}"
    return Constraint("memory", f"the fullest stage, {where}, fills {filled}, mostly with {largest}")
