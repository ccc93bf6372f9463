"""Pipelines over several pools as arrays: options of each pool, stages, replicas, and the bounds that cost little.

See :mod:`zhenfa.plan.mixed` for the bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats
from zhenfa.plan.build import Layout, Slot
from zhenfa.plan.search import SLOWER, Tally
from zhenfa.plan.space import Bools, Ints, context_degrees, divisors, micro_batch_sizes, zero_stages
from zhenfa.plan.sparing import offload_of
from zhenfa.plan.ways import Options, options_of
from zhenfa.plan.weighed import Weighed
from zhenfa.spec.job import Limits

MAX_POOLS_ORDERED: Final = 4
"""Pools that one pipeline may cross; their orders are all tried."""


@dataclass(frozen=True)
class Family:
    """Mixed pipelines over the same pools, with the same micro-batch size, context degree and ZeRO stage; arrays
    ``[candidate]``. A candidate is a group of layouts, one for each way of its options, unless ``cut`` says which."""

    options: list[Options]
    chosen: Ints
    """Which option each pool takes, ``[pools, candidates]``."""
    depth: Ints
    """Stages of each pool, ``[pools, candidates]``."""
    replicas: Ints
    bound: Floats
    """Seconds that cannot be beaten."""
    size: int
    total: int
    zero: int
    cut: Ints | None = None
    """Which cut each pool takes, ``[pools, candidates]``."""
    saving: int = 0
    """What all of them do to save memory: see :attr:`zhenfa.plan.space.Candidates.saving`."""
    ways: tuple[tuple[int, int], ...] = ()
    """The ZeRO stages and ways to save memory that each candidate stands for, where those are several; ``zero`` and
    ``saving`` are then those that need the least memory (:mod:`zhenfa.plan.mixed_saving`)."""

    def __len__(self) -> int:
        return len(self.replicas)

    @property
    def micro_batches(self) -> Ints:
        """Return the micro-batches of the busiest replica."""
        return -(-self.total // self.replicas)

    @property
    def weight(self) -> Ints:
        """Return how many layouts each candidate stands for, in one order of its pools."""
        if self.cut is not None:
            return np.ones_like(self.replicas)
        many: Ints = np.prod([one.many[pick] for one, pick in self.picks], axis=0)
        return many * max(len(self.ways), 1)

    @property
    def whole(self) -> Bools:
        """Return which candidates share no micro-batches out."""
        return all_whole(self.options, self.chosen)

    @property
    def orders(self) -> int:
        """Return in how many orders the pools can stand."""
        return math.factorial(len(self.options))

    def every_order(self) -> Iterator[tuple[int, ...]]:
        """Yield the orders in which the pools can stand."""
        return itertools.permutations(range(len(self.options)))

    @property
    def picks(self) -> list[tuple[Options, Ints]]:
        """Return the options of each pool and which each candidate takes."""
        return list(zip(self.options, self.chosen, strict=True))

    @property
    def width(self) -> Ints:
        """Return the cards of a stage in all replicas, ``[pools, candidates]``."""
        return np.stack([one.width[pick] for one, pick in self.picks]) * self.replicas

    @property
    def cards(self) -> Mapping[str, Ints]:
        """Return the cards of each pool that work."""
        rows = self.depth * self.width
        return {one.pool: row for one, row in zip(self.options, rows, strict=True)}

    @property
    def cuts(self) -> Ints:
        """Return which cut each pool of each layout takes."""
        assert self.cut is not None  # noqa: S101
        return self.cut

    def zeros(self, cut: Ints) -> Ints:
        """Return the ZeRO stage of each candidate with these cuts: none where nothing is replicated."""
        shared = [self.replicas > 1]
        for one, pick in zip(self.options, cut, strict=True):
            peers = self.replicas * one.cuts.data[pick] * one.cuts.context[pick]
            shared.append(peers > 1)
            if one.routed > 1:
                cards = peers * one.cuts.tensor[pick]
                shared.append(cards > one.cuts.expert[pick])
        zeros: Ints = np.where(np.logical_or.reduce(shared), self.zero, 0)
        return zeros

    def where(self, index: Ints) -> Family:
        """Return the candidates that an index selects."""
        return replace(
            self, chosen=self.chosen[:, index], depth=self.depth[:, index], replicas=self.replicas[index],
            bound=self.bound[index], cut=None if self.cut is None else self.cut[:, index],
        )  # fmt: skip

    def members(self, index: int) -> Family:
        """Return the layouts of one candidate, one for each choice of a way on every pool."""
        ways = [one.ways[pick[index], : one.many[pick[index]]] for one, pick in self.picks]
        cut = np.stack([axis.reshape(-1) for axis in np.meshgrid(*ways, indexing="ij")])
        return replace(self.where(np.full(cut.shape[1], index)), cut=cut)

    def layout(self, index: int, order: Sequence[int]) -> Layout:
        """Return one layout with its pools in an order."""
        slots: list[Slot] = []
        for pool in order:
            slots += [self.options[pool].slot(int(self.cuts[pool, index]))] * int(self.depth[pool, index])
        replicas = int(self.replicas[index])
        zero = int(self.zeros(self.cuts)[index])
        times, away = -(-self.total // replicas), offload_of(self.saving)
        return Layout(tuple(slots), replicas, self.size, times, zero, offload=away)


def every_family(
    setting: Setting, sequences: int, limits: Limits, limit: float, tally: Tally, first: float = math.inf
) -> Iterator[Family]:
    """Yield every choice of two or more pools, micro-batch size and context degree, with the candidates that may stay
    below ``limit``; those that share micro-batches out, below ``first``. Those left out are counted as slower.
    """
    names = [pool.name for pool in setting.formation.pools]
    stages = [stage for stage in zero_stages(setting) if stage < 2]
    contexts = sorted(set.intersection(*(set(context_degrees(setting, name, limits)) for name in names)))
    sizes = micro_batch_sizes(sequences, limits)
    found = {name: options_of(setting, name, sizes, contexts, limits) for name in names}
    below = Below(limit, min(limit, first))
    for size, context in itertools.product(sizes, contexts):
        options = {name: every[size, context] for name, every in found.items() if (size, context) in every}
        for count in range(2, min(len(options), MAX_POOLS_ORDERED) + 1):
            for members in itertools.combinations(options, count):
                chosen = [options[name] for name in members]
                for zero in stages or [0]:
                    family, left_out = family_over(setting, chosen, size, sequences // size, zero, limits, below)
                    tally.considered += left_out * math.factorial(count)
                    tally.rejected[SLOWER] += left_out * math.factorial(count)
                    if len(family):
                        yield family


@dataclass(frozen=True)
class Below:
    """Seconds that candidates have to stay below: those whose pools all take whole micro-batches, and the others."""

    whole: float
    shared: float

    def of(self, options: Sequence[Options], chosen: Ints) -> Floats:
        """Return those of candidates with these options."""
        return np.where(all_whole(options, chosen), self.whole, self.shared)


def all_whole(options: Sequence[Options], chosen: Ints) -> Bools:
    """Return which candidates with these options share no micro-batches out, on any pool."""
    alone: Bools = np.logical_and.reduce([one.shared[pick] == 1 for one, pick in zip(options, chosen, strict=True)])
    return alone


def family_over(
    setting: Setting, options: list[Options], size: int, total: int, zero: int, limits: Limits, below: Below
) -> tuple[Family, int]:
    """Return every choice of options and data-parallel degree over these pools that may stay below a limit, with all
    the stages that the cards and the layers allow, bounded; and how many layouts were left out.

    Where all pools share micro-batches out, more replicas with smaller ones are the same: one of them does not.
    """
    degrees = np.array(_degrees(min(total, *(one.count // one.context for one in options))))
    deepest, times = _deepest(setting, limits), -(-total // degrees)
    seconds = _each_second(setting, options)
    chosen, depth, number, weight = _possible(options, seconds, degrees, times, deepest, below)
    deep = np.minimum(depth.sum(axis=0), deepest)
    near = _short_enough(seconds, chosen, deep, times[number], below.of(options, chosen))
    family = Family(options, chosen, depth, degrees[number], np.zeros(len(number)), size, total, zero).where(near)
    left_out = weight - int(family.weight.sum())
    family = _bounded(setting, _trimmed(family, deepest, limits.max_cards))
    good = family.bound < below.of(options, family.chosen)
    return family.where(np.flatnonzero(good)), left_out + int(family.weight[~good].sum())


def _possible(
    options: Sequence[Options], seconds: Sequence[Floats], degrees: Ints, times: Ints, deepest: int, below: Below
) -> tuple[Ints, Ints, Ints, int]:
    """Return the choices of options with stages on each pool, ``[pools, choices]``, and of a data-parallel degree,
    ``[choices]``, that no stages keep from staying below a limit; and how many layouts there are before that."""
    axes = [np.arange(len(one.degrees)) for one in options]
    *numbers, place = np.meshgrid(*axes, np.arange(len(degrees)), indexing="ij", sparse=True)
    speed: Floats = np.zeros(())
    possible, whole, some = np.ones((), dtype=bool), np.ones((), dtype=bool), np.zeros((), dtype=bool)
    weight: Ints = np.ones((), dtype=np.int64)
    tables = []
    for one, each, number, axis in zip(options, seconds, numbers, axes, strict=True):
        option = one.option_of(axis[:, None], degrees[None])
        depth = one.count // (one.degrees[:, None] * degrees)
        there = (depth >= 1) & (option >= 0)
        speed = speed + (np.minimum(depth, deepest) / each[:, option])[:, number, place]
        possible = possible & there[number, place]
        whole, some = whole & (one.groups[number] == 1), some | (one.groups[number] == 1)
        weight = weight * one.many[option][number, place]
        tables.append((option, depth))
    possible = possible & some
    with np.errstate(divide="ignore"):
        likely = possible & (times / speed.min(axis=0) < np.where(whole, below.whole, below.shared))
    *picks, number = np.nonzero(likely)
    chosen, stages = (
        np.stack([pair[side][pick, number] for pair, pick in zip(tables, picks, strict=True)]) for side in (0, 1)
    )
    return chosen, stages, number, int(np.broadcast_to(weight, possible.shape)[possible].sum())


def _short_enough(seconds: Sequence[Floats], chosen: Ints, deep: Ints, times: Ints, limit: Floats) -> Ints:
    """Return which of some choices may stay below the limit with so many stages in all, were all of them the fastest
    of theirs."""
    each = np.stack([one[:, pick] for one, pick in zip(seconds, chosen, strict=True)])
    return np.flatnonzero(each.min(axis=0).max(axis=0) * bounds.ramp(deep, times) < limit)


def _each_second(setting: Setting, options: Sequence[Options]) -> list[Floats]:
    """Return, for the options of each pool, seconds of a micro-batch over the whole model that hold for any mixture of
    its layers over the pools, ``[weights, options]``: see :func:`least_seconds`, with few weights that serve all."""
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    times = np.concatenate([counts, np.ones(2)])
    each = [np.concatenate([one.work.layers, one.work.ends]) for one in options]
    own = np.concatenate([parts / one.work.whole for one, parts in zip(options, each, strict=True)], axis=1)
    weights = [own.min(axis=1), np.eye(len(times))[bounds.main_index(setting)]]
    return [np.stack([(times @ one) * _least_ratio(parts, one[:, None]) for one in weights]) for parts in each]


def _least_ratio(parts: Floats, weight: Floats) -> Floats:
    """Return the least of the parts over their weights, of those that have one."""
    ratio: Floats = np.divide(parts, weight, out=np.full_like(parts, np.inf), where=weight > 0).min(axis=0)
    return ratio


def _deepest(setting: Setting, limits: Limits) -> int:
    layers = len(setting.graph.layers)
    return min(layers, limits.max_pipeline_parallel or layers)


def _seconds(family: Family) -> Floats:
    """Return the seconds of one micro-batch over the whole model on each pool, ``[pools, candidates]``."""
    return np.stack([one.work.whole[pick] for one, pick in family.picks])


def _trimmed(family: Family, deepest: int, cards: int | None) -> Family:
    """Take stages from the slowest cards where a pipeline is deeper than the model or takes more cards than allowed.

    Each pool keeps at least one; what is still too deep or too wide is left out.
    """
    depth = family.depth.copy()
    width = family.width
    columns = np.arange(len(family))
    for row in np.argsort(-_seconds(family), axis=0, kind="stable"):
        over = np.maximum(depth.sum(axis=0) - deepest, 0)
        if cards is not None:
            over = np.maximum(over, -(-np.maximum((depth * width).sum(axis=0) - cards, 0) // width[row, columns]))
        depth[row, columns] -= np.minimum(over, np.maximum(depth[row, columns] - 1, 0))
    keep = depth.sum(axis=0) <= deepest
    if cards is not None:
        keep &= (depth * width).sum(axis=0) <= cards
    return replace(family, depth=depth).where(np.flatnonzero(keep))


@dataclass(frozen=True)
class Parts:
    """Seconds of one micro-batch on each pool: over the whole model, ``[pools, candidates]``, and of a layer of each
    kind, of the stem and of the head, ``[pools, kinds + 2, candidates]``."""

    whole: Floats
    each: Floats

    @classmethod
    def of(cls, family: Family) -> Parts:
        """Return those of the candidates of a family."""
        each = [np.concatenate([one.work.layers[:, pick], one.work.ends[:, pick]]) for one, pick in family.picks]
        return cls(_seconds(family), np.stack(each))

    @staticmethod
    def together(parts: Sequence[Parts]) -> Parts:
        """Return those of all candidates in one."""
        whole, each = (np.concatenate(one, axis=-1) for one in zip(*((p.whole, p.each) for p in parts), strict=True))
        return Parts(whole, each)

    def where(self, index: Ints) -> Parts:
        """Return those of the candidates that an index selects."""
        return Parts(self.whole[:, index], self.each[..., index])


def least_seconds(setting: Setting, parts: Parts) -> Floats:
    """Return seconds of one micro-batch over the whole model on each pool that hold for any mixture of its layers.

    Let a layer of kind ``k`` count ``w_k``, the whole model 1. Layers that count ``W`` take at least ``W`` times the
    least ``a_ik / w_k`` on pool ``i``, where one of them takes ``a_ik``. Any ``w`` will do; taken is the least share of
    the whole that a layer takes on any of the pools. Where pools differ in speed alone, that is what they take on the
    whole model.
    """
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    weight = (parts.each / parts.whole[:, None]).min(axis=0)
    ratio = np.divide(parts.each, weight, out=np.full_like(parts.each, np.inf), where=weight > 0).min(axis=1)
    seconds: Floats = (np.concatenate([counts, np.ones(2)]) @ weight) * ratio
    return seconds


def _bounded(setting: Setting, family: Family) -> Family:
    """Return a family with the first two bounds."""
    if not len(family):
        return family
    return replace(family, bound=first_bounds(setting, Parts.of(family), family.depth, family.micro_batches))


def first_bounds(setting: Setting, parts: Parts, depth: Ints, times: Ints) -> Floats:
    """Return the first two bounds of so many stages on each pool, with so many micro-batches."""
    seconds = least_seconds(setting, parts)
    return fill(times / (depth / seconds).sum(axis=0), depth, seconds, times)


def fill(bound: Floats, depth: Ints, seconds: Floats, times: Ints) -> Floats:
    """Sharpen the bound by what filling and draining the pipeline costs.

    With ``X`` the step, no stage works longer than ``C = X / m`` on a micro-batch, so the whole model works at least
    ``T(C)``: fast stages full, the rest on slower ones. And ``X >= T r`` with :func:`zhenfa.plan.bounds.ramp`.
    Bisection keeps the lower end a bound.
    """
    deep = depth.sum(axis=0)
    ramp = bounds.ramp(deep, times)
    order = np.argsort(seconds, axis=0)
    quick, many = np.take_along_axis(seconds, order, 0), np.take_along_axis(depth, order, 0)
    low, high = bound, bound * np.maximum(ramp * deep / times, 1.0)
    for _ in range(8):
        middle = (low + high) / 2
        left, work = np.ones_like(middle), np.zeros_like(middle)
        for one, stages in zip(quick, many, strict=True):
            taken = np.minimum(left, stages * middle / times / one)
            left, work = left - taken, work + taken * one
        short = ramp * work > middle
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return low


def whole_layers(setting: Setting, family: Family) -> Floats:
    """Return the third bound of the candidates of a family: see :func:`layers_bound`."""
    return layers_bound(setting, Parts.of(family), family.depth, family.micro_batches)


def layers_bound(setting: Setting, parts: Parts, depth: Ints, times: Ints) -> Floats:
    """Return ``m C`` for the least ``C`` at which whole layers of the most numerous kind find a place."""
    kind = bounds.main_index(setting)
    layer = parts.each[:, kind]
    needed = np.bincount(setting.graph.layers)[kind]
    low: Floats = needed / (depth / layer).sum(axis=0)
    high = low + layer.max(axis=0)
    for _ in range(24):
        middle = (low + high) / 2
        short = (depth * np.floor(middle / layer + 1e-9)).sum(axis=0) < needed
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    bound: Floats = low * times
    return bound


def of_other_kinds(setting: Setting, seconds: Floats) -> dict[str, Floats]:
    """Return the seconds of all layers that are not of the most numerous kind, those before the first of that kind
    apart, from the seconds of a layer of each kind, ``[kinds, pools, candidates]``."""
    layers, kind = setting.graph.layers, bounds.main_index(setting)
    counts = np.bincount(layers, minlength=len(setting.graph.kinds))
    leading = np.bincount(layers[: layers.index(kind)], minlength=len(counts))
    following = np.where(np.arange(len(counts)) == kind, 0, counts - leading)
    return {"leading": leading[:, None, None] * seconds, "following": following[:, None, None] * seconds}


def may_share(
    setting: Setting, parts: Parts, depth: Ints, times: Ints, step: float, among: Bools | None = None
) -> Bools:
    """Return where a step may be as short in which order of the pools, ``[orders, candidates]``, by what the stages say
    of it together (:mod:`zhenfa.plan.weighed`), none of which works longer than ``step / times`` on a micro-batch.

    Only those ``among`` are looked at. With fewer stages a step is not shorter: a stage more may stay empty.
    """
    orders = np.array(list(itertools.permutations(range(len(depth))))).T
    possible = np.ones((orders.shape[1], len(times)), dtype=bool) if among is None else among.copy()
    if not math.isfinite(step):
        return possible
    order, line = np.nonzero(possible)
    pools, kind = orders[:, order], bounds.main_index(setting)
    each = parts.each[pools, :, line].swapaxes(1, 2)
    stages, counted, seconds = depth[pools, line], times[line], each[:, kind]
    taken: Floats = np.floor(step / counted * (1 + 1e-9) / seconds + 1e-9)
    others = of_other_kinds(setting, each[:, :-2].swapaxes(0, 1))
    found = Weighed(
        stages, seconds, counted, stages * taken, taken[0], each[0, -2], each[-1, -1], others["leading"],
        others["following"], int(np.bincount(setting.graph.layers)[kind]),
    )  # fmt: skip
    possible[order, line] = found.may_be(step)
    return possible


def may_be_as_short(setting: Setting, families: Sequence[Family], step: float) -> list[Bools]:
    """Return where a step of several families may be as short in which order of the pools, ``[orders, candidates]``
    each: see :func:`may_take` and :func:`may_share`."""
    found = [may_take(setting, family, step) for family in families]
    for pools in {len(family.options) for family in families}:
        here = [number for number, family in enumerate(families) if len(family.options) == pools]
        near = [np.flatnonzero(found[number].any(axis=0)) for number in here]
        parts = [families[number].where(rows) for number, rows in zip(here, near, strict=True)]
        shares = may_share(
            setting, Parts.together([Parts.of(part) for part in parts]),
            np.concatenate([part.depth for part in parts], axis=1),
            np.concatenate([part.micro_batches for part in parts]), step,
            np.concatenate([found[number][:, rows] for number, rows in zip(here, near, strict=True)], axis=1),
        )  # fmt: skip
        ends = np.cumsum([len(rows) for rows in near])[:-1]
        for number, rows, share in zip(here, near, np.split(shares, ends, axis=1), strict=True):
            found[number][:, rows] = share
    return found


def may_take(setting: Setting, family: Family, step: float) -> Bools:
    """Return where a step may be as short in which order of the pools, by the work of whole layers,
    ``[orders, candidates]``.

    No stage works longer than ``C = X / m`` on a micro-batch. On pool ``i`` it holds at most ``floor(C / l_i)`` layers
    of the most numerous kind, less with the stem on the first pool and the head on the last, and one at least unless
    another kind stands there. Where the layers find a place so, a micro-batch works at least as long as with the
    quickest stages full (``T``); that takes a step of ``T r`` (:func:`zhenfa.plan.bounds.ramp`), and of ``T`` as many
    times as a micro-batch can set out only when another has come back.
    """
    orders = list(family.every_order())
    if not math.isfinite(step):
        return np.ones((len(orders), len(family)), dtype=bool)
    kind, layers = bounds.main_index(setting), setting.graph.layers
    counts = np.bincount(layers)
    parts = Parts.of(family).each
    layer, (stem, head) = parts[:, kind], parts[:, len(counts) :].swapaxes(0, 1)
    leading = stem + parts[:, list(layers[: layers.index(kind)])].sum(axis=1)
    times, deep = family.micro_batches, family.depth.sum(axis=0)
    longest = step / times * (1 + 1e-9)
    whole, *less = (np.floor(np.maximum(longest - end, 0.0) / layer + 1e-9) for end in (0.0, leading, head))
    others = np.where(np.arange(len(counts)) == kind, 0, counts)
    rest = others @ parts[:, : len(counts)].min(axis=0)
    most_work = step * (1 + 1e-9) / np.maximum(bounds.ramp(deep, times), -(-times // deep))
    quickest = np.argsort(layer, axis=0)
    quick = np.take_along_axis(layer, quickest, 0)
    possible = np.empty((len(orders), len(family)), dtype=bool)
    for number, order in enumerate(orders):
        room = family.depth * whole
        for pool, short in ((order[0], less[0]), (order[-1], less[1])):
            room[pool] -= whole[pool] - short[pool]
        taken = np.minimum(np.maximum(family.depth - others.sum(), 0), room)
        left = counts[kind] - taken.sum(axis=0)
        work = stem[order[0]] + head[order[-1]] + rest + (taken * layer).sum(axis=0)
        for one, most in zip(quick, np.take_along_axis(room - taken, quickest, 0), strict=True):
            more = np.clip(left, 0, most)
            left, work = left - more, work + more * one
        possible[number] = (left <= 0) & (work <= most_work)
    return possible


def _degrees(widest: int) -> list[int]:
    """Return the data-parallel degrees to try: all up to 16, all divisors of the widest, about eight per doubling."""
    doublings = max(1, math.ceil(math.log2(widest + 1)))
    steps = {min(widest, round(2 ** (eighth / 8))) for eighth in range(8 * doublings + 1)}
    return sorted(steps | set(range(1, min(widest, 16) + 1)) | set(divisors(widest, widest)))
