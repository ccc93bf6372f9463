"""Whatever ends a run, nothing is left behind, and the message names the card."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
import pytest

from live_pools import TINY, formation, pipeline, plan, pool, remains
from zhenfa.errors import CapabilityError, InputError, RunError
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution

pytestmark = pytest.mark.live

PAIR = formation(pool("a", 1), pool("b", 2))
PLAN = plan(pipeline([4, 3, 1], "abb", 4))
PATIENCE_S = 20.0

DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from live_pools import TINY, formation, pipeline, plan, pool
from pathlib import Path
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution

if __name__ == "__main__":
    machine = formation(pool("a", 1), pool("b", 2))
    def tell(step, total, loss, seconds):
        print("step", step, flush=True)
    run_plan(plan(pipeline([4, 3, 1], "abb", 4)), machine, TINY, Execution(steps=100000), on_progress=tell,
             out_dir=Path({out!r}))
"""


def children_of(pid: int) -> list[psutil.Process]:
    """All below a process, but for the tracker that multiprocessing keeps to its process's end once it was used."""
    tracker = getattr(resource_tracker._resource_tracker, "_pid", None)
    return [one for one in psutil.Process(pid).children(recursive=True) if one.pid != tracker]


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_driver_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(tests=str(Path(__file__).parent), out=str(tmp_path / "out")))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], **pipes, env=os.environ | {"TMPDIR": str(tmp_path)}) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() == "step 1"
        family = children_of(driver.pid)
        assert len(family) == 4, "a nursery and three cards"
        (folder,) = tmp_path.glob("zhenfa-*")
        driver.send_signal(number)
        driver.stdout.read()
        driver.wait(PATIENCE_S)
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert alive == []
    assert wait_for(lambda: remains(folder) == [])
    assert {path.name for path in tmp_path.iterdir()} <= {"driver.py", "out"}
    assert not list(tmp_path.glob("out/*"))


def test_killed_card_is_named_at_once(tmp_path: Path) -> None:
    killed_at: list[float] = []
    with LocalEngine() as engine:

        def kill(step: int, *_: object) -> None:
            if step == 2:
                killed_at.append(time.monotonic())
                os.kill(engine.process(1) or 0, signal.SIGKILL)

        with pytest.raises(RunError, match=r"card 1 \(b card, pool b, stage 1 of pipeline 0\) died \(signal SIGKILL\)"):
            run_plan(
                PLAN,
                PAIR,
                TINY,
                Execution(steps=1000, recover=False),
                engine=engine,
                on_progress=kill,
                out_dir=tmp_path,
            )
        assert time.monotonic() - killed_at[0] < 3.0
        family = children_of(os.getpid())
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    assert wait_for(lambda: remains(engine.folder) == [])


def test_silent_card_is_killed_and_named() -> None:
    with LocalEngine() as engine:

        def stop(step: int, *_: object) -> None:
            if step == 1:
                os.kill(engine.process(2) or 0, signal.SIGSTOP)

        execution = Execution(steps=1000, recover=False)
        with pytest.raises(RunError) as caught:
            run_plan(PLAN, PAIR, TINY, execution, engine=engine, on_progress=stop)
        family = children_of(os.getpid())
    message = caught.value.message
    assert re.search(r"no sign of life for 0.5 s: card 2 \(b card.*stage 2 of pipeline 0\)", message)
    assert "card 0" not in message
    assert "stopped by a signal" in message
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []


def test_dead_nursery_is_noticed() -> None:
    with LocalEngine() as engine:
        nursery = {child.pid: child for child in psutil.Process().children()}

        def kill(step: int, *_: object) -> None:
            for pid in nursery:
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(RunError):
            run_plan(PLAN, PAIR, TINY, Execution(steps=1000), engine=engine, on_progress=kill)
        family = [child for child in children_of(os.getpid()) if child.pid not in nursery]
    assert psutil.wait_procs(family, timeout=PATIENCE_S)[1] == []
    assert wait_for(lambda: remains(engine.folder) == [])


def test_failing_card_is_named(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(RunError, match=r"card [02] .* failed while .*too few for sequences of 16"):
        run_plan(PLAN, PAIR, TINY, Execution(steps=2, data=str(short)), out_dir=tmp_path)
    assert "too few" in (tmp_path / "cards.log").read_text()


def test_emulated_card_runs_out_of_memory() -> None:
    machine = formation(pool("a", 1, speed=1e12), pool("b", 1, speed=1e12, capacity="600 kB"))
    with LocalEngine(protect=False) as engine:
        with pytest.raises(RunError, match=r"card 1 .* is out of memory: it holds .* MB of tensors and has 0.6 MB"):
            run_plan(plan(pipeline([4, 4], "ab", 2)), machine, TINY, Execution(steps=1), engine=engine)
        # A comparison that does not fit is said, and the run goes on.
        execution = Execution(steps=1, compare_even_steps=1)
        run = run_plan(plan(pipeline([7, 1], "ab", 2)), machine, TINY, execution, engine=engine)
    assert run.even_split == {}
    assert any("the even split does not fit: card 1" in note for note in run.notes)


REFUSED = {
    "tensor parallel": (PLAN, {"tensor_parallel": 4}, "tensor parallelism of 4; .* 2 kv-heads over 4 cards"),
    "context parallel": (PLAN, {"context_parallel": 2}, "context parallelism of 2; .* works on whole sequences"),
    "expert parallel": (PLAN, {"expert_parallel": 4}, "expert parallelism of 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_refused_before_start(name: str) -> None:
    base, change, words = REFUSED[name]
    stages = tuple(stage.model_copy(update=change) for stage in base.pipelines[0].stages)
    changed = base.model_copy(update={"pipelines": (base.pipelines[0].model_copy(update={"stages": stages}),)})
    with pytest.raises(CapabilityError, match=words):
        run_plan(changed, PAIR, TINY)


def test_zero_and_misfits_are_refused() -> None:
    with pytest.raises(CapabilityError, match="several shard groups"):
        run_plan(plan(pipeline([4, 4], "ab", 4), zero=2).model_copy(update={"shard_group": 2}), PAIR, TINY)
    with pytest.raises(InputError, match="the plan holds 7 layers, the model 8"):
        run_plan(plan(pipeline([4, 3], "ab", 4)), PAIR, TINY)
    with pytest.raises(InputError, match="needs 2 cards of pool 'a', which has 1"):
        run_plan(plan(pipeline([4, 4], "aa", 4)), PAIR, TINY)
    with pytest.raises(InputError, match="pool 'z', which machine 'test-machine' does not have"):
        run_plan(plan(pipeline([4, 4], "az", 4)), PAIR, TINY)
