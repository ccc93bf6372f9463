"""Power and energy of a plan: what its cards and hosts draw at this step, lost work included, up to the meter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zhenfa import units
from zhenfa.catalog import operation
from zhenfa.errors import UnknownNameError
from zhenfa.estimate.power import Draw, card_draw, host_draw
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.survival import Survival
from zhenfa.estimate.training import PlanCost
from zhenfa.laws import energy
from zhenfa.laws import facility as facility_laws
from zhenfa.spec.fact import Fact, Tag, weakest
from zhenfa.spec.machine import CardPool, Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Figure
from zhenfa.spec.upkeep import Facility

KERNELS: Final = ("arithmetic at peak", "below peak", "recomputation", "optimizer")
"""The parts of a step in which a card's kernels run."""

OWN: Final = frozenset({"stated", "assumed"})
"""Confidences of a power that the user gave."""

NO_POWER: Final = Figure(unit="W")
NO_RUN: Final = Figure(unit="J")


@dataclass(frozen=True)
class EnergyWall:
    """Joules per token at the meter with lost work, the power in words, and what was assumed.

    ``facility``: power at the meter while the cards work; ``run``: energy of the whole run, lost work included.
    """

    figure: Figure
    detail: str
    assumptions: tuple[str, ...] = ()
    facility: Figure = NO_POWER
    run: Figure = NO_RUN


def energy_wall(
    plan: Plan, setting: Setting, cost: PlanCost, parts: dict[str, float], survived: Survival
) -> EnergyWall:
    """Return joules per token (at the meter of the facility, lost work included) and the power in words.

    ``parts`` of the step in seconds, of the busiest stage, which stands for all. Counts cards and hosts at work, and
    waiting while the job checkpoints, is down or reloads. Omits that power follows the load of each stage.
    """
    if setting.formation.emulated:
        words = "emulated cards draw no power of their own"
        return EnergyWall(Figure(unit="J", note=words), "emulated cards draw none of their own")
    setting = setting.computing_as(plan)
    drawn: list[tuple[int, Draw]] = []
    said: list[str] = []
    for name, count in plan.cards_by_pool().items():
        one = pool_draw(setting.formation.pool(name), setting, cost, parts)
        if one is None:
            text = f'{name}: power undisclosed; supply --assume {name}.power_per_card="700 W"'
            return EnergyWall(Figure(unit="J", note=text), text)
        one = _at_the_wall(one, setting.formation.facility)
        drawn.append((count, one))
        said.append(f"{name}: {one.busy:.0f} W a card with its host ({one.words})")
    power = sum(count * one.busy for count, one in drawn)
    ratio = pue_at(setting.formation, power)
    joules = sum(
        float(part)
        for count, one in drawn
        for part in energy.spent_energy(
            cost.step, survived.shares, cards=count, busy=one.busy, waiting=one.waiting, pue=ratio.value or 1.0
        ).values()
    )
    tags = [one.tag for _, one in drawn] + ([] if ratio.value is None else [ratio.tag])
    return _figures(plan, setting, cost, joules, power, ratio, weakest("fitted", *tags), tuple(said))


def pue_at(formation: Formation, power: float) -> Fact:
    """Return the PUE of a building whose equipment draws ``power`` W: at this load where its curve is stated."""
    facility = formation.facility
    if not facility.known:
        return formation.pue
    load = power / facility.design_power.require("facility.design_power")
    value = facility_laws.pue_at_load(
        load, fixed=facility.fixed.require("facility.fixed"),
        proportional=facility.proportional.require("facility.proportional"),
    )  # fmt: skip
    note = f"at {load:.0%} of the design power"
    return Fact(value=float(value), dimension="ratio", source="this document", confidence="derived", note=note)


def _at_the_wall(drawn: Draw, facility: Facility) -> Draw:
    """Return what a card and its host draw before the converters of the rack, each node having its own."""
    table, each = operation.power().converters, operation.failures().cards_per_node
    busy, waiting = drawn.busy, drawn.waiting
    for name in facility.converters:
        one = next((one for one in table if one.id == name), None)
        if one is None:
            raise UnknownNameError("converter", name, [one.id for one in table])
        loss, share = one.loss.require(f"{name}.loss") / each, one.efficiency.require(f"{name}.efficiency")
        busy, waiting = (
            float(facility_laws.conversion_input(watts, loss=loss, efficiency=share)) for watts in (busy, waiting)
        )
    words = f"{drawn.words}, {' and '.join(facility.converters)}" if facility.converters else drawn.words
    return Draw(busy, waiting, drawn.tag, words)


def _figures(
    plan: Plan,
    setting: Setting,
    cost: PlanCost,
    joules: float,
    power: float,
    pue: Fact,
    tag: Tag,
    said: tuple[str, ...],
) -> EnergyWall:
    tokens = plan.global_batch * plan.sequence_length
    facility = float(energy.facility_power(power, pue.value or 1.0))
    each, ideal = joules / tokens, facility * cost.step / tokens
    at = f"PUE {pue.value:.4g}" if pue.value is not None else "PUE undisclosed, not counted"
    if pue.value is not None and setting.formation.facility.known:
        at = f"{at} {pue.note}"
    whole, run = "", Figure(unit="J", note="the workload names no number of tokens")
    if setting.workload.tokens is not None:
        run = Figure(value=each * setting.workload.tokens, unit="J", tag=tag, note=f"{at}; lost work included")
        whole = f"; the run: {units.show(run.value, 'energy')}"
    detail = (
        f"{units.show(power, 'power')} at work, {at}: {each:.3g} J/token with lost work, {ideal:.3g} without{whole}"
    )
    note = f"{at}; {ideal:.4g} J without lost work"
    return EnergyWall(
        Figure(value=each, unit="J", tag=tag, note=note), detail, tuple(f"power of {one}" for one in said),
        Figure(value=facility, unit="W", tag=tag, note=f"{at}; while the cards work"), run,
    )  # fmt: skip


def pool_draw(pool: CardPool, setting: Setting, cost: PlanCost, parts: dict[str, float]) -> Draw | None:
    """Return what one card of a pool draws together with its share of the host; None where nothing is known.

    A power that the user gave comes first; then the card's measured curve; then rated power, of the system with its
    hosts or of the card alone, of which a busy one draws three quarters.
    """
    return _with_host(pool, _card(pool, setting, cost, parts))


def least_draw(pool: CardPool, formation: Formation) -> Draw | None:
    """Return what one card of a pool and its share of the host draw at least before the building, whatever the plan
    makes it do; None where nothing is known."""
    found = _with_host(pool, card_draw(pool.accelerator, flops=0.0, bytes_per_second=0.0, share=0.0))
    return None if found is None else _at_the_wall(found, formation.facility)


def draw_at(
    pool: CardPool, formation: Formation, *, flops: float, bytes_per_second: float, share: float
) -> Draw | None:
    """Return what one card of a pool and its share of the host draw before the building where the card reaches so many
    FLOP/s and bytes/s and its kernels run for a ``share`` of the time; None where nothing is known."""
    found = _with_host(pool, card_draw(pool.accelerator, flops=flops, bytes_per_second=bytes_per_second, share=share))
    return None if found is None else _at_the_wall(found, formation.facility)


def _with_host(pool: CardPool, drawn: Draw | None) -> Draw | None:
    table, given = operation.power(), pool.power_per_card
    busy_share, idle_share = table.busy_share.require("busy_share"), table.idle_share.require("idle_share")
    rated = None
    if given.value is not None:
        words = f"{busy_share:.0%} of {given.value:.0f} W rated"
        rated = Draw(busy_share * given.value, idle_share * given.value, "assumed", words)
    if rated is not None and (given.confidence in OWN or drawn is None or "rated" in drawn.words):
        return rated
    if drawn is None:
        return None
    busy, waiting = host_draw()
    words = f"card {drawn.busy:.0f} W {drawn.words}; host {busy:.0f} W, measured on servers of 8 A100"
    return Draw(drawn.busy + busy, drawn.waiting + waiting, "assumed", words)


def _card(pool: CardPool, setting: Setting, cost: PlanCost, parts: dict[str, float]) -> Draw | None:
    """Return what a card draws, from the FLOP it executes and the bytes it moves.

    Time below peak is taken as bound by memory, which is the most that it can move.
    """
    chip = setting.chips[pool.name]
    step = max(cost.step, 1e-12)
    forward = parts["arithmetic at peak"] + parts["below peak"]
    again = 1.0 + (parts["recomputation"] / forward if forward > 0 else 0.0)
    share = min(sum(parts[name] for name in KERNELS) / step, 1.0)
    return card_draw(
        pool.accelerator, flops=chip.peak * again * parts["arithmetic at peak"] / step,
        bytes_per_second=chip.bandwidth * chip.memory_share * min(again * parts["below peak"] / step, 1.0), share=share,
    )  # fmt: skip
