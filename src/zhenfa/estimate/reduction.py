"""What replicas exchange: gradients reduced and weights gathered, once a step or with every micro-batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zhenfa.estimate.holding import Holding
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.traffic import expert_peers, wide
from zhenfa.laws import communication
from zhenfa.laws.arrays import Array
from zhenfa.laws.fabric import Fabric
from zhenfa.spec.plan import Plan, Stage


class Exchange(NamedTuple):
    """Seconds to reduce gradients once and to gather weights once inside the pool, and a step between pools."""

    reduce: float
    gather: float
    across: float


class Rounds(NamedTuple):
    """How often in a step: whether gradients are reduced with every micro-batch, and how often weights are gathered for
    each (0: once a step, where they are shared out at all)."""

    every_reduce: bool
    gathers: int

    @classmethod
    def of(cls, plan: Plan) -> Rounds:
        """Return the rounds of a plan."""
        every = plan.zero >= 2 if plan.reduce_every is None else plan.reduce_every == "micro-batch"
        reshard = plan.reshard or "layer"
        gathers = {"layer": 2, "micro-batch": 1, "step": 0}[reshard] if plan.zero == 3 else 0
        return cls(every, gathers)


class _Group(NamedTuple):
    """Cards that hold the same: ``peers`` of them ``stride`` apart, sharing out state over ``shards`` neighbours."""

    peers: int
    stride: int
    shards: int

    def reduce(self, volume: Array, scatter: bool, fabric: Fabric) -> Array:
        """Return the seconds to sum ``volume`` bytes of gradients; ``scatter``: each card gets its part alone."""
        peers, stride = float(self.peers), float(self.stride)
        if self.peers == 1:
            return 0.0 * volume
        if not scatter:
            return communication.all_reduce_time(volume, peers, stride, fabric)
        shards = float(self.shards)
        seconds = communication.reduce_scatter_time(volume, shards, stride, fabric)
        if self.peers > self.shards:
            part, copies = volume / shards, float(max(self.peers // self.shards, 1))
            seconds = seconds + communication.all_reduce_time(part, copies, stride * shards, fabric)
        return seconds

    def gather(self, volume: Array, zero: int, fabric: Fabric) -> Array:
        """Return the seconds to gather ``volume`` bytes of weights."""
        if self.peers == 1 or zero == 0:
            return 0.0 * volume
        return communication.all_gather_time(volume, float(self.shards), float(self.stride), fabric)


def _groups(plan: Plan, stage: Stage, replicas: int) -> tuple[_Group, _Group]:
    """Return the cards that hold the same weights outside of experts, and the same experts."""
    peers, alike = replicas * stage.context_parallel, expert_peers(stage, replicas)
    most = plan.shard_group or peers
    inside = stage.expert_parallel * stage.expert_tensor_parallel
    return (
        _Group(peers, stage.tensor_parallel, min(most, peers)),
        _Group(alike, inside, max(min(most * stage.tensor_parallel // inside, alike), 1)),
    )


def exchanges(
    plan: Plan, setting: Setting, stage: Stage, held: Sequence[Holding], replicas: int, owners: int
) -> list[Exchange]:
    """Return what the replicas of several stages that are cut like ``stage`` exchange.

    ``held`` is what one card holds, one entry for each; ``owners`` groups of pipelines share the model.
    """
    fabric, traits = setting.fabrics[stage.pool], setting.traits
    size = traits.gradient_bytes if traits.reduced_bytes is None else traits.reduced_bytes
    weight = wide(plan.precision) if traits.gathered_bytes is None else traits.gathered_bytes
    shared, routed, trained, trained_routed = (
        np.array([getattr(one, name) for one in held], dtype=float)
        for name in ("shared", "routed", "trained", "trained_routed")
    )
    whole, expert = _groups(plan, stage, replicas)
    spread = (shared, routed) if plan.zero == 3 else (trained, trained_routed)
    scatter = plan.zero > 0 and plan.zero not in traits.summed_whole
    reduce, gather = (
        whole.reduce(trained * size, scatter, fabric),
        whole.gather(spread[0] * weight, plan.zero, fabric),
    )
    if routed.any():
        reduce = reduce + expert.reduce(trained_routed * size, scatter, fabric)
        gather = gather + expert.gather(spread[1] * weight, plan.zero, fabric)
    across: Array = np.zeros(len(held))
    if owners > 1 and traits.one_ring and setting.bridge is not None:
        reduce = 0.0 * reduce
        across = _ring(setting, size * (trained + trained_routed), plan.replicas)
    elif owners > 1:
        across = _between(setting, stage.pool, size * (trained / whole.peers + trained_routed / expert.peers), owners)
    parts = (np.broadcast_to(part, len(held)).tolist() for part in (reduce, gather, across))
    return [Exchange(*row) for row in zip(*parts, strict=True)]


def _ring(setting: Setting, volumes: Array, replicas: int) -> Array:
    """Return the seconds to sum each card's gradients in one ring over all replicas, at the pace of the bridge."""
    moved = 2 * (replicas - 1) / replicas * np.ravel(volumes)
    return np.array([setting.bridge.time(one) if setting.bridge else math.nan for one in moved.tolist()])


def _between(setting: Setting, pool: str, volumes: Array, owners: int) -> Array:
    """Return the seconds to sum each card's share of the gradients over groups of pipelines.

    Over the bridge where the machine has one; in a machine of one pool, over its fabric, the groups far apart.
    """
    if setting.bridge is None and len(setting.formation.pools) == 1:
        stride = float(setting.formation.pools[0].count // owners)
        return communication.all_reduce_time(volumes, float(owners), stride, setting.fabrics[pool])
    moved = 2 * (owners - 1) / owners * np.ravel(volumes)
    return np.array([setting.bridge.time(one) if setting.bridge else math.nan for one in moved.tolist()])
