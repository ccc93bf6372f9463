"""A sharper look at a few mixed pipelines: what their slots hold, and a bound that counts whole layers and memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from zhenfa.estimate import traffic
from zhenfa.estimate.setting import Setting
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats
from zhenfa.plan.build import Rows, rows_of_many
from zhenfa.plan.family import Family
from zhenfa.plan.space import Bools, Ints

ROUNDS: Final = 3
"""How often the longest a stage may work is sharpened by what the others can take."""


@dataclass(frozen=True, eq=False)
class Look:
    """Some candidates of a family with what their slots cost, one entry per pool."""

    part: Family
    rows: list[Rows]
    counts: Ints
    """Layers of each kind."""
    usable: list[float]
    setting: Setting

    @classmethod
    def at(cls, setting: Setting, part: Family) -> Look:
        """Look at some candidates."""
        rows = [
            rows_of_many(setting, part.candidates(pool), one.work.take(pick))
            for pool, (one, pick) in enumerate(zip(part.options, part.chosen, strict=True))
        ]
        usable = [setting.chips[one.pool].usable * (1 + 1e-9) for one in part.options]
        counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
        return cls(part, rows, counts, usable, setting)

    @cached_property
    def kind(self) -> int:
        """Return the most numerous kind of layer."""
        return int(np.argmax(self.counts))

    @cached_property
    def layer(self) -> Floats:
        """Return the seconds of a layer of that kind on each pool, ``[pools, candidates]``."""
        return np.stack([rows.kinds[self.kind, 0] for rows in self.rows])

    def bounds(self, order: Sequence[int], limit: float) -> Floats:
        """Return the bounds with the pools in an order, NaN where the layers do not fit in memory.

        The stages hold whole layers of the most numerous kind, each at least one unless another kind stands there, and
        at most as many as its time and memory let it, with stem and head; the quickest pools are filled first.
        """
        stages = self._stages(order)
        fits = sum(held.sum(axis=0) for held, _ in stages) >= self.counts[self.kind]
        rest, hops = self._rest(order), self._hops(order)
        low, high = self.part.bound, np.minimum(2 * self.part.bound, limit)
        for middle in itertools.chain([high], itertools.repeat(None, 7)):
            now = (low + high) / 2 if middle is None else middle
            found = self._possible(order, stages, rest, hops, now)
            low, high = np.where(found, low, np.maximum(low, now)), np.where(found, now, high)
        return np.where(fits, low, np.nan)

    def _rest(self, order: Sequence[int]) -> Floats:
        """Return the least seconds of stem, head and the layers of the other kinds."""
        rest: Floats = self.rows[order[0]].stem[0] + self.rows[order[-1]].head[0]
        for kind, count in enumerate(self.counts.tolist()):
            if kind != self.kind:
                rest = rest + count * np.min([rows.kinds[kind, 0] for rows in self.rows], axis=0)
        return rest

    def _hops(self, order: Sequence[int]) -> Floats:
        """Return the seconds of one activation over all borders between pools."""
        degrees = [self.part.options[pool].tensor[self.part.chosen[pool]] for pool in order]
        hops: Floats = np.zeros(len(self.part))
        for here, there in itertools.pairwise(degrees):
            hops = hops + traffic.crossing(self.setting, self.part.size, here, there)
        return hops

    def _stages(self, order: Sequence[int]) -> list[tuple[Floats, Floats]]:
        """Return how many layers each stage's memory holds and the seconds of stem and head on it, per pool.

        The arrays are ``[stages from the last, candidates]``, 0 beyond the pool's stages.
        """
        after = self.part.depth.sum(axis=0)
        found: list[tuple[Floats, Floats]] = [(np.zeros(0), np.zeros(0))] * len(order)
        for pool in order:
            depth, rows = self.part.depth[pool], self.rows[pool]
            after = after - depth
            place = np.arange(int(depth.max(initial=0)))[:, None]
            flight = np.minimum(after + place + 1, self.part.micro_batches)
            room, busy = np.full(flight.shape, self.usable[pool]), np.zeros(flight.shape)
            for here, end in ((place == depth - 1, rows.stem), (place == 0, rows.head)):
                if pool == (order[0] if end is rows.stem else order[-1]):
                    room -= np.where(here, end[1] + flight * end[2], 0.0)
                    busy += np.where(here, end[0], 0.0)
            _, state, activation, _ = rows.kinds[self.kind]
            held = np.floor(np.maximum(room, 0.0) / (state + flight * activation) + 1e-9)
            found[pool] = (np.where(place < depth, held, 0.0), busy)
        return found

    def _possible(
        self, order: Sequence[int], stages: list[tuple[Floats, Floats]], rest: Floats, hops: Floats, step: Floats
    ) -> Bools:
        """Return where a step may be as short: its stages have room for all layers, and time to fill and drain, and as
        many times as a micro-batch can set out only when another has come back, there is time for there and back."""
        times, deep = self.part.micro_batches, self.part.depth.sum(axis=0)
        longest = [np.where(held > 0, step / times, 0.0) for held, _ in stages]
        possible = np.ones(len(self.part), dtype=bool)
        for _ in range(ROUNDS):
            room = np.stack(
                [
                    np.minimum(held, np.floor(np.maximum(most - busy, 0.0) / one + 1e-9)).sum(axis=0)
                    for (held, busy), one, most in zip(stages, self.layer, longest, strict=True)
                ]
            )
            left, work = self._least_work(room, rest)
            possible &= left <= 0
            longest = self._longest(order, longest, work, step)
        ramp = bounds.ramp(deep, times)
        trips = -(-times // deep) * (work + 2 * hops)
        possible &= np.maximum(ramp * work, trips) <= step * (1 + 1e-9)
        return possible

    def _least_work(self, room: Floats, rest: Floats) -> tuple[Floats, Floats]:
        """Return how many layers find no place, and the least work of a micro-batch, with room for so many on each."""
        others = self.counts.sum() - self.counts[self.kind]
        taken = np.minimum(np.maximum(self.part.depth - others, 0), room)
        left, work = self.counts[self.kind] - taken.sum(axis=0), rest + (taken * self.layer).sum(axis=0)
        order = np.argsort(self.layer, axis=0)
        quick = np.take_along_axis(self.layer, order, 0)
        for one, more in zip(quick, np.take_along_axis(room - taken, order, 0), strict=True):
            now = np.clip(left, 0, more)
            left, work = left - now, work + now * one
        return left, work

    def _longest(self, order: Sequence[int], longest: list[Floats], work: Floats, step: Floats) -> list[Floats]:
        """Return the most seconds that each stage can work on a micro-batch, given the most of the others.

        With ``T`` the work of a micro-batch, at least ``T`` less what the others can take stands before a stage (``P``)
        and behind it (``R``). Then ``X >= P + m c``, and ``X >= T + R + (m - k) c`` where ``m`` is more than the ``k``
        micro-batches in flight (:func:`zhenfa.plan.split.schedule_bound`).
        """
        times = self.part.micro_batches
        found = list(longest)
        total = sum(most.sum(axis=0) for most in longest)
        after, behind = np.zeros(len(self.part), dtype=np.int64), np.zeros(len(self.part))
        for pool in reversed(order):
            most = longest[pool]
            flight = after + np.arange(len(most))[:, None] + 1
            later = behind + np.cumsum(most, axis=0)
            before = np.maximum(work - later, 0.0)
            follows = np.maximum(work - (total - later + most), 0.0)
            free = times - flight
            cap = (step - before) / times
            steady = (step - work - follows) / np.maximum(free, 1)
            cap = np.minimum(cap, np.where(free > 0, steady, np.inf))
            found[pool] = np.minimum(most, np.maximum(cap, 0.0) * (1 + 1e-9))
            after = after + self.part.depth[pool]
            behind = later[-1] if len(later) else behind
        return found
