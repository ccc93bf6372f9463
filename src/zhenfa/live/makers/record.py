"""A card that is present, as far as anybody tells: every field is empty where it is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Health = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class DeviceRecord:
    """A card of this host. ``provider`` is the id of its maker's plug-in, ``index`` counts the cards of that maker.

    ``maker_from`` says how the maker was told, ``told_by`` who told each other field. ``torch_device`` is None where
    torch has not shown the card. ``utilisation`` is a share; ``problems`` are faults in words, worst first.
    """

    provider: str
    index: int
    name: str
    maker: str
    maker_from: str
    memory_bytes: int | None = None
    torch_device: str | None = None
    uuid: str | None = None
    pci_address: str | None = None
    numa_node: int | None = None
    driver: str | None = None
    memory_used_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    utilisation: float | None = None
    health: Health | None = None
    problems: tuple[str, ...] = ()
    told_by: dict[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """Return the record as plain data for JSON."""
        return {**asdict(self), "problems": list(self.problems)}


TOLD = tuple(
    one.name
    for one in fields(DeviceRecord)
    if one.name not in {"provider", "index", "maker", "maker_from", "problems", "told_by"}
)
"""Fields of a record that somebody tells, one by one."""


def told(record: DeviceRecord, way: str) -> DeviceRecord:
    """Return the record with ``way`` noted for each field that it fills and nobody is noted for."""
    filled = {name: way for name in TOLD if getattr(record, name) is not None}
    return replace(record, told_by=filled | record.told_by)


def pci_address(text: str | None) -> str | None:
    """Return a PCI address as ``0000:c1:00.0``, or None for what is none.

    >>> pci_address("00000000:C1:00.0")
    '0000:c1:00.0'
    >>> pci_address("2d:00.0")
    '0000:2d:00.0'
    """
    if text is None:
        return None
    parts = text.strip().lower().split(":")
    if len(parts) == 2:
        parts = ["0", *parts]
    try:
        domain, bus, (device, _, function) = int(parts[0], 16), int(parts[1], 16), parts[2].partition(".")
        return f"{domain:04x}:{bus:02x}:{int(device, 16):02x}.{int(function or '0', 16):x}"
    except (ValueError, IndexError):
        return None


def merge(found: Iterable[DeviceRecord]) -> list[DeviceRecord]:
    """Return one record for each card: those of one maker with the same UUID, PCI address or index are one card.

    What an earlier record tells stands; later ones fill what it leaves empty. An index counts only between records of
    which at most one tells an address, since tools may count in different orders.
    """
    cards: list[DeviceRecord] = []
    for record in found:
        at = next((place for place, card in enumerate(cards) if same_card(card, record)), None)
        if at is None:
            cards.append(record)
        else:
            cards[at] = _filled(cards[at], record)
    return cards


def same_card(one: DeviceRecord, other: DeviceRecord) -> bool:
    """Return whether two records are of one card."""
    if one.provider != other.provider:
        return False
    for name in ("uuid", "pci_address"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine is not None and theirs is not None:
            return bool(mine == theirs)
    return one.index == other.index


def _filled(card: DeviceRecord, more: DeviceRecord) -> DeviceRecord:
    empty = [name for name in TOLD if getattr(card, name) is None and getattr(more, name) is not None]
    changes: dict[str, Any] = {name: getattr(more, name) for name in empty}
    changes["told_by"] = card.told_by | {name: more.told_by[name] for name in empty if name in more.told_by}
    if more.torch_device is not None and card.torch_device is None:  # torch's index is the one that shows a card
        changes |= {"index": more.index, "name": more.name}
    changes["problems"] = tuple(dict.fromkeys((*card.problems, *more.problems)))
    return replace(card, **changes)
