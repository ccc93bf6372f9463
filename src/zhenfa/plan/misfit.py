"""What to say when no layout fits: the nearest miss, and ways out that were tried and do fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from zhenfa import units
from zhenfa.errors import InfeasibleError, MissingFactError, ZhenfaError
from zhenfa.estimate import wires
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost
from zhenfa.plan import bounds
from zhenfa.plan.build import Layout, Slot, make_plan, pipelines, rows_of_many, take
from zhenfa.plan.search import Tally, layout_of
from zhenfa.plan.space import NO_BANDWIDTH, Candidates, enumerate_pool
from zhenfa.plan.sparing import AWAY, AWAY_WORDS, kept_away
from zhenfa.plan.split import Refused, fits, split_layers
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Offload

MOST_CARDS: Final = 1 << 22
MOST_CAPACITY: Final = 1 << 12
"""How far the ways out are looked for: cards, and times the memory of a card."""

CAPACITY_STEP: Final = 1.002
"""The smallest memory that fits is found to within this ratio, and rounded up."""


def nothing_fits(setting: Setting, tally: Tally, limits: Limits) -> ZhenfaError:
    """Return the error for a search that found nothing."""
    formation, sequences = setting.formation, setting.workload.global_batch
    if limits.micro_batch_size and sequences % limits.micro_batch_size:
        return InfeasibleError(
            f"micro-batches of {limits.micro_batch_size} do not divide a global batch of {sequences:,}.",
            hint="leave limits.micro_batch_size out, or take a divisor of the global batch.",
        )
    if tally.rejected[NO_BANDWIDTH] and unknown_tiers(setting):
        return _undisclosed(setting)
    lines = [f"no layout of {setting.graph.name} fits {formation.name} ({formation.cards:,} cards)."]
    pool = max(
        formation.pools, key=lambda one: min(one.count, limits.max_cards or one.count) * _usable(setting, one.name)
    )
    needed = least_memory(setting, pool.name, limits)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in tally.rejected.most_common(3) if count)
    looked = f"Looked at {tally.considered:,}: {counts}."
    if needed is None:
        hint = "relax the job's limits, or take a machine with more cards or memory."
        return InfeasibleError(" ".join([*lines, looked]), hint=hint)
    lines += [_nearest(setting, *needed), looked]
    return InfeasibleError(" ".join(lines), hint=_way_out(setting, pool.name, needed[0], limits))


def unknown_tiers(setting: Setting) -> list[str]:
    """Return the dotted names of the tiers whose bandwidth is undisclosed."""
    return [
        f"{pool.name}.tiers.{tier.name}.bandwidth"
        for pool in setting.formation.pools
        for tier in pool.tiers
        if tier.bandwidth.value is None
    ]


def _undisclosed(setting: Setting) -> MissingFactError:
    unknown = unknown_tiers(setting)
    verb = "is" if len(unknown) == 1 else "are"
    given = " ".join(f'--assume {name}="100 GB/s"' for name in unknown)
    return MissingFactError(
        f"{', '.join(unknown)} {verb} undisclosed, and every layout of {setting.graph.name} that may fit "
        f"{setting.formation.name} needs it.",
        hint=f"supply it with {given} (your value); the result is then tagged assumed.",
    )


def _usable(setting: Setting, pool: str) -> float:
    return setting.chips[pool].usable


def holds(setting: Setting, pool: str, limits: Limits) -> Layout | None:
    """Return a layout of one pool that fits in memory, or None. The likeliest are tried first.

    The smallest micro-batch never needs more memory than a larger one, so that no other is tried.
    """
    ways = setting.precisions(pool)
    if len(ways) > 1:
        found_ways = (holds(setting.computing({pool: one}), pool, limits) for one in ways)
        return next((one for one in found_ways if one is not None), None)
    small = limits if limits.micro_batch_size else limits.model_copy(update={"micro_batch_size": 1})
    tally = Tally()
    found = enumerate_pool(setting, pool, setting.workload.global_batch, small, tally.rejected)
    if not len(found):
        return None
    way = max(setting.traits.offloads, key=lambda one: AWAY[one])
    setting, found = kept_away(setting, way), _sparing(setting, found, way)
    work = bounds.work_per_micro_batch(setting, pool, found)
    room = np.where(np.isfinite(work.whole), bounds.room(setting, pool, found), 0.0)
    order = np.argsort(-room, kind="stable")[: int((room >= 1.0).sum())]
    for chunk in np.array_split(order, max(1, len(order) // 256)):
        part = found.where(chunk)
        rows = rows_of_many(setting, pool, part, work.take(chunk))
        for index in range(len(part)):
            layout = layout_of(part, index, pool)
            known_rows = {layout.slots[0]: take(rows, index)}
            if fits(setting, layout, known_rows) and _runs(setting, layout, part, index):
                return layout
    return None


def _sparing(setting: Setting, found: Candidates, way: Offload) -> Candidates:
    """Return layouts as they need the least memory: weights shared out in pipelines, and kept in host memory what may
    be."""
    deep = np.flatnonzero((found.zero == 1) & (found.pipeline > 1))
    stages = [stage for stage in (2, 3) if stage in setting.traits.zero_stages]
    more = [found.where(deep).but(zero=np.full(len(deep), stage)) for stage in stages]
    every = Candidates.together([found, *more])
    return every.but(saving=every.saving + AWAY[way])


def _runs(setting: Setting, layout: Layout, part: Candidates, index: int) -> bool:
    splits = split_layers(setting, layout)
    if isinstance(splits, Refused):
        return False
    entries = pipelines(layout, splits[0].ranges, int(part.total[index]))
    return not cost(make_plan(setting, "way-out", layout, entries), setting).problem


def least_memory(setting: Setting, pool: str, limits: Limits) -> tuple[float, Layout] | None:
    """Return the smallest usable bytes a card with which a layout of one pool fits, and that layout."""
    usable = _usable(setting, pool)
    ratio, layout = _smallest(
        lambda times: holds(with_usable(setting, pool, usable * times), pool, limits), MOST_CAPACITY
    )
    return None if layout is None else (usable * ratio, layout)


def _smallest(attempt: Callable[[float], Layout | None], most: float) -> tuple[float, Layout | None]:
    """Return the least ratio above 1 at which an attempt succeeds, within :data:`CAPACITY_STEP`, and what it gave."""
    low, high = 1.0, 2.0
    found = attempt(high)
    while found is None and high < most:
        low, high = high, 2 * high
        found = attempt(high)
    while found is not None and high / low > CAPACITY_STEP:
        middle = math.sqrt(low * high)
        trial = attempt(middle)
        low, high, found = (middle, high, found) if trial is None else (low, middle, trial)
    return high, found


def least_cards(setting: Setting, pool: str, limits: Limits) -> int | None:
    """Return the fewest cards of one pool with which a layout fits, the outermost tier joining them all."""
    count = setting.formation.pool(pool).count
    low = min(count, limits.max_cards or count)
    free = limits.model_copy(update={"max_cards": None})
    high = low
    while high < MOST_CARDS:
        low, high = high, 2 * high
        if holds(with_cards(setting, pool, high), pool, free):
            break
    else:
        return None
    while high - low > max(1, high // 256):
        middle = (low + high) // 2
        low, high = (low, middle) if holds(with_cards(setting, pool, middle), pool, free) else (middle, high)
    return high


def with_usable(setting: Setting, pool: str, usable: float) -> Setting:
    """Return a setting whose pool has so many usable bytes a card."""
    ratio = usable / _usable(setting, pool)
    return setting.with_chips(pool, lambda chip: replace(chip, capacity=chip.capacity * ratio))


def with_cards(setting: Setting, pool: str, count: int) -> Setting:
    """Return a setting whose pool has so many cards, its outermost tier joining them all."""
    old = setting.formation.pool(pool)
    last = old.tiers[-1].model_copy(update={"size": max(count, old.tiers[-1].size)})
    new = replace(old, count=count, tiers=(*old.tiers[:-1], last))
    pools = tuple(new if one is old else one for one in setting.formation.pools)
    fabrics = {**setting.fabrics, pool: wires.fabric(new)[0]}
    return replace(
        setting,
        formation=replace(setting.formation, pools=pools),
        fabrics=fabrics,
        _cards={},
        _units={},
        _costs={},
        _plans={},
    )


def _nearest(setting: Setting, usable: float, layout: Layout) -> str:
    slot: Slot = layout.slots[0]
    words = f"TP{slot.tensor} PP{len(layout.slots)} DP{layout.replicas}"
    words += f" CP{slot.context}" if slot.context > 1 else ""
    words += f" EP{slot.expert}" if slot.expert > 1 else ""
    words += f" ETP{slot.expert_tensor}" if slot.expert_tensor > 1 else ""
    words += f" ZeRO-{layout.zero}" if layout.zero else ""
    words += f", {AWAY_WORDS[layout.offload]}," if layout.offload != "none" else ""
    where = f" on {slot.pool}" if len(setting.formation.pools) > 1 else ""
    return (
        f"The nearest miss, {words} with {('no', 'selective', 'full')[slot.recompute]} recomputation{where}, needs "
        f"{units.show(usable, 'data')} a card{_parts(setting, usable, layout)}; "
        f"{units.show(_usable(setting, slot.pool), 'data')} are usable."
    )


def _parts(setting: Setting, usable: float, layout: Layout) -> str:
    """Return what fills the fullest card of a layout that so much memory holds, the largest part first."""
    roomy = with_usable(setting, layout.slots[0].pool, usable)
    splits = split_layers(kept_away(roomy, layout.offload), layout)
    if isinstance(splits, Refused):
        return ""
    entries = pipelines(layout, splits[0].ranges, max(layout.replicas, setting.workload.global_batch // layout.size))
    memory = cost(make_plan(roomy, "nearest", layout, entries), roomy).fullest.memory
    largest = sorted(memory.items(), key=lambda part: -part[1])
    return " (" + ", ".join(f"{name} {units.show(held, 'data')}" for name, held in largest if held > 0) + ")"


def _way_out(setting: Setting, pool: str, usable: float, limits: Limits) -> str:
    chip = setting.chips[pool]
    capacity = usable * chip.capacity / chip.usable
    ways = [f'cards with {_up(capacity)} would hold it (--assume {pool}.memory.capacity="{_up(capacity)}")']
    cards = least_cards(setting, pool, limits)
    if cards is not None:
        enough = cards <= setting.formation.pool(pool).count
        ways.append(f"limits.max_cards of {cards:,}" if enough else f"{cards:,} cards like these joined as they are")
    shorter = _shorter(setting, pool, limits)
    if shorter is not None:
        ways.append(f"sequences of {shorter:,} tokens")
    return "; or ".join(ways) + "."


def _up(capacity: float) -> str:
    """Return a capacity with four digits, rounded up."""
    scale = 10.0 ** max(math.floor(math.log10(capacity)) - 3, 0)
    value = math.ceil(capacity / scale) * scale
    unit, size = next(
        (unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)) if value >= size
    )
    return f"{value / size:.10g} {unit}"


def _shorter(setting: Setting, pool: str, limits: Limits) -> int | None:
    """Return the longest of a half, a quarter and an eighth of the sequence with which a layout fits."""
    for part in (2, 4, 8):
        length = setting.workload.sequence_length // part
        if length:
            workload = setting.workload.model_copy(update={"sequence_length": length})
            if holds(replace(setting, workload=workload, _cards={}, _units={}, _costs={}, _plans={}), pool, limits):
                return length
    return None
