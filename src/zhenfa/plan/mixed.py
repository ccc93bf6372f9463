"""Search a pool of several makers. Never worse than one maker alone, because every single pool is searched too.

*In data parallel*: :mod:`zhenfa.plan.joint`. *In the pipeline*: every pool holds consecutive stages of each replica,
and layers are split exactly over unequal stages. Searched are all orders of the pools, every recomputation per pool,
and every number of stages per pool whose bound leaves it a chance to be the quickest plan; of tensor degrees those up
to ``MAX_MIXED_TENSOR``, and of replicas and expert degrees those that :mod:`zhenfa.plan.family` chooses.

Four bounds, each sharper and dearer than the one before, where ``p_i`` stages stand on pool ``i``, on which a
micro-batch over the whole model would take ``t_i`` and one layer of the most numerous kind ``l_i`` (where the kinds of
layers do not cost the same parts of the whole everywhere, ``t_i`` is less: :func:`zhenfa.plan.family._least_seconds`):

* ``X >= m / sum(p_i / t_i)``: no split can keep every stage busier than always.
* ``X >= T(C) r``, with what filling and draining ``p`` stages costs, see :func:`zhenfa.plan.family.fill`.
* ``X >= m C`` for the least ``C`` at which ``sum(p_i floor(C / l_i))`` layers find a place: layers are whole.
* The last two together, with at most as many layers on each stage as its memory holds, and with the time of traffic
  between pools, see :mod:`zhenfa.plan.look`.

The first plan is the quickest of these layouts, each split as :mod:`zhenfa.plan.search` says, unless the answer lists
mixed pipelines that were not costed or not looked at. Places behind the first are the best that were found.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.plan.build import take
from zhenfa.plan.family import FEWER_AT_MOST, Family, every_family, fewer_stages, whole_layers
from zhenfa.plan.joint import replicas_over_pools
from zhenfa.plan.look import Look
from zhenfa.plan.polish import polish
from zhenfa.plan.search import NO_MEMORY, SLOWER, Best, Hopeful, Tally, consider, search_pools
from zhenfa.plan.space import chunks
from zhenfa.spec.job import Limits

FIRST_LOOK: Final = 1024
"""Mixed pipelines whose memory is looked at together, at first."""

PROVED_AT_MOST: Final = 1500
"""Mixed pipelines split to prove that none beats the first plan. Where that stops the search, the answer says so."""

LISTED_AT_MOST: Final = 40
"""Mixed pipelines split for the places behind the first."""

LISTED_WITHIN: Final = 1.1
"""How many times the step of the first plan a mixed pipeline may take to be listed behind it."""

UNPROVED: Final = f"not costed (the search stops after {PROVED_AT_MOST:,} mixed pipelines)"
UNLISTED: Final = f"not costed (of mixed pipelines behind the first plan, {LISTED_AT_MOST} are)"


def search_mixed(setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally) -> None:
    """Offer to ``best`` plans over single pools, data parallel over several, and pipelines over several."""
    names = [pool.name for pool in setting.formation.pools]
    alone = search_pools(setting, job, sequences, limits, best, tally)
    if len(names) > 1:
        replicas_over_pools(setting, job, alone, sequences, limits, best, tally)
        pipelines_over_pools(setting, job, sequences, limits, best, tally)
    polish(setting, best)


def pipelines_over_pools(setting: Setting, job: str, sequences: int, limits: Limits, best: Best, tally: Tally) -> None:
    """Offer pipelines whose stages stand on two or more pools, in every order of the pools."""
    families = list(every_family(setting, sequences, limits, _horizon(best), tally)) if setting.bridge else []
    if not families:
        return
    budget = _Budget()
    _evaluate(setting, job, families, budget, best, tally)
    fewer = [fewer_stages(setting, family, best.first, FEWER_AT_MOST // len(families), tally) for family in families]
    _evaluate(setting, job, fewer, budget, best, tally)


@dataclass
class _Budget:
    """How many mixed pipelines may still be split: to prove the first plan, and for the places behind it."""

    proving: int = PROVED_AT_MOST
    listing: int = LISTED_AT_MOST

    def spent(self, *, proving: bool) -> bool:
        """Take one; return whether there was none left."""
        if proving:
            self.proving -= 1
        else:
            self.listing -= 1
        return (self.proving if proving else self.listing) < 0


def _horizon(best: Best) -> float:
    """Return the step time from which on a mixed pipeline is not worth looking at."""
    return min(best.last, LISTED_WITHIN * best.first)


def _evaluate(
    setting: Setting, job: str, families: Sequence[Family], budget: _Budget, best: Best, tally: Tally
) -> None:
    """Cost mixed pipelines in order of their bound: all that may be the first plan, and some that may be listed."""
    looked_at = sum(len(family) * math.factorial(len(family.options)) for family in families)
    tally.considered += looked_at
    seen, reason = 0, SLOWER
    for one in _in_order(setting, families, tally, best):
        if isinstance(one, int):
            seen += one
            continue
        bound, layout, total, known = one
        if bound >= _horizon(best):
            break
        proving = bound < best.first
        if budget.spent(proving=proving):
            reason = UNPROVED if proving else UNLISTED
            break
        seen += 1
        consider(layout, total, known, setting, job, best, tally)
    tally.rejected[reason] += looked_at - seen


def _in_order(setting: Setting, families: Sequence[Family], tally: Tally, best: Best) -> Iterator[Hopeful | int]:
    """Yield the candidates of all families in order of their sharpest bound, and the number of those that do not fit.

    The sharper bounds are looked at a few candidates at a time, in order of the weaker bound: what waits is passed on
    once nothing that is still to come can have a smaller bound.
    """
    bound = np.concatenate([family.bound for family in families])
    owner = np.concatenate([np.full(len(family), number) for number, family in enumerate(families)])
    place = np.concatenate([np.arange(len(family)) for family in families])
    waiting: list[tuple[float, int, Look, int, Sequence[int]]] = []
    ticket = itertools.count()
    for chunk in chunks(bound, np.flatnonzero(bound < _horizon(best)), FIRST_LOOK):
        while waiting and waiting[0][0] <= bound[chunk[0]]:
            yield _hopeful(*heapq.heappop(waiting))
        for number in np.unique(owner[chunk]).tolist():
            part = families[number].where(place[chunk[owner[chunk] == number]])
            part = replace(part, bound=np.maximum(part.bound, whole_layers(setting, part)))
            look = Look.at(setting, part.where(np.flatnonzero(part.bound < _horizon(best))))
            for order in itertools.permutations(range(len(part.options))):
                floor = look.bounds(order, _horizon(best))
                misfits = int(np.isnan(floor).sum())
                tally.rejected[NO_MEMORY] += misfits
                yield misfits
                for index in np.flatnonzero(floor < _horizon(best)).tolist():
                    heapq.heappush(waiting, (float(floor[index]), next(ticket), look, index, order))
    while waiting:
        yield _hopeful(*heapq.heappop(waiting))


def _hopeful(bound: float, ticket: int, look: Look, index: int, order: Sequence[int]) -> Hopeful:
    part = look.part
    known = {
        one.slot(int(pick[index])): take(rows, index)
        for one, pick, rows in zip(part.options, part.chosen, look.rows, strict=True)
    }
    return bound, part.layout(index, order), part.total, known
