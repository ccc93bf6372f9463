"""Search one pool: bound everything as arrays, then cost exactly in order of the bound until nothing can win."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan import bounds
from zhenfa.plan.build import Layout, Refused, Slot, Split, make_plan, pipelines, split_layers
from zhenfa.plan.space import Candidates, enumerate_pool
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Plan

MISSES_KEPT = 48

NO_BANDWIDTH = "crosses a tier whose bandwidth is undisclosed"
NO_MEMORY = "does not fit in memory"
SLOWER = "slower than the plans listed (by bound)"


@dataclass(order=True)
class Found:
    """One costed plan, ordered by step time."""

    step: float
    order: int
    plan: Plan = field(compare=False)
    cost: PlanCost = field(compare=False)


@dataclass
class Tally:
    """What was looked at."""

    considered: int = 0
    costed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    misses: list[Layout] = field(default_factory=list)
    """Some layouts that memory refused, likeliest first: the nearest miss is among them."""

    def missed(self, layout: Layout) -> None:
        """Remember a layout that does not fit."""
        if len(self.misses) < MISSES_KEPT:
            self.misses.append(layout)


Family = tuple[object, ...]
"""What makes two plans the same to a reader: pools, TP, stages, replicas and micro-batch size. They may still differ
in EP, ZeRO, recomputation or the order of pools; only the quickest of them is listed."""


class Best:
    """The quickest plan of each of the ``keep`` best families so far."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._found: dict[Family, Found] = {}
        self._order = itertools.count()

    def limit(self, family: Family) -> float:
        """Return the step time that a plan of this family must beat to be kept."""
        if family in self._found:
            return self._found[family].step
        if len(self._found) < self.keep:
            return np.inf
        return max(found.step for found in self._found.values())

    @property
    def last(self) -> float:
        """Return the step time that no plan of any family may exceed to be kept."""
        return self.limit(())

    def offer(self, plan: Plan, found: PlanCost) -> None:
        """Keep a plan if it is among the best."""
        family = family_of(plan)
        if found.step >= self.limit(family):
            return
        self._found[family] = Found(found.step, next(self._order), plan, found)
        if len(self._found) > self.keep:
            del self._found[max(self._found, key=lambda one: self._found[one])]

    def ranked(self) -> list[Found]:
        """Return the plans, best first."""
        return sorted(self._found.values())


def family_of(plan: Plan) -> Family:
    """Return the family of a plan."""
    entries = {
        (entry.micro_batch_size, *_blocks([(stage.pool, stage.tensor_parallel) for stage in entry.stages])): 0
        for entry in plan.pipelines
    }
    return (plan.replicas, *entries)


def family_of_layout(layout: Layout) -> Family:
    """Return the family of the plan that a layout becomes."""
    return (layout.replicas, (layout.size, *_blocks([(slot.pool, slot.tensor) for slot in layout.slots])))


def _blocks(stages: list[tuple[str, int]]) -> list[tuple[str, int, int]]:
    return sorted((pool, tensor, count) for (pool, tensor), count in Counter(stages).items())


def search_pool(
    setting: Setting, job: str, pool: str, sequences: int, limits: Limits, best: Best, tally: Tally
) -> None:
    """Offer to ``best`` every layout of one pool that can be among the best. Exact over the enumerated space."""
    candidates = enumerate_pool(setting, pool, sequences, limits, tally.rejected)
    tally.considered += len(candidates) + sum(tally.rejected.values())
    if not len(candidates):
        return
    bound = bounds.step_bound(setting, pool, candidates)
    known = np.isfinite(bound)
    tally.rejected[NO_BANDWIDTH] += int((~known).sum())
    fits, short = bounds.may_fit(setting, pool, candidates)
    tally.rejected[NO_MEMORY] += int((known & ~fits).sum())
    hopeful = np.flatnonzero(known & fits)
    if not len(hopeful) and known.any():
        for closest in np.flatnonzero(known)[np.argsort(short[known], kind="stable")[:MISSES_KEPT]]:
            tally.missed(_layout(candidates, int(closest), pool))
    queue = hopeful[np.argsort(bound[hopeful], kind="stable")]
    evaluate(
        ((float(bound[index]), _layout(candidates, int(index), pool), int(candidates.total[index])) for index in queue),
        len(queue), setting, job, best, tally,
    )  # fmt: skip


def evaluate(
    queue: Iterator[tuple[float, Layout, int]], length: int, setting: Setting, job: str, best: Best, tally: Tally
) -> None:
    """Cost layouts in order of their bound until the bound passes the worst plan kept."""
    for place, (bound, layout, total) in enumerate(queue):
        if bound >= best.last:
            tally.rejected[SLOWER] += length - place
            return
        consider(layout, total, setting, job, best, tally)


def consider(layout: Layout, total: int, setting: Setting, job: str, best: Best, tally: Tally) -> None:
    """Split, cost and offer one layout."""
    limit = best.limit(family_of_layout(layout))
    split = split_layers(setting, layout, limit)
    if split is Refused.MEMORY:
        tally.rejected[NO_MEMORY] += 1
        tally.missed(layout)
        return
    if split is Refused.TIME:
        tally.rejected[SLOWER] += 1
        return
    assert isinstance(split, Split)  # noqa: S101
    if split.bound(layout.micro_batches) >= limit:
        tally.rejected[SLOWER] += 1
        return
    plan = make_plan(setting, job, layout, pipelines(layout, split.ranges, total))
    found = cost(plan, setting)
    tally.costed += 1
    if found.problem:
        tally.rejected[NO_BANDWIDTH if "bandwidth" in found.problem else NO_MEMORY] += 1
        return
    best.offer(plan, found)


def _layout(candidates: Candidates, index: int, pool: str) -> Layout:
    slot = Slot(pool, int(candidates.tensor[index]), int(candidates.expert[index]), int(candidates.recompute[index]))
    return Layout(
        (slot,) * int(candidates.pipeline[index]), int(candidates.data[index]), int(candidates.size[index]),
        int(candidates.micro_batches[index]), int(candidates.zero[index]),
    )  # fmt: skip


def needed_share(setting: Setting, layout: Layout) -> float:
    """Return how many times its memory the fullest stage needs when layers are split evenly."""
    layers = len(setting.graph.layers)
    stages = len(layout.slots)
    edges = np.linspace(0, layers, stages + 1).round().astype(int)
    plan = make_plan(
        setting, "nearest-miss", layout,
        pipelines(layout, list(itertools.pairwise(edges.tolist())), layout.replicas * layout.micro_batches),
    )  # fmt: skip
    fullest = cost(plan, setting).fullest
    return fullest.bytes / fullest.capacity
