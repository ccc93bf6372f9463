"""Kunlunxin: XPytorch (torch_xmlir) presents ``cuda``; xpu-smi (one name with Intel's tool)."""

from __future__ import annotations

from zhenfa.live.makers.boxes import two_line_cards
from zhenfa.live.makers.maker import CudaMaker
from zhenfa.live.makers.record import DeviceRecord


class Kunlunxin(CudaMaker):
    """Cards of Kunlunxin."""

    id = "kunlunxin"
    name = "Kunlunxin"
    module = "torch_xmlir"
    collective = "nccl"
    collective_library = "XCCL / BKCL"
    visible_devices = "CUDA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("kunlun", "p800", "r480", "r300", "r200")
    pci_vendors = ("0x1d22",)
    smi = ("xpu-smi",)
    sources = (
        "FlagCX, README; P800 under torch_xmlir is shown by CUDA_VISIBLE_DEVICES",
        "pci.ids 2023.04.11: 1d22 Baidu Technology",
        "xpu-smi 5.0.21, its plain output",
    )
    missing = {
        "health": "xpu-smi's table counts memory errors in a column whose unit is not described.",
        "timeouts": "no document of its collective library's variables was found.",
    }

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``xpu-smi`` of Kunlunxin; Intel's tool of that name prints something else."""
        return two_line_cards(self, text, "XPU-RT Version") if "XPU-SMI" in text else []
