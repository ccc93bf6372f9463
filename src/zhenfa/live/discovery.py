"""The cards of this host, from everybody who tells of them: makers' tools, the PCI bus, torch, gpustack-runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zhenfa.live.makers import pci, probe
from zhenfa.live.makers.maker import Maker
from zhenfa.live.makers.record import DeviceRecord, merge
from zhenfa.live.makers.registry import makers


def devices(known: Mapping[str, Maker] | None = None, *, pci_root: Path | None = None) -> list[DeviceRecord]:
    """Return the cards of this host, the processor first; each card once, whoever tells of it.

    What a maker's own tool tells stands before what gpustack-runtime, torch and the PCI bus tell.
    """
    listed = makers() if known is None else known
    found = [card for maker in listed.values() for card in maker.look()]
    found += probe.gpustack_cards(listed)
    found += probe.cards(listed)
    return merge([*found, *pci.cards(listed, pci_root)])
