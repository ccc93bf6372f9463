"""Random plans of every kind that the runtime runs, on emulated cards: predicted against measured.

Run ``python benchmarks/live_plans.py [PLANS] [--seed N] [--zero STAGE ...] [--data-parallel]``. Each plan draws its
schedule, the layers of its stages, its replicas, precision, ZeRO stage, recomputation and numbers of micro-batches by
seed; two steps are taken (the first, which fills caches, is left out) on four emulated cards of three makers at speeds
4:2:1:1. With ``--data-parallel`` the two slow cards stand at one place and share micro-batches out. A line is printed
for each, and at the end the median and the worst of the errors of step time and of the fullest card's memory. The
cards need to be left alone: a plan whose emulation missed its deadlines is marked and left out of the sums.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from zhenfa import catalog
from zhenfa.errors import RunError
from zhenfa.estimate.report import report
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.run import run_plan
from zhenfa.spec import fact
from zhenfa.spec.job import Execution, Workload
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Memory, Network, Software, Tier
from zhenfa.spec.plan import Pipeline, Plan, Schedule, Stage

LENGTH = 128
LAYERS = 8
SPEEDS = {"fast": 12e9, "middle": 6e9, "slow": 3e9}
CARDS = ("fast", "middle", "slow", "slow")
TIER = Tier(name="board", size=2, bandwidth="125 MB/s", latency="1 ms", topology="switch")
SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved", "zero-bubble", "zero-bubble-v")


def machine() -> Formation:
    """Four emulated cards with as much memory as any plan needs."""
    software = Software(torch_device="cpu", collective_backend="gloo")
    pools = [
        CardPool(name, Accelerator(
            id=f"{name}-card", maker=f"maker {name}", name=f"{name} card", software=software, emulated=True,
            peak={"fp32": speed, "bf16": speed}, memory=Memory(capacity="4 GB", bandwidth=f"{speed / 6:.0f} B/s"),
        ), CARDS.count(name), (TIER,), fact.undisclosed("power"))
        for name, speed in SPEEDS.items()
    ]  # fmt: skip
    return Formation(
        "bench", "bench", tuple(pools), Network(bandwidth="125 MB/s", latency="1 ms"), fact.undisclosed("ratio")
    )


def pipeline(draw: random.Random, pools: list[str], schedule: Schedule, micro_batches: int, shares: bool) -> Pipeline:
    """Return a pipeline over the pools with layers drawn about as their speeds go; ``shares``: two cards of a pool
    stand at one place."""
    cards = {pool: pools.count(pool) if shares else 1 for pool in pools}
    pools = list(dict.fromkeys(pools)) if shares else pools
    virtual = 2 if schedule in ("interleaved", "zero-bubble-v") and len(pools) > 1 else 1
    places = [*range(len(pools))] * virtual
    if schedule == "zero-bubble-v" and virtual == 2:
        places = [*range(len(pools)), *reversed(range(len(pools)))]
    layers = [1] * len(places)
    while sum(layers) < LAYERS:
        layers[
            draw.choices(range(len(places)), [cards[pools[place]] * SPEEDS[pools[place]] for place in places])[0]
        ] += 1
    layers = layers if sum(layers) == LAYERS else [LAYERS // len(places)] * len(places)
    again = {place: (draw.choice(["none", "none", "full"]), draw.choice([None, 1])) for place in places}
    stages, here = [], 0
    for place, count in zip(places, layers, strict=True):
        mode, some = again[place]
        stages.append(Stage(pool=pools[place], first=here, last=here + count, recompute=mode,
                            data_parallel=cards[pools[place]],
                            recompute_layers=some if mode == "full" else None))  # fmt: skip
        here += count
    size = max(draw.choice([1, 2]), *cards.values())
    return Pipeline(
        micro_batches=micro_batches, micro_batch_size=size, virtual_stages=virtual, stages=tuple(stages)
    )  # fmt: skip


def drawn(draw: random.Random, zeros: Sequence[int], *, shares: bool = False) -> Plan:
    """Return a random plan of these ZeRO stages; of several replicas where none of them is 0. ``shares``: with two
    cards of a pool at one place."""
    cards = draw.sample(CARDS, 4)
    schedule = draw.choice(SCHEDULES)
    several = min(zeros) > 0
    cut = draw.choice([3, 2, 1] if several else [4, 4, 3, 2, 1])
    groups = [cards[:cut], cards[cut:]] if several or (draw.random() < 0.5 and cut < 4) else [cards[:cut]]
    if shares and all(group.count("slow") < 2 for group in groups):
        return drawn(draw, zeros, shares=shares)
    if schedule != "gpipe" and any(len({*group} if shares else group) == 1 for group in groups):
        schedule = "1f1b"
    pipelines = tuple(pipeline(draw, group, schedule, draw.choice([4, 6, 8]), shares) for group in groups)
    return Plan(
        job="bench", model="tiny-byte-gpt", machine="bench", sequence_length=LENGTH, schedule=schedule,
        precision=draw.choice(["fp32", "bf16"]), zero=draw.choice(zeros) if len(groups) > 1 else 0,
        pipelines=pipelines,
    )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Relative errors of one plan, prediction over measurement less one."""

    step: float
    memory: float
    valid: bool


def outcome(plan: Plan, formation: Formation, engine: LocalEngine) -> Outcome:
    """Return how far off the prediction of a plan is."""
    model = catalog.model("tiny-byte-gpt")
    workload = Workload(sequence_length=LENGTH, global_batch=plan.global_batch, precision=plan.precision)
    setting = look_up(model.graph(), workload, formation, OWN_RUNTIME)
    predicted = report(plan, setting, cost(plan, setting))
    run = run_plan(plan, formation, model, Execution(steps=3, snapshot_every=0), engine=engine)
    step = (predicted.figures.step_time_s.value or 0.0) / (run.figures.step_time_s.value or 1.0) - 1
    held = (predicted.figures.memory_bytes_per_card.value or 0.0) / (run.figures.memory_bytes_per_card.value or 1.0) - 1
    return Outcome(step, held, bool(run.fidelity["valid"]))


def main() -> None:
    """Run the plans and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plans", nargs="?", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 1], choices=range(4))
    parser.add_argument("--data-parallel", action="store_true")
    wanted = parser.parse_args()
    draw, formation, found = random.Random(wanted.seed), machine(), []  # noqa: S311
    with LocalEngine() as engine:
        for number in range(wanted.plans):
            plan = drawn(draw, wanted.zero, shares=wanted.data_parallel)
            words = ", ".join(
                f"{[stage.layers for stage in one.stages]} on {[stage.cards for stage in one.stages]} x "
                f"{one.micro_batches} of {one.micro_batch_size}"
                f"{' again' if any(stage.recomputed_layers for stage in one.stages) else ''}"
                for one in plan.pipelines
            )
            try:
                one = outcome(plan, formation, engine)
            except RunError as problem:
                print(f"{number:3d} {plan.schedule} {words}: {problem.message}", flush=True)
                continue
            found.append(one)
            print(
                f"{number:3d} step {one.step:+6.1%} memory {one.memory:+6.1%}{'' if one.valid else ' NOT VALID'}  "
                f"{plan.schedule} {plan.precision} ZeRO-{plan.zero} {words}",
                flush=True,
            )
    steps = [abs(one.step) for one in found if one.valid]
    memory = [abs(one.memory) for one in found]
    if steps:
        print(f"step time: median error {statistics.median(steps):.1%}, worst {max(steps):.1%}, of {len(steps)} plans")
    else:
        print("step time: no plan's emulation held its time; leave the cores alone")
    print(f"memory of the fullest card: median error {statistics.median(memory):.1%}, worst {max(memory):.1%}")


if __name__ == "__main__":
    main()
