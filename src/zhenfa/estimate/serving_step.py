"""One step of a serving engine on one instance: every operator of the model through the kernel laws, arrays alike.

A step carries ``sequences`` running requests, each with ``queries`` new tokens, and prompts in chunks. What a card gets
of it follows from the layout. Seconds are kept apart by what they wait for, and kernels are counted, so that an
engine's own costs can be laid on top (:mod:`zhenfa.estimate.serving_engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Final

import numpy as np

from zhenfa.estimate import kernels
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.serving_cards import Cards
from zhenfa.laws import communication, expert_exchange, serving
from zhenfa.laws.arrays import Array
from zhenfa.laws.communication import Fabric
from zhenfa.spec.graph import Graph, Operator

BYTES_16: Final = 2.0
STATE_BYTES: Final = 4.0
SELECTED_HEADS: Final = 64
"""Query heads that NVIDIA's kernels of latent attention over selected keys work on at a time: fewer are padded.
Source: FlashMLA's sparse kernels, as vLLM and SGLang call them."""
DISPATCH_BYTES: Final = 1.0
"""Bytes per feature of a dispatched token: engines with a dispatch of their own send 8-bit numbers."""


@dataclass(frozen=True)
class Layout:
    """How one pipeline stage of an instance is cut; any field may be an array over candidates."""

    tensor: Array = 1.0
    data: Array = 1.0
    context: Array = 1.0
    expert: Array = 1.0
    pipeline: Array = 1.0

    @property
    def stage(self) -> Array:
        """Return the cards of a stage."""
        return np.multiply(np.multiply(self.tensor, self.data), self.context)


@dataclass(frozen=True)
class Load:
    """What one step carries, over the whole instance; arrays that broadcast.

    ``sequences`` decode ``queries`` tokens each over ``context`` cached ones. ``prompts`` sequences get ``chunk`` more
    tokens of their prompt, the last of ``prompt_context``.
    """

    sequences: Array = 0.0
    context: Array = 1.0
    queries: Array = 1.0
    prompts: Array = 0.0
    chunk: Array = 1.0
    prompt_context: Array = 1.0

    @property
    def decoded(self) -> Array:
        """Return the tokens of running requests."""
        return np.multiply(self.sequences, self.queries)

    @property
    def prefilled(self) -> Array:
        """Return the tokens of prompts."""
        return np.multiply(self.prompts, self.chunk)

    @property
    def tokens(self) -> Array:
        """Return all tokens of the step."""
        return np.add(self.decoded, self.prefilled)


@dataclass(frozen=True)
class Step:
    """Seconds of one step on one card by what they wait for, and what an engine is charged for by the piece."""

    kernels: Array = 0.0
    reduce: Array = 0.0
    exchange: Array = 0.0
    send: Array = 0.0
    launches: Array = 0.0
    collectives: Array = 0.0
    exchanges: Array = 0.0
    layers: Array = 0.0

    def plus(self, other: Step, times: Array = 1.0) -> Step:
        """Return the sum with ``times`` another step."""
        return Step(*(getattr(self, one.name) + times * getattr(other, one.name) for one in fields(self)))

    @property
    def total(self) -> Array:
        """Return the seconds without an engine's own costs and without overlap."""
        return self.kernels + self.reduce + self.exchange + self.send


@dataclass(frozen=True)
class Setup:
    """A model on the cards of one instance: what does not change from step to step."""

    graph: Graph
    cards: Cards
    fabric: Fabric
    layout: Layout
    skew: float = 0.0
    imbalance: float = 0.0


def step(setup: Setup, load: Load, *, drafts: Array = 0.0) -> Step:
    """Return the cost of one step through all layers.

    Counts every operator of stem, layers and head; the all-reduce after each row-split matmul; dispatch and combine
    where attention is data-parallel; ``drafts`` passes of the model's prediction layer over the running requests.
    Omits the engine's own costs and overlap. With a pipeline, it is one micro-batch's way through all stages: give the
    load of the micro-batch.
    """
    total = _block(setup, setup.graph.stem, load).plus(Step(layers=float(len(setup.graph.layers))))
    for index, kind in enumerate(setup.graph.kinds):
        total = total.plus(_block(setup, kind.operators, load), float(setup.graph.layers.count(index)))
    total = total.plus(_block(setup, setup.graph.head, _sampled(load)))
    total = total.plus(_sampling(setup, load))
    if setup.graph.extra and np.any(np.asarray(drafts) > 0):
        one = Load(sequences=load.sequences, context=load.context)
        total = total.plus(_block(setup, setup.graph.extra, one), drafts)
    hops = np.subtract(setup.layout.pipeline, 1.0)
    moved = load.tokens * setup.graph.hidden * BYTES_16 / setup.layout.data
    away = np.where(hops > 0, communication.point_to_point_time(moved, setup.layout.stage, setup.fabric), 0.0)
    return total.plus(Step(send=away), hops)


def _sampled(load: Load) -> Load:
    """Return the part of a step that reaches the head: new tokens of running requests, the last one of each prompt."""
    return Load(sequences=np.add(load.decoded, load.prompts), context=load.context)


def _sampling(setup: Setup, load: Load) -> Step:
    rows = _sampled(load).sequences / setup.layout.data
    return Step(kernels=kernels.sample(setup.cards.head, rows, float(setup.graph.vocabulary)), launches=2.0)


def _block(setup: Setup, operators: Sequence[Operator], load: Load) -> Step:
    total = Step()
    for _, one in each(setup, operators, load):
        total = total.plus(one)
    return total


def each(setup: Setup, operators: Sequence[Operator], load: Load) -> Iterator[tuple[Operator, Step]]:
    """Yield the operators of a block as engines run them, with what each costs once; the routed experts as one."""
    routed = [one for one in operators if one.kind == "grouped_matmul"]
    for operator in fused(tuple(operators)):
        match operator.kind:
            case "matmul":
                yield operator, _matmul(setup, operator, load)
            case "attention":
                yield operator, _attention(setup, operator, load)
            case "scan":
                yield operator, _scan(setup, operator, load)
            case "embedding":
                here = load.tokens / setup.layout.data
                yield operator, Step(kernels.embed(setup.cards.head, here, operator.outputs), launches=1.0)
            case "norm" | "elementwise" | "convolution":
                yield operator, _streaming(setup, operator, load)
            case "grouped_matmul":
                continue
    if routed:
        yield replace(routed[0], name="experts"), _experts(setup, routed, load)


def blocks(setup: Setup, load: Load, drafts: float = 0.0) -> Iterator[tuple[float, Sequence[Operator], Load]]:
    """Yield how often each block of operators runs in a step, the block, and what it carries."""
    graph = setup.graph
    yield 1.0, graph.stem, load
    for index, kind in enumerate(graph.kinds):
        yield float(graph.layers.count(index)), kind.operators, load
    yield 1.0, graph.head, _sampled(load)
    if graph.extra and drafts > 0:
        yield drafts, graph.extra, Load(sequences=load.sequences, context=load.context)


@cache
def fused(operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """Return the operators as serving engines run them: projections that share an input are one matmul.

    So are the norms of latent queries and keys. Only what is not split is fused: the down-projections of MLA.
    """
    kept: list[Operator] = []
    for operator in operators:
        part = operator.name.partition(".")[0]
        same = next(
            (at for at, one in enumerate(kept) if _fusible(one, operator) and one.name.partition(".")[0] == part), None
        )
        if same is None:
            kept.append(operator)
            continue
        one = kept[same]
        inputs = one.inputs + operator.inputs if operator.kind == "norm" else one.inputs
        kept[same] = replace(one, inputs=inputs, outputs=one.outputs + operator.outputs)
    return tuple(kept)


def _fusible(one: Operator, other: Operator) -> bool:
    if one.kind != other.kind or one.shard != "none" or other.shard != "none" or "." not in one.name:
        return False
    return one.kind == "norm" or (one.kind == "matmul" and one.inputs == other.inputs)


def _rows(setup: Setup, load: Load) -> Array:
    """Return the tokens of one card outside the experts."""
    return load.tokens / (setup.layout.data * setup.layout.context)


def _chip(setup: Setup, operator: Operator) -> Chip:
    if operator.shard == "vocabulary" or operator.name.endswith("router"):
        return setup.cards.head
    feed_forward = operator.name.startswith(("mlp", "shared", "experts"))
    return setup.cards.dense if feed_forward or not setup.cards.moe_only else setup.cards.attention


def _matmul(setup: Setup, operator: Operator, load: Load) -> Step:
    chip, rows = _chip(setup, operator), _rows(setup, load)
    tensor = setup.layout.tensor
    if operator.name.endswith("latent_up"):
        return _latent_up(setup, operator, load)
    outputs = operator.outputs / tensor if operator.shard in {"column", "heads", "vocabulary"} else operator.outputs
    inputs = operator.inputs / tensor if operator.shard == "row" else operator.inputs
    work = Step(kernels.matmul(chip, rows, inputs, outputs), launches=1.0)
    return work.plus(_reduce(setup, rows * operator.outputs)) if operator.shard == "row" else work


def _latent_up(setup: Setup, operator: Operator, load: Load) -> Step:
    """Keys and values out of the latent for prompts; absorbed into query and output for running requests."""
    chip, layout = _chip(setup, operator), setup.layout
    core = next(
        one for kind in setup.graph.kinds for one in kind.operators if one.latent and one.latent == operator.inputs
    )
    heads = core.heads / layout.tensor
    rows = load.decoded / (layout.data * layout.context)
    key = operator.outputs / core.heads - core.value_dim
    into = kernels.matmul(chip, rows, key, core.latent, groups=heads)
    out = kernels.matmul(chip, rows, core.latent, core.value_dim, groups=heads)
    read = load.prompts * load.prompt_context / (layout.data * layout.context)
    whole = kernels.matmul(chip, read, operator.inputs, operator.outputs / layout.tensor)
    running, prompting = _some(load.decoded), _some(load.prefilled)
    return Step(running * (into + out) + prompting * whole, launches=2.0 * running + prompting)


def _some(amount: Array) -> Any:
    """Return 1 where there is any, else 0."""
    return np.where(np.greater(amount, 0), 1.0, 0.0)


def _reduce(setup: Setup, elements: Array) -> Step:
    """All-reduce of a row-split matmul's output over the tensor-parallel cards."""
    seconds = _all_reduce(elements * BYTES_16, setup.layout.tensor, setup.fabric)
    return Step(reduce=seconds, collectives=np.where(np.greater(setup.layout.tensor, 1), 1.0, 0.0))


def _all_reduce(volume: Array, group: Array, fabric: Fabric) -> Array:
    """Return the faster of the library's all-reduce and the engine's own kernel, whose start the engine is charged."""
    library = communication.all_reduce_time(volume, group, 1.0, fabric)
    direct = communication.direct_all_reduce_time(volume, group, 1.0, fabric, start=0.0)
    reachable = np.less_equal(group, fabric.sizes[fabric.outermost[0]])  # peers' memory, so no network card between
    return np.where(reachable, np.minimum(library, direct), library)


def _attention(setup: Setup, operator: Operator, load: Load) -> Step:
    chip, layout = setup.cards.attention, setup.layout
    split = layout.tensor if operator.shard == "heads" else 1.0
    window = np.inf if operator.window is None else float(operator.window)
    heads = np.maximum(operator.heads / split, 1.0)
    kv_heads = np.maximum(operator.kv_heads / split, 1.0)
    groups = layout.data * layout.context
    running, prompting = _some(load.decoded), _some(load.prefilled)
    latent = float(operator.cache) if operator.latent else 0.0
    selected = bool(operator.latent) and operator.window is not None  # each query has keys of its own
    if selected and chip.maker == "NVIDIA":
        heads = np.ceil(heads / SELECTED_HEADS) * SELECTED_HEADS

    def cached(sequences: Array, context: Array, queries: Array) -> Array:
        return kernels.attention_decode(
            chip, np.maximum(sequences / groups, 1e-3), context, heads, operator.key_dim, operator.value_dim,
            kv_heads=kv_heads, queries=queries, window=window, latent=latent, cache_bytes=setup.cards.cache_bytes,
        )  # fmt: skip

    decode = cached(load.sequences, load.context, load.queries)
    if selected:
        prefill = cached(load.prefilled, load.prompt_context, 1.0)
    else:
        prefill = kernels.attention_prefill(
            chip, np.maximum(load.chunk / layout.context, 1.0), load.prompt_context, heads, operator.key_dim,
            operator.value_dim, kv_heads=heads if operator.latent else kv_heads,
            sequences=np.maximum(load.prompts / layout.data, 1e-3), window=window,
        )  # fmt: skip
    new = load.tokens / groups * (operator.inputs + operator.outputs) * BYTES_16 / split
    place = kernels.stream(chip, new)  # rotate and write to the cache
    return Step(running * decode + prompting * prefill + place, launches=running + prompting + 1.0)


def _scan(setup: Setup, operator: Operator, load: Load) -> Step:
    chip, layout = setup.cards.attention, setup.layout
    heads = operator.heads / layout.tensor
    running, prompting = _some(load.decoded), _some(load.prefilled)
    tokens, here = load.prefilled / layout.data, load.sequences / layout.data
    kept = kernels.scan_step(chip, here, heads, operator.key_dim, operator.value_dim, state_bytes=STATE_BYTES)
    whole = kernels.scan(
        chip, np.maximum(tokens, 1.0), heads, operator.key_dim, operator.value_dim,
        sequences=np.maximum(load.prompts / layout.data, 1.0),
    )  # fmt: skip
    return Step(running * kept + prompting * whole, launches=running + prompting)


def _streaming(setup: Setup, operator: Operator, load: Load) -> Step:
    """Norms and element-wise operators. A residual is added in the kernel of the norm that follows: no launch."""
    if operator.shard == "expert":  # within the expert layer
        return Step()
    chip, split = setup.cards.attention, 1.0 if operator.shard == "none" else setup.layout.tensor
    moved = _rows(setup, load) * (operator.inputs + operator.outputs) * BYTES_16 / split
    seconds = kernels.stream(chip, moved)
    if operator.name.endswith("residual"):
        return Step(seconds - kernels.stream(chip, 0.0 * np.asarray(moved)))
    return Step(seconds, launches=1.0)


def _experts(setup: Setup, routed: Sequence[Operator], load: Load) -> Step:
    """The routed experts of one layer on the busiest card, and what moves to them and back."""
    layout, up, down = setup.layout, routed[0], routed[-1]
    cut = layout.stage / layout.expert
    held = np.ceil(up.experts / layout.expert - 1e-9)  # some twice where they do not come out even
    busiest = serving.busiest_share(load.tokens * up.active_experts, layout.expert, skew=setup.imbalance)
    copies = load.tokens * up.active_experts / layout.expert * busiest
    apart = np.greater(layout.data, 1) & np.greater(layout.expert, 1)
    arriving = np.where(apart, np.minimum(copies, load.tokens), load.tokens)
    work = kernels.expert_layer(
        setup.cards.experts, arriving, copies, held, float(up.inputs), down.inputs / cut,
        gated=up.outputs >= 2 * down.inputs, skew=setup.skew,
    )  # fmt: skip
    return Step(kernels=work * _some(load.tokens), launches=4.0).plus(_exchange(setup, up, load))


def _exchange(setup: Setup, up: Operator, load: Load) -> Step:
    """Bring tokens to the experts and sums back: a reduction within a tensor group, else dispatch and combine."""
    layout, fabric = setup.layout, setup.fabric
    wide = load.tokens * up.inputs
    group = layout.stage
    own = load.tokens / (layout.data * layout.tensor * layout.context)
    way = (own, float(up.inputs), float(up.active_experts), layout.expert, 1.0, fabric)
    sent = _least(expert_exchange.dispatch_time, way, up.experts, DISPATCH_BYTES)
    back = _least(expert_exchange.combine_time, way, up.experts, BYTES_16)
    gather = communication.all_gather_time(wide * BYTES_16, group, 1.0, fabric)
    scatter = communication.reduce_scatter_time(wide * BYTES_16, group, 1.0, fabric)
    whole = _all_reduce(wide * BYTES_16, group, fabric)
    spread = np.greater(layout.expert, 1)
    apart = np.where(spread, np.minimum(sent + back, gather + scatter), gather + scatter)
    several = np.greater(layout.data, 1)
    single = np.where(several, 0.0, np.where(np.greater(group, 1), 1.0, 0.0))
    return Step(
        exchange=np.where(several, apart, 0.0), reduce=np.where(several, 0.0, whole), collectives=single,
        exchanges=np.where(several, 2.0, 0.0),
    )  # fmt: skip


def _least(law: Callable[..., Array], way: tuple[Any, ...], experts: int, size: float) -> Array:
    """Return the faster of the forwarding and the low-latency kernel."""
    forwarding, direct = (
        law(*way, bytes_per_element=size, experts=float(experts), low_latency=one) for one in (False, True)
    )
    return np.minimum(forwarding, direct)
