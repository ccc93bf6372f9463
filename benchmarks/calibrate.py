"""How near predicted times come on calibrated processors: calibrate with whole models by turns, then run, repeatedly.

Run ``python benchmarks/calibrate.py [--cards N] [--repeats N] [--quick] [--steps N]``. Each repeat calibrates anew with
the trials of ``--check``, and then runs ``examples/cpu-pretrain.yaml`` as ``zhenfa run`` does. It prints measured over
predicted of every figure, how many steps of the run lay in the band of the plan, and whether the host was left alone.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.calibrate.card import card_of
from zhenfa.live.calibrate.check import alone_and_together, compare, trials_for, with_spread
from zhenfa.live.calibrate.machine import machine_of, write
from zhenfa.live.calibrate.session import find_device, measure
from zhenfa.live.run import run_plan
from zhenfa.plan import find_plans, read_request

ROOT = Path(__file__).resolve().parent.parent
JOB = ROOT / "examples/cpu-pretrain.yaml"


def once(cards: int, folder: Path, *, quick: bool, steps: int) -> dict[str, float]:
    """Calibrate, predict and run once; print what was found and return measured over predicted, by figure."""
    trials = trials_for("cpu", cards)
    orders, joint = alone_and_together(trials)
    found = card_of(measure(find_device("cpu"), cards, quick=quick, trials=orders, joint=joint))
    checked = compare(found, trials)
    found, ratios = with_spread(found, checked), {}
    print(f"calibrated, {found.measurements.quiet.words()}", flush=True)
    for one in checked:
        name = f"{one.what}, {one.trial.model} {one.trial.batch} x {one.trial.length}"
        ratios[name] = one.ratio
        print(f"  {name:<44} predicted {one.predicted:8.4f} s  measured {one.measured:8.4f} s  {one.ratio:.3f}")
    path = folder / "machine.yaml"
    write(machine_of(found), path, force=True)
    request = replace(read_request(str(JOB), on=str(path)), traits=OWN_RUNTIME)
    best = find_plans(request).best
    figure = best.estimate.figures.step_time_s
    predicted, low, high = (one or float("nan") for one in (figure.value, figure.p10, figure.p90))
    run = run_plan(best.plan, request.formation, request.model, request.job.execution, steps=steps)
    kept = run.step_times_s[1:]
    mean, inside = sum(kept) / len(kept), sum(low <= one <= high for one in kept)
    print(f"  run: predicted {predicted:.4f} s, measured {mean:.4f} s, {mean / predicted:.3f}")
    print(f"  {inside} of {len(kept)} steps in {low:.4f} to {high:.4f} s ({run.fidelity.get('verdict')})", flush=True)
    ratios["run"] = mean / predicted
    return ratios


def main() -> None:
    """Repeat and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [once(given.cards, Path(folder), quick=given.quick, steps=given.steps) for _ in range(given.repeats)]
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name:<44} measured over predicted: {', '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    main()
