"""One measured number beside what the laws say of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from zhenfa.spec.fact import Tag

Kind = Literal["train", "serve", "op", "fabric", "reliability", "energy"]


@dataclass(frozen=True)
class Outcome:
    """One metric of one row.

    ``groups``: every group that the outcome counts in, the narrowest first. ``measured`` and ``predicted`` in ``unit``;
    ``skipped`` says why there is no prediction. ``gate``: the row belongs to those that must be predicted (tier A, or
    marked as a gate). ``tag`` is the weakest of what the prediction rests on; ``note`` what was assumed about the row.
    ``p10`` and ``p90`` bound the prediction.
    """

    id: str
    kind: Kind
    groups: tuple[str, ...]
    metric: str
    unit: str
    measured: float | None = None
    predicted: float | None = None
    tag: Tag = "fitted"
    skipped: str | None = None
    gate: bool = False
    p10: float | None = None
    p90: float | None = None
    note: str | None = None

    @property
    def group(self) -> str:
        """Return the narrowest group."""
        return self.groups[0]

    @property
    def ratio(self) -> float | None:
        """Return predicted over measured; None where one of them is missing or not positive."""
        if self.predicted is None or self.measured is None or self.predicted <= 0 or self.measured <= 0:
            return None
        return self.predicted / self.measured

    @property
    def log_ratio(self) -> float | None:
        """Return the natural logarithm of :attr:`ratio`."""
        return None if self.ratio is None else math.log(self.ratio)

    @property
    def covered(self) -> bool | None:
        """Return whether the measurement lies in the band; None without a band."""
        if self.p10 is None or self.p90 is None or self.measured is None:
            return None
        return self.p10 <= self.measured <= self.p90

    def within(self, p10: float, p90: float) -> Self:
        """Return the outcome with a band."""
        return replace(self, p10=p10, p90=p90)
