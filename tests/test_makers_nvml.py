"""NVML without a card: the real ``pynvml`` over a library that answers from the environment."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zhenfa.live.makers import makers, nvml
from zhenfa.live.makers.record import merge
from zhenfa.live.makers.recorded import record_of

STUB = Path(__file__).parent / "data" / "nvml" / "stub.c"

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py is not installed"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler to build the stub with"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver library that is none."""
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", STUB], check=True)
    return folder


def asked(driver: Path, code: str, **stub: str) -> Any:
    """Run code that prints JSON in a process that finds the stub."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(driver), "PATH": str(driver)} | stub
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LIST = (
    "import json; from zhenfa.live.makers import maker;"
    "print(json.dumps([one.to_data() for one in maker('nvidia').look()]))"
)


def test_cards_telemetry_and_health_come_from_the_library(driver: Path) -> None:
    found = asked(
        driver, LIST, STUB_CARDS="5", STUB_ECC="0,3", STUB_PENDING="0,0,1", STUB_SLOW="0x5,0,0x40",
        STUB_BROKEN="0,1", STUB_OLD="0,0,0,1", STUB_LOST="0,0,0,0,1",
    )  # fmt: skip
    first = {key: value for key, value in found[0].items() if key not in {"told_by", "numa_node", "torch_device"}}
    assert first == {
        "provider": "nvidia", "index": 0, "name": "NVIDIA H200", "maker": "NVIDIA", "maker_from": "NVML",
        "memory_bytes": 150754820096, "memory_used_bytes": 1000000, "uuid": "GPU-00000000-0000-4000-8000-000000000000",
        "pci_address": "0000:0a:00.0", "driver": "570.86.15", "temperature_c": 30, "power_w": 76.52,
        "power_limit_w": 700.0, "utilisation": 0.42, "health": "ok", "problems": [],
    }  # fmt: skip
    assert set(found[0]["told_by"].values()) == {"NVML"}
    assert [one["health"] for one in found] == ["ok", "failed", "warning", None, "failed"]
    assert found[1]["problems"] == [
        "3 uncorrected memory errors since the driver was loaded",
        "a bad row of memory could not be replaced: the card must be",
    ]
    assert found[2]["problems"] == [
        "a bad row of memory is replaced when the card is reset",
        "its clocks are held down by heat",
    ]
    assert found[3]["problems"] == []
    assert "fallen off the bus" in found[4]["problems"][0]
    assert found[4]["memory_bytes"] is None


def test_without_a_driver_there_are_no_cards(driver: Path) -> None:
    assert asked(driver, LIST, STUB_CARDS="0") == []


def test_xid_errors_are_heard_once(driver: Path) -> None:
    code = (
        "import json; from zhenfa.live.makers.nvml import XidWatch\n"
        "with XidWatch() as watch:\n"
        "    first = [one.words() for one in watch.faults(0.01)]; again = watch.faults()\n"
        "    print(json.dumps([watch.listening, first, again]))"
    )
    listening, first, again = asked(driver, code, STUB_CARDS="3", STUB_XID="0,79,31")
    assert listening
    assert first == [
        f"Xid {code} on GPU-00000000-0000-4000-8000-00000000000{card}" for card, code in ((1, 79), (2, 31))
    ]
    assert again == []
    assert asked(driver, code, STUB_CARDS="0") == [False, [], []]


def test_the_command_shows_what_is_wrong(driver: Path) -> None:
    environment = os.environ | {"LD_LIBRARY_PATH": str(driver), "COLUMNS": "120", "STUB_CARDS": "2", "STUB_ECC": "0,1"}
    command = [sys.executable, "-m", "zhenfa.cli.main", "devices"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=60)
    assert done.stdout.count("NVIDIA H200") == 2
    assert "1 uncorrected memory errors" in done.stdout
    assert "not shown" in done.stdout


GPUSTACK = (
    "import json; from zhenfa.live.makers import makers; from zhenfa.live.makers.probe import gpustack_cards;"
    "print(json.dumps([one.to_data() for one in gpustack_cards(makers())]))"
)


def test_gpustack_runtime_tells_of_the_same_cards(driver: Path) -> None:
    pytest.importorskip("gpustack_runtime")
    stub = {"STUB_CARDS": "2", "GPUSTACK_RUNTIME_DETECT_NO_PCI_CHECK": "1"}
    theirs, ours = asked(driver, GPUSTACK, **stub), asked(driver, LIST, **stub)
    assert {way for one in theirs for way in one["told_by"].values()} == {"gpustack-runtime"}
    merged = merge([record_of(one) for one in (*ours, *theirs)])
    assert [one.to_data() for one in merged] == ours
    for name in ("uuid", "name", "driver", "temperature_c", "power_limit_w", "utilisation"):
        assert [one[name] for one in theirs] == [one[name] for one in ours]
    assert [one["memory_bytes"] // 2**20 for one in theirs] == [one["memory_bytes"] // 2**20 for one in ours]


def test_on_this_host_as_it_is() -> None:
    with nvml.opened() as module:
        count = 0 if module is None else module.nvmlDeviceGetCount()
    found = makers()["nvidia"].look()
    assert len(found) >= count
    assert all(one.health in {"ok", "warning", "failed", None} for one in found)
    assert all(one.uuid and one.memory_bytes for one in found if one.health != "failed")
