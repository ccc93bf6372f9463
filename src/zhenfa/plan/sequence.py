"""Layouts without sequence parallelism: those that may be quicker, or hold less, than the same ones with it.

Sequence parallelism splits norms and residuals over the tensor-parallel cards, and sums by a reduce-scatter and a
gather instead of an all-reduce. Where every block of a layout is then no slower in any part of its passes, and holds no
more, no schedule is: each starts every operation as soon as what it waits for has ended, so that shorter operations end
none of them later. This is looked up shape by shape (:func:`may_be_better`), not taken for granted: an all-reduce that
switches compute may take less than the two.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.shape import Cost
from zhenfa.laws.arrays import Array
from zhenfa.plan.bounds import distinct, shape_of
from zhenfa.plan.space import Bools, Candidates, experts

SLACK = 1 - 1e-12


def without(setting: Setting) -> Setting | None:
    """Return the setting without sequence parallelism; None where the engine has no choice.

    With experts and tensor parallelism Megatron-LM needs it (megatron/training/arguments.py).
    """
    traits = setting.traits
    if not (traits.sequence_parallel and traits.tensor_parallel and traits.whole_sequence) or experts(setting) > 1:
        return None
    return replace(
        setting, traits=traits.but(sequence_parallel=False), _cards={}, _units={}, _costs={}, _plans={}
    )  # fmt: skip


def may_be_better(setting: Setting, other: Setting, pool: str, found: Candidates) -> Bools:
    """Return which layouts may be better in the ``other`` setting: some part of a block is shorter, or held less."""
    first, back = distinct(found)
    shape = shape_of(setting, found.where(first))
    size = len(first)
    gains = np.zeros(size, dtype=bool)
    head = (*setting.graph.head, *setting.graph.extra)
    for operators in (*(kind.operators for kind in setting.graph.kinds), setting.graph.stem, head):
        pairs = zip(*(_seconds(one.planned_cost(operators, shape, pool)) for one in (setting, other)), strict=True)
        for mine, its in pairs:
            gains |= np.broadcast_to(np.asarray(its) < np.asarray(mine) * SLACK, size)
    for mode in setting.traits.recompute:
        again = np.full(size, mode)
        for mine, its in zip(*(one.memory(pool, shape, 0 * again, again) for one in (setting, other)), strict=True):
            for held, less in ((mine[0].activation, its[0].activation), (mine[1], its[1])):
                gains |= np.broadcast_to(np.asarray(less) < np.asarray(held) * SLACK, size)
    mask: Bools = gains[back] & (found.tensor > 1)
    return mask


def _seconds(cost: Cost) -> list[Array]:
    """Return every part of a block's passes that a schedule runs apart, or again."""
    return [
        cost.forward_total, cost.backward_total - cost.weight, cost.weight, cost.light_forward, cost.full_again,
    ]  # fmt: skip
