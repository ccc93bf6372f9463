"""The main job, as a new user runs it: plan, train over emulated cards of three makers, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:  # type: ignore[type-arg]
    folder = tmp_path_factory.mktemp("run")
    done = subprocess.run(
        [sys.executable, "-m", "zhenfa.cli.main", "run", "examples/mixed-pretrain.yaml", "--json", "--out", folder],
        cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def test_it_trains(outcome: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    run, _ = outcome
    assert run["schema"] == "zhenfa.run/1"
    assert run["emulated"] is True
    assert len(run["losses"]) == run["steps"]
    assert run["losses"][-1] < run["losses"][0] - 0.5
    assert run["losses"][0] == pytest.approx(5.55, abs=0.15)  # ln 256: nothing is known at the start


def test_four_cards_of_three_makers_share_the_layers(outcome: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    run, _ = outcome
    assert sorted(stage["pool"] for stage in run["stages"]) == ["ascend", "cambricon", "cambricon", "hygon"]
    held = {stage["pool"]: stage["layers"][1] - stage["layers"][0] for stage in run["stages"]}
    assert held["ascend"] > held["hygon"] > held["cambricon"]


def test_prediction_lies_beside_measurement(outcome: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    run, _ = outcome
    predicted = run["estimate"]["figures"]["step_time_s"]["value"]
    measured = run["figures"]["step_time_s"]["value"]
    if run["fidelity"]["valid"]:
        assert measured == pytest.approx(predicted, rel=0.1)
        assert run["even_split"]["speed_up"] > 1.6
    assert measured > 0.9 * predicted


def test_it_leaves_what_it_promises(outcome: tuple[dict, Path]) -> None:  # type: ignore[type-arg]
    run, folder = outcome
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "timeline.perfetto-trace").stat().st_size > 1000
    assert json.loads((folder / "run.json").read_text())["losses"] == run["losses"]
    assert Path(run["checkpoint"]).is_dir()
    assert "emulated" in (folder / "plan.yaml").read_text()


def test_the_rehearsal_goes_through_all_its_faults(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zhenfa.cli.main", "run", "examples/rehearsal.yaml", "--json", "--out", tmp_path],
        cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert [(one["step"], one["kind"], one["action"]) for one in run["incidents"]] == [
        (3, "death", "restart"), (5, "poison", "retry"), (7, "hang", "restart"), (9, "death", "re-form"),
        (12, "back", "grow"),
    ]  # fmt: skip
    assert len(run["losses"]) == run["steps"] == 14
    assert run["losses"][-1] < run["losses"][0] - 0.5
    assert run["plan"]["pipelines"] == json.loads(done.stdout)["estimate"]["plan"]["pipelines"]
