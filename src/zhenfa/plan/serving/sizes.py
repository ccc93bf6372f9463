"""Sizes of instances between those that are tried at first: every one around what is best so far."""

from __future__ import annotations

import numpy as np

from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.search import Space
from zhenfa.plan.serving.space import MOST_STAGE, Family, Role, Types, data_degrees, experts_of
from zhenfa.spec.machine import CardPool

Degrees = dict[Role, dict[int, set[int]]]


def refine(space: Space, best: Best) -> bool:
    """Add the attention data-parallel degrees that were not tried between those of the best choices and their
    neighbours, each in the role that it has there, on whole hosts; return whether there are any."""
    wanted: dict[int, tuple[Family, Degrees]] = {}
    for _, chosen in best.ranked():
        for part in chosen:
            _note(space, wanted, part.decode, part.at)
            if part.prefill is not None:
                _note(space, wanted, part.prefill, part.prefill_at)
    found = [(family, degrees) for family, degrees in wanted.values() if any(map(_any, degrees.values()))]
    for family, degrees in found:
        space.add(family, degrees)
    return bool(found)


def _any(degrees: dict[int, set[int]]) -> bool:
    return any(degrees.values())


def _note(space: Space, wanted: dict[int, tuple[Family, Degrees]], types: Types, at: int) -> None:
    family, layout = types.family, types.group.cut.layout
    tensor, data = (int(np.ravel(one)[at]) for one in (layout.tensor, layout.data))
    experts = experts_of(space.request.graph)
    if experts < 2:
        return
    most = min(MOST_STAGE, space.cards[family.pool.name]) // tensor
    tried = data_degrees(family.pool, tensor, most, experts)
    low = max((one for one in tried if one < data), default=data)
    high = min((one for one in tried if one > data), default=data)
    _, degrees = wanted.setdefault(id(family), (family, {"both": {}, "decode": {}, "prefill": {}}))
    between = (one for one in range(low + 1, high) if one != data and _fills_hosts(family.pool, tensor * one))
    degrees[types.role].setdefault(tensor, set()).update(between)


def _fills_hosts(pool: CardPool, cards: int) -> bool:
    """Return whether so many cards are on one host, or fill several, as far as it is known what a host holds: engines
    are started host by host."""
    return pool.host is None or cards <= pool.host or cards % pool.host == 0
