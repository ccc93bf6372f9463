"""Data parallel over several pools: each runs whole replicas of its own layout, and the batch is shared out so that the
last one finishes as early as can be.

One plan has one ZeRO stage and one schedule, 1F1B. For a choice of pools and a ZeRO stage, let ``S_i(X)`` be what
pool ``i`` can do in ``X`` seconds at most with any of its layouts (:mod:`zhenfa.plan.side`), in sequences, the sum of
gradients between the pools included. The pools share nothing else, and a pool that can do ``n`` sequences in ``X``
seconds can do fewer: so a step of ``X`` that takes ``N`` sequences exists only if ``S_1(X) + ... + S_k(X) >= N``, and
where the micro-batches can be shared out as whole numbers, if so. Every ``S_i`` grows with ``X``, and bisection finds
the least ``X``: the best shares and the best layouts at once.

*Whole numbers.* Pool ``i`` takes a multiple of its grain, up to ``S_i``: its micro-batch size or, where a replica has
one micro-batch, that times the replicas that share a set of experts. Where every grain divides the next, taking away
what is too much from the coarsest pool first leaves nothing over if anything does: parts of the finer ones that sum to
at least one coarse grain hold some that sum to exactly that. Where the layouts that do most cannot be shared out so,
others of each pool are tried, one of each micro-batch size; where none of these can, or the plan made of them does not
keep to ``X``, the answer says by how much the next ``X`` is longer than the one that could not be excluded.

Pipelines under ZeRO stages 2 and 3 are looked at behind the others, and only where there are at most
:data:`FEW_LAYOUTS`: they pay where one pool has to shard its weights, and all of a plan's pools do so with it.

Of replicas each pool has as many as it has cards for, or, up to :data:`zhenfa.plan.space.FEW_REPLICAS` groups, any
number. All choices of two pools or more are looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.bounds import Work
from zhenfa.plan.build import make_plan, pipelines
from zhenfa.plan.search import Best, Tally
from zhenfa.plan.side import Chosen, Side, side_at
from zhenfa.plan.space import OPTIMIZER_AWAY, Candidates, zero_stages
from zhenfa.plan.sparing import kept_away
from zhenfa.plan.supply import is_maker
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan

UNSHARED: Final = "not shared out (data parallel over several pools)"

LARGEST_GRAIN: Final = 16
"""Sequences are shared out in multiples of this by :func:`shares`: every pool can choose its micro-batch size."""

CLOSE: Final = 1e-3
"""How near the two ends of a bisection are when it is tried whether anything is better than the plan at hand."""

BETTER: Final = 1 - 1e-7
"""A step that is not shorter than so much of another is not worth looking for."""

NO_MATTER: Final = 1e-6
"""Share of a step that is not told."""

MUCH_LONGER: Final = 1e4
"""How many times the least step by the bounds a first plan may take."""

TRIED_TOGETHER: Final = 200
"""Choices of one layout of each pool that are tried for one step."""

FEW_LAYOUTS: Final = 25_000
"""Layouts of all pools up to which pipelines under ZeRO stages 2 and 3 are looked at too, and the optimizer's state in
host memory."""

POOLS_CHOSEN: Final = 6
"""Up to so many pools, every choice of them is looked at; beyond, all but one at most are left out."""


def replicas_over_pools(
    setting: Setting, job: str, known: Mapping[str, tuple[Candidates, Work]], limits: Limits, best: Best, tally: Tally
) -> None:
    """Offer data parallel over two pools or more; ``known`` holds the layouts of each, with what their micro-batches
    take."""
    names = [name for name, (found, _) in known.items() if len(found)]
    if len(names) < 2 or not setting.bridge or "1f1b" not in setting.traits.schedules:
        return
    setting = replace(setting, traits=setting.traits.but(schedules=("1f1b",)), _plans={})
    steps: dict[tuple[str, ...], float] = {}
    stages = sorted(zero_stages(setting), reverse=True)
    few = best.goal.only_step and sum(len(found) for found, _ in known.values()) <= FEW_LAYOUTS
    further = [(zero, True) for zero in stages if zero > 1 and few]
    for zero, pipelined in (*((zero, False) for zero in stages), *further):
        every = [side_at(setting, name, 2, zero, *known[name], pipelined=pipelined) for name in names]
        shared = _Shared(setting, job, zero, every, limits, best, tally)
        if pipelined and not shared.exchanging(_limit(best)):
            continue
        if best.goal.only_step and math.isfinite(_limit(best)) and not shared.settle(_limit(best)):
            continue
        sides = dict(zip(names, shared.sides, strict=True))
        for chosen in _choices(names):
            here = [sides[name].beside_others(len(chosen)) for name in chosen]
            limit = steps.get(chosen, math.inf)
            steps[chosen] = min(limit, _search(replace(shared, sides=here), limit))


def replicas_that_save(
    setting: Setting, job: str, known: Mapping[str, tuple[Candidates, Work]], limits: Limits, best: Best, tally: Tally
) -> None:
    """Offer the same with the optimizer's state of every pool in host memory, where pools have few layouts.

    A pool alone decides how much it can do in a step, so that all is searched as it is without, with the memory and the
    updates that this takes.
    """
    if "optimizer" not in setting.traits.offloads or sum(len(found) for found, _ in known.values()) > FEW_LAYOUTS:
        return
    saving = {
        name: (found.but(saving=np.full(len(found), OPTIMIZER_AWAY)), work) for name, (found, work) in known.items()
    }
    replicas_over_pools(kept_away(setting, "optimizer"), job, saving, limits, best, tally)


def _choices(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the pools that may share a batch, more of them first."""
    least = 2 if len(names) <= POOLS_CHOSEN else len(names) - 1
    for count in range(len(names), least - 1, -1):
        yield from itertools.combinations(names, count)


class _Trial(NamedTuple):
    """What came of a step: a plan that keeps to it, or whether there can be none."""

    plan: Plan | None
    cost: PlanCost | None
    excluded: bool


@dataclass
class _Shared:
    """A batch that some pools share, with one ZeRO stage."""

    setting: Setting
    job: str
    zero: int
    sides: list[Side]
    limits: Limits
    best: Best
    tally: Tally
    open: float = field(default=math.inf)
    """The shortest step that was neither reached nor excluded."""

    @property
    def sequences(self) -> int:
        """Return the sequences of a step."""
        return self.setting.workload.global_batch

    def enough(self, counts: Sequence[int]) -> bool:
        """Return whether pools that do so many sequences do them all, and each maker its least share."""
        return (
            min(counts) > 0
            and sum(counts) >= self.sequences
            and all(
                sum(count for count, mine in zip(counts, of, strict=True) if mine) >= least for of, least in self.shares
            )
        )

    @property
    def shares(self) -> list[tuple[list[bool], int]]:
        """Return which pools are those of each maker that has a least share, and the sequences of it."""
        pools = [self.setting.formation.pool(side.pool) for side in self.sides]
        return [
            ([is_maker(pool, maker) for pool in pools], math.ceil(least.value * self.sequences - 1e-9))
            for maker, least in self.best.goal.limits.least_share.items()
            if least.value
        ]

    def hope(self, step: float) -> bool:
        """Return whether a step may be as short, by the bounds of the layouts."""
        return self.enough([int(side.sequences(step).max(initial=0)) for side in self.sides])

    def _needed(self, step: float) -> list[int]:
        """Return how many sequences each pool must do in a step, given the most of the others."""
        most = [min(int(side.sequences(step).max(initial=0)), self.sequences) for side in self.sides]
        return [self.sequences - sum(most) + one for one in most]

    def narrow(self, step: float) -> None:
        """Leave out layouts that do too little in a step for the others to do the rest."""
        needed = self._needed(step)
        self.sides = [side.hopeful(step, least) for side, least in zip(self.sides, needed, strict=True)]

    def exchanging(self, step: float) -> bool:
        """Do the same, and bound what is left with what pipelines exchange with every micro-batch; return whether any
        may do."""
        if math.isfinite(step):
            if not self.hope(step):
                return False
            self.narrow(step)
        self.sides = [side.exchanging() for side in self.sides]
        return not math.isfinite(step) or self.hope(step)

    def settle(self, step: float) -> bool:
        """Do the same for any choice of these pools, and bound what is left sharply; return whether any may do."""
        needed = self._needed(step)
        self.sides = [side.settle(step, least) for side, least in zip(self.sides, needed, strict=True)]
        return sum(int(side.sequences(step).max(initial=0)) for side in self.sides) >= self.sequences

    def attempt(self, step: float, *, every: bool) -> _Trial:
        """Return a plan whose step is as short; ``every`` number of replicas is looked at, or the largest."""
        tops = self._tops(step, every=every)
        if not tops:
            return _Trial(None, None, excluded=not every or not any(side.bounded_only for side in self.sides))
        for chosen in self._combinations(tops, step):
            if not self.enough([one.sequences for one in chosen]):
                continue
            plan = self._plan(chosen)
            if plan is None:
                continue
            found = cost(plan, self.setting)
            if not found.problem and found.step <= step * (1 + 1e-9):
                return _Trial(plan, found, excluded=False)
        return _Trial(None, None, excluded=False)

    def _tops(self, step: float, *, every: bool) -> list[Chosen | None]:
        """Return the layout of each pool that does most in a step; nothing where they do too little together, or all
        but one do nothing: one pool alone is searched for itself. Pools with few layouts are looked at first."""
        tops: list[Chosen | None] = [None] * len(self.sides)
        most = [int(side.sequences(step).max(initial=0)) for side in self.sides]
        for index in sorted(range(len(self.sides)), key=lambda one: len(self.sides[one].each)):
            if not self.enough(most) or sum(one > 0 for one in most) < 2:
                return []
            side = self.sides[index]
            tops[index] = found = side.and_fewer(step) if every else side.best(step)
            most[index] = found.sequences if found else 0
        return tops if self.enough(most) and sum(one > 0 for one in most) > 1 else []

    def _combinations(self, tops: Sequence[Chosen | None], step: float) -> Iterator[list[Chosen]]:
        """Yield choices of one layout of each pool: the ones that do most, then one of each micro-batch size."""
        yield [one for one in tops if one]
        each = [
            [found for size, replicas in side.ways() if (found := side.best(step, size, replicas))]
            for side in self.sides
        ]
        every = itertools.islice(itertools.product(*each), TRIED_TOGETHER)
        yield from (list(one) for one in every)

    def _plan(self, chosen: Sequence[Chosen]) -> Plan | None:
        """Return one plan with these layouts, the batch shared out; None where it cannot be."""
        parts = None
        for fewer in (False, True):
            parts = parts or self._parts([_room(one, fewer) for one in chosen])
        if parts is None:
            return None
        entries: list[Pipeline] = []
        for one, part in zip(chosen, parts, strict=True):
            layout, total = one.layout, part // one.layout.size
            if total < layout.replicas:
                layout = replace(layout, replicas=total // one.groups * one.groups)
            entries += pipelines(layout, one.ranges, total)
        slots = tuple(slot for one in chosen for slot in one.layout.slots)
        every = replace(chosen[0].layout, slots=slots, zero=self.zero)
        return make_plan(self.setting, self.job, every, tuple(entries))

    def _parts(self, rooms: Sequence[tuple[int, int, int]]) -> list[int] | None:
        """Return the sequences of each pool."""
        parts = shared_out(self.sequences, rooms)
        if parts is not None and self.enough(parts):
            return parts
        for mine, _ in self.shares:
            rooms = [(most if own else low, most, grain) for (low, most, grain), own in zip(rooms, mine, strict=True)]
        return shared_out(self.sequences, rooms) if self.shares else None


def _room(one: Chosen, fewer: bool) -> tuple[int, int, int]:
    """Return the least and the most sequences that a layout may take, and its grain: with as many replicas or fewer."""
    size, data = one.layout.size, one.layout.replicas
    if not fewer:
        return data * size, one.sequences, size
    return one.groups * size, one.sequences, size * (one.groups if one.micro_batches == 1 else 1)


def shared_out(sequences: int, rooms: Sequence[tuple[int, int, int]]) -> list[int] | None:
    """Return whole shares that sum to ``sequences``, each between a least and a most, less than the most by a multiple
    of its grain; None where there are none (certainly none, if every grain divides the next).

    >>> shared_out(10, [(1, 6, 1), (2, 8, 2)])
    [6, 4]
    >>> shared_out(9, [(2, 6, 2), (2, 8, 2)]) is None
    True
    """
    over = sum(most for _, most, _ in rooms) - sequences
    parts = [most for _, most, _ in rooms]
    for index in sorted(range(len(rooms)), key=lambda one: -rooms[one][2]):
        least, most, grain = rooms[index]
        less = min(over, max(most - least, 0)) // grain * grain
        parts[index], over = parts[index] - less, over - less
    return parts if over == 0 else None


def _search(shared: _Shared, known: float) -> float:
    """Offer the plan with the shortest step, if it is better than the best one so far; return that step.

    Where the step is not the objective: if it is shorter than the ``known`` one of the same pools.
    """
    only_step = shared.best.goal.only_step
    limit = _limit(shared.best) if only_step else known
    least = math.inf
    if math.isfinite(limit) and not shared.hope(limit):
        return least
    low = 0.0 if math.isfinite(limit) else _least(shared)
    shared.sides = [side.with_fewer_if_few() for side in shared.sides]
    high = limit * BETTER if math.isfinite(limit) else _first(shared, low)
    if math.isfinite(high):
        shared.narrow(high)
        while (found := _try(shared, high * BETTER, every=True)) < math.inf:
            least = high = _shortened(shared, found)
    if shared.open < _limit(shared.best) * (1 - NO_MATTER):
        shared.tally.considered += 1
        shared.tally.rejected[UNSHARED] += 1
        if shared.best.goal.only_step:
            shared.tally.least_left = min(shared.tally.least_left, shared.open)
    return least


def _first(shared: _Shared, low: float) -> float:
    """Return the step of any plan; infinite where there is none."""
    high = low
    while high < MUCH_LONGER * low:
        high *= 1.3
        if (found := _try(shared, high)) < math.inf:
            return found
    return math.inf


def _shortened(shared: _Shared, high: float) -> float:
    """Return a step nearly as short as can be with the most replicas, from one that is possible."""
    low, less = 0.0, CLOSE
    while not low:
        found = _try(shared, high * (1 - less))
        low, high, less = (0.0, found, 2 * less) if found < math.inf else (high * (1 - less), high, less)
        less = min(less, 0.5)
    while high > low * (1 + CLOSE):
        middle = (low + high) / 2
        found = _try(shared, middle)
        low, high = (low, found) if found < math.inf else (middle, high)
    return high


def _limit(best: Best) -> float:
    """Return the step from which on none is worth looking for."""
    return best.goal.step_within_any(best.first)


def _least(shared: _Shared) -> float:
    """Return a step that no plan can beat, by the bounds of the layouts."""
    low, high = 0.0, 1.0
    while not shared.hope(high):
        low, high = high, 4 * high
        if high > 1e12:
            return math.inf
    low = max(low, high / 1024) if not shared.hope(high / 1024) else low
    for _ in range(16):
        middle = math.sqrt(low * high) if low else high / 32
        low, high = (low, middle) if shared.hope(middle) else (middle, high)
    return low


def _try(shared: _Shared, step: float, *, every: bool = False) -> float:
    """Return the step of a plan that takes no longer, offered; infinite where there is none."""
    trial = shared.attempt(step, every=every)
    if trial.plan is None or trial.cost is None:
        if not trial.excluded:
            shared.open = min(shared.open, step)
        return math.inf
    _offer(shared, trial.plan, trial.cost)
    return trial.cost.step


def _offer(shared: _Shared, joint: Plan, found: PlanCost) -> None:
    """Offer a plan if it may have as many cards."""
    tally = shared.tally
    if joint.cards > (shared.limits.max_cards or joint.cards):
        return
    tally.considered += 1
    refusal = shared.best.offer(joint, found)
    tally.rejected[refusal] += bool(refusal)
    tally.costed += not refusal


def shares(speeds: dict[str, float], sequences: int) -> dict[str, int]:
    """Split ``sequences`` in proportion to the speeds, none lost, in multiples of a power of two where that divides."""
    grain = math.gcd(sequences, LARGEST_GRAIN)
    whole = sequences // grain
    exact = {name: whole * speed / sum(speeds.values()) for name, speed in speeds.items()}
    parts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda one: parts[one] - exact[one])[: whole - sum(parts.values())]:
        parts[name] += 1
    return {name: part * grain for name, part in parts.items()}


def replicas_of(plan: Plan, micro_batches: int) -> tuple[Pipeline, ...]:
    """Return the replicas of a plan on one pool with so many micro-batches shared out over them."""
    replicas, first = plan.replicas, plan.pipelines[0]
    few, more = divmod(micro_batches, replicas)
    counted = ((more, few + 1), (replicas - more, few))
    return tuple(
        first.model_copy(update={"count": count, "micro_batches": times}) for count, times in counted if count and times
    )
