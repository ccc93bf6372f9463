"""How long the planner takes on every machine of the catalog, for each of the large jobs.

``python benchmarks/every_machine.py`` prints a line for each machine and job, ``--json`` one document. What a maker has
not published is supplied (see ``tools/every_machine.py``).
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"tools/{name}.py is not there")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    every = tool("every_machine")
    rows = []
    for title in every.JOBS:
        for machine in every.machines_for(title):
            begun = time.perf_counter()
            outcome = every.ask_until_answered(title, machine)
            seconds = time.perf_counter() - begun
            answer = outcome.answer
            considered = answer.considered if answer else None
            rows.append({"job": title, "machine": machine, "outcome": outcome.kind, "seconds": seconds,
                         "layouts": considered})  # fmt: skip
            if "--json" not in sys.argv:
                layout = answer.best.layout if answer else "nothing fits"
                print(f"{title:<32}{machine:<20}{seconds:>8.2f} s{considered or 0:>12,}  {layout}", flush=True)
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=1))
        return
    slowest = max(rows, key=lambda row: row["seconds"])
    print(f"{len(rows)} answers in {sum(row['seconds'] for row in rows):.1f} s; slowest {slowest['machine']}")


if __name__ == "__main__":
    main()
