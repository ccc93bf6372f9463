"""Units at the door, floats inside.

A quantity is written as text (``"64 GB"``, ``"400 Gb/s"``, ``"1.9 us"``) and becomes a float in the base unit of its
dimension the moment it enters. Inside, a number is bare and its unit stands in its name or its docstring.

========== ============ =======================================
dimension  base unit    also read
========== ============ =======================================
data       B            bit, b; kB..EB, KiB..EiB, kb..Eb
rate       B/s          b/s, bit/s, bps; all prefixes
time       s            ns, us, µs, ms, min, h, d
power      W            mW..GW
energy     J            Wh, kWh, MWh, GWh
work       FLOP         OP; k..Z
speed      FLOP/s       FLOPS, OPS, OP/s; k..Z
frequency  Hz           kHz..THz
money      CNY          yuan, RMB (other currencies need a rate and are refused)
money/time CNY/s        CNY/h
ratio      (none)       %
count      (none)       k, M, G, T after a number: ``"10k"``
tokens/s   tokens/s     tok/s
========== ============ =======================================

Decimal prefixes are powers of 1000, binary ones (Ki, Mi, …) of 1024. ``B`` is a byte and ``b`` a bit: the two are
never guessed from each other.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Final, Literal, get_args

from zhenfa.errors import UnitError

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

_DECIMAL: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
_BINARY: Final = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60}
_SMALL: Final = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3}


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
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S.*?)?\s*\Z")


def factor(unit: str, dimension: Dimension) -> float:
    """Return how many base units of ``dimension`` one ``unit`` is.

    Raises :class:`UnitError` when the unit is not one of that dimension, naming the near miss.
    """
    known = _TABLE[dimension]
    if unit in known:
        return known[unit]
    raise UnitError(f"{unit!r} is not a unit of {dimension}.", hint=_suggest(unit, dimension))


def _suggest(unit: str, dimension: Dimension) -> str:
    known = _TABLE[dimension]
    elsewhere = [name for name, units in _TABLE.items() if unit in units and unit]
    if elsewhere:
        return f"{unit!r} measures {elsewhere[0]}; {dimension} is written like {_example(dimension)}."
    folded = {name.casefold(): name for name in known}
    same_letters = folded.get(unit.casefold())
    near = [same_letters] if same_letters else difflib.get_close_matches(unit, known, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}{dimension} is written like {_example(dimension)}."


def _example(dimension: Dimension) -> str:
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


def parse(text: str | float, dimension: Dimension) -> float:
    """Read a quantity into the base unit of ``dimension``.

    A bare number is taken to be in the base unit already. Raises :class:`UnitError` for anything that is not a finite
    number followed by a unit of that dimension.

    >>> parse("400 Gb/s", "rate")
    50000000000.0
    >>> parse("16 GiB", "data")
    17179869184.0
    """
    if isinstance(text, bool):
        raise UnitError(
            f"{text!r} is a yes or a no, not a quantity of {dimension}.", hint=f"write {_example(dimension)}."
        )
    if isinstance(text, int | float):
        value = float(text)
        unit = None
    else:
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise UnitError(f"{text!r} is not a number with a unit.", hint=f"write {_example(dimension)}.")
        value = float(match[1].replace("_", ""))
        unit = match[2]
    if not math.isfinite(value):
        raise UnitError(f"{text!r} is not a finite number.", hint=f"write {_example(dimension)}.")
    return value * factor(unit, dimension) if unit else value


def show(value: float | None, dimension: Dimension, digits: int = 3) -> str:
    """Write a base-unit value for people, with the prefix that leaves one to three digits before the point.

    >>> show(5.0e10, "rate")
    '50 GB/s'
    >>> show(0.0000019, "time")
    '1.9 us'
    """
    if value is None:
        return "undisclosed"
    if not math.isfinite(value):
        return "unbounded"
    if dimension == "ratio":
        return f"{100 * value:.{digits}g} %"
    if dimension == "time":
        return _show_time(value, digits)
    if dimension == "energy" and abs(value) >= 3.6e6:
        return _scaled(value / 3600, "Wh", digits)
    unit = BASE[dimension]
    if unit.startswith("CNY"):
        return f"{value:,.2f} {unit}"
    return _scaled(value, unit, digits).rstrip()


def _show_time(value: float, digits: int) -> str:
    size = abs(value)
    if size >= 2 * 86400:
        return f"{value / 86400:.{digits}g} d"
    if size >= 2 * 3600:
        return f"{value / 3600:.{digits}g} h"
    if size >= 180:
        return f"{value / 60:.{digits}g} min"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if size >= scale:
            return f"{value / scale:.{digits}g} {unit}"
    return f"{value / 1e-9:.{digits}g} ns" if value else "0 s"


def _scaled(value: float, unit: str, digits: int) -> str:
    size = abs(value)
    for prefix, scale in reversed(_DECIMAL.items()):
        if size >= scale * 0.9995 and (prefix or size):
            return f"{_plain(value / scale, digits)} {prefix}{unit}"
    return f"{_plain(value, digits)} {unit}"


def _plain(value: float, digits: int) -> str:
    """Round to ``digits`` significant figures without an exponent."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
