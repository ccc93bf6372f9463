"""What a maker's plug-in can do: each capability yes or no, and a sentence for each no."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CAPABILITIES: Final[dict[str, str]] = {
    "torch": "torch computes on the cards, through a device type that is known",
    "isolation": "a process can be shown one card alone, through a variable that is known",
    "training": "`zhenfa run` takes the cards; where nobody has tried it, it bears a mark",
    "collectives": "the cards have a collective library that torch knows by name",
    "bf16": "torch computes bf16 on the cards",
    "discovery": "the cards are found without torch: by the maker's own tool or library, or on the PCI bus",
    "memory": "used memory and capacity are told",
    "telemetry": "power, temperature and utilisation are told",
    "health": "faults of a card are told by the maker's tool or library",
    "timeouts": "variables that set time-outs of the collective library are known",
}
"""Every capability, and what a yes means."""

UNTRIED: Final = "written from documents and code; nobody here has run it on the maker's silicon"


@dataclass(frozen=True)
class Capability:
    """One capability of one maker. ``sentence`` says why not; it is empty where the answer is yes."""

    name: str
    able: bool
    sentence: str = ""
