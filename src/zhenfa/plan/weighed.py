"""A bound on pipelines over unlike pools: what every stage says of the step, added up with weights.

With ``c_s`` the seconds of a micro-batch on stage ``s``, ``P_s`` those before it, ``R_s`` those behind it, ``m``
micro-batches and ``k_s`` in flight at most, no 1F1B step ``X`` is shorter than (:mod:`zhenfa.plan.bounds`)

* ``P_s + (m - k_s + 1) c_s + 2 R_s`` where ``m > k_s``,
* ``P_s + m c_s`` elsewhere.

So with weights ``w_s`` of one in sum, ``X >= sum(a_s c_s)``: what stands on stage ``s`` counts ``a_s`` times, with

* ``a_s = 1 + B_s + (m - k_s) w_s`` where ``m > k_s``,
* ``a_s = 1 + B_s + (m - 1) w_s`` elsewhere,

where ``B_s`` is the weight of the stages before of the first sort, less that of those of the second. Any weights will
do. The best ones for layers that could be parted make a layer as dear on each pool that has some to spare
(``a_s l_s`` the same); tried are weights for all pools, and for all but each one. Along the stages of a pool ``a_s`` is
then the same, so that ``a_s - 1 - B_s`` shrinks by ``(q - 1) / (q + n - 1)`` over ``n`` stages of the first sort, ``q``
being ``m - k_s`` of the first of them, and grows by ``(m / (m - 1)) ** n`` over ``n`` of the second. Where all stages
are alike, the sum is the first bound of :mod:`zhenfa.plan.bounds`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from zhenfa.plan.space import Bools, Floats, Ints


@dataclass(frozen=True)
class Weighed:
    """Pipelines over pools, in the order of the model: of each pool ``[pools, lines]``, else ``[lines]``.

    ``layer``: seconds of a layer of the most numerous kind; ``room``: how many of them a pool may hold at most, and
    ``first`` the first stage; ``alone``, ``head``: the seconds of stem and head; ``leading``: of each kind, what all
    layers before the first of the most numerous kind would take on a pool, ``[kinds, pools, lines]``; ``following``:
    the same of the other layers that are not of that kind. ``needed``: the layers of the most numerous kind.
    """

    depth: Ints
    layer: Floats
    times: Ints
    room: Floats
    first: Floats
    alone: Floats
    head: Floats
    leading: Floats
    following: Floats
    needed: int

    def where(self, index: Ints) -> Weighed:
        """Return the lines that an index selects."""
        arrays = {one.name: getattr(self, one.name)[..., index] for one in fields(self) if one.name != "needed"}
        return Weighed(needed=self.needed, **arrays)

    @property
    def bound(self) -> Floats:
        """Return seconds that no step can beat."""
        best = np.zeros(len(self.times))
        for spare in self._choices():
            best = np.maximum(best, self._with(spare))
        return best

    def may_be(self, step: float) -> Bools:
        """Return where a step may be as short."""
        possible = np.ones(len(self.times), dtype=bool)
        for spare in self._choices():
            here = np.flatnonzero(possible)
            possible[here] = self.where(here)._with(spare) <= step * (1 + 1e-9)
        return possible

    def _choices(self) -> list[tuple[bool, ...]]:
        """Return the choices of pools that have layers to spare: all of them, and all but one."""
        pools = range(len(self.depth))
        return [tuple(pool != one for pool in pools) for one in (-1, *(pools if len(pools) > 1 else ()))]

    def _with(self, spare: tuple[bool, ...]) -> Floats:
        """Return the bound where these pools have layers to spare.

        The leading layers stand on the first stage all together, or that one holds none of the most numerous kind.
        """
        price = prices(self.depth, self.layer, self.times, np.array(spare)[:, None] & (self.times > 1))
        fixed = price[0] * self.alone + price[-1] * self.head + (self.following * price).min(axis=1).sum(axis=0)
        bound = price[0] * self.leading[:, 0].sum(axis=0) + self._cost(price, self.room)
        if self.leading.any():
            apart = (self.leading * price).min(axis=1).sum(axis=0)
            less = np.concatenate([self.room[:1] - self.first, self.room[1:]])
            bound = np.minimum(bound, apart + self._cost(price, less))
        whole: Floats = fixed + bound
        return whole

    def _cost(self, price: Floats, room: Floats) -> Floats:
        """Return what the layers cost where they cost the least."""
        each = price * self.layer
        order = np.argsort(each, axis=0)
        left, cost = np.full(len(self.times), float(self.needed)), np.zeros(len(self.times))
        for one, more in zip(np.take_along_axis(each, order, 0), np.take_along_axis(room, order, 0), strict=True):
            taken = np.clip(left, 0, more)
            left, cost = left - taken, cost + taken * one
        return cost


def prices(depth: Ints, layer: Floats, times: Ints, spare: Bools) -> Floats:
    """Return how often the seconds of a micro-batch on each pool count in a step at least, ``[pools, lines]``, with the
    weights that make layers as dear on all pools that have some to spare."""
    none, one = (_walk(depth, layer, times, spare, np.full(len(times), level))[1] for level in (0.0, 1.0))
    level = np.divide(1 - none, one - none, out=np.zeros(len(times)), where=one > none)
    found, weight = _walk(depth, layer, times, spare, level, least=0.0)
    return 1 + np.divide(found - 1, weight, out=np.zeros_like(found), where=weight > 0)


def _walk(
    depth: Ints, layer: Floats, times: Ints, spare: Bools, level: Floats, least: float = -np.inf
) -> tuple[Floats, Floats]:
    """Return the prices with which a layer costs ``level`` where there are some to spare, and the sum of the weights,
    none of which is below ``least``."""
    flight = depth[::-1].cumsum(axis=0)[::-1]
    full = np.clip(flight - times + 1, 0, depth)
    steady, first = depth - full, times - (flight - full)
    grown = np.power(times / np.maximum(times - 1, 1), full)
    shrunk = np.where(steady > 0, (first - 1) / np.maximum(first + steady - 1, 1), 1.0)
    found, before, weight = np.empty(layer.shape), np.zeros(len(times)), np.zeros(len(times))
    for pool, seconds in enumerate(layer):
        over = np.where(spare[pool], np.maximum(level / seconds - 1 - before, least), 0.0)
        found[pool] = 1 + before + over
        top = over * grown[pool]
        weight = weight + (top - over) + top * (1 - shrunk[pool])
        before = before + over - top * shrunk[pool]
    return found, weight
