"""Whether a measurement was left alone: what the kernel says of waiting, and what a fixed piece of work says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zhenfa.live.calibrate.samples import quantile

WAITED: Final = 0.02
"""Share of the time that the process's threads may stand in the run queue in a measurement that was left alone."""
UNSTEADY: Final = 0.15
"""p90 over p10, less one, that the fixed piece of work may show in a measurement that was left alone."""


@dataclass(frozen=True)
class Watch:
    """Counters of the kernel at one moment, in seconds: of this process, and of the host's processors together."""

    waited: float
    stolen: float
    clock: float

    @classmethod
    def now(cls) -> Watch:
        """Read the counters; 0 where this system does not keep them."""
        import time

        return cls(_waited(), _stolen(), time.monotonic())

    def share(self, later: Watch) -> float:
        """Return the share of the time since that the process waited for a processor or the host took it away."""
        passed = later.clock - self.clock
        return (later.waited - self.waited + later.stolen - self.stolen) / passed if passed > 0 else 0.0


@dataclass(frozen=True)
class Quiet:
    """How far a measurement was left alone.

    ``waited``: share of the time in which a thread of the busiest card stood in the run queue. ``unsteady``: p90 over
    p10 of the seconds of ``what`` was done again and again, less one.
    """

    waited: float
    unsteady: float
    what: str = "a fixed piece of work"

    @property
    def disturbed(self) -> bool:
        """Return whether other work took part."""
        return self.waited > WAITED or self.unsteady > UNSTEADY

    def words(self) -> str:
        """Return the verdict in a sentence."""
        facts = (
            f"threads waited {self.waited:.1%} of the time for a processor (at most {WAITED:.0%}), and "
            f"{self.what} took {self.unsteady:.0%} longer at p90 than at p10 (at most {UNSTEADY:.0%})"
        )
        return f"disturbed: {facts}" if self.disturbed else f"undisturbed: {facts}"


def verdict(waited: Sequence[float], fixed: Sequence[Sequence[float]], what: str = "a fixed piece of work") -> Quiet:
    """Return how far the cards were left alone, given each card's share of waiting and the seconds of fixed work."""
    steadiness = [quantile(row, 0.9) / quantile(row, 0.1) - 1 for row in fixed if row]
    return Quiet(max(waited, default=0.0), max(steadiness, default=0.0), what)


def _waited() -> float:
    """Return the seconds that the threads of this process stood in the run queue."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return total / 1e9


def _stolen() -> float:
    """Return the seconds that the hypervisor took from the host's processors, per processor."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)
    except (OSError, IndexError, ValueError):
        return 0.0
