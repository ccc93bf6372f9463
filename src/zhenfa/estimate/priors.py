"""What is assumed of a chip or fabric that nobody has measured, and where the assumption comes from.

A prior is the median over the catalog's measured entries, so it moves when the catalog learns; or a stated constant.
Whatever rests on one is tagged assumed and listed in the estimate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Final

from zhenfa import catalog
from zhenfa.spec.machine import Accelerator, Precision

LAUNCH_S: Final = 4e-6
"""Seconds to start one kernel where nobody has measured: the order seen on CUDA devices without graph capture."""

MEMORY_RESERVE: Final = 0.02
"""Share of device memory that a caching allocator loses to fragmentation."""

MOST_RESERVED: Final = 0.06
"""Share of device memory that a job leaves free at most: on small cards all takes less."""

MAKERS_GIGABYTE: Final = 2.0**30 / 1e9
"""Bytes of a gigabyte of device memory as makers print it over a decimal one: memory chips hold powers of two, and
tools of every maker show 80 GB as 80 GiB."""


@dataclass(frozen=True)
class Prior:
    """A value and the words that say where it comes from."""

    value: float
    why: str


def _median(values: Iterable[float], what: str) -> Prior:
    found = sorted(values)
    return Prior(
        median(found), f"median of {len(found)} measured {what} in the catalog ({found[0]:.2g}-{found[-1]:.2g})"
    )


@cache
def _measured() -> tuple[Accelerator, ...]:
    return tuple(item for item in catalog.accelerators().values() if not item.emulated)


@cache
def matmul_share(precision: Precision) -> Prior:
    """Return the share of peak that a large matmul reaches."""
    wanted: Precision = "bf16" if precision in {"bf16", "fp16", "tf32", "fp32", "fp64"} else "fp8"
    shares = [fact.value for item in _measured() if (fact := item.achievable.matmul.get(wanted)) and fact.value]
    return _median(shares, f"{wanted} matmul shares")


@cache
def memory_share() -> Prior:
    """Return the share of memory bandwidth that a streaming kernel reaches."""
    return _median([fact.value for item in _measured() if (fact := item.achievable.memory).value], "bandwidth shares")


@cache
def tier_latency(level: int) -> Prior:
    """Return the latency of the innermost tier (``level`` 0) or of any outer tier (``level`` 1), in seconds."""
    seen = [
        tier.latency.value
        for system in catalog.systems().values()
        for index, tier in enumerate(system.tiers)
        if min(index, 1) == level and tier.latency.value
    ]
    return _median(seen, "or published tier latencies")
