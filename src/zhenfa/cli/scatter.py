"""Measured against predicted as a picture: a panel for each kind of row and unit, a colour for each group, the band."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from zhenfa.cli.validate_report import KINDS
from zhenfa.errors import CapabilityError, InputError
from zhenfa.validation.outcome import Outcome
from zhenfa.validation.summary import spread

if TYPE_CHECKING:
    from collections.abc import Mapping

COLOURS: Final = ("#3b7dd8", "#e07b39", "#3a9a5b", "#8e5ea2", "#c0392b", "#17a2b8", "#b8860b", "#e377c2")
OTHER: Final = "#9a9a9a"
MARKERS: Final = ("o", "^", "s", "D", "v", "P")
COLUMNS: Final = 3
RARE: Final = 0.05
FEWEST: Final = 8
"""Units of fewer of a kind's figures than this share, or this many, get a panel together."""

NARROWEST: Final = 30.0
"""The least ratio of the ends of an axis."""
PANEL_INCHES: Final = 4.6


def draw(outcomes: Sequence[Outcome], path: Path) -> Path:
    """Draw every predicted outcome to a PNG file and return its path.

    Raises :class:`CapabilityError` without matplotlib, :class:`InputError` if the file cannot be written or nothing
    was predicted.
    """
    judged = [one for one in outcomes if one.skipped is None and one.ratio is not None]
    if not judged:
        raise InputError("no row was predicted, so there is nothing to draw.")
    pyplot = _pyplot()
    panels = panels_of(judged)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(PANEL_INCHES * columns, (PANEL_INCHES + 0.25) * rows), dpi=110, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    names = {kind: legend_groups([one for one in judged if one.kind == kind]) for kind in KINDS}
    for (title, members), axis in zip(panels, axes.flat, strict=False):
        _panel(axis, title, members, names[members[0].kind])
    try:
        figure.savefig(path, format="png")
    except OSError as problem:
        raise InputError(
            f"{str(path)!r} cannot be written: {os.strerror(problem.errno or 0)}.",
            hint="name a file in a folder that exists with --plot.",
        ) from None
    finally:
        pyplot.close(figure)
    return path


def panels_of(judged: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """Return the title and the outcomes of each panel: one for each kind and unit, rare units of a kind together."""
    panels = []
    for kind, title in KINDS.items():
        mine = [one for one in judged if one.kind == kind]
        counts = Counter(one.unit for one in mine)
        common = [unit for unit, count in counts.most_common() if count >= max(RARE * len(mine), FEWEST)]
        rest = [one for one in mine if one.unit not in common]
        panels += [
            (f"{title}, {unit or 'ratios'}" if len(counts) > 1 else title, [one for one in mine if one.unit == unit])
            for unit in common
        ]
        panels += [(f"{title}, other units", rest)] if rest else []
    return panels


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise CapabilityError(
            "matplotlib is not installed, and --plot draws with it.", hint="pip install 'zhenfa[plot]'."
        ) from None
    return pyplot


def _panel(axis: Any, title: str, outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    colours = dict(zip(names, COLOURS, strict=False))
    from matplotlib.ticker import NullFormatter

    units = [unit for unit, _ in Counter(one.unit for one in outcomes).most_common()]
    markers = {unit: MARKERS[min(place, len(MARKERS) - 1)] for place, unit in enumerate(units)}
    values = [value for one in outcomes for value in (one.measured, one.predicted) if value]
    low, high = min(values) / 1.6, max(values) * 1.6
    wider = max(NARROWEST * low / high, 1.0) ** 0.5
    low, high = low / wider, high * wider
    _band(axis, outcomes, low, high)
    size = 26 if len(outcomes) < 200 else 12 if len(outcomes) < 2000 else 4
    for name in [*names, None]:
        for unit in units:
            mine = [one for one in outcomes if one.unit == unit and _named(one, names) == name]
            if mine:
                axis.scatter(
                    [one.measured for one in mine], [one.predicted for one in mine], s=size, marker=markers[unit],
                    color=OTHER if name is None else colours[name], alpha=0.65, linewidths=0, zorder=2 if name else 1.5,
                )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    middle, tail = spread([one.log_ratio or 0.0 for one in outcomes])
    axis.set_title(f"{title}: {len(outcomes):,} figures, |ln| median {middle:.2f}, p90 {tail:.2f}", fontsize=8.5)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_minor_formatter(NullFormatter())
    axis.set_xlabel(f"measured ({', '.join(unit or 'ratio' for unit in units[:4])})", fontsize=9)
    axis.set_ylabel("predicted", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.6, zorder=0)
    axis.set_axisbelow(True)
    _legend(axis, outcomes, colours, markers)


def legend_groups(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the groups that get a colour of their own: broad ones, the largest first, as many as there are colours."""
    counts: Counter[str] = Counter()
    for one in outcomes:
        counts.update(dict.fromkeys(map(_broad, one.groups), 1))
    first = Counter(_broad(one.group) for one in outcomes)
    names = [name for name, _ in first.most_common()] + [name for name, _ in counts.most_common()]
    split = [name for name in dict.fromkeys(names) if counts[name] < len(outcomes)]
    return (split or list(counts))[: len(COLOURS)]


def _broad(group: str) -> str:
    """Return a group's name without its third part, such as ``operators / h100_sxm`` of one operator on it."""
    parts = group.split(" / ")
    return " / ".join(parts[:2]) if parts[0] == "operators" else group


def _named(one: Outcome, names: Sequence[str]) -> str | None:
    mine = set(map(_broad, one.groups))
    return next((name for name in names if name in mine), None)


def _band(axis: Any, outcomes: Sequence[Outcome], low: float, high: float) -> None:
    """Shade where a prediction with the panel's median band covers its measurement; the diagonal is agreement."""
    factors = [
        (one.p10 / one.predicted, one.p90 / one.predicted)
        for one in outcomes
        if one.p10 and one.p90 and one.predicted and one.covered is not None
    ]
    ends = [low, high]
    if factors:
        under, over = median(low for low, _ in factors), median(high for _, high in factors)
        axis.fill_between(
            ends, [end / over for end in ends], [end / under for end in ends], color="#d9e6f7", zorder=0.5, linewidth=0,
            label=f"p10 to p90: x{under:.2f} to x{over:.2f}",
        )  # fmt: skip
    axis.plot(ends, ends, color="#333333", linewidth=0.9, zorder=1)


def _legend(axis: Any, outcomes: Sequence[Outcome], colours: Mapping[str, str], markers: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles, _ = axis.get_legend_handles_labels()
    counts = Counter(_named(one, list(colours)) for one in outcomes)
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5}
    handles += [
        Line2D([], [], color=colour, label=f"{name.split(' / ', 1)[-1]} ({counts[name]:,})", **dot)
        for name, colour in colours.items()
        if counts[name]
    ]
    if counts[None]:
        handles.append(Line2D([], [], color=OTHER, label=f"others ({counts[None]:,})", **dot))
    if len(markers) > 1:
        handles += [
            Line2D([], [], color="#555555", linestyle="", marker=marker, markersize=4, label=unit or "ratio")
            for unit, marker in list(markers.items())[: len(MARKERS)]
        ]
    axis.legend(handles=handles, fontsize=6.5, loc="upper left", framealpha=0.85, handletextpad=0.4, borderpad=0.4)
