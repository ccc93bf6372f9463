"""The energy of a run: power while a card works and while it waits, times how long it did either, up to the meter.

Power is what makers told while the run went on (measured), else what the laws say of the card at the FLOP/s that it
reached (modelled). A card of which nobody has published or given a power leaves the sum empty, and it is said which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zhenfa import units
from zhenfa.estimate.energy_wall import draw_at, pue_at
from zhenfa.estimate.setting import Setting
from zhenfa.laws import energy
from zhenfa.live.pace import COMPUTE
from zhenfa.live.placement import CardPlace
from zhenfa.spec.fact import Tag, weakest
from zhenfa.spec.machine import Formation
from zhenfa.spec.result import CardEnergy, Figure, Run, RunEnergy, Wall

if TYPE_CHECKING:
    from zhenfa.live.train import Measured


def with_energy(run: Run, measured: Measured, setting: Setting, formation: Formation) -> Run:
    """Return a run with its energy: of the cards of the plan that it ended with, over all of its training.

    ``measured`` with the plan, ``setting`` that the plan was costed in, ``formation`` whose pools the cards belong to.
    Counts cards at work and waiting, their share of a host where the power is modelled, and the building; omits
    cards of the machine that the plan leaves idle.
    """
    busy = busy_shares(measured)
    cards, missing = [], []
    for place in measured.places:
        flops = _flops(measured, place.rank)
        found = _card(run, place, busy[place.rank], flops, setting, formation)
        if isinstance(found, str):
            missing.append(found)
        else:
            cards.append(found)
    missing = list(dict.fromkeys(missing))
    if missing or run.training_s is None or not run.losses:
        words = "; ".join(missing) or "nothing was timed"
        figure = Figure(unit="J", note=words)
        return _put(
            run, RunEnergy(cards=tuple(cards), energy_j=figure, missing=tuple(missing)), figure, Wall(detail=words)
        )
    return _summed(run, cards, formation)


def busy_shares(measured: Measured) -> list[float]:
    """Return the share of a step in which each card computed, by rank, over the steps that were timed."""
    timed = measured.timings
    whole = measured.step_time * max(timed.steps, 1)
    found = []
    for place in measured.places:
        work = sum(one.seconds for (rank, _, kind), one in timed.work.items() if rank == place.rank and kind in COMPUTE)
        update = timed.optimizer.get(place.rank)
        found.append(min((work + (update.seconds if update else 0.0)) / whole, 1.0))
    return found


def _flops(measured: Measured, rank: int) -> float:
    """Return the FLOPs that a card executed in a step."""
    report: dict[str, Any] = measured.reports[rank] if rank < len(measured.reports) else {}
    each = sum(count for kind, count in report.get("flops", {}).items() if kind != "again")
    return float(each) / measured.step_time


def _card(
    run: Run, place: CardPlace, busy: float, flops: float, setting: Setting, formation: Formation
) -> CardEnergy | str:
    """Return what a card drew, or why nobody can say it. ``flops``: FLOP/s over the whole step."""
    told = next((one for one in run.telemetry if (one.pool, one.index) == place.card), None)
    if told is not None and told.power_w is not None:
        words = f"{told.samples} readings of its maker's"
        return CardEnergy(
            card=place.rank, pool=place.pool, busy_share=busy, mean_w=told.power_w, tag="measured", words=words
        )
    pool = formation.pool(place.pool)
    if pool.accelerator.emulated and not pool.power_per_card.known:
        return "emulated cards draw none of their own; power_per_card of a pool in the machine file would model it"
    chip = next(one for name, one in setting.chips.items() if name.partition("-slow-")[0] == place.pool)
    rate = min(flops / busy if busy else 0.0, chip.peak)
    moved = chip.bandwidth * chip.memory_share * (1.0 - rate / chip.peak)
    drawn = draw_at(pool, formation, flops=rate, bytes_per_second=moved, share=1.0)
    if drawn is None:
        return f'{pool.name}: power undisclosed; supply --assume {pool.name}.power_per_card="700 W"'
    working = busy * (1.0 if run.effective_share is None else run.effective_share)
    mean = energy.card_power(working, idle=drawn.waiting, maximum=drawn.busy)
    return CardEnergy(
        card=place.rank, pool=place.pool, busy_share=busy, busy_w=drawn.busy, waiting_w=drawn.waiting,
        mean_w=float(mean), tag=drawn.tag, words=drawn.words,
    )  # fmt: skip


def _summed(run: Run, cards: Sequence[CardEnergy], formation: Formation) -> Run:
    power = sum(one.mean_w for one in cards)
    ratio = pue_at(formation, power)
    seconds, tokens = run.training_s or 0.0, len(run.losses) * run.plan.global_batch * run.plan.sequence_length
    at_meter = float(energy.facility_power(power, ratio.value or 1.0))
    joules = at_meter * seconds
    tags: list[Tag] = [one.tag for one in cards] + ([ratio.tag] if ratio.value is not None else [])
    tag = weakest(*tags)
    kind = "measured" if all(one.tag == "measured" for one in cards) else "modelled"
    at = f"PUE {ratio.value:.4g}" if ratio.value is not None else "PUE undisclosed, not counted"
    mark = "EMULATED cards with the power that their machine file gives; " if run.emulated else ""
    working = sum(one.busy_share for one in cards) / len(cards)
    detail = (
        f"{mark}{kind}: {units.show(at_meter, 'power')} for {units.show(seconds, 'time')}, "
        f"{units.show(joules, 'energy')} ({joules / 3.6e6:.3g} kWh), {joules / tokens:.3g} J/token; {at}; cards "
        f"computed for {working:.0%} of a step; {'; '.join(dict.fromkeys(one.words for one in cards))}"
    )
    note = f"{mark}{kind}; {at}; lost and idle time included"
    whole = Figure(value=joules, unit="J", tag=tag, note=note)
    each = Figure(value=joules / tokens, unit="J", tag=tag, note=note)
    parts = {"cards and hosts": power * seconds, "building": joules - power * seconds}
    return _put(
        run, RunEnergy(cards=tuple(cards), energy_j=whole, pue=ratio.value), each, Wall(detail=detail, parts=parts)
    )


def _put(run: Run, found: RunEnergy, each: Figure, wall: Wall) -> Run:
    return run.model_copy(
        update={
            "energy": found,
            "figures": run.figures.model_copy(update={"energy_j_per_token": each}),
            "walls": run.walls.model_copy(update={"energy": wall}),
        }
    )
