"""Pipelines over several pools that save memory at the cost of time: gradients and weights shared out with every
micro-batch (ZeRO stages 2 and 3), and state or activations in host memory. A plan says these once for all its pools.

Each is a mixed pipeline of :mod:`zhenfa.plan.family` with something added to the work of a micro-batch or to what
follows the schedule, so that its bounds are those of the pipeline that it comes from, or longer:

* *Before any is looked at*, the pipelines whose bound, as it is without, is too long are left out. Of the others, a
  bound with the time of a micro-batch as it is without and the memory that any of these ways needs at least
  (:func:`saving_families`) holds for all of them together, in the sense of :mod:`zhenfa.plan.look`.
* *ZeRO 2 and 3*: what replicas exchange with every micro-batch beyond what hides it counts in the seconds of each
  stage's layers (:func:`zhenfa.plan.sparing.exchanged`), and so in every bound behind these. They are searched wherever
  the bounds leave them a chance, short of memory or not: what is exchanged with every micro-batch is not exchanged at
  the end of the step, so that they may be the quicker ones.
* *In host memory*: passes wait for what moves, and the update on the host comes behind a place's last backward pass.
  Both only add to the end of every place, whatever the places are: a step ends when the last of them has ended. So
  where the cards of every pool update a weight sooner than their hosts do, a split that fits without is never slower
  without, and only what does not fit is costed (:func:`zhenfa.plan.sparing.needless`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.plan.bounds import Floats
from zhenfa.plan.family import Family, may_take
from zhenfa.plan.goal import Goal
from zhenfa.plan.look import Look
from zhenfa.plan.search import SLOWER_WITH_LESS, Tally
from zhenfa.plan.space import Bools
from zhenfa.plan.sparing import AWAY

LOOKED_AT_TOGETHER: Final = 2048
"""Groups of mixed pipelines whose memory is looked at together."""


def ways_over_pools(setting: Setting, zero: int) -> list[tuple[int, int]]:
    """Return the ZeRO stages and sums of :attr:`zhenfa.plan.space.Candidates.saving` that a mixed pipeline of one ZeRO
    stage leads to, its own left out."""
    further = [stage for stage in (2, 3) if zero == 1 and stage in setting.traits.zero_stages]
    every = [(stage, AWAY[way]) for stage in (zero, *further) for way in setting.traits.offloads]
    return [one for one in every if one != (zero, 0)]


def saving_families(
    setting: Setting, families: Sequence[Family], goal: Goal, first: float, tally: Tally
) -> Iterator[Family]:
    """Yield the mixed pipelines that save memory and may have a score below ``first``: of each of these families, those
    that a bound leaves a chance that holds for all the ways of saving it together. The others are counted."""
    for family in families:
        ways = ways_over_pools(setting, family.zero)
        if not ways:
            continue
        hopeful = family
        if np.isfinite(first):
            hopeful = _may_be_first(setting, family, ways, goal, first)
            left_out = int(family.weight.sum() - hopeful.weight.sum()) * family.orders * len(ways)
            tally.considered += left_out
            tally.rejected[SLOWER_WITH_LESS] += left_out
        for zero, saving in ways if len(hopeful) else []:
            yield replace(hopeful, zero=zero, saving=saving)


def _may_be_first(
    setting: Setting, family: Family, ways: Sequence[tuple[int, int]], goal: Goal, first: float
) -> Family:
    """Return the groups that may have a score below ``first`` in some order of their pools and in some of the ways."""

    def below(part: Family, step: Floats) -> Bools:
        mask: Bools = (step if goal.only_step else goal.floor(step, part.cards)) < first
        return mask

    limit = goal.step_within_any(first)
    near = family.where(np.flatnonzero(below(family, family.bound)))
    if len(near):
        near = near.where(np.flatnonzero(may_take(setting, near, limit).any(axis=0)))
    possible = np.zeros(len(near), dtype=bool)
    most = max(zero for zero, _ in ways), int(np.bitwise_or.reduce([bits for _, bits in ways]))
    for start in range(0, len(near), LOOKED_AT_TOGETHER):
        here = np.arange(start, min(start + LOOKED_AT_TOGETHER, len(near)))
        part = replace(near.where(here), zero=most[0], saving=most[1])
        look = Look.at_each(setting, [part], exchanging=False)[0]
        for order in part.every_order():
            possible[here] |= below(part, look.bounds(order, limit))
    return near.where(np.flatnonzero(possible))
