"""Where the busiest place of a plan spends its step, operator by operator and link by link, and what its cards hold.

Everything here comes from the functions that cost the plan: the sums are the parts of the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from zhenfa.estimate import mixture
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.costs import SIMPLE, GroupCost, PlanCost, StageCost
from zhenfa.estimate.layer import Card, chip_of, layer_cost, matmul_sizes, operator_cost
from zhenfa.estimate.links import Link, links_of
from zhenfa.estimate.origin import Origin, origin
from zhenfa.estimate.report import step_parts
from zhenfa.estimate.setting import RECOMPUTE, Setting, any_of, recomputed
from zhenfa.estimate.shape import ZERO, Cost, Shape, total
from zhenfa.estimate.stage import shape_of_stage
from zhenfa.estimate.training import groups_of, homes_of
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES
from zhenfa.spec.plan import Plan, Stage
from zhenfa.spec.result import StageFigures


@dataclass(frozen=True)
class OperatorTime:
    """One operator of the busiest place. ``forward``, ``backward`` and ``again`` (recomputation) are seconds of one
    run; ``count`` runs make up a step, and ``step`` seconds of it.

    ``light``: seconds of forward and backward at the speed of light: model FLOPs at peak, or what must be moved at the
    memory's bandwidth, whichever is longer. ``at_peak``: the former alone.
    """

    name: str
    kind: str
    count: float
    forward: float
    backward: float
    again: float
    light: float
    at_peak: float
    bound: str
    origin: Origin

    @property
    def step(self) -> float:
        """Return the seconds of a step."""
        return self.count * (self.forward + self.backward + self.again)

    @property
    def share(self) -> float | None:
        """Return the share of the speed of light; None where there is no work to compare with."""
        spent = self.forward + self.backward
        return self.light / spent if spent > 0 and self.light > 0 else None


@dataclass(frozen=True)
class Detail:
    """A plan's step in detail. ``operators`` of the busiest place, which stands on ``pool``; ``between``: seconds of
    recomputation that belong to no operator (a layer that the host holds up)."""

    pool: str
    place: int
    layers: int
    micro_batches: int
    parts: dict[str, float]
    operators: tuple[OperatorTime, ...]
    between: float
    links: tuple[Link, ...]
    memory: tuple[dict[str, float], ...]

    @property
    def step(self) -> float:
        """Return the seconds of a step."""
        return sum(self.parts.values())

    def largest(self, least: float = 0.002) -> list[OperatorTime]:
        """Return the operators that take at least that share of the step, the longest first."""
        found = [one for one in self.operators if one.step >= least * self.step]
        return sorted(found, key=lambda one: -one.step)

    def others(self, shown: Sequence[OperatorTime]) -> float:
        """Return the seconds of a step in all operators but those shown, and in recomputation that is of none."""
        return sum(one.step for one in self.operators) + self.between - sum(one.step for one in shown)

    def share(self, seconds: float) -> float:
        """Return the share of the step that so many seconds are."""
        return seconds / self.step


def detail(plan: Plan, setting: Setting, cost: PlanCost) -> Detail:
    """Return the detail of a plan that has been costed."""
    setting = setting.for_plan(plan)
    group = cost.worst
    entries = list(groups_of(plan).values())[cost.groups.index(group)]
    entry, replicas = entries[0], sum(one.count for one in entries)
    place = max(range(len(group.places)), key=lambda index: group.places[index].busy)
    order = [entry.place_of(index, plan.schedule) for index in range(len(group.stages))]
    home = [place] if plan.schedule in SIMPLE else homes_of(plan, len(group.stages), order)[place]
    share = 0.5 if plan.schedule == "dualpipe" and len(home) > 1 else 1.0
    found: list[OperatorTime] = []
    between = 0.0
    for index in home:
        times, rest = _stage(plan, setting, group, index, entry.micro_batch_size, replicas)
        found += times
        between += rest
    runs = share * group.micro_batches
    return Detail(
        pool=group.places[place].stage.pool,
        place=place,
        layers=sum(group.stages[index].stage.layers for index in home),
        micro_batches=group.micro_batches,
        parts=step_parts(group),
        operators=tuple(replace(one, count=one.count * runs) for one in _merged(found)),
        between=between * runs,
        links=links_of(plan, setting, group, entry, replicas, place),
        memory=memory_of(plan, cost),
    )


def _stage(
    plan: Plan, setting: Setting, group: GroupCost, index: int, size: int, replicas: int
) -> tuple[list[OperatorTime], float]:
    """Return the operators of one stage with their counts in a micro-batch, and the recomputation of none of them."""
    stage = group.stages[index].stage
    card = setting.card(stage.pool)
    shape = shape_of_stage(stage, size, plan.sequence_length, replicas)
    found, between = [], 0.0
    for operators, mode, count in _blocks(setting, stage, index, len(group.stages)):
        times, rest = _block(setting, stage, operators, mode, shape, card)
        found += [replace(one, count=float(count)) for one in times]
        between += count * rest
    return found, between


def _blocks(setting: Setting, stage: Stage, index: int, stages: int) -> Iterator[tuple[Sequence[Operator], int, int]]:
    """Yield each block of a stage: its operators, its recomputation mode, and how many there are."""
    graph, again = setting.graph, stage.recomputed_layers
    layers = graph.layers[stage.first : stage.last]
    for part, mode in ((layers[:again], RECOMPUTE.index(stage.recompute)), (layers[again:], 0)):
        for kind in dict.fromkeys(part):
            yield graph.kinds[kind].operators, mode, part.count(kind)
    if index == 0:
        yield graph.stem, 0, 1
    if index == stages - 1:
        yield (*graph.head, *graph.extra), 0, 1


def _block(
    setting: Setting, stage: Stage, operators: Sequence[Operator], mode: int, shape: Shape, card: Card
) -> tuple[list[OperatorTime], float]:
    """Return the operators of one block, each run once, and the recomputation that belongs to none of them."""
    test = any_of(stage.recompute_modules if RECOMPUTE[mode] == "selective" else ())
    costs = [(operator, operator_cost(operator, shape, card)) for operator in operators]
    whole = layer_cost(operators, shape, card)
    repeated = [operator for operator, _ in costs if test is not None and test(operator)]
    again = [_again(cost, mode, None if test is None else operator in repeated) for operator, cost in costs]
    last = next((at for at in reversed(range(len(costs))) if costs[at][0].kind.endswith("matmul")), None)
    if card.traits.recompute_stops_early and RECOMPUTE[mode] == "full" and last is not None:
        again[last] = 0.0
    found = [_time(operator, cost, extra, shape, card, setting, stage.pool)
             for (operator, cost), extra in zip(costs, again, strict=True)]  # fmt: skip
    if any(operator.kind == "grouped_matmul" for operator in operators):
        found.append(_exchanged(operators, repeated, mode, shape, card, setting, stage.pool))
    light = layer_cost(repeated, shape, card).forward_total if test is not None else whole.light_forward
    return found, float(recomputed(whole, light, mode)) - sum(one.again for one in found)


def _again(cost: Cost, mode: int, named: bool | None) -> float:
    """Return the seconds of an operator's recomputation. ``named``: modules are named and it is one of them."""
    if RECOMPUTE[mode] == "none" or named is False:
        return 0.0
    if RECOMPUTE[mode] == "selective" and named is None:
        return float(cost.light_forward)
    return float(cost.forward + cost.tensor_forward + cost.expert_forward + cost.context_forward)


def _exchanged(
    operators: Sequence[Operator], repeated: Sequence[Operator], mode: int, shape: Shape, card: Card, setting: Setting,
    pool: str,
) -> OperatorTime:  # fmt: skip
    """Return what the card itself does to bring tokens to experts and back: routing and permutation."""

    def cost(of: Sequence[Operator], on: Card) -> Cost:
        routed = [one for one in of if one.kind == "grouped_matmul"]
        layer = total(operator_cost(one, shape, on) for one in of)
        return mixture.exchange(routed, shape, on.wide, on.fabric, on.traits, layer) if routed else ZERO

    done, ideal = cost(operators, card), cost(operators, card._replace(wide=_perfect(card.wide)))
    named = RECOMPUTE[mode] == "selective"
    extra = _again(cost(repeated, card), mode, True) if named else _again(done, mode, None)
    routed = next(one for one in operators if one.kind == "grouped_matmul")
    moving = Operator("experts.exchange", "elementwise", inputs=routed.inputs, outputs=routed.inputs, shard="expert")
    accelerator = setting.formation.pool(pool).accelerator
    return OperatorTime(
        "experts.permute", "elementwise", 1.0, float(done.forward), float(done.backward), extra,
        float(ideal.forward + ideal.backward), 0.0, "memory", origin(moving, accelerator, card.chip.precision),
    )  # fmt: skip


def _time(
    operator: Operator, cost: Cost, again: float, shape: Shape, card: Card, setting: Setting, pool: str
) -> OperatorTime:
    arithmetic, moved = _light(operator, cost, shape, card)
    accelerator = setting.formation.pool(pool).accelerator
    chip = chip_of(operator, card) if operator.kind in ("matmul", "grouped_matmul") else card.wide
    return OperatorTime(
        operator.name, operator.kind, 1.0, float(cost.forward), float(cost.backward), again, max(arithmetic, moved),
        float(cost.ideal), "compute" if arithmetic >= moved else "memory",
        origin(operator, accelerator, chip.precision),
    )  # fmt: skip


def _light(operator: Operator, cost: Cost, shape: Shape, card: Card) -> tuple[float, float]:
    """Return the seconds of an operator's model FLOPs at the peak of the precision in which it runs, and those of what
    it must move at the memory's bandwidth, forward and backward."""
    if operator.kind in ("attention", "scan"):
        return float(cost.ideal * card.chip.peak / card.wide.peak_attention), 0.0
    if operator.kind == "matmul":
        chip = chip_of(operator, card)
        return float(cost.ideal * card.chip.peak / chip.peak), _matmul_bytes(operator, shape, card) / chip.bandwidth
    if operator.kind == "grouped_matmul":
        return float(cost.ideal), _grouped_bytes(operator, shape, card) / card.chip.bandwidth
    if card.chip.emulated:  # paced by its FLOPs alone
        return 0.0, 0.0
    ideal = operator_cost(operator, shape, card._replace(chip=_perfect(card.chip), wide=_perfect(card.wide)))
    return 0.0, float(ideal.forward + ideal.backward)


def _matmul_bytes(operator: Operator, shape: Shape, card: Card) -> float:
    """Return the bytes that three matmuls read and write: each of the two operands and the result once."""
    rows, inputs, outputs = (float(part) for part in matmul_sizes(operator, shape, card.traits))
    each = rows * inputs + inputs * outputs + rows * outputs
    return 0.0 if card.chip.emulated else 3 * each * BYTES[chip_of(operator, card).precision]


def _grouped_bytes(operator: Operator, shape: Shape, card: Card) -> float:
    if card.chip.emulated:
        return 0.0
    split = float(shape.expert_tensor)
    held = max(operator.experts / float(shape.expert), 1.0) * operator.inputs * operator.outputs / split
    moved = float(mixture.copies(operator, shape)) * split * (operator.inputs + operator.outputs / split)
    return 3 * (held + moved) * BYTES[card.chip.precision]


def _perfect(chip: Chip) -> Chip:
    """Return a chip whose streams take nothing but their bytes at the memory's bandwidth."""
    own = None if chip.processor is None else replace(chip.processor, chains={}, autograd=0.0)
    return replace(chip, memory_share=1.0, launch=0.0, processor=own)


def _merged(found: Sequence[OperatorTime]) -> list[OperatorTime]:
    """Return the operators with those that are the same in every layer counted together, in the order of the model."""
    counts: dict[OperatorTime, float] = {}
    for one in found:
        same = replace(one, count=1.0)
        counts[same] = counts.get(same, 0.0) + one.count
    return [replace(one, count=count) for one, count in counts.items()]


def memory_of(plan: Plan, cost: PlanCost) -> tuple[dict[str, float], ...]:
    """Return, for each stage of the plan, the bytes by part that a card of its place holds at the peak."""
    found = []
    for group, entries in zip(cost.groups, groups_of(plan).values(), strict=True):
        order = [entries[0].place_of(index, plan.schedule) for index in range(len(group.stages))]
        apart = [[index] for index in range(len(group.stages))]
        together = apart if plan.schedule in SIMPLE else homes_of(plan, len(group.stages), order)
        for stage, place in zip(group.stages, range(len(apart)) if together is apart else order, strict=True):
            found.append(_parts(stage, max(group.stages[index].working for index in together[place])))
    return tuple(found)


def _parts(stage: StageCost, working: float) -> dict[str, float]:
    held = stage.memory
    return {
        "weights": held["weights"], "gradients": held["gradients"], "optimizer": held["optimizer"],
        "activations in flight": held["activations"] - working, "working": working,
        "buffers": held.get("buffers", 0.0),
    }  # fmt: skip


def with_memory(stages: Sequence[StageFigures], found: Detail) -> tuple[StageFigures, ...]:
    """Return the stages of an estimate with what they hold in the parts of its detail; parts empty everywhere go."""
    held = {name: 0 for parts in found.memory for name, bytes_ in parts.items() if bytes_ > 0}
    return tuple(
        one.model_copy(update={"memory_parts": {name: parts[name] for name in held}})
        for one, parts in zip(stages, found.memory, strict=True)
    )
