"""Train for hours on emulated cards while faults come and go, and see whether anything grows.

``python benchmarks/soak.py [HOURS] [--seed N] [--samples FILE] [--pause S] [--layouts best|drawn]``: one run of a tiny
model (2 hours unless said), in turns of ``WAVE`` steps with a fault every ``EVERY`` and as many without, a checkpoint
on disk every ten and a copy in memory every step. With ``--pause``, seconds between steps, the processors are left to
others: cards have no share of their own. With ``--layouts drawn`` every new plan is drawn instead of the best, from
``DRAWS`` draws that come round: one or two replicas, any schedule, ZeRO-0 to 3.
Every few seconds it is noted, into the file ``SAMPLES`` if one is given, what the driver and the cards hold: memory,
descriptors, threads, processes, control groups, files in memory and on disk, ports.

At the end each of them in the second tenth of the time (caches have filled by then) stands beside the last tenth, with
its slope over the time between. What a card holds depends on the layers that its plan of the hour gives it, and on how
long ago it was started: so cards with the same layers are compared with themselves, and the memory of each process that
lived for ``LONG_S`` seconds and more is followed from its ``YOUNG_S`` on; the middle one of these is judged, the worst
is said. Exit code 1 if the run was lost, something has grown by more than ``MORE`` of itself, or anything is left
behind.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from zhenfa.errors import ZhenfaError
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.cgroup import PREFIX, ROOT
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.model import sizes_of
from zhenfa.live.placement import place
from zhenfa.live.run import run_plan
from zhenfa.live.snapshots import SHARED_MEMORY
from zhenfa.plan import answer_with, find_plans, read_request
from zhenfa.plan.request import Request
from zhenfa.spec.job import Execution, Fault
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan, Schedule
from zhenfa.spec.result import Run

EVERY, WAVE, LOOK_S, MORE = 25, 600, 10.0, 0.05
YOUNG_S, LONG_S = 120.0, 420.0
KINDS = ("kill", "hang", "slow", "nan", "scale", "lose")
SETTINGS = (
    "workload.sequence_length=32", "workload.global_batch=16", "limits.micro_batch_size=2",
    "execution.compare_even_steps=0",
)  # fmt: skip
MOST_STEPS, DRAWS = 1_000_000, 12
SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved", "zero-bubble", "zero-bubble-v")


@dataclass
class Watch:
    """Looks at the driver's family of processes every few seconds until the time is over."""

    engine: LocalEngine
    disk: Path
    seconds: float
    samples: Path | None
    pause: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    rows: list[dict[str, float]] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    layout: str = ""
    layouts: Counter[str] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.wait(LOOK_S):
            row = {"hours": (time.monotonic() - self.begun) / 3600.0, "steps": self.steps} | held(
                self.engine, self.disk
            )
            self.rows.append(row)
            cards = [one | {"hours": row["hours"], "layout": self.layout} for one in cards_of(self.engine)]
            self.cards += cards
            if self.samples is not None:
                with self.samples.open("a") as file:
                    file.write(json.dumps(row | {"cards": cards, "driver": descriptors()}) + "\n")

    def over(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() - self.begun > self.seconds

    def end(self) -> None:
        """Stop looking."""
        self._over.set()

    def note(self, number: int, total: int, loss: float, seconds: float) -> None:
        """Count a step, and wait a while."""
        del total, loss, seconds
        self.steps = number
        time.sleep(self.pause)


def main() -> int:
    """Train until the time is over, then say what has grown."""
    given = arguments()
    request = replace(read_request("examples/mixed-pretrain.yaml", settings=SETTINGS), traits=OWN_RUNTIME)
    with tempfile.TemporaryDirectory(prefix="zhenfa-soak-") as disk:
        with LocalEngine(protect=given.pause == 0.0) as engine:
            watch = Watch(engine, Path(disk), given.hours * 3600.0, given.samples, given.pause)
            looking = threading.Thread(target=watch.run, daemon=True)
            looking.start()
            try:
                run = train(request, watch, given)
            except ZhenfaError as problem:
                print(f"lost after {watch.steps} steps: {problem.message}")
                return 1
            finally:
                watch.end()
                looking.join()
        left = left_behind(engine)
    told(run, watch)
    grown = compare(watch.rows) + alike(watch.cards) + ageing(watch.cards)
    print(f"grown: {', '.join(grown) or 'nothing'}")
    print(f"left behind: {', '.join(left) or 'nothing'}")
    return int(bool(grown or left))


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hours", nargs="?", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--layouts", choices=("best", "drawn"), default="best")
    return parser.parse_args()


def train(request: Request, watch: Watch, given: argparse.Namespace) -> Run:
    """Train until the time is over, planning again where cards are lost."""
    planned = faults(given.seed)

    def replan(formation: Formation) -> Plan:
        asked = replace(request, formation=formation)
        best = find_plans(asked).best.plan
        if given.layouts == "best":
            return best
        dice = random.Random(f"{given.seed} {sum(watch.layouts.values()) % DRAWS}")  # noqa: S311 - no secret
        found = drawn(best, asked, dice)
        watch.layout = f"{found.schedule} ZeRO-{found.zero}"
        watch.layouts[f"{found.schedule} ZeRO-{found.zero}, {len(found.pipelines)} of {found.cards}"] += 1
        return found

    execution = Execution(
        steps=MOST_STEPS, learning_rate=1e-3, faults=tuple(planned), checkpoint_every=10, keep_checkpoints=3,
        progress_timeout_s=60.0,
    )  # fmt: skip
    return run_plan(
        replan(request.formation), request.formation, sizes_of(request.model), execution, engine=watch.engine,
        replan=replan, out_dir=watch.disk, stop=watch.over, on_progress=watch.note,
    )  # fmt: skip


def drawn(best: Plan, request: Request, dice: random.Random) -> Plan:
    """Return a plan drawn for these cards with the batch of the best one; the best if a hundred draws did not do."""
    for _ in range(100):
        cards = dice.sample(
            each := [pool.name for pool in request.formation.pools for _ in range(pool.count)], len(each)
        )
        cut = dice.randrange(1, len(cards)) if len(cards) > 1 and dice.random() < 0.7 else len(cards)
        groups = [group for group in (cards[:cut], cards[cut:]) if group]
        schedule = dice.choice(SCHEDULES if min(map(len, groups)) > 1 else SCHEDULES[:2])
        shares = [sum(one.count * one.micro_batches for one in best.pipelines)]
        if len(groups) == 2:
            part = dice.randrange(1, shares[0])
            shares = [part, shares[0] - part]
        pipelines = [
            pipeline_of(group, count, schedule, best, dice) for group, count in zip(groups, shares, strict=True)
        ]
        zero = dice.randrange(4) if len(groups) > 1 else 0
        try:
            plan = Plan.model_validate(best.model_dump() | {"schedule": schedule, "zero": zero, "pipelines": pipelines})
            answer_with(plan, request)
            place(plan, request.formation, sizes_of(request.model))
        except (ValueError, ZhenfaError):
            continue
        return plan
    return best


def pipeline_of(
    group: Sequence[str], count: int, schedule: Schedule, best: Plan, dice: random.Random
) -> dict[str, object]:
    """Return a pipeline over some cards with layers drawn."""
    virtual = 2 if schedule in {"interleaved", "zero-bubble-v"} else 1
    places = [*group, *(reversed(group) if schedule == "zero-bubble-v" else group)][: len(group) * virtual]
    layers = best.pipelines[0].stages[-1].last
    ends = [0, *sorted(dice.sample(range(1, layers), len(places) - 1)), layers]
    stages = [
        {"pool": pool, "first": one, "last": other}
        for pool, (one, other) in zip(places, itertools.pairwise(ends), strict=True)
    ]
    return {
        "micro_batches": count, "micro_batch_size": best.pipelines[0].micro_batch_size, "virtual_stages": virtual,
        "stages": stages,
    }  # fmt: skip


def faults(seed: int) -> list[Fault]:
    """Draw a fault for every so many steps; a card that is lost comes back, and one that is slow gets well again."""
    dice, row = random.Random(seed), []  # noqa: S311 - no secret
    for step in itertools.islice(itertools.count(EVERY, EVERY), 40_000):
        if step // WAVE % 2:
            continue
        kind, card = dice.choice(KINDS), dice.randrange(4)
        factor = {"scale": 1e3, "slow": 3.0}.get(kind, 4.0)
        row.append(Fault(step=step, card=card, kind=kind, factor=factor, back=2 if kind == "lose" else None))
        if kind == "slow":
            row.append(Fault(step=step + 12, card=card, kind="slow", factor=1.0))
    return row


def held(engine: LocalEngine, disk: Path) -> dict[str, float]:
    """Return what the driver and its processes hold at this moment."""
    driver = psutil.Process()
    family = [driver, *driver.children(recursive=True)]
    cards = [row for row in map(_of, family[1:]) if row is not None]
    memory = SHARED_MEMORY / engine.folder.name
    return {
        "MB of the driver": driver.memory_info().rss / 1e6,
        "MB of a card, mean": statistics.mean(row[0] for row in cards) / 1e6,
        "MB of a card, most": max(row[0] for row in cards) / 1e6,
        "descriptors of the driver": driver.num_fds(),
        "descriptors of a card, most": max(row[1] for row in cards),
        "threads of the driver": driver.num_threads(),
        "processes": len(family),
        "control groups": float(sum(path.name == engine.folder.name for path in groups())),
        "listening ports": sum(one.status == psutil.CONN_LISTEN for one in driver.net_connections("tcp")),
        "files in memory": float(sum(1 for _ in memory.rglob("*"))) if memory.exists() else 0.0,
        "files on disk": float(sum(1 for _ in disk.rglob("*"))),
        "files of the engine": float(sum(1 for _ in engine.folder.rglob("*"))),
    }


def descriptors() -> dict[str, int]:
    """Return how many of the driver's descriptors are of what kind; connections by who is at their other end."""
    driver = psutil.Process()
    ends: dict[int, int] = {}
    for process in [driver, *driver.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            ends |= {one.laddr.port: process.pid for one in process.net_connections("tcp")}
    found: Counter[str] = Counter()
    for one in driver.net_connections("tcp"):
        found[f"{one.status} {ends.get(one.raddr.port, 'nobody') if one.raddr else ''}".strip()] += 1
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[re.sub(r"\d+", "", path.readlink().name.partition("[")[0])] += 1
    return dict(found)


def _of(process: psutil.Process) -> tuple[int, int] | None:
    try:
        return process.memory_info().rss, process.num_fds()
    except psutil.Error:
        return None


def groups() -> list[Path]:
    """Return the control groups of Zhenfa's on this host."""
    return [path for path in ROOT.glob(f"**/{PREFIX}*") if path.is_dir()]


def left_behind(engine: LocalEngine) -> list[str]:
    """Return what of the engine is still there after it was closed."""
    found = [str(path) for path in (engine.folder, SHARED_MEMORY / engine.folder.name) if path.exists()]
    found += [str(path) for path in groups() if path.name == engine.folder.name]
    return found + [f"process {one.pid}" for one in psutil.Process().children(recursive=True)]


def told(run: Run, watch: Watch) -> None:
    """Print what happened."""
    kinds = Counter(f"{one.kind}: {one.action}" for one in run.incidents)
    print(f"{run.steps} steps in {watch.rows[-1]['hours']:.2f} h, {len(run.incidents)} incidents, none ended the run")
    print("  " + ", ".join(f"{name} {count}" for name, count in kinds.most_common()))
    for name, count in watch.layouts.most_common():
        print(f"  {count:>4} x {name} cards")
    print(
        f"loss {run.losses[0]:.3f} to {run.losses[-1]:.3f}; {run.effective_share or 0.0:.1%} of the time in steps kept"
    )


def compare(rows: list[dict[str, float]]) -> list[str]:
    """Print the second tenth of the time beside the last and the slope between; return the names of what has grown."""
    tenth = max(len(rows) // 10, 1)
    early, late = rows[tenth : 2 * tenth], rows[-tenth:]
    grown = []
    print(f"{'':<28} {'at first':>10} {'at last':>10} {'most':>10} {'per hour':>10}")
    for name in [key for key in rows[0] if key not in {"hours", "steps"}]:
        first, last = (statistics.median(row[name] for row in part) for part in (early, late))
        later = rows[tenth:]
        slope = statistics.linear_regression([row["hours"] for row in later], [row[name] for row in later]).slope
        print(f"{name:<28} {first:>10.1f} {last:>10.1f} {max(row[name] for row in rows):>10.1f} {slope:>+10.2f}")
        if last > first * (1.0 + MORE) and last - first >= 1.0:
            grown.append(name)
    return grown


def cards_of(engine: LocalEngine) -> list[dict[str, Any]]:
    """Return the memory of each card's process, with what it holds of the model."""
    found = []
    for one in list(engine.places):
        process = engine.process(one.rank) if one.rank < len(engine.places) else None
        memory = None if process is None else _of(psutil.Process(process)) if psutil.pid_exists(process) else None
        if memory is not None:
            layers = [[chunk.first, chunk.last] for chunk in one.chunks]
            found.append({"card": list(one.card), "layers": layers, "process": process, "MB": memory[0] / 1e6})
    return found


def alike(cards: list[dict[str, Any]]) -> list[str]:
    """Print what cards held with the same layers in the first half after the first tenth, and in the second."""
    end = max(one["hours"] for one in cards)
    halves: dict[str, tuple[list[float], list[float]]] = {}
    for one in cards:
        if one["hours"] > end / 10:
            key = json.dumps([one["card"], one["layers"], one["layout"]])
            halves.setdefault(key, ([], []))[one["hours"] > end * 0.55].append(one["MB"])
    both = {key: pair for key, pair in halves.items() if min(map(len, pair)) >= 5}
    shares = []
    print("the same card with the same layers: median MB in the first half, in the second")
    for key, (first, last) in sorted(both.items()):
        before, after = statistics.median(first), statistics.median(last)
        print(f"  {key:<50} {before:>8.1f} {after:>8.1f}   ({len(first)} and {len(last)} samples)")
        shares.append(after / before)
    return _judged("a card with the same layers", shares, "pairs")


def ageing(cards: list[dict[str, Any]]) -> list[str]:
    """Print how the memory of processes that lived long went on after their first minutes."""
    lives: dict[int, list[tuple[float, float]]] = {}
    for one in cards:
        lives.setdefault(one["process"], []).append((one["hours"], one["MB"]))
    long = {key: row for key, row in lives.items() if (row[-1][0] - row[0][0]) * 3600.0 >= LONG_S}
    shares = []
    print("processes that lived long: minutes, MB after their first minutes, MB at last")
    for key, row in long.items():
        old = [mb for hours, mb in row if (hours - row[0][0]) * 3600.0 >= YOUNG_S]
        part = max(len(old) // 5, 1)
        first, last = statistics.median(old[:part]), statistics.median(old[-part:])
        shares.append(last / first)
        print(f"  {key:<10} {(row[-1][0] - row[0][0]) * 60.0:>6.1f} {first:>8.1f} {last:>8.1f}")
    return _judged("a card's process", shares, "processes")


def _judged(name: str, shares: Sequence[float], kind: str) -> list[str]:
    """Return the name if most have grown: one of many may hold more for what it went through meanwhile."""
    if not shares:
        return []
    middle, worst = statistics.median(shares), max(shares)
    print(f"  in the middle {middle - 1.0:+.1%}, at most {worst - 1.0:+.1%}, {len(shares)} {kind}")
    return [name] if middle > 1.0 + MORE else []


if __name__ == "__main__":
    sys.exit(main())
