"""Inject faults by the hundred into runs of a tiny model on emulated cards, and hold every loss to the undisturbed run.

``python benchmarks/faults.py [FAULTS] [SEED]``: prints per kind of fault how many there were, what was done about them,
how long until they were noticed and until the cards had come together again, and the greatest difference of a loss.
Exit code 1 if a run was lost or a loss differs by more than 1e-5 of it.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace

import psutil

from zhenfa.errors import ZhenfaError
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.model import sizes_of
from zhenfa.live.run import run_plan
from zhenfa.live.snapshots import SHARED_MEMORY
from zhenfa.plan import find_plans, read_request
from zhenfa.plan.request import Request
from zhenfa.spec.job import Execution, Fault
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Run

STEPS, PER_RUN, SAME = 16, 5, 1e-5
KINDS = ("kill", "hang", "slow", "nan", "scale", "lose")
SETTINGS = (
    "workload.sequence_length=32", "workload.global_batch=16", "limits.micro_batch_size=2",
    "execution.compare_even_steps=0",
)  # fmt: skip


def main() -> int:
    """Run until so many faults have happened."""
    wanted, seed = (int(value) for value in (*sys.argv[1:], *("200", "1")[len(sys.argv) - 1 :]))
    request = replace(read_request("examples/mixed-pretrain.yaml", settings=SETTINGS), traits=OWN_RUNTIME)
    dice, happened, lost, worst = random.Random(seed), 0, 0, 0.0  # noqa: S311 - no secret
    rows: dict[str, list[tuple[str, float, float, int]]] = defaultdict(list)
    shares: list[float] = []
    begun = time.monotonic()
    with LocalEngine() as engine:
        undisturbed = train(request, engine, ()).losses
        at_first = held(engine)
        while happened < wanted:
            faults = draw(dice, min(PER_RUN, wanted - happened))
            happened += len(faults)
            try:
                run = train(request, engine, faults)
            except ZhenfaError as problem:
                lost += 1
                print(f"lost: {problem.message}\n  {faults}")
                continue
            pairs = zip(run.losses, undisturbed, strict=True)
            apart = max(abs(one - other) / abs(other) for one, other in pairs)
            if apart > SAME:
                print(f"losses differ by {apart:.1e}: {faults}")
            worst = max(worst, apart)
            shares.append(run.effective_share or 0.0)
            for one in run.incidents:
                rows[one.kind].append((one.action, one.noticed_s or 0.0, one.down_s, one.steps_lost))
        at_last = held(engine)
    seconds = time.monotonic() - begun
    report(rows)
    again = [down for row in rows.values() for action, _, down, _ in row if action in ("restart", "replace", "re-form")]
    print(
        f"{happened} faults injected in {len(shares) + lost} runs of {STEPS} steps, {seconds:.0f} s: {lost} runs lost"
    )
    print(
        f"re-formed {len(again)} times, down {statistics.median(again):.2f} s at the median, {max(again):.2f} s at most"
    )
    print(f"greatest difference of a loss from the undisturbed run: {worst:.1e} of it")
    print(f"share of the time in steps that stayed: {statistics.median(shares):.1%} at the median")
    print(
        "held after the first run and after the last: "
        + "; ".join(f"{name} {at_first[name]:,} and {at_last[name]:,}" for name in at_first)
    )
    return int(lost > 0 or worst > SAME)


def held(engine: LocalEngine) -> dict[str, int]:
    """Return what the driver and its processes hold: memory, descriptors, threads, processes, files in memory."""
    driver = psutil.Process()
    family = [driver, *driver.children(recursive=True)]
    return {
        "MB of the driver": driver.memory_info().rss // 10**6,
        "MB of a card at most": max(one.memory_info().rss for one in family[1:]) // 10**6,
        "descriptors of the driver": driver.num_fds(),
        "descriptors of a card at most": max(one.num_fds() for one in family[1:]),
        "threads": sum(one.num_threads() for one in family),
        "processes": len(family),
        "folders": sum(path.exists() for path in (engine.folder, SHARED_MEMORY / engine.folder.name)),
    }


def train(request: Request, engine: LocalEngine, faults: tuple[Fault, ...]) -> Run:
    """Train once, planning again where cards are lost."""

    def replan(formation: Formation) -> Plan:
        return find_plans(replace(request, formation=formation)).best.plan

    execution = Execution(steps=STEPS, learning_rate=1e-3, faults=faults)
    plan = replan(request.formation)
    return run_plan(plan, request.formation, sizes_of(request.model), execution, engine=engine, replan=replan)


def draw(dice: random.Random, count: int) -> tuple[Fault, ...]:
    """Draw faults at random steps on random cards; a lost card comes back so that cards are left for the next."""
    faults = []
    for step in sorted(dice.sample(range(5, STEPS - 1), count)):
        kind = dice.choice(KINDS)
        factor = 1e3 if kind == "scale" else 4.0
        faults.append(
            Fault(step=step, card=dice.randrange(4), kind=kind, factor=factor, back=1 if kind == "lose" else None)
        )
    return tuple(faults)


def report(rows: dict[str, list[tuple[str, float, float, int]]]) -> None:
    """Print a line for each kind of incident."""
    print(f"{'what happened':<10} {'times':>6} {'noticed, median':>16} {'down, median':>13} {'most':>7}  done about it")
    for kind, row in sorted(rows.items()):
        actions = ", ".join(f"{name} {count}" for name, count in Counter(one[0] for one in row).most_common())
        noticed, down = (statistics.median(one[index] for one in row) for index in (1, 2))
        most = max(one[2] for one in row)
        print(f"{kind:<10} {len(row):>6} {noticed:>14.2f} s {down:>11.2f} s {most:>5.2f} s  {actions}")


if __name__ == "__main__":
    sys.exit(main())
