"""What the steps of a serving plan cost over a grid of batches, the engine's own costs on top; one plan or many.

Of many candidates, every field of a :class:`Cut` is an array with a last axis of 1, along which the grid is laid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zhenfa.estimate import serving_memory
from zhenfa.estimate.rows import along
from zhenfa.estimate.serving_engine import Engine
from zhenfa.estimate.serving_first import Supply
from zhenfa.estimate.serving_step import Layout, Load, Setup, Step, step
from zhenfa.estimate.wires import Bridge
from zhenfa.laws.arrays import Array
from zhenfa.spec.fact import Tag
from zhenfa.spec.graph import Graph
from zhenfa.spec.serving import Instance, ServingPlan, ServingWorkload

POINTS: Final = 28
"""Points of the grid of batches on which the step laws are evaluated, from one request to as many as fit."""

BINARY: Final = 1024**3 / 1e9
"""Memory is sold in GB that are GiB: 80 of an H100 are 81,559 MiB."""

CONTEXT_BYTES: Final = 2.5e9
"""What the driver's context, the collectives' buffers and captured graphs take on a card. Assumed."""

TIGHT: Final = 0.97
"""Share of the device memory that an engine can be told to use where weights leave little room. Assumed."""


@dataclass(frozen=True)
class Cut:
    """How instances are cut: of one plan floats, of many candidates arrays with a last axis of 1.

    ``count`` instances; ``chunk`` tokens of prompts in one step; at most ``most`` requests run in an instance.
    """

    layout: Layout
    count: Array
    chunk: Array
    most: Array
    overlapped: bool = False

    @property
    def cards(self) -> Array:
        """Return the cards of one instance."""
        return self.layout.stage * self.layout.pipeline


@dataclass(frozen=True)
class Group:
    """One group of instances with everything looked up. Of many candidates, ``cut`` tells them apart and ``instance``
    is any of them."""

    instance: Instance
    cut: Cut
    engine: Engine
    setup: Setup
    usable: float
    kept: serving_memory.Held
    tight: float = np.inf
    """Bytes that may be used where weights leave little room."""


@dataclass(frozen=True)
class Crossing:
    """What carries the cache of prompts, ``token`` bytes for each token, from one pool to another."""

    bridge: Bridge
    token: float

    def seconds(self, tokens: float, senders: Array, receivers: Array) -> Array:
        """Return the seconds that the cache of ``tokens`` takes from the cards of one group to those of another."""
        return self.bridge.time(tokens * self.token / np.minimum(senders, receivers))

    def rate(self, tokens: float, senders: Array, receivers: Array) -> Array:
        """Return the prompts per second whose caches cross between all ``senders`` and all ``receivers``."""
        each = self.bridge.flow(tokens * self.token)
        if np.all(np.equal(each, 0)):  # a model without a cache that grows: states alone, which are not counted
            return np.full(np.broadcast_shapes(np.shape(senders), np.shape(receivers)), np.inf)[()]
        return np.minimum(senders, receivers) / each


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
    crossing: Crossing | None = None

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
class Prompts:
    """How prompts go through steps: ``chunks`` of ``chunk`` tokens each, at most ``most`` at once in an instance.

    ``one``: a step with one prompt's chunk on an idle instance; ``full``: with as many prompts' as it takes.
    """

    chunk: Array
    chunks: Array
    seen: Array
    most: Array
    one: Step
    full: Step


@dataclass(frozen=True)
class Curves:
    """A plan's step costs over a grid of running requests per instance; the engine's costs come on top.

    ``decode``: a step of running requests alone; ``mixed``: the same with ``chunk`` tokens of each of ``together``
    prompts per data-parallel group; ``alone``: those prompts without running requests (both only where prefill and
    decode are together).
    """

    running: Any
    decode: Step
    prompts: Prompts
    mixed: Step
    alone: Step
    together: Any
    capacity: Any


def prompts(group: Group, workload: ServingWorkload) -> Prompts:
    """Return how a group takes in prompts: as many at once as a chunk and the memory of each stage hold."""
    new, groups = workload.mean_input * (1 - workload.cached_prefix), group.cut.layout.data
    budget = group.cut.chunk
    chunk = np.minimum(new, budget)
    chunks = np.ceil(new / np.asarray(budget) - 1e-9)
    seen = new / 2 + chunk / 2 + workload.mean_input * workload.cached_prefix
    held = np.floor(room(group, group.setup.graph, workload, outputs=False) / group.cut.layout.pipeline / groups)
    most = groups * np.maximum(np.minimum(np.floor(budget / chunk), held), 1.0)
    one, full = (
        step(group.setup, Load(prompts=count, chunk=chunk, prompt_context=seen)) for count in (1.0, most)
    )  # fmt: skip
    return Prompts(chunk, chunks, seen, most, one, full)


def curves(service: Service, workload: ServingWorkload) -> Curves:
    """Evaluate the step laws over a grid of batches.

    The cache of a running request holds its input and half of its output on average. Below one running request on
    average, a step runs only while there is one.
    """
    decode, room = service.decode, capacity(service, workload)
    most = np.maximum(room, 1.0)
    low = np.broadcast_to([0.01, 0.1, 0.4], (*np.shape(most)[:-1], 3))
    grid = np.concatenate([low, most ** np.linspace(0.0, 1.0, POINTS)], axis=-1)
    context = workload.mean_input + workload.mean_output / 2
    base = Load(np.maximum(grid, 1.0) / decode.cut.layout.pipeline, context, 1.0 + service.drafted)
    own = step(decode.setup, base, drafts=draft_passes(service))
    took = prompts(service.prefill, workload)
    if service.apart:
        return Curves(grid, own, took, Step(), Step(), took.most, room)
    groups = decode.cut.layout.data
    arriving = grid * service.accepted / workload.mean_decoded  # prompts for each step of running requests
    together = np.clip(arriving / groups, 1.0, took.most / groups) * groups
    wide = Load(base.sequences, context, base.queries, together, took.chunk, took.seen)
    alone = Load(prompts=together, chunk=took.chunk, prompt_context=took.seen)
    mixed = step(decode.setup, wide) if service.engine.mixed else Step()
    return Curves(grid, own, took, mixed, step(decode.setup, alone), together, room)


def draft_passes(service: Service) -> float:
    """Return the passes of a prediction layer that one step drafts with."""
    plan = service.plan
    return service.drafted if plan.speculation and plan.speculation.method != "ngram" else 0.0


def capacity(service: Service, workload: ServingWorkload) -> Any:
    """Return how many requests one decode instance holds at once: by memory, by the engine's and the plan's limits."""
    return room(service.decode, service.graph, workload)


def room(group: Group, graph: Graph, workload: ServingWorkload, *, outputs: bool = True) -> Any:
    """Return how many requests one instance of a group holds at once; ``outputs``: with what they have put out."""
    kept = 1.0 if group.engine.reserves_output else 0.5
    tokens = workload.mean_input + (kept * workload.mean_output if outputs else 0.0)
    active = CONTEXT_BYTES + group.cut.chunk * graph.hidden * 2.0 * serving_memory.ACTIVATION_FEATURES
    counted = 0.0 * active if group.engine.static_memory else active
    held = np.asarray(serving_memory.capacity(group.kept, group.usable - counted, tokens))
    # users raise the engine's share of the memory before they give up
    whole = min(group.tight, group.setup.cards.dense.capacity * BINARY * TIGHT)
    tight = serving_memory.capacity(group.kept, whole - active, tokens)
    return np.minimum(np.where(held < 1, tight, held), group.cut.most)


@dataclass(frozen=True)
class Paces:
    """A plan's seconds over the grid of running requests per instance, the engine's costs included.

    ``tpot`` per output token; ``own`` until a first token at least; ``alone`` of a step without prompts; ``prompt`` of
    one prompt's prefill, alone. ``rate`` prompts/s of all instances while there is nothing else to do, ``bound``
    requests/s at most. ``given``: what the instances of prefill give, where they are apart.
    """

    running: Any
    tpot: Any
    own: Any
    alone: Any
    prompt: Any
    rate: Any
    bound: Any
    capacity: Any
    given: Supply | None = None


def paces(service: Service, workload: ServingWorkload, lines: Curves) -> Paces:
    """Return a plan's seconds over the grid."""
    return _apart(service, workload, lines) if service.apart else _together(service, workload, lines)


def decode_seconds(service: Service, lines: Curves) -> Any:
    """Return the seconds of a step without prompts, over the grid."""
    cut = service.decode.cut
    own = lines.running / cut.layout.data
    captured = not service.plan.eager
    return np.asarray(service.engine.time(lines.decode, own, captured=captured, overlapped=cut.overlapped))


def prompt_seconds(service: Service, lines: Curves) -> Any:
    """Return by how much one prompt delays the running requests of aggregated instances, over the grid."""
    engine, layout = service.engine, service.decode.cut.layout
    if engine.mixed:
        own = lines.running / layout.data
        longer = np.asarray(engine.time(lines.mixed, own, captured=False)) - decode_seconds(service, lines)
    else:
        longer = _alone_seconds(service, lines)
    return np.maximum(longer, 0.0) * lines.prompts.chunks / lines.together / layout.pipeline


def _alone_seconds(service: Service, lines: Curves) -> Any:
    own = lines.together / service.prefill.cut.layout.data
    return np.asarray(service.engine.time(lines.alone, own, captured=False)) + 0.0 * lines.running


def _one_seconds(group: Group, took: Prompts) -> Any:
    return np.asarray(group.engine.time(took.one, 1.0, captured=False))


def _full_seconds(group: Group, took: Prompts) -> Any:
    """Return the seconds of a step full of prompts, alone."""
    return np.asarray(group.engine.time(took.full, took.most / group.cut.layout.data, captured=False))


def admitted(workload: ServingWorkload, count: Array, room: Array) -> Any:
    """Return how many requests that come at once one instance admits."""
    return np.minimum((workload.concurrency or workload.requests or 1.0) / count, room)


def _together(service: Service, workload: ServingWorkload, lines: Curves) -> Paces:
    """Prefill and decode on the same instances: every prompt delays all running requests."""
    engine, cut, took = service.engine, service.decode.cut, lines.prompts
    alone, added = decode_seconds(service, lines), prompt_seconds(service, lines)
    tpot = alone / service.accepted + lines.running / workload.mean_decoded * added
    longer = alone + added * lines.together / took.chunks if engine.mixed else _alone_seconds(service, lines)
    stages = cut.layout.pipeline
    own = engine.entry + longer * (took.chunks + stages - 1) / stages
    half = admitted(workload, cut.count, lines.capacity) / 2.0
    beside = along(half, lines.running, alone - alone[..., :1]) if engine.mixed else 0.0
    rate = took.most * stages / (took.chunks * (_full_seconds(service.decode, took) + beside)) * cut.count
    prompt = _one_seconds(service.decode, took) * took.chunks
    return Paces(lines.running, tpot, own, alone, prompt, rate, np.full_like(rate, np.inf), lines.capacity)


def supply(group: Group, took: Prompts) -> Supply:
    """Return what a group of instances gives that does nothing but prefill: as many prompts at once as fit, or one
    where the others only lengthen its steps."""
    one, full = _one_seconds(group, took), _full_seconds(group, took)
    pays = took.most * one > full
    slots, full = np.where(pays, took.most, 1.0), np.where(pays, np.maximum(full, one), one)
    return Supply(group.cut, slots, one, full, took.chunks)


def _apart(service: Service, workload: ServingWorkload, lines: Curves) -> Paces:
    """Prefill on instances of its own, which bound the rate of requests, as does the bridge that the caches cross."""
    alone = decode_seconds(service, lines)
    given = supply(service.prefill, lines.prompts)
    first, bound = first_apart(service, workload, given, service.decode.cut)
    tpot = alone / service.accepted
    rate = given.cut.count * given.rate
    return Paces(
        lines.running, tpot, first + 0.0 * alone, alone, given.prompt, rate, bound, lines.capacity, given,
    )  # fmt: skip


def first_apart(service: Service, workload: ServingWorkload, given: Supply, target: Cut) -> tuple[Any, Any]:
    """Return the seconds to the first token without waiting, and the requests/s at most, where prefill is apart."""
    first = before_first(service, workload, given.cut, target) + given.seconds
    bound = given.cut.count * given.rate
    if service.crossing is None:
        return first, bound
    source = given.cut
    senders, receivers = source.count * source.cards, target.count * target.cards
    return first, np.minimum(bound, service.crossing.rate(workload.mean_input, senders, receivers))


def before_first(service: Service, workload: ServingWorkload, source: Cut, target: Cut) -> Any:
    """Return the seconds to the first token beside prefill and waits, where prefill is apart.

    Counts the bridge between pools with the cache of the whole prompt after its prefill. Omits that layers could be
    sent while later ones are computed.
    """
    fixed = service.engine.entry + service.engine.handover
    if service.crossing is None:
        return fixed
    senders, receivers = group_cards(source.layout), group_cards(target.layout)
    return fixed + service.crossing.seconds(workload.mean_input, senders, receivers)


def group_cards(layout: Layout) -> Array:
    """Return the cards over which the cache of one request is spread."""
    return np.multiply(layout.tensor, layout.context) * layout.pipeline
