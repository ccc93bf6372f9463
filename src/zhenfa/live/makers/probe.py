"""What torch shows, asked in a process of its own: several makers' modules cannot share one, and a driver can crash.

Run as ``python -m zhenfa.live.makers.probe KIND MAKER [MODULE]``, where KIND is a torch device type and MAKER the
plug-in that takes cards of unknown name. ``gpustack`` as KIND asks gpustack-runtime. Prints records as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zhenfa.live.makers.maker import Maker, capacity, device_name
from zhenfa.live.makers.record import DeviceRecord, pci_address, told

LIMIT_S: Final = 90.0
"""Seconds that a probe may take: it imports torch and starts a maker's driver."""
GPUSTACK: Final = "gpustack"


def cards(makers: Mapping[str, Maker]) -> list[DeviceRecord]:
    """Return the cards that torch shows, without importing it here."""
    return [card for command in commands(makers) for card in ask(command)]


def commands(makers: Mapping[str, Maker]) -> list[tuple[str, ...]]:
    """Return what is worth asking: device types for which torch is built, makers whose module is installed."""
    found: list[tuple[str, ...]] = []
    for maker in makers.values():
        kind = maker.torch_device
        if kind is None or kind == "cpu" or not built_for(maker):
            continue
        if maker.module is not None:
            found.append((kind, maker.id, maker.module))
        elif kind not in {one[0] for one in found if len(one) == 2}:
            found.append((kind, maker.id))
    return found


def built_for(maker: Maker) -> bool:
    """Return whether torch can show cards of a maker: it is built for them, or the maker's module is installed."""
    built, kind = torch_build(), maker.torch_device
    if built is None or kind is None:
        return False
    if maker.module is not None:
        return maker.installed
    return kind == "cpu" or kind in built or (kind == "cuda" and "hip" in built)


def torch_build() -> dict[str, str] | None:
    """Return for which devices torch is built, told from its version file; None where it is not installed."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    facts = {"torch": ""}
    try:
        lines = (Path(spec.origin).parent / "version.py").read_text().splitlines()
    except OSError:
        return facts
    for line in lines:
        name, equals, value = line.partition("=")
        name = name.partition(":")[0].strip()
        value = value.strip().strip("'\"")
        if equals and name in {"cuda", "hip", "xpu"} and value != "None":
            facts[name] = value
        elif equals and name in {"__version__", "torch_version"} and value[:1].isdigit():
            facts["torch"] = value
    return facts


def gpustack_cards(makers: Mapping[str, Maker]) -> list[DeviceRecord]:
    """Return the cards that gpustack-runtime tells of, if it is installed."""
    try:
        installed = importlib.util.find_spec("gpustack_runtime") is not None
    except (ImportError, ValueError):
        installed = False
    return [card for card in ask((GPUSTACK, "")) if card.provider in makers] if installed else []


def ask(command: tuple[str, ...], limit: float = LIMIT_S) -> list[DeviceRecord]:
    """Run one probe and return what it found; one that fails, crashes or hangs has found nothing."""
    from zhenfa.live.makers.recorded import record_of

    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment["PYTHONPATH"] = os.pathsep.join(part for part in sys.path if part)
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", __name__, *command], capture_output=True, text=True, timeout=limit, check=True,
            stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        return [record_of(one) for one in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError):
        return []


def shown(kind: str, fallback: Maker) -> list[DeviceRecord]:
    """Return the cards of a torch device type. Imports torch; the maker's module is imported already."""
    import torch

    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    else:
        current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        count = torch.accelerator.device_count() if current is not None and current.type == kind else 0
    return [_shown(torch, kind, index, fallback) for index in range(count)]


def _shown(torch: Any, kind: str, index: int, fallback: Maker) -> DeviceRecord:
    from zhenfa.live.makers.registry import known_by

    name = device_name(kind, index) or f"{kind} device"
    alone = kind != "cuda" or fallback.module is not None
    mine = fallback if alone else known_by(name) or fallback
    how = "torch device type" if alone else "device name" if mine.knows(name) else "device name not recognised"
    try:
        facts = getattr(torch, kind).get_device_properties(index)
    except (AttributeError, RuntimeError, TypeError):
        facts = None
    parts: list[Any] = [getattr(facts, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    address = None if None in parts else f"{parts[0]:04x}:{parts[1]:02x}:{parts[2]:02x}.0"
    uuid = getattr(facts, "uuid", None)
    record = mine.record(
        index, name, maker_from=how, memory_bytes=capacity(kind, index), torch_device=f"{kind}:{index}",
        pci_address=pci_address(address), uuid=None if uuid is None else _uuid(str(uuid)),
    )  # fmt: skip
    if how == "device name not recognised":
        record = DeviceRecord(**{**record.to_data(), "problems": (), "maker": "unknown"})
    return told(record, "torch")


def _uuid(text: str) -> str:
    """Return a UUID as NVML writes it: torch leaves its prefix out."""
    return text if text.startswith("GPU-") else f"GPU-{text}"


def from_gpustack() -> list[DeviceRecord]:
    """Return what gpustack-runtime detects. Imports it."""
    from zhenfa.live.makers.registry import makers

    detector = importlib.import_module("gpustack_runtime.detector")
    known = makers()
    return [
        _from_gpustack(known[str(one.manufacturer)], one)
        for one in detector.detect_devices(fast=False)
        if str(one.manufacturer) in known
    ]


def _from_gpustack(maker: Maker, one: Any) -> DeviceRecord:
    more = one.appendix or {}
    status = str(one.memory_status)
    node = str(more.get("numa", ""))
    record = maker.record(
        int(one.index), one.name or f"{maker.name} card", maker_from="gpustack-runtime", uuid=one.uuid or None,
        driver=one.driver_version, memory_bytes=one.memory * 2**20 or None,
        memory_used_bytes=one.memory_used * 2**20 if one.memory else None, temperature_c=one.temperature,
        power_w=one.power_used, power_limit_w=one.power, numa_node=int(node) if node.isdigit() else None,
        utilisation=None if one.cores_utilization is None else one.cores_utilization / 100,
        pci_address=pci_address(more.get("bdf")),
        health={"healthy": "ok", "unhealthy": "failed"}.get(status),
        problems=("gpustack-runtime calls its memory unhealthy",) if status == "unhealthy" else (),
    )  # fmt: skip
    return told(record, "gpustack-runtime")


def main() -> None:
    """Probe what the arguments name and print it; a maker's own words go to stderr."""
    kind, fallback, module = [*sys.argv[1:], "", ""][:3]
    with contextlib.redirect_stdout(sys.stderr):
        if kind == GPUSTACK:
            found = from_gpustack()
        else:
            from zhenfa.live.makers.registry import maker

            if module:
                importlib.import_module("torch")
                importlib.import_module(module)
            found = shown(kind, maker(fallback))
    print(json.dumps([one.to_data() for one in found]))


if __name__ == "__main__":
    main()
