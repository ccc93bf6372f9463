"""NVIDIA: torch's own ``cuda``, NCCL, and NVML for discovery, telemetry and health."""

from __future__ import annotations

from typing import Final

from zhenfa.live.makers.maker import CudaMaker, Ear
from zhenfa.live.makers.output import number, share, size, values
from zhenfa.live.makers.record import DeviceRecord, pci_address
from zhenfa.live.makers.timeouts import TimeOut, infiniband

HEARTBEAT: Final = TimeOut(
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "torch's watchdog of NCCL: silence after which it ends the process", None,
    "PyTorch, ProcessGroupNCCL environment variables (docs.pytorch.org); the default is not in the document",
)  # fmt: skip
ACK: Final = TimeOut(
    "NCCL_IB_TIMEOUT", "an acknowledgement on InfiniBand or RoCE, NCCL_IB_RETRY_CNT times over", 20,
    "NCCL user guide, environment variables (docs.nvidia.com): 20 since NCCL 2.23", infiniband,
)  # fmt: skip
QUERY: Final = (
    "index", "name", "uuid", "pci.bus_id", "driver_version", "memory.total", "memory.used", "temperature.gpu",
    "power.draw", "power.limit", "utilization.gpu", "ecc.errors.uncorrected.volatile.total",
)  # fmt: skip


class Nvidia(CudaMaker):
    """Cards of NVIDIA."""

    id = "nvidia"
    name = "NVIDIA"
    collective = "nccl"
    collective_library = "NCCL"
    visible_devices = "CUDA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("nvidia", "geforce", "tesla", "quadro")
    pci_vendors = ("0x10de",)
    smi = ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv")
    timeouts = (HEARTBEAT, ACK)
    sources = (
        "PyTorch 2.13, torch.distributed: groups of NCCL wait 10 minutes unless they are given a timeout",
        "`nvidia-smi --help-query-gpu` for the columns of its table",
    )

    def environment(self, index: int) -> dict[str, str]:
        """Return the variables of the card's process; cards are counted as NVML counts them, by their PCI address."""
        return super().environment(index) | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def look(self) -> list[DeviceRecord]:
        """Return the cards as NVML tells; as ``nvidia-smi`` does where the module ``pynvml`` is not installed."""
        from zhenfa.live.makers import nvml

        return nvml.cards(self) if nvml.usable() else super().look()

    def listen(self) -> Ear | None:
        """Return what hears of Xid errors, None without NVML."""
        from zhenfa.live.makers import nvml

        return nvml.XidWatch() if nvml.usable() else None

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of a table of comma-separated values of ``nvidia-smi --query-gpu=... --format=csv``."""
        rows = [row for row in values(text) if {"name", "uuid"} <= row.keys()]
        return [self._card(place, row) for place, row in enumerate(rows) if self.knows(row["name"])]

    def _card(self, place: int, row: dict[str, str]) -> DeviceRecord:
        errors = number(row.get("ecc.errors.uncorrected.volatile.total"))
        problems = (f"{errors:.0f} uncorrected memory errors since the driver was loaded",) if errors else ()
        return self.record(
            int(row.get("index") or place), row["name"], uuid=row["uuid"], driver=row.get("driver_version"),
            pci_address=pci_address(row.get("pci.bus_id")), memory_bytes=size(row.get("memory.total")),
            memory_used_bytes=size(row.get("memory.used")), temperature_c=number(row.get("temperature.gpu")),
            power_w=number(row.get("power.draw")), power_limit_w=number(row.get("power.limit")),
            utilisation=share(row.get("utilization.gpu")), problems=problems,
            health=None if errors is None else "failed" if errors else "ok",
        )  # fmt: skip
