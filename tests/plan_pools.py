"""Small models and machines for the tests of estimate and planner, by hand or by seed."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.traits import Traits
from zhenfa.spec import fact
from zhenfa.spec.graph import Graph, LayerKind, Operator
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import Accelerator, Achievable, CardPool, Formation, Memory, Network, Tier
from zhenfa.spec.plan import Pipeline, Plan, Schedule, Stage


def attention(hidden: int, heads: int, kv_heads: int) -> tuple[Operator, ...]:
    """Norm, attention and residual of one layer."""
    size = hidden // heads
    keys = kv_heads * size
    projected = hidden + 2 * keys
    return (
        Operator("norm", "norm", parameters=hidden, inputs=hidden, outputs=hidden),
        Operator("qkv", "matmul", parameters=hidden * projected, inputs=hidden, outputs=projected, shard="column"),
        Operator(
            "core", "attention", inputs=projected, outputs=hidden, shard="heads", heads=heads, kv_heads=kv_heads,
            key_dim=size, value_dim=size, cache=2 * keys,
        ),
        Operator("output", "matmul", parameters=hidden * hidden, inputs=hidden, outputs=hidden, shard="row"),
        Operator("residual", "elementwise", inputs=2 * hidden, outputs=hidden),
        Operator("norm", "norm", parameters=hidden, inputs=hidden, outputs=hidden),
    )  # fmt: skip


def dense(hidden: int, heads: int, kv_heads: int, inner: int) -> tuple[Operator, ...]:
    """A dense layer."""
    return (
        *attention(hidden, heads, kv_heads),
        Operator("up", "matmul", parameters=hidden * inner, inputs=hidden, outputs=inner, shard="column"),
        Operator("activation", "elementwise", inputs=inner, outputs=inner, shard="column"),
        Operator("down", "matmul", parameters=hidden * inner, inputs=inner, outputs=hidden, shard="row"),
        Operator("residual", "elementwise", inputs=2 * hidden, outputs=hidden),
    )


def sparse(hidden: int, heads: int, experts: int, active: int) -> tuple[Operator, ...]:
    """A layer of experts as wide as the model."""
    held = experts * hidden * hidden
    routed = {"shard": "expert", "experts": experts, "active_experts": active}
    return (
        *attention(hidden, heads, heads),
        Operator("router", "matmul", parameters=hidden * experts, inputs=hidden, outputs=experts),
        Operator("up", "grouped_matmul", parameters=held, inputs=hidden, outputs=hidden, **routed),
        Operator("activation", "elementwise", inputs=hidden * active, outputs=hidden * active, shard="expert"),
        Operator("down", "grouped_matmul", parameters=held, inputs=hidden, outputs=hidden, **routed),
        Operator("residual", "elementwise", inputs=2 * hidden, outputs=hidden),
    )  # type: ignore[arg-type]


def model(hidden: int, vocabulary: int, kinds: Sequence[tuple[Operator, ...]], layers: Sequence[int]) -> Graph:
    """A model of these kinds of layers; kinds that no layer is of are left out."""
    used = sorted(set(layers))
    table = vocabulary * hidden
    return Graph(
        name="small",
        hidden=hidden,
        vocabulary=vocabulary,
        stem=(Operator("embedding", "embedding", table, vocabulary, hidden, shard="vocabulary"),),
        kinds=tuple(LayerKind(f"kind-{index}", kinds[index]) for index in used),
        layers=tuple(used.index(index) for index in layers),
        head=(
            Operator("norm", "norm", parameters=hidden, inputs=hidden, outputs=hidden),
            Operator("head", "matmul", table, hidden, vocabulary, shard="vocabulary"),
        ),
    )


def pool(name: str, count: int, tiers: Sequence[Tier], *, peak: float, capacity: float, bandwidth: float, matmul: float,
         launch: float = 4e-6) -> CardPool:  # fmt: skip
    """A pool of made-up cards, everything disclosed."""
    card = Accelerator(
        id=f"{name}-card", maker=name, name=f"{name} card", peak={"bf16": peak, "fp32": peak / 2},
        memory=Memory(capacity=capacity, bandwidth=bandwidth),
        achievable=Achievable(matmul={"bf16": matmul, "fp32": matmul}, memory=0.8, launch=launch),
    )  # fmt: skip
    return CardPool(name, card, count, tuple(tiers), fact.undisclosed("power"))


def machine(*pools: CardPool, bandwidth: float = 25e9, host_staged: bool = True) -> Formation:
    """A machine of these pools, joined by a network where there are several."""
    joint = Network(bandwidth=bandwidth, latency=5e-6, host_staged=host_staged) if len(pools) > 1 else None
    return Formation("test-machine", "test machine", pools, joint, fact.undisclosed("ratio"))


def random_model(rng: random.Random, layers: int) -> Graph:
    """A model of one or two kinds of layers."""
    hidden, heads = rng.choice([512, 1024, 2048, 4096]), rng.choice([2, 4, 8])
    kinds = [dense(hidden, heads, rng.choice([heads, 2]), rng.choice([2, 4]) * hidden)]
    if rng.random() < 0.5:
        wide = dense(hidden, heads, heads, 8 * hidden)
        kinds.append(sparse(hidden, heads, rng.choice([2, 4]), 1) if rng.random() < 0.6 else wide)
    return model(hidden, rng.choice([1000, 32000]), kinds, [rng.randrange(len(kinds)) for _ in range(layers)])


def random_pool(rng: random.Random, name: str, count: int, capacity: float) -> CardPool:
    """A pool of random speed and fabric: nodes of one, two or four cards."""
    node = Tier(
        name="node", size=min(count, rng.choice([1, 2, 4])), bandwidth=rng.choice([20e9, 100e9, 400e9]),
        latency=rng.choice([0.0, 2e-6]), topology=rng.choice(["switch", "full-mesh"]),
        in_network_reduction=rng.random() < 0.3,
    )  # fmt: skip
    net = Tier(name="net", size=count, bandwidth=rng.choice([1e9, 10e9, 50e9]), latency=5e-6)
    return pool(
        name, count, [node] if node.size == count else [node, net], peak=rng.choice([50e12, 100e12, 300e12, 1000e12]),
        capacity=capacity, bandwidth=rng.choice([0.5e12, 2e12]), matmul=rng.choice([0.5, 0.8]),
        launch=rng.choice([0.0, 4e-6]),
    )  # fmt: skip


def random_setting(
    seed: int,
    pools: int,
    *,
    layers: tuple[int, int] = (2, 5),
    cards: Sequence[int] = (1, 2, 3, 4, 6),
    batches: Sequence[int] = (4, 6, 8),
    plenty: Sequence[float] = (0.6, 1.0, 1.6, 6, 50),
    traits: Traits | None = None,
) -> Setting:
    """A job on a machine of some pools, with memory from too little to plenty."""  # fmt: skip
    rng = random.Random(1000 * pools + seed)
    graph = random_model(rng, rng.randint(*layers))
    counts = [rng.choice(cards) for _ in range(pools)]
    sequence, batch = rng.choice([128, 512, 1024]), rng.choice(batches)
    capacity = 18 * graph.parameters / sum(counts) * rng.choice(plenty)
    capacity += 40 * sequence * graph.hidden * rng.choice([1, 4])
    held = [random_pool(rng, f"p{i}", count, capacity * rng.choice([0.7, 1, 1.5])) for i, count in enumerate(counts)]
    formation = machine(*held, bandwidth=rng.choice([1e9, 10e9, 50e9]), host_staged=rng.random() < 0.5)
    return look_up(graph, Workload(sequence_length=sequence, global_batch=batch), formation, traits)


def on_the_card(setting: Setting) -> Setting:
    """A setting in which nothing lies in host memory, all layers of a stage are computed again or none, and norms are
    split."""
    traits = setting.traits.but(offloads=("none",), some_layers=False, whole_sequence=False)
    return replace(setting, traits=traits, _cards={}, _units={}, _costs={}, _plans={})


def plan_of(setting: Setting, pipelines: Sequence[Pipeline], zero: int = 0, schedule: Schedule = "1f1b") -> Plan:
    """A plan of these pipelines for a setting."""
    return Plan(
        job="test", model=setting.graph.name, machine=setting.formation.name,
        sequence_length=setting.workload.sequence_length, zero=zero, schedule=schedule,
        precision=setting.precisions(pipelines[0].stages[0].pool)[0], pipelines=tuple(pipelines),
    )  # fmt: skip


def even(layers: int, stages: int) -> list[tuple[int, int]]:
    """Ranges of layers as equal as can be."""
    ends = [layers * stage // stages for stage in range(stages + 1)]
    return list(itertools.pairwise(ends))


def pipeline(
    ranges: Sequence[tuple[int, int]], pools: Sequence[str], *, tensor: int = 1, expert: int = 1, count: int = 1,
    micro_batches: int = 4, size: int = 1, recompute: str = "none",
) -> Pipeline:  # fmt: skip
    """Equal replicas whose stages are all cut alike."""
    stages = tuple(
        Stage(
            pool=name, first=first, last=last, tensor_parallel=tensor, expert_parallel=expert, recompute=recompute,
        )
        for name, (first, last) in zip(pools, ranges, strict=True)
    )  # fmt: skip
    return Pipeline(count=count, micro_batches=micro_batches, micro_batch_size=size, stages=stages)


def random_plan(rng: random.Random, setting: Setting) -> Plan:
    """Any plan that has cards enough, feasible or not: one or two groups of pipelines over some of the pools."""
    free = {pool.name: pool.count for pool in setting.formation.pools}
    heads = [one.heads for kind in setting.graph.kinds for one in kind.operators if one.kind == "attention"]
    experts = [one.experts for kind in setting.graph.kinds for one in kind.operators if one.kind == "grouped_matmul"]
    layers, entries = len(setting.graph.layers), []
    size = rng.choice([1, 2])
    for _ in range(rng.choice([1, 1, 2])):
        names = [name for name, count in free.items() if count]
        if not names:
            break
        order = rng.sample(names, rng.randint(1, len(names)))
        replicas = rng.randint(1, min(2, *(free[name] for name in order)))
        stages: list[tuple[str, int, int, int, str]] = []
        for name in order:
            degrees = [one for one in (1, 2, 4) if math.gcd(*heads) % one == 0 and one * replicas <= free[name]]
            tensor = rng.choice(degrees)
            shared = rng.choice([one for one in (1, size) if one * tensor * replicas <= free[name]])
            width = tensor * shared * replicas
            groups = [one for one in (1, 2, 4) if not experts or math.gcd(*experts) % one == 0]
            expert = rng.choice([one for one in groups if width % one == 0]) if experts else 1
            most = min(free[name] // width, layers - len(stages) - (len(order) - order.index(name) - 1))
            depth = rng.randint(1, max(most, 1))
            free[name] -= depth * width
            stages += [(name, tensor, shared, expert, rng.choice(["none", "selective", "full"]))] * depth
        stages = stages[:layers]
        cuts = [0, *sorted(rng.sample(range(1, layers), len(stages) - 1)), layers]
        parts = tuple(
            Stage(
                pool=name,
                first=first,
                last=last,
                tensor_parallel=tensor,
                data_parallel=shared,
                expert_parallel=expert,
                recompute=mode,
            )
            for (name, tensor, shared, expert, mode), (first, last) in zip(
                stages, itertools.pairwise(cuts), strict=True
            )
        )
        times = rng.randint(1, 9)
        entries.append(Pipeline(count=replicas, micro_batches=times, micro_batch_size=size, stages=parts))
    return plan_of(setting, entries, rng.choice([0, 1, 1, 2, 3]))


def two_nodes(*, bandwidth: str | None = "50 GB/s") -> Setting:
    """Sixteen cards in two nodes; the network between them may be undisclosed."""
    tiers = [
        Tier(name="node", size=8, bandwidth="400 GB/s", latency="1 us"),
        Tier(name="net", size=16, latency="5 us", **({"bandwidth": bandwidth} if bandwidth else {})),
    ]
    cards = pool("p0", 16, tiers, peak=300e12, capacity=80e9, bandwidth=2e12, matmul=0.8)
    graph = model(1024, 32000, [dense(1024, 8, 8, 4096)], [0] * 8)
    return look_up(graph, Workload(sequence_length=1024, global_batch=16), machine(cards))


def stages_of(tensor: int, depth: int) -> tuple[Stage, ...]:
    each = 8 // depth
    return tuple(
        Stage(pool="p0", first=each * index, last=each * (index + 1), tensor_parallel=tensor) for index in range(depth)
    )
