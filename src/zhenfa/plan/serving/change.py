"""One thing of a serving plan changed at a time, and estimated for real: what helps, what is barred."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from zhenfa.errors import CapabilityError, InputError, MissingFactError
from zhenfa.estimate.serving_failing import kept
from zhenfa.plan.beside import SingleChange
from zhenfa.plan.request import Request
from zhenfa.plan.serving.given import choice_of, faults, fits
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.power import worth
from zhenfa.plan.serving.space import BATCH, CHUNKS, NO_TIER, crosses, experts_of, sliced
from zhenfa.plan.serving.wish import Wish
from zhenfa.spec.serving import Instance, ServingPlan


@dataclass(frozen=True)
class Taken:
    """What a plan takes within the targets, in requests/s, and what its cards count for (cards, CNY/s, W); ``kept``:
    the share that failures leave."""

    rate: float
    counted: float
    kept: float = 1.0

    def score(self, wish: Wish) -> float | None:
        """Return what is compared, smaller is better: what counts for a request/s, or, of a rate that is needed, what
        counts; None where the plan takes nothing, or less than is needed."""
        if self.rate <= 0 or (wish.rate is not None and self.rate < wish.rate * (1 - 1e-6)):
            return None
        if wish.question == "most":
            return 1.0 / (self.rate * (self.kept if wish.objective == "throughput" else 1.0))
        return self.counted if wish.question == "least" else self.counted / self.rate


ServingChange = SingleChange[ServingPlan, Taken]
"""A serving plan with one thing changed, and what it then takes."""


def taken_by(plan: ServingPlan, request: Request, wish: Wish) -> tuple[Taken | None, list[str]]:
    """Return what a plan takes within the targets, and what keeps it from running (nothing if it can)."""
    problems = faults(plan, request)
    try:
        chosen = choice_of(plan, request)
    except (CapabilityError, InputError, MissingFactError) as problem:
        return None, [*problems, problem.message.rstrip(".")]
    problems += [words for part in chosen for words in _misfits(part, request)]
    if problems or not np.isfinite(sum(one.rate for one in chosen)):
        return None, problems
    rate = sum(one.rate for one in chosen)
    if rate <= 0:
        return Taken(0.0, 0.0), ["misses a target however few requests come"]
    if wish.rate is not None and rate < wish.rate * (1 - 1e-6):
        return Taken(rate, worth(request, wish, chosen)), [
            f"takes {rate:.3g} requests/s within the targets, and {wish.rate:.3g} are wanted"
        ]
    used: dict[str, int] = plan.cards_by_pool()
    if not wish.fits(used):
        problems.append("takes more cards than the job's limits leave")
    left = kept(plan, request.formation, request.job.recovery, [one.rate for one in chosen])
    return Taken(rate, worth(request, wish, chosen), 1.0 if left is None else left.share), problems


def _misfits(part: Part, request: Request) -> Iterator[str]:
    groups = [(part.decode, "decode")] + ([(part.prefill, "prefill")] if part.prefill else [])
    for types, role in groups:
        if types is not None and bool(np.any(crosses(types.group, types.group.cut))):
            yield f"{role}: {NO_TIER} of {types.family.pool.name}"
        elif types is not None and not fits(types.group, request, outputs=role == "decode"):
            yield f"{role}: weights and one request do not fit in memory of {types.family.pool.name}"


def changes(plan: ServingPlan, request: Request, wish: Wish) -> list[ServingChange]:
    """Return every single change that was tried, the best possible first, then those that are barred."""
    found: dict[str, ServingChange] = {}
    for what, before, after, changed in _tried(plan, request):
        if changed is None:
            continue
        taken, problems = taken_by(changed, request, wish)
        score = None if taken is None or problems else taken.score(wish)
        barred = "; ".join(problems)
        one = ServingChange(what, before, after, changed, taken, barred, _by(barred), score)
        found.setdefault(one.words, one)
    return sorted(found.values(), key=lambda one: (bool(one.barred), one.score is None, one.score or 0.0))


def _by(barred: str) -> str:
    for word, mark in (("memory", "memory"), ("target", "targets"), ("cards", "cards"), ("wanted", "load")):
        if word in barred:
            return mark
    return "shape" if barred else ""


Try = tuple[str, str, str, ServingPlan | None]


def _tried(plan: ServingPlan, request: Request) -> Iterator[Try]:
    """Yield changes of the first part of a plan: degrees doubled and halved, one instance more or less, chunks,
    formats that the job allows, prefill together or apart, experts spread or cut."""
    roles = [("decode" if plan.prefill else "instances", "decode", plan.decode)]
    if plan.prefill is not None:
        roles.append(("prefill", "prefill", plan.prefill))
    for said, name, instance in roles:
        for what, after, changed in _of_instance(instance, request):
            before = str(getattr(instance, what)) if what in Instance.model_fields else ""
            words = f"{said}: {what.replace('_', ' ')}"
            yield words, before, after, _made(plan, {name: changed})
    if plan.prefill is not None:
        both = plan.decode.model_copy(update={"chunk": CHUNKS[1]})
        spare = plan.prefill.count * plan.prefill.cards if plan.prefill.pool == plan.decode.pool else 0
        more = both.model_copy(update={"count": plan.decode.count + spare // plan.decode.cards})
        yield (
            "prefill and decode together",
            "",
            "",
            _made(plan, {"prefill": None, "prefill_weights": None, "decode": more}),
        )
    elif plan.decode.count > 1:
        half = plan.decode.count // 2
        source = plan.decode.model_copy(update={"count": plan.decode.count - half, "max_batch": None})
        rest = plan.decode.model_copy(update={"count": half, "chunk": None})
        yield "prefill on half of the instances", "", "", _made(plan, {"prefill": source, "decode": rest})
    for cache in request.serving.cache or ("bf16",):
        if cache != plan.cache:
            yield "cache", plan.cache, cache, _made(plan, {"cache": cache})
    for weights in request.serving.weights:
        if weights != plan.weights:
            yield "weights", plan.weights, weights, _made(plan, {"weights": weights})
        if plan.prefill is not None and weights != plan.weights_of("prefill"):
            own = None if weights == plan.weights else weights
            yield "prefill: weights", plan.weights_of("prefill"), weights, _made(plan, {"prefill_weights": own})


def _of_instance(instance: Instance, request: Request) -> Iterator[tuple[str, str, Instance | None]]:
    experts = experts_of(request.graph)
    width = min(
        (one.inputs for kind in request.graph.kinds for one in kind.operators if one.kind == "grouped_matmul"),
        default=1,
    )
    total = instance.count * instance.cards
    for what in ("tensor_parallel", "data_parallel", "pipeline_parallel"):
        degree = getattr(instance, what)
        for again in (2 * degree, degree // 2 if degree % 2 == 0 else 0):
            if again < 1 or (what == "data_parallel" and experts < 2):
                continue
            values: dict[str, Any] = {what: again}
            stage = instance.stage_cards // degree * again if what != "pipeline_parallel" else instance.stage_cards
            if instance.expert_parallel == instance.stage_cards:
                values["expert_parallel"] = stage
            elif stage % instance.expert_parallel:
                continue
            cards = stage * (again if what == "pipeline_parallel" else instance.pipeline_parallel)
            data = again if what == "data_parallel" else instance.data_parallel
            values |= {"count": max(total // cards, 1), "max_batch": BATCH * data}
            yield what, str(again), _instance(instance, values)
    if experts > 1 and instance.stage_cards > 1:
        spread = 1 if instance.expert_parallel > 1 else instance.stage_cards
        if spread > 1 or sliced(width, instance.stage_cards):
            more = {"expert_parallel": spread, "max_batch": BATCH * instance.data_parallel}
            yield "expert_parallel", str(spread), _instance(instance, more)
    for count in (instance.count + 1, instance.count - 1):
        if count:
            yield "count", str(count), _instance(instance, {"count": count})
    for chunk in CHUNKS if instance.chunk else ():
        if chunk != instance.chunk:
            yield (
                "chunk",
                f"{chunk}",
                _instance(instance, {"chunk": chunk, "max_batch": BATCH * instance.data_parallel}),
            )


def _instance(instance: Instance, values: dict[str, Any]) -> Instance | None:
    try:
        return Instance.model_validate({**instance.model_dump(), **values})
    except ValidationError:
        return None


def _made(plan: ServingPlan, values: dict[str, Any]) -> ServingPlan | None:
    """Return a plan with other parts; None where a part cannot be."""
    if "decode" in values and values["decode"] is None:
        return None
    if values.get("prefill", ...) is None and plan.prefill is not None and "decode" not in values:
        return None
    return plan.model_copy(update=values)
