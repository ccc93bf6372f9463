"""What size changes: the table of docs/concepts/planning.md, planned anew.

``python benchmarks/scale.py`` prints it, ``--write`` puts it into the page. Each row is one command, whose document is
read; the machines of 100,000 cards take about ten seconds each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import zhenfa

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/concepts/planning.md"
JOB = "examples/deepseek-v3-train.yaml"
HUGE = ("--on", "examples/hundred-thousand-cards.yaml")
MACHINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("10,240 scaleX cards (64 GB assumed)",
     ("--on", "scalex-10240", "--assume", "sugon-scalex-card.memory.capacity=64 GB")),
    ("Atlas 950, 8,192 cards", ("--on", "atlas950")),
    ("53,760 Ascend 910C in supernodes of 384", (*HUGE, "--limit", "makers=Huawei Ascend")),
    ("36,000 H20 in nodes of 8", (*HUGE, "--limit", "makers=NVIDIA")),
    ("100,000 cards of three makers", (*HUGE, "--assume", "sugon-scalex-card.memory.capacity=64 GB")),
)  # fmt: skip
HEAD = ("| machine | for | plan | cards | step | ETTR | enough nodes up |", "|---|---|---|---:|---:|---:|---:|")


def best(options: tuple[str, ...], objective: str) -> dict[str, Any]:
    """Return the best plan of the job on a machine."""
    command = [sys.executable, "-m", "zhenfa.cli.main", "plan", JOB, *options, "--for", objective, "--top", "1"]
    shown = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(shown.stdout)["plans"][0]
    return found


def cells(plan: dict[str, Any]) -> str:
    """Return what the table says of a plan."""
    counted: dict[str, int] = {}
    for pipeline in plan["plan"]["pipelines"]:
        for stage in pipeline["stages"]:
            cards = pipeline.get("count", 1) * stage.get("tensor_parallel", 1) * stage.get("context_parallel", 1)
            counted[stage["pool"]] = counted.get(stage["pool"], 0) + cards
    pools = f", {' and '.join(sorted(counted))}" if len(counted) > 1 else ""
    step, ettr = (plan["estimate"][name]["value"] for name in ("step_time_s", "ettr"))
    return (
        f"{plan['layout']}{pools} | {sum(counted.values()):,} | {step:.2f} s | {ettr:.1%} | "
        f"{plan['operating']['scheduling']['value']:.0%}"
    ).replace("%", " %")


def table() -> list[str]:
    """Return the rows of the table; plans for either objective that are the same take one row."""
    rows = list(HEAD)
    for title, options in MACHINES:
        step, throughput = (cells(best(options, objective)) for objective in ("step", "throughput"))
        if step == throughput:
            rows.append(f"| {title} | either | {step} |")
        else:
            rows += [f"| {title} | step | {step} |", f"| | throughput | {throughput} |"]
    return rows


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--write", action="store_true", help="put the table into the page")
    rows = table()
    said = f"Made by `python benchmarks/scale.py --write` with {zhenfa.__version__} on {date.today():%Y-%m-%d}."
    if asked.parse_args().write:
        lines = PAGE.read_text(encoding="utf-8").splitlines()
        start = lines.index(HEAD[0])
        end = next(index for index in range(start, len(lines)) if not lines[index].startswith("|"))
        after = end + 2 if lines[end + 1].startswith("Made by `python benchmarks/scale.py") else end
        lines[start:after] = [*rows, "", said]
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join([*rows, "", said]))


if __name__ == "__main__":
    main()
