"""The four walls as lines of text."""

from __future__ import annotations

from typing import Final

from zhenfa.cli.console import Screen
from zhenfa.spec.result import Walls

BAR: Final = 20
"""Cells of a bar; half of them on a screen narrower than :data:`NARROW`."""

NARROW: Final = 72

NAMES: Final = ("compute", "communication", "energy", "reliability")


def print_walls(screen: Screen, walls: Walls, *, empty: str) -> None:
    """Write a line for each wall, the binding one marked, and what would move it; ``empty`` stands for no detail."""
    cells = BAR if screen.width >= NARROW else BAR // 2
    for name in NAMES:
        wall = getattr(walls, name)
        binds = walls.binding == name
        share = "-" if wall.share is None else f"{wall.share:.1%}"
        first = f"{'>' if binds else ' '} {name:<13} {share:>6} {screen.bar(wall.share, cells)} "
        words = wall.detail or ("" if wall.share is not None else empty)
        screen.text(words, first=first, style="strong" if binds else None)
    advice = getattr(walls, walls.binding).advice
    if advice:
        screen.text(advice, first="  to move it: ")
