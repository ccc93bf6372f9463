"""Intel Gaudi: ``hpu`` through habana_frameworks.torch; HCCL (one name with Huawei's library); hl-smi."""

from __future__ import annotations

from typing import Final

from zhenfa.live.makers.maker import AcceleratorMaker
from zhenfa.live.makers.output import number, share, size, values
from zhenfa.live.makers.record import DeviceRecord, pci_address

QUERY: Final = (
    "index", "name", "bus_id", "driver_version", "uuid", "module_id", "memory.total", "memory.used",
    "temperature.aip", "power.draw", "utilization.aip",
)  # fmt: skip


class Gaudi(AcceleratorMaker):
    """Gaudi cards of Intel."""

    id = "gaudi"
    name = "Intel Gaudi"
    torch_device = "hpu"
    module = "habana_frameworks.torch"
    collective = "hccl"
    collective_library = "HCCL (Habana)"
    visible_devices = "HABANA_VISIBLE_MODULES"
    precisions = frozenset({"fp32", "bf16"})
    words = ("gaudi", "hl-2", "hl-3")
    pci_vendors = ("0x1da3",)
    smi = ("hl-smi", "-Q", ",".join(QUERY), "-f", "csv")
    sources = (
        "Ray 2.60, accelerators/hpu.py",
        "Gaudi documentation, System Management Interface Tool (docs.habana.ai): `hl-smi -Q`",
        "pci.ids 2023.04.11: 1da3 Habana Labs",
    )
    missing = {
        "health": "hl-smi's query has no column for the health of a card.",
        "timeouts": "no document of the variables of its collective library's time-outs was found.",
    }

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``hl-smi -Q ... -f csv``. They are counted by module, as HABANA_VISIBLE_MODULES is."""
        rows = [row for row in values(text) if {"name", "bus_id"} <= row.keys()]
        return [
            self.record(
                int(row.get("module_id") or row.get("index") or place), row["name"], uuid=row.get("uuid"),
                driver=row.get("driver_version"), pci_address=pci_address(row["bus_id"]),
                memory_bytes=size(row.get("memory.total")), memory_used_bytes=size(row.get("memory.used")),
                temperature_c=number(row.get("temperature.aip")), power_w=number(row.get("power.draw")),
                utilisation=share(row.get("utilization.aip")),
            )
            for place, row in enumerate(rows)
        ]  # fmt: skip
