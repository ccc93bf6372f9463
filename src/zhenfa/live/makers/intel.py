"""Intel's graphics cards: ``xpu``, which torch has built in; XCCL; xpu-smi (one name with Kunlunxin's tool)."""

from __future__ import annotations

import json

from zhenfa.live.makers.maker import AcceleratorMaker
from zhenfa.live.makers.record import DeviceRecord, pci_address


class IntelGpu(AcceleratorMaker):
    """Data center and Arc cards of Intel."""

    id = "intel"
    name = "Intel"
    torch_device = "xpu"
    collective = "xccl"
    collective_library = "oneCCL"
    visible_devices = "ZE_AFFINITY_MASK"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("intel(r) data center gpu", "intel(r) arc", "intel(r) graphics", "data center gpu max")
    pci_vendors = ("0x8086",)
    smi = ("xpu-smi", "discovery", "-j")
    sources = (
        "Ray 2.60, accelerators/intel_gpu.py",
        "PyTorch 2.13, torch.distributed: xccl",
        "Intel XPU System Management Interface user guide (intel.github.io/xpumanager): `xpu-smi discovery -j`",
    )
    missing = {
        "telemetry": "`xpu-smi discovery` tells what the cards are; its telemetry is not read yet.",
        "health": "`xpu-smi health` is not read yet.",
        "timeouts": "no document of oneCCL's variables for it was found.",
    }

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``xpu-smi discovery -j`` of Intel."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError:
            return []
        listed = data.get("device_list", []) if isinstance(data, dict) else []
        return [
            self.record(
                int(one["device_id"]), one["device_name"], uuid=one.get("uuid"),
                pci_address=pci_address(one.get("pci_bdf_address")),
            )
            for one in listed
            if one.get("device_type", "GPU") == "GPU" and one.get("device_function_type", "physical") == "physical"
        ]  # fmt: skip
