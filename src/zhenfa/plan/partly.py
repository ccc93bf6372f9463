"""Full recomputation of only as many layers of each stage as memory asks for: how many those are.

Every layer more that is computed again takes longer and keeps less. So of one split of the layers the best number is
the least with which all stages fit; none is a layout without recomputation, and all of them one with.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import memory_problem
from zhenfa.laws.partition import ROUNDING
from zhenfa.plan.bounds import Floats
from zhenfa.plan.build import CODES, Layout, make_plan, pipelines, rows_for
from zhenfa.plan.space import Bools, Ints
from zhenfa.plan.split import Problem, Refused, Split, schedule_bound, some_borders

NONE, FULL = CODES.index("none"), CODES.index("full")


def least_again(setting: Setting, layout: Layout, ranges: list[tuple[int, int]], total: int) -> Layout | None:
    """Return a layout over a given split with the fewest layers computed again with which it fits; None where that is
    no layer, or all."""

    def fits(again: int) -> bool:
        entries = pipelines(replace(layout, again=again), ranges, total)
        return not memory_problem(make_plan(setting, "", layout, entries), setting)

    low, high = 0, max(last - first for first, last in ranges) - 1
    if high < 1 or not fits(high) or fits(0):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return replace(layout, again=high)


def partly_split(setting: Setting, layout: Layout, limit: float) -> list[tuple[int, Split]] | Refused:
    """Return splits under 1F1B with the fewest layers computed again with which each fits, in order of their bound, all
    below ``limit``: of all splits where those are few, else of the shortest ones that know of no memory."""
    none, full = (
        Problem.of(setting, other, rows_for(setting, other))
        for other in (_in_mode(layout, NONE), _in_mode(layout, FULL))
    )
    borders = np.concatenate([some_borders(none), some_borders(full)])
    borders = borders[np.sort(np.unique(borders, axis=0, return_index=True)[1])]
    again = _fewest(none, full, borders)
    some = (again > 0) & (again < np.diff(borders, axis=1).max(axis=1))
    if not some.any():
        return Refused.MEMORY
    borders, again = borders[some], again[some]
    loads = none.ends + _sums(none.sums[0], full.sums[0], borders, again[:, None])
    bound = schedule_bound(loads, none.hops, layout.micro_batches)
    found = [
        (int(again[index]), Split(list(zip(borders[index, :-1].tolist(), borders[index, 1:].tolist(), strict=True)),
                                  float(bound[index])))
        for index in np.argsort(bound, kind="stable")
        if bound[index] < limit
    ]  # fmt: skip
    return found or Refused.TIME


def _in_mode(layout: Layout, mode: int) -> Layout:
    return replace(layout, slots=tuple(replace(slot, recompute=mode) for slot in layout.slots))


def _fewest(none: Problem, full: Problem, borders: Ints) -> Ints:
    """Return the fewest layers a stage with which each split fits; -1 where it fits with none and -2 with no number."""
    found = np.full(len(borders), -2)
    for again in range(int(np.diff(borders, axis=1).max(initial=0)) + 1):
        fits = _fits(none, full, borders, again)
        found = np.where((found == -2) & fits, again or -1, found)
    return found


def _fits(none: Problem, full: Problem, borders: Ints, again: int) -> Bools:
    held = none.extra + _sums(none.sums[1], full.sums[1], borders, np.full((len(borders), 1), again))
    inside = np.arange(none.peak.shape[1])
    first, last = borders[:, :-1, None], borders[:, 1:, None]
    peak = np.where(inside < first + again, full.peak, none.peak)
    held = held + np.where((inside >= first) & (inside < last), peak, 0.0).max(axis=2)
    mask: Bools = np.all(held <= none.capacity * (1 + ROUNDING), axis=1)
    return mask


def _sums(none: Floats, full: Floats, borders: Ints, again: Ints) -> Floats:
    """Return sums over each stage's layers, the first ``again`` of them with recomputation, ``[splits, stages]``."""
    stages = np.arange(len(none))
    middle = np.minimum(borders[:, :-1] + again, borders[:, 1:])
    repeated: Floats = full[stages, middle] - full[stages, borders[:, :-1]]
    kept: Floats = none[stages, borders[:, 1:]] - none[stages, middle]
    return repeated + kept
