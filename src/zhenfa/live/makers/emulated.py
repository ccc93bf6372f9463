"""Emulated cards: processes on the processor that are held to the speed of their machine document."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from zhenfa.live.makers.cpu import Cpu
from zhenfa.live.makers.record import DeviceRecord

FILE: Final = "ZHENFA_EMULATED_HEALTH"
"""Names a document of ``zhenfa devices --json`` with what emulated cards are to say of themselves, to rehearse what a
run does about it: each card's ``name`` is its pool, and ``index`` counts there."""


class Emulated(Cpu):
    """A process that computes for real and answers at the speed of its machine document."""

    id = "emulated"
    name = "emulated"
    tried = "runs and tests of every version; it says nothing of any maker's silicon"
    missing = {
        **Cpu.missing,
        "discovery": "an emulated card is no device: a machine document declares it.",
        "memory": "the process's own memory is told; what the card would have is in its machine document.",
        "telemetry": "an emulated card draws no power of its own.",
        "health": "there is no silicon that could fail.",
    }

    def able(self, name: str) -> bool:
        """Return whether the plug-in has a capability; health and telemetry where a file pretends them."""
        return super().able(name) or (name in {"health", "telemetry"} and FILE in os.environ)

    def look(self) -> list[DeviceRecord]:
        """Return nothing, for emulated cards need no device: or what the file says that :data:`FILE` names."""
        from zhenfa.live.makers import recorded

        named = os.environ.get(FILE)
        return [] if named is None or not Path(named).exists() else recorded.cards(Path(named), {self.id: self})
