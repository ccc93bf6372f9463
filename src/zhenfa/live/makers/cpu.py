"""The processor that the process runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zhenfa.live.host import host_memory, processor_name, processors
from zhenfa.live.makers.maker import Maker
from zhenfa.live.makers.record import DeviceRecord, told

BY_VENDOR: Final = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel", "HygonGenuine": "Hygon"}
UNMEASURED: Final = "Linux tells the power and temperature of processors through sensors that differ by board."


class Cpu(Maker):
    """The processor that the process runs on: one card, all its cores."""

    id = "cpu"
    name = "processor"
    torch_device = "cpu"
    collective = "gloo"
    collective_library = "Gloo"
    precisions = frozenset({"fp32", "bf16"})
    tried = "runs and tests of every version, on x86 processors"
    sources = ("PyTorch 2.13, torch.distributed: gloo waits as long as the timeout that a group was opened with",)
    missing = {
        "telemetry": UNMEASURED,
        "health": "no tool of a processor's maker is asked; the kernel's log tells of machine checks.",
        "timeouts": "gloo has no variable for it: it waits as long as the run says (execution.step_timeout_s).",
        "isolation": "a processor is not a card of its own: the processes share its cores.",
    }

    def synchronize(self) -> None:
        """Return at once: the processor works in order."""

    def memory(self) -> tuple[int, int]:
        """Return the peak resident bytes of the process, and the host's memory."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024, host_memory()

    def look(self) -> list[DeviceRecord]:
        """Return the processor."""
        name, vendor = processor_name()
        card = DeviceRecord(
            self.id, 0, f"{name}, {processors()} cores", BY_VENDOR.get(vendor, "unknown"), "processor vendor id",
            memory_bytes=host_memory(), torch_device="cpu",
        )  # fmt: skip
        return [told(card, "kernel")]
