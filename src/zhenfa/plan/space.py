"""The layouts of one pool as arrays, one element a candidate."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from zhenfa.estimate.setting import Setting
from zhenfa.spec.job import Limits

Ints = npt.NDArray[np.int64]

MAX_MICRO_BATCH = 16
MAX_TENSOR = 64


@dataclass(frozen=True)
class Candidates:
    """Layouts of a homogeneous pool. ``micro_batches`` is of the busiest replica, ``total`` of all replicas together."""

    tensor: Ints
    pipeline: Ints
    data: Ints
    expert: Ints
    size: Ints
    total: Ints
    zero: Ints
    recompute: Ints

    def __len__(self) -> int:
        return len(self.tensor)

    @cached_property
    def micro_batches(self) -> Ints:
        """Return the micro-batches of the busiest replica."""
        return -(-self.total // self.data)

    def where(self, mask: npt.NDArray[np.bool_] | Ints) -> Candidates:
        """Return the candidates that a mask or an index selects."""
        return Candidates(*(getattr(self, one.name)[mask] for one in fields(self)))


def divisors(number: int, limit: int) -> list[int]:
    """Return the divisors of ``number`` up to ``limit``, ascending."""
    return [one for one in range(1, min(number, limit) + 1) if number % one == 0]


def tensor_degrees(setting: Setting, pool: str, limits: Limits) -> list[int]:
    """Return the tensor-parallel degrees that divide every attention layer's heads and do not straddle a tier."""
    if not setting.traits.tensor_parallel:
        return [1]
    heads = [one.heads for kind in setting.graph.kinds for one in kind.operators if one.kind in {"attention", "scan"}]
    common = math.gcd(*heads) if heads else setting.graph.hidden
    most = min(MAX_TENSOR, limits.max_tensor_parallel or MAX_TENSOR, setting.formation.pool(pool).count)
    sizes = [tier.size for tier in setting.formation.pool(pool).tiers]
    return [
        degree
        for degree in divisors(common, most)
        if all(size % degree == 0 or degree % size == 0 for size in sizes[:1])
    ]


def experts(setting: Setting) -> int:
    """Return the number of routed experts that every expert layer's count is a multiple of (1 for a dense model)."""
    counts = [one.experts for kind in setting.graph.kinds for one in kind.operators if one.kind == "grouped_matmul"]
    return math.gcd(*counts) if counts and setting.traits.expert_parallel else 1


def micro_batch_sizes(sequences: int, limits: Limits) -> list[int]:
    """Return the micro-batch sizes, powers of two that divide the batch."""
    if limits.micro_batch_size:
        return [limits.micro_batch_size] if sequences % limits.micro_batch_size == 0 else []
    return [size for size in (1, 2, 4, 8, MAX_MICRO_BATCH) if sequences % size == 0]


def enumerate_pool(setting: Setting, pool: str, sequences: int, limits: Limits, rejected: Counter[str]) -> Candidates:
    """Return every layout of a pool for a batch of ``sequences``, counting what cannot be by reason."""
    cards = min(setting.formation.pool(pool).count, limits.max_cards or 10**9)
    layers = len(setting.graph.layers)
    deepest = min(layers, limits.max_pipeline_parallel or layers)
    rows: list[tuple[int, ...]] = []
    for tensor in tensor_degrees(setting, pool, limits):
        for depth, size in itertools.product(range(1, deepest + 1), micro_batch_sizes(sequences, limits)):
            data = min(cards // (tensor * depth), sequences // size)
            if data == 0:
                rejected["more cards than the pool has"] += 1
                continue
            rows.extend(_modes(setting, tensor, depth, data, size, sequences // size, rejected))
    table = np.array(rows, dtype=np.int64).reshape(-1, 8)
    return Candidates(*table.T)


def _modes(
    setting: Setting, tensor: int, depth: int, data: int, size: int, total: int, rejected: Counter[str]
) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    stages = [stage for stage in setting.traits.zero_stages if stage < 2 or depth == 1]
    for expert in divisors(experts(setting), 4096):
        step = expert // math.gcd(expert, tensor)
        replicas = data // step * step
        if replicas == 0:
            rejected["experts over more cards than a stage has"] += 1
            continue
        for zero, again in itertools.product(stages if replicas > 1 else [0], setting.traits.recompute):
            rows.append((tensor, depth, replicas, expert, size, total, zero, again))
    return rows
