"""AMD: the torch of ROCm presents ``cuda``; RCCL; rocm-smi."""

from __future__ import annotations

import json
from typing import Any

from zhenfa.live.makers.maker import CudaMaker
from zhenfa.live.makers.nvidia import HEARTBEAT
from zhenfa.live.makers.output import number, share
from zhenfa.live.makers.record import DeviceRecord, pci_address


class Amd(CudaMaker):
    """Cards of AMD."""

    id = "amd"
    name = "AMD"
    collective = "nccl"
    collective_library = "RCCL"
    visible_devices = "HIP_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("amd", "radeon", "instinct")
    pci_vendors = ("0x1002",)
    smi = (
        "rocm-smi", "--showproductname", "--showuniqueid", "--showbus", "--showdriverversion", "--showmeminfo", "vram",
        "--showtemp", "--showpower", "--showuse", "--json",
    )  # fmt: skip
    timeouts = (HEARTBEAT,)
    sources = ("Ray 2.60, accelerators/amd_gpu.py", "rocm_smi_lib, Python API: keys of its JSON")
    missing = {"health": "rocm-smi does not sum up the health of a card; amd-smi is not read yet."}

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``rocm-smi --json``. Power of a second die is told with the first, and left empty."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError:
            return []
        if not isinstance(data, dict):
            return []
        driver = data.get("system", {}).get("Driver version")
        cards = {int(key[4:]): one for key, one in data.items() if key.startswith("card") and key[4:].isdigit()}
        return [self._card(index, _Keys(one), driver) for index, one in sorted(cards.items())]

    def _card(self, index: int, keys: _Keys, driver: str | None) -> DeviceRecord:
        whole, used = number(keys("vram total memory (b)")), number(keys("vram total used memory (b)"))
        heat = keys("temperature (sensor junction) (c)", "temperature (sensor edge) (c)")
        power = keys("current socket graphics package power (w)", "average graphics package power (w)")
        return self.record(
            index, keys("card series", "card model") or "AMD card", uuid=keys("unique id"), driver=driver,
            pci_address=pci_address(keys("pci bus")), memory_bytes=None if whole is None else round(whole),
            memory_used_bytes=None if used is None else round(used), temperature_c=number(heat),
            power_w=number(power), utilisation=share(keys("gpu use (%)")),
        )  # fmt: skip


class _Keys:
    """The facts of one card, by keys whose capitals differ between versions."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = {key.casefold(): str(value) for key, value in facts.items()}

    def __call__(self, *names: str) -> str | None:
        return next((self._facts[name] for name in names if name in self._facts), None)
