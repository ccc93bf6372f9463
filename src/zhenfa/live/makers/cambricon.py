"""Cambricon: ``mlu`` through torch_mlu, CNCL, cnmon."""

from __future__ import annotations

from zhenfa.live.makers.maker import AcceleratorMaker
from zhenfa.live.makers.output import cells, named, number, share, size
from zhenfa.live.makers.record import DeviceRecord, pci_address
from zhenfa.live.makers.timeouts import TimeOut


class Cambricon(AcceleratorMaker):
    """MLUs of Cambricon."""

    id = "cambricon"
    name = "Cambricon"
    torch_device = "mlu"
    module = "torch_mlu"
    collective = "cncl"
    collective_library = "CNCL"
    visible_devices = "MLU_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16", "fp16"})
    words = ("cambricon", "mlu")
    pci_vendors = ("0xcabc",)
    smi = ("cnmon",)
    timeouts = (
        TimeOut("TORCH_CNCL_HEARTBEAT_TIMEOUT_SEC", "torch's watchdog of CNCL: silence after which it ends the process",
                None, "torch_mlu names torch's NCCL variables TORCH_CNCL_ (github.com/Cambricon/torch_mlu)"),
    )  # fmt: skip
    sources = ("torch_mlu, its code (github.com/Cambricon/torch_mlu)", "cnmon 5.10, its plain output")

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``cnmon``: two lines each."""
        if "CNMON v" not in text:
            return []
        driver = named(r"Driver v(\S+)", text)
        rows = [row for row in cells(text.partition("Processes")[0]) if len(row) == 3 and "%" in "".join(row)]
        return [self._card(*pair, driver) for pair in zip(rows[::2], rows[1::2], strict=False)]

    def _card(self, first: list[str], second: list[str], driver: str | None) -> DeviceRecord:
        index, _, name, *_ = first[0].split()
        used, _, whole = second[1].partition("/")
        load, *errors = first[2].split()
        ecc = number(errors[0]) if errors else None
        problems = (f"{ecc:.0f} memory errors that the tool counts",) if ecc else ()
        return self.record(
            int(index), name, driver=driver, pci_address=pci_address(first[1]), utilisation=share(load),
            temperature_c=number(named(r"(\d+)C\b", second[0])), power_w=number(named(r"(\d+)\s*W\s*/", second[0])),
            power_limit_w=number(named(r"/\s*(\d+)\s*W", second[0])), memory_used_bytes=size(used),
            memory_bytes=size(whole), health=None if ecc is None else "warning" if ecc else "ok", problems=problems,
        )  # fmt: skip
