"""What one pool can do in a step as one of several in data parallel: the most sequences of any of its layouts.

A layout without a pipeline takes ``a m + b`` for ``m`` micro-batches, exactly (:mod:`zhenfa.plan.plain`). One with a
pipeline is bounded in closed form (:mod:`zhenfa.plan.bounds`), and, where the bound leaves it a chance to do more than
the best so far, split and costed: each split of :mod:`zhenfa.plan.split` for itself, as the best one depends on the
micro-batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from zhenfa.estimate.costs import GroupCost
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import share_cost, step_with
from zhenfa.laws.arrays import values_of
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import Layout, make_plan, pipelines, rows_for
from zhenfa.plan.columns import largest
from zhenfa.plan.look import Lines
from zhenfa.plan.plain import plain_costs
from zhenfa.plan.search import layout_of
from zhenfa.plan.space import FEW_REPLICAS, Bools, Candidates, Ints, zero_stages
from zhenfa.plan.sparing import exchanged
from zhenfa.plan.split import Problem, splits_worth
from zhenfa.spec.plan import Plan

COSTED_TOGETHER: Final = 1024
"""Layouts without a pipeline that are costed together."""

LOOKED_AT: Final = 192
"""Layouts with a pipeline that are bounded sharply together, at first; twice as many each time."""

FITTED_TOGETHER: Final = 4096
"""Layouts with a pipeline whose memory is looked at together."""

LONGEST: Final = 1e9
"""Seconds that no step takes."""

FEW_LAYOUTS: Final = 500
"""Layouts of a pool up to which every number of replicas is looked at from the start."""

MANY: Final = 5000
"""Layouts of a pool beyond which fewer replicas are looked at only to prove that nothing is better."""

FEW_WAYS: Final = 24
"""Up to so many pairs of micro-batch size and replicas, the best layout of each is tried."""

SPLIT_AT_MOST: Final = 300
"""Layouts with a pipeline of one pool that are split; beyond, what they can do is bounded alone."""

ROUNDING: Final = 1e-9


class Chosen(NamedTuple):
    """A layout of a pool: the sequences that it can do in a step, the fewest replicas that share a set of experts,
    micro-batches of each replica, layers of each stage."""

    sequences: int
    layout: Layout
    groups: int
    micro_batches: int
    ranges: list[tuple[int, int]]


@dataclass
class _Split:
    """One split of a layout's layers: its plan and cost, once known."""

    ranges: list[tuple[int, int]]
    borders: Ints
    plan: Plan | None = None
    cost: GroupCost | None = None
    fits: bool = True


@dataclass
class Side:
    """The layouts of one pool with one ZeRO stage, as one of ``owners`` pools that share the batch."""

    setting: Setting
    pool: str
    owners: int
    found: Candidates
    work: Work
    each: Floats
    """Seconds of a micro-batch, or less."""
    beside: Floats
    """Seconds once a step, or less."""
    costed: Bools
    """Whether ``each`` and ``beside`` are as sharp as they can be as arrays: without a pipeline, the cost itself."""
    least: Floats
    """``each`` by its bound."""
    start: Floats
    """``beside`` by its bound."""
    within: Floats
    """The longest step for which ``cap`` holds."""
    cap: Ints
    """The most micro-batches of a replica."""
    fewer: Bools
    """Whether a layout has fewer replicas than its pool has cards for."""
    longest: float = 0.0
    """The longest step that will be asked for."""
    together: int = LOOKED_AT
    bounded_only: bool = False
    """Whether some layout was left at its bound."""
    _splits: dict[tuple[int, int], tuple[Problem, list[_Split]]] = field(default_factory=dict)
    _done: tuple[float, dict[int, int]] = field(default=(0.0, {}), init=False)
    """The step last asked for, and how many micro-batches the layouts that were looked at can do in it."""

    @classmethod
    def of(cls, setting: Setting, pool: str, owners: int, found: Candidates, work: Work) -> Side:
        """Return the side of a pool whose layouts are known, with what a micro-batch takes at least."""
        depth = found.pipeline
        each = np.maximum(bounds.busiest_stage(setting, work, depth), work.whole / depth)
        beside = np.where(depth > 1, 0.0, setting.traits.step_overhead_s)
        known = np.flatnonzero(np.isfinite(each))
        none, size = np.zeros(len(known), dtype=bool), len(known)
        return cls(
            setting, pool, owners, found.where(known), work.take(known), each[known], beside[known], none.copy(),
            each[known], beside[known], np.zeros(size), np.zeros(size, dtype=np.int64), none.copy(),
        )  # fmt: skip

    def where(self, index: Ints) -> Side:
        """Return the layouts that an index selects."""
        return replace(
            self, found=self.found.where(index), work=self.work.take(index), each=self.each[index],
            beside=self.beside[index], costed=self.costed[index], least=self.least[index], start=self.start[index],
            within=self.within[index], cap=self.cap[index], fewer=self.fewer[index], together=LOOKED_AT, _splits={},
        )  # fmt: skip

    def exchanging(self) -> Side:
        """Return the same layouts with what replicas of pipelines exchange with every micro-batch: gradients that are
        reduced, and weights that are gathered, under ZeRO stages 2 and 3."""
        added = Side.of(
            self.setting, self.pool, self.owners, self.found,
            exchanged(self.setting, self.pool, self.found, self.work),
        )  # fmt: skip
        each = np.where(self.found.pipeline > 1, np.maximum(self.each, added.each), self.each)
        return replace(self, each=each, _splits={})

    def beside_others(self, owners: int) -> Side:
        """Return the same layouts as one of so many pools: what they take beside fewer is a bound."""
        same = replace(self.where(np.arange(len(self.each))), owners=owners)
        if owners != self.owners:
            same.costed &= same.found.pipeline > 1
        return same

    def settle(self, step: float, least: int) -> Side:
        """Return the layouts that may do at least so many sequences in a step, bounded so sharply that the one that may
        do most is known; each is as good beside more pools at most."""
        here = self.where(np.flatnonzero(self.sequences(step) >= max(least, 1)))
        here.longest = step
        hope = here.sequences(step)
        while len(hope) and hope[top := int(np.argmax(hope))] > 0 and not here.costed[top]:
            hope = here._sharpened(hope, 0, step)
        return here

    def _sharpened(self, hope: Ints, above: int, step: float) -> Ints:
        """Return how many sequences each layout can do, the likeliest that may do more than some bounded sharply."""
        rows = np.flatnonzero((hope > above) & ~self.costed)
        rows = rows[largest(hope[rows], FITTED_TOGETHER)]
        self._sharpen(rows, step)
        hope[rows] = self.sequences(step, rows)
        return hope

    def sequences(self, step: float, rows: Ints | slice = slice(None)) -> Ints:
        """Return how many sequences each layout can do in a step at most."""
        found, each = self.found.where(rows) if not isinstance(rows, slice) else self.found, self.each[rows]
        return self.most(step, rows) * found.data * found.size if len(each) else np.zeros(0, dtype=np.int64)

    def most(self, step: float, rows: Ints | slice = slice(None)) -> Ints:
        """Return how many micro-batches a replica of each layout can do in a step at most.

        With ``T`` the work of a micro-batch over the whole model, ``m`` of them take at least
        ``T / (1 - (1 - 1/m)**p)`` and, if more than ``p``, ``T (m + p - 1) / p`` (:mod:`zhenfa.plan.bounds`).
        """
        depth, room = self.found.pipeline[rows], np.maximum(step * (1 + ROUNDING) - self.beside[rows], 0.0)
        most = room / self.each[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.minimum(self.work.whole[rows] / room, 1.0)
            steady = depth / share - depth + 1
            filling = (1 + ROUNDING) / -np.expm1(np.log1p(-share) / depth)
        deep = np.minimum(np.minimum(most, filling), np.maximum(steady, depth))
        most = np.where(depth > 1, np.where(share < 1, deep, 0.0), most)
        most = np.where(step <= self.within[rows], np.minimum(most, self.cap[rows]), most)
        whole: Ints = np.floor(np.minimum(most, 1e12) + ROUNDING).astype(np.int64)
        return whole

    def hopeful(self, step: float, least: int) -> Side:
        """Return the layouts that may do at least so many sequences in a step, and where they are not too many those
        with fewer replicas of them."""
        here = self.where(np.flatnonzero(self.sequences(step) >= max(least, 1)))
        here.longest = step
        here.costed &= (here.found.pipeline == 1) | (here.within >= step)
        return here._with_fewer(step, max(least, 1)) if len(here.each) <= MANY else here

    def with_fewer_if_few(self) -> Side:
        """Return these layouts, and where they are not too many those with fewer replicas of them."""
        return self._with_fewer(LONGEST, 1) if len(self.each) <= FEW_LAYOUTS else self

    def and_fewer(self, step: float) -> Chosen | None:
        """Return what :meth:`best` does, of layouts with fewer replicas as well."""
        best = self.best(step)
        least = best.sequences + 1 if best else 1
        bound = replace(self, each=self.least, beside=self.start)
        every = bound._with_fewer(step, least)
        fewer = every.where(np.flatnonzero(every.fewer))
        fewer.longest = step
        found = fewer.best(step)
        self.bounded_only |= fewer.bounded_only
        return found if found and found.sequences >= least else best

    def _with_fewer(self, step: float, least: int) -> Side:
        groups = self.found.data // self.found.step
        most = np.maximum(self.sequences(step), 1)
        needed = np.where(groups <= FEW_REPLICAS, -(-groups * least // most), groups)
        rows, data = [np.arange(len(groups))], [self.found.data]
        for fewer in range(1, FEW_REPLICAS):
            here = np.flatnonzero((most > 1) & (groups - fewer >= np.maximum(needed, 1)))
            if not len(here):
                break
            rows.append(here)
            data.append((groups[here] - fewer) * self.found.step[here])
        every = np.concatenate(rows)
        both = self.where(every)
        both.found, both.longest = both.found.but(data=np.concatenate(data)), self.longest
        both.fewer = np.arange(len(every)) >= len(rows[0])
        both.costed &= ~both.fewer  # what a layout costs beside its micro-batches depends on its replicas
        both.each = np.where(both.fewer, self.least[every], both.each)
        both.beside = np.where(both.fewer, self.start[every], both.beside)
        return both

    def ways(self) -> list[tuple[int, int | None]]:
        """Return the micro-batch sizes with the numbers of replicas or, where these are many, with None."""
        pairs = sorted(set(zip(self.found.size.tolist(), self.found.data.tolist(), strict=True)))
        if len(pairs) <= FEW_WAYS:
            return [(size, data) for size, data in pairs]
        return [(size, None) for size in values_of(self.found.size)]

    def best(self, step: float, size: int | None = None, replicas: int | None = None) -> Chosen | None:
        """Return the layout that does the most sequences in a step, of one micro-batch size and one number of replicas
        if these are given."""
        self._remember(step)
        hope = self.sequences(step)
        if size is not None:
            hope = np.where(self.found.size == size, hope, 0)
        if replicas is not None:
            hope = np.where(self.found.data == replicas, hope, 0)
        best: Chosen | None = None
        while len(hope) and hope[top := int(np.argmax(hope))] > (best.sequences if best else 0):
            if not self.costed[top]:
                hope = self._sharpened(hope, best.sequences if best else 0, step)
                continue
            hope[top] = 0
            chosen = self._chosen(top, step)
            if not self.bounded_only:
                self._done[1][top] = chosen.micro_batches if chosen else 0
            if chosen and chosen.sequences > (best.sequences if best else 0):
                best = chosen
        return best

    def _remember(self, step: float) -> None:
        """Cap the layouts by what they can do in the step asked for before, if this one is shorter. Searches halve:
        after a step that is possible all are shorter; one that is not is of no more use."""
        before, done = self._done
        if done and step < before:
            rows = np.array(list(done), dtype=np.int64)
            self._cap(rows, before, np.array(list(done.values()), dtype=np.int64))
        if step != before or not done:
            self._done = (step, {})

    def _chosen(self, row: int, step: float) -> Chosen | None:
        """Return what one layout can do in a step."""
        most, layers = int(self.most(step, np.array([row]))[0]), len(self.setting.graph.layers)
        ranges = [(0, layers)]
        if self.found.pipeline[row] > 1:
            most, ranges = self._deep(row, step, most)
        layout = layout_of(self.found, row, self.pool)
        count, groups = most * layout.replicas * layout.size, int(self.found.step[row])
        return Chosen(count, layout, groups, most, ranges) if most else None

    def _sharpen(self, rows: Ints, step: float) -> None:
        """Cost the first layouts without a pipeline; bound the others by their memory, the first ones more sharply."""
        step = max(step, self.longest)
        plain = self.found.pipeline[rows] == 1
        self._cost_plain(rows[plain][:COSTED_TOGETHER])
        deep = rows[~plain]
        fresh = deep[self.within[deep] < step]
        if len(fresh):
            depth, most = self.found.pipeline[fresh], self.most(step, fresh)
            found = self.found.where(fresh)
            found = found.but(total=found.data * depth)
            full = bounds.may_fit(self.setting, self.pool, found)
            self._cap(fresh, step, np.where(full, most, np.minimum(most, depth - 1)))
            deep = deep[largest(self.sequences(step, deep), self.together)]
        deep, self.together = deep[: self.together], min(2 * self.together, FITTED_TOGETHER)
        if len(deep):
            lines = Lines.of_pool(self.setting, self.pool, self.found.where(deep), self.work.take(deep))
            self._cap(deep, step, lines.micro_batches(step, self.most(step, deep)))
            self.costed[deep] = True

    def _cap(self, rows: Ints, step: float, most: Ints | int) -> None:
        """Note how many micro-batches some layouts can do at most in a step, and so in any shorter one."""
        self.within[rows], self.cap[rows] = step, most

    def _cost_plain(self, rows: Ints) -> None:
        """Replace bounds by costs; what does not fit can do nothing."""
        if not len(rows):
            return
        plain = plain_costs(self.setting, self.pool, self.found.where(rows), self.owners)
        fits = plain.fits & np.isfinite(plain.each + plain.beside)
        self.each[rows], self.beside[rows] = np.where(fits, plain.each, 1.0), np.where(fits, plain.beside, np.inf)
        self.costed[rows] = True

    # layouts with a pipeline

    def _deep(self, row: int, step: float, most: int) -> tuple[int, list[tuple[int, int]]]:
        """Return the micro-batches that one layout with a pipeline can do in a step, and the split that does them.

        As many as there are stages keep a pipeline's memory as full as any more; fewer may fit where these do not.
        """
        depth = int(self.found.pipeline[row])
        for flight in range(min(most, depth), 0, -1):
            times, ranges = self._within(row, flight, step, most if flight == depth else flight)
            if times:
                return times, ranges
            if (row, flight) not in self._splits:
                break
        return 0, []

    def _within(self, row: int, flight: int, step: float, most: int) -> tuple[int, list[tuple[int, int]]]:
        """Return the same with at least ``flight`` micro-batches, and at most ``most``."""
        key = (row, flight)
        if key not in self._splits:
            if len(self._splits) >= SPLIT_AT_MOST:
                self.bounded_only = True
                return 0, []
            self._splits[key] = self._split(row, flight)
        problem, splits = self._splits[key]
        best: tuple[int, list[tuple[int, int]]] = (0, [])
        if not splits:
            return best
        hope = _most_by_bound(problem, splits, flight, most, step)
        for number in np.argsort(-hope, kind="stable").tolist():
            split = splits[number]
            if hope[number] <= best[0]:
                break
            times = self._exactly(row, split, flight, int(hope[number]), step)
            if times > best[0]:
                best = (times, split.ranges)
        return best

    def _layout(self, row: int, times: int) -> Layout:
        return replace(layout_of(self.found, row, self.pool), micro_batches=times)

    def _split(self, row: int, flight: int) -> tuple[Problem, list[_Split]]:
        layout = self._layout(row, flight)
        problem = Problem.of(self.setting, layout, rows_for(self.setting, layout))
        borders = splits_worth(problem, flight)
        pairs = [list(itertools.pairwise(one)) for one in borders.tolist()]
        return problem, [_Split(ranges, one) for ranges, one in zip(pairs, borders, strict=True)]

    def _exactly(self, row: int, split: _Split, flight: int, most: int, step: float) -> int:
        """Return the micro-batches that one split can do in a step; 0 where not even ``flight``."""
        if split.cost is None:
            layout = self._layout(row, flight)
            total = flight * layout.replicas
            split.plan = make_plan(self.setting, "", layout, pipelines(layout, split.ranges, total))
            split.cost = share_cost(split.plan, self.setting, self.owners)
            split.fits = all(one.bytes <= one.capacity for one in split.cost.stages)
        plan, cost = split.plan, split.cost
        if not split.fits or plan is None:
            return 0
        low, high = flight - 1, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            quick = step_with(plan, self.setting, cost, middle) <= step * (1 + ROUNDING)
            low, high = (middle, high) if quick else (low, middle)
        return low if low >= flight else 0


def _most_by_bound(problem: Problem, splits: Sequence[_Split], flight: int, most: int, step: float) -> Ints:
    """Return how many micro-batches, from ``flight`` to ``most``, each split may do in a step by its bound; else 0."""
    borders = np.stack([one.borders for one in splits])
    low, high = np.full(len(borders), flight - 1), np.full(len(borders), most + 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        times = np.maximum(middle, 1)
        quick = problem.bound(borders, times[:, None]) <= step * (1 + ROUNDING)
        low, high = np.where(quick, middle, low), np.where(quick, high, middle)
    return np.where(low >= flight, low, 0)


def side_at(
    setting: Setting, pool: str, owners: int, zero: int, found: Candidates, work: Work, *, pipelined: bool = False
) -> Side:
    """Return the side of a pool with one ZeRO stage: where nothing is replicated, any will do. ``pipelined``: with
    pipelines under ZeRO stages 2 and 3 (see :meth:`Side.exchanging`)."""
    alone = (found.zero == 0) & ((0 not in zero_stages(setting)) | (found.data * found.context == 1))
    sharded = (found.zero == 1) & (found.pipeline > 1) if pipelined else np.zeros(len(found), dtype=bool)
    rows = np.flatnonzero((found.zero == zero) | alone | sharded)
    here = found.where(rows).but(zero=np.full(len(rows), zero))
    return Side.of(setting, pool, owners, here, work.take(rows))
