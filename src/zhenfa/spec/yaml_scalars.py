"""What plain text of a YAML document stands for, by the core schema of YAML 1.2 (section 10.3.2).

``no`` and ``12:30`` are text, ``1e9`` is a number.
"""

from __future__ import annotations

import math
import re
from typing import Final

from zhenfa.errors import InputError, quote

MAX_DIGITS: Final = 100

_INTEGER: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_REAL: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: Final[dict[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


def resolve(text: str) -> str | int | float | bool | None:
    """Return what an unquoted text stands for. Raises :class:`InputError` for a number that is not read.

    >>> resolve("1e9"), resolve("no"), resolve("~"), resolve("0x1F")
    (1000000000.0, 'no', None, 31)
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise InputError(f"a number of {len(text):,} digits is longer than {MAX_DIGITS}.")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if not _REAL.fullmatch(text) and not _NOT_FINITE.fullmatch(text):
        return text
    value = float(text.replace(".i", "i").replace(".I", "I").replace(".n", "n").replace(".N", "N"))
    if not math.isfinite(value):
        raise InputError(
            f"{quote(text)} is not a finite number.", hint="leave the key out, or write null, if it is unknown."
        )
    return value
