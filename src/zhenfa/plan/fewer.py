"""Mixed pipelines with fewer stages than there are cards for, or other shares of them.

A stage less, or one moved to slower cards where the pipeline is as deep as it may be, only raises the bound; every
choice of stages is reached from the deepest one in such steps. All families over as many pools take each step together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.plan.bounds import Floats
from zhenfa.plan.family import Family, Parts, first_bounds, layers_bound, may_share
from zhenfa.plan.goal import Goal
from zhenfa.plan.search import Tally
from zhenfa.plan.space import Ints

FEWER_AT_MOST: Final = 40_000
"""Mixed pipelines with fewer stages than there are cards for that are looked at."""

UNSEEN: Final = "not looked at (mixed pipelines that leave cards idle)"


def fewer_stages(setting: Setting, families: Sequence[Family], goal: Goal, best: float, tally: Tally) -> list[Family]:
    """Return the candidates of all families with fewer stages, or other shares of them, that may have a score below
    ``best``. Where there are more than :data:`FEWER_AT_MOST` on the way, the rest are counted as not looked at."""
    found: list[Family] = []
    for pools in sorted({len(family.options) for family in families}):
        here = [family for family in families if len(family.options) == pools]
        found += _over_as_many_pools(setting, here, goal, best, FEWER_AT_MOST - sum(map(len, found)), tally)
    return found


def _over_as_many_pools(
    setting: Setting, families: Sequence[Family], goal: Goal, best: float, budget: int, tally: Tally
) -> list[Family]:
    """Return those of families over as many pools."""
    limit, found, count = goal.step_within_any(best), [], 0
    roots, here = _begun(setting, families, limit)
    known = set(roots.keys(here).tolist())
    while len(here.root):
        count += len(here.root)
        if count > budget:
            _left_out(roots.families_of(here), goal, tally)
            break
        found.append(here)
        here = _bounded(setting, roots, _unknown(roots, _children(roots, here), known), limit)
    return roots.families_of(_together(found[1:])) if found[1:] else []


@dataclass(frozen=True)
class _Stages:
    """Choices of stages: of which candidate with as many as there can be, ``[choices]``, with how many on each pool,
    ``[pools, choices]``."""

    root: Ints
    depth: Ints
    bound: Floats

    def where(self, index: Ints) -> _Stages:
        return _Stages(self.root[index], self.depth[:, index], self.bound[index])


@dataclass(frozen=True)
class _Roots:
    """Candidates of several families with as many stages as there can be."""

    families: Sequence[Family]
    family: Ints
    place: Ints
    """Which candidate of which family each is."""
    parts: Parts
    width: Ints
    """Cards of a stage in all replicas, ``[pools, roots]``."""
    cards: Ints
    """Cards of each pool, ``[pools, roots]``."""
    times: Ints
    deepest: Ints
    """The most stages of any candidate of the family."""

    def keys(self, here: _Stages) -> Ints:
        """Return a number for each choice of stages."""
        most, key = int(self.deepest.max(initial=0)) + 1, here.root
        for depth in here.depth:
            key = key * most + depth
        return key

    def families_of(self, here: _Stages) -> list[Family]:
        """Return choices as candidates of their families, where there are any."""
        found = []
        for number, family in enumerate(self.families):
            rows = np.flatnonzero(self.family[here.root] == number)
            if len(rows):
                place = self.place[here.root[rows]]
                found.append(replace(family.where(place), depth=here.depth[:, rows], bound=here.bound[rows]))
        return found


def _begun(setting: Setting, families: Sequence[Family], limit: float) -> tuple[_Roots, _Stages]:
    """Return the candidates whose bound is below the limit."""
    near = [np.flatnonzero(family.bound < limit) for family in families]
    here = [family.where(rows) for family, rows in zip(families, near, strict=True)]
    sizes = [len(one) for one in here]
    roots = _Roots(
        families,
        np.repeat(np.arange(len(families)), sizes),
        np.concatenate(near),
        Parts.together([Parts.of(one) for one in here]),
        np.concatenate([one.width for one in here], axis=1),
        np.repeat(np.array([[pool.count for pool in one.options] for one in here]).T, sizes, axis=1),
        np.concatenate([one.micro_batches for one in here]),
        np.repeat([int(family.depth.sum(axis=0).max(initial=0)) for family in families], sizes),
    )
    depth, bound = np.concatenate([one.depth for one in here], axis=1), np.concatenate([one.bound for one in here])
    return roots, _sharpened(setting, roots, _Stages(np.arange(len(bound)), depth, bound), limit)


def _children(roots: _Roots, here: _Stages) -> _Stages:
    """Return each choice with one stage less on each pool, and with one moved from each pool to each slower one."""
    pools, seconds, found = len(here.depth), roots.parts.whole[:, here.root], []
    full = here.depth.sum(axis=0) == roots.deepest[here.root]
    room = roots.cards[:, here.root] // roots.width[:, here.root]
    for source, target in itertools.product(range(pools), range(-1, pools)):
        possible = here.depth[source] > 1
        if target == source:
            continue
        if target >= 0:
            possible &= full & (seconds[target] >= seconds[source]) & (here.depth[target] < room[target])
        child = here.where(np.flatnonzero(possible))
        child.depth[source] -= 1
        if target >= 0:
            child.depth[target] += 1
        found.append(child)
    return _together(found)


def _unknown(roots: _Roots, children: _Stages, known: set[int]) -> _Stages:
    """Return the choices that were not there before, each once."""
    fresh = []
    for index, key in enumerate(roots.keys(children).tolist()):
        if key not in known:
            known.add(key)
            fresh.append(index)
    return children.where(np.array(fresh, dtype=np.int64))


def _bounded(setting: Setting, roots: _Roots, here: _Stages, limit: float) -> _Stages:
    """Return the choices whose bound is below the limit."""
    parts, times = roots.parts.where(here.root), roots.times[here.root]
    here = replace(here, bound=first_bounds(setting, parts, here.depth, times))
    return _sharpened(setting, roots, here.where(np.flatnonzero(here.bound < limit)), limit)


def _sharpened(setting: Setting, roots: _Roots, here: _Stages, limit: float) -> _Stages:
    """Return the choices that may have a step below the limit, with as many stages or fewer."""
    parts, times = roots.parts.where(here.root), roots.times[here.root]
    here = replace(here, bound=np.maximum(here.bound, layers_bound(setting, parts, here.depth, times)))
    here = here.where(np.flatnonzero(here.bound < limit))
    parts, times = roots.parts.where(here.root), roots.times[here.root]
    return here.where(np.flatnonzero(may_share(setting, parts, here.depth, times, limit).any(axis=0)))


def _left_out(families: Sequence[Family], goal: Goal, tally: Tally) -> None:
    """Count candidates as not looked at."""
    for family in families:
        left = int(family.weight.sum()) * family.orders
        tally.considered += left
        tally.rejected[UNSEEN] += left
        tally.least_left = min(tally.least_left, float(_floor_of_fewer(goal, family).min(initial=np.inf)))


def _floor_of_fewer(goal: Goal, family: Family) -> Floats:
    """Return scores that no plan of these candidates can beat, however many of the pools' cards it takes."""
    every = {one.pool: np.full(len(family), one.count) for one in family.options}
    busy = {one.pool: one.work.whole[pick] * family.total * one.width[pick] for one, pick in family.picks}
    return goal.floor_of_fewer(family.bound, every, busy)


def _together(parts: Sequence[_Stages]) -> _Stages:
    return _Stages(
        np.concatenate([part.root for part in parts]),
        np.concatenate([part.depth for part in parts], axis=1),
        np.concatenate([part.bound for part in parts]),
    )
