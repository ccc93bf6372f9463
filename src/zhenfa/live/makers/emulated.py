"""Emulated cards: processes on the processor that are held to the speed of their machine document."""

from __future__ import annotations

from zhenfa.live.makers.cpu import Cpu
from zhenfa.live.makers.record import DeviceRecord


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

    def look(self) -> list[DeviceRecord]:
        """Return nothing: emulated cards need no device."""
        return []
