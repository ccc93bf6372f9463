"""From seconds and bytes to what a user reads: figures, four walls, stages, assumptions, sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zhenfa import cite, units
from zhenfa.estimate import bands
from zhenfa.estimate.energy_wall import energy_wall
from zhenfa.estimate.operating import operating
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.survival import Survival, survival
from zhenfa.estimate.training import GroupCost, PlanCost, groups_of, offloaded_bytes
from zhenfa.estimate.walls import time_walls
from zhenfa.laws import price
from zhenfa.spec.fact import Tag, weakest
from zhenfa.spec.graph import LayerKind
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Estimate, Figure, Figures, StageFigures

MFU_NOTE: Final = "model FLOPs with causal attention, no recomputation, over the matmul peak of the cards that work"


def report(plan: Plan, setting: Setting, cost: PlanCost, sources: Sequence[str] = ()) -> Estimate:
    """Return the estimate of a plan whose cost is known."""
    setting = setting.computing_as(plan)
    tag = _tag(plan, setting)
    survived = survival(plan, setting)
    parts = step_parts(cost.worst)
    energy = energy_wall(plan, setting, cost, parts, survived)
    walls = time_walls(plan, setting, cost, parts, survived, energy.detail)
    figures = _figures(plan, setting, cost, survived, energy.figure, tag)
    return Estimate(
        plan=plan,
        figures=figures,
        walls=walls,
        operating=operating(plan, setting, survived, energy, figures.mfu),
        parts_s=parts,
        stages=_stages(plan, cost),
        assumptions=tuple(
            dict.fromkeys((*setting.assumptions, *_host(plan, setting), *survived.assumptions, *energy.assumptions))
        ),
        sources=tuple(cite.text(key) for key in sources),
    )


def _host(plan: Plan, setting: Setting) -> tuple[str, ...]:
    """Say how much host memory a plan takes for granted."""
    if plan.offload == "none":
        return ()
    most = units.show(offloaded_bytes(plan, setting), "data")
    return (f"{most} of host memory for each card are there, at the rate of a usual host (no machine states either)",)


def _tag(plan: Plan, setting: Setting) -> Tag:
    """Return the weakest tag of the cards that work and of every link that joins them."""
    tags: list[Tag] = ["fitted"]
    cards = plan.cards_by_pool()
    for name, count in cards.items():
        tags.append(setting.chips[name].tag)
        for tier in setting.formation.pool(name).tiers:
            tags.append(tier.bandwidth.tag)
            if tier.size >= count:
                break
    if len(cards) > 1 and setting.formation.network is not None:
        tags.append(setting.formation.network.bandwidth.tag)
    return weakest(*tags)


def step_parts(group: GroupCost) -> dict[str, float]:
    """Split a step along its busiest stage: the parts sum to the step time."""
    stage = max(group.places, key=lambda one: one.busy)
    times = group.micro_batches
    return {
        "arithmetic at peak": times * stage.ideal,
        "below peak": times * (stage.arithmetic - stage.ideal),
        "recomputation": times * stage.recomputed,
        "bubble": group.without_transfers - times * stage.busy,
        "waiting": times * stage.waited + group.tail_parts["host"],
        "optimizer": group.tail_parts["optimizer"],
        "tensor": times * stage.tensor,
        "expert": times * stage.expert,
        "context": times * stage.context,
        "pipeline": group.without_bridges - group.without_transfers,
        "bridge": group.pipeline - group.without_bridges + group.tail_parts["bridge"],
        "data": group.tail_parts["data"],
    }


def model_flops(plan: Plan, setting: Setting, cost: PlanCost) -> float:
    """Return the model FLOPs of one step: forward and backward, causal attention, no recomputation."""
    setting = setting.computing_as(plan)
    work = 0.0
    for group, entries in zip(cost.groups, groups_of(plan).values(), strict=True):
        for stage in group.stages:
            peak = setting.chips[stage.stage.pool].peak * stage.stage.cards
            work += stage.ideal * peak * sum(entry.count * entry.micro_batches for entry in entries)
    return work


def work_by_pool(plan: Plan, setting: Setting, cost: PlanCost) -> dict[str, float]:
    """Return the share of a step's model FLOPs that the cards of each pool do."""
    setting = setting.computing_as(plan)
    done: dict[str, float] = {}
    for group, entries in zip(cost.groups, groups_of(plan).values(), strict=True):
        times = sum(entry.count * entry.micro_batches for entry in entries)
        for stage in group.stages:
            work = stage.ideal * setting.chips[stage.stage.pool].peak * stage.stage.cards * times
            done[stage.stage.pool] = done.get(stage.stage.pool, 0.0) + work
    whole = sum(done.values())
    return {pool: work / whole for pool, work in done.items()}


def speed_of_light(plan: Plan, setting: Setting) -> float:
    """Return the sum of the matmul peaks of the cards that work, each in its own precision, in FLOP/s."""
    setting = setting.computing_as(plan)
    return sum(setting.chips[pool].peak * count for pool, count in plan.cards_by_pool().items())


def _figures(plan: Plan, setting: Setting, cost: PlanCost, survived: Survival, energy: Figure, tag: Tag) -> Figures:
    rate = plan.global_batch * plan.sequence_length / cost.step
    utilisation = model_flops(plan, setting, cost) / (speed_of_light(plan, setting) * cost.step)
    note = "emulated cards" if setting.formation.emulated else None
    figures = Figures(
        step_time_s=Figure(value=cost.step, unit="s", tag=tag, note=note),
        tokens_per_s=Figure(value=rate, unit="tokens/s", tag=tag, note=note),
        tokens_per_s_per_card=Figure(value=rate / plan.cards, unit="tokens/s", tag=tag, note=note),
        mfu=Figure(value=utilisation, tag=tag, note=f"{MFU_NOTE} ({precisions(plan)})"),
        memory_bytes_per_card=Figure(value=cost.fullest.bytes, unit="B", tag="derived", note="the fullest card"),
        energy_j_per_token=energy,
        ettr=Figure(value=survived.ettr, tag="assumed", note=survived.note),
        cost=_money(plan, setting, cost, survived),
    )
    if setting.formation.emulated:  # whose timing is declared, not estimated
        return figures
    figures = figures.model_copy(
        update={"ettr": figures.ettr.model_copy(update={"p10": survived.p10, "p90": survived.p90})}
    )
    cards = [setting.formation.pool(pool).accelerator for pool in plan.cards_by_pool()]
    return bands.training(figures, cards, mixture=any(_mixes(kind) for kind in setting.graph.kinds))


def _mixes(kind: LayerKind) -> bool:
    return any(operator.kind == "grouped_matmul" for operator in kind.operators)


def _money(plan: Plan, setting: Setting, cost: PlanCost, survived: Survival) -> Figure:
    tokens = setting.workload.tokens
    if tokens is None:
        return Figure(unit="CNY", note="the workload names no number of tokens")
    for pool in plan.cards_by_pool():
        if not setting.formation.pool(pool).accelerator.price.known:
            return Figure(unit="CNY", note=f'{pool}: no price per card; supply --assume {pool}.price="18 CNY/h"')
    steps = tokens / (plan.global_batch * plan.sequence_length)
    seconds = steps * cost.step / survived.ettr
    value = sum(
        float(price.run_cost(count, seconds, price=card_price(setting, pool)))
        for pool, count in plan.cards_by_pool().items()
    )
    return Figure(value=value, unit="CNY", tag="assumed", note="whole run")


def card_price(setting: Setting, pool: str) -> float:
    """Return the price of one card of a pool in CNY/s. Raises :class:`MissingFactError` where nobody has given one."""
    return setting.formation.pool(pool).accelerator.price.require(f"{pool}.price")


def precisions(plan: Plan) -> str:
    """Return in what precision a plan computes, such as ``bf16``; where pools differ, which does what."""
    found = plan.precision_by_pool()
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{one} on {pool}" for pool, one in found.items())


def _stages(plan: Plan, cost: PlanCost) -> tuple[StageFigures, ...]:
    return tuple(
        StageFigures(
            pipeline=number, stage=index, pool=stage.stage.pool, layers=(stage.stage.first, stage.stage.last),
            forward_s=stage.forward, backward_s=stage.backward, transfer_s=stage.transfer, memory_bytes=stage.bytes,
            memory_parts=stage.memory, capacity_bytes=stage.capacity,
            precision=stage.stage.precision or plan.precision,
        )
        for number, group in enumerate(cost.groups)
        for index, stage in enumerate(group.stages)
    )  # fmt: skip


def summary(plan: Plan) -> str:
    """Return a plan's layout in one line, such as ``TP8 PP16 DP80 EP64 ZeRO-1``."""
    tensor = {stage.tensor_parallel for pipe in plan.pipelines for stage in pipe.stages}
    expert = {stage.expert_parallel for pipe in plan.pipelines for stage in pipe.stages}
    context = {stage.context_parallel for pipe in plan.pipelines for stage in pipe.stages}
    depth = {pipe.places for pipe in plan.pipelines}
    data = {plan.replicas * stage.data_parallel for pipe in plan.pipelines for stage in pipe.stages}
    virtual = {pipe.virtual_stages for pipe in plan.pipelines}
    words = [f"TP{_range(tensor)}", f"PP{_range(depth)}", f"DP{_range(data)}"]
    if max(context) > 1:
        words.append(f"CP{_range(context)}")
    if max(virtual) > 1:
        words.append(f"VP{_range(virtual)}")
    if max(expert) > 1:
        words.append(f"EP{_range(expert)}")
    pieces = {stage.expert_tensor_parallel for pipe in plan.pipelines for stage in pipe.stages}
    if max(pieces) > 1:
        words.append(f"ETP{_range(pieces)}")
    if plan.zero:
        words.append(f"ZeRO-{plan.zero}")
    if plan.offload != "none":
        words.append("offload")
    if plan.sequence_parallel is False and max(tensor) > 1:
        words.append("no SP")
    return " ".join(words)


def batches(plan: Plan) -> str:
    """Return the micro-batches of the busiest replica and their size, such as ``192 x 1``."""
    entry = max(plan.pipelines, key=lambda one: one.micro_batches)
    return f"{entry.micro_batches} x {entry.micro_batch_size}"


def _range(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)}-{max(values)}"


def show_bytes(value: float) -> str:
    """Return bytes for people."""
    return units.show(value, "data")
