"""What the words of a fabric record mean: sizes, ranks, tokens, element types, rates of named networks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B(?:yte)?s?\b(?!/s)", re.IGNORECASE)
_POWER: Final = {"K": 1, "M": 2, "G": 3, "T": 4}
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")

ELEMENTS: Final = {
    "nvfp4": 0.5625, "mxfp4": 0.53125, "fp4": 0.5625, "mxfp8": 1.03125, "fp8": 1.03125, "int8": 1.0, "bfloat16": 2.0,
    "bf16": 2.0, "fp16": 2.0, "float16": 2.0,
}  # fmt: skip
"""Bytes on the wire of one element, scales of a block included."""

NETWORKS: Final = (
    (re.compile(r"\bXDR\b|\b800\s*G(?!B)|\bCX-?8\b|ConnectX-?8", re.IGNORECASE), 100e9),
    (re.compile(r"\bNDR\b|\b400\s*G(?!B)|\bCX-?7\b|ConnectX-?7", re.IGNORECASE), 50e9),
    (re.compile(r"\bHDR\b|\b200\s*G(?!B)|\bCX-?6\b|ConnectX-?6", re.IGNORECASE), 25e9),
    (re.compile(r"\bEDR\b|\b100\s*G(?!B)|\bCX-?5\b|ConnectX-?5", re.IGNORECASE), 12.5e9),
)
"""Bytes/s of one port of a network, by the words that name it."""


def number(value: object) -> float | None:
    """Return a finite positive number, the geometric middle of a range written as text, or None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) and value > 0 else None
    found = [float(one) for one in _NUMBER.findall(str(value))]
    ends = [one for one in found[:2] if one > 0]
    return float(math.prod(ends) ** (1 / len(ends))) if ends else None


def ranks(value: object) -> tuple[int, ...]:
    """Return the numbers of ranks that a record names: one, or the two ends of a range."""
    if isinstance(value, bool) or value is None:
        return ()
    if isinstance(value, (int, float)):
        return (int(value),) if math.isfinite(value) and value >= 1 else ()
    plain = re.sub(r"\(.*?\)", "", str(value))
    return tuple(int(float(one)) for one in _NUMBER.findall(plain)[:2] if float(one) >= 1)


def size(text: object) -> float | None:
    """Return the bytes that a text such as ``8 GiB`` names first, or None; a bare number is bytes."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text) if math.isfinite(text) and text > 0 else None
    found = _SIZE.search(str(text or ""))
    if not found:
        return None
    base = 1024 if found[3] else 1000
    return float(found[1]) * float(base ** _POWER[found[2].upper()])


def words(record: Mapping[str, Any]) -> str:
    """Return everything that a record says in words."""
    parts = (record.get(key) for key in ("op", "fabric", "scope", "config", "conditions", "where"))
    return " ; ".join(str(part) for part in parts if part)


def network_rate(text: str) -> float | None:
    """Return the bytes/s of the network that a text names, or None."""
    return next((rate for pattern, rate in NETWORKS if pattern.search(text)), None)


def count_before(text: str, *nouns: str) -> float | None:
    """Return the number that stands before one of the nouns (``4096 tokens``, ``8K tokens``), or None."""
    found = re.search(rf"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)\s*(K?)\s*(?:{'|'.join(nouns)})\b", text, re.IGNORECASE)
    return float(found[1]) * (1024 if found[2] else 1) if found else None


def count_after(text: str, *nouns: str) -> float | None:
    """Return the number that stands after one of the nouns (``hidden 7168``, ``top-8``), or None."""
    found = re.search(rf"\b(?:{'|'.join(nouns)})[\s:=-]*(\d+(?:\.\d+)?)", text, re.IGNORECASE)
    return float(found[1]) if found else None


def element_bytes(text: str, what: str) -> float | None:
    """Return the bytes of an element of ``what`` (dispatch, combine), as in ``FP8 dispatch`` or ``FP8/BF16``."""
    names = "|".join(ELEMENTS)
    found = re.search(rf"\b({names})\b[\s_-]*{what}", text, re.IGNORECASE)
    if found:
        return ELEMENTS[found[1].casefold()]
    pair = re.search(rf"\b({names})\s*/\s*({names})\b", text, re.IGNORECASE)
    if pair:
        return ELEMENTS[pair[1 if what == "dispatch" else 2].casefold()]
    return None
