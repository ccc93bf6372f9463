"""Units at the door, floats inside.

A quantity is written as text (``"64 GB"``, ``"400 Gb/s"``, ``"1.9 us"``) and becomes a float in the base unit of its
dimension the moment it enters. Inside, a number is bare and its unit stands in its name or its docstring.

========== ============ =======================================
dimension  base unit    also read
========== ============ =======================================
data       B            bit, b; kB..YB, KiB..EiB, kb..Yb
rate       B/s          b/s, bit/s, bps; all prefixes
time       s            ns, us, µs, ms, min, h, d
power      W            nW..YW
energy     J            nJ..YJ; Wh..YWh
work       FLOP         FLOPs, OP; k..Y
speed      FLOP/s       FLOPS, FLOPs/s, OPS, OP/s; k..Y
frequency  Hz           kHz..THz
money      CNY          yuan, RMB (other currencies need a rate and are refused)
money/time CNY/s        CNY/h, CNY/d
ratio      (none)       %
count      (none)       k..Y after a number: ``"10k"``
tokens/s   tokens/s     tok/s
========== ============ =======================================

Decimal prefixes are powers of 1000, binary ones (Ki, Mi, …) of 1024. ``B`` is a byte and ``b`` a bit: the two are
never guessed from each other. A number is written with the digits 0 to 9, at most one point, and an exponent if need
be; digits are not grouped, because ``1,500`` is read in two ways.
"""

from __future__ import annotations

import difflib
import math
import numbers
import re
import unicodedata
from typing import Final, Literal, get_args

from zhenfa.errors import UnitError, quote

Dimension = Literal[
    "data",
    "rate",
    "time",
    "power",
    "energy",
    "work",
    "speed",
    "frequency",
    "money",
    "money/time",
    "ratio",
    "count",
    "tokens/s",
]

BASE: Final[dict[Dimension, str]] = {
    "data": "B",
    "rate": "B/s",
    "time": "s",
    "power": "W",
    "energy": "J",
    "work": "FLOP",
    "speed": "FLOP/s",
    "frequency": "Hz",
    "money": "CNY",
    "money/time": "CNY/s",
    "ratio": "",
    "count": "",
    "tokens/s": "tokens/s",
}

_DECIMAL: Final = {
    "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24,
}  # fmt: skip
_BINARY: Final = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60}
_SMALL: Final = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3}
_LONGEST: Final = 100
_BEYOND: Final = 1e300


def _build_table() -> dict[Dimension, dict[str, float]]:
    table: dict[Dimension, dict[str, float]] = {name: {} for name in get_args(Dimension)}
    for prefix, factor in (_DECIMAL | _BINARY).items():
        table["data"][f"{prefix}B"] = factor
        for bit in ("b", "bit"):
            table["data"][f"{prefix}{bit}"] = factor / 8
        table["rate"][f"{prefix}B/s"] = factor
        for bit in ("b/s", "bit/s", "bps"):
            table["rate"][f"{prefix}{bit}"] = factor / 8
    for prefix, factor in _DECIMAL.items():
        for word in ("FLOP", "FLOPs", "OP"):
            table["work"][f"{prefix}{word}"] = factor
        for word in ("FLOP/s", "FLOPS", "OP/s", "OPS", "FLOPs/s"):
            table["speed"][f"{prefix}{word}"] = factor
        table["power"][f"{prefix}W"] = factor
        table["energy"][f"{prefix}J"] = factor
        table["energy"][f"{prefix}Wh"] = factor * 3600
        table["frequency"][f"{prefix}Hz"] = factor
        for word in ("tokens/s", "tok/s"):
            table["tokens/s"][f"{prefix}{word}"] = factor
        table["count"][prefix] = factor
    for prefix, factor in _SMALL.items():
        table["time"][f"{prefix}s"] = factor
        table["power"][f"{prefix}W"] = factor
        table["energy"][f"{prefix}J"] = factor
    table["time"] |= {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
    table["money"] |= {"CNY": 1.0, "RMB": 1.0, "yuan": 1.0}
    table["money/time"] |= {"CNY/s": 1.0, "CNY/h": 1 / 3600, "CNY/d": 1 / 86400}
    table["ratio"] |= {"": 1.0, "%": 0.01}
    return table


_TABLE: Final = _build_table()
_NUMBER: Final = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"[ \u00a0\u2009\u202f]*"
    r"([^0-9\s.,_+-]\S*(?: \S+)*)?"
)

# How people also write units, folded to lower case, and the symbol of the table. Order matters.
_SPELLINGS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), symbol)
    for pattern, symbol in (
        (r"\s*(?:per|/)\s*(?:seconds?|secs?)$", "/s"),
        (r"\s*(?:per|/)\s*(?:hours?|hrs?|小时)$", "/h"),
        (r"\s*(?:per|/)\s*days?$", "/d"),
        (r"([bB])ps$", r"\1/s"),
        (r"(?<=.)ps/s$|(?<=b)ps$", "/s"),
        (r"^(?:us\s*)?(?:usd|dollars?|\$|us\$|eur|euros?|€|gbp|£)", "USD"),
        (r"^(?:¥|￥|元|人民币|rmb|yuan)", "CNY"),
        (r"^kibi", "Ki"), (r"^mebi", "Mi"), (r"^gibi", "Gi"), (r"^tebi", "Ti"),
        (r"^milli(?!on)\s*", "m"), (r"^micro\s*", "u"), (r"^nano\s*", "n"),
        (r"^kilo\s*", "k"), (r"^mega\s*", "M"), (r"^giga\s*", "G"), (r"^tera\s*", "T"), (r"^peta\s*", "P"),
        (r"^exa\s*", "E"), (r"^zetta\s*", "Z"),
        (r"^([kmgtp])(?:igs?|egs?|eras?)$", r"\1B"),
        (r"bytes?\b", "B"), (r"bits?\b", "b"),
        (r"watt[- ]?hours?$", "Wh"), (r"watts?$", "W"), (r"joules?$", "J"), (r"hertz$", "Hz"),
        (r"^([kmgtpez])f$", r"\1FLOPS"),
        (r"^(?:tps|t/s|toks?/s|tokens?/s)$", "tokens/s"),
        (r"^([munµμ]?)(?:seconds?|secs?)$", r"\1s"),
        (r"^(?:minutes?|mins?|m)$", "min"), (r"^(?:hours?|hrs?)$", "h"), (r"^days?$", "d"),
        (r"^(?:percent|per cent|pct)$", "%"),
        (r"^(?:thousand)$", "k"), (r"^(?:million)$", "M"), (r"^(?:billion|b)$", "G"),
    )
)  # fmt: skip


def factor(unit: str, dimension: Dimension) -> float:
    """Return how many base units of ``dimension`` one ``unit`` is.

    Raises :class:`UnitError` when the unit is not one of that dimension, naming the near miss.
    """
    known = _TABLE[dimension]
    if unit in known:
        return known[unit]
    raise UnitError(f"{quote(unit)} is not a unit of {dimension}.", hint=_suggest(unit, dimension))


def _suggest(unit: str, dimension: Dimension) -> str:
    near = _near_units(unit, dimension)
    guess = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    if dimension.startswith("money") and "USD" in _spelled(unit):
        guess = "only CNY is read; convert it at your own rate first. "
    elif len(near) > 1 and near[0].casefold() == near[1].casefold() and dimension in ("data", "rate"):
        guess += "B is a byte, b a bit. "
    elsewhere = [name for name, units in _TABLE.items() if unit in units and unit]
    if elsewhere and elsewhere[0] != dimension:
        guess += f"{unit!r} measures {elsewhere[0]}. "
    return f"{guess}{dimension} is written like {example(dimension)}."


def _spelled(unit: str) -> str:
    for pattern, symbol in _SPELLINGS:
        unit = pattern.sub(symbol, unit)
    return unit


def _near_units(unit: str, dimension: Dimension) -> list[str]:
    """Return at most two units of the dimension that ``unit`` may have meant."""
    if not unit or len(unit) > _LONGEST:
        return []
    known = _TABLE[dimension]
    spelled = _spelled(unit)
    for attempt in (spelled, f"{spelled}/s", spelled.removesuffix("/s")):
        if attempt in known:
            return [attempt] if attempt else []
        same = [name for name in known if name.casefold() == attempt.casefold()]
        if same:
            same.sort(key=lambda name: -sum(a == b for a, b in zip(name, attempt, strict=False)))
            return same[: 2 if attempt.islower() else 1]
    close = difflib.get_close_matches(spelled, known, n=1, cutoff=0.6)
    return [name for name in close if name]


def example(dimension: Dimension) -> str:
    """Return how a quantity of ``dimension`` is written, in quotes, for a hint."""
    return {
        "data": "'64 GB' or '16 GiB'",
        "rate": "'392 GB/s' or '400 Gb/s'",
        "time": "'1.9 us'",
        "power": "'860 kW'",
        "energy": "'3 kWh'",
        "work": "'1 TFLOP'",
        "speed": "'989 TFLOPS'",
        "frequency": "'1.98 GHz'",
        "money": "'120000 CNY'",
        "money/time": "'18 CNY/h'",
        "ratio": "'0.85' or '85 %'",
        "count": "'384' or '10k'",
        "tokens/s": "'5000 tokens/s'",
    }[dimension]


def split(text: object, dimension: Dimension) -> tuple[float, str | None]:
    """Return number and unit as they are written; the unit of a bare number is None.

    The number is finite; the unit is known to be one of ``dimension``. Raises :class:`UnitError`.

    >>> split("64 GB", "data")
    (64.0, 'GB')
    """
    number: str | numbers.Real
    if isinstance(text, str):
        number, unit = _split_text(text, dimension)
    elif isinstance(text, numbers.Real) and not isinstance(text, bool):
        number, unit = text, None
    else:
        what = "a yes or a no" if isinstance(text, bool) else "neither text nor a number"
        raise UnitError(f"{quote(text)} is {what}, not a quantity of {dimension}.", hint=_write(dimension))
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise UnitError(f"{quote(text)} is not a finite number.", hint=_write(dimension))
    if unit is not None:
        factor(unit, dimension)
    return value, unit


def _split_text(text: str, dimension: Dimension) -> tuple[str, str | None]:
    bare = text.strip()
    if not bare:
        raise UnitError(f"an empty text is not a quantity of {dimension}.", hint=_write(dimension))
    match = _NUMBER.fullmatch(bare) if len(bare) <= _LONGEST else None
    if match is None:
        raise UnitError(f"{quote(text)} is not a number with a unit.", hint=_repair(bare, dimension))
    return match[1], match[2]


def _repair(text: str, dimension: Dimension) -> str:
    """Say how to write a number with separators or digits that are not read."""
    if len(text) <= _LONGEST:
        plain = unicodedata.normalize("NFKC", text).replace("_", "")
        if plain != text and _NUMBER.fullmatch(plain):
            return f"write {plain!r}: digits are 0 to 9, without separators."
        if re.match(r"[+-]?[0-9]+,[0-9]", text):
            return "write the digits without commas, and '.' before decimals."
    return _write(dimension)


def _write(dimension: Dimension) -> str:
    return f"write {example(dimension)}."


def parse(text: str | float, dimension: Dimension) -> float:
    """Read a quantity into the base unit of ``dimension``.

    A bare number is taken to be in the base unit already. Raises :class:`UnitError` for anything that is not a finite
    number followed by a unit of that dimension.

    >>> parse("400 Gb/s", "rate")
    50000000000.0
    >>> parse("16 GiB", "data")
    17179869184.0
    """
    number, unit = split(text, dimension)
    value = number if unit is None else number * factor(unit, dimension)
    if not math.isfinite(value):
        raise UnitError(f"{quote(text)} is more than a number can hold.", hint=_write(dimension))
    return value


def show(value: float | None, dimension: Dimension, digits: int = 3) -> str:
    """Write a base-unit value for people, with the prefix that leaves one to three digits before the point.

    What it writes is read back by :func:`parse` to ``digits`` significant figures, except money, whose digits are
    grouped. None is "undisclosed", not-a-number "undefined", anything beyond 1e300 "unbounded".

    >>> show(5.0e10, "rate")
    '50 GB/s'
    >>> show(0.0000019, "time")
    '1.9 us'
    """
    if value is None:
        return "undisclosed"
    if not abs(value) <= _BEYOND:
        return "undefined" if math.isnan(value) else "unbounded"
    value = float(value) or 0.0
    if dimension == "money":
        return f"{_money(value, digits)} CNY"
    if dimension == "money/time":
        return f"{_money(value * 3600, digits)} CNY/h"
    if dimension == "ratio":
        return f"{_number(100 * value, digits)} %" if abs(value) < 1e6 else _number(value, digits)
    if dimension == "time":
        return _show_time(value, digits)
    if dimension == "energy" and abs(value) >= 3.6e6:
        return _scaled(value / 3600, "Wh", digits)
    return _scaled(value, BASE[dimension], digits)


def _money(value: float, digits: int) -> str:
    if 0 < abs(value) < 1 or abs(value) >= 1e15:
        return _number(value, digits)
    return f"{value:,.2f}"


def _show_time(value: float, digits: int) -> str:
    for unit, scale, least in (("d", 86400, 2), ("h", 3600, 2), ("min", 60, 3), ("s", 1, 1), ("ms", 1e-3, 1)):
        if _rounded(value / scale, digits) >= least:
            return f"{_number(value / scale, digits)} {unit}"
    unit, scale = ("us", 1e-6) if _rounded(value / 1e-6, digits) >= 1 else ("ns", 1e-9)
    return f"{_number(value / scale, digits)} {unit}" if value else "0 s"


def _scaled(value: float, unit: str, digits: int) -> str:
    gap = " " if unit else ""
    steps = list(reversed(_DECIMAL.items()))
    if unit in ("W", "J"):
        steps += [(prefix, _SMALL[prefix]) for prefix in ("m", "u", "n")]
    for prefix, scale in steps:
        if 1 <= _rounded(value / scale, digits) < 1e6:
            return f"{_number(value / scale, digits)}{gap}{prefix}{unit}"
    return f"{_number(value, digits)}{gap}{unit}"


def _rounded(value: float, digits: int) -> float:
    """Return the size of the number as it will be written: 999.9 is written 1000 to three digits."""
    return abs(float(f"{value:.{digits - 1}e}"))


def _number(value: float, digits: int) -> str:
    """Round to ``digits`` significant figures; an exponent only for the very large and the very small."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if value == 0:
        return "0"
    if not -5 <= power <= 6:
        return f"{_trim(mantissa)}e{power}"
    return _trim(f"{float(f'{mantissa}e{power}'):.{max(0, digits - 1 - power)}f}")


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
