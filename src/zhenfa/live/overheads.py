"""What the runtime itself costs on this host: measured, so that a prediction for real cards need not guess it.

On emulated cards these costs vanish in the emulated time as long as they stay below
:data:`zhenfa.live.pace.CATCH_UP` and below the emulated latency of the message.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from zhenfa.live.engine import Engine
from zhenfa.live.run import EngineName, run_plan
from zhenfa.live.sizes import Sizes
from zhenfa.spec import fact
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Software
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.result import Event, Run


@dataclass(frozen=True)
class Overheads:
    """Seconds that the runtime adds, medians over one step: to each forward, each backward, each message."""

    forward_s: float
    backward_s: float
    message_s: float


def measure_overheads(engine: EngineName | Engine = "local", *, micro_batches: int = 32) -> Overheads:
    """Run a pipeline of two cards with next to no work in it and return what each part still takes.

    The message time is from the end of a forward on the first card to the start of the same micro-batch's forward on
    the second, where the second was waiting for it. Raises :class:`~zhenfa.errors.RunError`.
    """
    sizes = Sizes(hidden=8, layers=2, heads=1, kv_heads=1, head_dim=8, intermediate=8, vocabulary=256)
    stages = (Stage(pool="host", first=0, last=1), Stage(pool="host", first=1, last=2))
    plan = Plan(
        job="overheads", model="next to nothing", machine="this host", sequence_length=2, precision="fp32",
        pipelines=(Pipeline(micro_batches=micro_batches, stages=stages),),
    )  # fmt: skip
    return _read(run_plan(plan, _this_host(2), sizes, Execution(steps=3), engine=engine))


def _this_host(cards: int) -> Formation:
    software = Software(torch_device="cpu", collective_backend="gloo")
    processor = Accelerator(id="host-processor", maker="this host", name="a process of this host", software=software)
    pool = CardPool("host", processor, cards, (), fact.undisclosed("power"))
    return Formation("this-host", "this host", (pool,), None, fact.undisclosed("ratio"))


def _read(run: Run) -> Overheads:
    timed = {(event.kind, event.card, event.micro_batch): event for event in run.events}

    def median(kind: str) -> float:
        return statistics.median(event.end_s - event.start_s for event in run.events if event.kind == kind)

    def message(forward: Event) -> float:
        return forward.start_s - timed["forward", 0, forward.micro_batch].end_s

    received = [event for event in run.events if event.kind == "forward" and event.card == 1]
    waited = [event for event in received if ("wait", 1, event.micro_batch) in timed]
    return Overheads(
        median("forward"), median("backward"), statistics.median(message(one) for one in waited or received)
    )
