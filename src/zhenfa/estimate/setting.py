"""One job on one machine, looked up once: the graph, the chips, the fabrics, and what layers cost on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zhenfa.estimate import chip as chips
from zhenfa.estimate import wires
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.holding import Holding, gathered, holding, working_set
from zhenfa.estimate.layer import Cost, Shape, layer_cost
from zhenfa.estimate.traits import Traits, traits_for
from zhenfa.estimate.wires import Bridge
from zhenfa.laws.arrays import Array
from zhenfa.laws.communication import Fabric
from zhenfa.spec.graph import Graph, Operator
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import Formation

RECOMPUTE = ("none", "selective", "full")
"""Recomputation modes in the order of their codes 0, 1, 2."""


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


@dataclass(frozen=True)
class Setting:
    """A job on a machine with everything looked up."""

    graph: Graph
    workload: Workload
    formation: Formation
    traits: Traits
    chips: dict[str, Chip]
    fabrics: dict[str, Fabric]
    bridge: Bridge | None
    assumptions: tuple[str, ...]
    _units: dict[tuple[object, ...], Units] = field(default_factory=dict, repr=False, compare=False)
    _costs: dict[tuple[object, ...], Cost] = field(default_factory=dict, repr=False, compare=False)

    def units(self, pool: str, shape: Shape, zero: Array, recompute: Array) -> Units:
        """Return what the layers cost when cut by ``shape``; ``recompute`` holds codes into :data:`RECOMPUTE`."""
        chip, fabric = self.chips[pool], self.fabrics[pool]

        def unit(operators: Sequence[Operator], again: Array) -> Unit:
            cost = layer_cost(operators, shape, chip, fabric, self.traits)
            return self._unit(operators, cost, shape, zero, again)

        kinds, stem, head = self._blocks
        none = 0 * np.asarray(recompute)
        return Units(tuple(unit(kind, recompute) for kind in kinds), unit(stem, none), unit(head, none))

    @property
    def _blocks(self) -> tuple[list[Sequence[Operator]], Sequence[Operator], Sequence[Operator]]:
        head = (*self.graph.head, *self.graph.extra)
        return [kind.operators for kind in self.graph.kinds], self.graph.stem, head

    def cached_units(
        self, pool: str, sequences: int, tensor: int, expert: int, data: int, zero: int, recompute: int
    ) -> Units:
        """Return :meth:`units` of one layout, computed once."""
        key = (pool, sequences, tensor, expert, data, zero, recompute)
        if key not in self._units:
            shape = Shape(
                float(sequences), float(self.workload.sequence_length), float(tensor), float(expert), float(data)
            )
            kinds, stem, head = self._blocks
            found = [
                self._unit(block, self._cost(index, block, pool, shape), shape, zero, again)
                for index, (block, again) in enumerate([*((kind, recompute) for kind in kinds), (stem, 0), (head, 0)])
            ]
            self._units[key] = Units(tuple(found[:-2]), found[-2], found[-1])
        return self._units[key]

    def _cost(self, index: int, block: Sequence[Operator], pool: str, shape: Shape) -> Cost:
        """Return a block's cost, which does not depend on how many replicas there are."""
        key = (index, pool, shape.sequences, shape.tensor, shape.expert)
        if key not in self._costs:
            self._costs[key] = layer_cost(block, shape, self.chips[pool], self.fabrics[pool], self.traits)
        return self._costs[key]

    def memory(self, shape: Shape, zero: Array, recompute: Array) -> list[tuple[Holding, Array]]:
        """Return what each kind of layer, the stem and the head hold, and the bytes that each needs only at work."""
        kinds, stem, head = self._blocks
        none = 0 * np.asarray(recompute)
        return [
            self._memory(block, shape, zero, again)
            for block, again in [*((kind, recompute) for kind in kinds), (stem, none), (head, none)]
        ]

    def _memory(
        self, operators: Sequence[Operator], shape: Shape, zero: Array, recompute: Array
    ) -> tuple[Holding, Array]:
        precision = self.workload.precision
        held = holding(operators, shape, precision, zero, recompute, self.traits, self.graph.hidden)
        return held, working_set(operators, shape, precision, recompute) + gathered(held, precision, zero)

    def _unit(self, operators: Sequence[Operator], cost: Cost, shape: Shape, zero: Array, recompute: Array) -> Unit:
        held, working = self._memory(operators, shape, zero, recompute)
        again = np.select(
            [np.equal(recompute, 0), np.equal(recompute, 1)], [0.0 * cost.forward_total, cost.light_forward],
            cost.forward_total,
        )  # fmt: skip
        return Unit(cost, held, cost.forward_total, cost.backward_total + again, again, working)


def look_up(graph: Graph, workload: Workload, formation: Formation, traits: Traits | None = None) -> Setting:
    """Look up everything that an estimate needs.

    Raises :class:`MissingFactError` naming an undisclosed value that the laws need and no prior may stand in for.
    """
    found = {pool.name: chips.chip(pool, workload.precision) for pool in formation.pools}
    fabrics = {pool.name: wires.fabric(pool) for pool in formation.pools}
    joint = (
        wires.bridge(formation.network, machine=formation.name, emulated=formation.emulated)
        if len(formation.pools) > 1
        else None
    )
    notes: list[str] = [f"{name} = {value} (yours)" for name, value in formation.assumed.items()]
    for one in found.values():
        notes.extend(one.assumptions)
    for _, words in fabrics.values():
        notes.extend(words)
    if not formation.emulated:
        notes.append(f"engine: {(traits or traits_for(formation)).name}")
    return Setting(
        graph, workload, formation, traits or traits_for(formation), found,
        {name: table for name, (table, _) in fabrics.items()}, joint, tuple(dict.fromkeys(notes)),
    )  # fmt: skip
