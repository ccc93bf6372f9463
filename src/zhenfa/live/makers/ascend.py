"""Huawei Ascend: ``npu`` through torch_npu, HCCL (one name with Habana's library), npu-smi."""

from __future__ import annotations

from typing import Final

from zhenfa.live.makers.maker import AcceleratorMaker
from zhenfa.live.makers.output import cells, health_of, named, number, share, size
from zhenfa.live.makers.record import DeviceRecord, pci_address
from zhenfa.live.makers.timeouts import TimeOut, between, infiniband

DOCUMENT: Final = "CANN 8.3 environment variables (hiascend.com, {})"


def connect(value: int) -> tuple[float, str]:
    """Return the seconds that HCCL waits for a connection: what the variable holds, and 20 s to tell the others."""
    return value + 20.0, between(120, 7200)(value)[1]


def execute(value: int) -> tuple[float, str]:
    """Return the seconds that a collective waits on Atlas A2 and A3, where 0 is for ever.

    Older training cards round it down to a multiple of 68; with HCCL_OP_EXPANSION_MODE=AIV it is 1,091 at most.
    """
    return (float("inf"), "0 means that it never ends") if value == 0 else between(0, 2147483647)(value)


class Ascend(AcceleratorMaker):
    """NPUs of Huawei. A package of two dies is two devices."""

    id = "ascend"
    name = "Huawei Ascend"
    torch_device = "npu"
    module = "torch_npu"
    collective = "hccl"
    collective_library = "HCCL (Huawei)"
    visible_devices = "ASCEND_RT_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("ascend", "910b", "910c", "950pr", "950dt")
    pci_vendors = ("0x19e5",)
    smi = ("npu-smi", "info")
    timeouts = (
        TimeOut("HCCL_CONNECT_TIMEOUT", "connecting the cards", 120, DOCUMENT.format("envref_07_0149"), connect),
        TimeOut("HCCL_EXEC_TIMEOUT", "a collective, on Atlas A2 and A3", 1836,
                "CANN 9.0 environment variables (hiascend.com, envref_07_0078)", execute),
        TimeOut("HCCL_EVENT_TIMEOUT", "an event of a stream; longer than HCCL_EXEC_TIMEOUT", 1868,
                "Ascend Extension for PyTorch 26.0.0, HCCL_EVENT_TIMEOUT (gitcode.com)", execute),
        TimeOut("HCCL_RDMA_TIMEOUT", "an acknowledgement on RDMA", 20,
                "CANN 8.0 environment variables (hiascend.com, envref_07_0091)", infiniband),
    )  # fmt: skip
    sources = ("Ray 2.60, accelerators/npu.py", "npu-smi 24.1, `npu-smi info`")

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``npu-smi info``: two lines each, the second with bus, load and memory."""
        if "npu-smi" not in text or "HBM-Usage" not in text:
            return []
        driver = named(r"Version:\s*(\S+)", text)
        rows = [row for row in cells(text.partition("Process id")[0]) if len(row) == 3 and row[0][:1].isdigit()]
        return [
            self._card(place, first, second, driver)
            for place, (first, second) in enumerate(zip(rows[::2], rows[1::2], strict=False))
        ]

    def _card(self, place: int, first: list[str], second: list[str], driver: str | None) -> DeviceRecord:
        power, temperature, *_ = [*first[2].split(), "-", "-"]
        used, _, whole = second[2].rpartition("/")
        health, problems = health_of(first[1])
        name = first[0].split(maxsplit=1)[1]
        return self.record(
            place, name if name.casefold().startswith("ascend") else f"Ascend {name}", driver=driver,
            pci_address=pci_address(second[1]), power_w=number(power), temperature_c=number(temperature),
            utilisation=share(second[2].split()[0]), memory_bytes=size(whole) or None,
            memory_used_bytes=size(used.split()[-1]), health=health, problems=problems,
        )  # fmt: skip
