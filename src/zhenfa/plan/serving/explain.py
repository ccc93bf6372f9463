"""Why a serving plan lost to the first: card-seconds of a request part by part, what bound it, which single change
helps, and whether it was searched. For a plan of the answer, or one that the user brings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from zhenfa import units
from zhenfa.estimate.serving_report import PartEstimate, ServingEstimate
from zhenfa.plan.beside import Beside, Constraint, Difference, Gap, Searched
from zhenfa.plan.request import Request
from zhenfa.plan.serving.answer import ServingAnswer, estimate_serving
from zhenfa.plan.serving.change import Taken, changes, taken_by
from zhenfa.plan.serving.given import belongs
from zhenfa.plan.serving.space import (
    CHUNKS,
    CONTEXTS,
    MOST_STAGE,
    MOST_TENSOR,
    PIPELINES,
    data_degrees,
    expert_degrees,
    experts_of,
    families,
)
from zhenfa.plan.serving.wish import wish_of
from zhenfa.plan.serving.words import cut_words, summary
from zhenfa.spec.serving import Instance, ServingPlan

WORTH: Final = 0.01
"""Share below which a part is not worth a word."""


ServingWhy = Beside[ServingPlan, ServingEstimate, Taken]
"""Why a serving plan lost."""


def explain(answer: ServingAnswer, plan: ServingPlan | int, *, name: str | None = None) -> ServingWhy:
    """Return why a plan of the answer (by rank), or one that the user brings, lost to the first.

    Raises :class:`InputError` for a plan of another model, machine or engine.
    """
    if isinstance(plan, int):
        name, plan = name or f"plan {plan}", answer.plans[plan - 1].plan
    name, request, best = name or "the plan", answer.within, answer.best
    belongs(plan, request, name=name)
    wish = wish_of(request)
    taken, problems = taken_by(plan, request, wish)
    first, _ = taken_by(best.plan, request, wish)
    first_score = (None if first is None else first.score(wish)) or float("nan")
    estimate = _estimate(request, plan, taken)
    mine = {} if estimate is None else card_seconds(estimate)
    firsts = card_seconds(best.estimate)
    whole = sum(firsts.values())
    return ServingWhy(
        name=name, layout=summary(plan), first_layout=best.layout, plan=plan, estimate=estimate,
        step=None if estimate is None else _step(estimate), first_step=_step(best.estimate),
        score=None if taken is None or problems else taken.score(wish), first_score=first_score,
        problems=tuple(problems),
        parts=_gaps(firsts, mine, whole) if mine else (),
        memory=() if estimate is None else _memory(best.estimate, estimate),
        figures=() if estimate is None else tuple(_figures(best.estimate, estimate)),
        walls=() if estimate is None else tuple(_walls(best.estimate, estimate)),
        differences=tuple(differences(best.plan, plan)),
        constraints=tuple(_constraints(request, plan, estimate)),
        changes=tuple(changes(plan, request, wish)),
        searched=searched(answer, plan),
    )  # fmt: skip


def _estimate(request: Request, plan: ServingPlan, taken: Taken | None) -> ServingEstimate | None:
    """Return the estimate of a plan at the most that it takes, or the load that is given."""
    if taken is None or taken.rate <= 0:
        return None
    given = request.serving.request_rate
    return estimate_serving(request, plan, rate=taken.rate if given is None else min(given, taken.rate))


def _step(estimate: ServingEstimate) -> float:
    return sum(estimate.parts[0].decode_s.values())


def card_seconds(estimate: ServingEstimate) -> dict[str, float]:
    """Return the card-seconds that a request takes, by group of instances and what its steps wait for.

    Of instances that do both, what the steps of running requests leave is of prompts; of prefill, it is idle.
    """
    total = sum(one.served.requests_per_second for one in estimate.parts)
    found: dict[str, float] = {}
    for part in estimate.parts:
        for name, seconds in _of_part(part).items():
            found[name] = found.get(name, 0.0) + seconds * part.served.requests_per_second / total
    return found


def _of_part(part: PartEstimate) -> dict[str, float]:
    served, service = part.served, part.service
    rate, workload, instance = served.requests_per_second, served.workload, service.decode.instance
    whole = instance.count * instance.cards / rate
    steps = workload.mean_decoded / service.accepted
    each = instance.cards * steps / max(served.running, 1.0)
    found = {f"decode: {name}": each * seconds for name, seconds in part.decode_s.items()}
    left = whole - sum(found.values())
    if not service.apart:
        return {**found, "prompts among decode steps": left}
    found["decode: idle"] = left
    source = service.prefill.instance
    cards = source.count * source.cards / rate
    busy = min(rate / max(served.prefill_rate, 1e-300), 1.0)
    step = sum(part.prefill_s.values())
    found |= {f"prefill: {name}": cards * busy * one / step for name, one in part.prefill_s.items()}
    return {**found, "prefill: idle": cards * (1 - busy)}


def _gaps(first: dict[str, float], other: dict[str, float], whole: float) -> tuple[Gap, ...]:
    rows = [
        Gap(name, first.get(name, 0.0), other.get(name, 0.0), (other.get(name, 0.0) - first.get(name, 0.0)) / whole)
        for name in dict.fromkeys((*first, *other))
    ]
    return tuple(sorted(rows, key=lambda one: -one.gap))


def _memory(first: ServingEstimate, other: ServingEstimate) -> tuple[Gap, ...]:
    best, mine = (
        {f"{role}: {name}": held for role, parts in one.parts[0].memory.items() for name, held in parts.items()}
        for one in (first, other)
    )
    whole = max(first.fullest[0], 1.0)
    found = _gaps(best, mine, whole)
    return tuple(sorted((one for one in found if one.first or one.other), key=lambda one: -abs(one.gap)))


_FIGURES: Final = (
    "requests_per_s", "tokens_per_s", "tokens_per_s_per_card", "tokens_per_s_per_user", "ttft_s", "tpot_s",
    "memory_bytes_per_card", "energy_j_per_token", "cost_per_million_tokens",
)  # fmt: skip


def _figures(first: ServingEstimate, other: ServingEstimate) -> Iterator[Gap]:
    for name in _FIGURES:
        best, mine = (getattr(one.figures, name).value for one in (first, other))
        if best and mine is not None:
            yield Gap(name, best, mine, mine / best - 1)


def _walls(first: ServingEstimate, other: ServingEstimate) -> Iterator[Gap]:
    for name in ("compute", "communication"):
        best, mine = (getattr(one.walls, name).share for one in (first, other))
        if best is not None and mine is not None:
            yield Gap(name, best, mine, mine - best)


def differences(first: ServingPlan, other: ServingPlan) -> Iterator[Difference]:
    """Yield what differs in two plans, instances first."""
    if len(first.parts) != len(other.parts):
        yield Difference("parts", f"{len(first.parts)}", f"{len(other.parts)}")
    for name, best, mine in (("prefill", first.prefill, other.prefill), ("decode", first.decode, other.decode)):
        for what in ("pool", "count", "cut", "chunk", "max_batch"):
            left, right = _said(best, what), _said(mine, what)
            if left != right:
                yield Difference(f"{name}: {what.replace('_', ' ')}", left, right)
    for name in ("weights", "attention_weights", "prefill_weights", "cache", "speculation", "eager"):
        left, right = getattr(first, name), getattr(other, name)
        if left != right:
            yield Difference(name.replace("_", " "), str(left or "none"), str(right or "none"))


def _said(instance: Instance | None, what: str) -> str:
    if instance is None:
        return "none"
    return cut_words(instance) if what == "cut" else str(getattr(instance, what) or "as usual")


def _constraints(request: Request, plan: ServingPlan, estimate: ServingEstimate | None) -> Iterator[Constraint]:
    """Yield what binds a plan: targets, memory, a side that waits for the other, cards that are left."""
    if estimate is None:
        return
    workload, figures = request.serving, estimate.figures
    for name, target, got in (
        ("TPOT", workload.tpot_target, figures.tpot_s.value), ("TTFT", workload.ttft_target, figures.ttft_s.value),
    ):  # fmt: skip
        if target is not None and got is not None and got > target * (1 - WORTH):
            yield Constraint(name, f"the target of {units.show(target, 'time')} binds: no larger batches")
    for number, part in enumerate(estimate.parts, 1):
        which = f" of part {number}" if len(estimate.parts) > 1 else ""
        served = part.served
        if served.running > served.capacity * (1 - WORTH):
            held = f"{served.capacity:,.0f} requests fill an instance{which} (memory, or the engine's most)"
            yield Constraint("memory", held)
        if part.service.apart:
            busy = served.requests_per_second / max(served.prefill_rate, 1e-300)
            words = f"prefill{which} is busy {min(busy, 1.0):.0%} of the time"
            yield Constraint("prefill", words)
    idle = {
        pool.name: pool.count - plan.cards_by_pool().get(pool.name, 0)
        for pool in request.formation.pools
        if pool.count > plan.cards_by_pool().get(pool.name, 0)
    }
    if idle:
        yield Constraint("cards", "idle: " + ", ".join(f"{count:,} of {name}" for name, count in idle.items()))


def searched(answer: ServingAnswer, plan: ServingPlan) -> Searched:
    """Return whether the space that is searched holds a plan, and why it is not among those listed."""
    for one in answer.plans:
        if one.plan.parts == plan.parts:
            return Searched(True, (f"it is plan {one.rank} of the list",))
    request = answer.within
    outside: list[str] = []
    if len(plan.parts) > 1 and len(request.formation.pools) == 1:
        outside.append("several parts on one pool: one is searched")
    for part in plan.parts:
        formats = {(one.pool.name, one.weights, one.cache, one.speculation) for one in families(request)}
        for role, instance in (("prefill", part.prefill), ("decode", part.decode)):
            if instance is None:
                continue
            if (instance.pool, part.weights_of(role), part.cache, part.speculation) not in formats:
                outside.append(f"{role}: formats or drafts that the job does not allow on {instance.pool}")
            outside += [f"{role}: {words}" for words in _outside(request, instance, prefill=role == "prefill")]
    if outside:
        return Searched(False, tuple(dict.fromkeys(outside)))
    return Searched(True, ("no better than the last plan listed, or than one that is cut alike (TP, PP, DP within a "
                           "factor of two), of which only the best is listed",))  # fmt: skip


def _outside(request: Request, instance: Instance, *, prefill: bool) -> Iterator[str]:
    """Yield why no search tries an instance that is cut so."""
    graph, limits = request.graph, request.job.limits
    pool = request.formation.pool(instance.pool)
    experts = experts_of(graph)
    if instance.tensor_parallel > min(MOST_TENSOR, limits.max_tensor_parallel or MOST_TENSOR):
        yield f"TP of {instance.tensor_parallel}: at most {min(MOST_TENSOR, limits.max_tensor_parallel or MOST_TENSOR)}"
    if instance.pipeline_parallel not in PIPELINES:
        yield f"PP of {instance.pipeline_parallel}: searched are {', '.join(map(str, PIPELINES))}"
    if instance.context_parallel not in (CONTEXTS if prefill else (1,)):
        yield f"CP of {instance.context_parallel}: searched are {CONTEXTS} in prefill, 1 in decode"
    if instance.stage_cards > MOST_STAGE:
        yield f"a stage of {instance.stage_cards} cards: at most {MOST_STAGE}"
    elif experts < 2 and instance.data_parallel > 1:
        yield "attention data parallelism without experts: more instances are the same"
    elif experts > 1:
        most = min(MOST_STAGE, pool.count) // instance.tensor_parallel
        if instance.data_parallel not in data_degrees(pool, instance.tensor_parallel, most, experts):
            yield f"DP of {instance.data_parallel}: looked at only between neighbours of the best"
        width = min(
            (one.inputs for kind in graph.kinds for one in kind.operators if one.kind == "grouped_matmul"), default=1
        )
        known = expert_degrees(instance.stage_cards, experts, width)
        if instance.expert_parallel not in known:
            yield f"EP of {instance.expert_parallel}: searched are {', '.join(map(str, known))}"
    if instance.chunk is not None and instance.chunk not in CHUNKS:
        yield f"chunks of {instance.chunk:,} tokens: searched are {', '.join(f'{one:,}' for one in CHUNKS)}"
    if instance.two_batch_overlap:
        yield "two batches in turn: not searched"
