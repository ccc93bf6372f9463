"""Which pool computes in which precision: what a job allows and the cards have, and what may stand in one plan.

Every choice is enumerated. That fewer bits are never slower nor larger is not so under the laws: casts and small tiles
may cost more than a faster matmul saves, and an engine may keep a copy of the weights in few bits.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from zhenfa.estimate.setting import Setting
from zhenfa.spec.machine import BETWEEN, Precision


def by_format(setting: Setting) -> list[Setting]:
    """Return the setting once for each number format between layers, with the pools that can work with it.

    One plan has one such format: what crosses between stages, and the gradients that replicas sum, must be the same
    numbers at both ends.
    """
    formats = list(dict.fromkeys(BETWEEN[one] for pool in setting.chips for one in setting.precisions(pool)))
    if len(formats) == 1:
        return [setting]
    return [_with_format(setting, one) for one in formats]


def _with_format(setting: Setting, between: Precision) -> Setting:
    """Return the setting with the pools, and their precisions, that have a format between layers."""
    ways = {
        pool: {one: setting.computing({pool: one}).chips[pool] for one in setting.precisions(pool)}
        for pool in setting.chips
    }
    ways = {pool: {one: chip for one, chip in every.items() if BETWEEN[one] == between} for pool, every in ways.items()}
    formation = setting.formation
    kept = tuple(pool for pool in formation.pools if ways[pool.name])
    gone = formation.cards - sum(pool.count for pool in kept)
    return replace(
        setting, formation=replace(formation, pools=kept, kept_back=formation.kept_back + gone),
        chips={pool: next(iter(every.values())) for pool, every in ways.items() if every},
        choices={pool: every for pool, every in ways.items() if len(every) > 1}, _plans={},
    )  # fmt: skip


def no_format(setting: Setting) -> Counter[str]:
    """Return, for each two pools, how many of their choices of precision have no number format in common."""
    found: Counter[str] = Counter()
    for one, other in itertools.combinations(setting.chips, 2):
        for here, there in itertools.product(setting.precisions(one), setting.precisions(other)):
            if BETWEEN[here] != BETWEEN[there]:
                found[f"{one} in {here} and {other} in {there}: no number format in common between stages"] += 1
    return found


def assignments(setting: Setting) -> Iterator[Setting]:
    """Yield the setting for every choice of a precision on each pool."""
    if not setting.choices:
        yield setting
        return
    pools = list(setting.choices)
    for ways in itertools.product(*(setting.choices[pool] for pool in pools)):
        yield setting.computing(dict(zip(pools, ways, strict=True)))
