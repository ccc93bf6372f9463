"""What failures leave of a long run, at the default rates and recovery policy of the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from zhenfa import cite, units
from zhenfa.catalog import operation
from zhenfa.estimate.setting import Setting
from zhenfa.laws import recovery, reliability
from zhenfa.spec.plan import Plan

LOST: Final = ("checkpoint", "rework", "down", "restart")
"""Where time goes that is not work."""

DEFAULT_RATES: Final = "llama3-405b"
"""The cluster in whose run the default failure rates were counted."""

SUPERNODES: Final = frozenset({"supernode", "cabinet", "rack", "one-to-two-unit", "pod", "cube"})
"""Tiers whose cards share power, cooling or a scale-up fabric beyond one node."""


@dataclass(frozen=True)
class Survival:
    """How much of the wall clock a long run keeps, given the default failure rates and the assumed recovery policy.

    ``mtbf``, ``interval``, ``checkpoint``, ``down`` and ``restart`` in seconds; ``shares`` of the wall clock by name,
    ``work`` first, which sum to 1. ``p10`` and ``p90`` are the ETTR at the highest and the lowest failure rate that a
    cluster has published.
    """

    ettr: float
    mtbf: float
    interval: float
    checkpoint: float
    down: float
    restart: float
    shares: dict[str, float]
    note: str
    assumptions: tuple[str, ...]
    p10: float
    p90: float


def survival(plan: Plan, setting: Setting) -> Survival:
    """Return the effective training time ratio of a plan at its best checkpoint interval.

    Counts failures of cards, hosts, switches and software at the rates of Llama 3 405B's run; omits failures of whole
    racks and cooling or power domains, for which nobody publishes a rate, spares running out and slow cards.
    """
    table = operation.failures()
    nodes = max(plan.cards / table.cards_per_node, 1.0)
    mtbf = float(
        reliability.job_mtbf(
            plan.cards, nodes, card_rate=table.rate("card"), host_rate=table.rate("host"),
            network_rate=table.rate("network"), maintenance_rate=table.rate("maintenance"),
            software_rate=table.rate("software"),
        )
    )  # fmt: skip
    cite.use(*dict.fromkeys(one.source for one in table.failures))
    policy = table.recovery
    checkpoint = policy.checkpoint.require("recovery.checkpoint")
    down, restart = policy.down.require("recovery.down"), policy.reload.require("recovery.reload")
    interval = float(reliability.optimal_interval(mtbf, checkpoint))
    account = recovery.time_account(interval, mtbf=mtbf, checkpoint=checkpoint, down=down, restart=restart)
    shares = {name: float(share) for name, share in account.items()}
    lost = ", ".join(f"{name} {shares[name]:.1%}" for name in LOST)
    note = f"a failure every {units.show(mtbf, 'time')}, a checkpoint every {units.show(interval, 'time')}: {lost}"
    assumptions = () if setting.formation.emulated else _assumptions(plan, setting, checkpoint, down, restart)
    low, high = (
        float(reliability.ettr(interval, mtbf=mtbf / times, checkpoint=checkpoint, down=down, restart=restart))
        for times in rate_range()
    )
    return Survival(shares["work"], mtbf, interval, checkpoint, down, restart, shares, note, assumptions, low, high)


@cache
def rate_range() -> tuple[float, float]:
    """Return the highest and the lowest published failure rate of a cluster over that of the default rates."""
    rates = {one.id: one.rate for one in operation.failures().clusters}
    return max(rates.values()) / rates[DEFAULT_RATES], min(rates.values()) / rates[DEFAULT_RATES]


def _assumptions(plan: Plan, setting: Setting, checkpoint: float, down: float, restart: float) -> tuple[str, ...]:
    policy = (
        "failures at the rates of Llama 3 405B's run (16,384 H100); recovery assumed: "
        f"{checkpoint:.0f} s blocking checkpoint, {down / 60:.0f} min to detect and replace, "
        f"{restart / 60:.0f} min to reload"
    )
    whole = [name for name in plan.cards_by_pool() if _supernode(setting, name)]
    if not whole:
        return (policy,)
    rare = (
        f"{', '.join(whole)}: failures of a whole rack, cooling unit, power shelf or scale-up switch are counted as 0; "
        "nobody publishes their rate"
    )
    return policy, rare


def _supernode(setting: Setting, pool: str) -> bool:
    """Return whether a pool's cards stand in something larger than a node that can fail whole."""
    return any(tier.name in SUPERNODES for tier in setting.formation.pool(pool).tiers)
