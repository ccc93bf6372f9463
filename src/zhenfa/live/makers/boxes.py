"""The table that several tools print as nvidia-smi does: a card in two lines, name and bus, then what it does."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from zhenfa.live.makers.output import cells, named, number, share, size
from zhenfa.live.makers.record import DeviceRecord, pci_address

if TYPE_CHECKING:
    from zhenfa.live.makers.maker import Maker


def two_line_cards(maker: Maker, text: str, mark: str) -> list[DeviceRecord]:
    """Return the cards of such a table; none if ``mark``, which the tool alone prints, is not in it.

    The first line of a card begins with its index and has the bus address in the second cell; the second has
    temperature and power, used and whole memory, and the load in whichever line has a share last.
    """
    if mark not in text:
        return []
    driver = named(r"Driver Version:\s*(\S+)", text)
    rows = cells(text.partition("Process")[0])
    found = []
    for first, second in pairwise(rows):
        begin = re.match(r"(\d+)\s+(.+)", first[0])
        if begin and len(first) > 2 and len(second) > 2 and pci_address(first[1].split()[0] if first[1] else None):
            found.append(_card(maker, int(begin[1]), begin[2], first, second, driver))
    return found


def _card(
    maker: Maker, index: int, label: str, first: list[str], second: list[str], driver: str | None
) -> DeviceRecord:
    memory = re.search(r"(\d+)\s*(?:MiB)?\s*/\s*(\d+)\s*MiB", second[1])
    load = named(r"(\d+(?:\.\d+)?)%", f"{first[2]} {second[2]}")
    name = re.sub(r"\s{2,}.*|\s+N/A$", "", label.strip())
    return maker.record(
        index, name, driver=driver, pci_address=pci_address(first[1].split()[0]),
        temperature_c=number(named(r"(\d+(?:\.\d+)?)C\b", second[0])),
        power_w=number(named(r"(\d+(?:\.\d+)?)\s*W\s*/", second[0])),
        power_limit_w=number(named(r"/\s*(\d+(?:\.\d+)?)\s*W", second[0])), utilisation=share(load),
        memory_used_bytes=size(memory[1]) if memory else None, memory_bytes=size(memory[2]) if memory else None,
    )  # fmt: skip
