"""Cards that were recorded: a document of ``zhenfa devices --json``, or what a maker's tool printed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import InputError, quote
from zhenfa.live.makers.maker import Maker
from zhenfa.live.makers.record import DeviceRecord
from zhenfa.live.makers.tools import read

MOST_BYTES: Final = 16 * 2**20
NEEDED: Final = ("provider", "index", "name", "maker", "maker_from")
NAMES: Final = frozenset(one.name for one in fields(DeviceRecord))
WHOLE: Final = frozenset({"index", "memory_bytes", "memory_used_bytes", "numa_node"})
NUMBERS: Final = WHOLE | {"temperature_c", "power_w", "power_limit_w", "utilisation"}


def cards(path: Path, makers: Mapping[str, Maker]) -> list[DeviceRecord]:
    """Return the cards that a file tells of. Raises :class:`InputError` if it is none of the known forms."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{str(path)!r} is longer than {MOST_BYTES // 2**20} MiB.")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        raise InputError(f"{str(path)!r} cannot be read: {os.strerror(problem.errno or 0)}.") from None
    document = _document(text)
    if document is not None:
        return [_checked(one, path) for one in document]
    found = [card for maker in makers.values() for card in read(maker, text)]
    if not found:
        tools = ", ".join(sorted({maker.smi[0] for maker in makers.values() if maker.smi}))
        raise InputError(
            f"{str(path)!r} tells of no cards in a form that is known.",
            hint=f"give a document of `zhenfa devices --json`, or the output of one of: {tools}.",
        )
    return [replace(card, torch_device=None) for card in found]


def _document(text: str) -> list[Any] | None:
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        return None
    schema = data.get("schema") if isinstance(data, dict) else None
    if not (isinstance(schema, str) and schema.startswith("zhenfa.devices/")):
        return None
    listed = data.get("devices")
    return listed if isinstance(listed, list) else []


def _checked(data: Any, path: Path) -> DeviceRecord:
    try:
        return record_of(data)
    except (TypeError, ValueError, KeyError) as problem:
        raise InputError(f"{str(path)!r} holds a card that cannot be read: {problem}.") from None


def record_of(data: Any) -> DeviceRecord:
    """Return a record from plain data. Raises ``ValueError`` in words that name the field."""
    if not isinstance(data, dict):
        raise ValueError(f"{quote(data)} is not a card")
    missing = [name for name in NEEDED if name not in data]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    known = {name: value for name, value in data.items() if name in NAMES}
    for name, value in known.items():
        if not _fits(name, value):
            raise ValueError(f"{name} is {quote(value)}")
    known["problems"] = tuple(known.get("problems", ()))
    return DeviceRecord(**known)


def _fits(name: str, value: Any) -> bool:
    if name == "problems":
        return isinstance(value, list | tuple) and all(isinstance(one, str) and one.isprintable() for one in value)
    if name == "told_by":
        return isinstance(value, dict) and all(
            isinstance(one, str) and one.isprintable() for pair in value.items() for one in pair
        )
    if value is None:
        return name not in NEEDED
    if name in NUMBERS:
        kinds = int if name in WHOLE else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if name == "health":
        return value in {"ok", "warning", "failed"}
    return isinstance(value, str) and value.isprintable()
