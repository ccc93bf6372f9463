"""Where words go: data to stdout, talk to stderr. Understandable without colour."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table


def data() -> Console:
    """Return the console for data: stdout, plain when it is not a terminal."""
    return _console(sys.stdout)


def talk() -> Console:
    """Return the console for everything else: stderr."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    width = shutil.get_terminal_size((120, 40)).columns if stream.isatty() else _piped_width()
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=True, soft_wrap=False)


def _piped_width() -> int:
    """Return the width to write for where no terminal says one: COLUMNS if it is set, else 120."""
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdigit() and int(given) >= 40 else 120


def print_json(document: dict[str, Any]) -> None:
    """Write one JSON document to stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, right: Sequence[int] = ()
) -> Table:
    """Return a table without boxes; the columns numbered in ``right`` are aligned right."""
    result = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), header_style="dim"
    )
    for index, name in enumerate(columns):
        result.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


def bar(share: float | None, width: int = 20) -> str:
    """Return a bar of blocks for a share between 0 and 1."""
    if share is None:
        return "·" * width
    filled = round(width * min(max(share, 0.0), 1.0))
    return "█" * filled + "░" * (width - filled)


def print_sources(sources: Iterable[str]) -> None:
    """List the sources that an answer rests on."""
    found = list(dict.fromkeys(sources))
    console = data()
    console.print(f"\n[bold]Sources[/bold] ({len(found)})")
    for line in found:
        console.print(f"  - {line}", markup=False)
