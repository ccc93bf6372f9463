"""Data parallel over several pools: each runs whole replicas of its own best layout, and the batch is shared out so
that all finish together; the gradient sum between pools is added.

Each pool's layout is the best for its share, the shares follow the speeds and are then moved by single micro-batches
while that shortens the step. Nothing proves that no other choice is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.goal import Goal
from zhenfa.plan.search import NO_MEMORY, Best, Found, Tally, search_pool
from zhenfa.plan.space import NO_BANDWIDTH, zero_stages
from zhenfa.plan.supply import is_maker
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan

LARGEST_GRAIN = 16
"""Sequences are shared out in multiples of this, so that every pool can choose its micro-batch size."""


def replicas_over_pools(
    setting: Setting, job: str, alone: Mapping[str, Found], sequences: int, limits: Limits, best: Best, tally: Tally
) -> None:
    """Offer data parallel over all pools that can hold the model; ``alone`` holds the best plan of each.

    One plan has one ZeRO stage: each stage that a pool alone likes best is tried for all.
    """
    least = min(zero_stages(setting))
    for zero in sorted({max(found.plan.zero, least) for found in alone.values()}):
        quickest = {
            name: found
            if found.plan.zero == zero or found.plan.replicas == 1
            else _quickest(setting, job, name, sequences, limits, zero)
            for name, found in alone.items()
        }
        speeds = {name: sequences / found.step for name, found in quickest.items() if found is not None}
        joint = _joint(setting, job, speeds, sequences, limits, zero, best.goal)
        if joint is None or joint.cards > (limits.max_cards or joint.cards):
            continue
        tally.considered += 1
        found_cost = cost(joint, setting)
        if found_cost.problem:
            tally.rejected[NO_BANDWIDTH if "bandwidth" in found_cost.problem else NO_MEMORY] += 1
            continue
        refusal = best.offer(joint, found_cost)
        tally.rejected[refusal] += bool(refusal)
        tally.costed += not refusal


def _joint(
    setting: Setting, job: str, speeds: dict[str, float], sequences: int, limits: Limits, zero: int, goal: Goal
) -> Plan | None:
    if len(speeds) < 2:
        return None
    parts = {name: part for name, part in least_kept(setting, shares(speeds, sequences), goal).items() if part}
    plans = [_quickest(setting, job, name, part, limits, zero) for name, part in parts.items()]
    found = [one.plan for one in plans if one is not None]
    if len(found) < 2 or len(found) < len(plans):
        return None
    return _rebalance(setting, _join(found, zero), goal)


def _quickest(setting: Setting, job: str, pool: str, sequences: int, limits: Limits, zero: int) -> Found | None:
    best = Best(1)
    search_pool(setting, job, pool, sequences, limits, best, Tally(), zero)
    ranked = best.ranked()
    return ranked[0] if ranked else None


def shares(speeds: dict[str, float], sequences: int) -> dict[str, int]:
    """Split ``sequences`` in proportion to the speeds, none lost, in multiples of a power of two where that divides."""
    grain = math.gcd(sequences, LARGEST_GRAIN)
    whole = sequences // grain
    exact = {name: whole * speed / sum(speeds.values()) for name, speed in speeds.items()}
    parts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda one: parts[one] - exact[one])[: whole - sum(parts.values())]:
        parts[name] += 1
    return {name: part * grain for name, part in parts.items()}


def _join(plans: Sequence[Plan], zero: int) -> Plan:
    """Put the pipelines of several plans into one."""
    entries = tuple(entry for plan in plans for entry in plan.pipelines)
    return plans[0].model_copy(update={"pipelines": entries, "zero": zero})


def least_kept(setting: Setting, parts: dict[str, int], goal: Goal) -> dict[str, int]:
    """Return shares of the sequences in which each maker has its least share, taken from the makers that have more."""
    wanted = {maker: least.value for maker, least in goal.limits.least_share.items() if least.value}
    if not wanted:
        return parts
    whole, found = sum(parts.values()), dict(parts)
    grain = math.gcd(whole, LARGEST_GRAIN)
    of = {name: _maker_of(setting, name, wanted) for name in parts}
    least = {maker: grain * math.ceil(share * whole / grain - 1e-9) for maker, share in wanted.items()}
    for maker, needed in least.items():
        mine = [name for name in found if of[name] == maker]
        while mine and sum(found[name] for name in mine) < needed:
            spare = {
                name: sum(part for other, part in found.items() if of[other] == of[name]) - least.get(of[name] or "", 0)
                for name, part in found.items()
                if of[name] != maker and part >= grain
            }
            giver = max(spare, key=lambda name: spare[name], default=None)
            if giver is None or spare[giver] < grain:
                break
            found[giver] -= grain
            found[max(mine, key=lambda name: parts[name])] += grain
    return found


def _maker_of(setting: Setting, pool: str, makers: Iterable[str]) -> str | None:
    """Return which of these names is that of a pool's maker."""
    return next((name for name in makers if is_maker(setting.formation.pool(pool), name)), None)


def _rebalance(setting: Setting, plan: Plan, goal: Goal) -> Plan:
    """Move micro-batches from the pool that finishes last to the one that finishes first while that helps."""
    groups = _by_pool(plan)
    totals = {name: sum(entry.count * entry.micro_batches for entry in entries) for name, entries in groups.items()}
    sizes = {name: entries[0].micro_batch_size for name, entries in groups.items()}
    grain = math.lcm(*sizes.values())
    current, found = plan, cost(plan, setting)
    for _ in range(64):
        times = _times(found)
        slow, fast = max(times, key=lambda one: times[one]), min(times, key=lambda one: times[one])
        moved = dict(totals)
        moved[slow] -= grain // sizes[slow]
        moved[fast] += grain // sizes[fast]
        if moved[slow] < sum(entry.count for entry in groups[slow]) or slow == fast:
            break
        trial = plan.model_copy(update={"pipelines": _entries(groups, moved)})
        trial_cost = cost(trial, setting)
        if not trial_cost.step < found.step or (goal.refusal(trial, trial_cost) and not goal.refusal(current, found)):
            break
        current, found, totals = trial, trial_cost, moved
    return current


def _times(found: PlanCost) -> dict[str, float]:
    return {group.stages[0].stage.pool: group.step for group in found.groups}


def _by_pool(plan: Plan) -> dict[str, list[Pipeline]]:
    groups: dict[str, list[Pipeline]] = {}
    for entry in plan.pipelines:
        groups.setdefault(entry.stages[0].pool, []).append(entry)
    return groups


def _entries(groups: dict[str, list[Pipeline]], totals: dict[str, int]) -> tuple[Pipeline, ...]:
    entries = []
    for name, members in groups.items():
        replicas = sum(entry.count for entry in members)
        few, more = divmod(totals[name], replicas)
        for count, times in ((more, few + 1), (replicas - more, few)):
            if count and times:
                entries.append(members[0].model_copy(update={"count": count, "micro_batches": times}))
    return tuple(entries)
