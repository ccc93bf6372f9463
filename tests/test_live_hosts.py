"""A run over several hosts: the same losses, hosts that die or fall silent, clocks and networks of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_pools import HOSTS, can, engine_on, networks, outpost, own_clock, own_memory
from live_pools import TINY, formation, pipeline, plan, pool, reference_losses, remains
from zhenfa import catalog
from zhenfa.errors import CapabilityError, InputError
from zhenfa.live import door
from zhenfa.live.door import Door, StrangerError
from zhenfa.live.engine_spread import CommandEngine
from zhenfa.live.hosts import Host, deal, own_address
from zhenfa.live.makers.emulated import FILE
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution, Fault
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Run

pytestmark = pytest.mark.live

STEPS = 7
SETTINGS = {"steps": STEPS, "learning_rate": 1e-3, "seed": 5}
THREE = formation(pool("a", 1), pool("b", 2))
PLAN = plan(pipeline([4, 3, 1], "abb", 4))
PATIENCE_S = 60.0

DRIVER = """
import json, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_live_hosts import PLAN, SETTINGS, THREE, TINY, CommandEngine, Execution, Fault, left, run_plan
from zhenfa.live.hosts import own_address

if __name__ == "__main__":
    commands, address, faults, out, steps = json.loads(sys.argv[1])
    execution = Execution(**SETTINGS | {{"steps": steps, "faults": [Fault(**one) for one in faults]}})

    def tell(step, total, loss, seconds):
        print(json.dumps(["step", step]), flush=True)

    with CommandEngine(address, list(commands), list(commands.values()), protect=False) as engine:
        run = run_plan(PLAN, THREE, TINY, execution, engine=engine, replan=left, out_dir=Path(out), on_progress=tell)
        ahead = {{name: engine.host(name).ahead for name in commands}}
    print(json.dumps(["run", run.losses, [[one.step, one.kind, one.action] for one in run.incidents], ahead,
                      run.figures.step_time_s.value]))
"""


@pytest.fixture(scope="module")
def undisturbed() -> list[float]:
    return reference_losses(TINY, Execution(**SETTINGS), steps=STEPS, global_batch=4)


def left(machine: Formation) -> Plan:
    """The plan for what is left of the three cards."""
    names = [one.name for one in machine.pools for _ in range(one.count)]
    return plan(pipeline({1: [8], 2: [5, 3], 3: [4, 3, 1]}[len(names)], names, 4))


def run(engine: CommandEngine, out: Path, *faults: Fault, on_progress: object = None, **more: object) -> Run:
    execution = Execution(**(SETTINGS | more), faults=faults)
    return run_plan(
        PLAN, THREE, TINY, execution, engine=engine, replan=left, out_dir=out, on_progress=on_progress  # type: ignore[arg-type]
    )  # fmt: skip


def told(run: Run) -> list[tuple[int, str, str]]:
    return [(one.step, one.kind, one.action) for one in run.incidents]


def test_three_hosts_train_as_one(undisturbed: list[float], tmp_path: Path) -> None:
    before = set(psutil.pids())
    with engine_on() as engine:
        faults = [Fault(step=3, card=1, kind="kill"), Fault(step=5, card=2, kind="hang")]
        found = run(engine, tmp_path, *faults, checkpoint_every=2)
        where = {place.card: engine._name_of(place.card) for place in engine.places}
        assert where == {("a", 0): "east", ("b", 0): "north", ("b", 1): "west"}
        outposts = [engine.host(name).nursery for name in HOSTS]
        assert all(psutil.Process(engine.process(rank)).ppid() == outposts[rank] for rank in range(3))
        rest = remains(engine.folder)
        assert engine.folder in rest
    assert told(found) == [(3, "death", "restart"), (5, "hang", "restart")]
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)
    assert found.engine == "hosts"
    assert found.notes == ("the mean leaves out the first step of " + found.notes[0].rpartition("of ")[2],)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000006", "checkpoint-000007"]
    assert remains(engine.folder) == []
    gone = [pid for pid in outposts if pid in set(psutil.pids()) - before]
    assert gone == []


def test_a_host_that_dies_takes_its_cards_with_it(undisturbed: list[float], tmp_path: Path) -> None:
    with engine_on() as engine:

        def strike(step: int, *_: object) -> None:
            if step == 3 and not engine.unreachable():
                os.kill(engine.host("north").nursery, signal.SIGKILL)

        found = run(engine, tmp_path, on_progress=strike)
        assert engine.unreachable() == {("b", 0)}
        assert [place.card for place in engine.places] == [("a", 0), ("b", 1)]
    assert [(kind, action) for _, kind, action in told(found)] == [("death", "re-form")]
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)


def test_a_host_that_dies_when_all_is_done_does_no_harm(undisturbed: list[float], tmp_path: Path) -> None:
    with engine_on() as engine:
        found = run(engine, tmp_path)
        nursery = psutil.Process(engine.host("north").nursery)
        nursery.kill()
        psutil.wait_procs([nursery], timeout=PATIENCE_S)
        engine.host("north").channel.shutdown(socket.SHUT_WR)  # what the next words find, sooner or later
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)


def test_two_of_three_hosts_die_at_once(undisturbed: list[float], tmp_path: Path) -> None:
    with engine_on() as engine:

        def strike(step: int, *_: object) -> None:
            if step == 3 and not engine.unreachable():
                os.kill(engine.host("east").nursery, signal.SIGKILL)
                os.kill(engine.host("west").nursery, signal.SIGKILL)

        found = run(engine, tmp_path, on_progress=strike)
        assert [place.card for place in engine.places] == [("b", 0)]
    assert {(kind, action) for _, kind, action in told(found)} == {("death", "re-form")}
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)


def test_a_host_that_falls_silent_is_given_up(undisturbed: list[float], tmp_path: Path) -> None:
    with engine_on() as engine:
        engine.silent_s = 4.0
        stopped: list[int] = []

        def strike(step: int, *_: object) -> None:
            if step == 3 and not engine.unreachable():
                outpost = engine.host("west").nursery
                stopped.extend([outpost, engine.process(2) or 0])
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)

        found = run(engine, tmp_path, on_progress=strike)
        assert engine.unreachable() == {("b", 1)}
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        psutil.wait_procs([psutil.Process(pid) for pid in stopped if psutil.pid_exists(pid)], timeout=PATIENCE_S)
    assert [(one.kind, one.action, one.words) for one in found.incidents] == [
        ("death", "re-form", "its host west is not heard of for 4 s")
    ]
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)
    assert not any(psutil.pid_exists(pid) for pid in stopped)


def test_a_host_that_does_not_come_is_named(tmp_path: Path) -> None:
    wrong = ["env", "ZHENFA_HOST=south", sys.executable, "-c", "print('no such thing here'); raise SystemExit(3)"]
    engine = CommandEngine("127.0.0.1", ["south"], [wrong], protect=False)
    with engine, pytest.raises(Exception, match=r"host south did not answer.*It said last: no such thing here"):
        run(engine, tmp_path)


@pytest.mark.skipif(not can("unshare", "--mount"), reason="mount namespaces are not to be had here")
def test_a_host_that_does_not_see_the_run_s_folder_is_named(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    blind = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {out} && exec "$@"', "sh"]
    commands = [outpost("east"), outpost("north", *blind), outpost("west")]
    with (
        CommandEngine("127.0.0.1", HOSTS, commands, protect=False) as engine,
        pytest.raises(CapabilityError, match=r"the run's folder '.*runs' is not seen by north\."),
    ):
        run(engine, out)
    assert list(out.iterdir()) == []


@pytest.mark.skipif(not can("unshare", "--time", "--fork"), reason="time namespaces are not to be had here")
def test_clocks_of_hosts_need_not_agree(tmp_path: Path, undisturbed: list[float]) -> None:
    commands = [outpost("east"), outpost("north", *own_clock(5000)), outpost("west", *own_clock(90_000))]
    with CommandEngine("127.0.0.1", HOSTS, commands, protect=False) as engine:
        found = run(engine, tmp_path, Fault(step=4, card=2, kind="hang"))
        ahead = [engine.host(name).ahead for name in HOSTS]
    assert ahead == [pytest.approx(value, abs=0.5) for value in (0.0, -5000.0, -90_000.0)]
    assert told(found) == [(4, "hang", "restart")]
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)
    assert (found.figures.step_time_s.value or 0.0) < 60.0
    assert {event.kind for event in found.events} >= {"forward", "backward", "wait"}
    assert all(-1.0 < event.start_s <= event.end_s < 60.0 for event in found.events)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "driver.py"
    path.write_text(DRIVER.format(tests=str(Path(__file__).parent)))
    return path


def lines(text: str) -> Iterator[list[object]]:
    return (json.loads(line) for line in text.splitlines() if line.startswith("["))


@pytest.mark.skipif(not can("unshare", "--mount"), reason="mount namespaces are not to be had here")
def test_hosts_with_networks_and_memory_of_their_own(script: Path, tmp_path: Path, undisturbed: list[float]) -> None:
    names = ("driver", "north", "west")
    with networks(names) as spaces:
        commands = {
            name: outpost(name, *spaces[name], *own_memory(tmp_path / f"memory-{name}")) for name in names
        }  # fmt: skip
        faults = [{"step": 3, "card": 1, "kind": "kill"}, {"step": 5, "card": 0, "kind": "hang"}]
        asked = json.dumps([commands, "10.77.0.1", faults, str(tmp_path / "out"), STEPS])
        found = subprocess.run(
            [*spaces["driver"], sys.executable, str(script), asked], capture_output=True, text=True, check=False
        )
    assert found.returncode == 0, found.stderr
    *_, (_, losses, incidents, _, _) = lines(found.stdout)
    assert incidents == [[3, "death", "restart"], [5, "hang", "restart"]]
    assert losses == pytest.approx(undisturbed, rel=1e-5)


def test_a_killed_driver_leaves_nothing_on_any_host(script: Path, tmp_path: Path) -> None:
    commands = {name: outpost(name) for name in HOSTS}
    asked = json.dumps([commands, "127.0.0.1", [], str(tmp_path / "out"), 100_000])
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(script), asked], stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        assert json.loads(driver.stdout.readline()) == ["step", 1]
        family = psutil.Process(driver.pid).children(recursive=True)
        assert len(family) >= 7
        assert len(list(tmp_path.glob("zhenfa-*"))) == 4
        driver.kill()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert alive == []
    deadline = time.monotonic() + PATIENCE_S
    while list(tmp_path.glob("zhenfa-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.glob("zhenfa-*")) == []
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []


def test_nobody_enters_without_the_token() -> None:
    opened = Door("127.0.0.1")
    try:
        with pytest.raises(StrangerError):
            door.enter(opened.address, "another token", {"host": "east"})
        with socket.create_connection(opened.address) as silent:
            silent.sendall(b"x" * 64)
            assert silent.recv(32) != b""
            assert silent.recv(32) == b""
        channel = door.enter(opened.address, opened.token, {"host": "east"})
        opened.bell.recv(1, socket.MSG_PEEK)
        ((hello, theirs),) = opened.guests()
        assert hello == {"host": "east"}
        channel.close()
        theirs.close()
        assert opened.token not in json.dumps([str(thread) for thread in psutil.Process().cmdline()])
    finally:
        opened.close()


def test_a_false_driver_is_not_obeyed() -> None:
    """Who listens at the driver's address must know the token too, and cannot send a guest's own proof back."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()[:2]

    def impostor() -> None:
        channel, _ = listener.accept()
        with channel:
            channel.sendall(b"n" * 32)
            answer = channel.recv(64)
            channel.sendall(answer[:32])

    import threading

    thread = threading.Thread(target=impostor)
    thread.start()
    with pytest.raises(StrangerError, match="does not know the run's token"):
        door.enter(address, "the token", {"host": "east"})
    thread.join()
    listener.close()


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1),
    st.lists(st.sampled_from(["n1", "n2", "n3", "n4", "n5"]), min_size=1, unique=True),
)
def test_cards_are_dealt_out_evenly_and_in_order(pools: dict[str, int], hosts: list[str]) -> None:
    dealt = deal(pools, hosts, {})
    assert list(dealt) == [(pool, index) for pool, count in pools.items() for index in range(count)]
    order = [hosts.index(name) for name in dealt.values()]
    assert order == sorted(order)
    counts = [order.count(number) for number in range(len(hosts))]
    assert max(counts) - min(counts) <= 1


def test_a_pool_goes_to_the_hosts_that_the_machine_names() -> None:
    dealt = deal({"a": 2, "b": 4}, ["n1", "n2", "n3"], {"b": ("n3", "n1")})
    assert dealt == {
        ("b", 0): "n3", ("b", 1): "n3", ("b", 2): "n1", ("b", 3): "n1", ("a", 0): "n1", ("a", 1): "n2",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"pool 'b' is on host 'n9', which is not among the hosts of this run: n1\."):
        deal({"b": 4}, ["n1"], {"b": ("n9",)})


def test_the_driver_is_reached_by_loopback_where_all_hosts_are_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_address(["127.0.0.1", "localhost"]) == "127.0.0.1"
    monkeypatch.setenv("ZHENFA_ADDRESS", "127.0.0.5")
    assert own_address(["127.0.0.1"]) == "127.0.0.5"
    with pytest.raises(CapabilityError, match="no way from this host to host '::1'"):
        own_address(["::1"])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.floats(-1e6, 1e6))
def test_a_clock_is_known_to_half_of_the_quickest_answer(ways: list[tuple[float, float]], ahead: float) -> None:
    one, other = socket.socketpair()
    with one, other:
        host = Host("east", one, 0)
        for there, back in ways:
            now = time.monotonic()
            host.set_clock(now - there - back, now - back - ahead)
        quickest = min(there + back for there, back in ways)
        assert abs(host.ahead - ahead) <= quickest / 2.0 * 1.05 ** len(ways) + 0.1


def test_the_machine_of_the_guide_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/guide/hosts.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "two-islands.yaml"
    file.write_text(text, encoding="utf-8")
    machine = catalog.resolve(catalog.load_machine(file))
    assert {one.name: one.hosts for one in machine.pools} == {"ascend": ("node1", "node2"), "nvidia": ("node9",)}


def test_cards_of_one_maker_are_counted_on_each_host() -> None:
    machine = formation(pool("a", 2), pool("b", 2), pool("c", 1))
    with CommandEngine("127.0.0.1", HOSTS, [], protect=False) as engine:
        engine.carry(machine)
        seats = {card: engine.seat(card) for card in [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)]}
    assert seats == {
        ("a", 0): ("east", 0), ("a", 1): ("east", 1), ("b", 0): ("north", 0), ("b", 1): ("north", 1),
        ("c", 0): ("west", 0),
    }  # fmt: skip


def test_each_host_tells_of_its_own_cards(
    monkeypatch: pytest.MonkeyPatch, undisturbed: list[float], tmp_path: Path
) -> None:
    file, words = tmp_path / "health.json", "2 uncorrected memory errors"
    card = {"provider": "emulated", "index": 1, "name": "b", "maker": "emulated", "maker_from": "a file",
            "health": "failed", "problems": [words], "power_w": 100.0}  # fmt: skip
    file.write_text(json.dumps({"schema": "zhenfa.devices/2", "devices": [card]}), encoding="utf-8")
    monkeypatch.setenv(FILE, str(file))
    machine = formation(pool("a", 1, 2e12), pool("b", 2, 1e12))
    with engine_on() as engine:
        ended: list[int] = []

        def seen(step: int, *_: object) -> None:
            if len(engine.places) == 2:
                ended.append(step)

        execution = Execution(**(SETTINGS | {"steps": 400, "health_every_s": 1e-6}))
        found = run_plan(
            PLAN, machine, TINY, execution, engine=engine, replan=left, on_progress=seen, stop=lambda: len(ended) > 7
        )
        assert [place.card for place in engine.places] == [("a", 0), ("b", 0)]
    (incident,) = found.incidents
    assert (incident.kind, incident.card, incident.action) == ("health", "card 1 of pool b", "re-form")
    assert incident.words == f"{words}; taken out before it failed"
    assert [(one.pool, one.index, one.power_w) for one in found.telemetry] == [("b", 1, 100.0)]
    assert found.losses[:STEPS] == pytest.approx(undisturbed, rel=1e-5)
    assert remains(engine.folder) == []
