"""YAML 1.2 in and out, with the place of every key.

Only plain data is read: mappings with text keys, lists, text, numbers, yes/no as ``true``/``false``, null. Tags,
duplicate keys, non-finite numbers, control characters and documents that unfold without end are refused in words.
JSON is read by the standard library and plain YAML by :mod:`~zhenfa.spec.yaml_plain`; the places of their keys are
looked up when a message needs them. A YAML file may be a quarter of the size of a JSON file, because reading it takes
some ten seconds a megabyte at worst.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from zhenfa.errors import DocumentError, InputError, quote
from zhenfa.spec.yaml_plain import read_plain
from zhenfa.spec.yaml_scalars import MAX_DIGITS

MAX_BYTES: Final = 8 * 1024 * 1024
MAX_NODES: Final = 400_000
MAX_YAML_BYTES: Final = 2 * 1024 * 1024
MAX_YAML_NODES: Final = 100_000
MAX_DEPTH: Final = 40
MAX_TEXT: Final = 64 * 1024
MAX_KEY: Final = 256

Path = tuple[str | int, ...]
Data = dict[str, Any] | list[Any] | str | int | float | bool | None

# Beside control characters, the line breaks of YAML 1.1 that YAML 1.2 and JSON take for text.
_UNPRINTABLE: Final = (
    "[^\t\n\r\x20-\x7e]", "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]",
)  # fmt: skip
_CONTROL: Final = (
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]",
)


def _search(patterns: tuple[str, str], text: str) -> re.Match[str] | None:
    """Search for the first pattern in ASCII text, for the second in any other: that one takes long to compile."""
    return re.search(patterns[not text.isascii()], text)


def find_control(text: str) -> re.Match[str] | None:
    """Return the first character that no value may hold, not even where an escape writes it."""
    return _search(_CONTROL, text)


@dataclass
class Positions:
    """Where each key stands: line and column, both from 1, by path from the root. Ask through :meth:`find`."""

    source: str
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    later: Callable[[], Positions] | None = field(default=None, repr=False, compare=False)

    def find(self, path: Path, *, key: bool = False) -> tuple[int | None, int | None]:
        """Return the place of the value (or of its key) at ``path``, or of the nearest ancestor that is known."""
        if self.later is not None:
            filled, self.later = self.later(), None
            self.keys, self.values = filled.keys, filled.values
        table = self.keys if key else self.values
        for end in range(len(path), -1, -1):
            place = table.get(path[:end]) or self.values.get(path[:end])
            if place:
                return place
        return (None, None)


def read(text: str | bytes, source: str) -> tuple[Data, Positions]:
    """Parse one YAML (or JSON) document; ``source`` names it in messages.

    Raises :class:`DocumentError` with line and column.
    """
    if len(text) > MAX_BYTES:
        raise DocumentError(f"{len(text):,} bytes is more than the {MAX_BYTES:,} that are read.", source=source)
    text = _decode(text, source) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    _refuse_unprintable(text, source)
    if text.lstrip(" \t\r\n")[:1] in ("{", "["):
        try:
            return _read_json(text), Positions(source, later=lambda: _places(text, source))
        except (ValueError, RecursionError) as problem:
            if len(text) > MAX_YAML_BYTES:
                raise _not_json(problem, source) from None
            # otherwise it is flow YAML, or JSON at fault: the YAML reader says what and where
    plain = read_plain(text)
    if plain is not None:
        return plain, Positions(source, later=lambda: _places(text, source))
    return _read_yaml(text, source)


def _not_json(problem: Exception, source: str) -> DocumentError:
    if isinstance(problem, json.JSONDecodeError):
        words, line, column = problem.msg, problem.lineno, problem.colno
        return DocumentError(f"this is not JSON: {words}.", source=source, line=line, column=column)
    return DocumentError(f"this JSON is not read: {problem}.", source=source)


def _decode(text: bytes, source: str) -> str:
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DocumentError("this is UTF-16 or UTF-32.", source=source, hint="save the file as UTF-8.")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DocumentError(
            f"byte {problem.start} is not UTF-8.",
            source=source,
            line=text.count(b"\n", 0, problem.start) + 1,
            hint="save the file as UTF-8.",
        ) from None


def _refuse_unprintable(text: str, source: str) -> None:
    found = _search(_UNPRINTABLE, text)
    if found is None:
        return
    start = found.start()
    raise DocumentError(
        f"the character U+{ord(found[0]):04X} is not read.",
        source=source,
        line=text.count("\n", 0, start) + 1,
        column=start - text.rfind("\n", 0, start),
        hint="this does not look like a text file." if found[0] == "\x00" else "delete it.",
    )


def unreadable(data: Data) -> tuple[Path, str] | None:
    """Return the place of the first value or key that :func:`read` would refuse, and why; None if there is none."""
    for path, value in walk(data):
        if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
            return path, f"{quote(value)} is longer than {MAX_DIGITS} digits."
        for words, longest in ((path[-1] if path else "", MAX_KEY), (value, MAX_TEXT)):
            if not isinstance(words, str):
                continue
            if len(words) > longest:
                return path, f"a text of {len(words):,} characters is longer than {longest:,}."
            control = find_control(words)
            if control:
                return path, f"the character U+{ord(control[0]):04X} is not read."
    return None


def _read_json(text: str) -> Data:
    """Return the data; ``ValueError`` for whatever the YAML reader would refuse, which then says it better."""

    def mapping(pairs: list[tuple[str, Data]]) -> dict[str, Data]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ValueError("a key is given twice")
        return result

    def refuse(constant: str) -> float:
        raise ValueError(f"{quote(constant)} is not a finite number")

    def real(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(digits)

    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise ValueError(f"a number of {len(digits):,} digits is longer than {MAX_DIGITS}")
        return int(digits)

    data: Data = json.loads(
        text, object_pairs_hook=mapping, parse_constant=refuse, parse_float=real, parse_int=whole
    )  # fmt: skip
    for count, (path, value) in enumerate(walk(data), 1):
        if (isinstance(value, dict | list) and len(path) >= MAX_DEPTH) or count > MAX_NODES:
            raise ValueError(f"it has more than {MAX_DEPTH} levels or {MAX_NODES:,} items")
    fault = unreadable(data)
    if fault is not None:
        raise ValueError(fault[1].removesuffix("."))
    return data


def _read_yaml(text: str, source: str) -> tuple[Data, Positions]:
    from zhenfa.spec.yaml_reader import Reader

    if len(text) > MAX_YAML_BYTES:
        raise DocumentError(
            f"{len(text):,} characters of YAML is more than the {MAX_YAML_BYTES:,} that are read.",
            source=source,
            hint="write it as JSON, which is read faster.",
        )
    reader = Reader(source)
    return reader.read(text), reader.positions


def _places(text: str, source: str) -> Positions:
    """Return the places of the keys of JSON text, or none where it is too large for the YAML reader."""
    try:
        return _read_yaml(text, source)[1]
    except DocumentError:
        return Positions(source)


def walk(data: Data, path: Path = ()) -> Iterator[tuple[Path, Data]]:
    """Yield every value with its path, parents first."""
    waiting: list[tuple[Path, Data]] = [(path, data)]
    while waiting:
        here, value = waiting.pop()
        yield here, value
        if isinstance(value, dict):
            waiting.extend(reversed([((*here, key), item) for key, item in value.items()]))
        elif isinstance(value, list):
            waiting.extend(reversed([((*here, index), item) for index, item in enumerate(value)]))


_WIDTH: Final = 120
_PLAIN: Final = re.compile(r"[^\W\d][\w./()%+-]*(?: [\w./()%+-]+)*", re.ASCII)
_NOT_TEXT: Final = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_ESCAPED: Final = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def write(data: Data) -> str:
    """Write plain data as YAML that :func:`read` reads back to equal data, keys in the order given.

    A list or a mapping of plain values that fits goes on one line. Raises :class:`InputError` for a number that is not
    finite.
    """
    out = io.StringIO()
    if isinstance(data, dict | list) and data:
        _write_block(data, 0, out)
    else:
        out.write(_flow(data) + "\n")
    return out.getvalue()


def _write_block(data: dict[str, Any] | list[Any], indent: int, out: io.StringIO, first: str | None = None) -> None:
    """Write a collection, each item on a line of its own; ``first`` replaces the indentation of the first line."""
    lead = " " * indent
    items = data.items() if isinstance(data, dict) else ((None, value) for value in data)
    for index, (key, value) in enumerate(items):
        head = (first if first is not None and index == 0 else lead) + ("- " if key is None else f"{_text(key)}:")
        flow = _flow(value) if not isinstance(value, dict | list) or _is_leaf(value) else None
        if flow is not None and (len(head) + len(flow) < _WIDTH or not isinstance(value, dict | list) or not value):
            out.write(f"{head}{'' if key is None else ' '}{flow}\n")
        elif key is None:
            _write_block(value, indent + 2, out, first=head)
        else:
            out.write(f"{head}\n")
            _write_block(value, indent + 2, out)


def _is_leaf(data: dict[str, Any] | list[Any]) -> bool:
    return not any(isinstance(item, dict | list) for item in (data.values() if isinstance(data, dict) else data))


def _flow(value: Data) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{quote(value)} is not a finite number and cannot be written.")
        return repr(value)
    return _text(value)


def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.casefold() not in _NOT_TEXT:
        return value
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
