"""The contest as a picture.

Of a job that trains: where the time of each machine goes, and the figure that is ranked by, with its band. Of one that
serves: what can be had of each machine, tokens/s per card against tokens/s per user.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from zhenfa.cli.compare_report import UNITS, title
from zhenfa.cli.picture import figure, save
from zhenfa.plan.best_plan import BestPlan
from zhenfa.plan.compare import Comparison, Entry
from zhenfa.spec.serving import ServingWorkload

PARTS: Final = {
    "arithmetic at peak": "#2f6fb7", "below peak": "#8fb8e6", "recomputation": "#cfe0f3", "bubble": "#c9c9c9",
    "waiting": "#a8a8a8", "optimizer": "#8a8a8a", "tensor": "#f4b183", "expert": "#e07b39", "context": "#c55a11",
    "pipeline": "#f9d28a", "bridge": "#7f3f00", "data": "#d8a25a", "lost to failures": "#c0392b",
}  # fmt: skip
SHOWN: Final = 0.0005
"""The least share of a bar that gets an entry in the legend."""

COLOURS: Final = ("#2f6fb7", "#e07b39", "#3a9a5b", "#8e5ea2", "#c0392b", "#17a2b8", "#b8860b", "#e377c2")

ROW_INCHES: Final = 0.52


def draw(found: Comparison, path: Path) -> Path:
    """Draw the contest to a PNG file and return its path.

    Raises :class:`CapabilityError` without matplotlib, :class:`InputError` if the file cannot be written.
    """
    if any(entry.best and entry.best.front for entry in found.planned):
        return _draw_fronts(found, path)
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
    axis.locator_params(axis="x", nbins=5, steps=(1, 2, 5, 10))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:.3g}")
    axis.grid(visible=True, axis="x", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlim(left=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_fronts(found: Comparison, path: Path) -> Path:
    """Draw what can be had of each machine that serves: tokens/s per card against tokens/s that one user sees."""
    with figure("--picture") as pyplot:
        from matplotlib.ticker import LogLocator, NullFormatter

        shown, axis = pyplot.subplots(figsize=(8.6, 5.6), dpi=110, layout="constrained")
        for place, entry in enumerate(found.planned):
            if entry.best is None:
                continue
            colour = COLOURS[place % len(COLOURS)]
            front = entry.best.front
            axis.plot(
                [point.tokens_per_s_per_user for point in front], [point.tokens_per_s_per_card for point in front],
                color=colour, linewidth=_width(place, len(found.planned)), label=title(entry), zorder=2,
            )  # fmt: skip
            _mark(axis, entry.best, colour)
        _target(axis, found)
        axis.set(xscale="log", yscale="log")
        axis.set_xlabel("tokens/s that one user sees (1 / TPOT)", fontsize=9)
        axis.set_ylabel("output tokens/s per card, prefill's cards counted", fontsize=9)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ticks.set_major_formatter("{x:,.5g}")
            ticks.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=8)
        axis.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.legend(fontsize=8, framealpha=0.85)
        axis.set_title(f"{found.job.name}: {found.job.model}, estimated; a dot is the best plan", fontsize=10)
        save(shown, path, "--picture")
    return path


def _width(place: int, lines: int) -> float:
    """Return the width of a line: those drawn first are wider, so that they show below one that covers them."""
    return 1.4 + 1.2 * min(lines - 1 - place, 4)


def _mark(axis: Any, best: BestPlan, colour: str) -> None:
    """Mark the best plan, with the band of its throughput where there is one."""
    user, card = best.figures.tokens_per_s_per_user.value, best.figures.tokens_per_s_per_card
    if user is None or card.value is None:
        return
    axis.plot([user], [card.value], "o", color=colour, markersize=7, markeredgecolor="white", zorder=4)
    if card.p10 is not None and card.p90 is not None:
        axis.plot([user, user], [card.p10, card.p90], color=colour, linewidth=1.0, alpha=0.7, zorder=3)


def _target(axis: Any, found: Comparison) -> None:
    """Draw the target of the time per output token, where the job has one."""
    workload = found.job.workload
    if isinstance(workload, ServingWorkload) and workload.tpot_target is not None:
        axis.axvline(1.0 / workload.tpot_target, color="#555555", linewidth=0.9, linestyle="--", label="TPOT target")
