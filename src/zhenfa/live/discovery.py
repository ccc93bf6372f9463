"""The cards of this host, from everybody who tells of them: makers' tools, the PCI bus, torch, gpustack-runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from zhenfa.errors import CapabilityError
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


def refuse_unreachable(providers: Iterable[str]) -> None:
    """Raise :class:`CapabilityError` for a maker whose cards this host's torch cannot show, before anything starts."""
    for one in dict.fromkeys(providers):
        mine = makers()[one]
        if not probe.built_for(mine):
            need = f"the module {mine.module}" if mine.module else f"a torch that is built for {mine.torch_device}"
            raise CapabilityError(
                f"cards of {mine.name} need {need}, which is not installed here.",
                hint="`zhenfa doctor` says what is here; run on a machine of emulated cards to try the job.",
            )
