"""An attribution for people: what the text report and the page say alike."""

from __future__ import annotations

from typing import Final

from zhenfa import units
from zhenfa.spec.result import Attribution, LawRow

NOTHING: Final = 1e-9
"""Seconds below which a difference is one of rounding."""


def weighed(found: Attribution) -> list[LawRow]:
    """Return the laws with those first that add to the step, or take off it, most."""
    return sorted(found.rows, key=lambda one: -abs(one.effect_s))


def signed(seconds: float) -> str:
    """Return seconds with their sign.

    >>> signed(0.25), signed(-1e-3), signed(0.0)
    ('+250 ms', '-1 ms', '0 s')
    """
    words = units.show(abs(seconds), "time")
    return f"{'+' if seconds > 0 else '-'}{words}" if abs(seconds) >= NOTHING else "0 s"
