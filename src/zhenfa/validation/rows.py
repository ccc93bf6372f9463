"""Files of measured rows, read exactly as they are: JSON lines, YAML or JSON documents, operator tables; gzip or not.

A line, an item or a file that cannot be read becomes a :class:`Fault` with its place, and everything else is read all
the same. The form of a file is told by what is in it, not by its name.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from zhenfa.catalog import files
from zhenfa.errors import DocumentError, ZhenfaError
from zhenfa.spec import yaml
from zhenfa.validation import columns, operator

MEASUREMENTS: Final = files.ROOT / "measurements"
MAX_LINE: Final = 4 * 1024 * 1024
MAX_DOCUMENT: Final = 64 * 1024 * 1024
MAX_DEPTH: Final = 40
TAKEN: Final = 10_000
"""Rows that are taken from a folder of operator tables."""

SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".yaml", ".yaml.gz", ".parquet")
TABLES: Final = (".csv", ".tsv")
SECTION: Final = "section"
"""The key under which a record holds the name of the top-level list that it stands in."""

_SECTION_LINE: Final = re.compile(r"([A-Za-z_][\w.-]*):(?:\s|$)")
_ITEM_LINE: Final = re.compile(r"( *)- ")


@dataclass(frozen=True)
class Row:
    """One record, and the file and line where it stands."""

    record: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class Fault:
    """What could not be read: its file and line, and why."""

    place: str
    reason: str


def packaged() -> list[Path]:
    """Return the files of measured rows that ship with Zhenfa."""
    found = (path for path in MEASUREMENTS.rglob("*") if path.name.endswith(SUFFIXES))
    return sorted(found, key=lambda path: path.relative_to(MEASUREMENTS).as_posix())


def read_rows(paths: Iterable[Path | str]) -> Iterator[Row | Fault]:
    """Yield every record of the files in order, and a fault for whatever cannot be read."""
    for path in paths:
        name = str(path)
        try:
            yield from _file(name)
        except OSError as problem:
            yield Fault(name, f"the file cannot be read: {os.strerror(problem.errno) if problem.errno else problem}")
        except (EOFError, zlib.error) as problem:
            yield Fault(name, f"the compressed file is cut short or damaged: {problem}")


def _file(name: str) -> Iterator[Row | Fault]:
    if Path(name).is_dir():
        yield from _folder(name)
        return
    with open(name, "rb") as raw:
        magic = raw.peek(4)[:4]
        if magic == b"PAR1":
            yield from _tables(name)
        elif magic[:2] == b"\x1f\x8b":
            with gzip.open(raw) as unpacked:
                yield from _stream(cast(BinaryIO, unpacked), name)
        else:
            yield from _stream(raw, name)


def _stream(stream: BinaryIO, name: str) -> Iterator[Row | Fault]:
    """Read JSON lines where the first line that is not blank is a JSON object of its own, else a whole document."""
    number, first = 0, b""
    while not first.strip():
        first = stream.readline(MAX_LINE)
        number += 1
        if not first:
            yield Fault(name, "the file is empty")
            return
    plain = name.removesuffix(".gz").casefold()
    record = _line(first)[0]
    words = first.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    if record is None and (plain.endswith(TABLES) or columns.looks_like_table(words)):
        yield from _table(words, stream, name, number)
        return
    if plain.endswith((".jsonl", ".ndjson")) or (record is not None and "id" in record):
        yield from _lines(first, stream, name, number)
        return
    text = b"\n" * (number - 1) + first + stream.read(MAX_DOCUMENT + 1)
    if record is not None and len(text.strip()) > len(first.strip()):  # rows without a name
        yield from _lines(first, io.BytesIO(text[number - 1 + len(first) :]), name, number)
        return
    if len(text) > MAX_DOCUMENT:
        yield Fault(name, f"a document of more than {MAX_DOCUMENT:,} bytes is not read; write it as JSON lines")
        return
    yield from _document(text, name)


def _lines(first: bytes, stream: BinaryIO, name: str, number: int) -> Iterator[Row | Fault]:
    line = first
    while line:
        place = f"{name}:{number}"
        if len(line) >= MAX_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
            yield Fault(place, f"the line is longer than {MAX_LINE:,} bytes")
        elif line.strip():
            record, why = _line(line)
            yield Fault(place, why) if record is None else Row(columns.adopt(record, name), place)
        line = stream.readline(MAX_LINE)
        number += 1


def _table(header: str, stream: BinaryIO, name: str, number: int) -> Iterator[Row | Fault]:
    """Read a table of comma-separated text."""
    lines = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
    try:
        for record in columns.table(lines, header):
            number += 1
            yield Row(columns.adopt(record, name), f"{name}:{number}")
    except csv.Error as problem:
        yield Fault(f"{name}:{number + 1}", f"the table cannot be read: {problem}")


def _line(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return the record of one line, or None and why there is none. A number that is not finite is a missing one."""
    try:
        found = json.loads(line.decode("utf-8-sig"), parse_constant=lambda _: None)
    except UnicodeDecodeError as problem:
        return None, f"byte {problem.start} of the line is not UTF-8"
    except json.JSONDecodeError as problem:
        return None, f"this is not JSON: {problem.msg} (column {problem.colno})"
    except (ValueError, RecursionError) as problem:
        return None, f"this JSON is not read: {problem}"
    if not isinstance(found, dict):
        return None, f"a row is a JSON object, and this is {_name(found)}"
    return found, ""


def _name(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _document(text: bytes, name: str) -> Iterator[Row | Fault]:
    try:
        data, positions = yaml.read(text, name)
    except DocumentError as problem:
        yield from _salvaged(text, name, problem)
        return
    found = False
    for path, section, item in _items(data):
        found = True
        place = f"{name}:{positions.find(path)[0] or 1}"
        yield _row(item, section, place)
    if not found:
        yield Fault(name, "the document holds no list of rows")


def _items(data: yaml.Data) -> Iterator[tuple[yaml.Path, str | None, Any]]:
    """Yield the items of the top-level list, or of each top-level list that holds a mapping; or the one row."""
    if isinstance(data, list):
        yield from (((index,), None, item) for index, item in enumerate(data))
    elif isinstance(data, dict) and "id" in data:
        yield (), None, data
    elif isinstance(data, dict):
        for section, items in data.items():
            if isinstance(items, list) and any(isinstance(item, dict) for item in items):
                yield from (((section, index), section, item) for index, item in enumerate(items))


def _row(item: Any, section: str | None, place: str) -> Row | Fault:
    if not isinstance(item, dict):
        return Fault(place, f"a row is a mapping, and this is {_name(item)}")
    return Row(item if section is None else {SECTION: section, **item}, place)


def _salvaged(text: bytes, name: str, whole: DocumentError) -> Iterator[Row | Fault]:
    """Read the items of a document that cannot be read as a whole one by one."""
    found = False
    for line, section, piece in _pieces(text.decode("utf-8", errors="replace")):
        try:
            data = yaml.read(piece, "")[0]
        except DocumentError as problem:
            found = True
            yield Fault(f"{name}:{line + (problem.line or 1) - 1}", _reason(problem))
            continue
        for item in data if isinstance(data, list) else [data]:
            found = found or isinstance(item, dict)
            yield _row(item, section, f"{name}:{line}")
    if not found:
        yield Fault(f"{name}:{whole.line}" if whole.line else name, _reason(whole))


def _reason(problem: DocumentError) -> str:
    """Return the words of an error without the place that stands before them."""
    place = ":".join(str(part) for part in (problem.source, problem.line, problem.column) if part is not None)
    return problem.message.removeprefix(f"{place}: ").rstrip(".")


def _pieces(text: str) -> Iterator[tuple[int, str | None, str]]:
    """Yield each item of the top-level lists: its first line, the list's name, its text."""
    section: str | None = None
    indent: str | None = None
    start, held = 0, [""]
    held.clear()
    for number, line in enumerate(text.splitlines(), 1):
        key, item = _SECTION_LINE.match(line), _ITEM_LINE.match(line)
        if item and indent is None:
            indent = item[1]
        begins = item is not None and item[1] == indent
        if (key or begins) and held:
            yield start, section, "\n".join(held)
            held.clear()
        if key:
            section, indent = key[1], None
        elif begins or held:
            start = start if held else number
            held.append(line[len(indent or "") :])
    if held:
        yield start, section, "\n".join(held)


def _folder(name: str) -> Iterator[Row | Fault]:
    """Read rows from a folder of operator tables, taken at random: such folders hold millions."""
    if next(Path(name).rglob("*.parquet"), None) is None:
        yield Fault(name, "this is a folder without tables of operators; name the files in it")
        return
    yield from _tables(name, TAKEN)


def _tables(name: str, points: int | None = None) -> Iterator[Row | Fault]:
    """Read a table of measured operators, or so many rows of a folder of them."""
    try:
        for number, record in enumerate(operator.read_tables(name, points), 1):
            yield Row(record, f"{name}:{number}")
    except ZhenfaError as problem:
        yield Fault(name, problem.message.rstrip("."))
    except ImportError as problem:
        yield Fault(name, f"a table in Parquet is read with pyarrow: {problem}")
    except ValueError as problem:
        yield Fault(name, f"the table cannot be read: {problem}")
