"""Layouts that save memory at the cost of time: gradients and weights shared out inside pipelines (ZeRO stages 2 and
3), state or activations in host memory, full recomputation of some layers only.

Each is one layout of the search with something added to the work of a micro-batch or to what follows the schedule, so
that a bound of that layout's step is one of theirs as well, and those of a layout that is too slow need no look.

* *In host memory*: what moves waits for the link beside the passes, never less than nothing, and the update takes the
  longer of reading and writing host memory and of the link (:func:`zhenfa.estimate.offload.update`). Where a card's
  update is the quicker (:func:`quicker_on_card`), a split that fits without it is never slower without it: it is tried
  where the same split does not fit, and nowhere else.
* *Some layers only*: see :mod:`zhenfa.plan.partly`.
* *ZeRO 2 and 3 in pipelines*: gradients are reduced, and weights gathered, with every micro-batch
  (:func:`zhenfa.estimate.stage.beside_block`); what nothing hides of it counts in their bounds (:func:`exchanged`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from zhenfa.estimate import offload
from zhenfa.estimate.holding import Holding
from zhenfa.estimate.reduction import Terms, exchange
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.stage import beside_block, update_rate, update_seconds
from zhenfa.estimate.training import memory_problem
from zhenfa.laws.arrays import Array
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.partly import FULL, NONE
from zhenfa.plan.space import ACTIVATIONS_AWAY, OPTIMIZER_AWAY, SOME_LAYERS, Candidates, Ints
from zhenfa.spec.plan import Offload, Plan

SLACK: Final = 1 - 1e-9

AWAY: Final[dict[Offload, int]] = {
    "none": 0, "optimizer": OPTIMIZER_AWAY, "activations": ACTIVATIONS_AWAY, "both": OPTIMIZER_AWAY | ACTIVATIONS_AWAY,
}  # fmt: skip
"""What each offload adds to :attr:`zhenfa.plan.space.Candidates.saving`."""

AWAY_WORDS: Final[dict[Offload, str]] = {
    "none": "nothing in host memory", "optimizer": "optimizer state in host memory",
    "activations": "activations in host memory", "both": "optimizer state and activations in host memory",
}  # fmt: skip

LESS: Final[dict[Offload, tuple[Offload, ...]]] = {
    "none": (), "optimizer": ("none",), "activations": ("none",), "both": ("none", "optimizer", "activations"),
}  # fmt: skip
"""The offloads that keep more on the card."""


def offload_of(saving: int) -> Offload:
    """Return the offload in a sum of :attr:`zhenfa.plan.space.Candidates.saving`."""
    return next(name for name, bits in AWAY.items() if saving & AWAY["both"] == bits)


def kept_away(setting: Setting, way: Offload) -> Setting:
    """Return a setting in which the optimizer's state lies in host memory, where a way of offloading says so."""
    away = way in ("optimizer", "both")
    if away == setting.sharding.offload:
        return setting
    key = ("in host memory", away)
    if key not in setting._plans:
        sharding = replace(setting.sharding, offload=away)
        setting._plans[key] = replace(setting, sharding=sharding, _cards={}, _units={}, _costs={}, _plans={})
    return setting._plans[key]


def quicker_on_card(setting: Setting, pool: str) -> bool:
    """Return whether a card updates a weight at least as quickly as its host does."""
    return bool(update_rate(setting, pool) <= offload.update(1.0, setting.traits))


def update(setting: Setting, pool: str, found: Candidates) -> Floats:
    """Return seconds that the update in host memory adds to a 1F1B step at least: that of the first place, which ends
    last and holds the stem and a layer or, without a pipeline, all of the model. Nothing where cards update."""
    if not setting.sharding.offload or not len(found):
        return np.zeros(len(found))
    shape = bounds.shape_of(setting, found)
    *kinds, stem, head = (
        _whole(one, len(found)) for one, _ in setting.memory(pool, shape, found.zero, found.recompute)
    )
    counts = np.bincount(setting.graph.layers, minlength=len(kinds))
    every = stem.plus(head)
    for kind, count in zip(kinds, counts.tolist(), strict=True):
        every = every.plus(kind.times(count))
    terms: list[Floats] = []
    for held in (every, *(stem.plus(kind) for kind in kinds)):
        parts = [
            np.asarray(update_seconds(Terms.usual(setting.chips[pool].precision, zero), setting, pool, shape, held))
            for zero in (0, 1)
        ]
        terms.append(np.where(found.zero == 0, *parts))
    seconds: Floats = np.where(found.pipeline == 1, terms[0], np.min(terms[1:], axis=0)) * SLACK
    return seconds


def shards_further(setting: Setting, found: Candidates) -> Ints:
    """Return how many ZeRO stages beside its own a layout has in a pipeline: 2 and 3, of those under stage 1."""
    more = sum(stage in setting.traits.zero_stages for stage in (2, 3))
    count: Ints = np.where((found.zero == 1) & (found.pipeline > 1), more, 0)
    return count


def ways(setting: Setting, found: Candidates) -> Ints:
    """Return how many layouts that save more memory each one leads to."""
    parts = np.where(found.recompute == NONE, 1 + computes_some(setting), 1)
    total: Ints = (1 + shards_further(setting, found)) * len(setting.traits.offloads) * parts - 1
    return total


def computes_some(setting: Setting) -> bool:
    """Return whether the engine can compute some layers of a stage again and keep the others."""
    return setting.traits.some_layers and {NONE, FULL} <= {*setting.traits.recompute}


def every_way(setting: Setting, pool: str, found: Candidates, work: Work) -> Iterator[tuple[Setting, Candidates, Work]]:
    """Yield the layouts that save more memory than those given, those of one setting together, with their work.

    Where some layers are computed again the memory counts as if all were, and the work as if none were: no number of
    them needs less.
    """
    stages = [stage for stage in (2, 3) if stage in setting.traits.zero_stages]
    sharded = np.flatnonzero((found.zero == 1) & (found.pipeline > 1))
    index = np.concatenate([np.arange(len(found)), *(sharded for _ in stages)])
    zero = np.concatenate([found.zero, *(np.full(len(sharded), stage) for stage in stages)])
    here = found.where(index).but(zero=zero)
    added = exchanged(setting, pool, here, work.take(index))
    some = np.flatnonzero(here.recompute == NONE) if computes_some(setting) else np.zeros(0, dtype=np.int64)
    for way in setting.traits.offloads:
        there, saving = kept_away(setting, way), here.saving + AWAY[way]
        plain = np.flatnonzero((saving > found.saving[index]) | (np.arange(len(here)) >= len(found)))
        if len(plain):
            yield there, here.but(saving=saving).where(plain), added.take(plain)
        if len(some):
            part = here.where(some)
            partly = part.but(saving=saving[some] + SOME_LAYERS, recompute=np.full_like(some, FULL))
            yield there, partly, added.take(some)


def exchanged(setting: Setting, pool: str, found: Candidates, work: Work) -> Work:
    """Return work with what replicas exchange with every micro-batch, as far as nothing hides it."""
    whole, layers, ends, forward, ends_forward = (
        np.array(part) for part in (work.whole, work.layers, work.ends, work.forward, work.ends_forward)
    )
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    for zero in (2, 3):
        rows = np.flatnonzero(found.zero == zero)
        if not len(rows):
            continue
        part, terms = found.where(rows), Terms.usual(setting.chips[pool].precision, zero)
        shape = bounds.shape_of(setting, part)
        held = setting.memory(pool, shape, part.zero, part.recompute)
        tables = [(layers[kind], forward[kind], int(count)) for kind, count in enumerate(counts)]
        tables += [(ends[end], ends_forward[end], 1) for end in range(len(ends))]
        for (block, _), (both, ahead, count) in zip(held, tables, strict=True):
            once = exchange(terms, setting, pool, shape, _whole(block, len(rows)), 1)
            out, home = beside_block(terms, setting.traits, once, ahead[rows], both[rows] - ahead[rows])
            whole[rows] += count * (out + home)
            both[rows] += out + home
            ahead[rows] += out
    return work.but(whole=whole, layers=layers, ends=ends, forward=forward, ends_forward=ends_forward)


def all_again(setting: Setting, pool: str, found: Candidates, work: Work, near: Ints) -> Work:
    """Return the work if all layers were computed again of those layouts that are ``near``, that of ``work`` of the
    others."""
    part = found.where(near)
    full = exchanged(setting, pool, part, bounds.work_per_micro_batch(setting, pool, part))
    whole, layers = np.array(work.whole), np.array(work.layers)
    whole[near], layers[:, near] = full.whole, full.layers
    return work.but(whole=whole, layers=layers)


def _whole(held: Holding, size: int) -> Holding:
    """Return what a block holds with an array for every part."""
    parts: list[Array] = [np.broadcast_to(np.asarray(part, float), size) for part in vars(held).values()]
    return Holding(*parts)


def without(setting: Setting, pool: str, found: Candidates) -> tuple[Setting, str, Candidates] | None:
    """Return the same layouts with all of the optimizer's state and activations on the card, and all kept or computed
    again, with their setting; None where some of them save no memory so, or might be quicker with it."""
    bits = AWAY["both"] | SOME_LAYERS
    traits = setting.traits
    buffers = traits.receives_apart or traits.bucket_elements or traits.live_elements
    if not len(found) or not np.all(found.saving & bits) or buffers:
        return None
    if setting.sharding.offload and not quicker_on_card(setting, pool):
        return None
    mode = np.where(found.saving & SOME_LAYERS, NONE, found.recompute)
    return kept_away(setting, "none"), pool, found.but(saving=found.saving & ~bits, recompute=mode)


def needless(plan: Plan, setting: Setting) -> bool:
    """Return whether a plan keeps in host memory what its cards have room for, and would be no slower without."""
    if not LESS[plan.offload]:
        return False
    if plan.offload != "activations" and not all(quicker_on_card(setting, pool) for pool in plan.cards_by_pool()):
        return False
    return any(not memory_problem(plan.model_copy(update={"offload": less}), setting) for less in LESS[plan.offload])
