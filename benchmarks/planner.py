"""How quickly plans are found: layouts considered a second, and seconds of the whole command, start-up included.

Run ``python benchmarks/planner.py``. Timings of a shared machine are noisy: compare figures of one run, not of two.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from zhenfa.plan import find_plans, read_request

ROOT = Path(__file__).resolve().parent.parent
JOB = "examples/deepseek-v3-train.yaml"
MACHINES = ("cloudmatrix384", "scalex-10240", "mixed-demo")
RUNS = 5


def search(machine: str) -> tuple[int, float]:
    answer = find_plans(read_request(str(ROOT / JOB), on=machine))
    return answer.considered, answer.seconds


def command(machine: str) -> float:
    begun = time.perf_counter()
    line = [sys.executable, "-m", "zhenfa.cli.main", "plan", JOB, "--on", machine, "--json", "--quiet"]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    search(MACHINES[0])
    print(f"{'machine':<16}{'layouts':>12}{'search s':>10}{'layouts/s':>12}{'command s, median of ' + str(RUNS):>26}")
    for machine in MACHINES:
        looked_at, seconds = search(machine)
        whole = statistics.median(command(machine) for _ in range(RUNS))
        print(f"{machine:<16}{looked_at:>12,}{seconds:>10.2f}{looked_at / seconds:>12,.0f}{whole:>26.2f}")


if __name__ == "__main__":
    main()
