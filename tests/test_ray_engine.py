"""The Ray engine runs the same job with the same result, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses, remains
from zhenfa.errors import RunError
from zhenfa.live.engine_ray import RayEngine
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution, Fault
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan

pytestmark = [pytest.mark.ray, pytest.mark.live]

PAIR = formation(pool("a", 1), pool("b", 1))
PLAN = plan(pipeline([5, 3], "ab", 4))
EXECUTION = Execution(steps=3, learning_rate=1e-3, seed=7, engine="ray")
PATIENCE_S = 40.0

DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from test_ray_engine import PLAN, PAIR, TINY, Execution, run_plan

if __name__ == "__main__":
    def tell(step, total, loss, seconds):
        print("step", step, flush=True)
    run_plan(PLAN, PAIR, TINY, Execution(steps=100000, engine="ray"), on_progress=tell)
"""


def test_same_losses_and_a_killed_actor_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RayEngine() as engine:
        run = run_plan(PLAN, PAIR, TINY, EXECUTION, engine=engine, out_dir=tmp_path)
        expected = reference_losses(TINY, EXECUTION, steps=3, global_batch=4)
        assert run.losses == pytest.approx(expected, rel=1e-5)
        assert run.engine == "ray"
        assert Path(run.checkpoint or "", "manifest.json").exists()
        killed: list[float] = []

        def kill(step: int, *_: object) -> None:
            if step == 2:
                killed.append(time.monotonic())
                os.kill(engine.process(1) or 0, signal.SIGKILL)

        with pytest.raises(RunError, match=r"card 1 .* died \(signal SIGKILL\)"):
            run_plan(PLAN, PAIR, TINY, Execution(steps=1000, recover=False), engine=engine, on_progress=kill)
        assert time.monotonic() - killed[0] < 10.0
        family = psutil.Process().children(recursive=True)
        ports = [item for process in [*family, psutil.Process()] for item in process.net_connections("inet")]
        listening = {item.laddr.ip for item in ports if item.status == psutil.CONN_LISTEN}
        assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert any("raylet" in process.name() for process in family)
        assert capsys.readouterr().out == ""
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    assert remains(engine.folder) == []


def test_a_run_on_ray_goes_on_too() -> None:
    three = formation(pool("a", 1), pool("b", 2))
    faults = [
        Fault(step=3, card=1, kind="kill"), Fault(step=4, card=0, kind="nan"), Fault(step=5, card=2, kind="hang"),
        Fault(step=6, card=1, kind="lose"),
    ]  # fmt: skip
    execution = Execution(steps=7, learning_rate=1e-3, seed=3, faults=faults)

    def left(machine: Formation) -> Plan:
        assert {one.name: one.count for one in machine.pools} == {"a": 1, "b": 1}
        return PLAN

    with RayEngine() as engine:
        found = run_plan(
            plan(pipeline([4, 3, 1], "abb", 4)), three, TINY, execution, engine=engine, replan=left
        )  # fmt: skip
    assert [(one.kind, one.action) for one in found.incidents] == [
        ("death", "restart"), ("poison", "retry"), ("hang", "restart"), ("death", "re-form"),
    ]  # fmt: skip
    late = [one.step - step for one, step in zip(found.incidents, (3, 4, 5, 6), strict=True)]
    assert set(late) <= {0, 1}, "Ray ends an actor a moment after it was asked to"
    assert found.losses == pytest.approx(reference_losses(TINY, execution, steps=7, global_batch=4), rel=1e-5)


def test_killed_driver_leaves_no_ray(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(tests=str(Path(__file__).parent)))
    with tempfile.TemporaryDirectory(prefix="z") as short:  # Ray's socket paths have little room
        environment = os.environ | {"TMPDIR": short}
        with subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
        ) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline().strip() == "step 1"
            family = psutil.Process(driver.pid).children(recursive=True)
            assert len(family) > 3
            folders = list(Path(short).glob("zhenfa-*"))
            assert len(folders) == 2, "the driver's, and the outpost's on each host"
            [outpost] = _outposts(short)
            at_work = [outpost, *outpost.children()]
            outpost.suspend()  # as slow as can be
            driver.kill()
        assert psutil.wait_procs([one for one in family if one not in at_work], timeout=PATIENCE_S)[1] == []
        outpost.resume()
        assert psutil.wait_procs(at_work, timeout=PATIENCE_S)[1] == []
        deadline = time.monotonic() + PATIENCE_S
        while left := [path for folder in folders for path in remains(folder)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def _outposts(folder: str) -> list[psutil.Process]:
    """The outposts whose temporary files go into a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "zhenfa.live.outpost" in process.cmdline() and process.environ().get("TMPDIR") == folder:
                found.append(process)
    return [one for one in found if one.parent() not in found]  # the cards are forks of theirs
