"""What failures leave of a long run: its checkpoints, its restarts, and what they cost of the wall clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import numpy as np

from zhenfa import cite, units
from zhenfa.catalog import operation
from zhenfa.estimate import saving
from zhenfa.estimate.failing import WHOLE_JOB, Failing, failing, failing_cards
from zhenfa.estimate.saving import Saving
from zhenfa.estimate.setting import Setting
from zhenfa.laws import failure, recovery, reliability
from zhenfa.laws.arrays import Array, plain
from zhenfa.spec.plan import Plan

LOST: Final = ("checkpoint", "rework", "down", "restart")
"""Where time goes that is not work."""

DEFAULT_RATES: Final = "llama3-405b"
"""The cluster in whose run the default failure rates were counted."""


class Times(NamedTuple):
    """Seconds of one way to live with failures, floats or arrays over plans: the fields of :class:`Policy`."""

    interval: Array
    checkpoint: Array
    lag: Array
    down: Array
    reload: Array
    restart: Array
    replicas: Array = 0
    whole: Array = 1.0

    def shares(self, mtbf: Array) -> dict[str, Array]:
        """Return where the wall clock goes at a mean time between failures, ``work`` first."""
        found = recovery.time_account(
            self.interval, mtbf=mtbf, checkpoint=self.checkpoint, down=self.down, restart=self.restart, lag=self.lag
        )
        if not np.any(self.replicas):
            return found
        elastic = recovery.elastic_account(
            mtbf=mtbf, stall=self.down, degraded=self.restart, replicas=np.maximum(self.replicas, 1),
            interval=self.interval, checkpoint=self.checkpoint, restart=self.restart, lag=self.lag,
            full_restart=self.whole,
        )  # fmt: skip
        return {name: plain(np.where(self.replicas, elastic[name], found[name])) for name in found}


@dataclass(frozen=True)
class Policy:
    """Seconds of one way to live with failures: ``lag`` until a checkpoint is safe, ``reload`` a part of ``restart``.

    ``replicas`` that go on without one that fails (0: all stop); ``whole`` is the share of failures that stop all.
    """

    interval: float
    checkpoint: float
    lag: float
    down: float
    reload: float
    restart: float
    replicas: int = 0
    whole: float = 1.0

    def shares(self, mtbf: float) -> dict[str, float]:
        """Return where the wall clock goes at a mean time between failures, ``work`` first."""
        found = Times(*(getattr(self, name) for name in Times._fields)).shares(mtbf)
        return {name: float(share) for name, share in found.items()}


@dataclass(frozen=True)
class Survival:
    """How much of the wall clock a long run keeps.

    ``mtbf`` seconds; ``shares`` of the wall clock by name, ``work`` first, which sum to 1. ``p10`` and ``p90`` are the
    ETTR at the highest and the lowest failure rate that a cluster has published.
    """

    ettr: float
    mtbf: float
    policy: Policy
    saving: Saving
    failing: Failing
    shares: dict[str, float]
    note: str
    assumptions: tuple[str, ...]
    p10: float
    p90: float


def survival(plan: Plan, setting: Setting) -> Survival:
    """Return the effective training time ratio of a plan, at its best checkpoint interval unless one is asked for.

    Counts what :mod:`zhenfa.estimate.failing` counts; checkpoints of the plan's own states, copied to the hosts and
    written to the store beside training; the way back from the store. Omits spares that run out, and failures that
    strike several parts at once beyond the domains that are stated.
    """
    found = failing(plan, setting)
    mtbf = float(found.mtbf)
    policy, kept = _policy(plan, setting, found)
    shares = policy.shares(mtbf)
    lost = ", ".join(f"{name} {shares[name]:.1%}" for name in LOST)
    note = (
        f"a failure every {units.show(mtbf, 'time')}, a checkpoint of {units.show(kept.bytes, 'data')} every "
        f"{units.show(policy.interval, 'time')} (stops training for {units.show(kept.stall, 'time')}): {lost}"
    )
    assumptions = () if setting.formation.emulated else _assumptions(setting, found, policy, kept)
    low, high = (policy.shares(mtbf / times)["work"] for times in rate_range())
    return Survival(shares["work"], mtbf, policy, kept, found, shares, note, assumptions, low, high)


def _policy(plan: Plan, setting: Setting, found: Failing) -> tuple[Policy, Saving]:
    """Return the recovery policy of a plan, and what its checkpoints take."""
    asynchronous = setting.recovery.checkpoint == "asynchronous"
    size = saving.checkpoint(plan, setting, asynchronous=asynchronous).bytes
    alone = leaving(plan) if setting.recovery.elastic else 0
    times = policy_times(plan.cards_by_pool(), setting.for_plan(plan), found, size, alone)
    kept = saving.checkpoint(plan, setting, interval=float(times.interval), asynchronous=asynchronous)
    policy = Policy(
        float(times.interval), float(times.checkpoint), float(times.lag), float(times.down), float(times.reload),
        float(times.restart), alone, float(times.whole),
    )  # fmt: skip
    return policy, kept


def policy_times(
    cards: Mapping[str, Array], setting: Setting, found: Failing, size: float, replicas: Array = 0
) -> Times:
    """Return the recovery policy over so many cards of each pool, floats or arrays over plans: what the job asks for,
    and what follows from the ``size`` of a checkpoint, links and cards. ``replicas`` may go on without each other."""
    asked, table, mtbf = setting.recovery, operation.failures(), found.mtbf
    asynchronous = asked.checkpoint == "asynchronous"
    stall, written, _ = saving.saving_times(cards, setting, size, asynchronous=asynchronous)
    interval: Array | None = asked.interval.value
    if interval is None:
        endless = np.isinf(mtbf)
        best = reliability.optimal_interval(np.where(endless, 1.0, mtbf), np.maximum(stall, 1e-6))
        best = plain(np.where(endless, 86400.0, best))
        interval = plain(np.maximum(best, np.add(written, stall))) if asynchronous else best
    stall, written, reload = saving.saving_times(cards, setting, size, interval=interval, asynchronous=asynchronous)
    down = (table.recovery.down if asked.down.value is None else asked.down).require("recovery.down")
    restart: Array | None = asked.restart.value
    if restart is None:
        growth = table.growth("cold-recovery")
        cite.use(growth.source)
        whole = sum(cards.values())
        start = failure.restart_time(whole, base=growth.base, per_card=growth.per_card, exponent=growth.exponent)
        restart = start + reload
    lag = written if asynchronous else 0.0
    stops = found.share(WHOLE_JOB)
    return Times(interval, stall, lag, down, plain(np.minimum(reload, restart)), restart, replicas, stops)


def kept_shares(cards: Mapping[str, Array], setting: Setting, replicas: Array = 0) -> dict[str, Array]:
    """Return where the wall clock goes over so many cards of each pool, at least one of each: floats, or arrays over
    plans that train the whole model. ``work`` is the ETTR. ``replicas`` may go on without each other (0: all stop)."""
    found = failing_cards(cards, setting)
    size = saving.state_bytes(saving.all_parameters(setting), setting.between)
    return policy_times(cards, setting, found, size, replicas).shares(found.mtbf)


def leaving(plan: Plan) -> int:
    """Return how many parts of a job can go on without each other: replicas, or groups of them where ZeRO divides the
    state over a group; 0 where none holds the whole state."""
    if plan.zero == 0:
        return plan.replicas if plan.replicas > 1 else 0
    if plan.shard_group is None:
        return 0
    along = min(stage.context_parallel * stage.data_parallel for pipe in plan.pipelines for stage in pipe.stages)
    groups = plan.replicas * along // plan.shard_group
    return min(groups, plan.replicas) if groups > 1 else 0


@cache
def rate_range() -> tuple[float, float]:
    """Return the highest and the lowest published failure rate of a cluster over that of the default rates."""
    rates = {one.id: one.rate for one in operation.failures().clusters}
    return max(rates.values()) / rates[DEFAULT_RATES], min(rates.values()) / rates[DEFAULT_RATES]


def _assumptions(setting: Setting, found: Failing, policy: Policy, kept: Saving) -> tuple[str, ...]:
    asked = setting.recovery
    yours = list(dict.fromkeys(cause.name for cause in found.causes if cause.stated))
    usual = list(dict.fromkeys(cause.name for cause in found.causes if not cause.stated))
    rates = [f"failures of {', '.join(yours)} as you state them"] if yours else []
    if usual:
        rates.append(f"failures of {', '.join(usual)} at the rates of Llama 3 405B's run (16,384 H100)")
    back = "as you state it" if asked.restart.known else f"{policy.reload:.0f} s of it to read the checkpoint"
    whose = "yours" if asked.down.known else "assumed"
    how = "replicas go on without one that fails" if policy.replicas else "all cards stop"
    if asked.elastic and not policy.replicas:
        how = "all cards stop: no replica of this plan holds the whole state, so none can leave alone"
    words = (
        f"recovery: {policy.down / 60:.3g} min to detect and replace ({whose}), {policy.restart:.0f} s to restart "
        f"({back}); {how}"
    )
    store = (
        f"checkpoints {asked.checkpoint}, each {units.show(kept.bytes, 'data')}, safe in the store after "
        f"{units.show(kept.written, 'time')}: {kept.words}"
    )
    rare = [
        f"{pool}: failures of {', '.join(names)} are unknown and counted as 0: nobody publishes their rate; state them "
        f"under failures.domains of the pool"
        for pool, names in found.unknown.items()
        if names
    ]
    return ("; ".join(rates), words, store, *rare)
