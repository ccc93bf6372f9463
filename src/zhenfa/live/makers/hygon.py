"""Hygon DCU: torch of DTK, a fork of ROCm, presents ``cuda``; hy-smi."""

from __future__ import annotations

import re

from zhenfa.live.makers.maker import CudaMaker
from zhenfa.live.makers.nvidia import HEARTBEAT
from zhenfa.live.makers.output import number, share
from zhenfa.live.makers.record import DeviceRecord

ROW = re.compile(r"^(\d+)\s+(\S+)C\s+(\S+)W\s+\S+\s+(\S+)W\s+(\S+)%\s+(\S+)%", re.MULTILINE)


class Hygon(CudaMaker):
    """Cards of Hygon."""

    id = "hygon"
    name = "Hygon"
    collective = "nccl"
    collective_library = "RCCL of DTK"
    visible_devices = "HIP_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("hygon", "dcu", "k100", "z100", "bw1000", "bw1100", "bw200")
    pci_vendors = ("0x1d94",)
    smi = ("hy-smi",)
    timeouts = (HEARTBEAT,)
    sources = ("gpustack-runtime 0.2.6, envs.py and detector/hygon.py", "hy-smi of DTK 26.04")
    missing = {"health": "hy-smi's table names a mode, not the health of a card."}

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``hy-smi``: a line each, memory as a share alone."""
        if not re.search(r"^(HCU|DCU)\s+Temp\s+AvgPwr", text, re.MULTILINE):
            return []
        return [
            self.record(
                int(index), "Hygon DCU", temperature_c=number(temperature), power_w=number(power),
                power_limit_w=number(limit), utilisation=share(use),
            )
            for index, temperature, power, limit, _, use in ROW.findall(text)
        ]  # fmt: skip
