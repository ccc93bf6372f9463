"""Other schedules of one pool's layouts: GPipe, interleaved, zero-bubble, ZB-V and DualPipe over even splits.

Bounds in three steps, each sharper and dearer than the one before: a closed form for all candidates at once
(:func:`first_bound`), the way through each place (:func:`zhenfa.plan.even.chain`) with what it exchanges beside it
(:func:`zhenfa.plan.even.around`), and the schedule itself (:meth:`Sharp.followed`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zhenfa.estimate.holding import Holding
from zhenfa.estimate.setting import Setting
from zhenfa.laws.arrays import Array
from zhenfa.laws.pipeline import stage_ends
from zhenfa.laws.schedules import Durations, schedule_ends
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import Layout
from zhenfa.plan.even import SLACK, Group, Stages, Variant, around, chain, may_fit, stages_of
from zhenfa.plan.partly import Modes, least_even, least_first
from zhenfa.plan.space import Bools, Candidates, Ints
from zhenfa.spec.plan import PLACED_AS_V

UNEVEN: Final = "micro-batches that the schedule cannot take"

MOST_STAGES: Final = 16
"""Stages to a place."""

FIRST_PAIRS: Final = 512
"""Candidates whose sharper bounds are looked at together, at first."""


def variants(setting: Setting) -> list[Variant]:
    """Return the schedules that the engine can run, one by one for each number of stages to a place."""
    layers = len(setting.graph.layers)
    found = [Variant("interleaved", times, times) for times in range(2, min(MOST_STAGES, layers // 2) + 1)]
    found += [
        Variant("gpipe", 1, 1),
        Variant("zero-bubble", 1, 1),
        Variant("zero-bubble-v", 2, 2),
        Variant("dualpipe", 1, 2),
    ]
    return [one for one in found if one.schedule in setting.traits.schedules]


def takes(setting: Setting, variant: Variant, found: Candidates) -> tuple[Bools, Bools]:
    """Return where a schedule has a stage's layers for every stage, and where it can take the micro-batches.

    Interleaving runs groups of as many micro-batches as there are places (narayanan2021, section 2.2); DualPipe needs
    an even number of places, and an even number of micro-batches, twice as many as places or more.
    """
    places, times = found.pipeline, found.micro_batches
    deep = _deep_enough(setting, variant, places)
    if variant.schedule == "interleaved":
        return deep, times % places == 0
    if variant.schedule == "dualpipe":
        return deep, (times % 2 == 0) & (times >= 2 * places)
    return deep, np.ones_like(deep)


def _deep_enough(setting: Setting, variant: Variant, places: Ints) -> Bools:
    """Return where a schedule has a stage's layers for every stage."""
    deep: Bools = (places >= 2) & (places * variant.virtual <= len(setting.graph.layers))
    return deep & (places % 2 == 0) if variant.schedule == "dualpipe" else deep


def schedules_for(setting: Setting, places: Ints) -> Ints:
    """Return how many schedules, by stages to a place, have the layers for so many places."""
    every = np.arange(int(places.max(initial=0)) + 1)
    count: Ints = np.where(every > 1, int("1f1b" in setting.traits.schedules), 1)
    for one in variants(setting):
        count = count + _deep_enough(setting, one, every)
    return count.take(places)


def least_share(setting: Setting, work: Work, places: Ints, times: Ints) -> Floats:
    """Return seconds that no schedule beats: some place does at least its share of all work. DualPipe hides the
    exchange of tokens, no other schedule anything."""
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    hidden = counts @ work.expert if "dualpipe" in setting.traits.schedules else 0.0
    seconds: Floats = times * (work.whole - hidden) / places
    return seconds


def first_bound(setting: Setting, variant: Variant, found: Candidates, work: Work) -> Floats:
    """Return seconds that no even split under a schedule can beat, in closed form: the bounds of
    :mod:`zhenfa.plan.even` where every stage holds only the quickest layers, as many as each holds at least."""
    once = _of_any(setting, variant, found, work)
    return _in_closed_form(setting, variant, found, work, once)


def _of_any(setting: Setting, variant: Variant, found: Candidates, work: Work) -> Floats:
    """Return seconds of the schedule alone that no number of stages to a place can beat."""
    places, times, layers = found.pipeline, found.micro_batches, len(setting.graph.layers)
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    weight = sum(count * one for count, one in zip(counts.tolist(), work.weight, strict=True))
    if variant.schedule != "dualpipe":
        busiest = times * -(-layers // places) * work.quickest
        plain: Floats = np.maximum(np.maximum(times * work.whole / places, work.whole - weight), busiest)
        return plain
    # two stages share a place, and each sees half of the micro-batches
    share, hidden = least_share(setting, work, places, times), counts @ work.expert
    busiest = times * (-(-2 * layers // places) / 2) * (work.layers - work.expert).min(axis=0)
    seconds: Floats = np.maximum(np.maximum(share, work.whole - weight - hidden), busiest)
    return seconds


def _in_closed_form(setting: Setting, variant: Variant, found: Candidates, work: Work, once: Floats) -> Floats:
    """Return seconds of a step that cannot be beaten, given those that :func:`_of_any` returns."""
    places, times = found.pipeline, found.micro_batches
    layers = len(setting.graph.layers) // (places * variant.virtual)
    one = layers * work.quickest
    match variant.schedule:
        case "interleaved" | "gpipe":
            last = times * (variant.virtual * one + work.ends[1]) + (places - 1) * one
            best = np.maximum(last, (times * variant.virtual + places - 1) * one)
        case "zero-bubble":
            best = (times + places - 1) * (one - layers * work.weight.min(axis=0)) + work.ends[1]
        case "zero-bubble-v":
            forward, weight = layers * work.forward.min(axis=0), layers * work.weight.min(axis=0)
            best = np.maximum(2 * times * one + (places - 1) * forward, (2 * times + places - 1) * (one - weight))
        case _:
            best = once
    bound: Floats = np.maximum(once, best) * _lockstep(setting) + setting.traits.step_overhead_s
    return bound


def _lockstep(setting: Setting) -> float:
    return min(chip.lockstep for chip in setting.chips.values())


@dataclass(frozen=True)
class Pairs:
    """Layouts of ``base``, each under a schedule of ``which``: arrays over the pairs, with their first bound."""

    base: Candidates
    work: Work
    variants: list[Variant]
    which: Ints
    row: Ints
    bound: Floats
    uneven: int
    """Layouts that a schedule cannot run for their number of micro-batches."""
    again: Floats | None = None
    """Of layouts that compute some layers again: seconds that it adds to a layer, ``[kinds, candidates]``."""

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of(cls, setting: Setting, base: Candidates, work: Work) -> Pairs:
        """Return every schedule of every layout that has the layers and the micro-batches for it."""
        every = variants(setting)
        which, row, bound, uneven = [], [], [], 0
        for _, group in itertools.groupby(enumerate(every), key=lambda one: one[1].schedule):
            here = list(group)
            deep, even = takes(setting, here[0][1], base)
            odd = base.pipeline[deep & ~even]
            rows = np.flatnonzero(deep & even)
            found, mine = base.where(rows), work.take(rows)
            once = _of_any(setting, here[0][1], found, mine)
            for index, variant in here:  # more stages to a place leave fewer layouts
                uneven += int(_deep_enough(setting, variant, odd).sum())
                near = np.flatnonzero(_deep_enough(setting, variant, found.pipeline))
                rows, found, mine, once = rows[near], found.where(near), mine.take(near), once[near]
                which.append(np.full(len(rows), index))
                row.append(rows)
                bound.append(_in_closed_form(setting, variant, found, mine, once))
        empty = np.zeros(0, dtype=np.int64)
        return cls(
            base, work, every, np.concatenate([empty, *which]), np.concatenate([empty, *row]),
            np.concatenate([np.zeros(0), *bound]), uneven,
        )  # fmt: skip

    @property
    def placed_as_v(self) -> Bools:
        """Return which pairs have stem and head at the same place."""
        these = np.array([one.schedule in PLACED_AS_V for one in self.variants], dtype=bool)
        mask: Bools = these[self.which]
        return mask

    def where(self, index: Ints) -> Pairs:
        """Return the pairs that an index selects."""
        return replace(self, which=self.which[index], row=self.row[index], bound=self.bound[index])

    def closer(self, setting: Setting, pool: str, near: Ints, again: Floats) -> Pairs:
        """Return the pairs with sharper bounds of those ``near`` of them, where as many layers of each stage are
        computed again as memory asks for at least, and with what that adds to a layer, ``[kinds, candidates]``."""
        bound, rows = self.bound.copy(), self.row[near]
        modes = Modes.of(setting, pool, self.base.where(rows))
        for index in np.unique(self.which[near]).tolist():
            variant, here = self.variants[index], np.flatnonzero(self.which[near] == index)
            part, work = self.base.where(rows[here]), self.work.take(rows[here])
            stages = part.pipeline * variant.virtual
            each, more = -(-len(setting.graph.layers) // stages), again[:, rows[here]].min(axis=0)
            least: Ints = np.ones_like(stages)
            if variant.schedule == "interleaved":
                held = Modes(*([_at(block, here, len(near)) for block in blocks] for blocks in modes))
                least = least_first(setting, part, variant.virtual, held, setting.chips[pool].usable)
            work = work.but(
                whole=work.whole + least * stages * more, layers=work.layers + more * np.minimum(least, each) / each
            )
            bound[near[here]] = np.maximum(bound[near[here]], first_bound(setting, variant, part, work))
        return replace(self, bound=bound, again=again)

    def fits(self, setting: Setting, pool: str, base: Candidates) -> Bools:
        """Return which pairs surely fit in memory if their layouts are those of ``base``: even with as many layers as
        any of their stages, of the largest kind, and with stem and head at each place."""
        layers, times = len(setting.graph.layers), base.micro_batches[self.row]
        virtual, held, gpipe, vee, both = (
            np.array(one)[self.which]
            for one in zip(*(_held_at_most(one) for one in self.variants), strict=True)
        )  # fmt: skip
        blocks = setting.memory(pool, bounds.shape_of(setting, base), base.zero, base.recompute)
        state, kept, working = (
            np.array([np.broadcast_to(np.asarray(part), len(base)) for part in parts])[:, self.row]
            for parts in zip(*((one.state, one.activation, work) for one, work in blocks), strict=True)
        )
        places = base.pipeline[self.row]
        each = -(-layers // (places * virtual))
        flight = np.minimum(2 * (places - 1) + (virtual - 1) * places + 1, times * virtual)
        flight = np.where(gpipe, times, np.where(vee, 2 * places, np.where(both, places + 1, flight)))
        whole = held * each * state[:-2].max(axis=0) + state[-2:].sum(axis=0) + working.max(axis=0)
        whole = whole + flight * (each * kept[:-2].max(axis=0) + kept[-2:].sum(axis=0))
        mask: Bools = whole <= setting.chips[pool].usable
        return mask

    def stages(self, setting: Setting, pool: str, chosen: Ints, part: Candidates) -> tuple[Variant, Stages]:
        """Return the schedule of some pairs that all have it and as many places, and what their stages take."""
        variant, places = self.variants[int(self.which[chosen[0]])], int(part.pipeline[0])
        return variant, stages_of(setting, pool, variant, places, part, self.work.take(self.row[chosen]))

    def layout(self, layout: Layout, index: int) -> Layout:
        """Return the layout of one pair from that of its row."""
        variant = self.variants[int(self.which[index])]
        return replace(layout, schedule=variant.schedule, virtual=variant.virtual)


def _held_at_most(variant: Variant) -> tuple[int, int, bool, bool, bool]:
    """Return the stages of the model to a place as they are cut, those that it holds, and which schedule it is."""
    held = 2 if variant.schedule == "dualpipe" else variant.virtual
    return variant.virtual, held, variant.schedule == "gpipe", variant.schedule in PLACED_AS_V, (
        variant.schedule == "dualpipe"
    )  # fmt: skip


Floor = Callable[[Candidates, Floats], Floats]
"""Scores that no plan of these layouts can beat, from the bound of their steps."""


@dataclass(frozen=True)
class Sharp:
    """Pairs of one schedule and one number of places, with what their stages take: arrays over the pairs."""

    group: Group
    beside: Floats
    """Seconds that come beside the schedule at least."""
    seconds: Floats
    """Seconds that their steps cannot beat."""
    places: Ints
    """Where each stands among those that were asked for."""

    def followed(self, setting: Setting, index: int) -> float:
        """Return seconds that a step cannot beat: its schedule operation by operation, and what comes beside it."""
        variant, part = self.group.variant, self.group.part
        forward, backward, weight, hop, spared = (one[:, index].tolist() for one in self.group.stages)
        paired = spared if variant.schedule == "dualpipe" else ()
        durations, times = Durations(forward, backward, weight, hop, paired), int(part.micro_batches[index])
        if variant.schedule == "gpipe":
            ends = stage_ends(np.array(forward), np.array(backward), np.array(hop), times, "gpipe")
        else:
            ends = schedule_ends(durations, times, variant.schedule, virtual_stages=variant.virtual)
        whole = float(ends.max()) * SLACK * _lockstep(setting) + setting.traits.step_overhead_s
        return max(whole + float(self.beside[index]), float(self.seconds[index]))


def sharper(
    setting: Setting, pool: str, pairs: Pairs, chunk: Ints, floor: Floor, limit: float
) -> tuple[list[Sharp], int]:
    """Return some pairs with sharper bounds, but for those whose floor is not below ``limit``, and how many of the
    others surely do not fit."""
    groups, seconds, places, starved = list[Group](), [], [], 0
    modes = None if pairs.again is None else Modes.of(setting, pool, pairs.base.where(pairs.row[chunk]))
    for members in _groups(setting, pairs, chunk):
        part = pairs.base.where(pairs.row[chunk[members]])
        variant, stages = pairs.stages(setting, pool, chunk[members], part)
        here, found, hope = _hopeful(setting, Group(variant, int(part.pipeline[0]), part, stages), floor, limit)
        left = members[hope]
        if modes is not None and pairs.again is not None and len(left):
            held = Modes(*([_at(block, left, len(chunk)) for block in blocks] for blocks in modes))
            here, some = least_even(setting, pool, here, held, pairs.again[:, pairs.row[chunk[left]]])
            starved += len(left) - len(some)
            here, found, hope = _hopeful(setting, here, floor, limit)
            left = left[some[hope]]
        if len(left):
            groups.append(here)
            seconds.append(found)
            places.append(left)
    if not groups:
        return [], starved
    least = [pairs.bound[chunk[place]] for place in places]
    sharp, misfits = _beside(setting, pool, groups, seconds, least, places)
    return sharp, misfits + starved


def _hopeful(setting: Setting, group: Group, floor: Floor, limit: float) -> tuple[Group, Floats, Ints]:
    """Return those of a group whose floor is below a limit, seconds that they cannot beat, and which they are."""
    found = chain(group.variant, group.stages, group.part.micro_batches) * _lockstep(setting)
    found = found + setting.traits.step_overhead_s
    hope = np.flatnonzero(floor(group.part, found) < limit)
    return group.take(hope), found[hope], hope


def _groups(setting: Setting, pairs: Pairs, chunk: Ints) -> Iterator[Ints]:
    """Yield which pairs share their schedule and their number of places."""
    key = pairs.which[chunk] * (len(setting.graph.layers) + 1) + pairs.base.pipeline[pairs.row[chunk]]
    order = np.argsort(key, kind="stable")
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(key[order])) + 1)


def _beside(
    setting: Setting, pool: str, groups: list[Group], seconds: list[Floats], least: list[Floats], places: list[Ints]
) -> tuple[list[Sharp], int]:
    """Return the groups' candidates that may fit, with what comes beside their schedules, and how many do not fit."""
    every = Candidates.together([group.part for group in groups])
    shape = bounds.shape_of(setting, every)
    blocks = [_whole(block, len(every)) for block in setting.memory(pool, shape, every.zero, every.recompute)]
    ends = np.cumsum([0, *(len(group.part) for group in groups)])
    slices = list(itertools.pairwise(ends.tolist()))
    fits = [
        np.flatnonzero(may_fit(setting, pool, group, [_cut(block, slice(first, last)) for block in blocks]))
        for group, (first, last) in zip(groups, slices, strict=True)
    ]
    chosen = np.concatenate([first + fit for fit, (first, _) in zip(fits, slices, strict=True)])
    if not len(chosen):
        return [], len(every)
    left = [group.take(fit) for group, fit in zip(groups, fits, strict=True)]
    kept = [_cut(block, chosen) for block in blocks]
    beside = around(setting, pool, left, every.where(chosen), kept)
    parts = np.split(beside, np.cumsum([len(fit) for fit in fits])[:-1])
    found = [
        Sharp(group, extra, np.maximum(plain[fit] + extra, first[fit]), place[fit])
        for group, extra, plain, first, fit, place in zip(left, parts, seconds, least, fits, places, strict=True)
    ]
    return found, len(every) - len(chosen)


def _whole(block: tuple[Holding, Array], size: int) -> tuple[Holding, Array]:
    """Return one block with an array of all candidates for every part."""
    held, working = (np.broadcast_to(np.asarray(part), size) for part in vars(block[0]).values()), block[1]
    return Holding(*held), np.broadcast_to(np.asarray(working), size)


def _cut(block: tuple[Holding, Array], index: Ints | slice) -> tuple[Holding, Array]:
    """Return one whole block of the candidates that an index selects."""
    held, working = block
    return Holding(*(part[index] for part in vars(held).values())), np.asarray(working)[index]


def _at(block: tuple[Holding, Array], index: Ints | slice, size: int) -> tuple[Holding, Array]:
    """Return one block of the candidates that an index selects, of ``size``."""
    return _cut(_whole(block, size), index)
