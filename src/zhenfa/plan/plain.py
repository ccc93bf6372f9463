"""Layouts without a pipeline as arrays: their step is no bound but the cost itself, by the functions of one plan."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zhenfa.estimate.reduction import Terms
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.stage import Blocks, parts_of
from zhenfa.estimate.training import at_an_end, exposed_sums
from zhenfa.laws.arrays import values_of
from zhenfa.plan import bounds
from zhenfa.plan.blocks import block_costs, costs_of
from zhenfa.plan.bounds import Floats
from zhenfa.plan.build import make_plan, pipelines
from zhenfa.plan.search import layout_of
from zhenfa.plan.space import Bools, Candidates


class Plain(NamedTuple):
    """What layouts without a pipeline take, ``[candidates]``: ``each`` second of a micro-batch, ``beside`` once a step,
    and whether they fit in memory."""

    each: Floats
    beside: Floats
    fits: Bools


def plain_costs(setting: Setting, pool: str, found: Candidates, owners: int = 1) -> Plain:
    """Return what layouts without a pipeline take where ``owners`` groups of replicas share the model."""
    size = len(found)
    each, beside, fits = np.empty(size), np.empty(size), np.zeros(size, dtype=bool)
    for zero in values_of(found.zero):
        rows = np.flatnonzero(found.zero == zero)
        for table, part in zip(
            (each, beside, fits), _at_zero(setting, pool, found.where(rows), zero, owners), strict=True
        ):
            table[rows] = part
    return Plain(each, beside, fits)


def _at_zero(setting: Setting, pool: str, found: Candidates, zero: int, owners: int) -> Plain:
    """Return the same of layouts that share a ZeRO stage."""
    layout = layout_of(found, 0, pool)
    layers = len(setting.graph.layers)
    plan = make_plan(setting, "", layout, pipelines(layout, [(0, layers)], layout.replicas))
    setting = setting.for_plan(plan)
    shape = bounds.shape_of(setting, found)
    units = setting.units(pool, shape, zero, found.recompute, costs_of(*block_costs(setting, pool, found)))
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds)).tolist()
    blocks = [*zip(units.kinds, counts, strict=True), (units.stem, 1), (units.head, 1)]
    terms = Terms.usual(plan.precision, zero)
    part = parts_of(terms, setting, Blocks.made(pool, shape, blocks, layers, head=True), owners)
    traits, chip, parts = setting.traits, setting.chips[pool], terms.parts(layers)
    behind, across = exposed_sums(setting, part.reduce, part.across, part.backward, parts[0])
    ahead = at_an_end(setting, part.gather, part.forward, parts[1], traits.gather_overlap)
    held = {**part.memory, "activations": part.activation + part.working}
    each = (part.forward + part.backward) * np.where((found.cards > 1) | (owners > 1), chip.lockstep, 1.0)
    beside = behind + ahead + across + part.optimizer + traits.step_overhead_s
    like = np.zeros(len(found))
    needed: Floats = sum((np.asarray(one) for one in held.values()), start=like)
    return Plain(each + like, beside + like, needed <= chip.usable)
