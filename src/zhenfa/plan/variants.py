"""Other schedules of one pool's layouts: interleaved, zero-bubble, ZB-V and DualPipe over stages as even as can be.

Of ``n`` stages each holds ``floor(L/n)`` of ``L`` layers or one more; those that hold more stand on the places that hold
neither stem nor head first (:func:`even_ranges`), as the engines that run these schedules cut a model. Of such splits
no step ``X`` can beat these, where every stage takes at least ``c = f + b`` (``f`` forward, ``w`` gradients of weights),
a place holds ``v`` stages, ``m`` micro-batches run over ``p`` places and ``T`` is the work of the whole model:

* ``X >= m T / p``: some place does at least its share (DualPipe: but for the exchange of tokens that it hides);
* interleaved: ``X >= m (v c + head) + (p - 1) c``: before the last place can start, each place before it has run a
  forward, and after it has ended, a backward; and ``X >= (m v + p - 1) c``, the makespan of equal stages, because no
  schedule with a fixed order gets shorter when an operation gets longer;
* zero-bubble: ``X >= (m + p - 1)(c - w) + head``: in the last place, with the gradients of weights put off;
* ZB-V: ``X >= 2 m c + (p - 1) f``: the place at the turn starts after a forward of each place before it; and
  ``X >= (2 m + p - 1)(c - w)``, gradients of weights aside, because all of its work has to come back;
* any: ``X >= T - W``: a micro-batch goes there and back, gradients of weights ``W`` aside; and ``X >= m ceil(L/p) l``,
  with ``l`` the quickest layer: some place holds at least its share of whole layers.

Memory: a place holds the state of its stages and, at the fullest, so many micro-batches as the schedules' laws say
(:func:`zhenfa.laws.schedules.held_micro_batches`), of the layers that every stage holds at least.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from zhenfa.estimate.reduction import Terms, exchange
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import at_an_end, cost
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import make_plan, pipelines
from zhenfa.plan.search import (
    NO_MEMORY,
    SLOWER,
    Best,
    Tally,
    family_of_layout,
    fewer_replicas_of,
    layout_of,
    search_simple,
)
from zhenfa.plan.space import NO_BANDWIDTH, Bools, Candidates, Ints, enumerate_pool
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Schedule

UNEVEN: Final = "micro-batches that the schedule cannot take"

MOST_STAGES: Final = 16
"""Stages to a place."""


class Variant(NamedTuple):
    """A schedule with so many stages to a place; ``held`` stages of the model at each place."""

    schedule: Schedule
    virtual: int
    held: int


def variants(setting: Setting) -> list[Variant]:
    """Return the schedules that the engine can run, one by one for each number of stages to a place."""
    layers = len(setting.graph.layers)
    found = [Variant("interleaved", times, times) for times in range(2, min(MOST_STAGES, layers // 2) + 1)]
    found += [Variant("zero-bubble", 1, 1), Variant("zero-bubble-v", 2, 2), Variant("dualpipe", 1, 2)]
    return [one for one in found if one.schedule in setting.traits.schedules]


def takes(setting: Setting, variant: Variant, found: Candidates) -> tuple[Bools, Bools]:
    """Return where a schedule has a stage's layers for every stage, and where it can take the micro-batches.

    Interleaving runs groups of as many micro-batches as there are places (narayanan2021, section 2.2); DualPipe needs an
    even number of places, and an even number of micro-batches, twice as many as places or more.
    """
    places, times = found.pipeline, found.micro_batches
    deep: Bools = (places >= 2) & (places * variant.virtual <= len(setting.graph.layers))
    if variant.schedule == "interleaved":
        return deep, times % places == 0
    if variant.schedule == "dualpipe":
        return deep & (places % 2 == 0), (times % 2 == 0) & (times >= 2 * places)
    return deep, np.ones_like(deep)


def bound(setting: Setting, variant: Variant, found: Candidates, work: Work) -> Floats:
    """Return seconds that no even split under a schedule can beat."""
    places, times = found.pipeline, found.micro_batches
    layers = len(setting.graph.layers) // (places * variant.virtual)
    one, forward, weight = (layers * part.min(axis=0) for part in (work.layers, work.forward, work.weight))
    head = work.ends[1]
    share = times * work.whole / places
    match variant.schedule:
        case "interleaved":
            last = times * (variant.virtual * one + head) + (places - 1) * one
            best = np.maximum(last, (times * variant.virtual + places - 1) * one)
        case "zero-bubble":
            best = (times + places - 1) * (one - weight) + head
        case "zero-bubble-v":
            best = np.maximum(2 * times * one + (places - 1) * forward, (2 * times + places - 1) * (one - weight))
        case _:
            share = best = _share(setting, work, places, times)
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    hidden = counts @ work.expert if variant.schedule == "dualpipe" else 0.0
    once = work.whole - counts @ work.weight - hidden
    quickest = (work.layers - (work.expert if variant.schedule == "dualpipe" else 0.0)).min(axis=0)
    busiest = times * -(-len(setting.graph.layers) // places) * quickest
    found_bound: Floats = np.max([share, best, once, busiest], axis=0)
    return found_bound


def tail(setting: Setting, pool: str, variant: Variant, found: Candidates, work: Work) -> Floats:
    """Return seconds that summing gradients adds at least behind the last backward of any place.

    A place holds ``held`` stages of at least ``floor(L/n)`` layers; what a sum takes beyond the backward pass that hides
    it only grows with the layers.
    """
    seconds = np.zeros(len(found))
    layers = variant.held * (len(setting.graph.layers) // (found.pipeline * variant.virtual))
    behind = (work.layers - work.forward).max(axis=0)
    for zero in np.unique(found.zero).tolist():
        rows = np.flatnonzero(found.zero == zero)
        part = found.where(rows)
        shape = bounds.shape_of(setting, part)
        terms = Terms.usual(setting.workload.precision, zero)
        least = None
        for held, _ in setting.memory(shape, zero, part.recompute)[: len(setting.graph.kinds)]:
            stage = held.times(layers[rows])
            reduce = exchange(terms, setting, pool, shape, stage, 1).reduce
            if terms.every_reduce:
                reduce = reduce / np.maximum(layers[rows], 1)
            one = at_an_end(setting, reduce, layers[rows] * behind[rows], layers[rows], setting.traits.gradient_overlap)
            least = one if least is None else np.minimum(least, one)
        seconds[rows] = least
    return seconds


def may_fit(setting: Setting, pool: str, variant: Variant, found: Candidates) -> Bools:
    """Return where the first place surely or possibly holds its stages."""
    places, times = found.pipeline, found.micro_batches
    layers = len(setting.graph.layers) // (places * variant.virtual)
    state, activation = bounds.least_layer(setting, bounds.shape_of(setting, found), found)
    match variant.schedule:
        case "interleaved":
            flight = np.minimum(2 * (places - 1) + (variant.virtual - 1) * places + 1, times * variant.virtual)
        case "zero-bubble":
            flight = np.minimum(places, times)
        case "zero-bubble-v":
            flight = np.minimum(2 * places, 2 * times)
        case _:
            flight = places + 1
    needed = layers * (variant.held * state + flight * activation)
    mask: Bools = needed <= setting.chips[pool].usable * (1 + 1e-9)
    return mask


def even_ranges(layers: int, places: int, turns: int) -> list[tuple[int, int]]:
    """Return the layers of ``turns`` stages to a place in the order of the model, as even as can be.

    >>> even_ranges(7, 4, 1)
    [(0, 2), (2, 4), (4, 6), (6, 7)]
    >>> [last - first for first, last in even_ranges(10, 4, 2)]
    [1, 2, 2, 1, 1, 1, 1, 1]
    """
    least, more = divmod(layers, places * turns)
    order = sorted(range(places), key=lambda place: (place == places - 1, place == 0, place))
    longer = {turn * places + place for turn in range(turns) for place in order[: more - turn * places]}
    sizes = [least + (stage in longer) for stage in range(places * turns)]
    borders = np.cumsum([0, *sizes]).tolist()
    return list(zip(borders[:-1], borders[1:], strict=True))


def search_pool(
    setting: Setting, job: str, pool: str, sequences: int, limits: Limits, best: Best, tally: Tally
) -> None:
    """Offer to ``best`` every layout of one pool that can be among the best, under every schedule. Exact over the
    layouts that are enumerated and the splits that :mod:`zhenfa.plan.search` and this module name."""
    search_simple(setting, job, pool, sequences, limits, best, tally)
    if not variants(setting):
        return
    widest = enumerate_pool(setting, pool, sequences, limits, Counter())
    widest = widest.where(widest.pipeline > 1)
    if not len(widest):
        return
    work = bounds.work_per_micro_batch(setting, pool, widest)
    hope = np.flatnonzero(_share(setting, work, widest.pipeline, widest.micro_batches) < best.last)
    widest, work = widest.where(hope), work.take(hope)
    fewer, more, _ = fewer_replicas_of(setting, widest, work, best, _share)
    base = Candidates.together([widest, fewer])
    both = Work(*(np.concatenate(parts, axis=-1) for parts in zip(work, more, strict=True)))
    _search(setting, job, pool, base, both, best, tally)


def _share(setting: Setting, work: Work, places: Ints, times: Ints) -> Floats:
    """Return seconds that no schedule beats: DualPipe hides the exchange of tokens, no other schedule anything."""
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    seconds: Floats = times * (work.whole - counts @ work.expert) / places
    return seconds


def _search(
    setting: Setting, job: str, pool: str, base: Candidates, work: Work, best: Best, tally: Tally
) -> None:
    """Offer every schedule of ``base`` that can be among the best, in order of the bound."""
    heap: list[tuple[float, int, Variant, int]] = []
    for variant in variants(setting):
        for row, floor in _hopeful(setting, pool, variant, base, work, best, tally):
            heap.append((floor, len(heap), variant, row))
    heapq.heapify(heap)
    while heap and heap[0][0] < best.last:
        floor, _, variant, row = heapq.heappop(heap)
        _consider(setting, job, pool, variant, base, row, floor, best, tally)
    tally.rejected[SLOWER] += len(heap)


def _hopeful(
    setting: Setting, pool: str, variant: Variant, base: Candidates, work: Work, best: Best, tally: Tally
) -> Iterator[tuple[int, float]]:
    """Yield the rows that a schedule may bring among the best, with their bounds; count the others."""
    deep, even = takes(setting, variant, base)
    rows: Ints = np.flatnonzero(deep & even)
    tally.considered += int(deep.sum())
    tally.rejected[UNEVEN] += int((deep & ~even).sum())
    floor = bound(setting, variant, base.where(rows), work.take(rows))
    hope = floor < best.last
    tally.rejected[SLOWER] += int((~hope).sum())
    rows, floor = rows[hope], floor[hope]
    floor = floor + tail(setting, pool, variant, base.where(rows), work.take(rows))
    quick = floor < best.last
    tally.rejected[SLOWER] += int((~quick).sum())
    rows, floor = rows[quick], floor[quick]
    fits = may_fit(setting, pool, variant, base.where(rows))
    tally.rejected[NO_MEMORY] += int((~fits).sum())
    yield from zip(rows[fits].tolist(), floor[fits].tolist(), strict=True)


def _consider(
    setting: Setting, job: str, pool: str, variant: Variant, base: Candidates, row: int, floor: float, best: Best,
    tally: Tally,
) -> None:  # fmt: skip
    layout = replace(layout_of(base, row, pool), schedule=variant.schedule, virtual=variant.virtual)
    if floor >= best.limit(family_of_layout(layout)):
        tally.rejected[SLOWER] += 1
        return
    ranges = even_ranges(len(setting.graph.layers), len(layout.slots), variant.virtual)
    plan = make_plan(setting, job, layout, pipelines(layout, ranges, int(base.total[row])))
    found = cost(plan, setting)
    outcome: Counter[str] = tally.rejected
    if found.problem:
        outcome[NO_BANDWIDTH if "bandwidth" in found.problem else NO_MEMORY] += 1
        return
    tally.costed += 1
    best.offer(plan, found)
