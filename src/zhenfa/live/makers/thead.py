"""T-Head PPU: the torch of its SDK presents ``cuda``; PCCL; ppu-smi."""

from __future__ import annotations

from typing import Final

from zhenfa.live.makers.maker import CudaMaker
from zhenfa.live.makers.output import number, share, size, values
from zhenfa.live.makers.record import DeviceRecord, pci_address
from zhenfa.live.makers.timeouts import TimeOut, infiniband

QUERY: Final = (
    "index", "name", "uuid", "pci.bus_id", "memory.total", "memory.used", "utilization.ppu", "temperature.ppu",
    "power.draw",
)  # fmt: skip


class THead(CudaMaker):
    """PPUs of T-Head (Alibaba)."""

    id = "thead"
    name = "T-Head"
    collective = "nccl"
    collective_library = "PCCL"
    visible_devices = "CUDA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("t-head", "ppu", "zw810", "alixpu")
    pci_vendors = ("0x1ded",)
    smi = ("ppu-smi", f"--query-ppu={','.join(QUERY)}", "--format=csv")
    timeouts = (
        TimeOut("PCCL_IB_TIMEOUT", "an acknowledgement on InfiniBand or RoCE, PCCL_IB_RETRY_CNT times over", 20,
                "PPU SDK, PCCL user guide, 7.1.9", infiniband),
    )  # fmt: skip
    sources = (
        "gpustack-runtime 0.2.6, envs.py and detector/thead.py",
        "PPU SDK, PPU-SMI user guide, 3.2: `ppu-smi --query-ppu=... --format=csv`",
        "Telegraf, plug-in ppusmi: names of the columns",
        "pci.ids 2023.04.11: 1ded Alibaba",
    )
    missing = {"health": "the columns of ppu-smi for the health of a card are not read."}

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of a table of ``ppu-smi --query-ppu=... --format=csv``."""
        rows = [row for row in values(text) if {"name", "uuid", "utilization.ppu"} <= row.keys()]
        return [
            self.record(
                int(row.get("index") or place), row["name"], uuid=row["uuid"],
                pci_address=pci_address(row.get("pci.bus_id")), memory_bytes=size(row.get("memory.total")),
                memory_used_bytes=size(row.get("memory.used")), power_w=number(row.get("power.draw")),
                temperature_c=number(row.get("temperature.ppu")), utilisation=share(row["utilization.ppu"]),
            )
            for place, row in enumerate(rows)
        ]  # fmt: skip
