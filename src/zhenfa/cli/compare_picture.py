"""The contest as a picture: where the time of each machine goes, and the figure that is ranked by, with its band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from zhenfa.cli.compare_report import UNITS, title
from zhenfa.cli.picture import figure, save
from zhenfa.plan.compare import Comparison, Entry

PARTS: Final = {
    "arithmetic at peak": "#2f6fb7", "below peak": "#8fb8e6", "recomputation": "#cfe0f3", "bubble": "#c9c9c9",
    "waiting": "#a8a8a8", "optimizer": "#8a8a8a", "tensor": "#f4b183", "expert": "#e07b39", "context": "#c55a11",
    "pipeline": "#f9d28a", "bridge": "#7f3f00", "data": "#d8a25a", "lost to failures": "#c0392b",
}  # fmt: skip
SHOWN: Final = 0.0005
"""The least share of a bar that gets an entry in the legend."""

ROW_INCHES: Final = 0.52


def draw(found: Comparison, path: Path) -> Path:
    """Draw the contest to a PNG file and return its path.

    Raises :class:`CapabilityError` without matplotlib, :class:`InputError` if the file cannot be written.
    """
    entries = [*found.ranked, *(entry for entry in found.planned if entry not in found.ranked)]
    with figure("--picture") as pyplot:
        shown, (left, right) = pyplot.subplots(
            1, 2, figsize=(12.0, 2.1 + ROW_INCHES * len(entries)), dpi=110, layout="constrained", sharey=True,
            width_ratios=(3, 2),
        )  # fmt: skip
        _bars(left, found, entries)
        _dots(right, found, entries)
        shown.legend(fontsize=8, ncols=7, loc="outside lower left", frameon=False)
        shown.suptitle(f"{found.job.name}: {found.job.model}, estimated", fontsize=11)
        save(shown, path, "--picture")
    return path


def _bars(axis: Any, found: Comparison, entries: Sequence[Entry]) -> None:
    ends = [0.0] * len(entries)
    split = [found.shares(entry) for entry in entries]
    for name, colour in PARTS.items():
        widths = [shares.get(name, 0.0) for shares in split]
        label = name if max(widths) >= SHOWN else None
        axis.barh(range(len(entries)), widths, left=ends, color=colour, label=label, height=0.62)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for place, entry in enumerate(entries):
        if entry.best:
            axis.annotate(f" {entry.best.walls.binding} binds", (1.0, place), va="center", fontsize=8)
    axis.set_yticks(range(len(entries)), [title(entry) for entry in entries], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.24)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"], fontsize=8)
    axis.set_xlabel("share of wall-clock time, busiest stage", fontsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _dots(axis: Any, found: Comparison, entries: Sequence[Entry]) -> None:
    for place, entry in enumerate(entries):
        one = entry.measure(found.by)
        if one.value is None:
            axis.annotate("undisclosed", (0, place), va="center", fontsize=8, color="#777777")
            continue
        axis.barh(place, one.value, color="#2f6fb7", alpha=0.85, height=0.5)
        if one.p10 is not None and one.p90 is not None:
            axis.plot([one.p10, one.p90], [place, place], color="#222222", linewidth=1.6)
            axis.plot([one.p10, one.p90], [place, place], "|", color="#222222", markersize=9)
    axis.set_xlabel(f"{UNITS[found.by]}; the line is p10 to p90", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(visible=True, axis="x", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlim(left=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
