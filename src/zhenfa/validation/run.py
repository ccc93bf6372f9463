"""Files of measured rows in, outcomes out: what ``zhenfa validate`` and the fit of the bands both do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zhenfa import cite
from zhenfa.validation import kinds
from zhenfa.validation.outcome import Kind, Outcome
from zhenfa.validation.rows import Fault, Row, packaged, read_rows

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""


@dataclass(frozen=True)
class Validation:
    """What came of a set of files. ``unread`` is what could not be read, or is of no kind that the laws know."""

    files: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    unread: tuple[Fault, ...]
    rows: int
    seconds: float
    sources: tuple[str, ...]


def validate(
    paths: Sequence[Path | str] = (), wanted: Iterable[Kind] = (), progress: Progress | None = None
) -> Validation:
    """Run the laws over every row of the files, or of the packaged rows where no file is named.

    ``wanted`` kinds only, all where none is named.
    """
    begun = time.perf_counter()
    chosen = list(paths) or packaged()
    with cite.collect() as used:
        rows, unread, outcomes = 0, [], []
        todo = []
        for item in read_sorted(chosen):
            if isinstance(item, Fault):
                unread.append(item)
            else:
                todo.append(item)
        kept = [(row, kind) for row, kind in todo if not set(wanted) or kind in set(wanted)]
        for rows, (row, kind) in enumerate(kept, 1):
            outcomes += kinds.outcomes(row.record, kind, row.place)
            if progress is not None:
                progress(rows, len(kept))
    names = tuple(str(path) for path in chosen)
    seconds = time.perf_counter() - begun
    return Validation(names, tuple(outcomes), tuple(unread), rows, seconds, tuple(used))


def read_sorted(paths: Iterable[Path | str]) -> Iterator[tuple[Row, Kind] | Fault]:
    """Yield every row of the files with its kind; a row of no kind is a fault."""
    for item in read_rows(paths):
        if isinstance(item, Fault):
            yield item
            continue
        kind = kinds.kind_of(item.record)
        yield (item, kind) if kind is not None else Fault(item.place, _unknown(item))


def _unknown(row: Row) -> str:
    name, sort = row.record.get("id"), row.record.get("kind")
    fields = ", ".join(str(key) for key in list(row.record)[:8])
    named = f" of {name[:60]!r}" if isinstance(name, str) else ""
    called = f", nor one called {sort[:40]!r}" if isinstance(sort, str) else ""
    return f"no kind of row has the fields{named}{called}: {fields}"
