"""Search a pool of several makers: makers meet in the pipeline, or in data parallel. Never worse than one maker alone.

*In the pipeline*: every pool holds consecutive stages of each replica; layers are split exactly over unequal stages.
A layout is bounded by ``m / sum(p_i / t_i)`` (``p_i`` stages on pool ``i``, where a micro-batch over the whole model
would take ``t_i``): no split can keep every stage busier than always.

*In data parallel*: every pool runs whole replicas of its own best layout, and sequences are shared so that all finish
together; the gradient sum between makers is added.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zhenfa.estimate.layer import Shape
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats
from zhenfa.plan.build import Layout, Slot
from zhenfa.plan.search import NO_MEMORY, SLOWER, Best, Found, Tally, evaluate, search_pool
from zhenfa.plan.space import Candidates, Ints, divisors, experts, micro_batch_sizes, tensor_degrees
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan

MAX_POOLS_ORDERED = 4
"""Pools that one pipeline may cross; their orders are all tried."""

COSTED_AT_MOST = 400
"""Mixed pipelines costed exactly, best bound first. Where that stops the search, the answer says so."""


MAX_MIXED_TENSOR = 16


@dataclass(frozen=True)
class _Options:
    """The ways to cut one pool's stages, as arrays: degrees, seconds of one micro-batch over the whole model, and
    bytes of one layer (state without ZeRO's sharding, one micro-batch's activations)."""

    pool: str
    tensor: Ints
    expert: Ints
    recompute: Ints
    seconds: Floats
    count: int

    def __len__(self) -> int:
        return len(self.tensor)

    def slot(self, index: int) -> Slot:
        """Return one option as a slot."""
        return Slot(self.pool, int(self.tensor[index]), int(self.expert[index]), int(self.recompute[index]))


def search_mixed(setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally) -> None:
    """Offer to ``best`` plans over single pools, pipelines over several pools, and data parallel over several."""
    names = [pool.name for pool in setting.formation.pools]
    alone: dict[str, Best] = {}
    for name in names:
        alone[name] = Best(best.keep)
        search_pool(setting, job, name, sequences, limits, alone[name], tally)
        for found in alone[name].ranked():
            best.offer(found.plan, found.cost)
    if len(names) == 1:
        return
    pipelines_over_pools(setting, job, sequences, limits, best, tally)
    replicas_over_pools(setting, job, sequences, limits, best, tally)


def pipelines_over_pools(setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally) -> None:
    """Offer pipelines whose stages stand on two or more pools, in every order of the pools."""
    names = [pool.name for pool in setting.formation.pools]
    families: list[_Family] = []
    for size in micro_batch_sizes(sequences, limits):
        options = {name: _options(setting, name, size, limits) for name in names}
        for count in range(2, min(len(names), MAX_POOLS_ORDERED) + 1):
            for members in itertools.combinations(names, count):
                base = _family(setting, [options[name] for name in members], size, sequences // size, limits)
                families.extend(_in_order(setting, base, order) for order in itertools.permutations(range(count)))
    looked_at = sum(len(family.bound) for family in families)
    tally.considered += looked_at
    fitting = sum(int(np.isfinite(family.bound).sum()) for family in families)
    tally.rejected[NO_MEMORY] += looked_at - fitting
    order = heapq.nsmallest(
        COSTED_AT_MOST,
        ((float(family.bound[index]), number, int(index)) for number, family in enumerate(families)
         for index in np.argsort(family.bound, kind="stable")[:COSTED_AT_MOST] if np.isfinite(family.bound[index])),
    )  # fmt: skip
    queue = [(bound, families[number].layout(index, setting), families[number].total) for bound, number, index in order]
    evaluate(iter(queue), len(queue), setting, job, best, tally)
    left = fitting - len(queue)
    if left and (not order or order[-1][0] < best.last):
        tally.rejected[f"not costed (the search stops after {COSTED_AT_MOST} mixed pipelines)"] += left
    else:
        tally.rejected[SLOWER] += left


@dataclass(frozen=True)
class _Family:
    """Mixed pipelines over the same pools, in one order, with the same micro-batch size; arrays ``[candidate]``."""

    options: list[_Options]
    chosen: Ints
    """Which option each pool takes, ``[pools, candidates]``."""
    depth: Ints
    """Stages of each pool, ``[pools, candidates]``."""
    replicas: Ints
    bound: Floats
    """Seconds that cannot be beaten; infinite where memory cannot hold the layers."""
    size: int
    total: int

    def layout(self, index: int, setting: Setting) -> Layout:
        """Return one candidate."""
        slots: list[Slot] = []
        for options, chosen, depth in zip(self.options, self.chosen, self.depth, strict=True):
            slots += [options.slot(int(chosen[index]))] * int(depth[index])
        replicas = int(self.replicas[index])
        zero = 1 if replicas > 1 and 1 in setting.traits.zero_stages else 0
        return Layout(tuple(slots), replicas, self.size, -(-self.total // replicas), zero)


def _family(setting: Setting, options: list[_Options], size: int, total: int, limits: Limits) -> _Family:
    """Return every choice of options and data-parallel degree over these pools, bounded."""
    layers = len(setting.graph.layers)
    deepest = min(layers, limits.max_pipeline_parallel or layers)
    widest = min(total, *(one.count for one in options))
    grid = np.meshgrid(*(np.arange(len(one)) for one in options), np.array(_degrees(widest)), indexing="ij")
    *chosen, replicas = (axis.reshape(-1) for axis in grid)
    depth = np.stack([one.count // (one.tensor[pick] * replicas) for one, pick in zip(options, chosen, strict=True)])
    whole = [replicas * one.tensor[pick] % one.expert[pick] == 0 for one, pick in zip(options, chosen, strict=True)]
    keep = np.logical_and.reduce([*whole, depth.min(axis=0) >= 1])
    picks, depth, replicas = np.stack(chosen)[:, keep], depth[:, keep], replicas[keep]
    seconds = np.stack([one.seconds[pick] for one, pick in zip(options, picks, strict=True)])
    depth = _trim(depth, seconds, deepest)
    times = -(-total // np.maximum(replicas, 1))
    speed = (depth / seconds).sum(axis=0)
    bound = np.where(depth.min(axis=0, initial=1) >= 1, _fill(times / speed, depth, seconds, times), np.inf)
    return _Family(options, picks, depth, replicas, bound, size, total)


def _in_order(setting: Setting, base: _Family, order: Sequence[int]) -> _Family:
    """Return a family with its pools in another order; the bound is infinite where memory cannot hold the layers."""
    options, picks, depth = [base.options[i] for i in order], base.chosen[list(order)], base.depth[list(order)]
    times = -(-base.total // base.replicas)
    room, needed = np.zeros(len(base.replicas)), bounds.main_kind(setting)[1]
    behind = depth[::-1].cumsum(axis=0)[::-1] - depth
    for one, pick, stages, after in zip(options, picks, depth, behind, strict=True):
        room += _layers_that_fit(setting, one, pick, stages, after, base.replicas, times, base.size)
    bound = np.where(room >= needed, base.bound, np.inf)
    return replace(base, options=options, chosen=picks, depth=depth, bound=bound)


def _fill(bound: Floats, depth: Ints, seconds: Floats, times: Ints) -> Floats:
    """Sharpen the bound by what filling and draining the pipeline costs.

    With ``X`` the step, no stage works longer than ``C = X / m`` on a micro-batch, so the whole model works at least
    ``T(C)``: fast stages full, the rest on slower ones. And ``X >= T (m + p - 1) / p`` where ``m > p`` (see
    :mod:`zhenfa.plan.bounds`). Bisection keeps the lower end a bound.
    """
    deep = depth.sum(axis=0)
    ramp = np.where(times > deep, (times + deep - 1) / np.maximum(deep, 1), 1.0)
    order = np.argsort(seconds, axis=0)
    quick, many = np.take_along_axis(seconds, order, 0), np.take_along_axis(depth, order, 0)
    low, high = bound, bound * ramp * deep / times
    for _ in range(5):
        middle = (low + high) / 2
        left, work = np.ones_like(middle), np.zeros_like(middle)
        for one, stages in zip(quick, many, strict=True):
            taken = np.minimum(left, stages * middle / times / one)
            left, work = left - taken, work + taken * one
        short = ramp * work > middle
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.maximum(bound, low)


def _layers_that_fit(
    setting: Setting, options: _Options, pick: Ints, stages: Ints, after: Ints, replicas: Ints, times: Ints, size: int
) -> Floats:
    """Return at least as many layers as a pool's consecutive stages can hold, ``after`` stages before the last.

    A stage with ``k`` micro-batches in flight holds ``usable / (a + b k)`` layers; the sum over ``k`` is at most the
    integral half a step around it, because the terms are convex in ``k``.
    """
    shape = Shape(
        float(size), float(setting.workload.sequence_length), options.tensor[pick].astype(float),
        options.expert[pick].astype(float), replicas.astype(float),
    )  # fmt: skip
    zero = 1 if 1 in setting.traits.zero_stages else 0
    state, activation = bounds.main_layer(setting, shape, zero, options.recompute[pick])
    usable = setting.chips[options.pool].usable
    few, many = after + 0.5, after + stages + 0.5
    integral = usable / activation * np.log((state + activation * many) / (state + activation * few))
    return np.where(times >= after + stages, integral, stages * usable / (state + activation))


def _degrees(widest: int) -> list[int]:
    """Return the data-parallel degrees to try: all up to 16, all divisors of the widest, about eight per doubling."""
    doublings = max(1, math.ceil(math.log2(widest + 1)))
    steps = {min(widest, round(2 ** (eighth / 8))) for eighth in range(8 * doublings + 1)}
    return sorted(steps | set(range(1, min(widest, 16) + 1)) | set(divisors(widest, widest)))


def _trim(depth: Ints, seconds: Floats, deepest: int) -> Ints:
    """Take stages from the slowest cards where a pipeline is deeper than the model; each pool keeps at least one."""
    depth = depth.copy()
    columns = np.arange(depth.shape[1])
    for row in np.argsort(-seconds, axis=0, kind="stable"):
        over = np.maximum(depth.sum(axis=0) - deepest, 0)
        depth[row, columns] -= np.minimum(over, np.maximum(depth[row, columns] - 1, 0))
    return np.where(depth.sum(axis=0) > deepest, 0, depth)


def _options(setting: Setting, name: str, size: int, limits: Limits) -> _Options:
    """Return the ways to cut one pool's stages: per tensor degree and recomputation, the two best expert degrees."""
    pool = setting.formation.pool(name)
    rows = [
        (tensor, expert, again)
        for tensor in tensor_degrees(setting, name, limits)
        for expert in divisors(experts(setting), 512)
        for again in setting.traits.recompute
        if tensor <= min(pool.count, MAX_MIXED_TENSOR) and expert <= pool.count
    ]
    tensor, expert, again = np.array(rows, dtype=np.int64).T
    ones = np.ones_like(tensor)
    table = Candidates(tensor, ones, ones, expert, size * ones, ones, 0 * ones, again)
    seconds, _, _ = bounds.work_per_micro_batch(setting, name, table)
    wide = expert >= min(32, experts(setting))
    keep = [
        index
        for index in np.flatnonzero(np.isfinite(seconds))
        if ((tensor == tensor[index]) & (again == again[index]) & wide & (seconds < seconds[index])).sum() < 2
        and wide[index]
    ]
    chosen = np.array(keep, dtype=np.int64)
    return _Options(name, tensor[chosen], expert[chosen], again[chosen], seconds[chosen], pool.count)


def replicas_over_pools(setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally) -> None:
    """Offer data parallel over all pools: each runs its own best layout on a share of the batch."""
    share = 16 if sequences % 16 == 0 else 1
    speeds = {}
    for pool in setting.formation.pools:
        found = _quickest(setting, job, pool.name, sequences, limits)
        if found is None:
            continue
        speeds[pool.name] = sequences / found.step
    if len(speeds) < 2:
        return
    parts = _shares(speeds, sequences, share)
    plans = {name: _quickest(setting, job, name, part, limits) for name, part in parts.items() if part}
    entries = [found.plan for found in plans.values() if found is not None]
    if len(entries) < 2 or len(entries) < len(plans):
        return
    tally.considered += 1
    joint = _rebalance(setting, _join(entries), sequences)
    if joint is None:
        return
    found_cost = cost(joint, setting)
    tally.costed += 1
    if found_cost.problem:
        tally.rejected[found_cost.problem] += 1
        return
    best.offer(joint, found_cost)


def _quickest(setting: Setting, job: str, pool: str, sequences: int, limits: Limits) -> Found | None:
    best = Best(1)
    search_pool(setting, job, pool, sequences, limits, best, Tally())
    ranked = best.ranked()
    return ranked[0] if ranked else None


def _shares(speeds: dict[str, float], sequences: int, grain: int) -> dict[str, int]:
    """Split ``sequences`` in proportion to the speeds, in multiples of ``grain``, none lost."""
    whole = sequences // grain
    exact = {name: whole * speed / sum(speeds.values()) for name, speed in speeds.items()}
    parts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda one: parts[one] - exact[one])[: whole - sum(parts.values())]:
        parts[name] += 1
    result = {name: part * grain for name, part in parts.items()}
    fastest = max(speeds, key=lambda one: speeds[one])
    result[fastest] += sequences - sum(result.values())
    return result


def _join(plans: Sequence[Plan]) -> Plan:
    """Put the pipelines of several plans into one."""
    entries = tuple(entry for plan in plans for entry in plan.pipelines)
    return plans[0].model_copy(update={"pipelines": entries, "zero": max(plan.zero for plan in plans)})


def _rebalance(setting: Setting, plan: Plan, sequences: int) -> Plan | None:
    """Move micro-batches from the pool that finishes last to the one that finishes first while that helps."""
    groups = _by_pool(plan)
    if sum(entry.sequences for entries in groups.values() for entry in entries) != sequences:
        return None
    totals = {name: sum(entry.count * entry.micro_batches for entry in entries) for name, entries in groups.items()}
    sizes = {name: entries[0].micro_batch_size for name, entries in groups.items()}
    grain = math.lcm(*sizes.values())
    current, step = plan, cost(plan, setting).step
    for _ in range(64):
        times = {group.stages[0].stage.pool: group.step for group in cost(current, setting).groups}
        slow, fast = max(times, key=lambda one: times[one]), min(times, key=lambda one: times[one])
        moved = dict(totals)
        moved[slow] -= grain // sizes[slow]
        moved[fast] += grain // sizes[fast]
        if moved[slow] < 1 or slow == fast:
            break
        trial = plan.model_copy(update={"pipelines": _entries(groups, moved)})
        trial_step = cost(trial, setting).step
        if trial_step >= step:
            break
        current, step, totals = trial, trial_step, moved
    return current


def _by_pool(plan: Plan) -> dict[str, list[Pipeline]]:
    groups: dict[str, list[Pipeline]] = {}
    for entry in plan.pipelines:
        groups.setdefault(entry.stages[0].pool, []).append(entry)
    return groups


def _entries(groups: dict[str, list[Pipeline]], totals: dict[str, int]) -> tuple[Pipeline, ...]:
    entries = []
    for name, members in groups.items():
        replicas = sum(entry.count for entry in members)
        few, more = divmod(totals[name], replicas)
        for count, times in ((more, few + 1), (replicas - more, few)):
            if count and times:
                entries.append(members[0].model_copy(update={"count": count, "micro_batches": times}))
    return tuple(entries)
