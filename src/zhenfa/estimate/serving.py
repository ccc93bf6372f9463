"""A serving plan under a load: time per output token, time to the first one, and throughput in the steady state.

Running requests and requests in prefill share the load by Little's law. Every step law is evaluated once, as arrays
over a grid of batches (:mod:`zhenfa.estimate.serving_curves`); the steady state is where the grid meets the load
(:mod:`zhenfa.estimate.serving_state`). The same functions take many candidates at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zhenfa.errors import CapabilityError, InputError
from zhenfa.estimate import serving_cards, serving_engine, serving_memory, wires
from zhenfa.estimate.serving_curves import (
    BINARY,
    Crossing,
    Curves,
    Cut,
    Group,
    Service,
    capacity,
    curves,
    decode_seconds,
    draft_passes,
    paces,
    prompt_seconds,
)
from zhenfa.estimate.serving_engine import Engine
from zhenfa.estimate.serving_first import FirstToken
from zhenfa.estimate.serving_state import meet
from zhenfa.estimate.serving_step import Layout, Load, Setup, step
from zhenfa.spec.fact import weakest
from zhenfa.spec.graph import Graph
from zhenfa.spec.machine import CardPool, Formation
from zhenfa.spec.serving import Instance, ServingPlan, ServingWorkload


@dataclass(frozen=True)
class Served:
    """What a plan does under a load. Seconds; requests and tokens per second over all instances.

    ``tpot``: mean time per output token after the first; ``ttft``: mean time to the first; ``iteration``: one decode
    step without prompts; ``running``: requests that decode at once, per instance; ``waiting`` to be admitted, in all;
    ``capacity``: requests that one instance holds; ``prefill``: seconds of one prompt's prefill, alone;
    ``prefill_rate``: prompts per second at most; ``first``: how times to the first token are spread.
    ``tpot_median`` over requests, and ``itl``, the mean seconds between a request's tokens, one burst of a speculating
    step as one, where they differ from ``tpot``.
    """

    tpot: float
    ttft: float
    iteration: float
    running: float
    waiting: float
    capacity: float
    prefill: float
    prefill_rate: float
    requests_per_second: float
    workload: ServingWorkload
    cards: int
    decode_cards: int
    first: FirstToken | None = None
    tpot_median: float | None = None
    itl: float | None = None

    def first_within(self, level: float) -> float:
        """Return the seconds within which a share ``level`` of the requests have their first token."""
        return self.ttft if self.first is None else self.first.within(level)

    @property
    def output_rate(self) -> float:
        """Return output tokens per second."""
        return self.requests_per_second * self.workload.mean_output

    @property
    def total_rate(self) -> float:
        """Return input and output tokens per second."""
        return self.requests_per_second * (self.workload.mean_input + self.workload.mean_output)

    @property
    def latency(self) -> float:
        """Return the mean seconds from a request's arrival to its last token."""
        return self.ttft + self.workload.mean_decoded * self.tpot


def look_up(graph: Graph, plan: ServingPlan, formation: Formation, *, engine: Engine | None = None) -> Service:
    """Look up everything that an estimate needs.

    Raises :class:`MissingFactError` naming an undisclosed value, :class:`InputError` for a pool that is not there.
    """
    pools = {pool.name: pool for pool in formation.pools}
    for one in filter(None, (plan.prefill, plan.decode)):
        if one.pool not in pools:
            raise InputError(f"the plan uses a pool {one.pool!r}.", hint=f"pools: {', '.join(pools)}.")
    notes: list[str] = []
    known = engine or engine_on(plan.engine, pools[plan.decode.pool])
    decode = group(graph, plan, plan.decode, pools[plan.decode.pool], known, notes)
    if plan.prefill is None:
        prefill = decode
    else:
        other = engine or engine_on(plan.engine, pools[plan.prefill.pool])
        prefill = group(graph, of_prefill(plan), plan.prefill, pools[plan.prefill.pool], other, notes)
    between = crossing(graph, prefill, decode, formation)
    tag = weakest(decode.setup.cards.tag, prefill.setup.cards.tag, known.tag)
    return Service(graph, plan, known, prefill, decode, tag, tuple(dict.fromkeys(notes)), between)


def of_prefill(plan: ServingPlan) -> ServingPlan:
    """Return a plan with the weights of its prefill instances."""
    return plan.model_copy(update={"weights": plan.weights_of("prefill")}) if plan.prefill_weights else plan


def engine_on(name: str, pool: CardPool) -> Engine:
    """Return what the engine of that name, as plans run it, adds on the cards of a pool."""
    return serving_engine.coefficients(serving_engine.planned(name, pool.maker), pool.accelerator)


def group(
    graph: Graph, plan: ServingPlan, instance: Instance, pool: CardPool, engine: Engine, notes: list[str],
    cut: Cut | None = None,
) -> Group:  # fmt: skip
    """Return one group of instances with everything looked up; ``cut`` holds candidates instead of the instance."""
    cards = serving_cards.look_up(
        pool, graph, plan.weights, plan.cache, attention=plan.attention_weights, engine=engine.kernels
    )
    fabric, words = wires.fabric(pool)
    notes.extend((*cards.dense.assumptions, *cards.experts.assumptions, *words))
    here = cut or cut_of(instance, engine)
    setup = Setup(graph, cards, fabric, here.layout, imbalance=engine.imbalance)
    return Group(
        instance, here, engine, setup, cards.dense.capacity * BINARY * engine.memory,
        serving_memory.held(graph, cards, here.layout),
    )  # fmt: skip


def cut_of(instance: Instance, engine: Engine) -> Cut:
    """Return how an instance is cut, with the engine's defaults for what it leaves open."""
    layout = Layout(
        float(instance.tensor_parallel), float(instance.data_parallel), float(instance.context_parallel),
        float(instance.expert_parallel), float(instance.pipeline_parallel),
    )  # fmt: skip
    limit = instance.max_batch or engine.max_batch * instance.data_parallel
    chunk = float(instance.chunk or engine.chunk)
    return Cut(layout, float(instance.count), chunk, float(limit), instance.two_batch_overlap)


def crossing(graph: Graph, prefill: Group, decode: Group, formation: Formation) -> Crossing | None:
    """Return what carries the cache from one pool to another; None within one pool.

    Raises :class:`CapabilityError` where nothing joins them.
    """
    if prefill.instance.pool == decode.instance.pool:
        return None
    bridge = wires.bridge(formation.network, machine=formation.name, emulated=formation.emulated)
    if bridge is None:
        raise CapabilityError(
            f"{formation.name} names no network between {prefill.instance.pool} and {decode.instance.pool}, so that "
            "no cache can go from prefill to decode.",
            hint="give the machine a network, or prefill and decode on the same pool.",
        )
    return Crossing(bridge, serving_memory.token_bytes(graph, prefill.setup.cards))


def serve(service: Service, workload: ServingWorkload, *, drawn: Curves | None = None) -> Served:
    """Return what a plan does under a load, in the steady state.

    Raises :class:`InputError` where the weights or one request do not fit, or no load is given.
    """
    if workload.open_ended:
        raise InputError("the workload gives no load.", hint="write concurrency or request_rate.")
    lines = drawn or curves(service, workload)
    if lines.capacity < 1:
        raise InputError(
            f"{service.plan.model} in {service.plan.weights} with one request of {workload.mean_input:.0f} tokens does "
            f"not fit on {service.decode.instance.cards} cards of {service.decode.setup.cards.dense.name}.",
            hint="more cards per instance, a narrower weight or cache format, or shorter requests.",
        )
    pace = paces(service, workload, lines)
    met = meet(service, workload, pace)
    first = FirstToken(*(float(one) for one in (met.first.own, met.first.wait, met.first.wave, met.first.share)))
    return Served(
        tpot=float(met.tpot), ttft=first.mean, iteration=float(met.iteration), running=float(met.running),
        waiting=float(met.waiting), capacity=float(lines.capacity),
        prefill=float(pace.prompt), prefill_rate=float(pace.bound),
        requests_per_second=float(met.through), workload=workload, cards=service.plan.cards,
        decode_cards=service.decode.instance.count * service.decode.instance.cards, first=first,
    )  # fmt: skip


def hold(service: Service, workload: ServingWorkload, running: float) -> Served:
    """Return what a plan does with ``running`` requests held in every decode instance and no prompts coming in."""
    pipeline = service.decode.instance.pipeline_parallel
    context = workload.mean_input + workload.mean_output / 2
    cost = step(
        service.decode.setup, Load(sequences=running / pipeline, context=context, queries=1.0 + service.drafted),
        drafts=draft_passes(service),
    )  # fmt: skip
    overlapped = service.decode.instance.two_batch_overlap
    spent = float(
        service.engine.time(
            cost,
            running / service.decode.instance.data_parallel,
            captured=not service.plan.eager,
            overlapped=overlapped,
        )
    )
    tpot = spent / service.accepted
    count = service.decode.instance.count
    return Served(
        tpot=tpot, ttft=0.0, iteration=spent, running=running, waiting=0.0, capacity=float(capacity(service, workload)),
        prefill=0.0, prefill_rate=np.inf, requests_per_second=count * running / (workload.mean_output * tpot),
        workload=workload, cards=service.plan.cards, decode_cards=count * service.decode.instance.cards,
    )  # fmt: skip


def prefill_tokens_per_second(service: Service, workload: ServingWorkload, tokens: float) -> float:
    """Return prompt tokens per second of one prefill instance whose steps carry ``tokens`` on each card group.

    A group is one data-parallel share of the instance; prompts longer than the step are cut into chunks.
    """
    instance = service.prefill.instance
    length = workload.mean_input * (1 - workload.cached_prefix)
    chunk = min(length, tokens)
    prompts = max(tokens / chunk, 1.0) * instance.data_parallel
    seen = length / 2 + chunk / 2 + workload.mean_input * workload.cached_prefix
    cost = step(service.prefill.setup, Load(prompts=prompts, chunk=chunk, prompt_context=seen))
    overlapped = instance.two_batch_overlap
    spent = float(service.engine.time(cost, prompts / instance.data_parallel, captured=False, overlapped=overlapped))
    return prompts * chunk / spent * instance.pipeline_parallel


def describe(served: Served) -> Mapping[str, float]:
    """Return the figures that people ask for, in milliseconds and tokens per second."""
    return {
        "tpot_ms": 1e3 * served.tpot, "ttft_ms": 1e3 * served.ttft, "output_tok_s": served.output_rate,
        "output_tok_s_per_card": served.output_rate / served.cards, "running": served.running,
    }  # fmt: skip


__all__ = [
    "Crossing", "Curves", "Cut", "Group", "Served", "Service", "capacity", "curves", "decode_seconds", "describe",
    "hold", "look_up", "paces", "prefill_tokens_per_second", "prompt_seconds", "serve",
]  # fmt: skip
