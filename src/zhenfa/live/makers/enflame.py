"""Enflame: ``gcu`` through torch_gcu, ECCL, efsmi."""

from __future__ import annotations

import re
from itertools import pairwise

from zhenfa.live.makers.maker import AcceleratorMaker
from zhenfa.live.makers.output import cells, named, number, share, size
from zhenfa.live.makers.record import DeviceRecord, pci_address


class Enflame(AcceleratorMaker):
    """GCUs of Enflame."""

    id = "enflame"
    name = "Enflame"
    torch_device = "gcu"
    module = "torch_gcu"
    collective = "eccl"
    collective_library = "ECCL"
    visible_devices = "TOPS_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("enflame", "gcu")
    pci_vendors = ("0x1e36",)
    smi = ("efsmi",)
    sources = (
        "torch_gcu, README: the device gcu and backend='eccl'; vllm-gcu: TOPS_VISIBLE_DEVICES",
        "FlagTree, build notes for Enflame: the output of efsmi 1.7.2",
        "pci.ids 2023.04.11: 1e36 Shanghai Enflame",
    )
    missing = {
        "health": "efsmi's table tells whether memory is protected, not what it counted.",
        "timeouts": "no document of its collective library's variables was found.",
    }

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``efsmi``: two lines each, the whole memory alone."""
        if "EFSMI" not in text:
            return []
        driver = named(r"Driver Ver:\s*(\S+)", text)
        rows = [row for row in cells(text.partition("Process")[0]) if len(row) == 3]
        return [
            self._card(int(begin[1]), begin[2].strip(), first, second, driver)
            for first, second in pairwise(rows)
            if (begin := re.match(r"(\d+)\s+(\S.*)", first[0])) and pci_address(first[2].split()[0] if first[2] else "")
        ]

    def _card(self, index: int, label: str, first: list[str], second: list[str], driver: str | None) -> DeviceRecord:
        powers = re.findall(r"(\d+(?:\.\d+)?)\s*W", second[0])
        return self.record(
            index, label if "enflame" in label.casefold() else f"Enflame {label}", driver=driver,
            pci_address=pci_address(first[2].split()[0]), temperature_c=number(second[0]),
            power_w=number(powers[0]) if powers else None, power_limit_w=number(powers[1]) if powers[1:] else None,
            memory_bytes=size(second[1]), utilisation=share(second[2]),
        )  # fmt: skip
