"""Spare nodes for data parallel over makers: the shortest step on all cards is not the most that survives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zhenfa.catalog import operation
from zhenfa.estimate.setting import Setting
from zhenfa.plan.goal import Goal, kept
from zhenfa.plan.supply import with_count
from zhenfa.spec.machine import CardPool


def with_spares(setting: Setting, goal: Goal) -> Setting | None:
    """Return the setting with as many cards in each pool as leave the most work after failures; None where failures do
    not count for the goal, or no pool is better off with spares.

    Of each pool by itself: ``count * ETTR * share of time in which as many nodes are up``, the speed of a step taken as
    proportional to the cards. So it is a choice of a size to search, not a bound.
    """
    if goal.objective not in ("throughput", "time") or setting.formation.emulated:
        return None
    pools = tuple(with_count(pool, _best_count(setting, pool)) for pool in setting.formation.pools)
    if pools == setting.formation.pools:
        return None
    gone = setting.formation.cards - sum(pool.count for pool in pools)
    formation = replace(setting.formation, pools=pools, kept_back=setting.formation.kept_back + gone)
    return replace(setting, formation=formation, _plans={})


def _best_count(setting: Setting, pool: CardPool) -> int:
    """Return the cards of a pool, in whole nodes fewer than all, that leave the most work."""
    node = int(operation.failures().cards_per_node)
    counts = np.arange(pool.count, 0, -node)
    work, up = kept(setting, {pool.name: counts})
    return int(counts[np.argmax(counts * work * up)])
