"""Cards on the PCI bus, as the Linux kernel lists them: also those without a driver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from zhenfa.live.makers.maker import Maker
from zhenfa.live.makers.record import DeviceRecord, told

ROOT: Final = Path("/sys/bus/pci/devices")
WAY: Final = "PCI bus"
CLASSES: Final = ("0x0300", "0x0302", "0x0380", "0x0b40", "0x1200")
"""Display, 3D and other display controllers, co-processors, processing accelerators (PCI Code and ID Assignment)."""


def cards(makers: Mapping[str, Maker], root: Path | None = None) -> list[DeviceRecord]:
    """Return the cards of known makers on the bus, in the order of their addresses; ``root`` is where they lie."""
    where = root or ROOT
    by_vendor = {vendor: maker for maker in makers.values() for vendor in maker.pci_vendors}
    counted: dict[str, int] = {}
    found = []
    for folder in sorted(where.iterdir()) if where.is_dir() else []:
        maker = by_vendor.get(_read(folder / "vendor"))
        if maker is None or not _read(folder / "class").startswith(CLASSES):
            continue
        index = counted.get(maker.id, 0)
        counted[maker.id] = index + 1
        found.append(_card(folder, maker, index))
    return found


def _card(folder: Path, maker: Maker, index: int) -> DeviceRecord:
    node = _read(folder / "numa_node")
    bound = (folder / "driver").exists()
    name = f"{maker.name} device {_read(folder / 'device')}"
    record = maker.record(
        index, name, maker_from="PCI vendor id", pci_address=folder.name.lower(),
        numa_node=int(node) if node.isdigit() else None,
        problems=() if bound else ("no driver of the kernel is bound to it",),
    )  # fmt: skip
    return told(record, WAY)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
