"""A sharper look at a few mixed pipelines: what their slots hold, and a bound that counts whole layers and memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from zhenfa.estimate import traffic
from zhenfa.estimate.setting import Setting
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import Rows, rows_of_many
from zhenfa.plan.family import Family, of_other_kinds
from zhenfa.plan.mixed_saving import updates_at_least, with_moves
from zhenfa.plan.space import ACTIVATIONS_AWAY, Bools, Candidates, Ints
from zhenfa.plan.sparing import exchanged, kept_away, offload_of
from zhenfa.plan.ways import Options
from zhenfa.plan.weighed import Weighed
from zhenfa.spec.plan import Offload

BISECTIONS: Final = 6
"""How often the span between a bound and a step that is possible is halved."""

ROUNDS: Final = 3
"""How often the longest a stage may work is sharpened by what the others can take."""

_STATE: Final = np.array([[1.0], [1.0], [0.0]])
"""Of seconds, state and activations, the first two."""

DEEPER: Final = 1.5
"""Pipelines are looked at together where none is this many times as deep as another."""


@dataclass(frozen=True, eq=False)
class Look:
    """Some candidates of a family with what their slots cost, one entry per pool: the least of each part over a group's
    ways, or that of a layout's own cuts."""

    part: Family
    rows: list[Rows]
    counts: Ints
    """Layers of each kind."""
    setting: Setting
    ways: list[Rows]
    """What every way of each candidate costs, with last axes ``[candidates, ways]``."""
    updates: list[Floats]
    """Seconds that an update in host memory takes at least where a pool holds the first stage, and for each layer of
    the most numerous kind, ``[2, candidates, ways]`` or, of layouts, ``[2, candidates]``."""

    @classmethod
    def at(cls, setting: Setting, part: Family) -> Look:
        """Look at some groups."""
        return cls.at_each(setting, [part])[0]

    @classmethod
    def at_each(cls, setting: Setting, parts: Sequence[Family]) -> list[Look]:
        """Look at some groups of several families."""
        counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
        found = []
        for part, every in zip(parts, _rows_of_ways(setting, parts), strict=True):
            ways, updates = [rows for rows, _ in every], [seconds for _, seconds in every]
            least = [Rows(*(table.min(axis=-1) for table in rows)) for rows in ways]
            found.append(cls(part, least, counts, setting, ways, updates))
        return found

    def members(self, index: int) -> Look:
        """Look at the layouts of one group."""
        many = [int(one.many[pick[index]]) for one, pick in self.part.picks]
        which = [axis.reshape(-1) for axis in np.meshgrid(*map(np.arange, many), indexing="ij")]
        rows = [
            Rows(*(table[..., index, :][..., way] for table in ways))
            for ways, way in zip(self.ways, which, strict=True)
        ]
        updates = [seconds[:, index, way] for seconds, way in zip(self.updates, which, strict=True)]
        found = replace(self, part=self.part.members(index), rows=rows, ways=[], updates=updates)
        return found if found.part.zero < 2 else found.where(np.flatnonzero(found.part.zeros(found.part.cuts)))

    def where(self, index: Ints) -> Look:
        """Look at the layouts that an index selects."""
        rows = [Rows(*(table[..., index] for table in one)) for one in self.rows]
        return replace(self, part=self.part.where(index), rows=rows, updates=[one[:, index] for one in self.updates])

    def lines(self, order: Sequence[int]) -> Lines:
        """Return the candidates with their pools in an order."""
        part, kind = self.part, int(np.argmax(self.counts))
        layer, state, activation, _ = np.stack([self.rows[pool].kinds[kind] for pool in order], axis=1)
        first, last = self.rows[order[0]].stem, self.rows[order[-1]].head
        rest = first[0] + last[0]
        for other, count in enumerate(self.counts.tolist()):
            if other != kind:
                rest = rest + count * np.min([rows.kinds[other, 0] for rows in self.rows], axis=0)
        stem = first[:3] + sum((self.rows[order[0]].kinds[one, :3] for one in self._leading), start=np.zeros((3, 1)))
        if part.saving & ACTIVATIONS_AWAY:
            activation, stem, last = 0 * activation, stem * _STATE, last[:3] * _STATE
        everywhere = np.stack([self.rows[pool].kinds[:, 0] for pool in order], axis=1)
        usable = [self.setting.chips[part.options[pool].pool].usable * (1 + 1e-9) for pool in order]
        return Lines(
            depth=part.depth[list(order)],
            layer=layer,
            backward=self._backward(kind)[list(order)],
            state=state,
            activation=activation,
            usable=np.broadcast_to(np.array(usable)[:, None], layer.shape),
            stem=stem,
            head=last[:3],
            rest=rest,
            alone=first[0],
            **of_other_kinds(self.setting, everywhere),
            hops=self._hops(order),
            times=part.micro_batches,
            bound=part.bound + (update := self._update(order))[0, 0],
            beside=update[0, 0],
            update=update[:, 1],
            needed=int(self.counts[kind]),
            others=int(self.counts.sum() - self.counts[kind]),
        )

    def _update(self, order: Sequence[int]) -> Floats:
        """Return the seconds in which hosts update the weights of a first stage at least, and of a layer, of each pool,
        ``[pools, 2, candidates]``."""
        seconds = np.stack([self.updates[pool] for pool in order]) if self.part.cut is not None else None
        return np.stack([self.updates[pool].min(axis=-1) for pool in order]) if seconds is None else seconds

    def _backward(self, kind: int) -> Floats:
        """Return the seconds of the backward pass of a layer, recomputation included, ``[pools, candidates]``."""
        found = []
        for index, (one, pick) in enumerate(self.part.picks):
            each = one.cut_work.layers[kind] - one.cut_work.forward[kind]
            cut = self.part.cut
            found.append(each[one.ways[pick]].min(axis=-1) if cut is None else each[cut[index]])
        return np.stack(found)

    @property
    def _leading(self) -> list[int]:
        """Return the kinds of the layers before the first of the most numerous kind."""
        kind, layers = int(np.argmax(self.counts)), self.setting.graph.layers
        return list(layers[: layers.index(kind)])

    def bounds(self, order: Sequence[int], limit: float) -> Floats:
        """Return the bounds with the pools in an order: see :meth:`Lines.bounds`."""
        return self.lines(order).bounds(limit)

    def _hops(self, order: Sequence[int]) -> Floats:
        """Return the seconds of one activation over all borders between pools."""
        picks = self.part.picks
        degrees = [picks[pool][0].width[picks[pool][1]] for pool in order]
        hops: Floats = np.zeros(len(self.part))
        for here, there in itertools.pairwise(degrees):
            hops = hops + traffic.crossing(self.setting, self.part.size, here, there)
        return hops


@dataclass(frozen=True, eq=False)
class Lines:
    """Pipelines over pools in the order of the model, as arrays: of each pool ``[pools, lines]``, else ``[lines]``.

    ``layer``, ``state`` and ``activation`` are the seconds and bytes of a layer of the most numerous kind; ``stem`` and
    ``head`` the same three of theirs, the layers of other kinds that come first counted to the stem (where these take
    more than the first stage, no other layer stands there at all); ``rest`` the least seconds of stem, head and the
    layers of the other kinds.
    """

    depth: Ints
    layer: Floats
    backward: Floats
    """Seconds of a layer's backward pass."""
    state: Floats
    activation: Floats
    usable: Floats
    stem: Floats
    head: Floats
    rest: Floats
    alone: Floats
    """Seconds of the stem without the layers counted to it."""
    leading: Floats
    """Seconds of all those layers of a kind on each pool, ``[kinds, pools, lines]``."""
    following: Floats
    """The same of the other layers that are not of the most numerous kind."""
    hops: Floats
    """Seconds of one activation over all borders between pools."""
    times: Ints
    bound: Floats
    beside: Floats
    """Seconds behind the schedule, at least."""
    update: Floats
    """Seconds for each layer that the host of a stage takes behind its last backward pass, ``[pools, lines]``."""
    needed: int
    """Layers of the most numerous kind."""
    others: int

    @staticmethod
    def together(parts: Sequence[Lines]) -> Lines:
        """Return the lines of all parts in one."""
        arrays = (one.name for one in fields(Lines) if one.name not in {"needed", "others"})
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in arrays
        }
        return replace(parts[0], **joined)

    def where(self, index: Ints) -> Lines:
        """Return the lines that an index selects."""
        arrays = (one.name for one in fields(self) if one.name not in {"needed", "others"})
        chosen: dict[str, Any] = {name: getattr(self, name)[..., index] for name in arrays}
        return replace(self, **chosen)

    @classmethod
    def of_pool(cls, setting: Setting, pool: str, found: Candidates, work: Work) -> Lines:
        """Return the layouts of one pool as lines over it alone."""
        counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
        kind, rows = int(np.argmax(counts)), rows_of_many(setting, pool, found, work)
        leading = setting.graph.layers[: setting.graph.layers.index(kind)]
        others = [(one, count) for one, count in enumerate(counts.tolist()) if one != kind]
        layer, state, activation, _ = rows.kinds[kind]
        usable = np.full((1, len(found)), setting.chips[pool].usable * (1 + 1e-9))
        return cls(
            depth=found.pipeline[None], layer=layer[None], backward=(work.layers[kind] - work.forward[kind])[None],
            state=state[None], activation=activation[None], usable=usable,
            stem=rows.stem[:3] + sum((rows.kinds[one, :3] for one in leading), start=np.zeros((3, 1))),
            head=rows.head[:3], rest=rows.stem[0] + rows.head[0] + sum(n * rows.kinds[one, 0] for one, n in others),
            alone=rows.stem[0], **of_other_kinds(setting, rows.kinds[:, None, 0]),
            hops=np.zeros(len(found)), times=found.micro_batches, bound=np.zeros(len(found)),
            beside=np.zeros(len(found)), update=np.zeros_like(layer[None]),
            needed=int(counts[kind]), others=int(counts.sum() - counts[kind]),
        )  # fmt: skip

    def micro_batches(self, step: float, most: Ints) -> Ints:
        """Return how many micro-batches, at most ``most``, each line may do in a step: 0 where it does not fit."""
        found = np.zeros_like(most)
        for index in self.alike():
            part = self.where(index)
            some = np.flatnonzero((most[index] > 0) & part._takes(1, step))
            here, low, high = part.where(some), np.ones_like(some), most[index[some]] + 1
            while (high - low > 1).any():
                middle = (low + high) // 2
                quick = here._takes(middle, step)
                low, high = np.where(quick, middle, low), np.where(quick, high, np.maximum(middle, low + 1))
            found[index[some]] = low
        return found

    def _takes(self, times: Ints | int, step: float) -> Bools:
        """Return which lines may do so many micro-batches in a step."""
        now = replace(self, times=np.broadcast_to(np.asarray(times, dtype=np.int64), self.times.shape))
        fits = now.fits
        if not fits.any():
            return fits
        return fits & now._possible(np.full(len(self.times), step))

    @property
    def fits(self) -> Bools:
        """Return which lines have room for all layers, and for one on every stage where no other kind stands."""
        some: Bools = (self._held >= 1).sum(axis=0) >= self._deep - self.others
        enough: Bools = self._held.sum(axis=0) >= self.needed
        return some & enough

    def bounds(self, limit: float) -> Floats:
        """Return steps that no line can beat, NaN where the layers do not fit in memory, and at least the limit where
        no step is below it.

        The stages hold whole layers of the most numerous kind, each at least one unless another kind stands there, and
        at most as many as its time and memory let it, with stem and head; the quickest pools are filled first.
        """
        found = np.empty(len(self.times))
        for index in self.alike():
            found[index] = self.where(index)._bounds(limit)
        return found

    def alike(self) -> Iterator[Ints]:
        """Yield the indices of lines that are about as deep."""
        deep = self.depth.sum(axis=0)
        while (left := deep > 0).any():
            least = deep[left].min()
            index = np.flatnonzero(left & (deep <= max(DEEPER * least, least + 3)))
            yield index
            deep[index] = 0

    def _bounds(self, limit: float) -> Floats:
        fits = self.fits
        found = np.where(fits, np.maximum(self.bound, limit), np.nan)
        near = np.flatnonzero(fits & (self.bound < limit))
        here = self.where(near)
        if limit < np.inf and len(near):
            below = here._possible(np.full(len(near), limit))
            near, here = near[below], here.where(np.flatnonzero(below))
        if len(near):
            here = replace(here, bound=np.maximum(here.bound, here._weighed + here.beside))
            below = here.bound < limit
            found[near], near, here = here.bound, near[below], here.where(np.flatnonzero(below))
        if len(near):
            found[near] = here._least(limit)
        return found

    @property
    def _weighed(self) -> Floats:
        """Return what the stages say of the step together."""
        room = np.where(self._on_pool, self._held, 0.0).sum(axis=1)
        first = np.take_along_axis(self._held, self._deep[None] - 1, axis=0)[0]
        return Weighed(
            self.depth, self.layer, self.times, room, first, self.alone, self.head[0], self.leading, self.following,
            self.needed,
        ).bound  # fmt: skip

    def _least(self, limit: float) -> Floats:
        """Return the bounds of lines that may stay below the limit."""
        low, high = self.bound, np.minimum(2 * self.bound, limit)
        for middle in itertools.chain([high], itertools.repeat(None, BISECTIONS)):
            now = (low + high) / 2 if middle is None else middle
            found = self._possible(now)
            low, high = np.where(found, low, np.maximum(low, now)), np.where(found, now, high)
        return low

    @cached_property
    def _flight(self) -> Ints:
        """Return the micro-batches in flight of each stage, ``[stages from the last, 1]``."""
        return np.arange(1, int(self.depth.sum(axis=0).max(initial=0)) + 1)[:, None]

    @cached_property
    def _deep(self) -> Ints:
        deep: Ints = self.depth.sum(axis=0)
        return deep

    @cached_property
    def _pool(self) -> Ints:
        """Return the pool on which each stage stands, ``[stages from the last, lines]``."""
        behind = self.depth[::-1].cumsum(axis=0)[::-1]
        pool: Ints = (self._flight[None] <= behind[:, None]).sum(axis=0) - 1
        return np.maximum(pool, 0)

    def _of_stages(self, each: Floats) -> Floats:
        stages: Floats = np.take_along_axis(each, self._pool, axis=0)
        return stages

    @cached_property
    def _ends(self) -> tuple[tuple[Bools, Floats], ...]:
        """Return which stage holds the stem and which the head, with what these cost."""
        return (self._flight == self._deep, self.stem), (self._flight == 1, self.head)

    @cached_property
    def _held(self) -> Floats:
        """Return how many layers the memory of each stage holds: none beyond the first stage."""
        flight = np.minimum(self._flight, self.times)
        room = self._of_stages(self.usable)
        for here, end in self._ends:
            room = room - np.where(here, end[1] + flight * end[2], 0.0)
        each = self._of_stages(self.state) + flight * self._of_stages(self.activation)
        held = np.floor(np.maximum(room, 0.0) / each + 1e-9)
        return np.where(self._flight <= self._deep, held, 0.0)

    @cached_property
    def _busy(self) -> Floats:
        """Return the seconds of stem and head on each stage."""
        return sum((np.where(here, end[0], 0.0) for here, end in self._ends), start=np.zeros(()))

    @cached_property
    def _stage_layer(self) -> Floats:
        return self._of_stages(self.layer)

    @cached_property
    def _all_but_one(self) -> Floats:
        """Return the seconds of a layer's backward passes of all micro-batches but one.

        No backward pass of a stage begins before the first micro-batch has gone there and come back, and the last one
        has the way to the first stage before it: ``X >= T + (m - 1) b`` for the backward passes ``b`` of any stage.
        """
        return np.maximum((self.times - 1) * self._of_stages(self.backward), 1e-12)

    @cached_property
    def _on_pool(self) -> Bools:
        """Return which stage stands on which pool, ``[pools, stages, lines]``."""
        on_pool: Bools = self._pool[None] == np.arange(len(self.depth))[:, None, None]
        return on_pool

    def _possible(self, step: Floats) -> Bools:
        """Return where a step may be as short: its stages have room for all layers, and time to fill and drain, and as
        many times as a micro-batch can set out only when another has come back, there is time for there and back."""
        room = np.minimum(self._held, self._updated(step))
        step = np.maximum(step - self.beside, 0.0)
        longest, work = np.where(self._flight <= self._deep, step / self.times, 0.0), np.zeros(())
        possible = np.ones(len(self.times), dtype=bool)
        for turn in range(ROUNDS):
            taken = np.floor(np.maximum(longest - self._busy, 0.0) / self._stage_layer + 1e-9)
            held = np.minimum(room, taken)
            if turn:
                held = np.minimum(held, np.floor(np.maximum(step - work, 0.0) / self._all_but_one + 1e-9))
            left, work = self._least_work(np.where(self._on_pool, held, 0.0).sum(axis=1))
            possible &= (left <= 0) & ((held >= 1).sum(axis=0) >= self._deep - self.others)
            if turn < ROUNDS - 1:
                longest = self._longest(longest, work, step)
        trips = -(-self.times // self._deep) * (work + 2 * self.hops)
        ramp = bounds.ramp(self._deep, self.times)
        possible &= np.maximum(ramp * work, trips) <= step * (1 + 1e-9)
        return possible

    def _updated(self, step: Floats) -> Floats:
        """Return how many layers each stage may hold if its host has updated all of their weights by the end of a step:
        ``X >= m c + u`` for the seconds ``u`` of any stage."""
        if not self.update.any():
            return np.full(1, np.inf)
        each = self.times * self._stage_layer + self._of_stages(self.update)
        most: Floats = np.floor(np.maximum(step - self.times * self._busy, 0.0) / each + 1e-9)
        return most

    def _least_work(self, room: Floats) -> tuple[Floats, Floats]:
        """Return how many layers find no place, and the least work of a micro-batch, with room for so many on each."""
        taken = np.minimum(np.maximum(self.depth - self.others, 0), room)
        left, work = self.needed - taken.sum(axis=0), self.rest + (taken * self.layer).sum(axis=0)
        order = np.argsort(self.layer, axis=0)
        quick = np.take_along_axis(self.layer, order, 0)
        for one, more in zip(quick, np.take_along_axis(room - taken, order, 0), strict=True):
            now = np.clip(left, 0, more)
            left, work = left - now, work + now * one
        return left, work

    def _longest(self, longest: Floats, work: Floats, step: Floats) -> Floats:
        """Return the most seconds that each stage can work on a micro-batch, given the most of the others.

        With ``T`` the work of a micro-batch, at least ``T`` less what the others can take stands before a stage (``P``)
        and behind it (``R``). Then ``X >= P + m c``, and ``X >= T + R + (m - k) c`` where ``m`` is more than the ``k``
        micro-batches in flight (:func:`zhenfa.plan.split.schedule_bound`).
        """
        later = longest.cumsum(axis=0)
        before = np.maximum(work - later, 0.0)
        follows = np.maximum(work - (later[-1] - later + longest), 0.0)
        free = self.times - self._flight
        steady = np.where(free > 0, (step - work - follows) / np.maximum(free, 1), np.inf)
        most: Floats = np.minimum(longest, np.maximum(np.minimum((step - before) / self.times, steady), 0.0))
        return most * (1 + 1e-9)


def _rows_of_ways(setting: Setting, parts: Sequence[Family]) -> list[list[tuple[Rows, Floats]]]:
    """Return what every way of each pool of each part costs and takes to update, with last axes ``[candidates, ways]``;
    what they need to know of one pool is looked up together."""
    needs: dict[tuple[str, Offload, bool], list[tuple[Candidates, Work, Ints]]] = {}
    for part in parts:
        for one, pick in part.picks:
            needs.setdefault((one.pool, *_saves(part)), []).append(_ways_needed(part, one, pick))
    rows = {}
    for (pool, away, several), each in needs.items():
        found, work = Candidates.together([one for one, _, _ in each]), Work.together([one for _, one, _ in each])
        there, updates = kept_away(setting, away), np.zeros((2, len(found)))
        if not several and np.any(found.zero > 1):
            work = exchanged(setting, pool, found, work)
        every = rows_of_many(there, pool, found, work)
        if not several:
            updates, every = updates_at_least(there, pool, found), with_moves(there, every, work, away)
        starts = np.cumsum([0, *(len(one) for one, _, _ in each)])
        rows[pool, away, several] = iter(
            [
                (Rows(*(table[..., start + back] for table in every)), updates[:, start + back])
                for start, (_, _, back) in zip(starts[:-1].tolist(), each, strict=True)
            ]
        )
    return [[next(rows[one.pool, *_saves(part)]) for one in part.options] for part in parts]


def _saves(part: Family) -> tuple[Offload, bool]:
    """Return what lies in host memory at most, and whether candidates stand for several ways to save memory: then only
    the bytes are theirs, the seconds those of a pipeline that saves none."""
    return offload_of(part.saving), bool(part.ways)


def _ways_needed(part: Family, one: Options, pick: Ints) -> tuple[Candidates, Work, Ints]:
    """Return the cuts of a pool with the replicas of each candidate, each once, and where those of each way are,
    ``[candidates, ways]``."""
    cut = one.ways[pick]
    key = cut * (int(part.replicas.max(initial=0)) + 1) + part.replicas[:, None]
    _, first, back = np.unique(key, return_index=True, return_inverse=True)
    chosen = cut.reshape(-1)[first]
    data = np.broadcast_to(part.replicas[:, None], cut.shape).reshape(-1)[first]
    found = one.cuts.where(chosen)
    found = found.but(data=data * found.data, zero=np.full(len(chosen), part.zero))
    return found, one.cut_work.take(chosen), back.reshape(cut.shape)
