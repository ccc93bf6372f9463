"""Curves over the steps of a run as SVG that stretches to any width; words and ticks beside it keep their size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from zhenfa.live.page.markup import Html, element, muted

WIDE: Final = 1000
TALL: Final = 300
BUCKETS: Final = 800
"""A curve of more steps than this shows the least and the greatest value of each of so many stretches."""
DOTS: Final = 60
"""So many points and no more are shown as dots."""

SMALLEST: Final = 1e-290
"""What differs by less is taken to be equal."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Values by step. ``name`` is also its colour in the style sheet."""

    name: str
    words: str
    points: Points


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step, by its number in the recovery log."""

    number: int
    step: int


def plot(curves: Sequence[Curve], marks: Sequence[Mark], *, label: str, start: int, end: int) -> Html:
    """Return curves over the steps from ``start`` to ``end``, with upright lines at the marks."""
    values = [value for curve in curves for _, value in curve.points]
    levels = ticks(min(values), max(values))
    low, high = min(levels[0], *values), max(levels[-1], *values)
    across = Scale(start, end, WIDE)
    up = Scale(high, low, TALL)
    inside = [
        *(_line(0, up(level), WIDE, up(level), "grid") for level in levels),
        *(_line(across(one.step), 0, across(one.step), TALL, "mark") for one in marks),
        *(piece for curve in curves for piece in _curve(curve, across, up)),
    ]
    picture = element(
        "svg", *inside, viewBox=f"0 0 {WIDE} {TALL}", preserveAspectRatio="none", role="img", aria_label=label
    )
    beside = [_at(f"{level:.6g}", "level", top=up(level) / TALL) for level in levels]
    below = [_at(f"{step:,}", "step", left=across(step) / WIDE) for step in steps_shown(start, end)]
    above = [_at(str(one.number), "number", left=across(one.step) / WIDE) for one in apart(marks, across)]
    return element("div", picture, *beside, *below, *above, class_="plot")


def legend(curves: Sequence[Curve], marks: Sequence[Mark]) -> Html:
    """Return what the colours of a plot stand for."""
    said = [(curve.name, curve.words) for curve in curves]
    if marks:
        said.append(("mark", "incident, by its number in the recovery log"))
    return key(said)


def key(said: Iterable[tuple[str, str]]) -> Html:
    """Return names of colours and the words for them as a legend."""
    return element("p", *(element("span", element("i", class_=name), words) for name, words in said), class_="key")


@dataclass(frozen=True)
class Scale:
    """Values from ``first`` to ``last`` over ``length`` units of a picture; what lies beyond stands at the edge."""

    first: float
    last: float
    length: float

    def __call__(self, value: float) -> float:
        """Return where a value stands."""
        if self.first == self.last:
            return self.length / 2
        share = (value - self.first) / (self.last - self.first)
        return self.length * min(max(share, 0.0), 1.0)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round values that enclose ``low`` to ``high``.

    >>> ticks(3.17, 5.59)
    [3.0, 4.0, 5.0, 6.0]
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, SMALLEST):
        room = size / 10 if size > SMALLEST else 0.1
        low, high = low - room, high + room
    rough = high / count - low / count
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * each for each in (1, 2, 2.5, 5, 10) if scale * each >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def steps_shown(start: int, end: int) -> list[int]:
    """Return the steps that stand under a plot: both ends, and round ones between that leave room for them."""
    if end - start < 2:
        return sorted({start, end})
    room = (end - start) / 8
    inner = [round(tick) for tick in ticks(start, end, 5) if start + room < tick < end - room and tick == round(tick)]
    return [start, *inner, end]


def thinned(points: Points) -> Points:
    """Return at most two points for each of :data:`BUCKETS` stretches: the least and the greatest."""
    if len(points) <= 2 * BUCKETS:
        return points
    bounds = [index * len(points) // BUCKETS for index in range(BUCKETS + 1)]
    kept: list[tuple[float, float]] = []
    for first, last in pairwise(bounds):
        part = points[first:last]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def apart(marks: Sequence[Mark], across: Scale) -> list[Mark]:
    """Return the marks whose numbers do not stand on one another."""
    shown: list[Mark] = []
    for one in sorted(marks, key=lambda mark: mark.step):
        if not shown or across(one.step) - across(shown[-1].step) >= WIDE / 40:
            shown.append(one)
    return shown


def _curve(curve: Curve, across: Scale, up: Scale) -> list[Html]:
    """Return the line, and dots that stay round: strokes of no length with round ends."""
    points = [(across(step), up(value)) for step, value in thinned(curve.points)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    pieces = [element("polyline", points=line, class_=curve.name)]
    if len(points) <= DOTS:
        pieces.append(element("path", d="".join(f"M{x:.1f} {y:.1f}h0" for x, y in points), class_=f"dots {curve.name}"))
    return pieces


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return element("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", class_=kind)


def _at(words: str, kind: str, **place: float) -> Html:
    style = ";".join(f"{side}:{100 * share:.2f}%" for side, share in place.items())
    return element("span", words, class_=kind, style_=style)


def caption(words: str) -> Html:
    """Return the line over a plot."""
    return element("p", muted(words), class_="caption")
