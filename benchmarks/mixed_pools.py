"""The planner on mixed pools against simpler policies: never worse, and by how much better.

Run ``python benchmarks/mixed_pools.py [POOLS] [--keep FILE]``. Each pool is drawn by seed from the catalog's systems
with disclosed facts: two or three kinds of cards, their numbers, the network between them, and a model. A line is
printed for each as it is done; with ``--keep``, what was found is added to a file and not looked for again when the
command is run once more. With ``--short``, what a pipeline over two makers gains where memory is short. The policies:

* *one maker*: the best plan on any one of the pools.
* *even*: one pipeline over all pools, all stages cut alike, as many layers on each; the best of all such cuts.
* *by speed*: the same, with layers in proportion to the peak of each stage's cards.
* *greedy*: each pool runs replicas of its own best 1F1B layout, sequences in proportion to the speed it has alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zhenfa import catalog
from zhenfa.errors import ZhenfaError
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import cost
from zhenfa.plan.joint import replicas_of, shares
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.search import Best, Found, Tally, search_pool
from zhenfa.plan.space import experts, micro_batch_sizes, tensor_degrees
from zhenfa.spec.job import Limits, Workload
from zhenfa.spec.machine import Machine, Network, Pool
from zhenfa.spec.plan import Pipeline, Plan, Stage

SYSTEMS = (
    ("nvidia-hgx-h20-8", 8), ("nvidia-hgx-h800-8", 8), ("nvidia-hgx-h100-8", 8), ("huawei-atlas800t-a2", 8),
    ("huawei-cloudmatrix384", 32), ("amd-mi300x-8", 8), ("intel-gaudi3-8", 8),
)  # fmt: skip
MODELS = ("llama3-8b", "llama3-70b", "qwen3-30b-a3b")
SHORT = (
    ("llama3-70b", ("nvidia-hgx-h800-8", 8), ("huawei-atlas800t-a2", 8)),
    ("llama3-405b", ("nvidia-hgx-h800-8", 32), ("huawei-atlas800t-a2", 32)),
    ("llama3-405b", ("nvidia-hgx-h20-8", 64), ("nvidia-hgx-h800-8", 16)),
    ("deepseek-v3", ("nvidia-hgx-h20-8", 64), ("huawei-atlas800t-a2", 64)),
)
"""Models on pools that hold them with the optimizer's state in host memory alone."""

POLICIES = ("one maker", "even", "by speed", "greedy")
MODES = ("none", "selective", "full")


def draw(seed: int) -> Setting:
    """Return a job on a mixed machine."""
    rng = random.Random(seed)  # noqa: S311
    known = [(name, grain) for name, grain in SYSTEMS if name in catalog.systems()]
    chosen = rng.sample(known, rng.choice([2, 2, 3]))
    pools = tuple(
        Pool(name=f"p{index}", system=name, count=grain * rng.choice([1, 2, 3, 4]))
        for index, (name, grain) in enumerate(chosen)
    )
    network = Network(bandwidth=rng.choice(["100 Gb/s", "200 Gb/s", "400 Gb/s"]), host_staged=rng.random() < 0.7)
    formation = catalog.resolve(Machine(name="drawn", pools=pools, network=network), {})
    models = [name for name in MODELS if name in catalog.models()]
    workload = Workload(sequence_length=4096, global_batch=rng.choice([128, 256, 512]))
    return look_up(catalog.model(rng.choice(models)).graph(), workload, formation)


def plan_of(setting: Setting, entries: Sequence[Pipeline], zero: int) -> Plan:
    return Plan(
        job="bench", model=setting.graph.name, machine=setting.formation.name,
        sequence_length=setting.workload.sequence_length, precision=setting.workload.precision, zero=zero,
        pipelines=tuple(entries),
    )  # fmt: skip


def alike(setting: Setting, *, by_speed: bool) -> Iterator[Plan]:
    """Yield pipelines over all pools whose stages are all cut alike."""
    formation, layers, batch = setting.formation, len(setting.graph.layers), setting.workload.global_batch
    names = [pool.name for pool in formation.pools]
    degrees = set.intersection(*(set(tensor_degrees(setting, name, Limits())) for name in names))
    for tensor, replicas, size in itertools.product(
        sorted(degrees), (1, 2, 4, 8, 16, 32), micro_batch_sizes(batch, Limits())
    ):
        depth = [pool.count // (tensor * replicas) for pool in formation.pools]
        if min(depth) < 1 or sum(depth) > layers or replicas * size > batch or batch % (replicas * size):
            continue
        speeds = [setting.chips[name].peak if by_speed else 1.0 for name in names]
        held = parts([speed for speed, many in zip(speeds, depth, strict=True) for _ in range(many)], layers)
        ends = list(itertools.accumulate(held))
        where = [name for name, many in zip(names, depth, strict=True) for _ in range(many)]
        expert = math.gcd(replicas * tensor, experts(setting))
        for mode in MODES:
            stages = tuple(
                Stage(
                    pool=name,
                    first=end - own,
                    last=end,
                    tensor_parallel=tensor,
                    expert_parallel=expert,
                    recompute=mode,
                    recompute_modules=setting.planned_again(name) if mode == "selective" else (),
                )
                for name, own, end in zip(where, held, ends, strict=True)
            )
            entry = Pipeline(
                count=replicas, micro_batches=batch // (replicas * size), micro_batch_size=size, stages=stages
            )
            yield plan_of(setting, [entry], 1)


def parts(weights: Sequence[float], whole: int) -> list[int]:
    """Split layers in proportion to weights, at least one each."""
    exact = [1 + (whole - len(weights)) * weight / sum(weights) for weight in weights]
    found = [int(value) for value in exact]
    for index in sorted(range(len(exact)), key=lambda one: found[one] - exact[one])[: whole - sum(found)]:
        found[index] += 1
    return found


def quickest(setting: Setting, plans: Iterator[Plan]) -> float:
    """Return the shortest step of those that can run."""
    costs = (cost(plan, setting) for plan in plans)
    return min((found.step for found in costs if not found.problem), default=math.inf)


def greedy(setting: Setting, alone: Mapping[str, Found]) -> float:
    """Return the step of replicas of each pool's own best layout."""
    if len(alone) < 2:
        return math.inf
    parts_of = shares({name: 1 / one.step for name, one in alone.items()}, setting.workload.global_batch)
    entries: list[Pipeline] = []
    for name, one in alone.items():
        size = one.plan.pipelines[0].micro_batch_size
        if parts_of[name] % size or parts_of[name] // size < one.plan.replicas:
            return math.inf
        entries += replicas_of(one.plan, parts_of[name] // size)
    return quickest(setting, iter([plan_of(setting, entries, max(one.plan.zero for one in alone.values()))]))


def best_alone(setting: Setting) -> dict[str, Found]:
    """Return the best plan of each pool alone, where it has one."""
    found: dict[str, Found] = {}
    for pool in setting.formation.pools:
        own = Best(1)
        search_pool(setting, "bench", pool.name, setting.workload.global_batch, Limits(), own, Tally())
        if own.ranked():
            found[pool.name] = own.ranked()[0]
    return found


def contest(setting: Setting) -> tuple[float, dict[str, float]] | None:
    """Return the planner's step and that of each policy; None where nothing fits."""
    best = Best(1)
    simple = replace(setting, traits=setting.traits.but(schedules=("1f1b",)), _plans={})
    search_mixed(setting, "bench", setting.workload.global_batch, Limits(), best, Tally())
    if not best.ranked():
        return None
    return best.first, {
        "one maker": min((one.step for one in best_alone(setting).values()), default=math.inf),
        "even": quickest(setting, alike(setting, by_speed=False)),
        "by speed": quickest(setting, alike(setting, by_speed=True)),
        "greedy": greedy(setting, best_alone(simple)),
    }


def outcome(seed: int) -> dict[str, Any]:
    """Return what came of one drawn pool, as plain data."""
    begun = time.process_time()
    try:
        found = contest(draw(seed))
    except ZhenfaError as problem:
        return {"seed": seed, "left_out": str(problem)}
    if found is None:
        return {"seed": seed, "left_out": "nothing fits"}
    step, others = found
    times = {name: other / step if math.isfinite(other) else None for name, other in others.items()}
    return {"seed": seed, "step": step, "times": times, "seconds": time.process_time() - begun}


def told(row: Mapping[str, Any]) -> str:
    """Return one outcome as a line."""
    if "left_out" in row:
        return f"{row['seed']:>4}  left out: {row['left_out']}"
    parts = [f"{name} " + (f"x{other:.3f}" if other else "-") for name, other in row["times"].items()]
    return f"{row['seed']:>4}  {row['step']:9.3f} s  " + "  ".join(f"{part:<18}" for part in parts)


def summary(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines that sum the contest up."""
    worse = [(row["seed"], name) for row in rows for name, other in row["times"].items() if (other or 1) < 1 - 1e-9]
    yield f"{len(rows)} pools; on {len({seed for seed, _ in worse})} of them a simpler policy is better {worse or ''}"
    yield "How many times as fast the planner is, geometric mean (most):"
    columns = {name: [row["times"][name] for row in rows if row["times"][name]] for name in POLICIES}
    columns["best of them"] = [min(other for other in row["times"].values() if other) for row in rows]
    for name, values in columns.items():
        mean = math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
        most = max(values, default=math.nan)
        yield f"  {name:<13} {mean:.3f} ({most:.3f})  on the {len(values)} pools where it finds a plan"


def short() -> Iterator[str]:
    """Tell what a pipeline over two pools gains where memory is short."""
    for model, *systems in SHORT:
        pools = tuple(Pool(name=f"p{i}", system=system, count=count) for i, (system, count) in enumerate(systems))
        network = Network(bandwidth="200 Gb/s", host_staged=True)
        formation = catalog.resolve(Machine(name="short", pools=pools, network=network), {})
        workload = Workload(sequence_length=4096, global_batch=256)
        setting, best, tally = look_up(catalog.model(model).graph(), workload, formation), Best(1), Tally()
        search_mixed(setting, "short", workload.global_batch, Limits(), best, tally)
        alone = min((found.step for found in best_alone(setting).values()), default=math.inf)
        plan, cards = best.ranked()[0].plan, ", ".join(f"{count} {system}" for system, count in systems)
        ways = f"ZeRO {plan.zero}, offload {plan.offload}, {len(plan.cards_by_pool())} pools"
        yield f"{model} on {cards}: one maker {alone:.1f} s, all {best.first:.1f} s ({ways}; {tally.least_left:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="The planner against simpler policies on mixed pools.")
    parser.add_argument("pools", nargs="?", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="add what is found to this file, and go on from what is there")
    parser.add_argument("--short", action="store_true", help="instead, a few pools on which memory is short")
    asked = parser.parse_args()
    if asked.short:
        for line in short():
            print(line, flush=True)
        return
    kept = asked.keep.read_text(encoding="utf-8").splitlines() if asked.keep and asked.keep.exists() else []
    known = {row["seed"]: row for row in map(json.loads, kept)}
    rows: list[Mapping[str, Any]] = []
    for seed in itertools.count(1):
        if len(rows) == asked.pools:
            break
        row = known.get(seed)
        if row is None:
            row = outcome(seed)
            if asked.keep:
                with asked.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        print(told(row), flush=True)
        if "times" in row:
            rows.append(row)
    print("\n" + "\n".join(summary(rows)))
    if any((other or 1) < 1 - 1e-9 for row in rows for other in row["times"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
