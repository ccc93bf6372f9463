"""Paper cards: cores of the processor under another maker's name, so that the example runs on any machine."""

from __future__ import annotations

import resource

from zhenfa.live.makers import DeviceRecord, Maker, TimeOut


class Paper(Maker):
    """Cards of the Paper Company, who make none."""

    id = "paper"
    name = "Paper"
    torch_device = "cpu"
    collective = "gloo"
    collective_library = "Gloo"
    visible_devices = "PAPER_VISIBLE_DEVICES"
    words = ("papercard",)
    smi = ("paper-smi",)
    timeouts = (TimeOut("PAPER_TIMEOUT", "a collective", 60, "Paper Company, programming guide 1.0, page 3"),)
    tried = "the tests of this example, on x86 processors"
    sources = ("Paper Company, programming guide 1.0",)
    missing = {
        "bf16": "the Paper Company counts in fp32 alone.",
        "health": "paper-smi has no column for the health of a card.",
    }

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards of ``paper-smi``: index, name, MiB, W and % in a line each."""
        if not text.startswith("PAPER-SMI"):
            return []
        rows = [line.split() for line in text.splitlines()[1:]]
        return [
            self.record(
                int(index), name, memory_bytes=int(mib) * 2**20, power_w=float(watts), utilisation=float(load) / 100
            )
            for index, name, mib, watts, load in rows
        ]

    def synchronize(self) -> None:
        """Return at once: a processor works in order."""

    def memory(self) -> tuple[int, int]:
        """Return the peak resident bytes of the process, and the capacity that paper-smi tells."""
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return used, max((card.memory_bytes or 0 for card in self.look()), default=0)
