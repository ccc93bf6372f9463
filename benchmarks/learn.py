"""Machine files that are wrong, one run, and what the next prediction is worth.

Run ``python benchmarks/learn.py [MACHINES] [--seed N]``. For each machine the file says speeds and links that are off
by factors drawn between 1/4 and 4. A plan is predicted from the file and run for three steps on emulated cards as they
truly are; what the run teaches goes into the file; the same plan, and another one that is then run too, are predicted
again. A line is printed for each machine, and at the end the median and the largest error, before and after. Machines
on which the emulation did not hold its time are marked and left out.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from dataclasses import dataclass

from zhenfa import catalog
from zhenfa.estimate.report import report
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.learn.attribute import Predicted, attribute
from zhenfa.live.learn.feedback import applied, lesson
from zhenfa.live.run import run_plan
from zhenfa.spec import fact
from zhenfa.spec.job import Execution, Workload
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Memory, Network, Software, Tier
from zhenfa.spec.plan import Pipeline, Plan, Stage

MODEL = catalog.model("tiny-byte-gpt")
LENGTH = 128
SPEEDS = {"fast": 12e9, "slow": 4e9}
LINKS = {"board": 60e6, "network": 30e6}


def machine(factors: dict[str, float]) -> Formation:
    """Return one fast card and two slow ones, each speed and link times a factor."""
    software = Software(torch_device="cpu", collective_backend="gloo")
    tier = Tier(name="board", size=2, bandwidth=LINKS["board"] * factors["board"], latency="1 ms")
    pools = [
        CardPool(name, Accelerator(
            id=f"{name}-card", maker=f"maker {name}", name=f"{name} card", software=software, emulated=True,
            peak={"fp32": speed * factors[name]}, memory=Memory(capacity="4 GB", bandwidth="2 GB/s"),
        ), count, (tier,), fact.undisclosed("power"))
        for (name, speed), count in zip(SPEEDS.items(), (1, 2), strict=True)
    ]  # fmt: skip
    network = Network(bandwidth=LINKS["network"] * factors["network"], latency="2 ms")
    return Formation("bench", "bench", tuple(pools), network, fact.undisclosed("ratio"))


def plans() -> tuple[Plan, Plan]:
    """Return a pipeline over all cards, and replicas of the model on each."""
    layers = len(MODEL.graph().layers)
    stages = tuple(Stage(pool=pool, first=first, last=last)
                   for pool, first, last in (("fast", 0, layers - 4), ("slow", layers - 4, layers - 2),
                                             ("slow", layers - 2, layers)))  # fmt: skip
    shares = (("fast", 4, 1), ("slow", 2, 2))
    whole = tuple(
        Pipeline(count=count, micro_batches=batches, micro_batch_size=1,
                 stages=(Stage(pool=pool, first=0, last=layers),))
        for pool, batches, count in shares
    )  # fmt: skip
    pipelines = ((Pipeline(micro_batches=8, micro_batch_size=1, stages=stages),), whole)
    one, other = (
        Plan(job="bench", model=MODEL.name, machine="bench", sequence_length=LENGTH, precision="fp32", pipelines=entry)
        for entry in pipelines
    )
    return one, other


def predict(plan: Plan, said: Formation) -> Predicted:
    """Return what is predicted of a plan from what a file says."""
    workload = Workload(sequence_length=LENGTH, global_batch=plan.global_batch, precision="fp32")
    setting = look_up(MODEL.graph(), workload, said, OWN_RUNTIME)
    costed = cost(plan, setting)
    return Predicted(plan, setting, costed, report(plan, setting, costed).figures.step_time_s, said)


@dataclass
class Case:
    """Errors of one machine, as factors: before, after, and of the plan that had not been run, before and after."""

    errors: tuple[float, float, float, float]
    valid: bool


def tried(engine: LocalEngine, draw: random.Random) -> Case:
    """Run one machine."""
    factors = {name: 4 ** draw.uniform(-1, 1) for name in (*SPEEDS, *LINKS)}
    said, true = machine(factors), machine(dict.fromkeys(factors, 1.0))
    learned, other = plans()
    before = predict(learned, said)
    told = []
    runs = [run_plan(plan, true, MODEL, Execution(steps=3, recover=False), engine=engine, learn=told.append)
            for plan in (learned, other)]  # fmt: skip
    first, second = told
    found = attribute(before, first.places, first.timings, first.step_time, valid=True)
    better = applied(said, lesson(found, "bench", emulated=True))
    steps = [first.step_time, first.step_time, second.step_time, second.step_time]
    costs = [before.cost, predict(learned, better).cost, predict(other, said).cost, predict(other, better).cost]
    errors = tuple(math.exp(abs(math.log(one.step / step))) for one, step in zip(costs, steps, strict=True))
    return Case(errors, all(bool(run.fidelity["valid"]) for run in runs))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machines", nargs="?", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    draw, kept = random.Random(asked.seed), []  # noqa: S311 - no secret
    with LocalEngine() as engine:
        for number in range(1, asked.machines + 1):
            case = tried(engine, draw)
            mark = "" if case.valid else "  (the emulation did not hold its time)"
            print(
                f"{number:3}  " + "  ".join(f"{100 * (error - 1):7.1f} %" for error in case.errors) + mark, flush=True
            )
            kept += [case.errors] if case.valid else []
    print(f"{len(kept)} of {asked.machines} counted")
    names = ("before", "after", "another plan, before", "another plan, after")
    for name, errors in zip(names, zip(*kept, strict=True), strict=True):
        middle, most = statistics.median(errors), max(errors)
        print(f"{name:22} off by {100 * (middle - 1):.1f} % at the median, {100 * (most - 1):.1f} % at most")


if __name__ == "__main__":
    main()
