"""How near predicted step times come on a calibrated processor: calibrate, then run real training, several times.

Run ``python benchmarks/calibrate.py [--cards N] [--repeats N] [--quick]``. Each repeat calibrates anew, predicts, runs
``examples/cpu-pretrain.yaml`` and the trials of ``--check``, and says whether it was left alone: only figures of a run
that was count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.calibrate.card import card_of
from zhenfa.live.calibrate.check import check
from zhenfa.live.calibrate.machine import machine_of, write
from zhenfa.live.calibrate.session import find_device, measure
from zhenfa.live.run import run_plan
from zhenfa.plan import find_plans, read_request

ROOT = Path(__file__).resolve().parent.parent
JOB = ROOT / "examples/cpu-pretrain.yaml"


def once(cards: int, folder: Path, *, quick: bool) -> dict[str, float]:
    """Calibrate, predict and run once; print what was found and return measured over predicted, by figure."""
    found = card_of(measure(find_device("cpu"), cards, quick=quick))
    path = folder / "machine.yaml"
    write(machine_of(found), path, force=True)
    print(f"calibrated, {found.measurements.quiet.words()}")
    ratios = {}
    for one in check(found):
        print(f"  {one.what:<10} predicted {one.predicted:8.4f} s  measured {one.measured:8.4f} s  {one.ratio:.3f}")
        ratios[one.what] = one.ratio
    request = replace(read_request(str(JOB), on=str(path)), traits=OWN_RUNTIME)
    best = find_plans(request).best
    predicted = best.estimate.figures.step_time_s.value or float("nan")
    run = run_plan(best.plan, request.formation, request.model, request.job.execution)
    middle = statistics.median(run.step_times_s[1:])
    words = run.fidelity.get("verdict")
    print(f"  run        predicted {predicted:8.4f} s  measured {middle:8.4f} s  {middle / predicted:.3f}  ({words})")
    ratios["run"] = middle / predicted
    return ratios


def main() -> None:
    """Repeat and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [once(given.cards, Path(folder), quick=given.quick) for _ in range(given.repeats)]
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name:<10} measured over predicted: {', '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    main()
