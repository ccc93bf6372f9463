"""The layouts of one pool as arrays, one element a candidate."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from zhenfa.estimate.setting import Setting
from zhenfa.plan.columns import Columns, alike
from zhenfa.spec.job import Limits

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_MICRO_BATCH: Final = 16
MAX_TENSOR: Final = 64
MAX_EXPERT: Final = 4096
MAX_CONTEXT: Final = 64

SHORTEST_PIECE: Final = 256
"""Tokens of a sequence below which no card is given a piece of its own: a few tiles of a flash kernel."""

OPTIMIZER_AWAY: Final = 1
"""The optimizer's state lies in host memory."""

ACTIVATIONS_AWAY: Final = 2
"""The activations of micro-batches in flight lie in host memory."""

SOME_LAYERS: Final = 4
"""Of full recomputation, only as many layers of a stage are computed again as memory asks for."""

WHOLE_SEQUENCE: Final = 8
"""Without sequence parallelism: norms and residuals are whole on every tensor-parallel card."""

NO_CARDS: Final = "more cards than the pool has"
NO_EXPERTS: Final = "experts over more cards than a stage has"
NO_BANDWIDTH: Final = "crosses a tier whose bandwidth is undisclosed"

FIRST_LOOK: Final = 64
"""Candidates whose memory is looked at together, at first; four times as many each time that was not enough."""

LARGEST_LOOK: Final = 8192

FEW_REPLICAS: Final = 16
"""Up to so many groups of replicas, every number is tried."""

FEW_MICRO_BATCHES: Final = 32
"""Up to so many micro-batches a replica, every number is tried; beyond, sixteen numbers per doubling."""


class Candidates(Columns):
    """Layouts of a homogeneous pool. ``total`` counts micro-batches of all replicas together."""

    tensor: Ints
    pipeline: Ints
    data: Ints
    expert: Ints
    size: Ints
    total: Ints
    zero: Ints
    recompute: Ints
    context: Ints
    expert_tensor: Ints
    saving: Ints
    """The sum of what is done to save memory, or left undone: :data:`OPTIMIZER_AWAY` and those behind it."""

    NAMES = (
        "tensor", "pipeline", "data", "expert", "size", "total", "zero", "recompute", "context", "expert_tensor",
        "saving",
    )  # fmt: skip
    DERIVED: ClassVar[Mapping[str, frozenset[str]]] = {
        "micro_batches": frozenset({"total", "data"}),
        "step": frozenset({"expert", "expert_tensor", "tensor", "context"}),
    }

    @classmethod
    def of(
        cls, tensor: Ints, *, context: Ints | int = 1, expert_tensor: Ints | int = 1, saving: Ints | int = 0,
        **columns: Ints,
    ) -> Candidates:  # fmt: skip
        """Return candidates; what is not said is usual."""
        ones = np.ones_like(tensor)
        return cls(
            tensor=tensor, context=context * ones, expert_tensor=expert_tensor * ones, saving=saving * ones, **columns
        )

    @cached_property
    def micro_batches(self) -> Ints:
        """Return the micro-batches of the busiest replica."""
        known: Ints | None = self.known("micro_batches")
        return -(-self.total // self.data) if known is None else known

    @cached_property
    def step(self) -> Ints:
        """Return the number of which every data-parallel degree is a multiple: expert groups must be whole."""
        known: Ints | None = self.known("step")
        return groups(self.expert * self.expert_tensor, self.tensor * self.context) if known is None else known

    @property
    def cards(self) -> Ints:
        """Return the cards that work."""
        cards: Ints = self.tensor * self.context * self.pipeline * self.data
        return cards

    @property
    def shape(self) -> tuple[Ints, ...]:
        """Return what a layer's time depends on: sequences, tensor, expert, context and expert tensor degrees."""
        return self.size, self.tensor, self.expert, self.context, self.expert_tensor


def groups(held: Ints, cards: Ints) -> Ints:
    """Return how many replicas share one set of experts."""
    found: Ints = held // np.gcd(held, cards)
    return found


def divisors(number: int, limit: int) -> list[int]:
    """Return the divisors of ``number`` up to ``limit``, ascending."""
    return [one for one in range(1, min(number, limit) + 1) if number % one == 0]


def reach(setting: Setting, pool: str) -> int:
    """Return how many cards of a pool are joined by tiers whose bandwidth is known."""
    here = setting.formation.pool(pool)
    joined = 1
    for tier in here.tiers:
        if tier.bandwidth.value is None:
            return joined
        joined = min(tier.size, here.count)
    return joined


def tensor_degrees(setting: Setting, pool: str, limits: Limits) -> list[int]:
    """Return the tensor-parallel degrees that divide every attention layer's heads and do not straddle a tier."""
    if not setting.traits.tensor_parallel:
        return [1]
    heads = [one.heads for kind in setting.graph.kinds for one in kind.operators if one.kind in {"attention", "scan"}]
    common = math.gcd(*heads) if heads else setting.graph.hidden
    most = min(MAX_TENSOR, limits.max_tensor_parallel or MAX_TENSOR, setting.formation.pool(pool).count)
    innermost = setting.formation.pool(pool).tiers[0].size
    return [one for one in divisors(common, most) if innermost % one == 0 or one % innermost == 0]


def experts(setting: Setting) -> int:
    """Return the number of routed experts that every expert layer's count is a multiple of (1 for a dense model)."""
    counts = [one.experts for kind in setting.graph.kinds for one in kind.operators if one.kind == "grouped_matmul"]
    return math.gcd(*counts) if counts and setting.traits.expert_parallel else 1


def context_degrees(setting: Setting, pool: str, limits: Limits) -> list[int]:
    """Return the context-parallel degrees: powers of two that leave each card two pieces of :data:`SHORTEST_PIECE`
    tokens or more (two, so that every card has as much of the causal triangle to do)."""
    if not setting.traits.context_parallel:
        return [1]
    most = min(limits.max_context_parallel or MAX_CONTEXT, MAX_CONTEXT, setting.formation.pool(pool).count)
    length = setting.workload.sequence_length
    degrees = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return [one for one in degrees if one == 1 or (length % (2 * one) == 0 and length // (2 * one) >= SHORTEST_PIECE)]


def micro_batch_sizes(sequences: int, limits: Limits) -> list[int]:
    """Return the micro-batch sizes, powers of two that divide the batch."""
    if limits.micro_batch_size:
        return [limits.micro_batch_size] if sequences % limits.micro_batch_size == 0 else []
    return [size for size in (1, 2, 4, 8, MAX_MICRO_BATCH) if sequences % size == 0]


def zero_stages(setting: Setting) -> tuple[int, ...]:
    """Return the ZeRO stages to try where there is something to shard.

    Where a weight takes half the bytes of its gradient, none is hardly ever better than stage 1: reducing and gathering
    moves three quarters of what an all-reduce does, and both the memory and the update shrink; but a place that is done
    early reduces while others work, and nothing hides its gather at the start. Of 1,500 random plans with as many
    replicas of each stage the step was 1 % shorter with none at most, of those that share micro-batches out 4.3 %. None
    is tried on the plans kept (:mod:`zhenfa.plan.polish`).
    """
    stages = setting.traits.zero_stages
    wide = setting.between == "fp32"
    return stages if wide or 1 not in stages else tuple(stage for stage in stages if stage)


def enumerate_pool(setting: Setting, pool: str, sequences: int, limits: Limits, rejected: Counter[str]) -> Candidates:
    """Return every layout of a pool for a batch of ``sequences``, counting what cannot be by reason.

    Each takes as many replicas as there are cards and micro-batches for; :func:`fewer_replicas` gives the others. What
    would cross a tier whose bandwidth is undisclosed takes the cards that known tiers join instead.
    """
    count = setting.formation.pool(pool).count
    wanted = min(count, limits.max_cards or count)
    cards = min(wanted, reach(setting, pool))
    layers = len(setting.graph.layers)
    deepest = min(layers, limits.max_pipeline_parallel or layers)
    degrees = divisors(experts(setting), MAX_EXPERT)
    routed = [(expert, split) for expert in degrees for split in ((False, True) if degrees[-1] > 1 else (False,))]
    axes = (
        tensor_degrees(setting, pool, limits),
        range(1, deepest + 1),
        micro_batch_sizes(sequences, limits),
        range(len(routed)),
        context_degrees(setting, pool, limits),
    )
    tensor, depth, size, way, context = np.meshgrid(
        *(np.array(axis, dtype=np.int64) for axis in axes), indexing="ij", sparse=True
    )
    expert, split = (part[way] for part in np.array(routed, dtype=np.int64).T)
    pieces, once = np.where(split == 1, tensor, 1), (split == 0) | (tensor > 1)
    total, width = sequences // size, tensor * context
    there = wanted // (width * depth)
    most = np.minimum(cards // (width * depth), total)
    step = groups(expert * pieces, width)
    data = np.where(once, most // step * step, 0)
    rejected[NO_BANDWIDTH] += _cells(once & (np.minimum(there, total) > most), data)
    rejected[NO_CARDS] += _cells(once & (there == 0), data)
    rejected[NO_EXPERTS] += _cells(once & (most > 0) & (data == 0), data)
    kept = np.flatnonzero(data)
    columns = {
        "tensor": tensor, "pipeline": depth, "data": data, "expert": expert, "size": size, "total": total,
        "context": context, "expert_tensor": pieces,
    }  # fmt: skip
    found = {name: np.broadcast_to(column, data.shape).ravel()[kept] for name, column in columns.items()}
    plain = np.zeros_like(kept)
    return _every_mode(setting, Candidates(**found, zero=plain, recompute=plain, saving=plain))


def _cells(mask: Bools, like: Ints) -> int:
    return int(mask.sum()) * (like.size // mask.size)


def _every_mode(setting: Setting, found: Candidates) -> Candidates:
    """Return layouts with every recomputation and every ZeRO stage that makes sense: gradients and weights are sharded
    without a pipeline only, and where nothing is replicated, nothing is."""
    modes = list(itertools.product(sorted({0, *zero_stages(setting)}), setting.traits.recompute))
    zero, again = np.array(modes, dtype=np.int64).T
    peers = found.data * found.context
    replicated = peers > 1
    if experts(setting) > 1:
        replicated |= peers * found.tensor > found.expert * found.expert_tensor
    sensible = np.isin(zero, zero_stages(setting)) & ((zero < 2) | (found.pipeline == 1)[:, None])
    rows, mode = np.nonzero(np.where(replicated[:, None], sensible, zero == 0))
    return found.where(rows).but(zero=zero[mode], recompute=again[mode])


def fewer_replicas(found: Candidates) -> tuple[Candidates, Ints]:
    """Return each layout with the next fewer replicas, leaving out those that have no fewer, and which are left.

    Up to :data:`FEW_REPLICAS` expert groups, that is one group less. Beyond, it is the fewest replicas that leave the
    busiest with as many micro-batches as it has, or, where it has those, with the next number of :data:`_TIMES`.
    """
    groups, step, times = found.data // found.step, found.step, found.micro_batches
    tight = -(-found.total // (times * step))
    more = _TIMES[np.minimum(np.searchsorted(_TIMES, times, side="right"), len(_TIMES) - 1)]
    tighter = np.minimum(-(-found.total // (more * step)), groups - 1)
    many = np.maximum(np.where(tight < groups, tight, tighter), FEW_REPLICAS)
    fewer = np.where(groups <= FEW_REPLICAS, groups - 1, many)
    left = np.flatnonzero(fewer > 0)
    return found.where(left).but(data=(fewer * step)[left]), left


def with_fewer(found: Candidates) -> Ints:
    """Return how many layouts :func:`fewer_replicas` leads to from each, one after the other."""
    first, back = alike((found.data // found.step, found.step, found.total))
    one = found.where(first)
    counts, rows, here = np.zeros(len(one), dtype=np.int64), np.arange(len(one)), one
    while len(here):
        here, left = fewer_replicas(here)
        rows = rows[left]
        counts[rows] += 1
    total: Ints = counts[back]
    return total


_TIMES: Final[Ints] = np.array(
    [*range(1, FEW_MICRO_BATCHES), *(round(FEW_MICRO_BATCHES * 2 ** (part / 16)) for part in range(16 * 20))]
)


def chunks(bound: Floats, known: Ints, first: int = FIRST_LOOK) -> Iterator[Ints]:
    """Yield the indices ``known`` in order of their bound, ``first`` so many, without sorting what is never reached."""
    size, left = first, known
    while len(left):
        if len(left) > size:
            nearest = np.argpartition(bound[left], size - 1)
            now, left = left[nearest[:size]], left[nearest[size:]]
        else:
            now, left = left, left[:0]
        yield now[np.argsort(bound[now], kind="stable")]
        size = min(4 * size, LARGEST_LOOK)
