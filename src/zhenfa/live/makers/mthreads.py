"""Moore Threads: ``musa`` through torch_musa; MCCL (one name with MetaX's library); mthreads-gmi."""

from __future__ import annotations

import re

from zhenfa.live.makers.maker import AcceleratorMaker
from zhenfa.live.makers.output import named, number, share, size
from zhenfa.live.makers.record import DeviceRecord, pci_address
from zhenfa.live.makers.timeouts import TimeOut

FIRST = re.compile(r"^(\d+)\s+(MTT [^|]+?)\s*\|([0-9a-fA-F:.]+)\s*\|(\d+)%\s+(\d+)MiB\((\d+)MiB\)", re.MULTILINE)


class MooreThreads(AcceleratorMaker):
    """Cards of Moore Threads."""

    id = "mthreads"
    name = "Moore Threads"
    torch_device = "musa"
    module = "torch_musa"
    collective = "mccl"
    collective_library = "MCCL (Moore Threads)"
    visible_devices = "MUSA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("moore threads", "mtt s", "mtt x")
    pci_vendors = ("0x1ed5",)
    smi = ("mthreads-gmi",)
    timeouts = (
        TimeOut("TORCH_MCCL_HEARTBEAT_TIMEOUT_SEC", "torch's watchdog of MCCL: silence after which it ends the process",
                None, "torch_musa names torch's NCCL variables TORCH_MCCL_ (github.com/MooreThreads/torch_musa)"),
    )  # fmt: skip
    sources = (
        "gpustack-runtime 0.2.6, detector/mthreads.py",
        "vllm-omni pull request 2337: the output of mthreads-gmi 2.3.2",
    )
    missing = {"health": "mthreads-gmi's table names the kind of memory protection, not its counts."}

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``mthreads-gmi``: three lines each; it tells no power in its table."""
        if "mthreads-gmi" not in text:
            return []
        driver = named(r"Driver Version:\s*(\S+)", text)
        return [
            self.record(
                int(one[1]), one[2], driver=driver, pci_address=pci_address(one[3]), utilisation=share(one[4]),
                memory_used_bytes=size(one[5]), memory_bytes=size(one[6]),
                temperature_c=number(named(r"\|\s*(\d+)C\b", text[one.end() : one.end() + 160])),
            )
            for one in FIRST.finditer(text)
        ]  # fmt: skip
