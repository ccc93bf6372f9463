"""Power and energy of a plan: what its cards and hosts draw at this step, lost work included, up to the meter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zhenfa import units
from zhenfa.catalog import operation
from zhenfa.estimate.power import Draw, card_draw, host_draw
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.survival import Survival
from zhenfa.estimate.training import PlanCost
from zhenfa.laws import energy
from zhenfa.spec.fact import Tag, weakest
from zhenfa.spec.machine import CardPool
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Figure

KERNELS: Final = ("arithmetic at peak", "below peak", "recomputation", "optimizer")
"""The parts of a step in which a card's kernels run."""

OWN: Final = frozenset({"stated", "assumed"})
"""Confidences of a power that the user gave."""


@dataclass(frozen=True)
class EnergyWall:
    """Joules per token at the meter with lost work, the power in words, and what was assumed."""

    figure: Figure
    detail: str
    assumptions: tuple[str, ...] = ()


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
    pue = setting.formation.pue
    joules, power = 0.0, 0.0
    tags: list[Tag] = [] if pue.value is None else [pue.tag]
    said: list[str] = []
    for name, count in plan.cards_by_pool().items():
        drawn = pool_draw(setting.formation.pool(name), setting, cost, parts)
        if drawn is None:
            text = f'{name}: power undisclosed; supply --assume {name}.power_per_card="700 W"'
            return EnergyWall(Figure(unit="J", note=text), text)
        account = energy.energy_account(
            cost.step, cards=count, busy=drawn.busy, waiting=drawn.waiting, interval=survived.interval,
            mtbf=survived.mtbf, checkpoint=survived.checkpoint, down=survived.down, restart=survived.restart,
            pue=1.0 if pue.value is None else pue.value,
        )  # fmt: skip
        joules += float(sum(account.values()))
        power += count * drawn.busy
        tags.append(drawn.tag)
        said.append(f"{name}: {drawn.busy:.0f} W a card with its host ({drawn.words})")
    return _figures(plan, setting, cost, joules, power, weakest("fitted", *tags), tuple(said))


def _figures(
    plan: Plan, setting: Setting, cost: PlanCost, joules: float, power: float, tag: Tag, said: tuple[str, ...]
) -> EnergyWall:
    pue, tokens = setting.formation.pue, plan.global_batch * plan.sequence_length
    facility = float(energy.facility_power(power, 1.0 if pue.value is None else pue.value))
    each, ideal = joules / tokens, facility * cost.step / tokens
    at = f"PUE {pue.value:g}" if pue.value is not None else "PUE undisclosed, not counted"
    whole = ""
    if setting.workload.tokens is not None:
        whole = f"; the run: {units.show(each * setting.workload.tokens, 'energy')}"
    detail = (
        f"{units.show(power, 'power')} at work, {at}: {each:.3g} J/token with lost work, {ideal:.3g} without{whole}"
    )
    note = f"{at}; {ideal:.4g} J without lost work"
    return EnergyWall(
        Figure(value=each, unit="J", tag=tag, note=note), detail, tuple(f"power of {one}" for one in said)
    )


def pool_draw(pool: CardPool, setting: Setting, cost: PlanCost, parts: dict[str, float]) -> Draw | None:
    """Return what one card of a pool draws together with its share of the host; None where nothing is known.

    A power that the user gave comes first; then the card's measured curve; then rated power, of the system with its
    hosts or of the card alone, of which a busy one draws three quarters.
    """
    table, given = operation.power(), pool.power_per_card
    busy_share, idle_share = table.busy_share.require("busy_share"), table.idle_share.require("idle_share")
    rated = None
    if given.value is not None:
        words = f"{busy_share:.0%} of {given.value:.0f} W rated"
        rated = Draw(busy_share * given.value, idle_share * given.value, "assumed", words)
    if rated is not None and given.confidence in OWN:
        return rated
    drawn = _card(pool, setting, cost, parts)
    if rated is not None and (drawn is None or "rated" in drawn.words):
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
