"""Whether the cards get on, and which one holds the others up.

Cards write what they begin on the board. The watchdog looks at it while the driver waits for answers: it tells when a
card's process was stopped by a signal, or when for too long no card has begun anything, and follows who waits for whom
to the card that everybody waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from zhenfa.live.board import Board

WAITING: Final = frozenset({"receive", "reduce", "idle"})
"""What a card does that only waits for others."""
LOOK_S: Final = 0.25
STOPPED_S: Final = 0.5
"""Seconds that a process may be stopped before it is given up: a debugger or a job control signal may pass."""


class Watchdog:
    """Watches cards by rank. ``stopped`` tells whether a card's process was stopped by a signal.

    ``progress`` is the seconds in which some card must begin something, None for no such limit.
    """

    def __init__(self, board: Board | None, stopped: Callable[[int], bool], progress: float | None) -> None:
        self._board, self._is_stopped, self._progress = board, stopped, progress
        self._begun = self._looked = time.monotonic()
        self._stopped: dict[int, float] = {}

    @property
    def look_every(self) -> float:
        """Return the seconds between two looks."""
        return LOOK_S if self._progress is None else min(LOOK_S, self._progress / 4)

    def held_up(self, silent: Sequence[int]) -> str | None:
        """Return why the cards that have not answered will not, or None while they get on."""
        now = time.monotonic()
        if now - self._looked < self.look_every / 2:
            return None
        self._looked = now
        for rank in silent:
            if not self._is_stopped(rank):
                self._stopped.pop(rank, None)
            elif now - self._stopped.setdefault(rank, now) > STOPPED_S:
                return f"no sign of life for {STOPPED_S:g} s"
        if self._progress is None or self._board is None:
            return None
        last = max([self._begun, *(self._board.read(rank).since for rank in silent)])
        return f"no progress for {self._progress:g} s" if now - last > self._progress else None

    def guilty(self, silent: Sequence[int]) -> tuple[list[int], str | None]:
        """Return the silent cards that hold the others up, and why if that is known.

        Those whose process was stopped; else those that do not wait; else the one that the others wait for.
        """
        stopped = [rank for rank in silent if self._is_stopped(rank)]
        if stopped:
            return stopped, "Its process was stopped by a signal."
        if self._board is None:
            return list(silent), None
        busy = [rank for rank in silent if self._board.read(rank).activity not in WAITING]
        return busy or self._awaited(silent) or list(silent), None

    def _awaited(self, silent: Sequence[int]) -> list[int]:
        """Return the silent card at the end of the longest line of cards that wait for each other."""
        if self._board is None:
            return []
        waits = {rank: self._board.read(rank).peer for rank in silent}
        ends = []
        for rank in silent:
            seen = [rank]
            while (peer := waits.get(seen[-1], -1)) >= 0 and peer in waits and peer not in seen:
                seen.append(peer)
            ends.append((len(seen), seen[-1]))
        longest, end = max(ends, default=(0, -1))
        return [end] if longest > 1 else []
