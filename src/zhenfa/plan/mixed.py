"""Search a pool of several makers: makers meet in the pipeline, or in data parallel. Never worse than one maker alone.

*In the pipeline*: every pool holds consecutive stages of each replica; layers are split exactly over unequal stages.
A layout is bounded by ``m / sum(p_i / t_i)`` (``p_i`` stages on pool ``i``, where a micro-batch over the whole model
would take ``t_i``): no split can keep every stage busier than always.

*In data parallel*: every pool runs whole replicas of its own best layout, and sequences are shared so that all finish
together; the gradient sum between makers is added.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost
from zhenfa.plan import bounds
from zhenfa.plan.build import Layout, Slot
from zhenfa.plan.search import Best, Found, Tally, evaluate, search_pool
from zhenfa.plan.space import Candidates, divisors, experts, micro_batch_sizes, tensor_degrees
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan

MAX_POOLS_ORDERED = 4
COSTED_AT_MOST = 600


@dataclass(frozen=True)
class _Option:
    """How one pool may cut its stages, and the seconds of one micro-batch over the whole model."""

    pool: str
    tensor: int
    expert: int
    size: int
    recompute: int
    seconds: float


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


def pipelines_over_pools(
    setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally
) -> None:
    """Offer pipelines whose stages stand on two or more pools, in every order of the pools."""
    names = [pool.name for pool in setting.formation.pools]
    queue: list[tuple[float, Layout, int]] = []
    for count in range(2, min(len(names), MAX_POOLS_ORDERED) + 1):
        for members in itertools.combinations(names, count):
            queue.extend(_bounded(setting, members, sequences, limits))
    tally.considered += len(queue)
    queue.sort(key=lambda item: item[0])
    kept = queue[:COSTED_AT_MOST]
    evaluate(_in_every_order(kept), len(kept), setting, job, best, tally)
    if len(queue) > len(kept) and kept[-1][0] < best.limit:
        tally.rejected[f"not costed (search stops after {COSTED_AT_MOST} mixed pipelines)"] += len(queue) - len(kept)


def _in_every_order(queue: Sequence[tuple[float, Layout, int]]) -> Iterator[tuple[float, Layout, int]]:
    for bound, layout, total in queue:
        blocks = [list(block) for _, block in itertools.groupby(layout.slots, key=lambda slot: slot.pool)]
        for order in itertools.permutations(blocks):
            yield bound, Layout(tuple(itertools.chain(*order)), layout.replicas, layout.size, layout.micro_batches, layout.zero), total


def _bounded(
    setting: Setting, members: Sequence[str], sequences: int, limits: Limits
) -> Iterator[tuple[float, Layout, int]]:
    layers = len(setting.graph.layers)
    deepest = min(layers, limits.max_pipeline_parallel or layers)
    pools = [setting.formation.pool(name) for name in members]
    for size in micro_batch_sizes(sequences, limits):
        total = sequences // size
        table = [_options(setting, name, size, limits) for name in members]
        for chosen in itertools.product(*table):
            widest = min(min(pool.count // one.tensor for pool, one in zip(pools, chosen, strict=True)), total)
            for replicas in _degrees(widest):
                if any(replicas * one.tensor % one.expert for one in chosen):
                    continue
                depth = [pool.count // (one.tensor * replicas) for pool, one in zip(pools, chosen, strict=True)]
                if sum(depth) > deepest:
                    depth = _trim(depth, [one.seconds for one in chosen], deepest)
                if min(depth) < 1:
                    continue
                yield _candidate(setting, chosen, depth, replicas, size, total)


def _candidate(
    setting: Setting, chosen: Sequence[_Option], depth: Sequence[int], replicas: int, size: int, total: int
) -> tuple[float, Layout, int]:
    times = -(-total // replicas)
    bound = times / sum(stages / one.seconds for stages, one in zip(depth, chosen, strict=True))
    slots: list[Slot] = []
    for stages, one in zip(depth, chosen, strict=True):
        slots += [Slot(one.pool, one.tensor, one.expert, one.recompute)] * stages
    zero = 1 if replicas > 1 and 1 in setting.traits.zero_stages else 0
    return bound, Layout(tuple(slots), replicas, size, times, zero), total


def _degrees(widest: int) -> list[int]:
    """Return the data-parallel degrees to try: all small ones, then about eight per doubling."""
    steps = {min(widest, round(2 ** (eighth / 8))) for eighth in range(8 * max(1, math.ceil(math.log2(widest + 1))) + 1)}
    return sorted(steps | set(range(1, min(widest, 16) + 1)) | set(divisors(widest, widest) if widest < 4096 else []))


def _trim(depth: Sequence[int], seconds: Sequence[float], deepest: int) -> list[int]:
    """Take stages from the slowest cards until the pipeline is no deeper than the model."""
    result = list(depth)
    while sum(result) > deepest:
        slowest = max((index for index, stages in enumerate(result) if stages > 1), key=lambda i: seconds[i], default=-1)
        if slowest < 0:
            return [0]
        result[slowest] -= min(result[slowest] - 1, sum(result) - deepest)
    return result


def _options(setting: Setting, name: str, size: int, limits: Limits) -> list[_Option]:
    """Return the ways to cut one pool's stages that no other way beats in both time and memory."""
    pool = setting.formation.pool(name)
    rows = [
        (tensor, expert, again)
        for tensor in tensor_degrees(setting, name, limits)
        for expert in divisors(experts(setting), 512)
        for again in setting.traits.recompute
        if tensor <= pool.count and expert <= pool.count
    ]
    tensor, expert, again = np.array(rows, dtype=np.int64).T
    ones = np.ones_like(tensor)
    table = Candidates(tensor, ones, ones, expert, size * ones, ones, 0 * ones, again)
    seconds, _ = bounds.work_per_micro_batch(setting, name, table)
    found = [
        _Option(name, int(tensor[i]), int(expert[i]), size, int(again[i]), float(seconds[i]))
        for i in range(len(rows))
        if np.isfinite(seconds[i])
    ]
    return _worth_trying(found, experts(setting))


def _worth_trying(options: Sequence[_Option], most_experts: int) -> list[_Option]:
    """Keep, for each tensor degree and recomputation, the quickest expert degrees: experts must also fit in memory."""
    kept = []
    for _, group in itertools.groupby(
        sorted(options, key=lambda one: (one.tensor, one.recompute, one.expert)), key=lambda one: (one.tensor, one.recompute)
    ):
        choices = list(group)
        wide = [one for one in choices if one.expert >= min(32, most_experts)]
        kept += sorted(wide or choices, key=lambda one: one.seconds)[:2]
    return [one for one in kept if one.tensor <= 16]


def replicas_over_pools(
    setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally
) -> None:
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
