"""What the building blocks of a model cost on a pool, for many shapes at once, each shape computed once a search."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.shape import Cost, Shape
from zhenfa.plan.columns import alike
from zhenfa.plan.space import Candidates, Ints

BITS: Final = (("size", 20), ("tensor", 10), ("expert", 14), ("context", 8), ("expert_tensor", 10))
"""How many bits each part of a shape takes in its key."""

_PARTS: Final = tuple(one.name for one in fields(Cost))


def shape_of(setting: Setting, candidates: Candidates) -> Shape:
    """Return how candidates cut their layers."""
    return Shape(
        candidates.size.astype(float), float(setting.workload.sequence_length), candidates.tensor.astype(float),
        candidates.expert.astype(float), candidates.data.astype(float), candidates.context.astype(float),
        candidates.expert_tensor.astype(float),
    )  # fmt: skip


def distinct(candidates: Candidates) -> tuple[Ints, Ints]:
    """Return one candidate of each micro-batch size, tensor and expert degree, and where each candidate's kind is."""
    return alike(candidates.shape)


@dataclass
class _Table:
    """The shapes whose blocks are costed, by their keys in ascending order."""

    keys: Ints
    costs: list[Cost]


def block_costs(setting: Setting, pool: str, candidates: Candidates) -> tuple[list[Cost], Ints]:
    """Return what each kind of layer, the stem and the head cost, as arrays over shapes, and which of these shapes each
    candidate has. That does not depend on how many replicas there are."""
    first, back = distinct(candidates)
    found = candidates.where(first)
    if any(int(getattr(found, name).max(initial=0)) >> bits for name, bits in BITS):
        return _costed(setting, pool, found), back
    known = setting.kept(pool)
    table: _Table = known.setdefault("blocks", _Table(np.zeros(0, dtype=np.int64), []))
    keys = np.zeros(len(first), dtype=np.int64)
    for name, bits in BITS:
        keys = (keys << bits) + getattr(found, name)
    fresh = np.flatnonzero(~np.isin(keys, table.keys))
    if len(fresh) or not table.costs:
        _add(table, keys[fresh], _costed(setting, pool, found.where(fresh)))
    return table.costs, np.searchsorted(table.keys, keys)[back]


def _costed(setting: Setting, pool: str, found: Candidates) -> list[Cost]:
    """Return the costs with an array for every part."""
    shape, size = shape_of(setting, found), len(found)
    every = [setting.planned_cost(block, shape, pool) for block in setting.blocks]
    return [Cost(*(np.broadcast_to(np.asarray(getattr(one, name), float), size) for name in _PARTS)) for one in every]


def _add(table: _Table, keys: Ints, costs: list[Cost]) -> None:
    """Add shapes to a table."""
    every = np.concatenate([table.keys, keys])
    order = np.argsort(every, kind="stable")
    before = table.costs or [Cost(*([np.zeros(0)] * len(_PARTS)))] * len(costs)
    table.keys = every[order]
    table.costs = [
        Cost(*(np.concatenate([getattr(old, name), getattr(new, name)])[order] for name in _PARTS))
        for old, new in zip(before, costs, strict=True)
    ]


def costs_of(costs: list[Cost], place: Ints) -> list[Cost]:
    """Return the costs of the shapes that an index selects."""
    return [Cost(*(getattr(one, name).take(place) for name in _PARTS)) for one in costs]
