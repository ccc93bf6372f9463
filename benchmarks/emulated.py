"""How near runs on four emulated cards at speeds 4:2:1:1 come to the bounds of their schedules.

``python benchmarks/emulated.py``: 16 micro-batches through pipelines, even and uneven, and over data-parallel cards;
the share of the sum of speeds (all cards busy all the time), and of the schedule's own bound, which the laws give for
the measured operations without messages and optimizer. A run counts while the emulation kept its time, which it says.
Leave the machine to it: the cards are processes of this host. How near predictions come: ``benchmarks/live_plans.py``.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.laws.pipeline import pipeline_time
from zhenfa.laws.schedules import Durations, schedule_ends
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.model import sizes_of
from zhenfa.live.run import run_plan
from zhenfa.plan import read_request
from zhenfa.plan.request import Request
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.result import Run

JOB: Final = "examples/mixed-pretrain.yaml"
SPEEDS: Final = {"ascend": 4, "hygon": 2, "cambricon": 1}
HEAD_LAST: Final = ("cambricon", "cambricon", "hygon", "ascend")
"""The head costs a quarter of a layer: it stands on the quickest card."""
SPLIT: Final = (1, 1, 2, 4)
WEIGHTED: Final = frozenset({"zero-bubble", "zero-bubble-v", "dualpipe"})
ROOM: Final = 400e6
"""Bytes of every card, so that memory keeps no schedule out."""


def main() -> None:
    """Print how near schedules come to their bounds and to the sum of speeds."""
    with LocalEngine() as engine:
        speed(engine)


def asked(length: int, batch: int) -> Request:
    """Return the example's job at a sequence length and a global batch, on cards with room enough."""
    settings = [f"workload.sequence_length={length}", f"workload.global_batch={batch}"]
    request = replace(read_request(JOB, settings=settings), traits=OWN_RUNTIME)
    pools = []
    for pool in request.formation.pools:
        capacity = pool.accelerator.memory.capacity.model_copy(update={"value": ROOM})
        memory = pool.accelerator.memory.model_copy(update={"capacity": capacity})
        pools.append(replace(pool, accelerator=pool.accelerator.model_copy(update={"memory": memory})))
    return replace(request, formation=replace(request.formation, pools=tuple(pools)))


def pipeline(pools: Sequence[str], split: Sequence[int], micro_batches: int, size: int) -> Pipeline:
    """Return a pipeline with so many layers on each pool's next card."""
    ends = np.cumsum(split).tolist()
    stages = [
        Stage(pool=pool, first=end - layers, last=end) for pool, layers, end in zip(pools, split, ends, strict=True)
    ]
    return Pipeline(micro_batches=micro_batches, micro_batch_size=size, stages=tuple(stages))


def plan(length: int, schedule: str, *pipelines: Pipeline) -> Plan:
    """Return a plan of the benchmark."""
    return Plan(
        job="benchmark", model="tiny-byte-gpt", machine="emulated-quartet", sequence_length=length, precision="fp32",
        schedule=schedule, pipelines=pipelines,
    )  # fmt: skip


def train(engine: LocalEngine, one: Plan, steps: int = 3) -> Run:
    """Run a plan for a few steps."""
    request = asked(one.sequence_length, one.global_batch)
    return run_plan(one, request.formation, sizes_of(request.model), Execution(steps=steps), engine=engine)


def speed(engine: LocalEngine) -> None:
    """Print how near schedules come to their bounds and to the sum of speeds."""
    single = [Pipeline(micro_batches=2 * SPEEDS[pool], micro_batch_size=4, stages=(Stage(pool=pool, first=0, last=8),))
              for pool in HEAD_LAST]  # fmt: skip
    uneven = [plan(128, name, pipeline(HEAD_LAST, SPLIT, 16, 2)) for name in ("gpipe", "1f1b", "zero-bubble")]
    rows = [
        ("even, 1f1b", plan(128, "1f1b", pipeline(HEAD_LAST, (2, 2, 2, 2), 16, 2))),
        *((f"uneven, {one.schedule}", one) for one in uneven),
        ("data parallel, even", plan(128, "1f1b", *(one.model_copy(update={"micro_batches": 4}) for one in single))),
        ("data parallel", plan(128, "1f1b", *single)),
    ]  # fmt: skip
    print(f"{'plan':<22} {'step':>8} {'of the sum of speeds':>21} {'of its own bound':>17}  emulation")
    for name, one in rows:
        run = train(engine, one)
        step = statistics.mean(run.step_times_s[1:])
        bound = "-" if len(one.pipelines) > 1 else f"{bound_of(run) / step:.1%}"
        held = "held its time" if run.fidelity["valid"] else "did NOT hold its time"
        print(f"{name:<22} {step:>6.2f} s {run.share_of_sum_of_speeds or 0:>21.1%} {bound:>17}  {held}")


def bound_of(run: Run) -> float:
    """Return the seconds of the schedule with the measured operations, without messages and optimizer."""
    taken: dict[tuple[int, str], list[float]] = defaultdict(list)
    for event in run.events:
        taken[event.card, event.kind].append(event.end_s - event.start_s)
    mean = {key: statistics.mean(row) for key, row in taken.items()}
    (pipe,) = run.plan.pipelines
    cards = range(len(pipe.stages))
    forward = [mean[card, "forward"] for card in cards]
    if run.plan.schedule not in WEIGHTED:
        backward = np.array([mean[card, "backward"] for card in cards])
        return float(pipeline_time(np.array(forward), backward, 0.0, pipe.micro_batches, run.plan.schedule))
    weight = [mean[card, "weight"] for card in cards]
    whole = [mean[card, "input"] + weight[card] for card in cards]
    durations = Durations(forward, whole, weight, [0.0] * (len(pipe.stages) - 1))
    return float(schedule_ends(durations, pipe.micro_batches, run.plan.schedule).max())


if __name__ == "__main__":
    main()
