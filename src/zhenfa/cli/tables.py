"""Tables that fit: columns are left out or wrapped where the screen is narrow, and it is said which were left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from zhenfa.cli.cells import pad, width, wrap

GAP: Final = 2
NARROWEST: Final = 10

Segment = tuple[str, str | None]
"""Some text and the name of its style (see :data:`zhenfa.cli.console.STYLES`)."""

Line = list[Segment]


@dataclass(frozen=True)
class Column:
    """A column. ``drop``: larger numbers are left out first, 0 never. ``wrap``: cells to which it may be narrowed by
    wrapping its text, 0 if it stays on one line.
    """

    title: str
    right: bool = False
    drop: int = 0
    wrap: int = 0
    style: str | None = None


@dataclass(frozen=True)
class Table:
    """Columns and rows. ``notes`` has a remark for each row (empty for none): a last column where there is room for
    ``room`` cells, else lines of their own below the row. ``strong`` rows stand out.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    notes_title: str = "note"
    room: int = 36
    strong: frozenset[int] = frozenset()


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], *, notes: Iterable[str] = (), title: str = "note",
    strong: Iterable[int] = (),
) -> Table:  # fmt: skip
    """Return a table. Columns without a single entry are dropped."""
    body = [tuple(row) for row in rows]
    used = [index for index in range(len(columns)) if any(row[index] for row in body) or not body]
    return Table(
        tuple(columns[index] for index in used), tuple(tuple(row[index] for index in used) for row in body),
        tuple(notes), title, strong=frozenset(strong),
    )  # fmt: skip


def fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> tuple[list[int], list[int]]:
    """Return the indices of the columns that stay and the cells of each, for a screen of ``room`` cells."""
    natural = [max([width(column.title), *(width(row[index]) for row in rows)]) for index, column in enumerate(columns)]
    least = [
        min(natural[index], column.wrap) if column.wrap else natural[index] for index, column in enumerate(columns)
    ]
    kept = _kept(columns, least, room)
    cells = {index: natural[index] for index in kept}
    flexible = [index for index in kept if columns[index].wrap]
    while sum(cells.values()) + GAP * (len(kept) - 1) > room:
        narrowable = [index for index in flexible if cells[index] > min(least[index], NARROWEST)]
        if not narrowable:
            break
        cells[max(narrowable, key=lambda index: cells[index])] -= 1
    return kept, [cells[index] for index in kept]


def _kept(columns: Sequence[Column], least: list[int], room: int) -> list[int]:
    """Return the columns that stay: the least wanted are left out until the rest fits, then what still fits returns."""

    def fits(indices: list[int]) -> bool:
        return sum(least[index] + GAP for index in indices) - GAP <= room

    kept = list(range(len(columns)))
    for index in sorted(kept, key=lambda index: -columns[index].drop):
        if columns[index].drop and not fits(kept):
            kept.remove(index)
    for index in sorted(range(len(columns)), key=lambda index: columns[index].drop):
        if index not in kept and fits(sorted([*kept, index])):
            kept = sorted([*kept, index])
    return kept


def render(shown: Table, room: int) -> tuple[list[Line], list[str]]:
    """Return the lines of a table on a screen of ``room`` cells, and the titles of the columns that were left out."""
    columns, rows, below = list(shown.columns), [list(row) for row in shown.rows], False
    if any(shown.notes):
        fixed = sum(fit(columns, rows, room)[1]) + GAP * len(columns)
        longest = max(width(note) for note in shown.notes)
        below = room - fixed < min(shown.room, longest)
        if not below:
            columns.append(Column(shown.notes_title, wrap=min(shown.room, longest)))
            rows = [[*row, note] for row, note in zip(rows, shown.notes, strict=True)]
    kept, cells = fit(columns, rows, room)
    lines = [_line([columns[index].title for index in kept], kept, cells, columns, "dim")]
    for number, row in enumerate(rows):
        strong = "strong" if number in shown.strong else None
        lines += _row([row[index] for index in kept], kept, cells, columns, strong)
        if below and shown.notes[number]:
            lines += [[(f"    {text}", "dim")] for text in wrap(shown.notes[number], room - 4)]
    return lines, [column.title for index, column in enumerate(columns) if index not in kept]


def _row(
    row: list[str], kept: list[int], cells: list[int], columns: Sequence[Column], style: str | None
) -> Iterable[Line]:
    parts = [
        wrap(text, size) if columns[index].wrap and width(text) > size else [text]
        for text, index, size in zip(row, kept, cells, strict=True)
    ]
    for at in range(max(map(len, parts), default=0)):
        yield _line([part[at] if at < len(part) else "" for part in parts], kept, cells, columns, style)


def _line(row: list[str], kept: list[int], cells: list[int], columns: Sequence[Column], style: str | None) -> Line:
    """Return one line without blanks at its end."""
    last = max((at for at, text in enumerate(row) if text), default=-1)
    line: Line = []
    for at, (text, index, size) in enumerate(zip(row, kept, cells, strict=True)):
        if at > last:
            break
        column = columns[index]
        shown = pad(text, size, right=True) if column.right else pad(text, size if at < last else 0)
        line.append((shown + " " * GAP if at < last else shown, style or column.style))
    return line
