"""Experts over emulated cards: predicted against measured, with even routing and with the routing that was measured.

Run ``python benchmarks/experts.py [WORDS]``. tiny-byte-moe is trained on four emulated cards alike, with its experts
shared out in every way (EP), over tensor-parallel cards, whole or split, with stages, recomputed, in bf16; ``WORDS``
picks the layouts whose name has them. Four steps are taken of each, the first left out; gradients are summed after the
backward passes, as the prediction has it. The first prediction takes tokens to fall evenly on cards, the second one
takes the imbalance that the run measured. The cards need to be left alone: where the emulation missed its deadlines the
line says so.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from zhenfa import catalog
from zhenfa.estimate.report import report
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.run import run_plan
from zhenfa.spec import fact
from zhenfa.spec.job import Execution, Workload
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Memory, Network, Software, Tier
from zhenfa.spec.plan import Pipeline, Plan, Stage

LENGTH, SIZE = 128, 4
MODEL = catalog.model("tiny-byte-moe")


def machine() -> Formation:
    """Four emulated cards that a switch joins."""
    software = Software(torch_device="cpu", collective_backend="gloo")
    memory = Memory(capacity="4 GB", bandwidth="1 GB/s")
    card = Accelerator(
        id="card", maker="maker", name="card", software=software, emulated=True, peak={"fp32": 4e9, "bf16": 4e9},
        memory=memory,
    )  # fmt: skip
    tier = Tier(name="board", size=4, bandwidth="125 MB/s", latency="1 ms", topology="switch")
    pool = CardPool("cards", card, 4, (tier,), fact.undisclosed("power"))
    network = Network(bandwidth="125 MB/s", latency="1 ms")
    return Formation("bench", "bench", (pool,), network, fact.undisclosed("ratio"))


def plan(ends: list[int], cut: dict[str, int], count: int, micro_batches: int, **changes: object) -> Plan:
    """Return replicas with stages that end at ``ends``, each cut so."""
    again = changes.pop("recompute", "none")
    stages = tuple(
        Stage(pool="cards", first=first, last=last, recompute=again, **cut)  # type: ignore[arg-type]
        for first, last in zip([0, *ends], ends, strict=False)
    )
    row = Pipeline(count=count, micro_batches=micro_batches, micro_batch_size=SIZE, stages=stages)
    fields = {"precision": "fp32", "zero": 0, "schedule": "1f1b"} | changes
    return Plan(job="bench", model="tiny-byte-moe", machine="bench", sequence_length=LENGTH, pipelines=(row,), **fields)  # type: ignore[arg-type]


EP2, EP4, TP2 = {"expert_parallel": 2}, {"expert_parallel": 4}, {"tensor_parallel": 2}
PLANS = {
    "every card all experts": plan([6], {}, 4, 2),
    "EP2": plan([6], EP2, 4, 2),
    "EP4": plan([6], EP4, 4, 2),
    "EP4, ZeRO-1": plan([6], EP4, 4, 2, zero=1),
    "EP4, bf16": plan([6], EP4, 4, 2, precision="bf16"),
    "EP2, two stages": plan([3, 6], EP2, 2, 4),
    "EP2, two stages, zero bubble": plan([3, 6], EP2, 2, 4, schedule="zero-bubble"),
    "EP2, two stages, recomputing": plan([3, 6], EP2, 2, 4, recompute="full"),
    "TP2, all experts on each": plan([6], TP2, 2, 2),
    "TP2, EP2": plan([6], TP2 | EP2, 2, 2),
    "TP2, EP2, experts split": plan([6], TP2 | EP2 | {"expert_tensor_parallel": 2}, 2, 2),
}


def predicted(chosen: Plan, formation: Formation, imbalance: float) -> tuple[float, float]:
    """Return the seconds of a step and the bytes of the fullest card."""
    workload = Workload(sequence_length=LENGTH, global_batch=chosen.global_batch, precision=chosen.precision)
    setting = look_up(MODEL.graph(), workload, formation, replace(OWN_RUNTIME, expert_imbalance=imbalance))
    figures = report(chosen, setting, cost(chosen, setting)).figures
    return figures.step_time_s.value or 0.0, figures.memory_bytes_per_card.value or 0.0


def main() -> None:
    """Run the plans and print what was found."""
    words, formation = " ".join(sys.argv[1:]), machine()
    with LocalEngine() as engine:
        for name, chosen in PLANS.items():
            if words not in name:
                continue
            run = run_plan(
                chosen,
                formation,
                MODEL,
                Execution(steps=4, snapshot_every=0, overlap_gradient_sum=False),
                engine=engine,
            )
            busiest = (run.routing and run.routing.busiest_card.value) or 1.0
            step, held = run.figures.step_time_s.value or 1.0, run.figures.memory_bytes_per_card.value or 1.0
            (even, memory), (uneven, _) = (predicted(chosen, formation, one) for one in (1.0, busiest))
            print(
                f"{name:30s} busiest card {busiest:.2f}  step {step:.2f} s, predicted {even / step - 1:+6.1%}, with "
                f"that imbalance {uneven / step - 1:+6.1%}, memory {memory / held - 1:+6.1%}"
                f"{'' if run.fidelity['valid'] else '  NOT VALID'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
