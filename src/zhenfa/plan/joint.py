"""Data parallel over several pools: each runs whole replicas of its own layout, and the batch is shared out so that
all finish together; the gradient sum between pools is added.

One plan has one ZeRO stage. For each that a pool alone likes best, and with which the pools' own layouts are together
about as fast as with any (:data:`NEARLY`), the shares follow the speeds, and each pool's layout is the best for its
share. Balancing then finds the shares at which the last pool finishes as early as can be, each pool's time taken as its
schedule (1F1B, as one plan has one for all) with so many micro-batches and what follows it; and single micro-batches
are moved while the exact step gets shorter. Nothing proves that no other choice of layouts is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from zhenfa.estimate.costs import GroupCost, schedule_time
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan.build import in_precisions
from zhenfa.plan.goal import Goal
from zhenfa.plan.search import NO_MEMORY, Best, Found, Tally, search_pool
from zhenfa.plan.space import NO_BANDWIDTH, zero_stages
from zhenfa.plan.supply import is_maker
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan

LARGEST_GRAIN: Final = 16
"""Sequences are shared out in multiples of this, so that every pool can choose its micro-batch size."""

NEARLY: Final = 1.03
"""How many times the shortest step of the pools' own layouts together another ZeRO stage may take to be looked into."""

MOVED_AT_MOST: Final = 64
"""Single micro-batches that are moved from pool to pool."""


def replicas_over_pools(
    setting: Setting, job: str, alone: Mapping[str, Found], sequences: int, limits: Limits, best: Best, tally: Tally
) -> None:
    """Offer data parallel over all pools that can hold the model; ``alone`` holds the best plan of each."""
    if len(alone) < 2:
        return
    setting = replace(setting, traits=setting.traits.but(schedules=("1f1b",)), _plans={})
    least = min(zero_stages(setting))
    known: dict[int, dict[str, Plan]] = {}
    speeds: dict[int, dict[str, float]] = {}
    for zero in sorted({max(found.plan.zero, least) for found in alone.values()}):
        plans = {name: _at_zero(setting, job, found, sequences, limits, zero) for name, found in alone.items()}
        known[zero] = {name: plan for name, plan in plans.items() if plan is not None}
        speeds[zero] = {name: sequences / cost(plan, setting).step for name, plan in known[zero].items()}
    most = max(sum(each.values()) for each in speeds.values())
    for zero, each in speeds.items():
        if len(each) > 1 and NEARLY * sum(each.values()) >= most:
            parts = {
                name: part for name, part in least_kept(setting, shares(each, sequences), best.goal).items() if part
            }
            found = {
                name: _quickest(setting, job, name, part, limits, zero, known[zero][name])
                for name, part in parts.items()
            }
            held = {name: one.plan for name, one in found.items() if one is not None}
            if 1 < len(held) == len(parts):
                _offer(setting, _together(setting, held, zero, best.goal), limits, best, tally)


def _offer(setting: Setting, joint: Plan, limits: Limits, best: Best, tally: Tally) -> None:
    """Offer a plan if it can run."""
    if joint.cards > (limits.max_cards or joint.cards):
        return
    tally.considered += 1
    found = cost(joint, setting)
    if found.problem:
        tally.rejected[NO_BANDWIDTH if "bandwidth" in found.problem else NO_MEMORY] += 1
        return
    refusal = best.offer(joint, found)
    tally.rejected[refusal] += bool(refusal)
    tally.costed += not refusal


def _at_zero(setting: Setting, job: str, found: Found, sequences: int, limits: Limits, zero: int) -> Plan | None:
    """Return a pool's plan with a ZeRO stage: its own, where that can run so, or else the quickest that can."""
    same = found.plan.model_copy(update={"zero": zero})
    usual = (found.plan.schedule, found.plan.offload) == ("1f1b", "none")
    sensible = (
        found.plan.zero == zero or found.plan.replicas == 1 or zero < 2 or len(found.plan.pipelines[0].stages) == 1
    )
    if usual and sensible and not cost(same, setting).problem:
        return same
    other = _quickest(setting, job, found.plan.pipelines[0].stages[0].pool, sequences, limits, zero, None)
    return None if other is None else other.plan


def _together(setting: Setting, plans: Mapping[str, Plan], zero: int, goal: Goal) -> Plan:
    """Return one plan with all these pools' layouts, the batch shared out so that all finish together."""
    joint = _join(list(plans.values()), zero)
    if not goal.limits.least_share:
        joint = min((joint, _balanced(setting, joint)), key=lambda one: cost(one, setting).step)
    return _rebalance(setting, joint, goal)


def _balanced(setting: Setting, plan: Plan) -> Plan:
    """Share out the micro-batches anew so that the last pool finishes as early as can be."""
    groups = _by_pool(plan)
    costs = {group.stages[0].stage.pool: group for group in cost(plan, setting).groups}
    replicas = {name: sum(entry.count for entry in entries) for name, entries in groups.items()}
    sizes = {name: entries[0].micro_batch_size for name, entries in groups.items()}
    grain = math.lcm(*sizes.values())
    whole = plan.global_batch // grain
    if plan.global_batch % grain:
        return plan

    def most(step: float) -> dict[str, int]:
        return {name: _most(group, step) * replicas[name] * sizes[name] // grain for name, group in costs.items()}

    low, high = 0.0, 2 * max(group.step for group in costs.values())
    while sum(most(high).values()) < whole:
        high *= 2
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(most(middle).values()) >= whole else (middle, high)
    parts = most(high)
    while (spare := sum(parts.values()) - whole) > 0:  # one more micro-batch on each replica comes at once
        name = max(parts, key=lambda one: parts[one] - replicas[one] * sizes[one] // grain)
        parts[name] -= min(spare, max(1, parts[name] - max(1, replicas[name] * sizes[name] // grain)))
    totals = {name: part * grain // sizes[name] for name, part in parts.items()}
    if any(totals[name] < replicas[name] for name in totals):
        return plan
    return plan.model_copy(update={"pipelines": _entries(groups, totals)})


def _most(group: GroupCost, step: float) -> int:
    """Return the micro-batches that a replica can do in a step."""

    def time(times: int) -> float:
        return schedule_time(replace(group, micro_batches=times)) + group.tail

    if time(1) > step:
        return 0
    low, high = 1, 2
    while time(high) <= step:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if time(middle) <= step else (low, middle)
    return low


def _quickest(
    setting: Setting, job: str, pool: str, sequences: int, limits: Limits, zero: int, known: Plan | None
) -> Found | None:
    """Return the quickest plan of one pool for so many sequences; what is ``known`` of it cuts the search short."""
    best = Best(1)
    if known is not None:
        size, groups = known.pipelines[0].micro_batch_size, _by_pool(known)
        if sequences % size == 0 and sequences // size >= known.replicas:
            seed = known.model_copy(update={"pipelines": _entries(groups, {pool: sequences // size})})
            found = cost(seed, setting)
            if not found.problem:
                best.offer(seed, found)
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
    ways = {pool: one for plan in plans for pool, one in plan.precision_by_pool().items()}
    precision, entries = in_precisions(tuple(entry for plan in plans for entry in plan.pipelines), ways)
    return plans[0].model_copy(update={"pipelines": entries, "zero": zero, "precision": precision})


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
    for _ in range(MOVED_AT_MOST):
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


def replicas_of(plan: Plan, micro_batches: int) -> tuple[Pipeline, ...]:
    """Return the replicas of a plan on one pool with so many micro-batches shared out over them."""
    groups = _by_pool(plan)
    return _entries(groups, dict.fromkeys(groups, micro_batches))


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
