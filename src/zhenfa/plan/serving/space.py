"""The space of serving plans: formats and drafts (families), and how instances of a pool may be cut (types)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np

from zhenfa.estimate import serving, serving_cards, serving_curves
from zhenfa.estimate.rows import join, take
from zhenfa.estimate.serving_curves import Curves, Cut, Group, Paces, Service
from zhenfa.estimate.serving_engine import Engine
from zhenfa.estimate.serving_first import Supply
from zhenfa.estimate.serving_state import Points, points
from zhenfa.estimate.serving_step import Layout
from zhenfa.laws.serving import accepted_tokens
from zhenfa.plan.request import Request
from zhenfa.spec.graph import Graph
from zhenfa.spec.job import Limits
from zhenfa.spec.machine import CardPool
from zhenfa.spec.serving import CacheFormat, Instance, ServingPlan, ServingWorkload, Speculation, WeightFormat

Role = Literal["both", "decode", "prefill"]
ROLES: Final[tuple[Role, ...]] = ("both", "decode", "prefill")

CHUNKS: Final = (2048, 8192, 32768)
"""Tokens of prompts in one step that are tried."""

MOST_TENSOR: Final = 16
MOST_STAGE: Final = 512
"""Cards of one pipeline stage at most."""

NARROWEST: Final = 64
"""Columns of an expert that a card holds at least where experts are cut: narrower slices fill no tile of a kernel."""

EVERY: Final = 16
"""Attention data-parallel degrees up to which every number is tried at first; beyond, see :func:`data_degrees`."""

PIPELINES: Final = (1, 2, 4, 8)
CONTEXTS: Final = (1, 2, 4, 8)
"""Cards over which the tokens of one prompt are cut, in prefill."""

BATCH: Final = 1024
"""Requests that run at once in a data-parallel group at most: the larger default of engines."""

ROWS: Final = 1024
"""Types whose steps are evaluated at once."""

NO_ROOM: Final = "weights and one request do not fit in memory"
NO_TIER: Final = "crosses a tier whose bandwidth is undisclosed"


@dataclass(frozen=True)
class Family:
    """What instances share: pool, formats, drafts, engine."""

    pool: CardPool
    weights: WeightFormat
    cache: CacheFormat
    speculation: Speculation | None
    engine: Engine


def families(request: Request) -> Iterator[Family]:
    """Yield the families that a job allows on its machine."""
    workload, graph = request.serving, request.graph
    weights = workload.weights or (serving_cards.stored_format(graph),)
    caches: tuple[CacheFormat, ...] = workload.cache or ("bf16",)
    for pool, form, cached in itertools.product(request.formation.pools, weights, caches):
        engine = serving.engine_on(workload.engine, pool)
        for drafts in (None, *drafts_of(graph, workload, engine)):
            yield Family(pool, form, cached, drafts, engine)


def drafts_of(graph: Graph, workload: ServingWorkload, engine: Engine) -> tuple[Speculation, ...]:
    """Return how the model's own prediction layers may draft, where it has any and the job allows it."""
    if not (workload.speculation and graph.extra):
        return ()
    return tuple(
        Speculation(draft_tokens=count, accepted=float(accepted_tokens(count, engine.acceptance)))
        for count in engine.drafts
    )


def experts_of(graph: Graph) -> int:
    """Return the routed experts of a layer; 1 where there are none."""
    return max((one.experts for kind in graph.kinds for one in kind.operators), default=1) or 1


def tensor_degrees(graph: Graph, pool: CardPool, limits: Limits) -> list[int]:
    """Return the cards over which attention may be cut: divisors of the number of its heads."""
    heads = math.gcd(*(one.heads for kind in graph.kinds for one in kind.operators if one.heads)) or 1
    most = min(MOST_TENSOR, limits.max_tensor_parallel or MOST_TENSOR, pool.count)
    return [one for one in range(1, most + 1) if heads % one == 0]


def data_degrees(pool: CardPool, tensor: int, most: int, experts: int) -> list[int]:
    """Return the attention data-parallel degrees that are tried at first, up to ``most``.

    Every number up to :data:`EVERY`; beyond, those with which the cards of a stage are a multiple of 8 (of 16 from 64
    cards on, of 32 from 256 on), or share out the cards of the pool, of one of its tiers, or the experts evenly. The
    numbers between are looked at around the best of these (:func:`between`).
    """
    whole = {pool.count, experts, *(tier.size for tier in pool.tiers)}
    found = []
    for data in range(1, most + 1):
        stage = data * tensor
        grain = 8 if stage <= 64 else 16 if stage <= 256 else 32
        even = any(one >= stage and one % stage == 0 for one in whole)
        if data <= EVERY or stage % grain == 0 or even:
            found.append(data)
    return found


def expert_degrees(stage: int, experts: int, width: int) -> list[int]:
    """Return over how many cards of a stage experts may be spread, each being cut over the rest.

    Whole, one or more on every card, some of them twice where the number does not come out even (at most as many twice
    as there are); whole on a part of the cards; or every one cut over all cards.
    """
    if experts < 2:
        return [1]
    part = max(one for one in range(1, min(stage, experts) + 1) if stage % one == 0)
    found = [1, part, stage if stage <= 2 * experts else part]
    return [one for one in dict.fromkeys(found) if sliced(width, stage // one)]


def sliced(width: int, cards: int) -> bool:
    """Return whether experts of so many columns may be cut over so many cards."""
    return width % cards == 0 and width // cards >= min(NARROWEST, width)


def cuts(
    graph: Graph, pool: CardPool, limits: Limits, role: Role, chunks: tuple[int, ...] = CHUNKS,
    wanted: Wanted | None = None,
) -> Cut:  # fmt: skip
    """Return the ways to cut an instance of a pool, as arrays with a last axis of 1; ``wanted``: with these attention
    data-parallel degrees of a tensor-parallel degree only.

    Attention DP is for models with experts only: of a dense one, more instances are the same.
    """
    experts, operators = experts_of(graph), [one for kind in graph.kinds for one in kind.operators]
    width = min((one.inputs for one in operators if one.kind == "grouped_matmul"), default=1)
    cards = min(pool.count, limits.max_cards or pool.count)
    contexts = [one for one in CONTEXTS if role == "prefill" and one <= (limits.max_context_parallel or 8)] or [1]
    pipelines = [one for one in PIPELINES if one <= min(len(graph.layers), limits.max_pipeline_parallel or 8)]
    found = []
    for tensor in tensor_degrees(graph, pool, limits):
        most = min(MOST_STAGE, cards) // tensor if experts > 1 else 1
        tried = data_degrees(pool, tensor, most, experts) if wanted is None else wanted.get(tensor, ())
        for data, context, pipeline in itertools.product(tried, contexts, pipelines):
            stage = tensor * data * context
            if stage > MOST_STAGE or stage * pipeline > cards:
                continue
            for expert, chunk in itertools.product(expert_degrees(stage, experts, width), chunks):
                found.append((tensor, data, context, expert, pipeline, chunk))
    columns = np.array(found, float).reshape(-1, 6).T[..., None]
    return Cut(Layout(*columns[:5]), np.ones_like(columns[0]), columns[5], BATCH * columns[1])


Wanted = Mapping[int, Collection[int]]
"""Attention data-parallel degrees, by tensor-parallel degree."""


@dataclass(frozen=True)
class Types:
    """Instance types of one family in one role, with what their steps cost. ``cards``: of one instance."""

    family: Family
    role: Role
    service: Service
    workload: ServingWorkload

    @property
    def group(self) -> Group:
        """Return the group whose cut holds the types."""
        return self.service.decode

    @cached_property
    def cards(self) -> Any:
        """Return the cards of one instance of each type."""
        return np.asarray(self.group.cut.cards)[:, 0]

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Return what tells the types apart for a reader: TP, PP, and attention DP within a factor of two."""
        layout = self.group.cut.layout
        tensor, pipeline, data = (np.ravel(one).astype(int) for one in (layout.tensor, layout.pipeline, layout.data))
        return list(zip(tensor.tolist(), pipeline.tolist(), np.log2(data).astype(int).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.cards)

    @cached_property
    def curves(self) -> Curves:
        """Return the step costs over a grid of batches, some types at a time, which a processor's cache holds."""
        index = np.arange(len(self))
        parts = [index[first : first + ROWS] for first in range(0, max(len(self), 1), ROWS)]
        return join([serving_curves.curves(self._some(part), self.workload) for part in parts])

    @cached_property
    def tpot(self) -> Any:
        """Return TPOT of the types that decode over the grid of batches; how many instances there are is the same."""
        if self.role == "both":
            return np.asarray(self.paces(slice(None), np.ones(len(self))).tpot)
        return np.asarray(serving_curves.decode_seconds(self.service, self.curves)) / self.service.accepted

    def _some(self, index: Any) -> Service:
        """Return the service of some of the types."""
        group = replace(
            self.group, cut=take(self.group.cut, index), kept=take(self.group.kept, index),
            setup=replace(self.group.setup, layout=take(self.group.setup.layout, index)),
        )  # fmt: skip
        return replace(self.service, decode=group, prefill=group)

    @cached_property
    def supply(self) -> Supply:
        """Return what the types give as prefill."""
        return serving_curves.supply(self.group, serving_curves.prompts(self.group, self.workload))

    def counted(self, index: Any, counts: Any) -> tuple[Service, Curves]:
        """Return some of the types, so many instances of each."""
        cut = replace(take(self.group.cut, index), count=np.asarray(counts, float)[:, None])
        group = replace(self.group, cut=cut)
        return replace(self.service, decode=group, prefill=group), take(self.curves, index)

    def paces(self, index: Any, counts: Any) -> Paces:
        """Return the seconds of some of the types, so many instances of each, over the grid."""
        service, lines = self.counted(index, counts)
        return serving_curves.paces(service, self.workload, lines)

    def points(self, index: Any, counts: Any) -> Points:
        """Return what some of the types do at every batch, so many instances of each, with arrivals at random."""
        service, lines = self.counted(index, counts)
        return points(service, self.workload, serving_curves.paces(service, self.workload, lines))

    def instance(self, index: int, count: int) -> Instance:
        """Return one type as it stands in a plan; ``max_batch`` is what its memory holds."""
        cut = take(self.group.cut, index)
        layout = cut.layout

        def whole(value: Any) -> int:
            return int(np.ravel(value)[0])

        batch = None if self.role == "prefill" else max(whole(take(self.curves.capacity, index)), 1)
        return Instance(
            pool=self.family.pool.name, count=count, tensor_parallel=whole(layout.tensor),
            data_parallel=whole(layout.data), context_parallel=whole(layout.context),
            expert_parallel=whole(layout.expert), pipeline_parallel=whole(layout.pipeline), max_batch=batch,
            chunk=None if self.role == "decode" else whole(cut.chunk),
        )  # fmt: skip


def types_of(request: Request, family: Family, role: Role, tally: Counter[str], wanted: Wanted | None = None) -> Types:
    """Return the instance types of a family that hold the weights and a request; the others are tallied."""
    graph, workload, pool = request.graph, request.serving, family.pool
    # decode alone takes in no prompts: its steps leave room for those of the engine's default
    cut = cuts(graph, pool, request.job.limits, role, (family.engine.chunk,) if role == "decode" else CHUNKS, wanted)
    anyone = Instance(pool=pool.name)
    plan = ServingPlan(
        model=request.model.name, machine=request.formation.name, engine=workload.engine, weights=family.weights,
        cache=family.cache, decode=anyone, prefill=anyone if role == "decode" else None,
        speculation=family.speculation,
    )  # fmt: skip
    notes: list[str] = []
    group = _within(serving.group(graph, plan, anyone, pool, family.engine, notes, cut), request.job.limits)
    room = serving_curves.room(group, graph, workload, outputs=role != "prefill")[:, 0]
    crossed = crosses(group, cut)
    tally[NO_ROOM] += int(np.sum((room < 1) & ~crossed))
    tally[NO_TIER] += int(np.sum(crossed))
    kept = np.flatnonzero((room >= 1) & ~crossed)
    cut = take(cut, kept)
    held = take(group.kept, kept)
    group = replace(group, cut=cut, setup=replace(group.setup, layout=cut.layout), kept=held)
    tag = group.setup.cards.tag
    service = Service(graph, plan, family.engine, group, group, tag, tuple(dict.fromkeys(notes)))
    return Types(family, role, service, workload)


def _within(group: Group, limits: Limits) -> Group:
    """Return a group that may fill its cards' memory no further than the limits let it."""
    whole = group.setup.cards.dense.capacity * serving_curves.BINARY
    most = min(limits.memory.value or 1.0, 1.0 - (limits.headroom.value or 0.0) / whole) * whole
    return replace(group, usable=min(group.usable, most), tight=min(group.tight, most))


def crosses(group: Group, cut: Cut) -> Any:
    """Return which types cross a tier whose bandwidth nobody has published."""
    fabric = group.setup.fabric
    unknown = np.flatnonzero(np.isnan(fabric.bandwidths))
    inside = float(fabric.sizes[unknown[0] - 1]) if len(unknown) and unknown[0] else (0.0 if len(unknown) else np.inf)
    return (np.asarray(cut.cards)[:, 0] > max(inside, 1.0)) if len(unknown) else np.zeros(np.shape(cut.count)[0], bool)
