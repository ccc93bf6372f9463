"""T-Head PPU: the torch of its SDK presents ``cuda``."""

from __future__ import annotations

from zhenfa.live.makers.maker import CudaMaker


class THead(CudaMaker):
    """PPUs of T-Head (Alibaba)."""

    id = "thead"
    name = "T-Head"
    collective = "nccl"
    collective_library = "the PPU SDK's, under the name of NCCL"
    visible_devices = "CUDA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("t-head", "ppu", "zw810")
    pci_vendors = ("0x1ded",)
    sources = ("gpustack-runtime 0.2.6, envs.py and detector/thead.py", "pci.ids 2023.04.11: 1ded Alibaba")
    missing = {
        "telemetry": "the form of ppu-smi's output is not known here; gpustack-runtime tells it where it is installed.",
        "health": "the form of ppu-smi's output is not known here.",
        "timeouts": "no document of its collective library's variables was found.",
    }
