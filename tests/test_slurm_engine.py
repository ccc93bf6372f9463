"""A job in a real Slurm allocation: the losses of one host, a node that dies, a cancelled job that leaves nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from live_pools import reference_losses
from slurm_cluster import slurm
from test_live_hosts import PLAN, SETTINGS, THREE, TINY
from zhenfa.errors import CapabilityError
from zhenfa.live.engine_slurm import SlurmEngine, step
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution

pytestmark = [pytest.mark.live, pytest.mark.slurm]

ROOT = Path(__file__).resolve().parents[1]
NODES = ("node1", "node2", "node3")
STEPS = 100
PATIENCE_S = 60.0

DRIVER = """
import json, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_live_hosts import PLAN, SETTINGS, THREE, TINY, Execution, left, run_plan

if __name__ == "__main__":
    def tell(step, total, loss, seconds):
        print(json.dumps(["step", step]), flush=True)

    execution = Execution(**SETTINGS | {{"steps": int(sys.argv[1]), "engine": "slurm"}})
    replan = left if sys.argv[3] == "replan" else None
    run = run_plan(PLAN, THREE, TINY, execution, replan=replan, out_dir=Path(sys.argv[2]), on_progress=tell)
    print(json.dumps(["run", run.engine, run.losses, [[one.kind, one.action] for one in run.incidents]]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm"), NODES) as environment:
        yield environment


def submit(cluster: dict[str, str], folder: Path, steps: int, *, wait: bool = True) -> tuple[str, Path]:
    """Submit the driver with three nodes; return the job's number and where its output goes.

    What is not waited for may plan anew, as slow cards on a busy machine also make it do.
    """
    replan = "keep" if wait else "replan"
    (folder / "driver.py").write_text(DRIVER.format(tests=str(Path(__file__).parent)))
    (folder / "job.sh").write_text(
        f"#!/bin/sh\nexec {sys.executable} {folder}/driver.py {steps} {folder}/out {replan}\n"
    )
    log = folder / "log"
    asked = [
        "sbatch", "--parsable", "--nodes=3", "--ntasks-per-node=1", "--no-kill", f"--output={log}",
        *(["--wait"] if wait else []), str(folder / "job.sh"),
    ]  # fmt: skip
    found = subprocess.run(asked, env=cluster, capture_output=True, text=True, check=False, cwd=folder)
    assert found.returncode == 0, f"{found.stderr}\n{log.read_text() if log.exists() else ''}"
    return found.stdout.strip(), log


def test_a_hundred_steps_on_three_nodes(cluster: dict[str, str], tmp_path: Path) -> None:
    _, log = submit(cluster, tmp_path, STEPS)
    word, engine, losses, incidents = json.loads(log.read_text().splitlines()[-1])
    assert (word, engine, incidents) == ("run", "slurm", [])
    local = run_plan(PLAN, THREE, TINY, Execution(**SETTINGS | {"steps": STEPS}))
    assert losses == list(local.losses), "the same layout gives the same losses to the bit"
    execution = Execution(**SETTINGS | {"steps": STEPS})
    assert losses == pytest.approx(reference_losses(TINY, execution, steps=STEPS, global_batch=4), rel=1e-5)


def test_a_node_that_dies_and_a_job_that_is_cancelled(cluster: dict[str, str], tmp_path: Path) -> None:
    job, log = submit(cluster, tmp_path, 100_000, wait=False)
    _until(lambda: '["step", 3]' in _text(log), log)
    outposts = dict(_outposts(job))
    assert set(outposts) == set(NODES)
    family = [one for process in outposts.values() for one in [process, *process.children(recursive=True)]]
    on_node = [outposts["node2"], *outposts["node2"].children(recursive=True)]
    said = len(_text(log).splitlines())
    os.kill(outposts["node2"].pid, signal.SIGKILL)
    _until(lambda: len(_text(log).splitlines()) > said + 10, log)
    assert psutil.wait_procs(on_node, timeout=PATIENCE_S)[1] == []
    subprocess.run(["scancel", job], env=cluster, check=True)
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert alive == []
    _until(lambda: not list(tmp_path.glob("out/.copies*")), log)


def test_the_command_of_the_guide(cluster: dict[str, str], tmp_path: Path) -> None:
    page = (ROOT / "docs/guide/hosts.md").read_text(encoding="utf-8")
    (command,) = [line[2:] for line in page.splitlines() if line.startswith("$ sbatch")]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = cluster | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{cluster['PATH']}"}
    found = subprocess.run(
        shlex.split(command), env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )  # fmt: skip
    (log,) = tmp_path.glob("slurm-*.out")
    assert found.returncode == 0, log.read_text()
    assert "engine slurm" in " ".join(log.read_text().split())
    run = json.loads((tmp_path / "runs/rehearsal-1/run.json").read_text())
    assert [one["action"] for one in run["incidents"]] == ["restart", "retry", "restart", "re-form", "grow"]
    assert len(run["losses"]) == run["steps"] == 14
    assert {(stage["card"], stage["pool"], stage["host"]) for stage in run["stages"]} == {
        (0, "ascend", "node1"), (1, "hygon", "node1"), (2, "cambricon", "node2"), (3, "cambricon", "node3"),
    }  # fmt: skip


def test_outside_an_allocation_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(CapabilityError, match="this is not inside a Slurm allocation") as caught:
        SlurmEngine()
    assert "sbatch --nodes 3" in (caught.value.hint or "")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CapabilityError, match="there is no command srun on this host"):
        SlurmEngine()


def test_one_step_starts_an_outpost_on_every_node() -> None:
    words = step(4)
    assert words[0] == "srun"
    assert {"--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--overlap", "--no-kill"} <= set(words)
    assert not any("ZHENFA_TOKEN" in word for word in words), "the token is in the environment alone"


def _outposts(job: str) -> Iterator[tuple[str, psutil.Process]]:
    """The outposts of a job by node: what a step's daemon has started."""
    for process in psutil.process_iter():
        try:
            parent = process.parent()
            if parent is None or parent.name() != "slurmstepd" or "zhenfa.live.outpost" not in process.cmdline():
                continue
            variables = process.environ()
        except psutil.Error:
            continue
        if variables.get("SLURM_JOB_ID") == job:
            yield variables["SLURMD_NODENAME"], process


def _text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def _until(ready: object, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline, _text(log)
        time.sleep(0.05)
