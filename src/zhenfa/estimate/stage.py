"""One stage of a plan: its building blocks, what they cost, and what they make a card hold together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zhenfa.estimate import offload, traffic
from zhenfa.estimate.costs import SUMMED, StageCost
from zhenfa.estimate.holding import Holding, buffered
from zhenfa.estimate.reduction import Exchange, Rounds, exchanges
from zhenfa.estimate.setting import RECOMPUTE, Cut, Setting, Unit, Units
from zhenfa.laws import compute
from zhenfa.laws.arrays import Array
from zhenfa.laws.overlap import exposed_time
from zhenfa.spec.plan import Plan, Stage

OPTIMIZER_BYTES = 30.0
"""Bytes read and written per parameter by mixed-precision AdamW: gradient 4, master, m and v 12 read and 12 written,
weight 2 written."""

OPTIMIZER_BYTES_FP32 = 28.0
"""The same in fp32: gradient, weight, m and v read (16); weight, m and v written (12)."""

Key = tuple[object, ...]


def key_of(setting: Setting, stages: tuple[Stage, ...], index: int) -> Key:
    """Return what makes two stages of a group cost the same, but for what is in flight and the way to the next."""
    stage = stages[index]
    layers = setting.graph.layers[stage.first : stage.last]
    ends = (index == 0, index == len(stages) - 1)
    again = (stage.recompute, stage.recompute_layers, stage.recompute_modules, stage.offload_layers)
    return (stage.cut, again, layers, ends)


def units_of_stage(setting: Setting, stage: Stage, size: int, replicas: int, zero: int, mode: int) -> Units:
    """Return the building blocks of one stage in one recomputation mode."""
    return setting.units_of(
        Cut(
            stage.pool, size, stage.tensor_parallel, stage.expert_parallel, replicas, zero, mode,
            stage.context_parallel, stage.expert_tensor_parallel,
            stage.recompute_modules if RECOMPUTE[mode] == "selective" else (),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """The building blocks of a stage with how many of each, and what they make a card hold together."""

    stage: Stage
    blocks: list[tuple[Unit, int]]
    held: Holding
    working: float
    cached: float
    """Bytes of the other working sets: of layers where the head's is the largest, or the other way round."""

    @classmethod
    def of(
        cls, plan: Plan, setting: Setting, stages: tuple[Stage, ...], index: int, size: int, replicas: int
    ) -> Blocks:
        """Look up the blocks of one stage."""
        stage = stages[index]
        layers = setting.graph.layers[stage.first : stage.last]
        again = stage.recomputed_layers
        parts = [(layers[:again], RECOMPUTE.index(stage.recompute)), (layers[again:], 0)]
        blocks: list[tuple[Unit, int]] = []
        for part, mode in parts:
            if part:
                built = units_of_stage(setting, stage, size, replicas, plan.zero, mode)
                blocks += [(unit, part.count(kind)) for kind, unit in enumerate(built.kinds) if kind in part]
        if index == 0 or index == len(stages) - 1:
            ends = units_of_stage(setting, stage, size, replicas, plan.zero, 0)
            blocks += [(ends.stem, 1)] * (index == 0) + [(ends.head, 1)] * (index == len(stages) - 1)
        names = Holding.__dataclass_fields__
        sums = (sum(float(getattr(unit.holding, name)) * count for unit, count in blocks) for name in names)
        last = blocks[-1:] if index == len(stages) - 1 else []
        layers_and_head = (blocks[: -len(last) or None], last)
        sets = [max((float(unit.working) for unit, _ in part), default=0.0) for part in layers_and_head]
        return cls(stage, blocks, Holding(*sums), max(sets), min(sets))

    def sum(self, part: Callable[[Unit], Array]) -> float:
        """Return the sum of one part over the blocks."""
        return float(sum(float(part(unit)) * count for unit, count in self.blocks))


def exchanged(
    plan: Plan, setting: Setting, alike: dict[Key, Blocks], replicas: int, owners: int
) -> dict[Key, list[Exchange]]:
    """Return what the replicas of every distinct stage exchange: as a whole and, where that is done with every
    micro-batch, block by block. Stages cut alike are computed as one array."""
    rounds = Rounds.of(plan)
    cuts: dict[tuple[object, ...], list[Key]] = {}
    for key, blocks in alike.items():
        cuts.setdefault(blocks.stage.cut, []).append(key)
    found: dict[Key, list[Exchange]] = {}
    for keys in cuts.values():
        rows = [[alike[key].held] for key in keys]
        if rounds.gathers or rounds.every_reduce:
            rows = [
                [*row, *(unit.holding for unit, _ in alike[key].blocks)] for row, key in zip(rows, keys, strict=True)
            ]
        held = [one for row in rows for one in row]
        each = iter(exchanges(plan, setting, alike[keys[0]].stage, held, replicas, owners))
        found.update({key: [next(each) for _ in row] for key, row in zip(keys, rows, strict=True)})
    return found


def stage_cost(plan: Plan, setting: Setting, blocks: Blocks, exchanged_: list[Exchange], replicas: int) -> StageCost:
    """Return what a stage costs, wherever it stands in the pipeline."""
    held, stage, once = blocks.held, blocks.stage, exchanged_[0]
    ahead, behind, reduce, gather = _beside_passes(plan, setting, blocks, once, exchanged_[1:])
    cost = _parts(blocks)
    forward, backward = cost["forward"] + ahead, cost["backward"] + behind
    seconds, bytes_ = offload.activations(plan, stage, setting, float(held.activation), forward, backward)
    forward, backward, waited = forward + seconds[0], backward + seconds[1], ahead + behind + sum(seconds)
    memory = {
        "weights": float(held.weights),
        "gradients": float(held.gradients),
        "optimizer": float(held.optimizer),
        "activations": blocks.working,
    }
    waiting = float(buffered(held, plan.precision, replace(setting.sharding, zero=plan.zero), setting.traits))
    if waiting:
        memory["buffers"] = waiting
    return StageCost(
        stage=stage, forward=forward, backward=backward, weight=cost["weight"], arithmetic=cost["arithmetic"],
        recomputed=cost["recomputed"], tensor=cost["tensor"], expert=cost["expert"], context=cost["context"],
        waited=waited + cost["host"], ideal=cost["ideal"], transfer=0.0, crosses=False, reduce=reduce, gather=gather,
        across=once.across, optimizer=_optimizer(plan, setting, stage, held, replicas), memory=memory,
        capacity=setting.chips[stage.pool].usable, activation=bytes_, working=blocks.working, cached=blocks.cached,
    )  # fmt: skip


def _parts(blocks: Blocks) -> dict[str, float]:
    """Return the seconds of a stage's micro-batch by part; ``host`` is what the card waits for the host."""
    parts: dict[str, Callable[[Unit], Array]] = {
        "forward": lambda unit: unit.forward,
        "backward": lambda unit: unit.backward,
        "weight": lambda unit: unit.cost.weight,
        "arithmetic": lambda unit: unit.cost.forward + unit.cost.backward,
        "recomputed": lambda unit: unit.recomputed,
        "tensor": lambda unit: unit.cost.tensor_forward + unit.cost.tensor_backward,
        "expert": lambda unit: unit.cost.expert_forward + unit.cost.expert_backward,
        "context": lambda unit: unit.cost.context_forward + unit.cost.context_backward,
        "ideal": lambda unit: unit.cost.ideal,
    }
    found = {name: blocks.sum(part) for name, part in parts.items()}
    known = sum(found[name] for name in ("arithmetic", "recomputed", "tensor", "expert", "context"))
    found["host"] = max(found["forward"] + found["backward"] - known, 0.0)
    return found


def _beside_passes(
    plan: Plan, setting: Setting, blocks: Blocks, once: Exchange, each: list[Exchange]
) -> tuple[float, float, float, float]:
    """Return what gathers add to a forward and, with reductions, to a backward pass, and the seconds a step to reduce
    and to gather that are left for its end and its start.

    Gathered with every micro-batch, a layer's weights come beside the layer before; the first ones once a step beside
    nothing. Reduced with every micro-batch, gradients leave beside the layer behind, the last ones beside nothing.
    """
    rounds = Rounds.of(plan)
    if not rounds.gathers and not rounds.every_reduce:
        return 0.0, 0.0, once.reduce, once.gather
    traits = setting.traits
    ahead = behind = 0.0
    for (unit, count), one in zip(blocks.blocks, each, strict=True):
        out = one.gather if rounds.gathers else 0.0
        home = one.gather if rounds.gathers == 2 else 0.0
        sent = one.reduce if rounds.every_reduce else 0.0
        beside = {"share": traits.gather_overlap, "contention": traits.contention}
        ahead += count * float(exposed_time(out, unit.forward, **beside))
        shares = np.array([traits.gather_overlap * home + traits.gradient_overlap * sent, home + sent])
        share = float(shares[0] / shares[1]) if shares[1] else 1.0
        behind += count * float(exposed_time(home + sent, unit.backward, share=share, contention=traits.contention))
    pieces = max(blocks.stage.layers, 1)
    reduce = once.reduce / pieces if rounds.every_reduce else once.reduce
    gather = once.gather / pieces if rounds.gathers else once.gather
    return ahead, behind, reduce, gather


def _optimizer(plan: Plan, setting: Setting, stage: Stage, held: Holding, replicas: int) -> float:
    peers = [replicas * stage.context_parallel, traffic.expert_peers(stage, replicas)]
    if plan.shard_group:
        peers = [min(one, plan.shard_group) for one in peers]
    over = peers if plan.zero else [1, 1]
    elements = float(held.trained) / over[0] + float(held.trained_routed) / over[1]
    if setting.sharding.offload:
        return offload.update(elements, setting.traits)
    chip = setting.chips[stage.pool]
    counted = OPTIMIZER_BYTES_FP32 if plan.precision in {"fp32", "tf32"} else OPTIMIZER_BYTES
    moved = setting.traits.optimizer_bytes_moved or counted
    return float(
        compute.optimizer_time(
            elements, bytes_per_parameter=moved, bandwidth=chip.bandwidth, memory_share=chip.memory_share
        )
    )


def together(stages: Sequence[StageCost], memory: dict[str, float], share: float = 1.0) -> StageCost:
    """Return what one place holds as one cost; ``share`` of the micro-batches goes through each of its stages."""
    step = {"reduce", "gather", "across", "optimizer"}
    sums: dict[str, Any] = {
        name: sum(getattr(stage, name) for stage in stages) * (1.0 if name in step else share) for name in SUMMED
    }
    return replace(stages[0], **sums, memory=memory)
