"""What a set of outcomes says of the laws: per group how far off, to which side, how often within the band, what is
missing and why; beside the accuracy that is aimed at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np

from zhenfa.catalog import files
from zhenfa.validation.outcome import Kind, Outcome

TARGETS: Final = files.ROOT / "accuracy_targets.yaml"
FEW: Final = 20
"""Fewer figures than these neither meet nor miss a target."""


@dataclass(frozen=True)
class Target:
    """What is aimed at in a group: median and p90 of abs(ln ratio), and the share of its gate rows to be predicted."""

    what: str
    median: float
    p90: float
    predicted: float


@dataclass(frozen=True)
class Summary:
    """One group. ``n`` outcomes have a prediction, ``skipped`` have none, for ``reasons``.

    ``median`` and ``p90`` are of abs(ln(predicted / measured)); ``bias`` is the median of ln(predicted / measured);
    ``coverage`` the share of the ``banded`` outcomes whose measurement lies in the p10 to p90 band. ``gate`` rows must
    be predicted, and ``gate_predicted`` of them are.
    """

    group: str
    kind: Kind
    n: int
    skipped: int
    median: float | None = None
    p90: float | None = None
    bias: float | None = None
    coverage: float | None = None
    banded: int = 0
    gate: int = 0
    gate_predicted: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    target: Target | None = None

    @property
    def predicted_share(self) -> float | None:
        """Return the share of the gate rows that are predicted; None where there are none."""
        return self.gate_predicted / self.gate if self.gate else None

    @property
    def met(self) -> bool | None:
        """Return whether the group is as accurate as is aimed at; None without a target, or of :data:`FEW` figures."""
        if self.target is None or self.median is None or self.p90 is None or self.n < FEW:
            return None
        share = self.predicted_share
        enough = share is None or share >= self.target.predicted
        return self.median <= self.target.median and self.p90 <= self.target.p90 and enough


@cache
def targets() -> dict[str, Target]:
    """Return the accuracy that is aimed at, by group."""
    return {
        item["group"]: Target(item["what"], item["median"], item["p90"], item.get("predicted", 0.0))
        for item in files.read(TARGETS)["targets"]
    }


def summarise(outcomes: Iterable[Outcome]) -> dict[str, Summary]:
    """Return the summary of every group that an outcome counts in: by kind, then groups with a target, then by name."""
    held: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        for group in dict.fromkeys(outcome.groups):
            held.setdefault(group, []).append(outcome)
    found = {group: _summary(group, members) for group, members in held.items()}
    order = {group: place for place, group in enumerate(targets())}
    kinds = {kind: place for place, kind in enumerate(dict.fromkeys(one.kind for one in found.values()))}
    names = sorted(found, key=lambda name: (kinds[found[name].kind], order.get(name, len(order)), name))
    return {name: found[name] for name in names}


def _summary(group: str, members: Sequence[Outcome]) -> Summary:
    logs = np.array([one.log_ratio for one in members if one.skipped is None], dtype=float)
    covered = [one.covered for one in members if one.skipped is None and one.covered is not None]
    reasons = Counter(one.skipped for one in members if one.skipped is not None)
    rows: dict[str, bool] = {}
    for one in members:
        if one.gate:
            rows[one.id] = rows.get(one.id, False) or one.skipped is None
    return Summary(
        group=group, kind=members[0].kind, n=len(logs), skipped=len(members) - len(logs),
        median=spread(logs)[0], p90=spread(logs)[1], bias=float(np.median(logs)) if len(logs) else None,
        coverage=sum(covered) / len(covered) if covered else None, banded=len(covered),
        gate=len(rows), gate_predicted=sum(rows.values()), reasons=dict(reasons.most_common()),
        target=targets().get(group),
    )  # fmt: skip


def spread(log_ratios: Sequence[float] | np.ndarray) -> tuple[float | None, float | None]:
    """Return median and 90th percentile of the absolute values; None of nothing.

    >>> spread([-0.125, 0.0, 0.125, 0.25, 0.5])
    (0.125, 0.4)
    """
    sizes = np.abs(np.asarray(log_ratios, dtype=float))
    if not len(sizes):
        return None, None
    return float(np.median(sizes)), float(np.percentile(sizes, 90))


def worst(outcomes: Iterable[Outcome], count: int) -> list[Outcome]:
    """Return the outcomes whose prediction is the farthest off, the worst first."""
    judged = [one for one in outcomes if one.skipped is None and one.log_ratio is not None]
    return sorted(judged, key=lambda one: -abs(one.log_ratio or 0.0))[:count]
