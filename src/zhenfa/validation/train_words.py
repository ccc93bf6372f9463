"""Reading loose values of published rows: numbers in text, yes and no in text, bandwidths in prose.

A row is written by people. Nothing here raises: what cannot be read is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

_NUMBER: Final = re.compile(r"(?<![A-Za-z\d.])\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")


def number(value: Any) -> float | None:
    """Return a finite positive or zero number, or the first one in a text.

    >>> number("12 model x 256 fsdp per pod"), number(True), number("none")
    (12.0, None, None)
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        found = _NUMBER.search(value[:400])
        if found is None:
            return None
        value = found.group().replace(",", "")
    if not isinstance(value, int | float | str):
        return None
    try:
        read = float(value)
    except (OverflowError, ValueError):
        return None
    return read if math.isfinite(read) and read >= 0 else None


def whole(value: Any, *, least: int = 1, most: int = 10**9) -> int | None:
    """Return a whole number between ``least`` and ``most``, also of a text that starts with one."""
    read = number(value)
    if read is None or read != int(read) or not least <= read <= most:
        return None
    return int(read)


def text(value: Any) -> str:
    """Return text in lower case; empty for what is none."""
    return value.casefold().strip() if isinstance(value, str) else ""


def truth(value: Any) -> bool | None:
    """Return yes or no, also of text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value)
    word = text(value)
    if word in {"true", "yes", "on", "1"}:
        return True
    return False if word in {"false", "no", "off", "none", "0"} else None


def part(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping inside a record; empty where there is none."""
    value = record.get(key)
    return {str(name): item for name, item in value.items()} if isinstance(value, Mapping) else {}


def unstated(value: Any) -> bool:
    """Return whether a row says nothing: no value, or words that say so."""
    if value is None:
        return True
    word = text(value)
    return isinstance(value, str) and (word == "" or word.startswith(("not stated", "not published", "various", "?")))


_RATE: Final = re.compile(
    r"(?:(?P<links>\d+)\s*x\s*)?(?P<rate>\d+(?:\.\d+)?)\s*(?P<unit>[TGM])\s?(?P<bit>b/s|bps|bit/s|bE\b|b\b|B/s|Bps)"
)
_SCALE: Final = {"T": 1e12, "G": 1e9, "M": 1e6}
_ONE_WAY: Final = re.compile(r"per direction|unidirectional|each way|one.way|/dir|uni-dir")


def positive(values: Mapping[str, Any], key: str) -> float | None:
    """Return a number above zero; None where none is stated."""
    value = values.get(key)
    if unstated(value):
        return None
    return number(value) or None


def bandwidth(words: Any, per_node: int) -> tuple[float, bool] | None:
    """Return bytes per second of one card that a phrase gives, and whether it was written in bits.

    ``8x400Gb/s ... per node`` and ``1600 Gb/s ... per node`` are shared by the node's cards; several links without
    "per card" are the node's too.

    >>> bandwidth("8x400Gb/s NDR InfiniBand per node (DGX-H100 class)", 8)
    (50000000000.0, True)
    >>> bandwidth("NVLink5 1.8 TB/s", 8)
    (1800000000000.0, False)
    >>> bandwidth("21x100GbE RoCE all-to-all", 8) is None, bandwidth("DCN", 8)
    (False, None)
    """
    if not isinstance(words, str):
        return None
    found = _RATE.search(words)
    if found is None:
        return None
    bits = not found["bit"].startswith("B")
    rate = float(found["rate"]) * _SCALE[found["unit"]] / (8 if bits else 1)
    links = int(found["links"] or 1)
    tail = words[found.end() :].casefold().split(";")[0].split("(")[0]
    each = re.search(r"per (gpu|npu|card|chip|device|accelerator|dcu|xpu)", tail)
    node = re.search(r"per (node|server|host|machine)|/node", tail)
    total = rate * links
    if node or (links > 1 and bits and not each and "all-to-all" not in tail):
        total /= max(per_node, 1)
    return total, bits


def one_way(words: Any) -> float | None:
    """Return bytes per second and direction of one card's links inside a node.

    Makers print the sum of both directions in bytes (``NVLink4 900 GB/s``) and one direction in bits.

    >>> one_way("NVLink3 600 GB/s + NVSwitch"), one_way("21x100GbE RoCE all-to-all"), one_way("NVLink4")
    (300000000000.0, 262500000000.0, None)
    """
    found = bandwidth(words, 1)
    if found is None:
        return None
    rate, bits = found
    return rate if bits or _ONE_WAY.search(words.casefold()) else rate / 2
