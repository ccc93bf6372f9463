"""Where a step of a serving plan goes, operator by operator, from the functions that cost it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from zhenfa.estimate import serving_curves
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.origin import Origin, origin
from zhenfa.estimate.serving import Served, Service
from zhenfa.estimate.serving_curves import Group
from zhenfa.estimate.serving_step import BYTES_16, Load, Setup, Step, blocks, each, step
from zhenfa.laws import serving
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import Accelerator, Formation


@dataclass(frozen=True)
class OperatorTime:
    """One operator of a step on one card: ``runs`` of ``seconds`` each, the engine's pace included, those of its
    communication apart (``links``). ``light``: seconds at the speed of light, at peak or at the memory's bandwidth,
    whichever is longer (``bound``); 0 where there is no work to compare with."""

    name: str
    kind: str
    runs: float
    seconds: float
    links: float
    light: float
    bound: str
    origin: Origin

    @property
    def step(self) -> float:
        """Return the seconds of a step."""
        return self.runs * (self.seconds + self.links)

    @property
    def share(self) -> float | None:
        """Return the share of the speed of light that the kernels reach; None where there is nothing to compare."""
        return self.light / self.seconds if self.seconds > 0 and self.light > 0 else None


@dataclass(frozen=True)
class StepDetail:
    """One step of a group of instances: its ``operators``, sampling and pipeline hops (``rest``), and what the engine
    adds to or hides of them (``engine``)."""

    role: str
    pool: str
    carries: str
    operators: tuple[OperatorTime, ...]
    rest: float
    engine: float

    @property
    def seconds(self) -> float:
        """Return the seconds of the step."""
        return sum(one.step for one in self.operators) + self.rest + self.engine

    def largest(self, least: float = 0.005) -> list[OperatorTime]:
        """Return the operators that take at least that share of the step, the longest first."""
        whole = self.seconds
        return sorted((one for one in self.operators if one.step >= least * whole), key=lambda one: -one.step)

    def share(self, seconds: float) -> float:
        """Return the share of the step that so many seconds are."""
        return seconds / self.seconds

    def others(self, shown: Sequence[OperatorTime]) -> float:
        """Return the seconds in all operators but those shown, in sampling and between stages."""
        return sum(one.step for one in self.operators) + self.rest - sum(one.step for one in shown)


def details(service: Service, served: Served, formation: Formation) -> tuple[StepDetail, ...]:
    """Return a decode step as the plan runs it, and a step of prompts: of one on each data-parallel group, alone."""
    workload, decode, prefill = served.workload, service.decode, service.prefill
    context, instance = workload.mean_input + workload.mean_output / 2, decode.instance
    running = max(served.running, 1.0)
    load = Load(running / instance.pipeline_parallel, context, 1.0 + service.drafted)
    own = running / instance.data_parallel
    took = serving_curves.prompts(prefill, workload)
    one = Load(prompts=1.0, chunk=float(np.ravel(took.chunk)[0]), prompt_context=float(np.ravel(took.seen)[0]))
    words = f"{own:,.0f} requests a scheduler at {context:,.0f} tokens of context"
    decoding = _detail(
        "decode", service, decode, load, formation, words, own, serving_curves.draft_passes(service),
        captured=not service.plan.eager,
    )  # fmt: skip
    prompt = f"{one.chunk:,.0f} tokens of one prompt"
    return decoding, _detail("prefill", service, prefill, one, formation, prompt, 1.0, 0.0, captured=False)


def _detail(
    role: str, service: Service, group: Group, load: Load, formation: Formation, words: str, own: float,
    drafts: float, *, captured: bool,
) -> StepDetail:  # fmt: skip
    cost = step(group.setup, load, drafts=drafts)
    whole = float(np.ravel(group.engine.time(cost, own, captured=captured, overlapped=group.cut.overlapped))[0])
    accelerator = formation.pool(group.instance.pool).accelerator
    found = tuple(_operators(group, load, drafts, accelerator))
    kernels = sum(one.runs * one.seconds for one in found)
    links = sum(one.runs * one.links for one in found)
    rest = _number(cost.kernels) * group.engine.pace - kernels
    rest += _number(cost.reduce) + _number(cost.exchange) + _number(cost.send) - links
    return StepDetail(role, group.instance.pool, words, found, rest, whole - kernels - links - rest)


def _operators(group: Group, load: Load, drafts: float, accelerator: Accelerator) -> Iterator[OperatorTime]:
    setup = group.setup
    counts: dict[OperatorTime, float] = {}
    for runs, operators, carried in blocks(setup, load, drafts):
        for operator, cost in each(setup, operators, carried):
            one = _time(group, operator, cost, carried, accelerator)
            counts[one] = counts.get(one, 0.0) + runs
    for one, runs in counts.items():
        yield OperatorTime(one.name, one.kind, runs, one.seconds, one.links, one.light, one.bound, one.origin)


def _time(group: Group, operator: Operator, cost: Step, load: Load, accelerator: Accelerator) -> OperatorTime:
    chip = _chip(group.setup, operator)
    arithmetic, moved = light(group.setup, operator, load, chip)
    return OperatorTime(
        operator.name, operator.kind, 1.0, _number(cost.kernels) * group.engine.pace,
        _number(cost.reduce) + _number(cost.exchange) + _number(cost.send), max(arithmetic, moved),
        "compute" if arithmetic >= moved else "memory", origin(operator, accelerator, chip.precision),
    )  # fmt: skip


def _number(value: object) -> float:
    return float(np.ravel(np.asarray(value, float))[0])


def _chip(setup: Setup, operator: Operator) -> Chip:
    if operator.kind == "grouped_matmul":
        return setup.cards.experts
    if operator.shard == "vocabulary" or operator.name.endswith("router"):
        return setup.cards.head
    feed_forward = operator.name.startswith(("mlp", "shared"))
    return setup.cards.dense if feed_forward or not setup.cards.moe_only else setup.cards.attention


def light(setup: Setup, operator: Operator, load: Load, chip: Chip) -> tuple[float, float]:
    """Return the seconds of an operator's FLOPs at peak, and those of what it must move at the memory's bandwidth."""
    layout, tokens = setup.layout, _number(load.tokens)
    groups = _number(layout.data) * _number(layout.context)
    rows, tensor = tokens / groups, _number(layout.tensor)
    if chip.emulated or tokens <= 0:
        return 0.0, 0.0
    if operator.kind == "grouped_matmul":
        return _experts_light(setup, operator, tokens, chip)
    if operator.kind == "attention":
        return _attention_light(setup, operator, load, groups, tensor, chip)
    if operator.kind == "matmul":
        inputs, outputs = float(operator.inputs), float(operator.outputs)
        if operator.shard in ("column", "heads", "vocabulary"):
            outputs /= tensor
        elif operator.shard == "row":
            inputs /= tensor
        bytes_ = inputs * outputs * chip.weight_bytes + rows * (inputs + outputs) * BYTES_16
        return 2.0 * rows * inputs * outputs / chip.peak, bytes_ / chip.bandwidth
    if operator.kind == "embedding":
        return 0.0, 2.0 * rows * operator.outputs * BYTES_16 / chip.bandwidth
    split = 1.0 if operator.shard == "none" else tensor
    return 0.0, rows * (operator.inputs + operator.outputs) * BYTES_16 / split / chip.bandwidth


def _experts_light(setup: Setup, operator: Operator, tokens: float, chip: Chip) -> tuple[float, float]:
    """Return the same of all matmuls of the routed experts on a card where tokens are shared out evenly."""
    layout = setup.layout
    stage, spread = _number(layout.stage), _number(layout.expert)
    cut = stage / spread
    each_weights = operator.parameters / operator.experts * _factor(setup, operator) / cut
    copies = tokens * operator.active_experts / spread
    touched = min(float(serving.distinct_experts(tokens, operator.experts, operator.active_experts)) / spread, copies)
    return 2.0 * copies * each_weights / chip.peak, touched * each_weights * chip.weight_bytes / chip.bandwidth


def _factor(setup: Setup, operator: Operator) -> float:
    """Return the weights of all matmuls of a layer's experts over those of the first."""
    for kind in setup.graph.kinds:
        routed = [one for one in kind.operators if one.kind == "grouped_matmul"]
        if routed and routed[0].parameters == operator.parameters:
            return sum(one.parameters for one in routed) / routed[0].parameters
    return 1.0


def _attention_light(
    setup: Setup, operator: Operator, load: Load, groups: float, tensor: float, chip: Chip
) -> tuple[float, float]:
    split = tensor if operator.shard == "heads" else 1.0
    seen = _number(load.context) if _number(load.decoded) > 0 else _number(load.prompt_context)
    if operator.window is not None:
        seen = min(seen, float(operator.window))
    rows = _number(load.tokens) / groups
    width = (
        2 * operator.latent if operator.latent and _number(load.decoded) > 0 else operator.key_dim + operator.value_dim
    )
    flops = 2.0 * rows * operator.heads / split * width * (seen if _number(load.decoded) > 0 else seen / 1.0)
    if _number(load.decoded) <= 0:  # causal: a token of the chunk sees those before it
        flops *= max(seen - _number(load.chunk) / 2, seen / 2) / max(seen, 1.0)
    sequences = (_number(load.sequences) if _number(load.decoded) > 0 else _number(load.prompts)) / groups
    cut = 1.0 if operator.latent else min(tensor, max(operator.kv_heads, 1))
    cache = sequences * seen * operator.cache * setup.cards.cache_bytes / cut
    return flops / chip.peak_attention, cache / chip.bandwidth
