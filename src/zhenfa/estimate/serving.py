"""A serving plan under a load: time per output token, time to the first one, and throughput in the steady state.

Running requests and requests in prefill share the load by Little's law. Every step law is evaluated once, as arrays
over a grid of batches; the steady state is where the grid meets the load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from zhenfa.errors import InputError
from zhenfa.estimate import serving_cards, serving_engine, serving_first, serving_memory, wires
from zhenfa.estimate.serving_engine import Engine
from zhenfa.estimate.serving_first import FirstToken
from zhenfa.estimate.serving_step import Layout, Load, Setup, Step, step
from zhenfa.spec.fact import Tag, weakest
from zhenfa.spec.graph import Graph
from zhenfa.spec.machine import CardPool, Formation
from zhenfa.spec.serving import Instance, ServingPlan, ServingWorkload

POINTS: Final = 28
"""Points of the grid of batches on which the step laws are evaluated."""

FINE: Final = 600
"""Points of the same grid on which the state is looked for."""

BINARY: Final = 1024**3 / 1e9
"""Memory is sold in GB that are GiB: 80 of an H100 are 81,559 MiB."""

CONTEXT_BYTES: Final = 2.5e9
"""What the driver's context, the collectives' buffers and captured graphs take on a card. Assumed."""

TIGHT: Final = 0.97
"""Share of the device memory that an engine can be told to use where weights leave little room. Assumed."""

ROUNDS: Final = 3
"""Times that wait and load are adjusted to each other."""

Grid = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """One group of instances with everything looked up."""

    instance: Instance
    setup: Setup
    usable: float
    kept: serving_memory.Held


@dataclass(frozen=True)
class Service:
    """A serving plan with everything looked up. ``prefill`` is ``decode`` where they are not apart."""

    graph: Graph
    plan: ServingPlan
    engine: Engine
    prefill: Group
    decode: Group
    tag: Tag
    assumptions: tuple[str, ...]

    @property
    def apart(self) -> bool:
        """Return whether prefill has instances of its own."""
        return self.plan.prefill is not None

    @property
    def accepted(self) -> float:
        """Return the tokens that a step yields per running request."""
        return self.plan.speculation.accepted if self.plan.speculation else 1.0

    @property
    def drafted(self) -> float:
        """Return the tokens that a step verifies beside the one that is sure."""
        return float(self.plan.speculation.draft_tokens) if self.plan.speculation else 0.0


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
    for group in filter(None, (plan.prefill, plan.decode)):
        if group.pool not in pools:
            raise InputError(f"the plan uses a pool {group.pool!r}.", hint=f"pools: {', '.join(pools)}.")
    pool = pools[plan.decode.pool]
    known = engine or serving_engine.coefficients(serving_engine.find(plan.engine, pool.maker), pool.accelerator)
    notes: list[str] = []
    decode = _group(graph, plan, plan.decode, pool, known, notes)
    prefill = _group(graph, plan, plan.prefill, pools[plan.prefill.pool], known, notes) if plan.prefill else decode
    tag = weakest(decode.setup.cards.tag, prefill.setup.cards.tag, known.tag)
    return Service(graph, plan, known, prefill, decode, tag, tuple(dict.fromkeys(notes)))


def _group(
    graph: Graph, plan: ServingPlan, instance: Instance, pool: CardPool, engine: Engine, notes: list[str]
) -> Group:
    cards = serving_cards.look_up(
        pool, graph, plan.weights, plan.cache, attention=plan.attention_weights, engine=engine.kernels
    )
    fabric, words = wires.fabric(pool)
    notes.extend((*cards.dense.assumptions, *cards.experts.assumptions, *words))
    layout = Layout(
        float(instance.tensor_parallel), float(instance.data_parallel), float(instance.context_parallel),
        float(instance.expert_parallel), float(instance.pipeline_parallel),
    )  # fmt: skip
    setup = Setup(graph, cards, fabric, layout, imbalance=engine.imbalance)
    return Group(
        instance, setup, cards.dense.capacity * BINARY * engine.memory, serving_memory.held(graph, cards, layout)
    )


@dataclass(frozen=True)
class Curves:
    """A plan's step costs over a grid of running requests per instance; the engine's costs come on top.

    ``decode``: a step of running requests alone; ``mixed``: the same with ``chunk`` tokens of each of ``together``
    prompts per data-parallel group; ``alone``: those prompts without running requests. ``chunks`` per prompt.
    ``one``: one prompt's chunk on an idle instance; ``full``: as many prompts' as a step takes, ``most``.
    """

    running: Grid
    decode: Step
    mixed: Step
    alone: Step
    one: Step
    full: Step
    chunks: float
    together: Grid
    most: float
    capacity: float


def curves(service: Service, workload: ServingWorkload) -> Curves:
    """Evaluate the step laws over a grid of batches.

    The cache of a running request holds its input and half of its output on average. Below one running request on
    average, a step runs only while there is one.
    """
    plan, engine, decode = service.plan, service.engine, service.decode
    room = capacity(service, workload)
    pipeline = decode.instance.pipeline_parallel
    most = max(room, 1.0)
    grid = np.unique(np.concatenate([[0.01, 0.1, 0.4], np.geomspace(1.0, most, POINTS)]))
    context = workload.mean_input + workload.mean_output / 2
    queries = 1.0 + service.drafted
    drafts = service.drafted if plan.speculation and plan.speculation.method != "ngram" else 0.0
    base = Load(sequences=np.maximum(grid, 1.0) / pipeline, context=context, queries=queries)
    new, groups = workload.mean_input * (1 - workload.cached_prefix), float(service.prefill.instance.data_parallel)
    budget = float(service.prefill.instance.chunk or engine.chunk)
    chunk = min(new, budget)
    chunks = float(np.ceil(new / budget - 1e-9))
    arriving = grid * service.accepted / workload.mean_decoded  # prompts for each step of running requests
    together = np.clip(arriving / groups, 1.0, max(np.floor(budget / chunk), 1.0))
    seen = new / 2 + chunk / 2 + workload.mean_input * workload.cached_prefix
    prompts = together * groups
    wide = Load(base.sequences, context, queries, prompts, chunk, seen)
    alone = Load(prompts=prompts, chunk=chunk, prompt_context=seen)
    one = Load(prompts=1.0, chunk=chunk, prompt_context=seen)
    most = groups * max(float(np.floor(budget / chunk)), 1.0)
    full = Load(prompts=most, chunk=chunk, prompt_context=seen)
    return Curves(
        grid, step(decode.setup, base, drafts=drafts), step(decode.setup, wide), step(service.prefill.setup, alone),
        step(service.prefill.setup, one), step(service.prefill.setup, full), chunks, together * groups, most, room,
    )  # fmt: skip


def capacity(service: Service, workload: ServingWorkload) -> float:
    """Return how many requests one decode instance holds at once: by memory, by the engine's and the plan's limits."""
    decode = service.decode
    kept = 1.0 if service.engine.reserves_output else 0.5
    tokens = workload.mean_input + kept * workload.mean_output
    chunk = float(decode.instance.chunk or service.engine.chunk)
    active = CONTEXT_BYTES + chunk * service.graph.hidden * 2.0 * serving_memory.ACTIVATION_FEATURES
    active = 0.0 if service.engine.static_memory else active
    room = float(serving_memory.capacity(decode.kept, decode.usable - active, tokens))
    if room < 1:  # users raise the engine's share of the memory and cut its chunks before they give up
        tight = decode.setup.cards.dense.capacity * BINARY * TIGHT
        room = float(serving_memory.capacity(decode.kept, tight, tokens))
    limit = decode.instance.max_batch or service.engine.max_batch * decode.instance.data_parallel
    return min(room, float(limit))


def serve(service: Service, workload: ServingWorkload, *, drawn: Curves | None = None) -> Served:
    """Return what a plan does under a load, in the steady state.

    Raises :class:`InputError` where the weights or one request do not fit.
    """
    lines = drawn or curves(service, workload)
    if lines.capacity < 1:
        raise InputError(
            f"{service.plan.model} in {service.plan.weights} with one request of {workload.mean_input:.0f} tokens does "
            f"not fit on {service.decode.instance.cards} cards of {service.decode.setup.cards.dense.name}.",
            hint="more cards per instance, a narrower weight or cache format, or shorter requests.",
        )
    return _apart(service, workload, lines) if service.apart else _together(service, workload, lines)


def decode_seconds(service: Service, lines: Curves) -> Grid:
    """Return the seconds of a step without prompts, over the grid."""
    instance = service.decode.instance
    own = lines.running / instance.data_parallel
    captured, overlapped = not service.plan.eager, instance.two_batch_overlap
    return np.asarray(service.engine.time(lines.decode, own, captured=captured, overlapped=overlapped))


def prompt_seconds(service: Service, lines: Curves) -> Grid:
    """Return by how much one prompt delays the running requests of aggregated instances, over the grid."""
    engine, instance = service.engine, service.decode.instance
    if engine.mixed:
        own = lines.running / instance.data_parallel
        longer = np.asarray(engine.time(lines.mixed, own, captured=False)) - decode_seconds(service, lines)
    else:
        longer = _alone_seconds(service, lines)
    return np.maximum(longer, 0.0) * lines.chunks / lines.together / instance.pipeline_parallel


def _alone_seconds(service: Service, lines: Curves) -> Grid:
    own = lines.together / service.prefill.instance.data_parallel
    return np.asarray(service.engine.time(lines.alone, own, captured=False)) + 0.0 * lines.running


def _full_seconds(service: Service, lines: Curves) -> float:
    """Return the seconds of a step full of prompts, alone."""
    own = lines.most / service.prefill.instance.data_parallel
    return float(service.engine.time(lines.full, own, captured=False))


def _together(service: Service, workload: ServingWorkload, lines: Curves) -> Served:
    """Prefill and decode on the same instances: every prompt delays all running requests."""
    engine, instance = service.engine, service.decode.instance
    alone = decode_seconds(service, lines)
    added = prompt_seconds(service, lines)
    tpot = alone / service.accepted + lines.running / workload.mean_decoded * added
    longer = alone + added * lines.together / lines.chunks if engine.mixed else _alone_seconds(service, lines)
    stages = instance.pipeline_parallel
    own = engine.entry + longer * (lines.chunks + stages - 1) / stages
    full = _full_seconds(service, lines)
    beside = float(np.interp(_share_of(workload, lines, instance.count) / 2.0, lines.running, alone - alone[0]))
    rate = lines.most * stages / (lines.chunks * (full + (beside if engine.mixed else 0.0)))
    return _meet(service, workload, lines, tpot, own, alone, np.inf, rate=rate * instance.count)


def _share_of(workload: ServingWorkload, lines: Curves, count: int) -> float:
    """Return how many requests that come at once one instance admits."""
    return min((workload.concurrency or workload.requests or 1.0) / count, lines.capacity)


def _apart(service: Service, workload: ServingWorkload, lines: Curves) -> Served:
    """Prefill on instances of its own, which bound the rate of requests."""
    alone = decode_seconds(service, lines)
    tpot = alone / service.accepted
    stages, count = service.prefill.instance.pipeline_parallel, service.prefill.instance.count
    one = float(service.engine.time(lines.one, 1.0, captured=False))
    seconds = (
        np.asarray(
            service.engine.time(lines.alone, lines.together / service.prefill.instance.data_parallel, captured=False)
        )
        + 0 * alone
    )
    rate = float(np.max(count * stages * lines.together / (lines.chunks * seconds)))
    rate = max(rate, count * stages * lines.most / (lines.chunks * _full_seconds(service, lines)))
    first = service.engine.entry + service.engine.handover + one * (lines.chunks + stages - 1) / stages
    return _meet(service, workload, lines, tpot, first + 0.0 * alone, alone, rate, rate=rate)


def _meet(
    service: Service, workload: ServingWorkload, lines: Curves, tpot: Grid, own: Grid, alone: Grid, bound: float, *,
    rate: float,
) -> Served:  # fmt: skip
    """Find where running, prefilling and waiting requests make up the load; ``bound`` requests/s at most.

    ``own`` seconds until a first token at least; ``rate`` prompts/s of all instances while there is nothing else to do.
    """
    count = service.decode.instance.count
    wait: Grid = np.zeros_like(alone)
    for _ in range(ROUNDS):  # the wait depends on the load that leaves room for it
        batch, waiting = _balance(service, workload, lines, tpot, own + wait, bound)
        pace = float(np.interp(batch, lines.running, tpot))
        through = min(count * batch / (workload.mean_decoded * pace), bound)
        queue = serving_first.prompt_wait(
            through, own - service.engine.entry, np.maximum(rate * own, 1.0), requests=workload.concurrency,
            away=workload.mean_decoded * pace,
        )  # fmt: skip
        polled = 0.0 if service.apart else (0.5 + service.engine.polls) * alone
        wait = np.asarray(polled + queue)
    least, later = (float(np.interp(batch, lines.running, one)) for one in (own, wait))
    share = workload.first_share
    admitted = count * _share_of(workload, lines, count)
    first = FirstToken(
        least, later + waiting / through * (1.0 - share / 2.0),
        serving_first.wave(admitted, rate, service.engine.front) if share else 0.0, share,
    )  # fmt: skip
    return Served(
        tpot=pace, ttft=first.mean, iteration=float(np.interp(batch, lines.running, alone)),
        running=batch, waiting=waiting, capacity=lines.capacity,
        prefill=float(service.engine.time(lines.one, 1.0, captured=False)) * lines.chunks, prefill_rate=bound,
        requests_per_second=through, workload=workload, cards=service.plan.cards,
        decode_cards=count * service.decode.instance.cards, first=first,
    )  # fmt: skip


def _balance(
    service: Service, workload: ServingWorkload, lines: Curves, tpot: Grid, first: Grid, bound: float
) -> tuple[float, float]:
    """Return running requests per instance, and those in all that wait for room."""
    count = service.decode.instance.count
    at = np.interp(np.linspace(0, lines.running.size - 1, FINE), np.arange(lines.running.size), lines.running)
    pace, start = (np.interp(at, lines.running, values) for values in (tpot, first))
    rate = count * at / (workload.mean_decoded * pace)
    if rate[-1] > bound:
        last = max(int(np.searchsorted(rate, bound)), 1)
        at, pace, start, rate = at[: last + 1], pace[: last + 1], start[: last + 1], np.minimum(rate[: last + 1], bound)
        at[-1] = min(at[-1], bound * workload.mean_decoded * pace[-1] / count)
    present = count * at + rate * start
    if workload.request_rate is not None:
        return _inverse(workload.request_rate, rate, at), 0.0
    load = float(workload.concurrency or workload.requests or 1.0)
    return _inverse(load, present, at), max(load - float(present[-1]), 0.0)


def _inverse(load: float, present: Grid, at: Grid) -> float:
    """Return the batch at which ``load`` requests are present; below the grid, in proportion."""
    if load <= present[0]:
        return float(at[0] * load / present[0])
    return float(np.interp(load, present, at))


def hold(service: Service, workload: ServingWorkload, running: float) -> Served:
    """Return what a plan does with ``running`` requests held in every decode instance and no prompts coming in."""
    pipeline = service.decode.instance.pipeline_parallel
    drafts = service.drafted if service.plan.speculation and service.plan.speculation.method != "ngram" else 0.0
    context = workload.mean_input + workload.mean_output / 2
    cost = step(
        service.decode.setup, Load(sequences=running / pipeline, context=context, queries=1.0 + service.drafted),
        drafts=drafts,
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
        tpot=tpot, ttft=0.0, iteration=spent, running=running, waiting=0.0, capacity=capacity(service, workload),
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
