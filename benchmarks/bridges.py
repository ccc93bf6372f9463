"""What compression and overlap buy on a bridge that binds, and what they do to the loss.

``python benchmarks/bridges.py``: two makers' emulated cards at speeds 2:1 train tiny-byte-gpt, once as two replicas
that sum their gradients over the bridge, once as a pipeline that sends features over it. The bridge is so slow that it
takes about as long as the arithmetic. Each way of using it is run on the same cards; a run counts while the emulation
kept its time, which it says. Then the same two plans take 200 steps on plain processes of this host, whose clock says
nothing, for the loss alone: against the uncompressed run from the same seed. Leave the machine to it.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any, Final

from zhenfa import catalog
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.model import sizes_of
from zhenfa.live.run import run_plan
from zhenfa.live.sizes import Sizes
from zhenfa.spec import fact
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Memory, Network, Software
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.result import Run

LENGTH: Final = 128
SPEEDS: Final = {"fast": 12e9, "slow": 6e9}
SUMS: Final = 5e6
"""A bridge on which a sum of all gradients takes about as long as a step's arithmetic."""
FEATURES: Final = 1e6
"""A bridge on which the features of a micro-batch take about as long as its arithmetic."""
WAYS: Final[dict[str, dict[str, Any]]] = {
    "nothing": {"overlap_gradient_sum": False},
    "overlap": {},
    "bf16": {"overlap_gradient_sum": False, "bridge": {"activations": "bf16", "gradients": "bf16"}},
    "int8": {"overlap_gradient_sum": False, "bridge": {"activations": "int8", "gradients": "int8"}},
    "bf16, overlap": {"bridge": {"activations": "bf16", "gradients": "bf16"}},
    "int8, overlap": {"bridge": {"activations": "int8", "gradients": "int8"}},
}


def main() -> None:
    """Print what each way of using the bridge takes, and how far it moves the loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=3, help="steps of each timed run (the first is left out)")
    parser.add_argument("--loss-steps", type=int, default=200, help="steps of the runs for the loss (0: none)")
    parser.add_argument("--slower", type=float, default=1.0, help="cards and bridges so many times slower")
    wanted = parser.parse_args()
    sizes = sizes_of(catalog.model("tiny-byte-gpt"))
    ways, some, slower = list(WAYS), ["overlap", "bf16, overlap", "int8, overlap"], wanted.slower
    time(sizes, "two replicas", replicas(), machine(SUMS / slower, slower), ways, wanted.steps)
    time(sizes, "a pipeline", pipeline(), machine(FEATURES / slower, slower), some, wanted.steps)
    if wanted.loss_steps:
        loss(sizes, wanted.loss_steps)


def machine(bandwidth: float, slower: float = 1.0, *, emulated: bool = True) -> Formation:
    """Return two pools of one card each, of two makers, joined by a network of that bandwidth (B/s)."""
    software = Software(torch_device="cpu", collective_backend="gloo")
    pools = []
    for name, full in SPEEDS.items():
        speed = full / slower
        paced: dict[str, Any] = {}
        if emulated:
            memory = Memory(capacity="4 GB", bandwidth=f"{speed / 6:.0f} B/s")
            paced = {"emulated": True, "peak": {"fp32": speed}, "memory": memory}
        card = Accelerator(id=f"{name}-card", maker=f"maker {name}", name=f"{name} card", software=software, **paced)
        pools.append(CardPool(name, card, 1, (), fact.undisclosed("power")))
    network = Network(bandwidth=f"{bandwidth} B/s", latency="1 ms")
    return Formation("bridge", "bridge", tuple(pools), network, fact.undisclosed("ratio"))


def replicas() -> Plan:
    """Return the whole model on each card, shares by speed."""
    return plan(*(
        Pipeline(micro_batches=count, micro_batch_size=4, stages=(Stage(pool=pool, first=0, last=8),))
        for pool, count in (("fast", 4), ("slow", 2))
    ))  # fmt: skip


def pipeline() -> Plan:
    """Return a pipeline over both cards, layers by speed."""
    stages = (Stage(pool="slow", first=0, last=3), Stage(pool="fast", first=3, last=8))
    return plan(Pipeline(micro_batches=8, micro_batch_size=2, stages=stages))


def plan(*pipelines: Pipeline) -> Plan:
    """Return a plan of the benchmark."""
    return Plan(
        job="benchmark", model="tiny-byte-gpt", machine="bridge", sequence_length=LENGTH, precision="fp32",
        schedule="1f1b", pipelines=pipelines,
    )  # fmt: skip


def time(sizes: Sizes, title: str, one: Plan, on: Formation, ways: list[str], steps: int) -> None:
    """Print the step time and the bytes of each way of using the bridge."""
    print(f"\n{title} over {on.network.bandwidth.show() if on.network else 'nothing'}")
    print(f"{'bridge':<16} {'step':>9} {'speed-up':>9} {'sent a step':>12} {'held up':>9}  emulation")
    first: float | None = None
    with LocalEngine() as engine:
        for way in ways:
            run = run_plan(one, on, sizes, Execution(steps=steps, **WAYS[way]), engine=engine)
            seconds = statistics.mean(run.step_times_s[1:])
            first = first or seconds
            sent, held = crossed(run)
            kept = "held its time" if run.fidelity["valid"] else "did NOT hold its time"
            print(f"{way:<16} {seconds:>7.3f} s {first / seconds:>8.2f}x {sent / 1e6:>9.2f} MB {held:>7.3f} s  {kept}")


def crossed(run: Run) -> tuple[float, float]:
    """Return the bytes of a step on the bridge, and the seconds that it held a card up."""
    if run.bridge is None:
        raise ValueError("the plan does not cross the bridge")
    return sum(run.bridge.bytes_sent.values()), run.bridge.held_s


def loss(sizes: Sizes, steps: int) -> None:
    """Print how far each format moves the loss of the same steps."""
    print(f"\nloss over {steps} steps, relative to the uncompressed run's")
    print(f"{'plan':<14} {'format':<8} {'most':>9} {'mean of the last tenth':>23}  last loss")
    plain = machine(1e9, emulated=False)
    with LocalEngine() as engine:
        for title, one in (("two replicas", replicas()), ("a pipeline", pipeline())):
            base: tuple[float, ...] = ()
            for kind in ("none", "bf16", "int8"):
                execution = Execution(
                    steps=steps, learning_rate=1e-3, bridge={"activations": kind, "gradients": kind}, snapshot_every=0
                )
                losses = run_plan(one, plain, sizes, execution, engine=engine).losses
                base = base or losses
                gaps = [mine / other - 1 for mine, other in zip(losses, base, strict=True)]
                tail = statistics.mean(gaps[-max(steps // 10, 1) :])
                most = max(abs(gap) for gap in gaps)
                print(f"{title:<14} {kind:<8} {most:>9.2%} {tail:>+23.2%}  {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
