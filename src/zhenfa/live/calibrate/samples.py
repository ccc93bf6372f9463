"""What is timed and what came of it, as plain data that travels between processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from zhenfa.spec.machine import Precision

Kind = Literal[
    "matmul", "attention", "attention backward", "decode", "stream", "chain", "chain backward", "launch", "host",
    "eager decode", "eager step", "optimizer", "yardstick",
]  # fmt: skip
"""``launch``: a kernel with next to no work, on the device. ``host``: the same, until the host may go on. ``eager``: a
model so small that nothing but the issuing of its kernels takes time."""

CHAINS = ("norm", "activation", "rope", "cross-entropy")
"""The chains of element-wise operators that are timed as the runtime runs them; a task's ``what`` counts from here."""

Trials = Mapping[str, Sequence[float]]
"""Seconds of each figure of one trial."""


@dataclass(frozen=True)
class Task:
    """One operation of one size.

    ``sizes`` are what the law of its kind takes, in elements: ``matmul`` rows, inputs, outputs and ``layout`` (0
    forward, 1 gradient of the input, 2 gradient of the weight); ``attention`` sequences, length, heads, dim,
    and ``decode`` the same with one query in each sequence;
    ``stream`` elements, tensors read and written and ``cold`` of them that lie in memory; ``chain`` tokens, features
    and ``what`` of :data:`CHAINS`; ``eager`` layers and length; ``optimizer`` parameters in ``tensors`` pieces.
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


def middle(values: Sequence[float]) -> float:
    """Return the mean of the values between the quartiles; NaN of nothing.

    >>> middle([1, 2, 3, 100])
    2.5
    """
    ordered = sorted(values)
    kept = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
    return sum(kept) / len(kept) if kept else math.nan


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
    def middle(self) -> float:
        """Return the mean of the calls between the quartiles."""
        return middle(self.seconds)

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


def stretch(samples: Sequence[Sample]) -> float:
    """Return the seconds of all calls over what they would be if each took its task's middle: what interruptions, which
    hit long work and short in proportion, add to everything.

    >>> stretch([Sample(Task("matmul", "fp32", {}), (1.0, 1.0, 1.0, 1.0, 1.4))])
    1.08
    """
    timed = [one for one in samples if one.seconds and one.task.kind not in {"launch", "host", "yardstick"}]
    usual = sum(one.middle * len(one.seconds) for one in timed)
    return sum(sum(one.seconds) for one in timed) / usual if usual > 0 else 1.0
