"""How quickly plans are found: layouts a second, seconds of the whole command, memory, and how both grow with cards.

``python benchmarks/planner.py`` prints a table, ``--json`` one document, ``--only start|pool|mixed|growth`` a part.
Every search runs in a process of its own with one thread, whose peak memory is taken. Timings of a shared machine are
noisy: compare figures of one run, not of two. Growth is measured side by side in one run, each size in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEEPSEEK = "examples/deepseek-v3-train.yaml"
GPT3 = "examples/gpt3-175b-train.yaml"
MEMORY = "sugon-scalex-card.memory.capacity=64 GB"

POOL = (("gpt3-175b, 4,096 A100", GPT3, None), ("deepseek-v3, 384 Ascend 910C", DEEPSEEK, "cloudmatrix384"))
MIXED = (
    ("deepseek-v3, 1,280 cards of three makers", DEEPSEEK, "mixed-demo"),
    ("deepseek-v3, 10,240 cards of three makers", DEEPSEEK, "examples/ten-thousand-cards.yaml"),
    ("deepseek-v3, 100,000 cards of three makers", DEEPSEEK, "examples/hundred-thousand-cards.yaml"),
)
STARTS = (
    ("zhenfa --help", ("--help",)),
    ("zhenfa show machines", ("show", "machines")),
    ("zhenfa plan examples/llama3-70b-train.yaml, search not counted", ("plan", "examples/llama3-70b-train.yaml")),
)
GROWTH = (1_000, 4_000, 16_000, 64_000, 100_000)
SHARES = (("h800", "nvidia-hgx-h800-8", 8), ("ascend", "huawei-cloudmatrix384", 384))


@dataclass(frozen=True)
class Timing:
    """What one search took."""

    what: str
    cards: int
    considered: int
    bounded: int
    """Of those considered, how many had a bound of their own; that of another covers the rest."""
    costed: int
    search_s: float
    """Median over the searches of a warm process."""
    first_s: float
    """The first search of a fresh process, imports and reading not counted."""
    per_second: float
    """Layouts with a bound of their own."""
    command_s: float
    """Median of the whole command, start-up included."""
    peak_bytes: int
    step_s: float


@dataclass(frozen=True)
class Start:
    """What a command takes beside the search: median seconds, with Python's bytecode at hand as after a first run."""

    what: str
    seconds: float
    least_s: float


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--json", action="store_true")
    asked.add_argument("--runs", type=int, default=5)
    asked.add_argument("--only", choices=("start", "pool", "mixed", "growth"), action="append")
    wanted = asked.parse_args()
    parts = wanted.only or ["start", "pool", "mixed", "growth"]
    found: dict[str, list[Timing] | list[Start]] = {}
    for part in parts:
        if part == "start":
            starts = found[part] = [start(*case, wanted.runs) for case in STARTS]
            if not wanted.json:
                print_starts(starts)
            continue
        rows = growth(wanted.runs) if part == "growth" else fixed(part, wanted.runs)
        found[part] = rows
        if not wanted.json:
            print_table(part, rows)
    if wanted.json:
        print(json.dumps({part: [asdict(row) for row in rows] for part, rows in found.items()}, indent=1))


def fixed(part: str, runs: int) -> list[Timing]:
    cases = POOL if part == "pool" else MIXED
    return [timing(what, job, on, runs) for what, job, on in cases]


def growth(runs: int) -> list[Timing]:
    """Time one maker's and two makers' pools of growing size, the sizes in turn, so that drift strikes all alike."""
    cases = [(count, kinds) for kinds in (1, 2) for count in GROWTH]
    seen: dict[tuple[int, int], list[Timing]] = {case: [] for case in cases}
    folder = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108 - files of a benchmark
    for _ in range(runs):
        for count, kinds in cases:
            place = folder / f"zhenfa-growth-{count}-{kinds}.yaml"
            place.write_text(machine_of(count, kinds), encoding="utf-8")
            what = f"deepseek-v3, {count:,} cards, {kinds} maker{'s' if kinds > 1 else ''}"
            seen[count, kinds].append(timing(what, DEEPSEEK, str(place), 1))
            place.unlink()
    return [sorted(times, key=lambda one: one.search_s)[len(times) // 2] for times in seen.values()]


def machine_of(count: int, kinds: int) -> str:
    """Return a machine of about ``count`` cards, shared alike between its makers."""
    from zhenfa.spec import yaml

    pools = []
    for name, system, size in SHARES[:kinds]:
        share = max(1, round(count / kinds / size)) * size
        pools.append({"name": name, "system": system, "count": share})
    network = {"name": "RoCE", "bandwidth": "400 Gb/s", "latency": "10 us"}
    return yaml.write({"schema": "zhenfa.machine/1", "name": f"cards-{count}", "pools": pools, "network": network})


def timing(what: str, job: str, on: str | None, runs: int) -> Timing:
    """Search in a fresh process ``runs`` times, and time the whole command as often."""
    line = [sys.executable, str(Path(__file__).resolve()), "--search", job, on or "", str(runs)]
    found = json.loads(subprocess.run(line, cwd=ROOT, check=True, env=alone(), stdout=subprocess.PIPE).stdout)
    median = statistics.median(found["seconds"])
    whole = statistics.median(command(job, on) for _ in range(runs))
    return Timing(
        what, found["cards"], found["considered"], found["bounded"], found["costed"], median, found["seconds"][0],
        found["bounded"] / median, whole, found["peak"], found["step"],
    )  # fmt: skip


def alone() -> dict[str, str]:
    return {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")}


def command(job: str, on: str | None) -> float:
    line = [sys.executable, "-m", "zhenfa.cli.main", "plan", job, "--json", "--quiet", "--assume", MEMORY]
    begun = time.perf_counter()
    subprocess.run([*line, *(["--on", on] if on else [])], cwd=ROOT, check=True, env=alone(), stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def search(job: str, on: str, runs: int) -> None:
    """Run in a process of its own: search, and print what it took."""
    from zhenfa.plan import find_plans, read_request

    answers = [find_plans(read_request(job, on=on or None, assume=[MEMORY])) for _ in range(runs)]
    first = answers[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({
        "cards": first.request.formation.cards, "considered": first.considered, "bounded": first.bounded,
        "costed": first.costed, "peak": peak,
        "seconds": [one.seconds for one in answers], "step": first.best.estimate.figures.step_time_s.value,
    }))  # fmt: skip


def start(what: str, arguments: tuple[str, ...], runs: int) -> Start:
    """Time a command."""
    with tempfile.TemporaryDirectory() as folder:
        known = {key: value for key, value in alone().items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment = {**known, "PYTHONPYCACHEPREFIX": folder}
        once(arguments, environment)
        taken = [once(arguments, environment) for _ in range(runs)]
    return Start(what, statistics.median(taken), min(taken))


def once(arguments: tuple[str, ...], environment: dict[str, str]) -> float:
    line = [sys.executable, "-m", "zhenfa.cli.main", *arguments, *(["--json"] if arguments[0] == "plan" else [])]
    begun = time.perf_counter()
    done = subprocess.run(line, cwd=ROOT, check=True, env=environment, capture_output=True)
    taken = time.perf_counter() - begun
    return taken - (json.loads(done.stdout)["seconds"] if arguments[0] == "plan" else 0.0)


def print_starts(rows: list[Start]) -> None:
    print(f"{'start':<66}{'seconds':>10}{'least':>8}")
    for row in rows:
        print(f"{row.what:<66}{row.seconds:>10.3f}{row.least_s:>8.3f}")
    print()


def print_table(part: str, rows: list[Timing]) -> None:
    heads = (
        f"{'layouts':>12}{'bounded':>11}{'costed':>8}{'search s':>10}{'bounded/s':>11}{'command s':>11}{'peak MB':>9}"
    )
    print(f"{part:<44}{heads}")
    for row in rows:
        print(
            f"{row.what:<44}{row.considered:>12,}{row.bounded:>11,}{row.costed:>8,}{row.search_s:>10.3f}{row.per_second:>11,.0f}"
            f"{row.command_s:>11.2f}{row.peak_bytes / 1e6:>9.0f}"
        )
    if part == "growth":
        for kinds in range(2):
            first, last = rows[kinds * len(GROWTH)], rows[(kinds + 1) * len(GROWTH) - 1]
            print(
                f"{'':<44}{last.cards / first.cards:.0f} x the cards: {last.search_s / first.search_s:.2f} x the time, "
                f"{last.peak_bytes / first.peak_bytes:.2f} x the memory"
            )
    print()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--search"]:
        search(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
