"""Every number that an estimate rests on, how uncertain it is, and the setting with it moved.

How far a number is moved: by its own p10 to p90 where that was measured (kernels on the chips that the laws were
fitted to, on others of their generation, on others yet; families of links; failure rates of published clusters); else
by what its source is worth (:data:`WIDTHS`); a choice of the user's (batch, sequence length) by 10 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

from zhenfa.estimate import wires
from zhenfa.estimate.chip import SUBSTITUTES, Chip
from zhenfa.estimate.coefficients import generation, library
from zhenfa.estimate.failing import failing
from zhenfa.estimate.origin import origin
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.survival import rate_range
from zhenfa.spec.fact import Fact, Tag
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES, CardPool, Tier
from zhenfa.spec.plan import Plan

WIDTHS: Final[dict[Tag, float]] = {
    "measured": 0.05, "datasheet": 0.05, "derived": 0.1, "fitted": 0.1, "claim": 0.2, "assumed": 0.3,
}  # fmt: skip
"""Half of the range in which a number is looked at, where nobody has measured its spread: our judgement."""

CHOICE: Final = 0.1
"""How far what the user chose is moved."""

Moved = tuple[Setting, Plan]

Asked = Literal["maker", "measure", ""]
"""Who could tell a number: its maker, or whoever measures it on a card; nobody, where the user chose it."""


@dataclass(frozen=True)
class Input:
    """One number. ``name`` is the dotted one that ``--assume`` takes, where it takes one (``supplied``); ``low`` and
    ``high`` are factors on ``value``; ``why`` says where they come from. ``asked``: who could tell it.
    """

    name: str
    value: float | None
    dimension: str
    tag: Tag
    low: float
    high: float
    why: str
    asked: Asked
    move: Callable[[float], Moved]


def inputs(plan: Plan, setting: Setting) -> list[Input]:
    """Return every number that the estimate of a plan rests on."""
    setting = setting.computing_as(plan)
    found: list[Input] = []
    for name in plan.cards_by_pool():
        found += _cards(setting, plan, setting.formation.pool(name))
        found += _links(setting, plan, setting.formation.pool(name))
    found += _network(setting, plan)
    if not setting.formation.emulated:
        found += _upkeep(setting, plan)
    found += _choices(setting, plan)
    return found


def changed(setting: Setting, **changes: Any) -> Setting:
    """Return a setting with some parts changed, and nothing of what was computed from them before."""
    return replace(setting, **changes, _cards={}, _units={}, _costs={}, _plans={})


def _around(width: float) -> tuple[float, float]:
    return 1 / (1 + width), 1 + width


def _spread(half: float) -> tuple[float, float]:
    """Return the ends of a band whose half width is a natural logarithm."""
    return math.exp(-half), math.exp(half)


def _by_tag(tag: Tag) -> tuple[float, float, str]:
    return (*_around(WIDTHS[tag]), f"{WIDTHS[tag]:.0%}, {_article(tag)}")


def _article(tag: Tag) -> str:
    words: dict[Tag, str] = {
        "measured": "measured", "datasheet": "a data sheet's", "derived": "derived", "fitted": "fitted",
        "claim": "a claim", "assumed": "assumed",
    }  # fmt: skip
    return words[tag]


# Cards.


Change = Callable[[float, Chip], Chip]
"""A chip with one number moved by a factor."""


def _cards(setting: Setting, plan: Plan, pool: CardPool) -> Iterator[Input]:
    name, card = pool.name, pool.accelerator
    both = (setting.chips[name].precision, setting.wide.get(name, setting.chips[name]).precision)
    move = partial(_on_chips, setting, plan, name)
    for precision in dict.fromkeys(both):
        published = (card.peak.get(key) for key in SUBSTITUTES.get(precision, (precision,)))
        fact = next((one for one in published if one is not None and one.known), None)
        if fact is not None:
            yield _fact(f"{name}.peak.{precision}", fact, partial(move, partial(_faster, precision)))
    yield _fact(f"{name}.memory.bandwidth", card.memory.bandwidth, partial(move, _wider))
    yield _fact(f"{name}.memory.capacity", card.memory.capacity, partial(move, _larger))
    if not card.emulated:
        yield from _kernels(setting, pool, move)


def _on_chips(setting: Setting, plan: Plan, pool: str, change: Change, factor: float) -> Moved:
    return setting.with_chips(pool, partial(change, factor)), plan


def _wider(factor: float, chip: Chip) -> Chip:
    return replace(chip, bandwidth=chip.bandwidth * factor)


def _larger(factor: float, chip: Chip) -> Chip:
    return replace(chip, capacity=chip.capacity * factor)


def _faster(precision: str, factor: float, chip: Chip) -> Chip:
    """Return a chip with another peak at one precision; attention runs in 16 bits."""
    own = factor if chip.precision == precision else 1.0
    attention = own if BYTES[chip.precision] >= 2 else factor if precision == "bf16" else 1.0
    return replace(chip, peak=chip.peak * own, peak_attention=chip.peak_attention * attention)


_LAWS: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "matmul": ("gemm", ("matmul",), "achievable.matmul"),
    "experts": ("moe", ("experts",), "experts' matmuls"),
    "attention": ("context_attention", ("prefill", "latent_prefill"), "achievable.attention"),
    "scan": ("gdn", ("scan",), "achievable.scan"),
}
"""By what is carried: the operator in the tables, the laws, and what the share is called."""


def _kernels(setting: Setting, pool: CardPool, move: Callable[[Change, float], Moved]) -> Iterator[Input]:
    """Yield what kernels reach: of the peak by sort, of the bandwidth, and the time of a launch."""
    name, card, chip = pool.name, pool.accelerator, setting.chips[pool.name]
    kinds = {one.kind for kind in setting.graph.kinds for one in kind.operators}
    there = {"matmul": "matmul" in kinds, "experts": "grouped_matmul" in kinds, "attention": "attention" in kinds,
             "scan": "scan" in kinds}  # fmt: skip
    for law, (table, laws, words) in _LAWS.items():
        known = [one for one in laws if one in chip.kernels]
        if not there[law] or not known:
            continue
        kind = {"experts": "grouped_matmul"}.get(law, law)
        tag = origin(Operator("one", kind, 0), card.model_copy(update={"peak": {}}), chip.precision).tag  # type: ignore[arg-type]
        low, high, why = _kernel_spread(card.id, table)
        share = chip.kernels[known[0]].get("share")
        suffix = f".{chip.precision}" if law in ("matmul", "attention") else ""
        yield Input(
            f"{name}.{words}{suffix}", share, "ratio", _of_kernels(card.id, tag), low, high, why, "measure",
            partial(move, partial(_reaching, tuple(known))),
        )  # fmt: skip
    fact = card.achievable.memory
    tag = fact.tag if fact.known else "assumed"
    low, high, why = _by_tag(tag)
    yield Input(
        f"{name}.achievable.memory", chip.memory_share, "ratio", tag, low, high, why, "measure",
        partial(move, _streaming),
    )  # fmt: skip
    yield Input(
        f"{name}.achievable.launch", chip.launch, "time", _of_kernels(card.id, "fitted"), *_by_tag("assumed"),
        "measure", partial(move, _launching),
    )  # fmt: skip


def _of_kernels(chip: str, tag: Tag) -> Tag:
    known = chip in library().factors or generation(chip).name is not None
    return tag if tag == "measured" else "fitted" if known else "assumed"


def _kernel_spread(chip: str, table: str) -> tuple[float, float, str]:
    """Return the p10 to p90 of measured kernels over predicted ones, of chips as well known as this one."""
    if chip in library().factors:
        group, words = "known", "p10-p90 of this chip's kernels"
    elif generation(chip).name is not None:
        group, words = "left_out", "p10-p90 of kernels on a chip left out of the fit"
    else:
        group, words = "left_out_generations", "p10-p90 of kernels on a generation left out of the fit"
    spread: Mapping[str, float] = library().document["spread"][group][table]
    return math.exp(min(spread["p10_signed"], 0.0)), math.exp(max(spread["p90_signed"], 0.0)), words


def _with_kernels(chip: Chip, laws: tuple[str, ...], name: str, factor: float) -> Chip:
    kernels = {
        law: {**one, name: one[name] * factor} if law in laws and name in one else one
        for law, one in chip.kernels.items()
    }
    return replace(chip, kernels=kernels)


def _reaching(laws: tuple[str, ...], factor: float, chip: Chip) -> Chip:
    """Return a chip whose kernels of some laws are quicker by a factor.

    The bands are of seconds, so that a share of the peak may pass 1 here.
    """
    found = _with_kernels(chip, laws, "share", factor)
    return replace(found, achievable=chip.achievable * factor) if "matmul" in laws else found


def _streaming(factor: float, chip: Chip) -> Chip:
    return replace(chip, memory_share=min(chip.memory_share * factor, 1.0))


def _launching(factor: float, chip: Chip) -> Chip:
    return replace(_with_kernels(chip, tuple(chip.kernels), "fixed", factor), launch=chip.launch * factor)


def _fact(name: str, fact: Fact, move: Callable[[float], Moved]) -> Input:
    low, high, why = _by_tag(fact.tag)
    return Input(name, fact.value, fact.dimension, fact.tag, low, high, why, "maker", move)


# Links.


def _links(setting: Setting, plan: Plan, pool: CardPool) -> Iterator[Input]:
    for index, tier in enumerate(pool.tiers):
        if tier.bandwidth.known:
            yield _tier(setting, plan, pool, tier, index)
        latency = float(setting.fabrics[pool.name].latencies[index])
        tag = tier.latency.tag if tier.latency.known else "assumed"
        yield Input(
            f"{pool.name}.tiers.{tier.name}.latency", latency, "time", tag, *_by_tag(tag), "maker",
            partial(_on_tier, setting, plan, pool.name, "latencies", index),
        )  # fmt: skip


def _tier(setting: Setting, plan: Plan, pool: CardPool, tier: Tier, index: int) -> Input:
    """Return the bandwidth of a tier: as uncertain as what transfers reach of such links, or as its source."""
    low, high, why = _by_tag(tier.bandwidth.tag)
    family = wires.tier_family(pool.accelerator, tier, index)
    half = family.spread.get("large")
    if half is not None and not pool.accelerator.emulated:
        ends = _spread(half)
        if ends[1] > high:
            low, high = ends
            why = f"p10-p90 of transfers over {family.id}" if family.measured else f"an unmeasured family ({family.id})"
    move = partial(_on_tier, setting, plan, pool.name, "bandwidths", index)
    name = f"{pool.name}.tiers.{tier.name}.bandwidth"
    return Input(name, tier.bandwidth.value, "rate", tier.bandwidth.tag, low, high, why, "maker", move)


def _on_tier(setting: Setting, plan: Plan, pool: str, column: str, index: int, factor: float) -> Moved:
    fabric = setting.fabrics[pool]
    values = getattr(fabric, column).copy()
    values[index] *= factor
    return changed(setting, fabrics={**setting.fabrics, pool: replace(fabric, **{column: values})}), plan


def _network(setting: Setting, plan: Plan) -> Iterator[Input]:
    network, bridge = setting.formation.network, setting.bridge
    if network is None or bridge is None or len(plan.cards_by_pool()) == 1:
        return
    name = setting.formation.name

    def with_bridge(field: str, factor: float) -> Moved:
        return changed(setting, bridge=replace(bridge, **{field: getattr(bridge, field) * factor})), plan

    yield _fact(f"{name}.network.bandwidth", network.bandwidth, partial(with_bridge, "bandwidth"))
    tag = network.latency.tag if network.latency.known else "assumed"
    yield Input(f"{name}.network.latency", bridge.latency, "time", tag, *_by_tag(tag), "maker",
                partial(with_bridge, "latency"))  # fmt: skip
    direct = bridge.direct
    if direct is not None and network.direct is not None:

        def past(factor: float) -> Moved:
            other = replace(bridge, direct=replace(direct, bandwidth=direct.bandwidth * factor))
            return changed(setting, bridge=other), plan

        yield _fact(f"{name}.network.direct.bandwidth", network.direct.bandwidth, past)


# Failures, power, the building.


def _upkeep(setting: Setting, plan: Plan) -> Iterator[Input]:
    formation = setting.formation
    most, least = rate_range()
    for cause in failing(plan, setting).causes:
        if cause.name not in ("card", "host", "network", "maintenance", "software"):
            continue
        where = formation.name if not cause.pool or cause.name == "software" else cause.pool
        own = (*_around(WIDTHS["assumed"]), "30%, yours") if cause.stated else (
            1 / most, 1 / least, "range of published clusters")  # fmt: skip
        yield Input(
            f"{where}.failures.{cause.name}", 1 / cause.rate, "time", "assumed", *own,
            "" if cause.name == "software" else "maker",
            partial(_failing, setting, plan, where, cause.name, 1 / cause.rate),
        )  # fmt: skip
    if formation.pue.known:
        yield _fact(f"{formation.name}.pue", formation.pue, partial(_built, setting, plan))
    for pool in formation.pools:
        if pool.name in plan.cards_by_pool() and pool.power_per_card.known:
            yield _fact(f"{pool.name}.power_per_card", pool.power_per_card,
                        partial(_drawing, setting, plan, pool.name))  # fmt: skip
        if pool.name in plan.cards_by_pool() and pool.accelerator.tdp.known:
            yield _fact(f"{pool.name}.tdp", pool.accelerator.tdp, partial(_rated, setting, plan, pool.name))


def _built(setting: Setting, plan: Plan, factor: float) -> Moved:
    formation = setting.formation
    return changed(setting, formation=replace(formation, pue=_pue(formation.pue, factor))), plan


def _pue(fact: Fact, factor: float) -> Fact:
    """Return a PUE whose part above 1 is moved, as no building can have less."""
    return _times(fact, (1 + ((fact.value or 1.0) - 1) * factor) / (fact.value or 1.0))


def _times(fact: Fact, factor: float) -> Fact:
    return fact.model_copy(update={"value": None if fact.value is None else fact.value * factor})


def _on_pool(setting: Setting, plan: Plan, name: str, change: Callable[[CardPool], CardPool]) -> Moved:
    formation = setting.formation
    pools = tuple(change(pool) if pool.name == name else pool for pool in formation.pools)
    return changed(setting, formation=replace(formation, pools=pools)), plan


def _drawing(setting: Setting, plan: Plan, name: str, factor: float) -> Moved:
    return _on_pool(setting, plan, name, lambda pool: replace(pool, power_per_card=_times(pool.power_per_card, factor)))


def _rated(setting: Setting, plan: Plan, name: str, factor: float) -> Moved:
    def change(pool: CardPool) -> CardPool:
        card = pool.accelerator
        return replace(pool, accelerator=card.model_copy(update={"tdp": _times(card.tdp, factor)}))

    return _on_pool(setting, plan, name, change)


def _failing(setting: Setting, plan: Plan, where: str, name: str, mtbf: float, factor: float) -> Moved:
    fact = Fact(value=mtbf * factor, dimension="time", unit="s")
    formation = setting.formation
    if where == formation.name:
        failures = formation.failures.model_copy(update={name: fact})
        return changed(setting, formation=replace(formation, failures=failures)), plan
    return _on_pool(
        setting, plan, where,
        lambda pool: replace(pool, failures=pool.failures.model_copy(update={name: fact})),
    )  # fmt: skip


# What the user chose.


def _choices(setting: Setting, plan: Plan) -> Iterator[Input]:
    workload = setting.workload

    def batch(factor: float) -> Moved:
        entries = tuple(
            pipe.model_copy(update={"micro_batches": max(round(pipe.micro_batches * factor), 1)})
            for pipe in plan.pipelines
        )
        other = plan.model_copy(update={"pipelines": entries})
        found = workload.model_copy(update={"global_batch": other.global_batch})
        return changed(setting, workload=found), other

    def length(factor: float) -> Moved:
        tokens = max(round(workload.sequence_length * factor), 1)
        other = plan.model_copy(update={"sequence_length": tokens})
        return changed(setting, workload=workload.model_copy(update={"sequence_length": tokens})), other

    ends = (1 - CHOICE, 1 + CHOICE, f"{CHOICE:.0%}, your choice")
    yield Input("workload.global_batch", workload.global_batch, "count", "derived", *ends, "", batch)
    yield Input("workload.sequence_length", workload.sequence_length, "count", "derived", *ends, "", length)
