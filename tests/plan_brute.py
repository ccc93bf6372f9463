"""Every layout of a small job on a small machine, every split of its layers, all costed: the truth for the planner."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from plan_pools import plan_of
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost
from zhenfa.spec.plan import Offload, Pipeline, Plan, Schedule, Stage

MODES = ("none", "selective", "full")

Cut = tuple[str, int, int, str, int, int, int]
"""Pool, tensor and expert degree, recomputation, context degree, cards that split one expert, and groups of cards that
share out a replica's micro-batch."""


@dataclass(frozen=True)
class Layout:
    """Cuts of the stages, replicas, micro-batch size, micro-batches of all replicas, ZeRO stage."""

    cuts: tuple[Cut, ...]
    replicas: int
    size: int
    total: int
    zero: int
    schedule: Schedule = "1f1b"
    virtual: int = 1
    offload: Offload = "none"
    again: int | None = None
    sequence_parallel: bool | None = None


@dataclass
class Truth:
    """The shortest step over all layouts and all splits, and its plan."""

    step: float = math.inf
    costed: int = 0
    layouts: int = 0
    plan: Plan | None = None


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _sizes(setting: Setting) -> list[int]:
    return [size for size in (1, 2, 4, 8, 16) if setting.workload.global_batch % size == 0]


def _tensor(setting: Setting, pool: str) -> list[int]:
    heads = [one.heads for kind in setting.graph.kinds for one in kind.operators if one.kind == "attention"]
    card_pool = setting.formation.pool(pool)
    node = card_pool.tiers[0].size
    degrees = _divisors(math.gcd(*heads))
    return [one for one in degrees if one <= card_pool.count and (node % one == 0 or one % node == 0)]


def _experts(setting: Setting) -> list[int]:
    counts = [one.experts for kind in setting.graph.kinds for one in kind.operators if one.kind == "grouped_matmul"]
    return _divisors(math.gcd(*counts)) if counts else [1]


def _contexts(setting: Setting) -> list[int]:
    length = setting.workload.sequence_length
    return [1, *(one for one in (2, 4, 8, 16, 32, 64) if length % (2 * one) == 0 and length // (2 * one) >= 256)]


def single_pool(setting: Setting, pool: str) -> Iterator[Layout]:
    """Yield every layout of one pool: no replica count, no ZeRO stage of the engine is left out."""
    cards = setting.formation.pool(pool).count
    for tensor, context, depth, size in itertools.product(
        _tensor(setting, pool), _contexts(setting), range(1, len(setting.graph.layers) + 1), _sizes(setting)
    ):
        total = setting.workload.global_batch // size
        for replicas, expert, pieces in itertools.product(
            range(1, min(cards // (tensor * context * depth), total) + 1),
            _experts(setting),
            sorted({1, tensor if len(_experts(setting)) > 1 else 1}),
        ):
            if replicas * tensor * context % (expert * pieces) == 0:
                for zero, mode, offload, whole in itertools.product(
                    setting.traits.zero_stages, MODES, setting.traits.offloads, _sequence(setting, tensor)
                ):
                    cut = (pool, tensor, expert, mode, context, pieces, 1)
                    for again in some_layers(setting, mode, depth):
                        plain = Layout(
                            (cut,) * depth, replicas, size, total, zero, offload=offload, again=again,
                            sequence_parallel=whole,
                        )  # fmt: skip
                        yield from [plain] if "1f1b" in setting.traits.schedules or depth == 1 else []
                        yield from other_schedules(setting, plain)


def _sequence(setting: Setting, tensor: int) -> tuple[bool | None, ...]:
    """Return whether norms may be whole on every tensor-parallel card: as is usual, or not split."""
    return (None, False) if tensor > 1 and len(_experts(setting)) == 1 and setting.traits.whole_sequence else (None,)


def some_layers(setting: Setting, mode: str, depth: int) -> list[int | None]:
    """Return every number of layers of a stage that may be computed again while others are not (None: all are)."""
    most = len(setting.graph.layers) - depth + 1
    return [None, *(range(1, most) if mode == "full" and setting.traits.some_layers else [])]


def other_schedules(setting: Setting, plain: Layout) -> Iterator[Layout]:
    """Yield the same layout under every schedule that can run it."""
    places, layers = len(plain.cuts), len(setting.graph.layers)
    times = -(-plain.total // plain.replicas)
    if places < 2:
        return
    for schedule in setting.traits.schedules:
        for virtual in {"interleaved": range(2, 17), "zero-bubble-v": (2,)}.get(schedule, (1,)):
            if places * virtual > layers or schedule == "1f1b":
                continue
            if schedule == "interleaved" and times % places:
                continue
            if schedule == "dualpipe" and (places % 2 or times % 2 or times < 2 * places):
                continue
            yield replace(plain, schedule=schedule, virtual=virtual)


def even_split(layers: int, places: int, turns: int) -> list[tuple[int, int]]:
    """Return stages as even as can be: longer ones in the first turns, on inner places before the outer ones."""
    sizes, left = [layers // (places * turns)] * (places * turns), layers % (places * turns)
    for turn in range(turns):
        for place in [*range(1, places - 1), *sorted({0, places - 1})]:
            if left:
                sizes[turn * places + place] += 1
                left -= 1
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def mixed_pipelines(setting: Setting) -> Iterator[Layout]:
    """Yield every pipeline over two or more pools: every order, every number of stages, idle cards allowed."""
    names = [pool.name for pool in setting.formation.pools]
    for count in range(2, len(names) + 1):
        for order, size, context in itertools.product(
            itertools.permutations(names, count), _sizes(setting), _contexts(setting)
        ):
            shares = [one for one in (1, 2, 4) if size % one == 0]
            cuts = [
                list(itertools.product([one], _tensor(setting, one), _experts(setting), MODES, [context], [1], shares))
                for one in order
            ]
            for chosen in itertools.product(*cuts):
                if min(groups for *_, groups in chosen) == 1:  # else more replicas with smaller micro-batches
                    yield from _depths(setting, chosen, size)


def _depths(setting: Setting, chosen: tuple[Cut, ...], size: int) -> Iterator[Layout]:
    total = setting.workload.global_batch // size
    cards = [setting.formation.pool(name).count for name, *_ in chosen]
    widths = [tensor * context * groups for _, tensor, _, _, context, _, groups in chosen]
    for replicas in range(1, total + 1):
        most = [count // (width * replicas) for count, width in zip(cards, widths, strict=True)]
        if any(replicas * width % cut[2] for cut, width in zip(chosen, widths, strict=True)):
            continue
        for depth in itertools.product(*(range(1, one + 1) for one in most)):
            if sum(depth) <= len(setting.graph.layers):
                stages = tuple(cut for cut, times in zip(chosen, depth, strict=True) for _ in range(times))
                for zero, offload in itertools.product(setting.traits.zero_stages, setting.traits.offloads):
                    yield Layout(stages, replicas, size, total, zero, offload=offload)


def splits(layers: int, stages: int) -> Iterator[list[tuple[int, int]]]:
    """Yield every way to give each stage one or more consecutive layers."""
    for inner in itertools.combinations(range(1, layers), stages - 1):
        yield list(itertools.pairwise([0, *inner, layers]))


def to_plan(setting: Setting, layout: Layout, ranges: list[tuple[int, int]]) -> Plan:
    """Return the plan of a layout and a split."""
    stages = tuple(
        Stage(
            pool=pool,
            first=first,
            last=last,
            tensor_parallel=tensor,
            context_parallel=context,
            data_parallel=groups,
            expert_parallel=expert,
            expert_tensor_parallel=pieces,
            recompute=mode,
            recompute_layers=layout.again,
            recompute_modules=setting.planned_again(pool) if mode == "selective" else (),
        )
        for (pool, tensor, expert, mode, context, pieces, groups), (first, last) in zip(
            itertools.cycle(layout.cuts), ranges, strict=False
        )
    )
    few, more = divmod(layout.total, layout.replicas)
    shares = [(more, few + 1), (layout.replicas - more, few)]
    entries = [
        Pipeline(
            count=count, micro_batches=times, micro_batch_size=layout.size, virtual_stages=layout.virtual, stages=stages
        )
        for count, times in shares
        if count and times
    ]
    said = {"offload": layout.offload, "sequence_parallel": layout.sequence_parallel}
    return plan_of(setting, entries, layout.zero, layout.schedule).model_copy(update=said)


def truth(setting: Setting) -> Truth:
    """Cost every split of every layout."""
    found = Truth()
    pools = [single_pool(setting, pool.name) for pool in setting.formation.pools]
    for layout in itertools.chain(*pools, mixed_pipelines(setting)):
        found.layouts += 1
        layers, places = len(setting.graph.layers), len(layout.cuts)
        even = layout.schedule != "1f1b"
        for ranges in [even_split(layers, places, layout.virtual)] if even else splits(layers, places):
            plan = to_plan(setting, layout, ranges)
            outcome = cost(plan, setting)
            found.costed += 1
            if not outcome.problem and outcome.step < found.step:
                found.step, found.plan = outcome.step, plan
    return found


def over_replicas(setting: Setting) -> Truth:
    """Cost every way to share the batch between two pools that each run whole replicas of one layout of their own."""
    found = Truth()
    first, second = (pool.name for pool in setting.formation.pools)
    batch = setting.workload.global_batch
    for share in range(1, batch):
        mine, other = _alone(setting, first, share), _alone(setting, second, batch - share)
        for zero in sorted({plan.zero for _, plan in mine} & {plan.zero for _, plan in other}):
            pairs = [
                (max(one[0], two[0]), one[1], two[1])
                for one, two in itertools.product(mine, other)
                if one[1].zero == two[1].zero == zero and one[1].offload == two[1].offload
            ]
            for least, one, two in sorted(pairs, key=lambda pair: pair[0]):
                if least >= found.step:
                    break  # the sum of gradients between the pools only adds to it
                plan = one.model_copy(update={"pipelines": one.pipelines + two.pipelines})
                outcome = cost(plan, setting)
                found.costed += 1
                if not outcome.problem and outcome.step < found.step:
                    found.step, found.plan = outcome.step, plan
    return found


def _alone(setting: Setting, pool: str, batch: int) -> list[tuple[float, Plan]]:
    """Return the step and the plan of every layout and split of one pool that fits."""
    workload = setting.workload.model_copy(update={"global_batch": batch})
    smaller = replace(setting, workload=workload, _cards={}, _units={}, _costs={}, _plans={})
    plans = [
        to_plan(smaller, layout, ranges)
        for layout in single_pool(smaller, pool)
        if layout.schedule == "1f1b"  # one plan has one schedule
        for ranges in splits(len(setting.graph.layers), len(layout.cuts))
    ]
    costed = [(cost(plan, setting), plan) for plan in plans]
    return [(outcome.step, plan) for outcome, plan in costed if not outcome.problem]
