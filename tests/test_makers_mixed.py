"""A host with cards of many makers: tools that print recorded outputs, a stub of torch, a PCI bus of files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from zhenfa.live.makers import DeviceRecord, makers
from zhenfa.live.makers import pci as bus
from zhenfa.live.makers.probe import built_for, commands, torch_build

DATA = Path(__file__).parent / "data" / "smi"

TORCH = '''
"""What zhenfa asks of torch about cards, answered from the environment."""
import json, os, sys, types

class Properties:
    def __init__(self, facts): self.__dict__.update(facts)

class Cards(types.ModuleType):
    def __init__(self, kind):
        super().__init__(f"torch.{kind}")
        self.kind = kind
    def cards(self): return json.loads(os.environ.get("STUB_TORCH", "{}")).get(self.kind, [])
    def is_available(self): return bool(self.cards())
    def device_count(self): return len(self.cards())
    def get_device_name(self, index): return self.cards()[index]["name"]
    def get_device_properties(self, index): return Properties(self.cards()[index])

cuda, npu = Cards("cuda"), Cards("npu")

class Accelerator(types.ModuleType):
    def is_available(self): return "torch_npu" in sys.modules
    def current_accelerator(self): return types.SimpleNamespace(type="npu")
    def device_count(self): return npu.device_count()

accelerator = Accelerator("torch.accelerator")
'''


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """The environment of such a host."""
    folder = tmp_path / "packages"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(TORCH)
    version = (
        "__version__ = '2.8.0'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\nxpu: Optional[str] = None\n"
    )
    (folder / "torch" / "version.py").write_text(version)
    (folder / "torch_npu.py").write_text("import torch\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, output in (("nvidia-smi", "nvidia-smi.csv"), ("npu-smi", "npu-smi.txt"), ("cnmon", "cnmon.txt"),
                         ("hy-smi", "hy-smi.txt"), ("mx-smi", "mx-smi.txt"), ("ixsmi", "ixsmi.txt"),
                         ("xpu-smi", "xpu-smi-kunlunxin.txt"), ("mthreads-gmi", "mthreads-gmi.txt"),
                         ("efsmi", "efsmi.txt"), ("hl-smi", "hl-smi.csv"), ("rocm-smi", "rocm-smi.json"),
                         ("ppu-smi", "ppu-smi.csv")):  # fmt: skip
        (tools / name).write_text(f"#!/bin/sh\nexec /bin/cat '{DATA / output}'\n")
        (tools / name).chmod(0o700)
    return os.environ | {"PATH": str(tools), "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def zhenfa(stub: dict[str, str], *arguments: str, **torch: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zhenfa.cli.main", *arguments, "--json"]
    environment = stub | {"STUB_TORCH": json.dumps(torch)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_cards_of_twelve_makers_are_listed_each_once(stub: dict[str, str]) -> None:
    nvidia = [
        {"name": "NVIDIA H200", "uuid": f"6f0a8d5e-0000-4000-8000-00000000000{number}", "total_memory": 143771 * 2**20}
        for number in (2, 1)
    ]
    npu = [{"name": "Ascend910B3", "total_memory": 2**36}]
    done = zhenfa(stub, "devices", cuda=nvidia, npu=npu)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["devices"]
    assert Counter(one["provider"] for one in found) == {
        "cpu": 1, "nvidia": 3, "ascend": 2, "cambricon": 2, "hygon": 2, "metax": 2, "iluvatar": 1, "kunlunxin": 2,
        "mthreads": 2, "enflame": 2, "gaudi": 2, "amd": 2, "thead": 2,
    }  # fmt: skip
    cards = {(one["provider"], one["uuid"] or one["pci_address"]): one for one in found}
    second = cards["nvidia", "GPU-6f0a8d5e-0000-4000-8000-000000000002"]
    assert (second["torch_device"], second["index"], second["health"]) == ("cuda:0", 0, "failed")
    assert (second["told_by"]["torch_device"], second["told_by"]["power_w"]) == ("torch", "nvidia-smi")
    assert cards["nvidia", "GPU-6f0a8d5e-0000-4000-8000-000000000001"]["torch_device"] == "cuda:1"
    assert [one["torch_device"] for one in found if one["provider"] == "ascend"] == ["npu:0", None]
    assert [one["name"] for one in found if one["provider"] == "ascend"] == ["Ascend910B3", "Ascend 910B3"]


def test_the_doctor_says_which_of_them_a_run_can_use(stub: dict[str, str]) -> None:
    npu = [{"name": "Ascend910B3", "total_memory": 2**36}] * 2
    done = zhenfa(stub, "doctor", npu=npu)
    assert done.returncode == 1
    found = {row["what"]: row for row in json.loads(done.stdout)["checks"]}
    assert found["Huawei Ascend cards"]["verdict"] == "ok"
    assert found["Huawei Ascend cards"]["found"] == "2 x Ascend910B3, driver 24.1.rc1"
    assert found["Huawei Ascend health"]["found"] == "card 1: the maker's tool calls its health 'Alarm'"
    assert found["Cambricon cards"]["way_out"].startswith("install torch_mlu as Cambricon publishes it")
    assert found["NVIDIA cards"]["way_out"].startswith("see that the driver is loaded")
    assert "Traceback" not in done.stderr
    tool = Path(stub["PATH"]) / "ixsmi"
    tool.write_text("#!/bin/sh\necho 'IX-ML 9.0: cards are now listed in verse'\n")
    rows = {row["what"]: row for row in json.loads(zhenfa(stub, "doctor", npu=npu).stdout)["checks"]}
    assert (rows["ixsmi"]["verdict"], rows["ixsmi"]["found"]) == ("warn", "is here and tells of no cards")
    assert "npu-smi" not in rows


def test_cards_behind_one_device_type_are_told_by_their_names(stub: dict[str, str]) -> None:
    names = ["MetaX C500", "K100_AI", "Iluvatar BI-V150", "something new"]
    done = zhenfa(stub | {"PATH": "/nowhere"}, "devices", cuda=[{"name": name, "total_memory": 1} for name in names])
    found = [one for one in json.loads(done.stdout)["devices"] if one["torch_device"] != "cpu"]
    assert [(one["provider"], one["maker"]) for one in found] == [
        ("metax", "MetaX"), ("hygon", "Hygon"), ("iluvatar", "Iluvatar CoreX"), ("nvidia", "unknown"),
    ]  # fmt: skip
    assert found[-1]["maker_from"] == "device name not recognised"


def test_a_makers_module_that_crashes_shows_no_cards(stub: dict[str, str]) -> None:
    folder = Path(stub["PYTHONPATH"].split(os.pathsep)[0])
    (folder / "torch_npu.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n")
    done = zhenfa(stub, "devices", npu=[{"name": "Ascend910B3", "total_memory": 1}])
    assert done.returncode == 0
    ascend = [one for one in json.loads(done.stdout)["devices"] if one["provider"] == "ascend"]
    assert [one["torch_device"] for one in ascend] == [None, None]


def test_torch_is_asked_only_for_what_it_is_built_for() -> None:
    built = torch_build()
    assert built is not None
    kinds = {command[0] for command in commands(makers())}
    assert {kind for kind in kinds if kind in {"cuda", "xpu"}} == {
        kind for kind in ("cuda", "xpu") if kind in built or (kind == "cuda" and "hip" in built)
    }
    assert built_for(makers()["cpu"])
    assert not built_for(makers()["denglin"])


# The PCI bus.


def device(root: Path, address: str, vendor: str, kind: str, *, node: int = 0, driver: bool = True) -> None:
    folder = root / address
    folder.mkdir()
    for name, text in (("vendor", vendor), ("device", "0x1234"), ("class", kind), ("numa_node", str(node))):
        (folder / name).write_text(f"{text}\n")
    if driver:
        (folder / "driver").mkdir()


def test_cards_on_the_bus_are_found_without_a_driver(tmp_path: Path) -> None:
    device(tmp_path, "0000:c1:00.0", "0x19e5", "0x120000", node=1)
    device(tmp_path, "0000:0a:00.0", "0x10de", "0x030200", driver=False)
    device(tmp_path, "0000:0b:00.0", "0x10de", "0x030200", node=-1)
    device(tmp_path, "0000:00:1f.0", "0x8086", "0x060100")  # a bridge
    device(tmp_path, "0000:02:00.0", "0x1a03", "0x030000")  # a display of no maker of ours
    (tmp_path / "0000:ff:00.0").mkdir()  # it went away
    assert bus.cards(makers(), tmp_path) == [
        DeviceRecord(
            "nvidia", 0, "NVIDIA device 0x1234", "NVIDIA", "PCI vendor id", pci_address="0000:0a:00.0", numa_node=0,
            problems=("no driver of the kernel is bound to it",),
            told_by=dict.fromkeys(("name", "pci_address", "numa_node"), "PCI bus"),
        ),
        DeviceRecord(
            "nvidia", 1, "NVIDIA device 0x1234", "NVIDIA", "PCI vendor id", pci_address="0000:0b:00.0",
            told_by=dict.fromkeys(("name", "pci_address"), "PCI bus"),
        ),
        DeviceRecord(
            "ascend", 0, "Huawei Ascend device 0x1234", "Huawei Ascend", "PCI vendor id", pci_address="0000:c1:00.0",
            numa_node=1, told_by=dict.fromkeys(("name", "pci_address", "numa_node"), "PCI bus"),
        ),
    ]  # fmt: skip
    assert bus.cards(makers(), tmp_path / "none") == []
