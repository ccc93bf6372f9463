"""The plain YAML that most documents are, read without the parser, whose import alone takes longer than a small plan.

Block mappings and lists, values on one line, flow collections of plain values, simple quotes, comments. Whatever goes
beyond this, or is at fault, is left to :mod:`~zhenfa.spec.yaml_reader`, which reads all of YAML and says what is wrong
and where. What is read here is read to the same data there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from zhenfa.errors import InputError
from zhenfa.spec.yaml_scalars import resolve

MAX_PLAIN: Final = 64 * 1024
"""Characters up to which a document is tried."""

_MAX_DEPTH: Final = 20
_COMMENT: Final = r"[ ]*(?:[ ]\#.*)?"
_KEY: Final = r"[A-Za-z_][A-Za-z0-9_./-]{0,99}"
_WORD: Final = r"(?:[A-Za-z0-9_./+~]|-(?=[A-Za-z0-9_.]))[A-Za-z0-9_./+()%=~-]*"
_TEXT: Final = rf"{_WORD}(?:[ ]+[A-Za-z0-9_./+()%=~-]+)*"
_QUOTED: Final = r"\"[ !\#-\[\]-~]*\"|'[ -&(-~]*'"
_ENTRY: Final = re.compile(rf"(?:({_KEY})|({_QUOTED}))[ ]*:(?:[ ]+(?=[^ \#])(.*)|{_COMMENT})$")
_LINE_VALUE: Final = re.compile(rf"(?:({_TEXT})|({_QUOTED})|([{{\[].*[}}\]])){_COMMENT}$")
_TOKEN: Final = re.compile(rf"[ ]*(?:([{{}}\[\],])|({_KEY}):[ ]+|({_QUOTED})(?=[ ]*[,}}\]])|({_TEXT})(?=[ ]*[,}}\]]))")

Line = tuple[int, str]


class _Beyond(Exception):  # noqa: N818
    """This is not plain YAML."""


def read_plain(text: str) -> dict[str, Any] | None:
    """Return the mapping that a document holds, or None where it takes the whole reader to say.

    >>> read_plain("a: 1\\nb: [x, 2 GB]  # two\\n")
    {'a': 1, 'b': ['x', '2 GB']}
    >>> read_plain("a: &here 1")
    """
    if len(text) > MAX_PLAIN or "\t" in text or "\r" in text:
        return None
    try:
        lines = list(_lines(text))
        if not lines or lines[0][0]:
            return None
        data, end = _mapping(lines, 0, 0)
        return data if end == len(lines) else None
    except (_Beyond, InputError):
        return None


def _lines(text: str) -> Iterator[Line]:
    """Yield indentation and content of every line that holds more than a comment."""
    for line in text.split("\n"):
        content = line.lstrip(" ")
        if content and content[0] != "#":
            yield len(line) - len(content), content


def _mapping(lines: list[Line], at: int, depth: int) -> tuple[dict[str, Any], int]:
    """Read the mapping whose first key stands on line ``at``; return it and the line after it."""
    if depth > _MAX_DEPTH:
        raise _Beyond
    indent = lines[at][0]
    found: dict[str, Any] = {}
    while at < len(lines) and lines[at][0] == indent:
        entry = _ENTRY.match(lines[at][1])
        if entry is None:
            break
        key = entry[1] or entry[2][1:-1]
        if not key or key in found:
            raise _Beyond
        if entry[3] is not None:
            found[key], at = _value(entry[3]), at + 1
        else:
            found[key], at = _below(lines, at + 1, indent, depth)
    if not found or (at < len(lines) and lines[at][0] > indent):
        raise _Beyond
    return found, at


def _below(lines: list[Line], at: int, indent: int, depth: int) -> tuple[Any, int]:
    """Read what stands on the lines after a key that has nothing beside it."""
    if at == len(lines) or lines[at][0] < indent:
        return None, at
    listed = lines[at][1].startswith("- ")
    if lines[at][0] == indent:
        return _list(lines, at, depth + 1) if listed else (None, at)
    return _list(lines, at, depth + 1) if listed else _mapping(lines, at, depth + 1)


def _list(lines: list[Line], at: int, depth: int) -> tuple[list[Any], int]:
    """Read the list whose first item stands on line ``at``; return it and the line after it."""
    if depth > _MAX_DEPTH:
        raise _Beyond
    indent = lines[at][0]
    found: list[Any] = []
    while at < len(lines) and lines[at][0] == indent and lines[at][1].startswith("- "):
        inside = lines[at][1][2:].lstrip(" ")
        if _ENTRY.match(inside):
            lines[at] = (indent + len(lines[at][1]) - len(inside), inside)
            item, at = _mapping(lines, at, depth + 1)
        else:
            item, at = _value(inside), at + 1
        found.append(item)
    if at < len(lines) and lines[at][0] > indent:
        raise _Beyond
    return found, at


def _value(text: str) -> Any:
    """Read a value that ends on its line."""
    whole = _LINE_VALUE.match(text)
    if whole is None:
        raise _Beyond
    plain, quoted, flow = whole.groups()
    if flow is not None:
        item, end = _flow(flow, 0, 0)
        if flow[end:]:
            raise _Beyond
        return item
    return resolve(plain) if quoted is None else quoted[1:-1]


def _token(text: str, at: int) -> re.Match[str]:
    found = _TOKEN.match(text, at)
    if found is None:
        raise _Beyond
    return found


def _flow(text: str, at: int, depth: int) -> tuple[Any, int]:
    """Read one value inside brackets or braces, from ``at``; return it and where it ends."""
    token = _token(text, at)
    mark, key, quoted, plain = token.groups()
    if depth > _MAX_DEPTH or key is not None or mark in ("}", "]", ","):
        raise _Beyond
    if mark is None:
        return (resolve(plain) if quoted is None else quoted[1:-1]), token.end()
    if mark == "{":
        return _flow_mapping(text, token.end(), depth + 1)
    items: list[Any] = []
    at = token.end()
    if _token(text, at)[1] == "]":
        return items, _token(text, at).end()
    while True:
        item, at = _flow(text, at, depth + 1)
        items.append(item)
        token = _token(text, at)
        at = token.end()
        if token[1] == "]":
            return items, at
        if token[1] != ",":
            raise _Beyond


def _flow_mapping(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    token = _token(text, at)
    if token[1] == "}":
        return found, token.end()
    while True:
        token = _token(text, at)
        key = token[2]
        if key is None or key in found:
            raise _Beyond
        found[key], at = _flow(text, token.end(), depth)
        token = _token(text, at)
        at = token.end()
        if token[1] == "}":
            return found, at
        if token[1] != ",":
            raise _Beyond
