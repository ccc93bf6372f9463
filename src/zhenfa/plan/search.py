"""Search one pool: bound everything as arrays, then cost exactly in order of the bound until nothing can win.

The objective of every search is the score of a :class:`zhenfa.plan.goal.Goal`, by default the step time of
:func:`zhenfa.estimate.training.cost`, over the layouts of :mod:`zhenfa.plan.space` and the splits of their layers.
Where a layout's layers can be split in few ways (:data:`zhenfa.plan.split.EVERY_SPLIT`), that is exact. Elsewhere two
splits stand for all: the exact min-max split of the layers' seconds, and one as short with busy stages early; they
leave out transfers and gradient sums, so that the plans kept are then improved layer by layer
(:mod:`zhenfa.plan.polish`). Measured on random small pipelines over slow links: the better of the two is the best split
in 54 of 100 cases and 1.6 % longer in the mean; improved, it is the best in 81 and 0.6 % longer in the mean, 11 % at
most.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan import bounds, sequence, sparing
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import Layout, Rows, Slot, make_plan, pipelines, rows_of_many, take
from zhenfa.plan.even import even_ranges
from zhenfa.plan.goal import QUICKEST, Goal
from zhenfa.plan.partly import least_again, least_work, partly_split, rows_of_both
from zhenfa.plan.space import (
    NO_BANDWIDTH,
    SOME_LAYERS,
    WHOLE_SEQUENCE,
    Candidates,
    Ints,
    chunks,
    enumerate_pool,
    fewer_replicas,
    with_fewer,
)
from zhenfa.plan.split import Refused, Split, split_layers
from zhenfa.plan.tails import needless_splits, with_tails
from zhenfa.plan.variants import FIRST_PAIRS, UNEVEN, Floor, Pairs, Sharp, least_share, schedules_for, sharper, variants
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan, Stage

NO_MEMORY = "does not fit in memory"
SLOWER = "slower than the plans listed (by bound)"
NEEDLESS = "saves memory that is not needed, and is no quicker"
SLOWER_WITH_FEWER = "slower with fewer replicas than one that is slower already"
"""Counted, not enumerated: the bound of a layout holds for the same one with fewer replicas as well."""


SLOWER_WITH_LESS = "slower with less memory than one that is slower already"
"""Counted, not enumerated: the bound of a layout holds for those of :mod:`zhenfa.plan.sparing` that come from it."""

NO_SLOWER_SPLIT = "no better than with sequence parallelism"
"""Counted, not enumerated: see :mod:`zhenfa.plan.sequence`."""

LIKELY_BARRED = 256
"""Layouts that a limit keeps out whose memory is looked at, to say whether one of them might have been the best."""


@dataclass(order=True)
class Found:
    """One costed plan, ordered by its score."""

    score: float
    order: int
    plan: Plan = field(compare=False)
    cost: PlanCost = field(compare=False)

    @property
    def step(self) -> float:
        """Return the step time."""
        return self.cost.step


@dataclass
class Tally:
    """What was looked at: every layout considered is either costed and possible, or rejected for one reason."""

    considered: int = 0
    bounded: int = 0
    """Of those considered, how many had a bound of their own; that of another covers the rest."""
    costed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    barred: dict[str, float] = field(default_factory=dict)
    """The best score that a layout which a limit of the goal keeps out might have had, by limit."""
    refused: Counter[str] = field(default_factory=Counter)
    """What is not planned over several pools, by reason: combinations of pools, not layouts."""
    least_left: float = np.inf
    """The least score that a layout could have that the search stopped before costing, bounded from below."""


Family = tuple[object, ...]
"""What makes two plans the same to a reader: pools, TP, stages, and sequences of a stage's micro-batch over
context-parallel cards. They may still differ in replicas, CP, EP, ZeRO, recomputation, schedule or the order of pools;
only the quickest of them is listed."""


class Best:
    """The best plan of each of the ``keep`` best families so far, by the score of ``goal``.

    ``also`` is another such list that is offered the same plans; the limits then are those of the looser of the two.
    """

    def __init__(self, keep: int, also: Best | None = None, goal: Goal = QUICKEST) -> None:
        self.keep, self.also, self.goal = keep, also, goal
        self._found: dict[Family, Found] = {}
        self._order = itertools.count()

    def limit(self, family: Family) -> float:
        """Return the score that a plan of this family must beat to be kept."""
        limit = self.also.limit(family) if self.also else -np.inf
        if family in self._found:
            return max(limit, self._found[family].score)
        if len(self._found) < self.keep:
            return np.inf
        return max(limit, *(found.score for found in self._found.values()))

    @property
    def last(self) -> float:
        """Return the score that no plan of any family may exceed to be kept."""
        return self.limit(())

    @property
    def first(self) -> float:
        """Return the best score so far."""
        return min((found.score for found in self._found.values()), default=np.inf)

    def offer(self, plan: Plan, found: PlanCost) -> str:
        """Keep a plan if it is among the best; return why it is not allowed (empty where it is)."""
        above = self.also.offer(plan, found) if self.also else ""
        refusal = self.goal.refusal(plan, found)
        if refusal:
            return refusal
        family = family_of(plan)
        known = self._found.get(family)
        score = self.goal.score(plan, found)
        if score < (known.score if known else self._worst()):
            self._found[family] = Found(score, next(self._order), plan, found)
            if len(self._found) > self.keep:
                del self._found[max(self._found, key=lambda one: self._found[one])]
        return above

    def _worst(self) -> float:
        return np.inf if len(self._found) < self.keep else max(found.score for found in self._found.values())

    def ranked(self) -> list[Found]:
        """Return the plans, best first."""
        return sorted(self._found.values())


def family_of(plan: Plan) -> Family:
    """Return the family of a plan."""
    return tuple(dict.fromkeys(_blocks([_sort(stage, entry) for stage in entry.stages[: entry.places]])
                               for entry in plan.pipelines))  # fmt: skip


def _sort(stage: Stage, entry: Pipeline) -> tuple[str, int, float]:
    return stage.pool, stage.tensor_parallel, entry.micro_batch_size / (stage.context_parallel * stage.data_parallel)


def family_of_layout(layout: Layout) -> Family:
    """Return the family of the plan that a layout becomes."""
    return (_blocks([(slot.pool, slot.tensor, layout.size / (slot.context * slot.data)) for slot in layout.slots]),)


def _blocks(stages: list[tuple[str, int, float]]) -> tuple[tuple[tuple[str, int, float], int], ...]:
    """Return each sort of stage with how many there are."""
    return tuple(sorted(Counter(stages).items()))


Hopeful = tuple[float, Layout, int, Mapping[Slot, Rows]]
"""A layout with a score that it cannot beat, the micro-batches of all its replicas, and what its slots cost."""


class Widest(NamedTuple):
    """The layouts of a pool with as many replicas as it has cards for, what a micro-batch takes, and what cannot be."""

    found: Candidates
    work: Work
    impossible: Counter[str]


def widest_of(setting: Setting, pool: str, sequences: int, limits: Limits) -> Widest:
    """Return the layouts of a pool for a batch."""
    impossible: Counter[str] = Counter()
    found = enumerate_pool(setting, pool, sequences, limits, impossible)
    return Widest(found, bounds.work_per_micro_batch(setting, pool, found), impossible)


def search_pool(
    setting: Setting, job: str, pool: str, sequences: int, limits: Limits, best: Best, tally: Tally,
    given: Widest | None = None,
) -> None:  # fmt: skip
    """Offer to ``best`` every layout of one pool, under every schedule, that can be among the best: exact over the
    layouts that :mod:`zhenfa.plan.space` enumerates, those of :mod:`zhenfa.plan.sparing` and the splits named here.

    ``given``: what :func:`widest_of` returns, where that is at hand. Where the pool may compute in several precisions,
    each is searched.
    """
    ways = setting.precisions(pool)
    if len(ways) > 1:
        for one in ways:
            search_pool(setting.computing({pool: one}), job, pool, sequences, limits, best, tally)
        return
    widest, work, impossible = given or widest_of(setting, pool, sequences, limits)
    tally.rejected.update(impossible)
    tally.considered += sum(impossible.values())
    if len(widest):
        _search_from(setting, job, pool, widest, work, best, tally)
    other = sequence.without(setting)
    split = widest.where(np.flatnonzero(widest.tensor > 1))
    if other is None or not len(split):
        return
    better = sequence.may_be_better(setting, other, pool, split)
    near = split.where(np.flatnonzero(better))
    if len(near):
        near = near.but(saving=near.saving + WHOLE_SEQUENCE)
        _search_from(other, job, pool, near, bounds.work_per_micro_batch(other, pool, near), best, tally)
    beaten = split.where(np.flatnonzero(~better))
    count = int(_all_from(setting, beaten, with_fewer(beaten)).sum())
    tally.considered += count
    tally.rejected[NO_SLOWER_SPLIT] += count


def _all_from(setting: Setting, widest: Candidates, times: Ints) -> Ints:
    """Return how many layouts each leads to with fewer replicas, under every schedule and with less memory."""
    every: Ints = (1 + times) * (1 + sparing.ways(setting, widest)) * schedules_for(setting, widest.pipeline)
    return every


def _search_from(
    setting: Setting, job: str, pool: str, widest: Candidates, work: Work, best: Best, tally: Tally
) -> None:
    """Offer these layouts, those with fewer replicas and those that save memory."""
    bound = _bound(setting, work, widest.pipeline, widest.micro_batches)
    _evaluate_pool(setting, job, pool, widest, work, best, tally)
    hope = np.flatnonzero(floor_of_fewer(best.goal, pool, widest, work, bound) < best.last)
    chosen, chosen_work = widest.where(hope), work.take(hope)
    fewer, work, _ = fewer_replicas_of(setting, pool, chosen, chosen_work, best, _bound, tally)
    before = tally.considered
    _evaluate_pool(setting, job, pool, fewer, work, best, tally)
    looked_at = tally.considered - before
    known = widest.where(np.flatnonzero(np.isfinite(bound)))
    times = with_fewer(known)
    left_out = int((times * schedules_for(setting, known.pipeline)).sum()) - looked_at
    tally.considered += left_out
    tally.rejected[SLOWER_WITH_FEWER] += left_out
    before = tally.considered
    hopeful = Candidates.together([chosen, fewer]), Work.together([chosen_work, work])
    _spare_memory(setting, job, pool, *hopeful, best, tally)
    plain = (1 + times) * schedules_for(setting, known.pipeline)
    left_out = int((_all_from(setting, known, times) - plain).sum()) - (tally.considered - before)
    tally.considered += left_out
    tally.rejected[SLOWER_WITH_LESS] += left_out


def _spare_memory(
    setting: Setting, job: str, pool: str, found: Candidates, work: Work, best: Best, tally: Tally
) -> None:
    """Offer the layouts that save memory: of those given, as far as their bound leaves them a chance, all ways
    together in order of their floor."""
    queues, length = list[Iterator[Hopeful | int]](), 0
    hope = np.flatnonzero(_floors(setting, pool, found, work, best) < best.last)
    for there, here, added in sparing.every_way(setting, pool, found.where(hope), work.take(hope)):
        near = np.flatnonzero(_floors(there, pool, here, added, best) < best.last)
        tally.bounded += len(here) - len(near)
        if not np.isfinite(best.last) and "zero-bubble-v" not in setting.traits.schedules:  # as in _variants_in_order
            fits = bounds.may_fit(there, pool, here.where(near))
            count = int(schedules_for(there, here.pipeline[near[~fits]]).sum())
            tally.considered += count
            tally.rejected[NO_MEMORY] += count
            near = near[fits]
        more, count = _queues(there, pool, here.where(near), added.take(near), best, tally)
        queues, length = [*queues, *more], length + count
    evaluate(_merged(queues), length, setting, job, best, tally)


def _floors(setting: Setting, pool: str, found: Candidates, work: Work, best: Best) -> Floats:
    return floor_of(best.goal, pool, found, _bound(setting, work, found.pipeline, found.micro_batches))


def _bound(setting: Setting, work: Work, places: Ints, times: Ints) -> Floats:
    """Return seconds that no schedule of the engine beats; without pipelines there is none but one."""
    simple = bounds.step_bound(setting, work, places, times)
    if not variants(setting):
        return simple
    return np.where(places > 1, least_share(setting, work, places, times), simple)


def allowed(goal: Goal, pool: str, found: Candidates, bound: Floats, known: Ints, tally: Tally) -> Ints:
    """Return those of the layouts ``known`` that may keep the limits of the goal; the others are counted."""
    if not goal.bounded:
        return known
    for reason, barred in goal.barred(bound, {pool: found.cards}):
        out = known[barred[known]]
        if len(out):
            score = goal.floor_without_limits(bound, {pool: found.cards})[out]
            likely = np.argsort(score, kind="stable")[:LIKELY_BARRED]
            fit = goal.setting is not None and bounds.may_fit(goal.setting, pool, found.where(out[likely]))
            least = float(np.min(score[likely], initial=np.inf, where=fit))
            tally.barred[reason] = min(least, tally.barred.get(reason, np.inf))
            tally.rejected[reason] += len(out)
            known = known[~barred[known]]
    return known


def floor_of(goal: Goal, pool: str, found: Candidates, bound: Floats) -> Floats:
    """Return scores that no plan of these layouts can beat, from the bound of their steps."""
    return bound if goal.only_step else goal.floor(bound, {pool: found.cards})


def floor_of_fewer(goal: Goal, pool: str, found: Candidates, work: Work, bound: Floats) -> Floats:
    """Return scores that no plan of these layouts can beat, whether with as many replicas or fewer."""
    if goal.only_step or goal.setting is None:
        return bound
    busy = least_share(goal.setting, work, np.ones_like(found.total), found.total) * found.tensor * found.context
    return goal.floor_of_fewer(bound, {pool: found.cards}, {pool: busy})


Bound = Callable[[Setting, Work, Ints, Ints], Floats]
"""Seconds that cannot be beaten, from the work of a micro-batch, the stages and the micro-batches."""


def fewer_replicas_of(
    setting: Setting, pool: str, widest: Candidates, work: Work, best: Best, bound: Bound, tally: Tally
) -> tuple[Candidates, Work, Floats]:
    """Return the layouts with fewer replicas whose bound leaves them, or those with fewer still, a chance.

    The bound and the memory needed only grow on the way, so that those without a chance lead to none.
    """
    none = np.zeros(0, dtype=np.int64)
    layouts, works, floors = [widest.where(none)], [work.take(none)], [np.zeros(0)]
    here = widest
    while len(here):
        here, left = fewer_replicas(here)
        work = work.take(left)
        floor = bound(setting, work, here.pipeline, here.micro_batches)
        hope = np.flatnonzero(floor_of_fewer(best.goal, pool, here, work, floor) < best.last)
        tally.bounded += len(here) - len(hope)
        here, work = here.where(hope), work.take(hope)
        layouts.append(here)
        works.append(work)
        floors.append(floor[hope])
    return Candidates.together(layouts), Work.together(works), np.concatenate(floors)


def _evaluate_pool(
    setting: Setting, job: str, pool: str, candidates: Candidates, work: Work, best: Best, tally: Tally
) -> None:
    queues, length = _queues(setting, pool, candidates, work, best, tally)
    evaluate(_merged(queues), length, setting, job, best, tally)


def _queues(
    setting: Setting, pool: str, candidates: Candidates, work: Work, best: Best, tally: Tally
) -> tuple[list[Iterator[Hopeful | int]], int]:
    """Return queues of these layouts under every schedule, each in order of its floor, and how many are in them.

    Where they compute some layers again ``work`` is that with none, and so are bounds that are too long already.
    """
    bound = bounds.step_bound(setting, work, candidates.pipeline, candidates.micro_batches)
    again = None
    if len(candidates) and candidates.saving[0] & SOME_LAYERS:
        near = np.flatnonzero(floor_of(best.goal, pool, candidates, bound) < best.last)
        part, kept = candidates.where(near), work.take(near)
        again = sparing.all_again(setting, pool, candidates, work, near)
        least = least_work(setting, pool, part, kept, again.take(near))
        bound[near] = bounds.step_bound(setting, least, part.pipeline, part.micro_batches)
    known = np.flatnonzero(np.isfinite(bound))
    tally.rejected[NO_BANDWIDTH] += len(candidates) - len(known)
    tally.considered += len(candidates)
    tally.bounded += len(candidates)
    deep = known[candidates.pipeline[known] > 1]
    if "1f1b" not in setting.traits.schedules:
        known = known[candidates.pipeline[known] == 1]
        tally.considered -= len(deep)
    known = allowed(best.goal, pool, candidates, bound, known, tally)
    floor = floor_of(best.goal, pool, candidates, bound + sparing.update(setting, pool, candidates))
    queues, length = [_in_order(setting, pool, candidates, work, floor, known, again)], len(known)
    if variants(setting):
        pairs = Pairs.of(setting, candidates.where(deep), work.take(deep))
        tally.considered += len(pairs) + pairs.uneven
        tally.bounded += len(pairs)
        tally.rejected[UNEVEN] += pairs.uneven
        if best.goal.bounded:
            every = np.arange(len(pairs))
            pairs = pairs.where(allowed(best.goal, pool, pairs.base.where(pairs.row), pairs.bound, every, tally))
        pairs = _needed(setting, pool, pairs, tally)
        if again is not None:
            near = np.flatnonzero(floor_of(best.goal, pool, pairs.base.where(pairs.row), pairs.bound) < best.last)
            whole = sparing.all_again(setting, pool, pairs.base, pairs.work, np.unique(pairs.row[near]))
            pairs = pairs.closer(setting, pool, near, np.maximum(whole.layers - pairs.work.layers, 0.0))
        queues.append(_variants_in_order(setting, pool, pairs, best))
        length += len(pairs)
    return queues, length


def _needed(setting: Setting, pool: str, pairs: Pairs, tally: Tally) -> Pairs:
    """Return the pairs that save memory where it may be needed; the others are counted."""
    plain = sparing.without(setting, pool, pairs.base)
    if plain is None or not len(pairs):
        return pairs
    idle = pairs.fits(*plain)
    tally.rejected[NEEDLESS] += int(idle.sum())
    return pairs.where(np.flatnonzero(~idle))


def _merged(queues: Sequence[Iterator[Hopeful | int]]) -> Iterator[Hopeful | int]:
    """Yield what several queues yield, all in order of their floor."""
    heads: list[tuple[float, int, Hopeful]] = []
    ready = list(range(len(queues)))
    while ready or heads:
        for number in ready:
            for one in queues[number]:
                if isinstance(one, int):
                    yield one
                else:
                    heapq.heappush(heads, (one[0], number, one))
                    break
        if not heads:
            return
        _, number, one = heapq.heappop(heads)
        yield one
        ready = [number]


def _variants_in_order(setting: Setting, pool: str, pairs: Pairs, best: Best) -> Iterator[Hopeful | int]:
    """Yield other schedules' layouts in order of their sharpest floor, and the number of those that do not fit."""

    def of(found: Candidates, bound: Floats) -> Floats:
        return floor_of(best.goal, pool, found, bound)

    floor = pairs.bound if best.goal.only_step else of(pairs.base.where(pairs.row), pairs.bound)
    waiting = _Waiting(setting, pool, pairs, of, best)
    for chunk in chunks(floor, np.flatnonzero(floor < best.last), FIRST_PAIRS):
        yield from waiting.until(float(floor[chunk[0]]))
        here = chunk
        if not np.isfinite(best.last):  # nothing has fitted yet: the test of 1F1B costs less, and these keep no less
            fits = bounds.may_fit(setting, pool, pairs.base.where(pairs.row[chunk])) | pairs.placed_as_v[chunk]
            yield int((~fits).sum())
            here = chunk[fits]
        found, misfits = sharper(setting, pool, pairs, here, of, best.last)
        yield misfits
        for sharp in found:
            waiting.add(sharp, here)
    yield from waiting.until(np.inf)


class _Waiting:
    """Pairs in order of their floor; each is followed operation by operation before it is passed on."""

    def __init__(self, setting: Setting, pool: str, pairs: Pairs, floor: Floor, best: Best) -> None:
        self.setting, self.pool, self.pairs, self.floor, self.best = setting, pool, pairs, floor, best
        self.heap: list[tuple[float, int, bool, Sharp, int, int]] = []
        self.ticket = itertools.count()

    def add(self, sharp: Sharp, chunk: Ints) -> None:
        """Take pairs that are looked at for the first time."""
        floors = self.floor(sharp.group.part, sharp.seconds)
        for index, pair in enumerate(chunk[sharp.places].tolist()):
            heapq.heappush(self.heap, (float(floors[index]), next(self.ticket), False, sharp, index, pair))

    def until(self, limit: float) -> Iterator[Hopeful]:
        """Yield the pairs whose floor is at most ``limit``."""
        while self.heap and self.heap[0][0] <= limit:
            floor, ticket, followed, sharp, index, pair = heapq.heappop(self.heap)
            layout = self.pairs.layout(layout_of(sharp.group.part, index, self.pool), pair)
            if sharp.group.again is not None:
                layout = replace(layout, again=int(sharp.group.again[index]))
            unlikely = floor >= self.best.limit(family_of_layout(layout))
            if not followed and not unlikely:
                seconds = np.array([sharp.followed(self.setting, index)])
                sharper = float(self.floor(sharp.group.part.where(np.array([index])), seconds)[0])
                heapq.heappush(self.heap, (max(sharper, floor), ticket, True, sharp, index, pair))
                continue
            yield floor, layout, int(sharp.group.part.total[index]), {}


def _in_order(
    setting: Setting, pool: str, candidates: Candidates, work: Work, floor: Floats, known: Ints,
    again: Work | None = None,
) -> Iterator[Hopeful | int]:  # fmt: skip
    """Yield the candidates that may fit in order of their floor, and the number of those that do not."""
    for chunk in chunks(floor, known):
        part = candidates.where(chunk)
        fit = bounds.may_fit(setting, pool, part)
        yield int((~fit).sum())
        hopeful = part.where(fit)
        if not len(hopeful):
            continue
        left = chunk[fit]
        if again is None:
            rows = rows_of_many(setting, pool, hopeful, work.take(left))
        else:
            both = rows_of_both(setting, pool, hopeful, work.take(left), again.take(left))
        for index, place in enumerate(left.tolist()):
            layout = layout_of(hopeful, index, pool)
            slot = layout.slots[0]
            slots = {slot: take(rows, index)} if again is None else both(index, slot)
            yield float(floor[place]), layout, int(hopeful.total[index]), slots


def evaluate(queue: Iterator[Hopeful | int], length: int, setting: Setting, job: str, best: Best, tally: Tally) -> None:
    """Cost layouts in order of their bound until the bound passes the worst plan kept.

    A number in the queue counts layouts that turned out not to fit.
    """
    seen = 0
    for one in queue:
        if isinstance(one, int):
            tally.rejected[NO_MEMORY] += one
            seen += one
            continue
        bound, layout, total, known = one
        if bound >= best.last:
            break
        seen += 1
        if bound >= best.limit(family_of_layout(layout)):
            tally.rejected[SLOWER] += 1
            continue
        consider(layout, total, known, setting, job, best, tally)
    tally.rejected[SLOWER] += length - seen


def consider(
    layout: Layout, total: int, known: Mapping[Slot, Rows], setting: Setting, job: str, best: Best, tally: Tally
) -> None:
    """Split, cost and offer one layout."""
    family, cards = family_of_layout(layout), cards_of_layout(layout)
    setting = sparing.kept_away(setting, layout.offload)

    def longest() -> float:
        return best.goal.step_within(best.limit(family), cards)

    found_splits = _splits(setting, layout, total, known, longest())
    if isinstance(found_splits, Refused):
        tally.rejected[NO_MEMORY if found_splits is Refused.MEMORY else SLOWER] += 1
        return
    outcome, idle, splits = SLOWER, list[bool | None](), with_tails(setting, found_splits, total)
    for index, (here, split) in enumerate(splits):
        if split.bound >= longest():
            break
        plan = make_plan(setting, job, here, pipelines(here, split.ranges, total))
        idle = idle or needless_splits(setting, splits)
        if sparing.needless(plan, setting) if idle[index] is None else idle[index]:
            outcome = NEEDLESS
            continue
        found = cost(plan, setting)
        if found.problem:
            outcome = NO_BANDWIDTH if "bandwidth" in found.problem else NO_MEMORY
            continue
        outcome = best.offer(plan, found)
    if outcome:
        tally.rejected[outcome] += 1
    else:
        tally.costed += 1


def _splits(
    setting: Setting, layout: Layout, total: int, known: Mapping[Slot, Rows], limit: float
) -> list[tuple[Layout, Split]] | Refused:
    """Return the splits of a layout that may be the best, in order of their bound, each with the layers of a stage that
    are computed again where that hangs on the split."""
    if layout.schedule != "1f1b":
        ranges = even_ranges(len(setting.graph.layers), len(layout.slots), layout.virtual)
        here = least_again(setting, layout, ranges, total) if layout.partly else layout
        return Refused.MEMORY if here is None else [(here, Split(ranges, 0.0))]
    if layout.partly:
        some = partly_split(setting, layout, limit, known)
        return some if isinstance(some, Refused) else [(replace(layout, again=again), split) for again, split in some]
    splits = split_layers(setting, layout, limit, known)
    return splits if isinstance(splits, Refused) else [(layout, split) for split in splits]


def cards_of_layout(layout: Layout) -> dict[str, int]:
    """Return the cards of a layout by pool."""
    cards = Counter[str]()
    for slot in layout.slots:
        cards[slot.pool] += slot.cards * layout.replicas
    return dict(cards)


def layout_of(candidates: Candidates, index: int, pool: str) -> Layout:
    """Return one candidate as a layout."""
    columns = (candidates.tensor, candidates.expert, candidates.recompute, candidates.context, candidates.expert_tensor)
    slot, saving = Slot(pool, *(int(column[index]) for column in columns)), int(candidates.saving[index])
    return Layout(
        (slot,) * int(candidates.pipeline[index]), int(candidates.data[index]), int(candidates.size[index]),
        int(candidates.micro_batches[index]), int(candidates.zero[index]), offload=sparing.offload_of(saving),
        sequence_parallel=False if saving & WHOLE_SEQUENCE else None, partly=bool(saving & SOME_LAYERS),
    )  # fmt: skip
