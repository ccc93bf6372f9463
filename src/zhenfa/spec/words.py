"""Figures as words: a value in the unit that suits its size, its band, the ratio of two that stand side by side."""

from __future__ import annotations

from typing import Final

from zhenfa import units
from zhenfa.spec.result import Figure


def figure(value: Figure) -> str:
    """Return a figure with its unit, and its band where one has been validated; ``-`` for none."""
    if value.value is None:
        return "-"
    around = band(value)
    return amount(value.value, value.unit) + (f" ({around})" if around else "")


def band(value: Figure) -> str:
    """Return p10 and p90 in the unit in which the value is shown; nothing where there is no band.

    >>> band(Figure(value=0.25, unit="s", p10=0.2, p90=0.312))
    '200-312'
    """
    if value.value is None or value.p10 is None or value.p90 is None:
        return ""
    if value.unit not in _DIMENSIONS or value.unit == "CNY":
        return f"{bare(value.p10)}-{bare(value.p90)}"
    unit = units.show(value.value, _DIMENSIONS[value.unit]).partition(" ")[2]
    scale = units.factor(unit, _DIMENSIONS[value.unit]) if unit else 1.0
    ends = (end / scale for end in (value.p10, value.p90))
    return "-".join(f"{end:.3g}" if end < 999.5 else f"{end:,.0f}" for end in ends)


_DIMENSIONS: Final[dict[str, units.Dimension]] = {
    "s": "time",
    "B": "data",
    "J": "energy",
    "W": "power",
    "CNY": "money",
    "": "ratio",
}


def amount(value: float, unit: str) -> str:
    """Return a value of a figure in its unit."""
    if unit in _DIMENSIONS:
        return units.show(value, _DIMENSIONS[unit])
    return f"{bare(value)} {unit}"


def bare(value: float | None) -> str:
    """Return a number without its unit, thousands grouped."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def ratio(mine: float | None, other: float | None) -> str:
    """Return ``mine / other``, or ``-`` where one is missing."""
    return f"{mine / other:.3f}" if mine is not None and other else "-"
