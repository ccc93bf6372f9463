"""Reading what makers' tools print: tables in boxes, and comma-separated values with units in the head."""

from __future__ import annotations

import csv
import re
from typing import Final

from zhenfa.live.makers.record import Health

MIB: Final = 1024 * 1024
SCALE: Final = {"": 1, "B": 1, "KiB": 1024, "MiB": MIB, "GiB": 1024 * MIB, "MB": MIB, "GB": 1024 * MIB}
"""Bytes of a unit; tools that print MB or GB count in powers of two."""
UNKNOWN: Final = frozenset({"", "-", "n/a", "na", "[n/a]", "/", "unknown", "[not supported]"})


def number(text: str | None) -> float | None:
    """Return the number that a cell begins with, such as 68.5 of ``68.5W``; None where it tells none."""
    if text is None or text.strip().casefold() in UNKNOWN:
        return None
    found = re.match(r"\s*(\d+(?:\.\d+)?)", text)
    return float(found[1]) if found else None


def size(text: str | None, unit: str = "MiB") -> int | None:
    """Return the bytes that a cell tells, such as ``826MiB``; ``unit`` is meant where it names none."""
    value = number(text)
    if value is None or text is None:
        return None
    named = re.search(r"[KMG]i?B|\bB\b", text)
    return round(value * SCALE[named[0] if named else unit])


def share(text: str | None) -> float | None:
    """Return a percentage as a share."""
    value = number(text)
    return None if value is None else value / 100


def cells(text: str) -> list[list[str]]:
    """Return the cells of each line of a table in a box, without frames."""
    rows = [line.strip() for line in text.splitlines()]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]


def named(pattern: str, text: str) -> str | None:
    """Return the first group of a pattern in a text, None where it is not there."""
    found = re.search(pattern, text)
    return found[1] if found else None


def values(text: str) -> list[dict[str, str]]:
    """Return the rows of comma-separated values by the names in their head, units left out of the names."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.strip().splitlines()) if row]
    if len(rows) < 2:
        return []
    head = [re.sub(r"\s*\[.*\]$", "", name) for name in rows[0]]
    return [dict(zip(head, row, strict=True)) for row in rows[1:] if len(row) == len(head)]


def health_of(word: str | None) -> tuple[Health | None, tuple[str, ...]]:
    """Return what a tool's word for health means, and the problem in words."""
    if word is None or word.casefold() in UNKNOWN:
        return None, ()
    folded = word.casefold()
    if folded in {"ok", "true", "normal", "healthy", "good"}:
        return "ok", ()
    level: Health = "warning" if folded in {"warning", "minor"} else "failed"
    return level, (f"the maker's tool calls its health {word!r}",)
