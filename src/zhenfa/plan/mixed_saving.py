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

import numpy as np

from zhenfa.estimate import offload
from zhenfa.estimate.reduction import Terms
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.stage import update_seconds
from zhenfa.plan import bounds, sparing
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import Rows
from zhenfa.plan.family import Family
from zhenfa.plan.space import Candidates
from zhenfa.plan.sparing import AWAY
from zhenfa.spec.plan import Offload


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


def each_way(groups: Family) -> list[Family]:
    """Return candidates that stand for several ways to save memory, once for each of these that they have: without
    replicas there is nothing to share out."""
    found = [replace(groups, zero=zero, saving=saving, ways=()) for zero, saving in groups.ways]
    if any(one.routed > 1 or int((one.cuts.context * one.cuts.data).max()) > 1 for one in groups.options):
        return found
    several = np.flatnonzero(groups.replicas > 1)
    return [one for way in found if len(one := way if way.zero < 2 else way.where(several))]


def updates_at_least(setting: Setting, pool: str, found: Candidates) -> Floats:
    """Return the seconds in which the hosts of a pool update the stem and a layer at least, as the first stage holds
    them, which ends last; and those for each layer of the most numerous kind, ``[2, candidates]``. Nothing where cards
    update."""
    seconds = np.zeros((2, len(found)))
    if not setting.sharding.offload or not len(found):
        return seconds
    seconds[0] = sparing.update(setting, pool, found.but(pipeline=np.full(len(found), 2)))
    shape, precision = bounds.shape_of(setting, found), setting.chips[pool].precision
    held, _ = setting.memory(pool, shape, found.zero, found.recompute)[bounds.main_index(setting)]
    none, some = (update_seconds(Terms.usual(precision, zero), setting, pool, shape, held) for zero in (0, 1))
    seconds[1] = np.where(found.zero == 0, none, some) * sparing.SLACK
    return seconds


def with_moves(setting: Setting, rows: Rows, work: Work, away: Offload) -> Rows:
    """Return what blocks cost where their activations move to host memory and back beside the passes, if they do.

    Of a stage whose passes take ``f``, and its moves ``c``, a pass takes the longer of both. Either is a sum over the
    stage's blocks, so that each alone is less: taken is the one that is longer for a layer of the most numerous kind.
    """
    if away not in ("activations", "both"):
        return rows
    main, link = bounds.main_index(setting), offload.link(setting.traits)
    forwards = [*work.forward, *work.ends_forward]
    wholes = [*work.layers, *work.ends]
    moves = [*(rows.kinds[:, 2] / link), rows.stem[2] / link, rows.head[2] / link]
    behind = [whole - ahead for whole, ahead in zip(wholes, forwards, strict=True)]
    slow = [moves[main] > one[main] for one in (forwards, behind)]
    seconds = [
        np.where(slow[0], move, ahead) + np.where(slow[1], move, back)
        for move, ahead, back in zip(moves, forwards, behind, strict=True)
    ]
    tables = [np.array(table) for table in (*rows.kinds, rows.stem, rows.head)]
    for table, one in zip(tables, seconds, strict=True):
        table[0] = one
    *kinds, stem, head = tables
    return Rows(np.array(kinds), stem, head)
