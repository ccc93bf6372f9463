"""How long a call takes on a device: the host's clock for a processor, events in the device's queue for a card.

On a card the host only queues work, so a call is enclosed by two events of the device's own clock. Before each call
the second-level cache is filled with something else. All is queued behind matmuls that last longer than the queueing,
so that the host stays ahead of the card and its own time is not counted; the time of the host is measured apart.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

Call = Callable[[], object]

SIDE: Final = 4096
"""Side of the matrices that heat a card and keep its queue busy. Random: a card draws less power on equal numbers."""
HEATING_S: Final = 1.0
"""Seconds of matmuls after which a card is taken to have raised its clocks."""
CACHE_BYTES: Final = 256 * 2**20
"""Bytes that replace what a card's last cache holds where torch does not tell: the largest today has 256 MB."""


class Clock(ABC):
    """Times calls on one device."""

    @abstractmethod
    def times(self, call: Call, count: int) -> list[float]:
        """Return the seconds of each of ``count`` calls, one after the other."""

    @abstractmethod
    def batch(self, call: Call, count: int) -> float:
        """Return the mean seconds of ``count`` calls queued back to back, the host being ahead of the device."""

    def host(self, call: Call, count: int) -> float:
        """Return the mean seconds after which the host may go on, of ``count`` calls."""
        self.wait()
        begun = time.perf_counter()
        for _ in range(count):
            call()
        seconds = (time.perf_counter() - begun) / count
        self.wait()
        return seconds

    def whole(self, call: Call) -> float:
        """Return the seconds from the first thing that the host does of a call until the device has ended it."""
        self.wait()
        begun = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - begun

    @abstractmethod
    def wait(self) -> None:
        """Return when the device is idle."""


class HostClock(Clock):
    """A processor: a call has ended when it returns."""

    def times(self, call: Call, count: int) -> list[float]:
        """Return the seconds of each call."""
        found = []
        for _ in range(count):
            begun = time.perf_counter()
            call()
            found.append(time.perf_counter() - begun)
        return found

    def batch(self, call: Call, count: int) -> float:
        """Return the mean seconds of the calls."""
        return self.host(call, count)

    def wait(self) -> None:
        """Return at once."""


class EventClock(Clock):
    """A card behind ``torch.cuda`` or any other ``torch.accelerator``."""

    def __init__(self, device: Any) -> None:
        import torch

        self._torch, self._device = torch, device
        self._sink = torch.empty(cache_bytes(device) // 4, dtype=torch.int32, device=device)
        self._work = torch.randn(SIDE, SIDE, device=device).to(torch.bfloat16)

    def times(self, call: Call, count: int) -> list[float]:
        """Return the seconds of each call, the cache replaced before it, all queued behind work that lasts so long."""
        call()
        pairs = [(self._event(), self._event()) for _ in range(count)]
        ahead = self.host(lambda: (self._sink.zero_(), call()), 1) * count
        self._keep_busy(2 * ahead)
        for before, after in pairs:
            self._sink.zero_()
            before.record()
            call()
            after.record()
        self.wait()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def batch(self, call: Call, count: int) -> float:
        """Return the mean seconds of the calls, queued behind work that lasts until all of them are queued."""
        call()
        ahead = self.host(call, count) * count
        begun, ended = self._event(), self._event()
        self._keep_busy(2 * ahead)
        begun.record()
        for _ in range(count):
            call()
        ended.record()
        self.wait()
        return float(begun.elapsed_time(ended)) / 1e3 / count

    def wait(self) -> None:
        """Wait for the device's queues."""
        self._torch.accelerator.synchronize(self._device)

    def heat(self, seconds: float = HEATING_S) -> None:
        """Multiply matrices until the card has raised its clocks."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(10):
                self._work @ self._work
            self.wait()

    def _event(self) -> Any:
        return self._torch.Event(self._device, enable_timing=True)

    def _keep_busy(self, seconds: float) -> None:
        """Queue matmuls that last so long, so that the host is ahead of the device."""
        count = self._lasting(seconds)
        for _ in range(count):
            self._work @ self._work

    def _lasting(self, seconds: float) -> int:
        """Return how many of the clock's own matmuls last so long, 1 at least and as many as a queue may hold."""
        begun, ended = self._event(), self._event()
        begun.record()
        self._work @ self._work
        ended.record()
        self.wait()
        one = max(float(begun.elapsed_time(ended)) / 1e3, 1e-6)
        return min(max(int(seconds / one) + 1, 1), 200)


def cache_bytes(device: Any) -> int:
    """Return twice the bytes of the card's second-level cache, or :data:`CACHE_BYTES` where torch does not tell."""
    import torch

    if device.type != "cuda":
        return CACHE_BYTES
    known = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    return 2 * int(known) or CACHE_BYTES


def clock_of(device: Any) -> Clock:
    """Return the clock of a torch device."""
    return HostClock() if device.type == "cpu" else EventClock(device)
