"""A card's own clock: what it did from when to when, and, on an emulated card, when it may be done.

An emulated card computes for real on the CPU and then waits until the moment at which a card of its declared speed
would have finished. It keeps its own time: an operation starts when the one before it ended and its message arrived
*on the emulated card*, so that late wake-ups and short stalls of the host do not pile up. It may lag behind the
host's clock by :data:`CATCH_UP` at most, which it makes good because it computes faster than it pretends to; more
than that is lost for good, counts as a missed deadline and shows in the measured step, which is taken from the
driver's monotonic clock. Processes on one host share it; those on another add how far it is ahead of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from zhenfa.live.board import Activity, Board

COMPUTE: Final = ("forward", "backward", "input", "weight", "optimizer")
"""Kinds of operations in which a card computes."""
BESIDE: Final = ("send", "sum")
"""What goes on beside a card's own work: messages and sums of gradients under way."""
CATCH_UP: Final = 20e-3
"""Seconds that an emulated card may lag behind the host's clock and make good; beyond it a deadline is missed."""
SPIN: Final = 2e-4
"""Seconds before a deadline from which the process polls the clock instead of sleeping."""
VALID_SHARE: Final = 0.02
"""Share of missed deadlines above which a run's timing is not valid."""


@dataclass
class Operation:
    """One operation under way since ``start`` (s). Set ``seconds`` (of the emulated card) before it ends."""

    start: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Span:
    """What the card did, in s on the driver's clock. ``peer`` is the other card of a message, ``stage`` that of an
    operation, or -1."""

    kind: str
    micro_batch: int
    start: float
    end: float
    peer: int = -1
    stage: int = -1


@dataclass
class Fidelity:
    """How well the emulation held its deadlines."""

    operations: int = 0
    missed: int = 0
    worst: float = 0.0
    busy: float = 0.0
    emulated: float = 0.0

    def count(self, late: float, real: float, emulated: float) -> None:
        """Count one operation, or one message that a card waited for: seconds late, really computed, and emulated."""
        self.operations += 1
        self.missed += late > CATCH_UP
        self.worst = max(self.worst, late)
        self.busy += real
        self.emulated += emulated


@dataclass
class Pacer:
    """The clock of one card. ``paced`` is False on a real card: everything then takes the time that it takes.

    ``slower``: how many times as long a card of which a fault makes a slow one takes for an operation.
    ``ahead``: how far the driver's clock is ahead of this host's (s).
    """

    rank: int
    board: Board
    paced: bool
    synchronize: Callable[[], None]
    now: float = 0.0
    step: int = 0
    micro_batch: int = -1
    slower: float = 1.0
    ahead: float = 0.0
    spans: list[Span] = field(default_factory=list)
    fidelity: Fidelity = field(default_factory=Fidelity)

    def clock(self) -> float:
        """Return the time on the driver's clock (s)."""
        return time.monotonic() + self.ahead

    def wait_until(self, deadline: float) -> float:
        """Return at ``deadline`` (s, the driver's clock); return how late it is, in s."""
        return wait_until(deadline - self.ahead)

    def begin(self, step: int, at: float) -> None:
        """Start a step at time ``at`` (s, the driver's clock), for which all cards wait."""
        self.step, self.now = step, at
        self.spans.clear()
        self.wait_until(at)

    def time(self) -> float:
        """Return the card's time: on a real card the host's, on an emulated one its own, never far behind."""
        host = self.clock()
        self.now = max(self.now, host - CATCH_UP) if self.paced else host
        return self.now

    def meet(self, latest: float) -> None:
        """Have met the other cards, the last of which was there at time ``latest``."""
        if self.paced:
            self.now = max(self.now, latest)

    @contextmanager
    def operation(self, kind: Activity, micro_batch: int = -1, stage: int = -1) -> Iterator[Operation]:
        """Run one operation on the card; on an emulated card return when ``seconds`` have passed there."""
        start = self.time()
        began = self.clock()
        self.micro_batch = micro_batch
        self.board.write(self.rank, kind, micro_batch=micro_batch, step=self.step)
        running = Operation(start)
        yield running
        self.synchronize()
        done = self.clock()
        self.now = done
        if self.paced and running.seconds is not None:
            seconds = running.seconds * (self.slower if kind in COMPUTE else 1.0)
            self.now = start + seconds
            late = self.wait_until(self.now)
            self.fidelity.count(late, done - began, seconds)
        elif self.slower > 1 and kind in COMPUTE:
            self.wait_until(done + (self.slower - 1) * (done - began))
            self.now = self.clock()
        self.spans.append(Span(kind, micro_batch, start, self.now, stage=stage))

    @contextmanager
    def packing(self, micro_batch: int, moved: float, rate: float | None) -> Iterator[None]:
        """Pack or unpack a message, which moves so many bytes of the card's memory at ``rate`` (B/s) if emulated."""
        start = self.time()
        yield
        self.now = start + moved / rate * self.slower if self.paced and rate else self.clock()
        self.spans.append(Span("packing", micro_batch, start, self.now))

    def arrive(self, at: float, transfer: float, peer: int, called: float, micro_batch: int) -> None:
        """Hold the card until a message that arrives ``at`` is there; ``transfer`` s of it were spent on the link.

        ``called`` is the card's time at which it began to wait for it.
        """
        if self.paced:
            late = self.wait_until(at)
            if at > called:
                self.fidelity.count(late, 0.0, 0.0)
            self.now = max(called, at)
        else:
            self.now = self.clock()
        begun = min(max(called, self.now - transfer), self.now)
        if begun > called:
            self.spans.append(Span("wait", micro_batch, called, begun, peer))
        if self.now > begun:
            self.spans.append(Span("receive", micro_batch, begun, self.now, peer))


def wait_until(deadline: float) -> float:
    """Return at ``deadline`` (s, monotonic), asleep until just before it; return how late it is, in s."""
    left = deadline - time.monotonic()
    if left > SPIN:
        time.sleep(left - SPIN)
    while (left := deadline - time.monotonic()) > 0:
        pass
    return -left
