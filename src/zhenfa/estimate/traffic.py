"""What moves between cards outside of layers: activations between stages, gradients and weights between replicas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zhenfa.estimate.holding import Holding
from zhenfa.estimate.setting import Setting
from zhenfa.laws import communication
from zhenfa.laws.arrays import Array
from zhenfa.laws.communication import Fabric
from zhenfa.spec.plan import Plan, Stage


def wide(precision: str) -> float:
    """Return the bytes of a weight or an activation on the wire."""
    return 4.0 if precision in {"fp32", "tf32"} else 2.0


def activation_bytes(setting: Setting, size: int) -> float:
    """Return the bytes of the activations between two layers of a micro-batch of ``size`` sequences."""
    return size * setting.workload.sequence_length * setting.graph.hidden * wide(setting.workload.precision)


def crossing(setting: Setting, size: int, here: Array, there: Array) -> Any:
    """Return the seconds of one activation from a pool to another with these tensor-parallel degrees.

    NaN where no network joins the pools.
    """
    volume = activation_bytes(setting, size) / np.minimum(here, there)
    return (setting.bridge.time(volume) if setting.bridge else math.nan) + setting.traits.message_overhead_s


def transfers(
    setting: Setting, places: Sequence[tuple[str, int]], size: int, replicas: int
) -> list[tuple[float, bool]]:
    """Return, per stage, the seconds of one activation to the next and whether that stands on another pool.

    ``places`` names each stage's pool and tensor-parallel degree; ``size`` sequences to a micro-batch. The cards of a
    stage's replicas stand next to each other, and the stages of a pool one after the other. Between pools, traffic
    takes the bridge. NaN where a link is undisclosed.
    """
    activation = activation_bytes(setting, size)
    overhead = setting.traits.message_overhead_s
    hops: list[tuple[float, bool]] = [(0.0, False)] * len(places)
    inside: dict[str, list[tuple[int, float, int, int]]] = {}
    taken: dict[str, int] = {}
    for index, ((here, degree), (there, next_degree)) in enumerate(itertools.pairwise(places)):
        start = taken.get(here, 0)
        taken[here] = start + degree * replicas
        if here == there:
            volume = activation / min(degree, next_degree)
            inside.setdefault(here, []).append((index, volume, start, degree * replicas))
        else:
            hops[index] = (float(crossing(setting, size, degree, next_degree)), True)
    for pool, rows in inside.items():
        indices, volumes, starts, distances = (np.array(column) for column in zip(*rows, strict=True))
        times = communication.point_to_point_time(volumes, distances, setting.fabrics[pool], start=starts)
        for index, seconds in zip(indices.tolist(), np.broadcast_to(times, indices.shape).tolist(), strict=True):
            hops[index] = (seconds + overhead, False)
    return hops


def gradient_sums(
    plan: Plan, setting: Setting, stage: Stage, held: Sequence[Holding], replicas: int, micro_batches: int, owners: int
) -> list[tuple[float, float]]:
    """Return the seconds a step to sum gradients inside the pool and between pools, one pair per stage.

    ``held`` is what one card holds, one entry for each of several stages that are cut like ``stage``; ``owners`` groups
    of pipelines share the model.
    """
    fabric, size = setting.fabrics[stage.pool], setting.traits.gradient_bytes
    shared, routed = (np.array([getattr(one, name) for one in held], dtype=float) for name in ("shared", "routed"))
    rounds = _Rounds.of(plan.zero, micro_batches)
    weight = wide(plan.precision)
    inside = _sum_over(rounds, shared, size, weight, replicas, stage.tensor_parallel, fabric)
    peers = expert_peers(stage, replicas)
    if routed.any():
        inside = inside + _sum_over(rounds, routed, size, weight, peers, stage.expert_parallel, fabric)
    across: Array = np.zeros(len(held))
    if owners > 1:
        across = _sum_between(setting, stage.pool, size * (shared / replicas + routed / peers), owners)
    both = (np.broadcast_to(part, len(held)).tolist() for part in (inside, across))
    return list(zip(*both, strict=True))


def _sum_between(setting: Setting, pool: str, volumes: Array, owners: int) -> Array:
    """Return the seconds to sum each card's share of the gradients over groups of pipelines.

    Over the bridge where the machine has one; in a machine of one pool, over its fabric, the groups far apart.
    """
    if setting.bridge is None and len(setting.formation.pools) == 1:
        stride = float(setting.formation.pools[0].count // owners)
        return communication.all_reduce_time(volumes, float(owners), stride, setting.fabrics[pool])
    moved = 2 * (owners - 1) / owners * np.ravel(volumes)
    return np.array([setting.bridge.time(one) if setting.bridge else math.nan for one in moved.tolist()])


def expert_peers(stage: Stage, replicas: int) -> int:
    """Return how many cards hold the same experts of a stage."""
    return max(replicas * stage.tensor_parallel // stage.expert_parallel, 1)


class _Rounds(NamedTuple):
    """How often a step reduces gradients to their owners, and gathers weights from them (0: all-reduce instead)."""

    scatters: int
    gathers: int

    @classmethod
    def of(cls, zero: int, micro_batches: int) -> _Rounds:
        """Return the rounds of a ZeRO stage. Sharded gradients (2) are reduced after every micro-batch; sharded weights
        (3) are gathered for every forward and backward."""
        return (cls(1, 0), cls(1, 1), cls(micro_batches, 1), cls(micro_batches, 2 * micro_batches))[zero]


def _sum_over(
    rounds: _Rounds, elements: Array, size: float, weight: float, group: int, stride: int, fabric: Fabric
) -> Array:
    """Return the seconds a step to sum gradients of ``size`` bytes and, with ZeRO, to gather weights of ``weight``."""
    if group == 1:
        return 0.0 * elements
    if rounds.gathers == 0:
        return communication.all_reduce_time(elements * size, float(group), float(stride), fabric)
    scatter = communication.reduce_scatter_time(elements * size, float(group), float(stride), fabric)
    gather = communication.all_gather_time(elements * weight, float(group), float(stride), fabric)
    return scatter * rounds.scatters + gather * rounds.gathers
