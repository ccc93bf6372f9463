"""How a long run fares: failures by cause, checkpoints, spares, goodput, power at the meter, carbon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.catalog import operation
from zhenfa.errors import UnknownNameError
from zhenfa.estimate.energy_wall import EnergyWall
from zhenfa.estimate.failing import PER_NODE, WHOLE_JOB, Cause, Failing, node_rate, node_repair
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.survival import Survival
from zhenfa.laws import energy, recovery, redundancy, reliability
from zhenfa.laws.arrays import Array, plain
from zhenfa.spec.fact import Tag
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Figure, Operating
from zhenfa.spec.upkeep import Grid

DAY: Final = 86400.0
STANDBY_SUFFICES: Final = 0.99
"""Share of the time in which the standby nodes suffice."""


def operating(plan: Plan, setting: Setting, survived: Survival, power: EnergyWall, mfu: Figure) -> Operating:
    """Return how a long run of a plan fares; empty on emulated cards, on which no failure is modelled."""
    if setting.formation.emulated:
        return Operating()
    policy, kept = survived.policy, survived.saving
    stall = max(kept.stall, 1e-6)
    scheduling, note = _scheduling(plan, setting, survived)
    fared = recovery.goodput(scheduling, survived.ettr, mfu.value or 0.0)
    return Operating(
        mtbf_s=_seconds(survived.mtbf, "of the whole job"),
        failures_per_day=_by_cause(survived.failing.causes),
        not_counted=tuple(f"{pool}: {name}" for pool, names in survived.failing.unknown.items() for name in names),
        checkpoint_bytes=Figure(value=kept.bytes, unit="B", tag="derived", note="weights, master weights, moments"),
        checkpoint_stall_s=_seconds(kept.stall, "that one stops training"),
        checkpoint_write_s=_seconds(kept.written, kept.words),
        interval_s=_seconds(policy.interval, "yours" if setting.recovery.interval.known else "the best"),
        young_interval_s=_seconds(float(reliability.young_interval(survived.mtbf, stall)), "Young 1974"),
        daly_interval_s=_seconds(
            float(reliability.daly_interval(survived.mtbf, stall, down=policy.down, restart=policy.restart)),
            "Daly 2006, first order",
        ),
        down_s=_seconds(policy.down, "from a failure until reloading starts"),
        restart_s=_seconds(policy.restart, f"{policy.reload:.3g} s of it to read the checkpoint"),
        lost_s_per_failure=_seconds(_lost(survived), "of wall clock, checkpoints left out"),
        kokolis_ettr=_assumed(_kokolis(plan, survived), "", "Kokolis 2024, small losses only; ETTR is exact"),
        cards_out=_cards_out(plan, survived),
        standby_nodes=_standby(plan, setting, survived),
        scheduling=_assumed(scheduling, "", note),
        goodput=_assumed(float(fared), "", "scheduling x ETTR x MFU"),
        facility_power_w=power.facility,
        run_energy_j=power.run,
        carbon_kg=_carbon(setting, power),
    )  # fmt: skip


def _assumed(value: float | None, unit: str, note: str, tag: Tag = "assumed") -> Figure:
    finite = value if value is not None and math.isfinite(value) else None
    return Figure(value=finite, unit=unit, tag=tag, note=note)


def _seconds(value: float, note: str) -> Figure:
    return _assumed(value, "s", note)


def _by_cause(causes: tuple[Cause, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for cause in causes:
        name = f"{cause.pool}: {cause.name}" if cause.pool else cause.name
        found[name] = found.get(name, 0.0) + float(cause.total) * DAY
    return found


def _lost(survived: Survival) -> float:
    """Return the seconds of wall clock that one failure costs."""
    lost = sum(survived.shares[name] for name in ("rework", "down", "restart"))
    return lost * survived.mtbf if math.isfinite(survived.mtbf) else 0.0


def _kokolis(plan: Plan, survived: Survival) -> float:
    policy = survived.policy
    nodes = max(plan.cards / operation.failures().cards_per_node, 1.0)
    return float(
        reliability.kokolis_ettr(
            nodes, node_failure_rate=1.0 / (survived.mtbf * nodes), restart=policy.down + policy.restart,
            interval=policy.interval, checkpoint=policy.checkpoint,
        )
    )  # fmt: skip


def _cards_out(plan: Plan, survived: Survival) -> Figure:
    """Return the cards that are out of work on average, broken or waiting for the rest."""
    policy = survived.policy
    alone = plan.cards / policy.replicas if policy.replicas else float(plan.cards)
    total = 0.0
    for cause in survived.failing.causes:
        gang = float(plan.cards) if cause.name == WHOLE_JOB else alone
        total += float(
            recovery.lost_card_seconds(
                domains=cause.units, rate=cause.rate, cards=cause.cards, repair=cause.repair, gang=gang,
                down=policy.down, restart=policy.restart, interval=policy.interval,
            )
        )  # fmt: skip
    return _assumed(total, "cards", "broken or waiting, on average")


def _standby(plan: Plan, setting: Setting, survived: Survival) -> Figure:
    """Return the standby nodes that carry the job while others are repaired."""
    given = setting.recovery.refill
    refill = node_repair() if given.value is None else given.value
    each = operation.failures().cards_per_node
    total = 0.0
    for pool, cards in plan.cards_by_pool().items():
        rate = node_rate(survived.failing, pool)
        total += float(redundancy.standby_nodes(max(cards / each, 1.0), rate, refill, quantile=STANDBY_SUFFICES))
    words = f"{STANDBY_SUFFICES:.0%} of the time enough, each replaced after {refill / 3600:.3g} h"
    return _assumed(total, "nodes", words)


def _scheduling(plan: Plan, setting: Setting, survived: Survival) -> tuple[float, str]:
    """Return how often every pool has as many nodes up as the plan uses, were its own spare nodes all there are."""
    each, cards = operation.failures().cards_per_node, plan.cards_by_pool()
    said = [
        f"{math.ceil(count / each):,} of {math.ceil(setting.formation.pool(pool).count / each):,} nodes of {pool}"
        for pool, count in cards.items()
    ]
    share = float(up_share(cards, setting, survived.failing))
    return share, f"time in which {', '.join(said)} are up, with no spares beyond those"


def up_share(cards: Mapping[str, Array], setting: Setting, failing: Failing) -> Array:
    """Return the share of time in which every pool has as many nodes up as so many cards of it need, floats or arrays
    over plans, were its own spare nodes all there are."""
    each, repair = operation.failures().cards_per_node, node_repair()
    share: Array = 1.0
    for pool, count in cards.items():
        there, needed = math.ceil(setting.formation.pool(pool).count / each), np.ceil(np.true_divide(count, each))
        down = 1.0 - redundancy.availability(1.0 / np.maximum(node_rate(failing, pool), 1e-30), repair)
        alike, back = np.unique(np.stack(np.broadcast_arrays(needed, down)).reshape(2, -1), axis=1, return_inverse=True)
        found = np.asarray(redundancy.usable_probability(there, alike[0], alike[1]))
        share = plain(share * found[back.ravel()].reshape(np.shape(needed)))
    for cause in failing.causes:
        if cause.name not in ("card", *PER_NODE, WHOLE_JOB):
            share = plain(share * np.power(redundancy.availability(1.0 / cause.rate, cause.repair), cause.units))
    return share


def _carbon(setting: Setting, power: EnergyWall) -> Figure:
    grid = setting.formation.grid
    if grid is None:
        return Figure(unit="kg", note="the machine names no grid")
    if power.run.value is None:
        return Figure(unit="kg", note=power.run.note)
    if isinstance(grid, Grid):
        factor, words = grid.kg_per_kwh, f"{grid.kg_per_kwh:g} kg/kWh (yours)"
    else:
        table = operation.power().grids
        found = next((one for one in table if one.id == grid), None)
        if found is None:
            raise UnknownNameError(
                "grid", grid, [one.id for one in table],
                hint="name one of these, or write grid: {kg_per_kwh: 0.5} in the machine.",
            )  # fmt: skip
        cite.use(found.source)
        factor, words = found.kg_per_kwh, f"{found.kg_per_kwh:g} kg/kWh ({found.id}, {found.year})"
    return _assumed(float(energy.carbon(power.run.value, factor / 3.6e6)), "kg", words)
