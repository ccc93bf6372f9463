"""A Ray of several nodes: the losses of one host, a node that dies, a head that dies, room that is not there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from test_live_hosts import PLAN, SETTINGS, STEPS, THREE, left, told
from zhenfa.errors import CapabilityError
from zhenfa.live import engine_ray
from zhenfa.live.engine_ray import RayEngine
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import CardPool

pytestmark = [pytest.mark.ray, pytest.mark.live]

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 40.0


@contextlib.contextmanager
def cluster(*resources: dict[str, float]) -> Iterator[tuple[Any, list[Any]]]:
    """A Ray with a head that carries no card and a node for each of these."""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    loopback = pytest.MonkeyPatch()
    loopback.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # otherwise 127.0.0.1 is taken for another address
    loopback.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    loopback.setenv("RAY_worker_niceness", "0")
    shape = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000, "node_ip_address": "127.0.0.1"}
    try:
        made = Cluster(initialize_head=True, head_node_args={**shape, "include_dashboard": False, "node_name": "head"})
        try:
            nodes = [
                made.add_node(**shape, node_name=f"node{number}", resources=row)
                for number, row in enumerate(resources, 1)
            ]
            made.wait_for_nodes(PATIENCE_S)
            yield made, nodes
        finally:
            made.shutdown()
    finally:
        loopback.undo()


@pytest.fixture(scope="module")
def three() -> Iterator[str]:
    with cluster({"zhenfa-a": 1}, {"zhenfa-b": 1}, {"zhenfa-b": 1}) as (made, _):
        yield made.address


def test_a_hundred_steps_on_three_nodes(three: str, tmp_path: Path) -> None:
    execution = Execution(**SETTINGS | {"steps": 100})
    with RayEngine(ray=three, protect=False) as engine:
        found = run_plan(PLAN, THREE, TINY, execution, engine=engine, out_dir=tmp_path)
        where = [engine._name_of(place.card) for place in engine.places]
        assert where[0] == "node1"
        assert sorted(where[1:]) == ["node2", "node3"]
        outposts = [psutil.Process(engine.host(name).nursery) for name in where]
        cards = [psutil.Process(engine.process(rank)) for rank in range(3)]
    local = run_plan(PLAN, THREE, TINY, execution)
    assert found.losses == local.losses, "the same layout gives the same losses to the bit"
    assert found.losses == pytest.approx(reference_losses(TINY, execution, steps=100, global_batch=4), rel=1e-5)
    assert psutil.wait_procs([*outposts, *cards], timeout=PATIENCE_S)[1] == []
    assert engine._keeper.poll() is not None, "Ray goes on, what we started in it does not"


def test_a_machine_file_says_on_which_nodes_a_pool_is(three: str, tmp_path: Path) -> None:
    """No resource is asked for where the file names the hosts."""
    machine = formation(_on(pool("c", 2), "node3", "node1"))
    with RayEngine(ray=three, protect=False) as engine:
        run_plan(plan(pipeline([4, 4], "cc", 4)), machine, TINY, Execution(steps=2), engine=engine, out_dir=tmp_path)
        assert [engine._name_of(place.card) for place in engine.places] == ["node3", "node1"]
    machine = formation(_on(pool("c", 2), "node9"))
    with (
        RayEngine(ray=three, protect=False) as engine,
        pytest.raises(CapabilityError, match="pool 'c' is on host 'node9', which Ray does not have") as caught,
    ):
        run_plan(plan(pipeline([8], "c", 4)), machine, TINY, Execution(steps=2), engine=engine, out_dir=tmp_path)
    assert caught.value.hint == "its nodes: head, node1, node2, node3; `ray start --node-name node9` names one."


def test_room_that_is_not_there_is_said_at_once(three: str, tmp_path: Path) -> None:
    machine = formation(pool("z", 2))
    with (
        RayEngine(ray=three, protect=False) as engine,
        pytest.raises(CapabilityError, match="Ray has room for 0 cards of pool 'z'; the plan needs 2") as caught,
    ):
        run_plan(plan(pipeline([4, 4], "zz", 4)), machine, TINY, Execution(steps=2), engine=engine, out_dir=tmp_path)
    assert f"ray start --address={three} --resources='{{\"zhenfa-z\": 2}}'" in (caught.value.hint or "")


def test_a_node_that_dies_is_done_without(tmp_path: Path) -> None:
    with cluster({"zhenfa-a": 1}, {"zhenfa-b": 1}, {"zhenfa-b": 1}) as (made, nodes):
        execution = Execution(**SETTINGS | {"steps": 5000})
        after: list[int] = []
        with RayEngine(ray=made.address, protect=False) as engine:

            def strike(step: int, *_: object) -> None:
                if step == 3 and not engine.unreachable():
                    made.remove_node(nodes[1], allow_graceful=False)
                if len(engine.places) == 2:
                    after.append(step)

            found = run_plan(
                PLAN, THREE, TINY, execution, engine=engine, replan=left, out_dir=tmp_path, on_progress=strike,
                stop=lambda: len(after) >= 4,
            )  # fmt: skip
            assert len(engine.unreachable()) == 1
    assert [(kind, action) for _, kind, action in told(found)] == [("death", "re-form")]
    expected = reference_losses(TINY, execution, steps=len(found.losses), global_batch=4)
    assert found.losses == pytest.approx(expected, rel=1e-4)


def test_a_head_that_dies_does_not_disturb_the_cards(tmp_path: Path) -> None:
    with cluster({"zhenfa-a": 1}, {"zhenfa-b": 2}) as (made, _):
        execution = Execution(**SETTINGS)
        with RayEngine(ray=made.address, protect=False) as engine:

            def strike(step: int, *_: object) -> None:
                if step == 3:
                    (head,) = [info.process.pid for info in made.head_node.all_processes["gcs_server"]]
                    os.kill(head, signal.SIGKILL)

            found = run_plan(
                PLAN, THREE, TINY, execution, engine=engine, replan=left, out_dir=tmp_path, on_progress=strike
            )
    assert told(found) == []
    assert found.losses == pytest.approx(reference_losses(TINY, execution, steps=STEPS, global_batch=4), rel=1e-5)
    assert Path(found.checkpoint or "").name == f"checkpoint-{STEPS:06d}"


def test_the_command_of_the_guide(tmp_path: Path) -> None:
    page = (ROOT / "docs/guide/hosts.md").read_text(encoding="utf-8")
    assert "RAY_ADDRESS=HEAD:6379 zhenfa run JOB --engine ray" in page
    quartet = ({"zhenfa-ascend": 1}, {"zhenfa-hygon": 1}, {"zhenfa-cambricon": 2})
    with cluster(*quartet) as (made, _):
        command = [str(Path(sys.executable).parent / "zhenfa"), "run", str(ROOT / "examples/mixed-pretrain.yaml")]
        found = subprocess.run(
            [*command, "--engine", "ray", "--steps", "2", "--json"], env=os.environ | {"RAY_ADDRESS": made.address},
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert (answer["engine"], len(answer["losses"])) == ("ray", 2)


def test_a_ray_that_is_not_there_is_named() -> None:
    with pytest.raises(CapabilityError, match=r"no Ray answers at 127\.0\.0\.1:1: Connection refused\.") as told:
        RayEngine(ray="127.0.0.1:1")
    assert told.value.hint is not None
    assert told.value.hint.startswith("is its head up? `ray start --head` prints its address")
    with pytest.raises(CapabilityError, match=r"no Ray answers at 127\.0\.0\.1:99999"):
        RayEngine(ray="127.0.0.1:99999")
    with pytest.raises(CapabilityError, match="ray://head:10001 is the address of a Ray client's server"):
        RayEngine(ray="ray://head:10001")


def test_what_answers_and_is_no_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_ray, "PROBE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(CapabilityError, match=f"what answers at {address} is no Ray"):
            RayEngine(ray=address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        web = threading.Thread(target=_answer_once, args=(server,))
        web.start()
        with pytest.raises(CapabilityError, match=f"what answers at {address} is no Ray"):
            RayEngine(ray=address)
        web.join()


def _answer_once(server: socket.socket) -> None:
    channel, _ = server.accept()
    with channel:
        channel.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def _on(cards: CardPool, *hosts: str) -> CardPool:
    from dataclasses import replace

    return replace(cards, hosts=hosts)
