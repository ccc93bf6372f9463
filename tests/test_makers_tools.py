"""Cards as makers' tools tell of them: recorded forms, cut and garbled ones, and the commands that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_runner import Call, caller
from zhenfa.live.makers import DeviceRecord, makers
from zhenfa.live.makers.output import number, share, size
from zhenfa.live.makers.record import merge, pci_address
from zhenfa.live.makers.recorded import record_of
from zhenfa.live.makers.tools import cards_of, output_of, read

DATA = Path(__file__).parent / "data" / "smi"
GIB = 2**30
MIB = 2**20


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    return caller(capsys, monkeypatch)


def cards(maker: str, name: str) -> list[DeviceRecord]:
    return read(makers()[maker], (DATA / name).read_text())


WHOLE: list[tuple[str, str, list[dict[str, Any]]]] = [
    ("nvidia", "nvidia-smi.csv", [
        {"index": 0, "name": "NVIDIA H200", "pci_address": "0000:0a:00.0", "memory_bytes": 143771 * MIB,
         "power_w": 76.52, "power_limit_w": 700.0, "utilisation": 0.0, "temperature_c": 31.0, "health": "ok"},
        {"index": 1, "memory_used_bytes": 90011 * MIB, "utilisation": 1.0, "health": "failed",
         "problems": ("2 uncorrected memory errors since the driver was loaded",)},
        {"index": 2, "name": "NVIDIA GeForce RTX 4090", "utilisation": None, "health": None, "problems": ()},
    ]),
    ("ascend", "npu-smi.txt", [
        {"index": 0, "name": "Ascend 910B3", "pci_address": "0000:c1:00.0", "memory_bytes": 64 * GIB, "power_w": 101.8,
         "memory_used_bytes": 53984 * MIB, "utilisation": 0.12, "temperature_c": 43.0, "driver": "24.1.rc1",
         "health": "ok"},
        {"index": 1, "pci_address": "0000:c2:00.0", "health": "failed",
         "problems": ("the maker's tool calls its health 'Alarm'",)},
    ]),
    ("ascend", "npu-smi-two-dies.txt", [
        {"index": 0, "name": "Ascend910", "pci_address": "0000:9d:00.0", "power_w": 172.3},
        {"index": 1, "name": "Ascend910", "pci_address": "0000:9f:00.0", "power_w": None, "temperature_c": 35.0},
    ]),
    ("hygon", "hy-smi.txt", [
        {"index": 0, "power_w": 80.0, "power_limit_w": 1000.0, "utilisation": 0.0, "memory_bytes": None},
        {"index": 1, "power_w": 521.0, "power_limit_w": 800.0, "utilisation": 0.975, "temperature_c": 57.0},
    ]),
    ("cambricon", "cnmon.txt", [
        {"index": 0, "name": "MLU370-X8", "pci_address": "0000:13:00.0", "memory_bytes": 23374 * MIB, "power_w": 107.0,
         "power_limit_w": 250.0, "driver": "5.10.22", "health": "ok", "temperature_c": 28.0},
        {"index": 1, "utilisation": 0.44, "memory_used_bytes": 9012 * MIB, "health": "warning"},
    ]),
    ("metax", "mx-smi.txt", [
        {"index": 0, "name": "MetaX C500", "pci_address": "0000:0e:00.0", "memory_bytes": 64 * GIB, "power_w": 54.0,
         "memory_used_bytes": 826 * MIB, "driver": "2.12.13", "health": None},
        {"index": 1, "utilisation": 0.91, "temperature_c": 61.0},
    ]),
    ("mthreads", "mthreads-gmi.txt", [
        {"index": 0, "name": "MTT S5000", "pci_address": "0000:2a:00.0", "memory_bytes": 80 * GIB,
         "driver": "3.3.5-server", "temperature_c": 52.0, "power_w": None},
        {"index": 1, "utilisation": 0.88, "memory_used_bytes": 64889 * MIB, "temperature_c": 61.0},
    ]),
    ("iluvatar", "ixsmi.txt", [
        {"index": 0, "name": "Iluvatar BI-V100", "pci_address": "0000:98:00.0", "memory_bytes": 32 * GIB,
         "utilisation": 0.07, "power_w": 40.0, "power_limit_w": 250.0},
    ]),
    ("kunlunxin", "xpu-smi-kunlunxin.txt", [
        {"index": 0, "name": "P800 OAM", "pci_address": "0000:03:00.0", "memory_bytes": 96 * GIB, "power_w": 88.0,
         "memory_used_bytes": 0, "driver": "5.0.21.21"},
        {"index": 1, "utilisation": 0.99, "memory_used_bytes": 90211 * MIB, "power_w": 310.0},
    ]),
    ("enflame", "efsmi.txt", [
        {"index": 0, "name": "Enflame L300", "pci_address": "0000:2d:00.0", "memory_bytes": 144 * GIB, "power_w": 68.0,
         "power_limit_w": 300.0, "temperature_c": 35.0},
        {"index": 1, "name": "Enflame S60", "power_w": 105.0, "power_limit_w": 300.0, "utilisation": 0.125},
    ]),
    ("gaudi", "hl-smi.csv", [
        {"index": 3, "name": "HL-225", "pci_address": "0000:3b:00.0", "memory_bytes": 96 * GIB, "power_w": 95.0},
        {"index": 5, "utilisation": 0.78, "memory_used_bytes": 97304 * MIB},
    ]),
    ("amd", "rocm-smi.json", [
        {"index": 0, "name": "AMD Instinct MI250X", "pci_address": "0000:29:00.0", "memory_bytes": 68702699520,
         "power_w": 237.0, "temperature_c": 51.0, "utilisation": 0.88, "driver": "6.7.0"},
        {"index": 1, "power_w": None, "temperature_c": 49.0},
    ]),
    ("thead", "ppu-smi.csv", [
        {"index": 0, "name": "PPU-ZW810E", "pci_address": "0000:08:00.0", "memory_bytes": 97871 * MIB,
         "memory_used_bytes": 606 * MIB, "utilisation": 0.03, "temperature_c": 41.0, "power_w": 96.1},
        {"index": 1, "pci_address": "0000:7e:00.0", "memory_used_bytes": None, "power_w": None},
    ]),
    ("intel", "xpu-smi-intel.json", [
        {"index": 0, "name": "Intel(R) Data Center GPU Max 1550", "pci_address": "0000:29:00.0", "memory_bytes": None},
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("maker", "name", "wanted"), WHOLE, ids=[name for _, name, _ in WHOLE])
def test_cards_are_read_from_what_a_tool_prints(maker: str, name: str, wanted: list[dict[str, Any]]) -> None:
    found = cards(maker, name)
    assert [{key: getattr(card, key) for key in facts} for card, facts in zip(found, wanted, strict=True)] == wanted
    tool = makers()[maker].smi
    assert tool is not None
    for card in found:
        assert card.provider == maker
        assert card.maker == makers()[maker].name
        assert card.maker_from == tool[0]
        assert set(card.told_by.values()) == {tool[0]}
        assert card.torch_device is None


@pytest.mark.parametrize("name", [name for _, name, _ in WHOLE])
def test_one_makers_output_is_no_other_makers(name: str) -> None:
    text = (DATA / name).read_text()
    owners = {maker.id for maker in makers().values() if read(maker, text)}
    assert owners == {maker for maker, other, _ in WHOLE if other == name}


@given(st.sampled_from([name for _, name, _ in WHOLE]), st.integers(0, 4000), st.text(max_size=20))
def test_a_cut_or_garbled_output_never_fails(name: str, end: int, more: str) -> None:
    text = (DATA / name).read_text()[:end] + more
    for maker in makers().values():
        for card in read(maker, text):
            assert record_of(json.loads(json.dumps(card.to_data()))) == card


def test_what_a_terminal_would_obey_is_escaped(tmp_path: Path, zhenfa: Call) -> None:
    text = (DATA / "nvidia-smi.csv").read_text().replace("NVIDIA H200,", "NVIDIA \x1b[2JH200,")
    assert read(makers()["nvidia"], text)[0].name == "NVIDIA \\x1b[2JH200"
    (tmp_path / "file").write_text(text)
    assert "\x1b" not in zhenfa("devices", "--from", tmp_path / "file").out
    listed = json.loads(zhenfa("devices", "--from", DATA / "cnmon.txt", "--json").out)
    listed["devices"][0]["name"] = "\x1b[2J"
    (tmp_path / "file").write_text(json.dumps(listed))
    outcome = zhenfa("devices", "--from", tmp_path / "file")
    assert (outcome.code, outcome.out) == (2, "")
    assert "name is " in outcome.err


@pytest.mark.parametrize("text", ["-5", "-5 MiB", "N/A", "", "nan", "none"])
def test_what_is_no_amount_is_unknown(text: str) -> None:
    assert (number(text), size(text), share(text)) == (None, None, None)


def test_a_tool_is_run_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "npu-smi"
    tool.write_text(f"#!/bin/sh\n[ \"$1\" = info ] && cat '{DATA / 'npu-smi.txt'}'\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert cards_of(makers()["ascend"]) == cards("ascend", "npu-smi.txt")


def test_a_tool_that_fails_or_hangs_tells_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in (("cnmon", "echo broken; exit 3"), ("ixsmi", "exec sleep 60")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert cards_of(makers()["cambricon"]) == []
    assert output_of(("ixsmi",), limit=0.2) is None
    assert output_of(("no-such-tool",)) is None


# Records.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:C1:00.0", "0000:c1:00.0"), ("2d:00.0", "0000:2d:00.0"), ("0001:03:00.1", "0001:03:00.1"),
        ("N/A", None), ("", None), ("xx:yy:zz.0", None), (None, None),
    ],
)  # fmt: skip
def test_pci_addresses_are_written_one_way(text: str | None, address: str | None) -> None:
    assert pci_address(text) == address


def record(index: int, **facts: Any) -> DeviceRecord:
    return DeviceRecord("nvidia", index, facts.pop("name", "NVIDIA H200"), "NVIDIA", "a test", **facts)


def test_cards_that_several_tell_of_are_one() -> None:
    tool = record(1, uuid="GPU-a", pci_address="0000:01:00.0", power_w=70.0, told_by={"power_w": "tool"})
    torch = record(0, uuid="GPU-a", memory_bytes=5, torch_device="cuda:0", power_w=99.0, told_by={"memory_bytes": "t"})
    bus = record(0, name="NVIDIA device 0x2335", pci_address="0000:01:00.0", numa_node=1, problems=("unbound",))
    (card,) = merge([tool, torch, bus])
    assert card == record(
        0, uuid="GPU-a", pci_address="0000:01:00.0", power_w=70.0, memory_bytes=5, torch_device="cuda:0", numa_node=1,
        problems=("unbound",), told_by={"power_w": "tool", "memory_bytes": "t"},
    )  # fmt: skip
    assert len(merge([tool, record(1, uuid="GPU-b")])) == 2
    assert len(merge([tool, record(2)])) == 2
    assert len(merge([tool, record(1)])) == 1


@given(st.permutations(range(4)))
def test_merging_again_changes_nothing(order: list[int]) -> None:
    found = [record(place, pci_address=f"0000:0{place}:00.0", power_w=float(place)) for place in order]
    once = merge([*found, *found])
    assert once == merge(once) == found


# The commands.


def test_a_recorded_output_is_listed(zhenfa: Call) -> None:
    outcome = zhenfa("devices", "--from", DATA / "npu-smi.txt")
    assert outcome.code == 0
    assert "Ascend 910B3" in outcome.out
    assert "the maker's tool calls its health 'Alarm'" in outcome.out
    for columns in (60, 80, 120, 160):
        assert zhenfa("devices", "--from", DATA / "nvidia-smi.csv", columns=columns).widest <= columns


def test_a_listing_can_be_recorded_and_read_again(zhenfa: Call, tmp_path: Path) -> None:
    first = zhenfa("devices", "--from", DATA / "cnmon.txt", "--json")
    (tmp_path / "cards.json").write_text(first.out)
    again = zhenfa("devices", "--from", tmp_path / "cards.json", "--json")
    assert json.loads(again.out) == json.loads(first.out)
    assert [one["name"] for one in json.loads(first.out)["devices"]] == ["MLU370-X8"] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "tells of no cards in a form that is known"),
        ('{"schema": "zhenfa.devices/2", "devices": [{"provider": "nvidia"}]}', "index, name, maker, maker_from is"),
        ('{"schema": "zhenfa.devices/2", "devices": [{"provider": "a", "index": "1", "name": "n", "maker": "m", '
         '"maker_from": "f"}]}', "index is '1'"),
        ('{"schema": "zhenfa.devices/2", "devices": [3]}', "3 is not a card"),
    ],
)  # fmt: skip
def test_a_file_that_tells_of_no_cards_is_refused(zhenfa: Call, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "file").write_text(text)
    outcome = zhenfa("devices", "--from", tmp_path / "file")
    assert outcome.code == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert zhenfa("devices", "--from", tmp_path / "none").code == 2


def test_cards_become_a_machine_with_unknown_values_empty(zhenfa: Call, tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    outcome = zhenfa("devices", "--from", DATA / "mx-smi.txt", "--as-machine", path)
    assert outcome.code == 0
    text = path.read_text()
    assert text.startswith("# Written by `zhenfa devices`.")
    assert "bandwidth" not in text
    shown = json.loads(zhenfa("show", path, "--json").out)
    pool = shown["pools"][0]
    assert (pool["count"], pool["accelerator"]["maker"]) == (2, "MetaX")
    assert zhenfa("devices", "--from", DATA / "mx-smi.txt", "--as-machine", path).code == 2
    assert zhenfa("devices", "--from", DATA / "mx-smi.txt", "--as-machine", path, "--force").code == 0


def test_a_machine_of_recorded_cards_asks_for_what_nobody_tells(zhenfa: Call, tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    assert zhenfa("devices", "--from", DATA / "npu-smi.txt", "--as-machine", path).code == 0
    assert "accelerator: ascend-910b3" in path.read_text()
    job = Path(__file__).parent.parent / "examples" / "llama3-70b-train.yaml"
    outcome = zhenfa("plan", job, "--on", path)
    assert outcome.code == 2
    assert "ascend-0.tiers.host.bandwidth is undisclosed" in outcome.err


def test_cards_of_a_maker_without_a_plug_in_are_listed_and_make_no_machine(zhenfa: Call, tmp_path: Path) -> None:
    card = DeviceRecord("nobodys", 0, "N1", "Nobody", "a test")
    (tmp_path / "cards.json").write_text(json.dumps({"schema": "zhenfa.devices/2", "devices": [card.to_data()]}))
    assert "N1" in zhenfa("devices", "--from", tmp_path / "cards.json").out
    outcome = zhenfa("devices", "--from", tmp_path / "cards.json", "--as-machine", tmp_path / "ours.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    assert "no maker is called 'nobodys'" in outcome.err
