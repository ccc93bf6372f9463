"""Pipelines over several pools that save memory at the cost of time: gradients and weights shared out with every
micro-batch (ZeRO stages 2 and 3), and state or activations in host memory. A plan says these once for all its pools.

Each is a mixed pipeline of :mod:`zhenfa.plan.family` with something added to the work of a micro-batch or to what
follows the schedule, so that the bounds of that pipeline that ask for no memory are its own as well. What those leave
a chance after all pipelines that save none have been looked at is looked at again: at first with the seconds of a
micro-batch as they are without and the memory that any of these ways needs at least, which bounds all ways together;
then way by way, with its own seconds and memory.

* *ZeRO 2 and 3*: what replicas exchange with every micro-batch beyond what hides it counts in the seconds of each
  stage's layers (:func:`zhenfa.plan.sparing.exchanged`), and so in every bound of one way. They are searched wherever
  the bounds leave them a chance, short of memory or not: what is exchanged with every micro-batch is not exchanged at
  the end of the step, so that they may be the quicker ones.
* *In host memory*: passes wait for what moves, and the update on the host comes behind a place's last backward pass.
  Both only add to the end of every place, whatever the places are, and a step ends when the last of them has ended. So
  where the cards of every pool update a weight sooner than their hosts do, a split that fits without is never slower
  without, and only what does not fit is costed (:func:`zhenfa.plan.sparing.needless`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_

from zhenfa.estimate.setting import Setting
from zhenfa.plan.family import Family
from zhenfa.plan.sparing import AWAY


def ways_over_pools(setting: Setting, zero: int) -> tuple[tuple[int, int], ...]:
    """Return the ZeRO stages and sums of :attr:`zhenfa.plan.space.Candidates.saving` that a mixed pipeline of one ZeRO
    stage leads to, its own left out."""
    further = [stage for stage in (2, 3) if zero == 1 and stage in setting.traits.zero_stages]
    every = [(stage, AWAY[way]) for stage in (zero, *further) for way in setting.traits.offloads]
    return tuple(one for one in every if one != (zero, 0))


def saving_families(setting: Setting, families: Sequence[Family]) -> list[Family]:
    """Return the candidates of these families each standing for all the ways to save memory that it leads to."""
    found = []
    for family in families:
        ways = ways_over_pools(setting, family.zero)
        if ways and len(family):
            zero, saving = max(zero for zero, _ in ways), reduce(or_, (saving for _, saving in ways))
            found.append(replace(family, zero=zero, saving=saving, ways=ways))
    return found


def each_way(group: Family) -> list[Family]:
    """Return candidates that stand for several ways to save memory, once for each of these."""
    return [replace(group, zero=zero, saving=saving, ways=()) for zero, saving in group.ways]
