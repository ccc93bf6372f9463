"""What is timed and what came of it, as plain data that travels between processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from zhenfa.spec.machine import Precision

Kind = Literal[
    "matmul", "attention", "attention backward", "decode", "stream", "launch", "host", "optimizer", "yardstick"
]
"""``launch``: a kernel with next to no work, on the device. ``host``: the same, until the host may go on."""


@dataclass(frozen=True)
class Task:
    """One operation of one size.

    ``sizes`` are what the law of its kind takes, in elements: ``matmul`` rows, inputs, outputs and ``layout`` (0
    forward, 1 gradient of the input, 2 gradient of the weight); ``attention`` sequences, length, heads, dim,
    and ``decode`` the same with one query in each sequence;
    ``stream`` elements, tensors read and written and ``cold`` of them that lie in memory; ``optimizer`` parameters in
    ``tensors`` pieces.
    """

    kind: Kind
    precision: Precision
    sizes: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.kind} {self.precision} " + " x ".join(f"{size:,}" for size in self.sizes.values())

    def to_data(self) -> dict[str, Any]:
        """Return plain data."""
        return {"kind": self.kind, "precision": self.precision, "sizes": dict(self.sizes)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Read plain data."""
        return cls(**data)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of the values lie, interpolated; NaN of nothing.

    >>> quantile([1, 2, 3, 4], 0.5)
    2.5
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Sample:
    """A task with the seconds that each call took."""

    task: Task
    seconds: tuple[float, ...] = field(repr=False)

    @property
    def median(self) -> float:
        """Return the middle one."""
        return quantile(self.seconds, 0.5)

    @property
    def p10(self) -> float:
        """Return the seconds that a tenth of the calls undercut."""
        return quantile(self.seconds, 0.1)

    @property
    def p90(self) -> float:
        """Return the seconds that nine tenths of the calls undercut."""
        return quantile(self.seconds, 0.9)

    @property
    def spread(self) -> float:
        """Return p90 over p10, less one: 0 where every call took the same."""
        return self.p90 / self.p10 - 1 if self.p10 > 0 else math.inf


def together(rows: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Return one sample of every task with the calls of all cards; every card timed the same tasks in the same order.

    >>> task = Task("launch", "fp32", {})
    >>> together([[Sample(task, (1.0,))], [Sample(task, (2.0,))]])[0].median
    1.5
    """
    return [
        Sample(same[0].task, tuple(seconds for one in same for seconds in one.seconds))
        for same in zip(*rows, strict=True)
    ]
