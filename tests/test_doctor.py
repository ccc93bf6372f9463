"""The doctor: what it finds of the host and of makers' software, and a plan's own messages over real processes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli_runner import Call, caller
from live_pools import TINY, formation, pipeline, plan, pool
from zhenfa.errors import RunError
from zhenfa.live.doctor import cards, host, preflight
from zhenfa.live.doctor.check import Check, judged
from zhenfa.live.doctor.preflight import Exchange, check_of, exchanges
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.makers import DeviceRecord, makers
from zhenfa.live.placement import place

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.live


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    return caller(capsys, monkeypatch)


def by_name(rows: list[Check]) -> dict[str, Check]:
    return {row.what: row for row in rows}


# The host.


def test_this_host_can_run(tmp_path: Path) -> None:
    found = by_name(host.checks(folder=tmp_path / "not" / "there"))
    assert {name for name, row in found.items() if row.verdict == "fail"} == set()
    assert str(tmp_path) in found["disk for checkpoints"].found
    assert all(row.found and bool(row.way_out) == (row.verdict != "ok") for row in found.values())


def test_a_model_that_does_not_fit_is_told(tmp_path: Path) -> None:
    found = by_name(host.checks(parameters=10**15, folder=tmp_path))
    assert found["disk for checkpoints"].verdict == "fail"
    assert found["memory"].verdict == "warn"
    assert "16 bytes a parameter, 16 PB" in found["memory"].way_out


def test_many_cards_need_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert by_name(host.checks(cards=8))["open files"].verdict == "ok"
    few = by_name(host.checks(cards=100))["open files"]
    assert (few.verdict, few.found) == ("warn", "1,024 (at most 4,096)")
    assert few.way_out == "ulimit -n 4096: 100 cards take up to 2,656."


def test_no_torch_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "torch_build", lambda: None)
    found = by_name(host.checks())["torch"]
    assert found == Check("torch", "fail", "not installed", "pip install 'zhenfa[live]'.")


def test_the_way_out_is_kept_where_it_is_needed() -> None:
    assert judged("a", "b", way_out="c").way_out == ""
    assert judged("a", "b", fail=True, warn=True, way_out="c") == Check("a", "fail", "b", "c")


# Makers' software.


def record(maker: str, index: int, **facts: Any) -> DeviceRecord:
    return DeviceRecord(maker, index, facts.pop("name", "some card"), maker, "a test", **facts)


def test_cards_that_torch_does_not_show_are_told_with_the_way_out() -> None:
    found = by_name(cards.checks([record("ascend", 0), record("ascend", 1), record("nvidia", 0)], {}))
    assert found["Huawei Ascend cards"].verdict == "warn"
    assert found["Huawei Ascend cards"].way_out.startswith("install torch_npu as Huawei Ascend publishes it")
    assert found["Huawei Ascend module"].found == "torch_npu is not installed"
    assert found["NVIDIA cards"].verdict == "warn"
    assert "install the torch that is built for NVIDIA (cuda)" in found["NVIDIA cards"].way_out
    partly = [record("nvidia", 0, torch_device="cuda:0"), record("nvidia", 1)]
    assert by_name(cards.checks(partly, {}))["NVIDIA cards"].found == "2 x some card; torch shows 1 of them"


def test_sick_cards_variables_and_timeouts_are_told() -> None:
    sick = record("ascend", 1, torch_device="npu:1", health="failed", problems=("it is on fire",))
    environment = {"ASCEND_RT_VISIBLE_DEVICES": "", "HCCL_CONNECT_TIMEOUT": "60"}
    found = by_name(cards.checks([record("ascend", 0, torch_device="npu:0"), sick], environment))
    assert found["Huawei Ascend health"] == Check(
        "Huawei Ascend health", "fail", "card 1: it is on fire",
        "leave the card out of the machine file, or have it repaired.",
    )  # fmt: skip
    assert found["Huawei Ascend cards shown"].verdict == "warn"
    connect = found["HCCL_CONNECT_TIMEOUT"]
    assert connect.verdict == "warn"
    assert connect.found == "connecting the cards: 80 s (variable); outside the published range of 120 to 7200"
    assert found["HCCL_EXEC_TIMEOUT"].found.endswith("30.6 min (default)")


# Preflight.


def test_a_plan_is_tried_with_its_own_messages_and_sums() -> None:
    machine = formation(pool("a", 2), pool("b", 2))
    uneven = plan(pipeline([5, 3], ["a", "b"], 4, size=2), pipeline([4, 4], ["a", "b"], 4))
    places = place(uneven, machine, TINY)
    message = 16 * 32 * 4
    layers, table = TINY.layer_parameters * 4, 256 * 32 * 4
    assert exchanges(uneven, places, TINY) == [
        Exchange("message", "activations of a micro-batch", (0, 1), 2 * message),
        Exchange("message", "activations of a micro-batch", (2, 3), message),
        Exchange("sum", "gradients of 4 layers and stem", (0, 2), 4 * layers + table),
        Exchange("sum", "gradients of layer 4", (0, 3), layers),
        Exchange("sum", "gradients of 3 layers and head", (1, 3), 3 * layers + table + 32 * 4),
    ]
    with LocalEngine() as engine:
        found = preflight.preflight(engine, uneven, machine, TINY)
    assert [one.exchange for one in found] == exchanges(uneven, places, TINY)
    assert all(one.seconds > 0 for one in found)
    assert [one.cards for one in found][::2] == ["0 (a) to 1 (b)", "0 (a), 2 (a)", "1 (b), 3 (b)"]
    assert all(one.expected is not None for one in found)
    assert check_of(found).verdict in {"ok", "warn"}


def test_links_that_cannot_be_reached_are_called_slow_and_unknown_ones_unknown() -> None:
    fast = formation(pool("a", 2, 1e9), bandwidth="100 TB/s", latency="1 ns")
    two = plan(pipeline([4, 4], ["a", "a"], 4))
    with LocalEngine() as engine:
        (one,) = preflight.preflight(engine, two, fast, TINY)
        assert one.slow
        line = check_of([one])
        assert line.verdict == "warn"
        assert "1 of 1 are slow; the worst, activations of a micro-batch 0 (a) to 1 (a), by" in line.found
    from dataclasses import replace

    unknown = replace(formation(pool("a", 2)), network=None)
    with LocalEngine() as engine:
        (one,) = preflight.preflight(engine, two, unknown, TINY)
    assert (one.expected, one.slow) == (None, False)
    assert check_of([one]).verdict == "ok"


class Dying(LocalEngine):
    """An engine of which one card dies when it has started."""

    def start(self) -> None:
        super().start()
        self.kill(1)


def test_a_card_that_dies_is_named() -> None:
    two = plan(pipeline([4, 4], ["a", "a"], 4))
    with Dying() as engine, pytest.raises(RunError, match=r"card 1 .*died") as caught:
        preflight.preflight(engine, two, formation(pool("a", 2)), TINY)
    line = check_of(caught.value)
    assert (line.what, line.verdict) == ("preflight", "fail")


def test_a_sum_that_comes_out_wrong_is_a_failure() -> None:
    import torch
    import torch.distributed as dist

    from zhenfa.live.doctor.on_card import _sum
    from zhenfa.live.makers import maker

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        _sum(maker("cpu"), torch.ones(7), None, 1)
        with pytest.raises(RuntimeError, match="7 of 7 elements of the sum are wrong"):
            _sum(maker("cpu"), torch.ones(7), None, 2)
    finally:
        dist.destroy_process_group()


def test_cards_of_another_machine_are_refused_before_anything_starts(zhenfa: Call) -> None:
    outcome = zhenfa("doctor", ROOT / "examples" / "cpu-pretrain.yaml", "--on", "atlas800t-a2")
    assert outcome.code == 1
    assert "fail  plan" in outcome.out
    assert "torch_npu, which is not installed here" in " ".join(outcome.out.split())
    assert outcome.err.splitlines()[-2].startswith("error: a run would fail: plan (cards of Huawei Ascend")


# The command.


def test_the_command_says_that_a_run_would_work(zhenfa: Call) -> None:
    outcome = zhenfa("doctor")
    assert outcome.code == 0
    assert outcome.out.startswith("ok    Python")
    for columns in (60, 80, 120, 160):
        assert zhenfa("doctor", columns=columns).widest <= columns
    assert "Traceback" not in zhenfa("doctor", ROOT / "examples" / "none.yaml").err


def test_the_command_lists_the_makers(zhenfa: Call) -> None:
    outcome = zhenfa("doctor", "--makers")
    assert outcome.code == 0
    for one in makers().values():
        assert one.name in outcome.out
        assert all(sentence in " ".join(outcome.out.split()) for sentence in one.missing.values())
    assert "HCCL_EXEC_TIMEOUT: a collective, on Atlas A2 and A3: 30.6 min (default)" in outcome.out
    for columns in (60, 80, 120, 160):
        assert zhenfa("doctor", "--makers", columns=columns).widest <= columns


def test_the_command_fails_where_a_run_would() -> None:
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100));"
    code += "from zhenfa.cli.main import invoke; sys.exit(invoke(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["schema"], found["sound"]) == ("zhenfa.diagnosis/1", False)
    assert [row["what"] for row in found["checks"] if row["verdict"] == "fail"] == ["open files"]
    assert done.stderr.startswith("error: a run would fail: open files (100 (at most 100)).\nhint: ulimit -n 4096")
    assert {one["id"] for one in found["makers"]} >= {"cpu", "ascend", "denglin"}
    assert all(set(one["able"]).isdisjoint(one["missing"]) for one in found["makers"])


def test_the_command_tries_a_job(zhenfa: Call) -> None:
    outcome = zhenfa("doctor", ROOT / "examples" / "mixed-pretrain.yaml", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["sound"]
    assert {one["kind"] for one in found["preflight"]} <= {"message", "sum"}
    assert all(one["measured_s"] > 0 for one in found["preflight"])
