"""Full recomputation of only as many layers of each stage as memory asks for: how many those are.

Every layer more that is computed again takes longer and keeps less. So of one split of the layers the best number is
the least with which all stages fit; none is a layout without recomputation, and all of them one with.

Memory alone gives a number that is never above the least (:func:`least_work`, :func:`least_even`), and so seconds that
cannot be beaten. Let a stage with ``f`` micro-batches in flight have ``C`` bytes for the layers of the most numerous
kind, each with a state of ``s`` bytes that keeps ``k`` of a micro-batch, or ``r`` where it is computed again. With
``a`` such layers, each taking ``s + f r``, it has room for ``h`` more of ``s + f k`` each at most, and both ``a + h``
and ``-h`` grow with ``a``. So the least ``a`` with which the stages together have room for all ``N`` is found by
halving; and with that many or more, ``N`` less the sum of ``h`` are computed again at least. A layer of another kind
may stand where one of these ``a`` would, which leaves room for one more that is not: all others are taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import memory_problem
from zhenfa.laws.arrays import Array
from zhenfa.laws.partition import ROUNDING
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import CODES, Layout, Rows, Slot, make_plan, pipelines, rows_of_many, take
from zhenfa.plan.even import Blocks, Group, even_ranges, may_fit
from zhenfa.plan.space import Bools, Candidates, Ints
from zhenfa.plan.split import Problem, Refused, Split, schedule_bound, some_borders

NONE, FULL = CODES.index("none"), CODES.index("full")

SLACK = 1e-9


def least_work(setting: Setting, pool: str, found: Candidates, kept: Work, again: Work) -> Work:
    """Return the work under 1F1B with no more layers computed again than memory asks for, from that with none and with
    all of them: no split and no number of layers that fits needs less."""
    if not len(found):
        return kept
    layers, depth = len(setting.graph.layers), found.pipeline
    main, count = bounds.main_index(setting), bounds.main_kind(setting)[1]
    room = _Room.of(setting, pool, found)
    low = _halved(lambda number: room.layers(number) >= count, count, len(found))
    more = np.maximum(again.layers - kept.layers, 0.0)
    least = more.min(axis=0)
    each = -(-layers // depth)
    several = np.maximum(depth, np.minimum(low, each)) * least
    most = (count - room.beyond(low).sum(axis=0) - (layers - count)) * more[main]
    whole = kept.whole + np.maximum(several, most)
    return kept.but(whole=whole, layers=kept.layers + least * np.minimum(low, each) / each)


def _halved(enough: Callable[[Ints], Bools], most: int, size: int) -> Ints:
    """Return the least number from 1 that is enough, ``most`` where none below it is, one of each of ``size``."""
    low, high = np.ones(size, dtype=np.int64), np.full(size, most)
    while (low < high).any():
        middle = (low + high) // 2
        reached = enough(middle)
        low, high = np.where(reached | (low == high), low, middle + 1), np.where(reached, middle, high)
    return low


class _Room:
    """What the stages of layouts under 1F1B have room for, ``[stages, candidates]``."""

    def __init__(self, left: Floats, again: Floats, kept: Floats, there: Bools) -> None:
        self.left, self.again, self.kept, self.there = left, again, kept, there

    @classmethod
    def of(cls, setting: Setting, pool: str, found: Candidates) -> _Room:
        """Return the bytes for layers of the most numerous kind, and what each takes, computed again or not."""
        main, size = bounds.main_index(setting), len(found)
        stage = np.arange(int(found.pipeline.max()))[:, None]
        there = stage < found.pipeline
        flight = np.clip(found.pipeline - stage, 1, found.micro_batches) * bounds.kept_here(found)
        modes = Modes.of(setting, pool, found)
        *_, (stem, _), (head, _) = modes[0]
        working = np.min([np.broadcast_to(work, size) for _, work in modes[1][:-2]], axis=0)
        left = setting.chips[pool].usable * (1 + SLACK) - working - np.zeros_like(flight)
        left[0] -= stem.state + flight[0] * stem.activation
        left -= np.where(stage == found.pipeline - 1, head.state + flight * head.activation, 0.0)
        kept, again = (mode[main][0].state + flight * mode[main][0].activation for mode in modes)
        return cls(np.maximum(left, 0.0), again, kept, there)

    def beyond(self, again: Ints) -> Floats:
        """Return how many layers each stage has room for beside ``again`` that are computed again."""
        more = np.floor(np.maximum(self.left - again * self.again, 0.0) / self.kept + SLACK)
        return np.where(self.there, more, 0.0)

    def layers(self, again: Ints) -> Floats:
        """Return how many layers all stages have room for if each computes ``again`` of them again."""
        first = np.minimum(np.floor(self.left / self.again + SLACK), again)
        return np.asarray((np.where(self.there, first, 0.0) + self.beyond(again)).sum(axis=0))


class Modes(NamedTuple):
    """What the blocks of layouts hold, with no layer computed again and with all of them."""

    none: Blocks
    full: Blocks

    @classmethod
    def of(cls, setting: Setting, pool: str, found: Candidates) -> Modes:
        """Return what the blocks of some layouts hold."""
        shape = bounds.shape_of(setting, found)
        return cls(*(setting.memory(pool, shape, found.zero, np.full(len(found), mode)) for mode in (NONE, FULL)))


def least_first(setting: Setting, found: Candidates, virtual: int, modes: Modes, usable: float) -> Ints:
    """Return how many layers of each of ``virtual`` stages to a place are computed again at least where they are
    interleaved over an even split, from what the first place holds, as if of layers that take and keep the least."""
    size, places = len(found), found.pipeline
    layers = len(setting.graph.layers) // (places * virtual)

    def each(parts: Iterable[Array]) -> Floats:
        return np.array([np.broadcast_to(np.asarray(part), size) for part in parts])

    state, kept = (
        each(getattr(held, name) for held, _ in modes.none[:-2]).min(axis=0) for name in ("state", "activation")
    )
    spared = each(held.activation for held, _ in modes.none[:-2]) - each(held.activation for held, _ in modes.full[:-2])
    flight = np.minimum(2 * (places - 1) + (virtual - 1) * places + 1, found.micro_batches * virtual)
    flight = flight * bounds.kept_here(found)
    beyond = layers * (virtual * state + flight * kept) - usable * (1 + SLACK)
    spares = flight * np.maximum(spared.max(axis=0), 0.0)
    least = np.where(beyond > 0, np.ceil(beyond / np.where(spares > 0, spares, np.inf) - SLACK), 1.0)
    return np.clip(least, 1, layers).astype(np.int64)


def least_even(setting: Setting, pool: str, group: Group, modes: Modes, again: Floats) -> tuple[Group, Ints]:
    """Return even splits with as many layers of each stage computed again as memory asks for at least, without those
    for which all of the longest stage are too few, and which they are; ``again``: seconds that it adds to a layer of
    each kind."""
    size = len(group.part)
    table = _firsts(setting.graph.layers, group.places, group.variant.virtual)
    pairs = zip(modes.none[:-2], modes.full[:-2], strict=True)
    gap = [np.broadcast_to(one.activation - other.activation, size) for (one, _), (other, _) in pairs]
    gaps = np.array(gap).T[:, :, None]
    working = np.min([np.broadcast_to(work, size) for _, work in modes.full[:-2]], axis=0)

    def enough(number: Ints) -> Bools:
        return may_fit(setting, pool, group, modes.none, (table[number] @ gaps)[:, :, 0].T, working)

    low, seconds = _halved(enough, len(table) - 1, size), again.T[:, :, None]
    backward, longest = (
        group.stages.backward + (part @ seconds)[:, :, 0].T for part in (table[low], table[-1:])
    )  # fmt: skip
    some = np.flatnonzero(low < len(table) - 1)
    found = group._replace(stages=group.stages._replace(backward=backward), again=low, longest_backward=longest)
    return found.take(some), some


@lru_cache(maxsize=1024)
def _firsts(layers: tuple[int, ...], places: int, turns: int) -> Floats:
    """Return how many of the first layers of each stage of an even split are of each kind, by how many first ones:
    ``[number, stages, kinds]``."""
    ranges, size = even_ranges(len(layers), places, turns), max(layers) + 1
    longest = max(last - first for first, last in ranges)
    return np.array(
        [
            [np.bincount(layers[first : min(first + number, last)], minlength=size) for first, last in ranges]
            for number in range(longest + 1)
        ],
        dtype=float,
    )


def least_again(setting: Setting, layout: Layout, ranges: list[tuple[int, int]], total: int) -> Layout | None:
    """Return a layout over a given split with the fewest layers computed again with which it fits; None where that is
    no layer, or all. Fewer than ``layout.again`` are known to be too few."""

    def fits(again: int) -> bool:
        entries = pipelines(replace(layout, again=again), ranges, total)
        return not memory_problem(make_plan(setting, "", layout, entries), setting)

    low, high = layout.again or 1, max(last - first for first, last in ranges) - 1
    if high < low or (low == 1 and fits(0)):
        return None
    if fits(low):
        return replace(layout, again=low)
    if high == low or not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return replace(layout, again=high)


def rows_of_both(
    setting: Setting, pool: str, found: Candidates, kept: Work, again: Work
) -> Callable[[int, Slot], dict[Slot, Rows]]:
    """Return what a layout's slots take with no layer computed again, and with all, given its place and its slot."""
    rows = {
        mode: rows_of_many(setting, pool, found.but(recompute=np.full(len(found), mode)), work)
        for mode, work in ((NONE, kept), (FULL, again))
    }
    return lambda index, slot: {replace(slot, recompute=mode): take(one, index) for mode, one in rows.items()}


def partly_split(
    setting: Setting, layout: Layout, limit: float, known: Mapping[Slot, Rows]
) -> list[tuple[int, Split]] | Refused:
    """Return splits under 1F1B with the fewest layers computed again with which each fits, in order of their bound, all
    below ``limit``: of all splits where those are few, else of the shortest ones that know of no memory. ``known``:
    what the slots take with no layer computed again, and with all."""
    none, full = (Problem.of(setting, other, known) for other in (_in_mode(layout, NONE), _in_mode(layout, FULL)))
    borders = np.concatenate([some_borders(none), some_borders(full)])
    borders = borders[np.sort(np.unique(borders, axis=0, return_index=True)[1])]
    one = np.ones((len(borders), 1), dtype=np.int64)
    borders = borders[_bound(none, full, borders, one, layout.micro_batches) < limit]
    if not len(borders):
        return Refused.TIME
    again = _fewest(none, full, borders)
    some = (again > 0) & (again < np.diff(borders, axis=1).max(axis=1))
    if not some.any():
        return Refused.MEMORY
    borders, again = borders[some], again[some]
    bound = _bound(none, full, borders, again[:, None], layout.micro_batches)
    found = [
        (int(again[index]), Split(list(zip(borders[index, :-1].tolist(), borders[index, 1:].tolist(), strict=True)),
                                  float(bound[index])))
        for index in np.argsort(bound, kind="stable")
        if bound[index] < limit
    ]  # fmt: skip
    return found or Refused.TIME


def _in_mode(layout: Layout, mode: int) -> Layout:
    return replace(layout, slots=tuple(replace(slot, recompute=mode) for slot in layout.slots))


def _bound(none: Problem, full: Problem, borders: Ints, again: Ints, micro_batches: int) -> Floats:
    """Return seconds that no 1F1B step over these splits can beat, ``again`` layers of each stage computed again."""
    loads = none.ends + _sums(none.sums[0], full.sums[0], borders, again)
    return schedule_bound(loads, none.hops, micro_batches)


def _fewest(none: Problem, full: Problem, borders: Ints) -> Ints:
    """Return the fewest layers a stage with which each split fits; -1 where it fits with none and -2 with no number."""
    found = np.full(len(borders), -2)
    for again in range(int(np.diff(borders, axis=1).max(initial=0)) + 1):
        fits = _fits(none, full, borders, again)
        found = np.where((found == -2) & fits, again or -1, found)
    return found


def held_partly(none: Problem, full: Problem, borders: Ints, again: Ints) -> Floats:
    """Return the bytes that each stage of some splits holds, ``[splits, stages]``, of problems with no layer computed
    again and with all; ``again``: of the first so many of each stage, ``[splits, 1]``."""
    held = none.extra + _sums(none.sums[1], full.sums[1], borders, again)
    inside = np.arange(none.peak.shape[1])
    first, last = borders[:, :-1, None], borders[:, 1:, None]
    peak = np.where(inside < first + again[:, :, None], full.peak, none.peak)
    found: Floats = held + np.where((inside >= first) & (inside < last), peak, 0.0).max(axis=2)
    return found


def _fits(none: Problem, full: Problem, borders: Ints, again: int) -> Bools:
    held = held_partly(none, full, borders, np.full((len(borders), 1), again))
    mask: Bools = np.all(held <= none.capacity * (1 + ROUNDING), axis=1)
    return mask


def _sums(none: Floats, full: Floats, borders: Ints, again: Ints) -> Floats:
    """Return sums over each stage's layers, the first ``again`` of them with recomputation, ``[splits, stages]``."""
    stages = np.arange(len(none))
    middle = np.minimum(borders[:, :-1] + again, borders[:, 1:])
    repeated: Floats = full[stages, middle] - full[stages, borders[:, :-1]]
    kept: Floats = none[stages, borders[:, 1:]] - none[stages, middle]
    return repeated + kept
