"""The last step of a run, a lane for each card, as SVG that stretches to any width and stays small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from zhenfa import units
from zhenfa.live.pace import BESIDE
from zhenfa.live.page.markup import Html, element, join
from zhenfa.live.page.plot import key
from zhenfa.live.timeline import WORDS
from zhenfa.spec.result import Event

PIXELS: Final = 1600
"""The widest screen that the picture is made for."""
CELLS: Final = 3 * PIXELS
"""Units across a lane, each a third of a pixel there: what is narrower is merged with what else is in its unit."""
TALL: Final = 10
UNSEEN: Final = (*BESIDE, "wait")
"""A message or a sum under way holds up nobody; a card that waits does nothing."""
OTHER: Final = "other"

Bar = tuple[int, int, str]
"""From one unit to another, and the name of its colour."""


def lanes(labels: Sequence[str], events: Iterable[Event]) -> Html:
    """Return a lane for each card under its label, an axis of seconds, and a legend of what was seen."""
    seen = [event for event in events if event.kind not in UNSEEN and event.end_s > event.start_s]
    end = max((event.end_s for event in seen), default=0.0)
    rows: list[list[Event]] = [[] for _ in labels]
    for event in seen:
        if event.card < len(rows):
            rows[event.card].append(event)
    drawn = [
        element("div", element("div", label, class_="label"), _lane(label, bars(row, end)), class_="lane")
        for label, row in zip(labels, rows, strict=True)
    ]
    kinds = {_colour(event) for event in seen}
    said = [(kind, words) for kind, words in {**WORDS, OTHER: "something else"}.items() if kind in kinds]
    return join((key(said), element("div", *drawn, _axis(end), class_="lanes")))


def bars(events: Iterable[Event], end: float) -> list[Bar]:
    """Return what a lane shows of its events: whole units, and in a unit that holds several what took most of it."""
    wide: list[Bar] = []
    narrow: dict[int, dict[str, float]] = {}
    for event in sorted(events, key=lambda one: one.start_s):
        first, last = CELLS * event.start_s / end, CELLS * event.end_s / end
        if last - first >= 1:
            wide.append((round(first), round(last), _tone(event)))
        else:
            held = narrow.setdefault(min(int(first), CELLS - 1), {})
            held[_colour(event)] = held.get(_colour(event), 0.0) + last - first
    return wide + list(_runs((cell, max(held, key=held.__getitem__)) for cell, held in sorted(narrow.items())))


def _runs(cells: Iterable[tuple[int, str]]) -> Iterator[Bar]:
    """Yield neighbouring units of one colour as one bar."""
    last: Bar | None = None
    for cell, colour in cells:
        if last is not None and last[1] == cell and last[2] == colour:
            last = (last[0], cell + 1, colour)
            continue
        if last is not None:
            yield last
        last = (cell, cell + 1, colour)
    if last is not None:
        yield last


def _colour(event: Event) -> str:
    return event.kind if event.kind in WORDS else OTHER


def _tone(event: Event) -> str:
    """Return the colour, lighter for every other micro-batch, so that neighbours can be told apart."""
    return f"{_colour(event)} odd" if event.micro_batch % 2 and event.micro_batch > 0 else _colour(event)


def _lane(label: str, drawn: Sequence[Bar]) -> Html:
    """Return the bars as one path for each colour."""
    paths: dict[str, list[str]] = {}
    for first, last, tone in drawn:
        paths.setdefault(tone, []).append(f"M{first} 0h{last - first}v{TALL}h{first - last}z")
    return element(
        "svg", *(element("path", d="".join(pieces), class_=tone) for tone, pieces in sorted(paths.items())),
        viewBox=f"0 0 {CELLS} {TALL}", preserveAspectRatio="none", role="img", aria_label=f"what {label} did",
    )  # fmt: skip


def _axis(end: float) -> Html:
    shown = (units.show(end * share, "time") for share in (0, 0.25, 0.5, 0.75, 1))
    return element("div", *(element("span", words) for words in shown), class_="axis")
