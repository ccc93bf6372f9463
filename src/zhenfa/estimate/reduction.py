"""What replicas exchange: gradients reduced and weights gathered, once a step or with every micro-batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from zhenfa.estimate.holding import MASTER_BYTES, Holding
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.shape import Shape, alone
from zhenfa.estimate.traffic import wide
from zhenfa.laws import communication
from zhenfa.laws.arrays import Array
from zhenfa.laws.fabric import Fabric
from zhenfa.spec.machine import Precision
from zhenfa.spec.plan import Offload, Plan, Reshard


class Exchange(NamedTuple):
    """Seconds to reduce gradients once and to gather weights once inside the pool, and a step between pools."""

    reduce: Array
    gather: Array
    across: Array

    def at_ends(self, terms: Terms, layers: Array) -> tuple[Array, Array]:
        """Return the seconds to reduce and to gather that are left for the end and the start of a step over so many
        layers: one layer's part of what goes with every micro-batch, all of the rest."""
        pieces = np.maximum(layers, 1)
        reduce = self.reduce / pieces if terms.every_reduce else self.reduce
        gather = self.gather / pieces if terms.gathers else self.gather
        return reduce, gather


@dataclass(frozen=True)
class Terms:
    """What a plan says of the step as a whole, whatever its stages are.

    ``every_reduce``: gradients are reduced with every micro-batch; ``gathers``: how often weights are gathered for each
    (0: once a step, where they are shared out at all).
    """

    precision: Precision
    zero: int = 0
    shard_group: int | None = None
    every_reduce: bool = False
    gathers: int = 0
    offload: Offload = "none"
    replicas: int = 1
    """Of all groups of pipelines together."""
    groups: int = 1
    """Groups of pipelines that are alike."""

    @classmethod
    def of(cls, plan: Plan) -> Terms:
        """Return the terms of a plan."""
        every = None if plan.reduce_every is None else plan.reduce_every == "micro-batch"
        usual = cls.usual(plan.precision, plan.zero, plan.shard_group, plan.offload, plan.reshard, every)
        groups = len({(one.stages, one.micro_batch_size) for one in plan.pipelines})
        return replace(usual, replicas=plan.replicas, groups=groups)

    @classmethod
    def usual(
        cls,
        precision: Precision,
        zero: int,
        shard_group: int | None = None,
        offload: Offload = "none",
        reshard: Reshard | None = None,
        every_reduce: bool | None = None,
    ) -> Terms:
        """Return terms with what a plan leaves open filled in."""
        gathers = {"layer": 2, "micro-batch": 1, "step": 0}[reshard or "layer"] if zero == 3 else 0
        return cls(precision, zero, shard_group, zero >= 2 if every_reduce is None else every_reduce, gathers, offload)

    def parts(self, layers: Array) -> tuple[Array, Array]:
        """Return in how many layers' parts a stage of so many layers reduces at the end of a step, and gathers at its
        start: with every micro-batch, all but one have gone before (:meth:`Exchange.at_ends`)."""
        one = 0 * layers + 1
        return one if self.every_reduce else layers, one if self.gathers else layers


class _Group(NamedTuple):
    """Cards that hold the same: ``peers`` of them ``stride`` apart, sharing out state over ``shards`` neighbours."""

    peers: Array
    stride: Array
    shards: Array

    def reduce(self, volume: Array, scatter: bool, fabric: Fabric) -> Array:
        """Return the seconds to sum ``volume`` bytes of gradients; ``scatter``: each card gets its part alone."""
        if alone(self.peers):
            return 0.0 * volume
        if not scatter:
            return communication.all_reduce_time(volume, self.peers, self.stride, fabric)
        seconds = communication.reduce_scatter_time(volume, self.shards, self.stride, fabric)
        if np.any(np.greater(self.peers, self.shards)):
            part, copies = volume / self.shards, np.maximum(self.peers // self.shards, 1.0)
            seconds = seconds + communication.all_reduce_time(part, copies, self.stride * self.shards, fabric)
        return seconds

    def gather(self, volume: Array, zero: int, fabric: Fabric) -> Array:
        """Return the seconds to gather ``volume`` bytes of weights."""
        if alone(self.peers) or zero == 0:
            return 0.0 * volume
        return communication.all_gather_time(volume, self.shards, self.stride, fabric)


def _groups(terms: Terms, shape: Shape) -> tuple[_Group, _Group]:
    """Return the cards that hold the same weights outside of experts, and the same experts."""
    peers, alike = shape.peers, shape.expert_peers
    most = peers if terms.shard_group is None else float(terms.shard_group)
    inside = shape.expert * shape.expert_tensor
    return (
        _Group(peers, shape.tensor, np.minimum(most, peers)),
        _Group(alike, inside, np.maximum(np.minimum(most * shape.tensor // inside, alike), 1.0)),
    )


def exchange(terms: Terms, setting: Setting, pool: str, shape: Shape, held: Holding, owners: int) -> Exchange:
    """Return what the replicas of stages exchange: floats, or arrays over stages or candidates.

    ``held`` is what one card holds; ``owners`` groups of pipelines share the model.
    """
    fabric, traits = setting.fabrics[pool], setting.traits
    size = traits.gradient_bytes if traits.reduced_bytes is None else traits.reduced_bytes
    sent = size if traits.bridge_gradient_bytes is None else traits.bridge_gradient_bytes
    weight = wide(terms.precision) if traits.gathered_bytes is None else traits.gathered_bytes
    if traits.masters_whole and terms.zero == 1:
        weight = MASTER_BYTES
    whole, expert = _groups(terms, shape)
    spread = (held.shared, held.routed) if terms.zero == 3 else (held.trained, held.trained_routed)
    if terms.zero in traits.shared_by_all and terms.groups > 1 and setting.bridge is not None:
        sums, weights = sent * (held.trained + held.trained_routed), weight * (spread[0] + spread[1])
        sums, weights = (_half_ring(setting, one, terms.replicas) for one in (sums, weights))
        return Exchange(sums, weights, 0.0 * sums)
    scatter = terms.zero > 0 and terms.zero not in traits.summed_whole
    reduce, gather = (
        whole.reduce(held.trained * size, scatter, fabric),
        whole.gather(spread[0] * weight, terms.zero, fabric),
    )
    if np.any(held.routed):
        there = np.greater(held.routed, 0)  # a stage without experts starts no collective for them
        reduce = reduce + np.where(there, expert.reduce(held.trained_routed * size, scatter, fabric), 0.0)
        gather = gather + np.where(there, expert.gather(spread[1] * weight, terms.zero, fabric), 0.0)
    across: Array = 0.0 * reduce
    if owners > 1 and traits.one_ring and setting.bridge is not None:
        reduce = 0.0 * reduce
        across = _ring(setting, sent * (held.trained + held.trained_routed), terms.replicas)
    elif owners > 1:
        mine = held.trained / whole.peers + held.trained_routed / expert.peers
        across = _between(setting, pool, (size if setting.bridge is None else sent) * mine, owners)
    return Exchange(reduce, gather, across)


def _ring(setting: Setting, volumes: Array, replicas: int) -> Array:
    """Return the seconds to sum each card's gradients in one ring over all replicas, at the pace of the bridge."""
    moved = 2 * (replicas - 1) / replicas * volumes
    return setting.bridge.time(moved) if setting.bridge else math.nan * moved


def _half_ring(setting: Setting, volumes: Array, replicas: int) -> Array:
    """Return the seconds in which all replicas gather their parts of so many bytes, or each gets its part of the sum,
    at the pace of the bridge: half a ring's all-reduce."""
    rounds = replicas - 1
    return rounds * setting.bridge.time(volumes / replicas) if setting.bridge else math.nan * volumes


def _between(setting: Setting, pool: str, volumes: Array, owners: int) -> Array:
    """Return the seconds to sum each card's share of the gradients over groups of pipelines.

    Over the bridge where the machine has one; in a machine of one pool, over its fabric, the groups far apart.
    """
    if setting.bridge is None and len(setting.formation.pools) == 1:
        stride = float(setting.formation.pools[0].count // owners)
        return communication.all_reduce_time(volumes, float(owners), stride, setting.fabrics[pool])
    moved = 2 * (owners - 1) / owners * volumes
    return setting.bridge.time(moved) if setting.bridge else math.nan * moved
