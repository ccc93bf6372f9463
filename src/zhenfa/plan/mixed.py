"""Search a pool of several makers. Never worse than one maker alone, because every single pool is searched too.

*In data parallel*: :mod:`zhenfa.plan.joint`. *In the pipeline*: every pool holds consecutive stages of each replica,
and layers are split exactly over unequal stages. Searched are all orders of the pools, every recomputation per pool,
and every number of stages per pool whose bound leaves it a chance to be the best plan; of tensor degrees those up
to ``MAX_MIXED_TENSOR``, of expert degrees those of :mod:`zhenfa.plan.ways`, of replicas those that
:mod:`zhenfa.plan.family` chooses, with every micro-batch whole or shared out on a pool; and one context degree for all
pools.

Layouts that differ in expert degrees and recomputation alone are bounded together at first: a group's stages take the
least time of any of its layouts, and the least memory. Seven bounds, each sharper and dearer than the one before, where
``p_i`` stages stand on pool ``i``, on which a micro-batch over the whole model would take ``t_i`` and one layer of the
most numerous kind ``l_i`` (where the kinds of layers do not cost the same parts of the whole everywhere, ``t_i`` is
less: :func:`zhenfa.plan.family.least_seconds`):

* ``X >= m / sum(p_i / t_i)``: no split can keep every stage busier than always.
* ``X >= T(C) r``, with what filling and draining ``p`` stages costs, see :func:`zhenfa.plan.family.fill`.
* ``X >= m C`` for the least ``C`` at which ``sum(p_i floor(C / l_i))`` layers find a place: layers are whole.
* The last two together at the step to be beaten, with stem and head where an order of the pools puts them, see
  :func:`zhenfa.plan.family.may_take`.
* What all stages say of the step together, see :mod:`zhenfa.plan.weighed`.
* The last two stage by stage, with at most as many layers on each as its memory holds, with the time of traffic
  between pools, with each stage working only as long as what the others can take leaves it, and with
  ``X >= T + (m - 1) b`` for the backward pass ``b`` of any stage, see :mod:`zhenfa.plan.look`.
* The same for each layout of a group, with its own times and memory.

The first plan is the best of these layouts, each split as :mod:`zhenfa.plan.search` says, unless the answer lists
mixed pipelines that were not costed or not looked at; it then says how much better they could be at most. Places behind
the first are the best that were found; pipelines that share micro-batches out are looked at for the first place alone.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.laws.arrays import values_of
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import take
from zhenfa.plan.family import Family, every_family, may_be_as_short, may_take, whole_layers
from zhenfa.plan.fewer import fewer_stages
from zhenfa.plan.goal import Goal
from zhenfa.plan.interleave import interleaved_over_pools
from zhenfa.plan.joint import replicas_over_pools, replicas_that_save
from zhenfa.plan.look import Lines, Look
from zhenfa.plan.meeting import left_out
from zhenfa.plan.mixed_saving import each_way, saving_families
from zhenfa.plan.polish import polish
from zhenfa.plan.precision import assignments, by_format
from zhenfa.plan.search import (
    NO_MEMORY,
    SLOWER,
    Best,
    Hopeful,
    Tally,
    Widest,
    consider,
    family_of_layout,
    search_pool,
    widest_of,
)
from zhenfa.plan.space import MAX_MICRO_BATCH, Bools, Candidates, Ints, chunks
from zhenfa.plan.spared import with_spares
from zhenfa.spec.job import Limits

FIRST_LOOK: Final = 2048
"""Groups of mixed pipelines whose memory is looked at together, at first."""

PROVED_AT_MOST: Final = 1000
"""Mixed pipelines split to prove that none beats the first plan. Where that stops the search, the answer says so."""

LISTED_AT_MOST: Final = 40
"""Mixed pipelines split for the places behind the first."""

LISTED_OF_A_FAMILY: Final = 4
"""Of those, how many that a reader would call the same."""

GROUPS_LISTED: Final = 12
"""Groups of mixed pipelines opened for those places."""

LISTED_FROM: Final = 512
"""Groups of mixed pipelines out of which those are chosen."""

OPENED_TOGETHER: Final = 16
"""Groups that are opened at a time."""

SEVERAL_OPENED_TOGETHER: Final = 256
"""The same of those that stand for several ways to save memory."""

LISTED_WITHIN: Final = 1.1
"""How many times the score of the first plan a mixed pipeline may have to be listed behind it."""

UNPROVED: Final = f"not costed (the search stops after {PROVED_AT_MOST:,} mixed pipelines)"


def search_mixed(setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally) -> None:
    """Offer to ``best`` plans over single pools, data parallel over several, and pipelines over several.

    Where pools may compute in several precisions, every choice is searched. What several pools can do together is
    looked at first: mostly that leaves little to look at in the others.
    """
    for each in by_format(setting):
        names = [pool.name for pool in each.formation.pools]
        own = {name: widest_of(each, name, sequences, limits) for name in names if len(each.precisions(name)) == 1}
        together = list(assignments(each)) if len(names) > 1 and each.bridge else []
        for one in together:
            known = {name: own.get(name) or widest_of(one, name, sequences, limits) for name in names}
            every = any_size(one, known, sequences, limits)
            replicas_over_pools(one, job, every, limits, best, tally)
            replicas_that_save(one, job, every, limits, best, tally)
            if (spared := with_spares(one, best.goal)) is not None:
                known = {name: widest_of(spared, name, sequences, limits) for name in names}
                replicas_over_pools(spared, job, any_size(spared, known, sequences, limits), limits, best, tally)
        begun, looked_at = best.first < np.inf, []
        for one in together if begun else []:
            looked_at.append((one, pipelines_over_pools(one, job, sequences, limits, best, tally)))
        for name in names:
            search_pool(each, job, name, sequences, limits, best, tally, own.get(name))
        for one in [] if begun else together:
            looked_at.append((one, pipelines_over_pools(one, job, sequences, limits, best, tally)))
        for one, families in looked_at:
            _evaluate(one, job, saving_families(one, families), _Budget(listed_at_most=0), best, tally)
    tally.refused.update(left_out(setting))
    polish(setting, best)
    if limits.schedules is not None:
        interleaved_over_pools(setting, best, tally)


def any_size(
    setting: Setting, known: Mapping[str, Widest], sequences: int, limits: Limits
) -> dict[str, tuple[Candidates, Work]]:
    """Return the layouts of each pool with every micro-batch size: each that divides a share of the batch will do."""
    if limits.micro_batch_size is None and sequences % MAX_MICRO_BATCH:
        more = -(-sequences // MAX_MICRO_BATCH) * MAX_MICRO_BATCH
        known = {name: widest_of(setting, name, more, limits) for name in known}
    return {name: (one.found, one.work) for name, one in known.items()}


def pipelines_over_pools(
    setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally
) -> list[Family]:
    """Offer pipelines whose stages stand on two or more pools, in every order of the pools, and return those that time
    alone leaves a chance: they may save memory."""
    if not setting.bridge:
        return []
    goal = best.goal
    limit, first = goal.step_within_any(_horizon(best)), goal.step_within_any(best.first)
    families = list(every_family(setting, sequences, limits, limit, tally, first))
    if not families:
        return []
    budget = _Budget()
    near = _evaluate(setting, job, families, budget, best, tally)
    families.sort(key=lambda one: float(one.bound.min()))
    fewer = fewer_stages(setting, families, goal, best.first, tally)
    return near + _evaluate(setting, job, fewer, budget, best, tally)


@dataclass
class _Budget:
    """How many mixed pipelines may still be split to prove the first plan, and how many of each family for the places
    behind it."""

    proving: int = PROVED_AT_MOST
    listed_at_most: int = LISTED_AT_MOST
    listing: Counter[object] = field(default_factory=Counter)

    def take(self) -> bool:
        """Take one to prove the first plan; return whether there was one left."""
        self.proving -= 1
        return self.proving >= 0

    def list(self, family: object) -> bool:
        """Take one to list behind the first plan; return whether there was one left for its family."""
        if self.listing[family] >= LISTED_OF_A_FAMILY or not self.lists:
            return False
        self.listing[family] += 1
        return True

    @property
    def lists(self) -> bool:
        """Return whether any may still be listed."""
        return self.listing.total() < self.listed_at_most


def _horizon(best: Best) -> float:
    """Return the score from which on a mixed pipeline is not worth looking at."""
    return min(best.last, LISTED_WITHIN * best.first)


def _floor(goal: Goal, part: Family, step: Floats) -> Floats:
    """Return scores that no plan of these candidates can beat, given steps that none can."""
    return step if goal.only_step else goal.floor(step, part.cards)


def _evaluate(
    setting: Setting, job: str, families: Sequence[Family], budget: _Budget, best: Best, tally: Tally
) -> list[Family]:
    """Cost mixed pipelines in order of their bound: all that may be the first plan, and some that may be listed. Return
    those that may be the first by the time they take, their memory aside."""
    if not families:
        return []
    looked_at = sum(int(family.weight.sum()) * family.orders for family in families)
    tally.considered += looked_at
    frontier = _Frontier(setting, families, best, tally, lists=budget.lists)
    looked_at -= frontier.barred
    for floor, layout, total, known in frontier:
        if floor >= best.first:
            if not budget.lists:
                break
            if any(slot.data > 1 for slot in layout.slots) or not budget.list(family_of_layout(layout)):
                continue
        elif not budget.take():
            tally.rejected[UNPROVED] += 1 + frontier.open
            tally.least_left = min(tally.least_left, floor)
            looked_at -= 1 + frontier.open
            break
        looked_at -= 1
        consider(layout, total, known, setting, job, best, tally)
    tally.rejected[NO_MEMORY] += frontier.misfits
    tally.rejected[SLOWER] += looked_at - frontier.misfits
    return frontier.near


@dataclass(frozen=True)
class _Waiting:
    """A group, or one layout, that waits for its turn."""

    look: Look
    index: int
    order: Sequence[int]

    @property
    def weight(self) -> int:
        return int(self.look.part.weight[self.index])

    def hopeful(self, floor: float) -> Hopeful:
        part, cut = self.look.part, self.look.part.cut
        assert cut is not None  # noqa: S101
        known = {
            one.slot(int(pick[self.index])): take(rows, self.index)
            for one, pick, rows in zip(part.options, cut, self.look.rows, strict=True)
        }
        return floor, part.layout(self.index, self.order), part.total, known


class _Frontier:
    """The layouts of all families in order of their sharpest bound.

    The sharper bounds are looked at a few groups at a time, in order of the weaker bound, and groups are opened when
    nothing that is still to come can have a smaller bound. ``misfits`` counts layouts that do not fit in memory.
    """

    def __init__(
        self, setting: Setting, families: Sequence[Family], best: Best, tally: Tally, *, lists: bool = True
    ) -> None:
        self.lists, self._looked_at = lists, list[Family]()
        self.setting, self.families, self.best, self.misfits, self.barred = setting, families, best, 0, 0
        self._waiting: list[tuple[float, int, _Waiting]] = []
        self._behind: list[tuple[float, int, _Waiting]] = []
        self._several: list[tuple[float, int, _Waiting]] = []
        self._ticket = itertools.count()
        self._floor = np.concatenate([_floor(best.goal, family, family.bound) for family in families])
        self._unseen = self._floor < best.first
        if lists:
            behind = np.flatnonzero((self._floor >= best.first) & (self._floor < _horizon(best)))
            self._unseen[behind[np.argsort(self._floor[behind], kind="stable")[:LISTED_AT_MOST]]] = True
        if best.goal.bounded:
            self._unseen &= ~np.concatenate([self._bar(family, tally) for family in families])
        self._leave_out()

    def _leave_out(self) -> None:
        """Leave out the groups whose whole layers find no place in any order of the pools."""
        ends = np.cumsum([len(family) for family in self.families])[:-1]
        near = [np.flatnonzero(part) for part in np.split(self._unseen, ends)]
        step = self.best.goal.step_within_any(_horizon(self.best))
        # families that stand for several ways have been through it
        fresh = [number for number, family in enumerate(self.families) if not family.ways]
        parts = [self.families[number].where(near[number]) for number in fresh]
        starts = [0, *ends.tolist()]
        for number, possible in zip(fresh, may_be_as_short(self.setting, parts, step), strict=True):
            self._unseen[starts[number] + near[number]] = possible.any(axis=0)

    def _bar(self, family: Family, tally: Tally) -> Bools:
        """Count the groups that surely break a limit of the goal, and return which they are."""
        out = np.zeros(len(family), dtype=bool)
        for reason, barred in self.best.goal.barred(family.bound, family.cards):
            fresh = barred & ~out
            if fresh.any():
                score = float(_floor(self.best.goal, family, family.bound)[fresh].min())
                tally.barred[reason] = min(score, tally.barred.get(reason, np.inf))
                count = int(family.weight[fresh].sum()) * family.orders
                tally.rejected[reason] += count
                self.barred += count
            out |= barred
        return out

    @property
    def open(self) -> int:
        """Return how many layouts have not had their turn and may be better than the first plan."""
        first = self.best.first
        waiting = sum(one.weight for floor, _, one in (*self._waiting, *self._several) if floor < first)
        left = np.concatenate([family.weight * family.orders for family in self.families])
        return waiting + int(left[self._unseen & (self._floor < first)].sum())

    @property
    def near(self) -> list[Family]:
        """Return the groups that may be better than the first plan by the time they take, those not looked at too."""
        found, start = self._looked_at, 0
        for family in self.families:
            here = slice(start, start + len(family))
            left = np.flatnonzero(self._unseen[here] & (self._floor[here] < self.best.first))
            found, start = [*found, family.where(left)], start + len(family)
        return [one for one in found if len(one)]

    def __iter__(self) -> Iterator[Hopeful]:
        owner = np.concatenate([np.full(len(family), number) for number, family in enumerate(self.families)])
        place = np.concatenate([np.arange(len(family)) for family in self.families])
        for chunk in chunks(self._floor, np.flatnonzero(self._unseen), FIRST_LOOK):
            yield from self._below(float(self._floor[chunk[0]]))
            self._unseen[chunk] = False
            parts = [
                self.families[number].where(place[chunk[owner[chunk] == number]]) for number in values_of(owner[chunk])
            ]
            self._look(parts)
        yield from self._below(np.inf)
        if self.lists:
            self._list()
            yield from self._below(np.inf)

    def _below(self, limit: float) -> Iterator[Hopeful]:
        """Yield what waits with a floor up to the limit."""
        while any(queue and queue[0][0] <= limit for queue in (self._waiting, self._several)):
            if self._several and (not self._waiting or self._several[0][0] <= self._waiting[0][0]):
                self._open_several()
                continue
            groups: list[_Waiting] = []
            while self._waiting and self._waiting[0][0] <= limit and len(groups) < OPENED_TOGETHER:
                if self._waiting[0][2].look.part.cut is not None:
                    break
                groups.append(heapq.heappop(self._waiting)[2])
            if groups:
                self._open(groups, self.best.first)
            else:
                floor, _, one = heapq.heappop(self._waiting)
                yield one.hopeful(floor)

    def _look(self, parts: Sequence[Family]) -> None:
        """Let groups that may be good enough wait, in each order of their pools in which they are."""
        near, orders = [], []
        step = self.best.goal.step_within_any(_horizon(self.best))
        for part in parts:
            again = part.bound if part.ways else np.maximum(part.bound, whole_layers(self.setting, part))
            sharper = replace(part, bound=again)
            possible = may_take(self.setting, part, step) & (
                _floor(self.best.goal, sharper, sharper.bound) < _horizon(self.best)
            )
            here = np.flatnonzero(possible.any(axis=0))
            if len(here):
                near.append(sharper.where(here))
                orders.append(zip(part.every_order(), possible[:, here], strict=True))
        self._looked_at += near
        looks = zip(Look.at_each(self.setting, near), orders, strict=True)
        every = [(look, order, np.flatnonzero(mask)) for look, masks in looks for order, mask in masks]
        self._wait(every, self.best.first)

    def _list(self) -> None:
        """Open the likeliest of the groups that may be listed behind the first plan."""
        near = [one for _, _, one in heapq.nsmallest(LISTED_FROM, self._behind)]
        looks: dict[tuple[int, Sequence[int]], list[_Waiting]] = {}
        for one in near:
            looks.setdefault((id(one.look), one.order), []).append(one)
        limit = self.best.goal.step_within_any(_horizon(self.best))
        lines = [(group[0].look, order, np.array([one.index for one in group])) for (_, order), group in looks.items()]
        steps = _bounds(lines, limit)
        sharp = [
            (float(bound), next(self._ticket), one)
            for group, bounds in zip(looks.values(), steps, strict=True)
            for one, bound in zip(group, bounds.tolist(), strict=True)
            if bound < limit
        ]
        self._open([one for _, _, one in heapq.nsmallest(GROUPS_LISTED, sharp)], _horizon(self.best))

    def _open(self, groups: Sequence[_Waiting], limit: float) -> None:
        """Let the layouts of groups wait that may have a score below the limit."""
        looks = [(group.look.members(group.index), group.order) for group in groups]
        self._wait([(look, order, np.arange(len(look.part))) for look, order in looks], limit)

    def _open_several(self) -> None:
        """Let the groups wait, way by way, of the likeliest that stand for several ways to save memory."""
        first, together = self.best.first, dict[tuple[int, Sequence[int]], list[_Waiting]]()
        for _ in range(min(len(self._several), SEVERAL_OPENED_TOGETHER)):
            floor, _, one = heapq.heappop(self._several)
            if floor < first:
                together.setdefault((id(one.look), one.order), []).append(one)
        parts = [
            (part, order)
            for (_, order), groups in together.items()
            for part in each_way(groups[0].look.part.where(np.array([one.index for one in groups])))
        ]
        looks = zip(Look.at_each(self.setting, [part for part, _ in parts]), parts, strict=True)
        self._wait([(look, order, np.arange(len(part))) for look, (part, order) in looks], first)

    def _wait(self, looks: Sequence[tuple[Look, Sequence[int], Ints]], limit: float) -> None:
        """Let those that an index selects wait, if they may have a score below the limit."""
        goal = self.best.goal
        near = goal.step_within_any(LISTED_WITHIN * limit)
        for (look, order, index), step in zip(looks, _bounds(looks, goal.step_within_any(limit)), strict=True):
            part = look.part.where(index)
            self.misfits += int(part.weight[np.isnan(step)].sum())
            floor = _floor(goal, part, step)
            for row in np.flatnonzero(floor < limit).tolist():
                entry = (float(floor[row]), next(self._ticket), _Waiting(look, int(index[row]), order))
                heapq.heappush(self._several if part.ways else self._waiting, entry)
            if part.cut is None:
                for row in np.flatnonzero((floor >= limit) & (part.bound < near) & part.whole).tolist():
                    entry = (float(part.bound[row]), next(self._ticket), _Waiting(look, int(index[row]), order))
                    self._behind.append(entry)


def _bounds(looks: Sequence[tuple[Look, Sequence[int], Ints]], limit: float) -> list[Floats]:
    """Return the bounds of those of the candidates of several looks that an index selects, those over as many pools
    together."""
    found: list[Floats] = [np.zeros(0)] * len(looks)
    for count in {len(order) for _, order, _ in looks}:
        here = [number for number, (_, order, _) in enumerate(looks) if len(order) == count]
        lines = [looks[number][0].lines(looks[number][1]).where(looks[number][2]) for number in here]
        bound = Lines.together(lines).bounds(limit)
        ends = np.cumsum([len(one.times) for one in lines])[:-1]
        for number, part in zip(here, np.split(bound, ends), strict=True):
            found[number] = part
    return found
