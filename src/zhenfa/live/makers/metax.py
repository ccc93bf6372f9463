"""MetaX: the torch of MACA presents ``cuda``; MCCL (one name with Moore Threads' library); mx-smi."""

from __future__ import annotations

from zhenfa.live.makers.boxes import two_line_cards
from zhenfa.live.makers.maker import CudaMaker
from zhenfa.live.makers.record import DeviceRecord


class MetaX(CudaMaker):
    """Cards of MetaX."""

    id = "metax"
    name = "MetaX"
    collective = "nccl"
    collective_library = "MCCL (MetaX)"
    visible_devices = "CUDA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("metax", "mxc", "xiyun")
    pci_vendors = ("0x9999",)
    smi = ("mx-smi",)
    sources = (
        "Ray 2.60, accelerators/metax_gpu.py",
        "verl-omni issue 191: torch 2.8.0+metax shows the cards as cuda, MetaX C500, and nccl",
        "gpustack issue 4832: the output of mx-smi 2.1.12",
    )
    missing = {
        "health": "mx-smi's table has no column for the health of a card.",
        "timeouts": "no document of the variables that its library takes under the name of NCCL was found.",
    }

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``mx-smi``."""
        return two_line_cards(self, text, "MX-SMI")
