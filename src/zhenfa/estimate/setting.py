"""One job on one machine, looked up once: the graph, the chips, the fabrics, and what layers cost on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np

from zhenfa.estimate import chip as chips
from zhenfa.estimate import engines, wires
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.holding import Again, Holding, Sharding, gathered, held_whole, holding, working_set
from zhenfa.estimate.layer import Card, layer_cost
from zhenfa.estimate.shape import Cost, Shape
from zhenfa.estimate.streams import adds
from zhenfa.estimate.traits import Traits
from zhenfa.estimate.wires import Bridge
from zhenfa.laws import recovery as recovery_laws
from zhenfa.laws.arrays import Array
from zhenfa.laws.fabric import Fabric
from zhenfa.spec.graph import Graph, Operator
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import BETWEEN, BYTES, CardPool, Formation, Precision
from zhenfa.spec.plan import Plan, RecomputeModule
from zhenfa.spec.upkeep import Recovery

RECOMPUTE = ("none", "selective", "full")
"""Recomputation modes in the order of their codes 0, 1, 2."""

_MODULES: Final[Mapping[RecomputeModule, Callable[[Operator], bool]]] = {
    "norm": lambda one: one.kind == "norm",
    "activation": lambda one: one.kind == "elementwise" and not adds(one) and one.shard != "expert",
    "attention": lambda one: one.kind == "attention",
    "feed-forward": lambda one: one.name.startswith(("mlp.", "shared.")),
    "experts": lambda one: one.name.startswith(("experts.", "shared.")),
    "expert-activation": lambda one: one.kind == "elementwise" and one.shard == "expert",
    "up-projection": lambda one: one.name in {"attention.query_up", "attention.latent_up"},
    "alternate-matmul": lambda one: one.kind == "matmul" and one.name.endswith((".output", ".down")),
}


@dataclass(frozen=True)
class Unit:
    """One layer, the stem or the head on one card of a pool: per micro-batch, floats or arrays over candidates."""

    cost: Cost
    holding: Holding
    forward: Array
    backward: Array
    recomputed: Array
    working: Array


@dataclass(frozen=True)
class Units:
    """The building blocks of every stage on one pool: each layer kind, the stem and the head."""

    kinds: tuple[Unit, ...]
    stem: Unit
    head: Unit


class Cut(NamedTuple):
    """How the building blocks of one stage are cut, and what of them is computed again."""

    pool: str
    sequences: int
    tensor: int
    expert: int
    data: int
    zero: int
    recompute: int
    context: int = 1
    expert_tensor: int = 1
    modules: tuple[RecomputeModule, ...] = ()


@dataclass(frozen=True)
class Setting:
    """A job on a machine with everything looked up.

    ``chips``, by pool, in the precision of its matmuls, ``wide`` in 16 bits where that may be narrower. ``choices``:
    the chips of each pool that may compute in several precisions; ``chips`` has the first of them, until
    :meth:`computing` says which. ``sharding`` is what a plan says beyond its ZeRO stage; ``on_pool``, by pool, the
    traits that are others on its cards.
    """

    graph: Graph
    workload: Workload
    formation: Formation
    traits: Traits
    chips: dict[str, Chip]
    fabrics: dict[str, Fabric]
    bridge: Bridge | None
    assumptions: tuple[str, ...]
    wide: dict[str, Chip] = field(default_factory=dict)
    choices: Mapping[str, Mapping[Precision, Chip]] = field(default_factory=dict)
    sharding: Sharding = field(default_factory=Sharding)
    on_pool: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recovery: Recovery = field(default_factory=Recovery)
    _cards: dict[tuple[str, Precision], Card] = field(default_factory=dict, repr=False, compare=False)
    _units: dict[tuple[Cut, Precision], Units] = field(default_factory=dict, repr=False, compare=False)
    _costs: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False, compare=False)
    _plans: dict[tuple[object, ...], Setting] = field(default_factory=dict, repr=False, compare=False)
    stages: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What stages cost, by all that it follows from here; a changed setting begins anew."""

    def card(self, pool: str) -> Card:
        """Return a pool's card with its fabric and the engine on it."""
        chip = self.chips[pool]
        key = (pool, chip.precision)
        if key not in self._cards:
            wide = self.wide.get(pool, chip) if BYTES[chip.precision] < BYTES["bf16"] else chip
            traits = self.traits.but(**self.on_pool.get(pool, {}))
            self._cards[key] = Card(chip, wide, self.fabrics[pool], traits, self.sharding.adapter)
        return self._cards[key]

    def precisions(self, pool: str) -> tuple[Precision, ...]:
        """Return the precisions in which the cards of a pool may compute."""
        return tuple(self.choices.get(pool, (self.chips[pool].precision,)))

    @property
    def between(self) -> Precision:
        """Return the format of weights, and of what flows between layers."""
        return BETWEEN[next(iter(self.chips.values())).precision]

    def computing(self, precisions: Mapping[str, Precision]) -> Setting:
        """Return the setting whose pools compute in these precisions; the others may still choose."""
        chosen = {pool: one for pool, one in precisions.items() if pool in self.choices}
        if not chosen:
            return self
        key = ("computing", *sorted(chosen.items()))
        if key not in self._plans:
            chips = {pool: self.choices[pool][one] for pool, one in chosen.items()}
            left = {pool: every for pool, every in self.choices.items() if pool not in chosen}
            gone = {note for pool in chosen for one in self.choices[pool].values() for note in one.assumptions} - {
                note for one in (*{**self.chips, **chips}.values(),) for note in one.assumptions
            }
            self._plans[key] = replace(
                self, chips={**self.chips, **chips}, choices=left, _plans={},
                assumptions=tuple(note for note in self.assumptions if note not in gone),
            )  # fmt: skip
        return self._plans[key]

    def with_chips(self, pool: str, change: Callable[[Chip], Chip]) -> Setting:
        """Return the setting with a pool's chip changed in every precision; nothing computed before is kept."""
        chips, wide = ({**one, pool: change(one[pool])} if pool in one else one for one in (self.chips, self.wide))
        choices = dict(self.choices)
        if pool in choices:
            choices[pool] = {name: change(one) for name, one in choices[pool].items()}
        return replace(
            self, chips=chips, wide=wide, choices=choices, _cards={}, _units={}, _costs={}, _plans={}
        )  # fmt: skip

    def computing_as(self, plan: Plan) -> Setting:
        """Return the setting whose pools compute in the precisions of a plan."""
        return self.computing(plan.precision_by_pool()) if self.choices else self

    def for_plan(self, plan: Plan) -> Setting:
        """Return the setting with the engine doing what the plan asks of it, in the plan's precisions."""
        chosen = self.computing_as(plan)
        if chosen is not self:
            return chosen.for_plan(plan)
        changes = {
            name: value
            for name in ("sequence_parallel", "context_exchange", "expert_imbalance")
            if (value := getattr(plan, name)) is not None and value != getattr(self.traits, name)
        }
        if plan.zero in self.traits.summed_alone and self.traits.gradient_overlap:
            changes["gradient_overlap"] = 0.0
        if plan.zero in self.traits.gathered_ahead and self.traits.gather_overlap < 1:
            changes["gather_overlap"] = 1.0
        sharding = Sharding(
            0, plan.shard_group, float(plan.lora_rank) if plan.trainable == "lora" else 0.0,
            plan.offload in ("optimizer", "both"), plan.reshard == "step", plan.reduce_every == "step",
        )  # fmt: skip
        if not changes and sharding == self.sharding:
            return self
        key = (*changes.items(), sharding.group, sharding.adapter, sharding.offload, sharding.whole, sharding.late)
        if key not in self._plans:
            traits = self.traits.but(**changes)
            self._plans[key] = replace(
                self, traits=traits, sharding=sharding, _cards={}, _units={}, _costs={}, _plans={}
            )
        return self._plans[key]

    def planned_again(self, pool: str) -> tuple[RecomputeModule, ...]:
        """Return what selective recomputation of a plan that is searched computes again on a pool: what the engine can,
        of what the model has. Empty: norms and activation functions."""
        said = self.on_pool.get(pool, {}).get("planned_again", self.traits.planned_again)
        every = [one for kind in self.graph.kinds for one in kind.operators]
        return tuple(name for name in said if any(map(_MODULES[name], every)))

    def planned_cost(self, operators: Sequence[Operator], shape: Shape, pool: str) -> Cost:
        """Return what operators cost on a pool, ``light_forward`` that of :meth:`planned_again`."""
        card, again = self.card(pool), any_of(self.planned_again(pool))
        found = layer_cost(operators, shape, card)
        if again is None:
            return found
        chosen = [operator for operator in operators if again(operator)]
        return replace(found, light_forward=layer_cost(chosen, shape, card).forward_total)

    def units(
        self, pool: str, shape: Shape, zero: Array, recompute: Array, costs: Sequence[Cost] | None = None
    ) -> Units:
        """Return what the layers cost when cut by ``shape``; ``recompute`` holds codes into :data:`RECOMPUTE`.
        ``costs``: those of :meth:`planned_cost` of the :attr:`blocks` cut so, where they are at hand."""
        card, none, named = self.card(pool), 0 * np.asarray(recompute), any_of(self.planned_again(pool))
        modes = [recompute] * len(self.graph.kinds) + [none, none]
        lights = [None] * len(modes) if costs is None else [cost.light_forward for cost in costs]
        costs = [layer_cost(block, shape, card) for block in self.blocks] if costs is None else costs
        *kinds, stem, head = (
            self._unit(block, cost, pool, shape, zero, mode, named, light)
            for block, cost, mode, light in zip(self.blocks, costs, modes, lights, strict=True)
        )
        return Units(tuple(kinds), stem, head)

    @property
    def blocks(self) -> list[Sequence[Operator]]:
        """Return the operators of each kind of layer, of the stem and of the head."""
        kinds, stem, head = self._blocks
        return [*kinds, stem, head]

    def kept(self, pool: str) -> dict[str, Any]:
        """Return where what blocks cost on a pool is kept, whatever the replicas; a changed card begins anew."""
        found: dict[str, Any] = self._costs.setdefault(("every shape", pool, self.chips[pool].precision), {})
        return found

    @property
    def _blocks(self) -> tuple[list[Sequence[Operator]], Sequence[Operator], Sequence[Operator]]:
        head = (*self.graph.head, *self.graph.extra)
        return [kind.operators for kind in self.graph.kinds], self.graph.stem, head

    def cached_units(
        self, pool: str, sequences: int, tensor: int, expert: int, data: int, zero: int, recompute: int
    ) -> Units:
        """Return :meth:`units` of one layout, computed once."""
        return self.units_of(Cut(pool, sequences, tensor, expert, data, zero, recompute))

    def units_of(self, cut: Cut) -> Units:
        """Return the building blocks of one cut, computed once."""
        key = (cut, self.chips[cut.pool].precision)
        if key not in self._units:
            shape = Shape(
                float(cut.sequences), float(self.workload.sequence_length), float(cut.tensor), float(cut.expert),
                float(cut.data), float(cut.context), float(cut.expert_tensor),
            )  # fmt: skip
            kinds, stem, head = self._blocks
            again = any_of(cut.modules)
            found = [
                self._unit(block, self._cost(index, block, cut.pool, shape), cut.pool, shape, cut.zero, mode, again)
                for index, (block, mode) in enumerate(
                    [*((kind, cut.recompute) for kind in kinds), (stem, 0), (head, 0)]
                )
            ]
            self._units[key] = Units(tuple(found[:-2]), found[-2], found[-1])
        return self._units[key]

    def _cost(self, index: int, block: Sequence[Operator], pool: str, shape: Shape) -> Cost:
        """Return a block's cost, which does not depend on how many replicas there are."""
        key = (
            index,
            pool,
            self.chips[pool].precision,
            shape.sequences,
            shape.tensor,
            shape.expert,
            shape.context,
            shape.expert_tensor,
        )
        if key not in self._costs:
            self._costs[key] = layer_cost(block, shape, self.card(pool))
        found: Cost = self._costs[key]
        return found

    def memory(self, pool: str, shape: Shape, zero: Array, recompute: Array) -> list[tuple[Holding, Array]]:
        """Return what each kind of layer, the stem and the head hold on a pool, and the bytes that each needs only at
        work."""
        kinds, stem, head = self._blocks
        none, named = 0 * np.asarray(recompute), any_of(self.planned_again(pool))
        return [
            self._memory(block, pool, shape, zero, again, named)
            for block, again in [*((kind, recompute) for kind in kinds), (stem, none), (head, none)]
        ]

    def _memory(
        self, operators: Sequence[Operator], pool: str, shape: Shape, zero: Array, recompute: Array,
        again: Again = None,
    ) -> tuple[Holding, Array]:  # fmt: skip
        precision = self.chips[pool].precision
        said = self.sharding
        sharding = Sharding(zero, said.group, said.adapter, said.offload, said.whole, said.late)
        held = holding(operators, shape, precision, sharding, recompute, self.traits, self.graph.hidden, again)
        working = working_set(operators, shape, precision, recompute, self.traits, again)
        kept = held_whole(held, precision, sharding, self.traits)
        return kept, working + gathered(held, precision, sharding, self.traits)

    def _unit(
        self,
        operators: Sequence[Operator],
        cost: Cost,
        pool: str,
        shape: Shape,
        zero: Array,
        recompute: Array,
        again: Again = None,
        light: Array | None = None,
    ) -> Unit:
        held, working = self._memory(operators, pool, shape, zero, recompute, again)
        if light is None and again is not None:
            chosen = [operator for operator in operators if again(operator)]
            light = layer_cost(chosen, shape, self.card(pool)).forward_total
        light = cost.light_forward if light is None else light
        repeated = recomputed(cost, light, recompute)
        forward, backward, busy = cost.forward_total, cost.backward_total + repeated, self.traits.busy
        if busy < 1:
            forward, backward = forward / busy, backward / busy
        return Unit(cost, held, forward, backward, repeated, working)


def recomputed(cost: Cost, light: Array, mode: Array) -> Array:
    """Return the seconds of recomputation in a mode, ``light`` those of selective."""
    return np.select([np.equal(mode, 0), np.equal(mode, 1)], [0.0 * cost.forward_total, light], cost.full_again)


def any_of(modules: tuple[RecomputeModule, ...]) -> Again:
    """Return the test of whether selective recomputation runs an operator again; None where no module is named."""
    if not modules:
        return None
    return lambda operator: any(_MODULES[name](operator) for name in modules)


def _issuing(pool: CardPool) -> float | None:
    """Return the measured seconds in which the host issues a kernel to a card; a processor's are its kernels' own."""
    return None if chips.on_processor(pool.accelerator) else pool.accelerator.achievable.host.value


def _slowness(formation: Formation, traits: Traits) -> float:
    """Return how much longer the slowest card of a machine takes than that of as many as the speeds were fitted to."""
    here, there = (
        float(recovery_laws.slowest_card(cards, traits.card_spread))
        for cards in (formation.all_cards, traits.spread_cards)
    )
    return here / there


def _wide(pool: CardPool, ways: Mapping[Precision, Chip]) -> Chip:
    """Return the chip in 16 bits, or as it is where it computes in no fewer."""
    narrow = any(BYTES[one] < BYTES["bf16"] for one in ways)
    return (ways.get("bf16") or chips.chip(pool, "bf16")) if narrow else next(iter(ways.values()))


_SPEEDS: Final = ("matmul_share", "matmul_share_low", "attention_share")


def _slower(said: Mapping[str, Any], slow: float) -> dict[str, Any]:
    """Return traits by name with the speeds among them on a card that takes ``slow`` times as long."""
    return {key: value / slow if key in _SPEEDS and value else value for key, value in said.items()}


def learned_words(formation: Formation) -> list[str]:
    """Say what runs have taught of a machine, which its training plans count with."""
    found = []
    for pool in formation.pools:
        taught = pool.learned
        links = {f"links.{name}": one for name, one in taught.links.items()}
        named = {"compute": taught.compute, "optimizer": taught.optimizer, **links}
        found += [(f"{pool.name}.learned.{name}", one) for name, one in named.items()]
    if formation.network is not None:
        found.append((f"{formation.name}.network.learned", formation.network.learned))
    return [f"{name} = {one.value:.3g} ({one.source})" for name, one in found if one.value not in {None, 1.0}]


def look_up(
    graph: Graph,
    workload: Workload,
    formation: Formation,
    traits: Traits | None = None,
    recovery: Recovery | None = None,
) -> Setting:
    """Look up everything that an estimate needs.

    Raises :class:`MissingFactError` naming an undisclosed value that the laws need and no prior may stand in for.
    """
    every = {pool.name: chips.in_precisions(pool, workload.precisions) for pool in formation.pools}
    found = {name: next(iter(ways.values())) for name, ways in every.items()}
    choices = {name: ways for name, ways in every.items() if len(ways) > 1}
    wide = found
    if any(BYTES[one] < BYTES["bf16"] for one in workload.precisions):
        wide = {pool.name: _wide(pool, every[pool.name]) for pool in formation.pools}
    fabrics = {pool.name: wires.fabric(pool) for pool in formation.pools}
    joint, of_bridge = wires.bridge_between(formation) if len(formation.pools) > 1 else (None, ())
    planned = (
        engines.for_machine(formation) if traits is None else engines.Planned(traits, {}, (f"engine: {traits.name}",))
    )
    slow = _slowness(formation, planned.traits)
    issued: dict[str, dict[str, Any]] = {}
    engine = planned.traits.but(**_slower({name: getattr(planned.traits, name) for name in _SPEEDS}, slow))
    changes = {pool: _slower(said, slow) for pool, said in planned.changes.items()}
    if traits is not None and traits.eager:
        issued = {pool.name: {"host_s_per_kernel": host} for pool in formation.pools if (host := _issuing(pool))}
    notes: list[str] = [f"{name} = {value} (yours)" for name, value in formation.assumed.items()]
    notes.extend(learned_words(formation))
    for ways in every.values():
        for one in ways.values():
            notes.extend(one.assumptions)
    for _, words in fabrics.values():
        notes.extend(words)
    notes.extend(of_bridge)
    if not formation.emulated:
        notes.extend(planned.notes)
        if slow != 1:
            notes.append(
                f"the slowest of {formation.all_cards:,} cards sets the pace: {slow - 1:+.1%} on that of "
                f"{planned.traits.spread_cards:.0f} (cards of one kind differ by {planned.traits.card_spread:.1%}, "
                "fitted to layouts on growing numbers of cards)"
            )
    if any(operator.name == "positions" for operator in graph.stem):
        engine = engine.but(rotary=False)
    return Setting(
        graph, workload, formation, engine, found, {name: table for name, (table, _) in fabrics.items()}, joint,
        tuple(dict.fromkeys(notes)), wide, choices, on_pool={**changes, **issued}, recovery=recovery or Recovery(),
    )  # fmt: skip
