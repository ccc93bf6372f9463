"""What moves between stages: activations, and the cards that it moves over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.laws.arrays import Array
from zhenfa.laws.fabric import point_to_point_time
from zhenfa.spec.plan import Stage


def wide(precision: str) -> float:
    """Return the bytes of a weight or an activation on the wire."""
    return 4.0 if precision in {"fp32", "tf32"} else 2.0


def activation_bytes(setting: Setting, size: int) -> float:
    """Return the bytes of the activations between two layers of a micro-batch of ``size`` sequences."""
    return size * setting.workload.sequence_length * setting.graph.hidden * wide(setting.between)


def bridge_bytes(setting: Setting, size: int) -> float:
    """Return the bytes of the activations of a micro-batch of ``size`` sequences as they go from a pool to another."""
    sent, whole = setting.traits.bridge_activation_bytes, activation_bytes(setting, size)
    return whole if sent is None else min(whole * sent / wide(setting.between), whole)


def crossing(setting: Setting, size: int, here: Array, there: Array) -> Any:
    """Return the seconds of one activation from a pool to another with these tensor-parallel degrees.

    NaN where no network joins the pools.
    """
    volume = bridge_bytes(setting, size) / np.minimum(here, there)
    return (setting.bridge.time(volume) if setting.bridge else math.nan) + setting.traits.message_overhead_s


def hop(setting: Setting, pool: str, volume: Array, start: Array, apart: Array) -> Any:
    """Return the seconds of a message of ``volume`` bytes inside a pool, over ``apart`` cards from the card ``start``.

    Nothing where both ends are the same. NaN where a link is undisclosed.
    """
    seconds = point_to_point_time(volume, apart, setting.fabrics[pool], start=start)
    return np.where(np.equal(apart, 0), 0.0, seconds + setting.traits.message_overhead_s)


def transfers(
    setting: Setting,
    places: Sequence[tuple[str, int]],
    size: int,
    replicas: int,
    order: Sequence[int] | None = None,
) -> list[tuple[float, bool]]:
    """Return, per stage, the seconds of one activation to the next and whether that stands on another pool.

    ``places`` names each place's pool and the cards of one replica there, which share a message out; ``order`` the
    place of each stage (None: one after the other); ``size`` sequences to a micro-batch. The cards of a place's
    replicas stand next to each other, and the places of a pool one after the other. Between pools, traffic takes the
    bridge. NaN where a link is undisclosed.
    """
    activation = activation_bytes(setting, size)
    starts: list[int] = []
    taken: dict[str, int] = {}
    for pool, degree in places:
        starts.append(taken.get(pool, 0))
        taken[pool] = starts[-1] + degree * replicas
    where = range(len(places)) if order is None else order
    hops: list[tuple[float, bool]] = [(0.0, False)] * len(where)
    inside: dict[str, list[tuple[int, float, int, int]]] = {}
    for index, (one, other) in enumerate(itertools.pairwise(where)):
        (here, degree), (there, next_degree) = places[one], places[other]
        if here == there:
            first, last = sorted((starts[one], starts[other]))
            inside.setdefault(here, []).append((index, activation / min(degree, next_degree), first, last - first))
        else:
            hops[index] = (float(crossing(setting, size, degree, next_degree)), True)
    for pool, rows in inside.items():
        indices, volumes, nearer, distances = (np.array(column) for column in zip(*rows, strict=True))
        times = np.broadcast_to(hop(setting, pool, volumes, nearer, distances), indices.shape)
        for index, seconds in zip(indices.tolist(), times.tolist(), strict=True):
            hops[index] = (seconds, False)
    return hops


def expert_peers(stage: Stage, replicas: int) -> int:
    """Return how many cards hold the same part of the same experts of a stage."""
    return max(replicas * stage.cards // (stage.expert_parallel * stage.expert_tensor_parallel), 1)
