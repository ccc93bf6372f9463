"""Iluvatar CoreX: its torch presents ``cuda``; ixsmi."""

from __future__ import annotations

from zhenfa.live.makers.boxes import two_line_cards
from zhenfa.live.makers.maker import CudaMaker
from zhenfa.live.makers.record import DeviceRecord


class Iluvatar(CudaMaker):
    """Cards of Iluvatar CoreX."""

    id = "iluvatar"
    name = "Iluvatar CoreX"
    collective = "nccl"
    collective_library = "IXCCL"
    visible_devices = "CUDA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("iluvatar", "bi-v", "mr-v")
    pci_vendors = ("0x1e3e",)
    smi = ("ixsmi",)
    sources = (
        "gpustack-runtime 0.2.6, envs.py and detector/iluvatar.py",
        "gpustack issue 3256: the output of ixsmi 3.1.1",
    )
    missing = {
        "health": "ixsmi's table has no column for the health of a card.",
        "timeouts": "no document of the variables that its library takes under the name of NCCL was found.",
    }

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``ixsmi``."""
        return two_line_cards(self, text, "IX-ML")
