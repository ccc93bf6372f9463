"""Shell scripts of other systems' launchers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

WIDTH = 110


def array(name: str, words: Sequence[str]) -> str:
    """Return a bash array of options, an option and its values kept on one line."""
    lines: list[list[str]] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    rows: list[str] = []
    for parts in lines:
        text = " ".join(parts)
        if rows and len(rows[-1]) + len(text) + 1 <= WIDTH:
            rows[-1] += f" {text}"
        else:
            rows.append(f"  {text}")
    return "\n".join([f"{name}=(", *rows, ")"])


def comments(lines: Sequence[str]) -> str:
    """Return lines of comment, each wrapped."""
    import textwrap

    return "\n".join(part for line in lines for part in textwrap.wrap(line, WIDTH, initial_indent="# ",
                     subsequent_indent="# "))  # fmt: skip


def words(**options: object) -> list[str]:
    """Return options as words: ``num_layers=80`` becomes ``--num-layers 80``.

    True is an option alone; None and False leave it out; a list or tuple is several values.
    """
    found: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        found.append("--" + name.replace("_", "-"))
        if isinstance(value, list | tuple):
            found += [str(one) for one in value]
        elif value is not True:
            found.append(str(value))
    return found
