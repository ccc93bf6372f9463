"""What every card is doing at this moment, readable even when the card no longer answers.

A small file that each card's process maps into memory and writes before it starts or waits for something; the driver
reads it when a card has gone silent. Writing costs about a microsecond and never blocks.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Activity = Literal[
    "idle", "start", "forward", "backward", "receive", "reduce", "optimizer", "save", "input", "weight", "load",
]  # fmt: skip
ACTIVITIES: Final[tuple[Activity, ...]] = (
    "idle", "start", "forward", "backward", "receive", "reduce", "optimizer", "save", "input", "weight", "load",
)  # fmt: skip
SLOT: Final = struct.Struct("<iiiid")
SLOT_BYTES: Final = 64


@dataclass(frozen=True)
class Doing:
    """What a card is doing, and since when on the host's monotonic clock. ``peer`` is the rank it waits for, or -1."""

    activity: Activity
    micro_batch: int
    peer: int
    step: int
    since: float

    def words(self) -> str:
        """Return it in words, to follow the name of a card."""
        batch = f" of micro-batch {self.micro_batch}" if self.micro_batch >= 0 else ""
        verb = {
            "idle": "between two orders",
            "start": "starting up",
            "receive": f"waiting for card {self.peer}",
            "reduce": "summing gradients",
            "optimizer": "in the optimizer step",
            "save": "saving the checkpoint",
            "load": "loading the checkpoint",
            "input": f"in the backward{batch}",
            "weight": f"in the gradients of weights{batch}",
        }.get(self.activity, f"in the {self.activity}{batch}")
        passes = {"forward", "backward", "input", "weight"}
        return f"{verb} of step {self.step}" if self.step and self.activity in passes else verb


class Board:
    """The file, mapped. Create it in the driver, open it by path in the cards."""

    def __init__(self, path: Path, cards: int, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(SLOT_BYTES * cards))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SLOT_BYTES * cards)

    def write(self, rank: int, activity: Activity, *, micro_batch: int = -1, peer: int = -1, step: int = 0) -> None:
        """Say what card ``rank`` does from now on."""
        since = time.monotonic()
        SLOT.pack_into(self._map, rank * SLOT_BYTES, ACTIVITIES.index(activity), micro_batch, peer, step, since)

    def read(self, rank: int) -> Doing:
        """Return what card ``rank`` said last."""
        code, micro_batch, peer, step, since = SLOT.unpack_from(self._map, rank * SLOT_BYTES)
        return Doing(ACTIVITIES[code], micro_batch, peer, step, since)

    def raw(self) -> bytes:
        """Return the whole of it."""
        return self._map[:]

    def put(self, rank: int, slot: bytes, ahead: float) -> None:
        """Take over what a card of another host has said, whose clock this host's is ``ahead`` of (s)."""
        *rest, since = SLOT.unpack_from(slot)
        SLOT.pack_into(self._map, rank * SLOT_BYTES, *rest, since + ahead)

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()
