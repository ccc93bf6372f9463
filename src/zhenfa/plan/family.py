"""Pipelines over several pools as arrays: options of each pool, stages, replicas, and the bounds that cost little.

See :mod:`zhenfa.plan.mixed` for the bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats
from zhenfa.plan.build import Layout, Slot
from zhenfa.plan.search import SLOWER, Tally
from zhenfa.plan.space import (
    Bools,
    Candidates,
    Ints,
    divisors,
    experts,
    micro_batch_sizes,
    reach,
    tensor_degrees,
    zero_stages,
)
from zhenfa.spec.job import Limits

MAX_POOLS_ORDERED: Final = 4
"""Pools that one pipeline may cross; their orders are all tried."""

MAX_MIXED_TENSOR: Final = 16

FEW_OPTIONS: Final = 48
"""Up to so many ways to cut a pool's stages, all are tried."""

FEWER_AT_MOST: Final = 40_000
"""Mixed pipelines with fewer stages than there are cards for that are looked at."""

UNSEEN: Final = "not looked at (mixed pipelines that leave cards idle)"


@dataclass(frozen=True)
class Options:
    """The ways to cut one pool's stages, as arrays: degrees, seconds of one micro-batch over the whole model, and of a
    layer of each kind, shape ``[kinds, options]``."""

    pool: str
    tensor: Ints
    expert: Ints
    recompute: Ints
    work: bounds.Work
    count: int
    routed: bool
    """Whether the model has experts."""

    def __len__(self) -> int:
        return len(self.tensor)

    def slot(self, index: int) -> Slot:
        """Return one option as a slot."""
        return Slot(self.pool, int(self.tensor[index]), int(self.expert[index]), int(self.recompute[index]))


@dataclass(frozen=True)
class Family:
    """Mixed pipelines over the same pools, with the same micro-batch size and ZeRO stage; arrays ``[candidate]``."""

    options: list[Options]
    chosen: Ints
    """Which option each pool takes, ``[pools, candidates]``."""
    depth: Ints
    """Stages of each pool, ``[pools, candidates]``."""
    replicas: Ints
    bound: Floats
    """Seconds that cannot be beaten."""
    size: int
    total: int
    zero: int

    def __len__(self) -> int:
        return len(self.replicas)

    @property
    def micro_batches(self) -> Ints:
        """Return the micro-batches of the busiest replica."""
        return -(-self.total // self.replicas)

    @property
    def zeros(self) -> Ints:
        """Return the ZeRO stage of each candidate: none where nothing is replicated."""
        shared = [self.replicas * one.tensor[pick] > one.expert[pick] for one, pick in self._picks if one.routed]
        zeros: Ints = np.where(np.logical_or.reduce([self.replicas > 1, *shared]), self.zero, 0)
        return zeros

    @property
    def _picks(self) -> list[tuple[Options, Ints]]:
        return list(zip(self.options, self.chosen, strict=True))

    def where(self, index: Ints) -> Family:
        """Return the candidates that an index selects."""
        return replace(
            self, chosen=self.chosen[:, index], depth=self.depth[:, index], replicas=self.replicas[index],
            bound=self.bound[index],
        )  # fmt: skip

    def layout(self, index: int, order: Sequence[int]) -> Layout:
        """Return one candidate with its pools in an order."""
        slots: list[Slot] = []
        for pool in order:
            slots += [self.options[pool].slot(int(self.chosen[pool, index]))] * int(self.depth[pool, index])
        replicas, zero = int(self.replicas[index]), int(self.zeros[index])
        return Layout(tuple(slots), replicas, self.size, -(-self.total // replicas), zero)

    def candidates(self, pool: int) -> Candidates:
        """Return the candidates as one pool sees them."""
        one, pick = self.options[pool], self.chosen[pool]
        same = np.ones_like(self.replicas)
        return Candidates.of(
            one.tensor[pick], pipeline=self.depth[pool], data=self.replicas, expert=one.expert[pick],
            size=self.size * same, total=self.total * same, zero=self.zeros, recompute=one.recompute[pick],
        )  # fmt: skip


def every_family(setting: Setting, sequences: int, limits: Limits, limit: float, tally: Tally) -> Iterator[Family]:
    """Yield every choice of two or more pools and micro-batch size, with the candidates that may stay below ``limit``.

    Those left out are counted as slower.
    """
    names = [pool.name for pool in setting.formation.pools]
    stages = [stage for stage in zero_stages(setting) if stage < 2]
    for size in micro_batch_sizes(sequences, limits):
        options = {name: _options(setting, name, size, limits) for name in names}
        for count in range(2, min(len(names), MAX_POOLS_ORDERED) + 1):
            for members in itertools.combinations(names, count):
                chosen = [options[name] for name in members]
                for zero in stages or [0]:
                    family, left_out = family_over(setting, chosen, size, sequences // size, zero, limits, limit)
                    tally.considered += left_out * math.factorial(count)
                    tally.rejected[SLOWER] += left_out * math.factorial(count)
                    yield family


def family_over(
    setting: Setting, options: list[Options], size: int, total: int, zero: int, limits: Limits, limit: float
) -> tuple[Family, int]:
    """Return every choice of options and data-parallel degree over these pools that may stay below ``limit``, with all
    the stages that the cards and the layers allow, bounded; and how many were left out."""
    degrees = np.array(_degrees(min(total, *(one.count for one in options))))
    grid = np.meshgrid(*(np.arange(len(one)) for one in options), np.arange(len(degrees)), indexing="ij", sparse=True)
    *chosen, place = grid
    speed: Floats = np.zeros(())
    possible: Bools = np.ones((), dtype=bool)
    for one, pick in zip(options, chosen, strict=True):
        depth = one.count // (one.tensor[:, None] * degrees)
        whole = (depth >= 1) & (degrees * one.tensor[:, None] % one.expert[:, None] == 0)
        speed = speed + (depth / one.work.whole[:, None])[pick, place]
        possible = possible & whole[pick, place]
    with np.errstate(divide="ignore"):
        likely = possible & (-(-total // degrees) / speed < limit)
    *picks, number = np.nonzero(likely)
    replicas = degrees[number]
    depth = np.stack([one.count // (one.tensor[pick] * replicas) for one, pick in zip(options, picks, strict=True)])
    family = Family(options, np.stack(picks), depth, replicas, np.zeros(len(replicas)), size, total, zero)
    left_out = int(possible.sum()) - len(family)
    return _bounded(setting, _trimmed(family, _deepest(setting, limits), limits.max_cards)), left_out


def _deepest(setting: Setting, limits: Limits) -> int:
    layers = len(setting.graph.layers)
    return min(layers, limits.max_pipeline_parallel or layers)


def _seconds(family: Family) -> Floats:
    """Return the seconds of one micro-batch over the whole model on each pool, ``[pools, candidates]``."""
    return np.stack([one.work.whole[pick] for one, pick in zip(family.options, family.chosen, strict=True)])


def _trimmed(family: Family, deepest: int, cards: int | None) -> Family:
    """Take stages from the slowest cards where a pipeline is deeper than the model or takes more cards than allowed.

    Each pool keeps at least one; what is still too deep or too wide is left out.
    """
    depth = family.depth.copy()
    width = np.stack([one.tensor[pick] for one, pick in zip(family.options, family.chosen, strict=True)])
    width = width * family.replicas
    columns = np.arange(len(family))
    for row in np.argsort(-_seconds(family), axis=0, kind="stable"):
        over = np.maximum(depth.sum(axis=0) - deepest, 0)
        if cards is not None:
            over = np.maximum(over, -(-np.maximum((depth * width).sum(axis=0) - cards, 0) // width[row, columns]))
        depth[row, columns] -= np.minimum(over, np.maximum(depth[row, columns] - 1, 0))
    keep = depth.sum(axis=0) <= deepest
    if cards is not None:
        keep &= (depth * width).sum(axis=0) <= cards
    return replace(family, depth=depth).where(np.flatnonzero(keep))


def _least_seconds(setting: Setting, family: Family) -> Floats:
    """Return seconds of one micro-batch over the whole model on each pool that hold for any mixture of its layers.

    Let a layer of kind ``k`` count ``w_k``, the whole model 1. Layers that count ``W`` take at least ``W`` times the
    least ``a_ik / w_k`` on pool ``i``, where one of them takes ``a_ik``. Any ``w`` will do; of those that some pool's
    own seconds give, and their mean, each candidate takes the one that makes its pools together slowest. Where pools
    differ in speed alone, that is what :func:`_seconds` says.
    """
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    times = np.concatenate([counts, np.ones(2)])[:, None]
    works = [one.work.take(pick) for one, pick in zip(family.options, family.chosen, strict=True)]
    parts = np.stack([np.concatenate([work.layers, work.ends]) for work in works])
    own = parts / np.stack([work.whole for work in works])[:, None]
    best, chosen = np.zeros(len(family)), np.zeros(family.depth.shape)
    for weight in (*own, own.mean(axis=0), own.min(axis=0)):
        ratio = np.divide(parts, weight, out=np.full_like(parts, np.inf), where=weight > 0)
        seconds = (times * weight).sum(axis=0) * ratio.min(axis=1)
        slow = 1 / (family.depth / seconds).sum(axis=0)
        chosen, best = np.where(slow > best, seconds, chosen), np.maximum(slow, best)
    return chosen


def _bounded(setting: Setting, family: Family) -> Family:
    """Return a family with the first two bounds."""
    if not len(family):
        return family
    seconds, times = _least_seconds(setting, family), family.micro_batches
    speed = (family.depth / seconds).sum(axis=0)
    return replace(family, bound=fill(times / speed, family.depth, seconds, times))


def fill(bound: Floats, depth: Ints, seconds: Floats, times: Ints) -> Floats:
    """Sharpen the bound by what filling and draining the pipeline costs.

    With ``X`` the step, no stage works longer than ``C = X / m`` on a micro-batch, so the whole model works at least
    ``T(C)``: fast stages full, the rest on slower ones. And ``X >= T r`` with :func:`zhenfa.plan.bounds.ramp`.
    Bisection keeps the lower end a bound.
    """
    deep = depth.sum(axis=0)
    ramp = bounds.ramp(deep, times)
    order = np.argsort(seconds, axis=0)
    quick, many = np.take_along_axis(seconds, order, 0), np.take_along_axis(depth, order, 0)
    low, high = bound, bound * np.maximum(ramp * deep / times, 1.0)
    for _ in range(8):
        middle = (low + high) / 2
        left, work = np.ones_like(middle), np.zeros_like(middle)
        for one, stages in zip(quick, many, strict=True):
            taken = np.minimum(left, stages * middle / times / one)
            left, work = left - taken, work + taken * one
        short = ramp * work > middle
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return low


def whole_layers(setting: Setting, family: Family) -> Floats:
    """Return ``m C`` for the least ``C`` at which whole layers of the most numerous kind find a place."""
    kind = bounds.main_index(setting)
    layer = np.stack([one.work.layers[kind, pick] for one, pick in zip(family.options, family.chosen, strict=True)])
    needed = np.bincount(setting.graph.layers)[kind]
    low: Floats = needed / (family.depth / layer).sum(axis=0)
    high = low + layer.max(axis=0)
    for _ in range(24):
        middle = (low + high) / 2
        short = (family.depth * np.floor(middle / layer + 1e-9)).sum(axis=0) < needed
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    bound: Floats = low * family.micro_batches
    return bound


def fewer_stages(setting: Setting, family: Family, limit: float, budget: int, tally: Tally) -> Family:
    """Return the candidates with fewer stages, or other shares of them, whose bound is below ``limit``.

    A stage less, or one moved to slower cards where the pipeline is as deep as it may be, only raises the bound; every
    choice of stages is reached from the deepest one in such steps.
    """
    deepest, found = family.depth.sum(axis=0).max(initial=0), []
    known: set[bytes] = set()
    here = _unknown(family, limit, known)
    while len(here):
        here = _unknown(_bounded(setting, _children(here, int(deepest))), limit, known)
        if len(known) > budget:
            tally.considered += len(here)
            tally.rejected[UNSEEN] += len(here)
            break
        found.append(here)
    return _together(family, found)


def _children(here: Family, deepest: int) -> Family:
    """Return each candidate with one stage less on each pool, and with one moved from each pool to each slower one."""
    pools = len(here.options)
    seconds, parts = _seconds(here), []
    width = [one.tensor[pick] * here.replicas for one, pick in zip(here.options, here.chosen, strict=True)]
    for source, target in itertools.product(range(pools), range(-1, pools)):
        depth = here.depth.copy()
        depth[source] -= 1
        possible = depth[source] >= 1
        if target >= 0:
            depth[target] += 1
            possible &= (seconds[target] >= seconds[source]) & (here.depth.sum(axis=0) == deepest) & (target != source)
            possible &= depth[target] * width[target] <= here.options[target].count
        parts.append(replace(here, depth=depth).where(np.flatnonzero(possible)))
    return _together(here, parts)


def _unknown(family: Family, limit: float, known: set[bytes]) -> Family:
    """Return the candidates that were not there before and whose bound is below the limit."""
    rows = np.concatenate([family.chosen, family.depth, family.replicas[None]]).T.copy()
    fresh = []
    for index in np.flatnonzero(family.bound < limit).tolist():
        key = rows[index].tobytes()
        if key not in known:
            known.add(key)
            fresh.append(index)
    return family.where(np.array(fresh, dtype=np.int64))


def _together(like: Family, parts: Sequence[Family]) -> Family:
    if not parts:
        return like.where(np.zeros(0, dtype=np.int64))
    return replace(
        like,
        chosen=np.concatenate([part.chosen for part in parts], axis=1),
        depth=np.concatenate([part.depth for part in parts], axis=1),
        replicas=np.concatenate([part.replicas for part in parts]),
        bound=np.concatenate([part.bound for part in parts]),
    )


def _degrees(widest: int) -> list[int]:
    """Return the data-parallel degrees to try: all up to 16, all divisors of the widest, about eight per doubling."""
    doublings = max(1, math.ceil(math.log2(widest + 1)))
    steps = {min(widest, round(2 ** (eighth / 8))) for eighth in range(8 * doublings + 1)}
    return sorted(steps | set(range(1, min(widest, 16) + 1)) | set(divisors(widest, widest)))


def _options(setting: Setting, name: str, size: int, limits: Limits) -> Options:
    """Return the ways to cut one pool's stages.

    Where they are more than :data:`FEW_OPTIONS`: per tensor degree and recomputation, the two quickest expert degrees
    among those that spread the experts over 32 cards or more.
    """
    count = min(setting.formation.pool(name).count, reach(setting, name))
    degrees = [one for one in tensor_degrees(setting, name, limits) if one <= min(count, MAX_MIXED_TENSOR)]
    rows = list(itertools.product(degrees, divisors(experts(setting), 512), setting.traits.recompute))
    tensor, expert, again = np.array(rows, dtype=np.int64).T
    ones = np.ones_like(tensor)
    cut = Candidates.of(
        tensor, pipeline=ones, data=ones, expert=expert, size=size * ones, total=ones, zero=0 * ones, recompute=again
    )
    work = bounds.work_per_micro_batch(setting, name, cut)
    keep = np.isfinite(work.whole) & (expert <= count * degrees[-1])
    if keep.sum() > FEW_OPTIONS:
        keep &= expert >= min(32, experts(setting))
        quicker = (work.whole[None] < work.whole[:, None]) & keep[None]
        alike = (tensor[None] == tensor[:, None]) & (again[None] == again[:, None])
        keep &= (quicker & alike).sum(axis=1) < 2
    chosen = np.flatnonzero(keep)
    routed = experts(setting) > 1
    return Options(name, tensor[chosen], expert[chosen], again[chosen], work.take(chosen), count, routed)
