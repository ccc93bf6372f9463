"""The four walls as lines of text."""

from __future__ import annotations

from zhenfa.cli.console import bar
from zhenfa.spec.result import Walls


def wall_lines(walls: Walls) -> list[str]:
    """Return one line per wall, the binding one marked, and what would move it."""
    lines = []
    for name in ("compute", "communication", "energy", "reliability"):
        wall = getattr(walls, name)
        share = f"{wall.share:6.1%}" if wall.share is not None else "     -"
        mark = ">" if walls.binding == name else " "
        lines.append(f"{mark} {name:<14} {share} {bar(wall.share)} {wall.detail}")
    advice = getattr(walls, walls.binding).advice
    if advice:
        lines.append(f"  to move it: {advice}")
    return lines
