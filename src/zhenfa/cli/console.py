"""Where words go: data to stdout, talk to stderr. Understandable without colour."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from zhenfa.cli.cells import width, wrap
from zhenfa.cli.tables import Line, Table, render
from zhenfa.errors import ZhenfaError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.status import Status

    from zhenfa.cli.documents import Printed, RunReport

PIPED_WIDTH: Final = 120
NARROWEST: Final = 40
PATIENCE_S: Final = 1.0
"""Seconds after which a terminal is told that work is going on."""

BAR_PATIENCE_S: Final = 2.0
"""Seconds after which a terminal sees a progress bar."""

STYLES: Final[dict[str, dict[str, Any]]] = {
    "head": {"bold": True},
    "strong": {"bold": True},
    "dim": {"dim": True},
    "warn": {"fg": "yellow"},
    "error": {"fg": "red", "bold": True},
    "hint": {"fg": "cyan"},
}


class Screen:
    """One of the two streams. ``width`` is in cells; a ``silent`` screen writes nothing."""

    def __init__(self, stream: TextIO, *, silent: bool = False) -> None:
        self.stream, self.silent = stream, silent
        self.terminal = stream.isatty()
        self.width = width_of(stream)
        self.colour = coloured(stream)
        self.full, self.empty = ("█", "░") if writes(stream, "█░") else ("#", ".")

    def line(self, text: str = "", style: str | None = None) -> None:
        """Write one line as it is, however long."""
        self._write([(text, style)])

    def text(self, text: str, *, first: str = "", style: str | None = None) -> None:
        """Write a text wrapped to the screen; ``first`` stands before it and the other lines are set in as far."""
        indent = width(first)
        for number, part in enumerate(wrap(text, max(self.width - indent, 20))):
            self._write([(((" " * indent if number else first) + part).rstrip(), style)])

    def items(self, texts: Iterable[str]) -> None:
        """Write a list, one item a line, wrapped."""
        for text in texts:
            self.text(text, first="  - ")

    def head(self, title: str, remark: str = "") -> None:
        """Write a blank line and a heading."""
        self._write([("", None)])
        lines = wrap(f"{title} {remark}", self.width)
        start, rest = (title, lines[0].removeprefix(title)) if lines[0].startswith(title) else (lines[0], "")
        self._write([(start, "head"), (rest, None)])
        for line in lines[1:]:
            self._write([(f"  {line}", None)])

    def table(self, shown: Table, *, indent: int = 0) -> list[str]:
        """Write a table and return the titles of the columns for which there was no room."""
        lines, left_out = render(shown, self.width - indent)
        for line in lines:
            self._write([(" " * indent, None), *line] if indent else line)
        return left_out

    def bar(self, share: float | None, cells: int = 20) -> str:
        """Return a bar for a share between 0 and 1, dots for None."""
        if share is None:
            return "." * cells
        filled = round(cells * min(max(share, 0.0), 1.0))
        return self.full * filled + self.empty * (cells - filled)

    def _write(self, line: Line) -> None:
        if self.silent:
            return
        shown = "".join(click.style(text, **STYLES[style]) if style and self.colour else text for text, style in line)
        try:
            if self.stream is sys.stderr:
                sys.stdout.flush()
            self.stream.write(shown + "\n")
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise unwritable(problem) from None


class Output:
    """What a command was asked to write, and where."""

    def __init__(self, *, as_json: bool, cite: bool, quiet: bool) -> None:
        self.as_json, self.cite, self.quiet = as_json, cite, quiet
        self.data = Screen(sys.stdout)
        self.talk = Screen(sys.stderr, silent=quiet)

    def document(self, document: Printed | RunReport) -> None:
        """Write one JSON document to stdout."""
        text = json.dumps(document.to_data(), indent=2, ensure_ascii=False, allow_nan=False)
        if not writes(self.data.stream, text):
            text = json.dumps(json.loads(text), indent=2)
        self.data.line(text)

    def say(self, text: str) -> None:
        """Say something on stderr, unless told to be quiet."""
        self.talk.text(text, style="dim")

    def left_out(self, titles: Iterable[str]) -> None:
        """Say which columns there was no room for."""
        names = list(dict.fromkeys(titles))
        if names:
            self.say(f"left out at {self.data.width} columns: {', '.join(names)}")

    def sources(self, lines: Iterable[str]) -> None:
        """List the sources that an answer rests on."""
        found = list(dict.fromkeys(lines))
        self.data.head("Sources", f"({len(found)})")
        self.data.items(found)

    @contextmanager
    def working(self, words: str) -> Iterator[None]:
        """Show on a terminal that work is going on, once it has lasted :data:`PATIENCE_S`; leave no trace of it."""
        if self.quiet or not self.talk.terminal:
            yield
            return
        waiting = _Waiting(words)
        try:
            yield
        finally:
            waiting.end()

    @contextmanager
    def progress(self, words: str) -> Iterator[Callable[[int, int], None]]:
        """Yield what takes the steps done and the steps in all; a terminal sees a bar once it has lasted
        :data:`BAR_PATIENCE_S`.
        """
        if self.quiet or not self.talk.terminal:
            yield lambda done, total: None
            return
        bar = _Bar(words)
        try:
            yield bar.move
        finally:
            bar.end()


class _Bar:
    """A progress bar on stderr that comes late and goes without a trace."""

    def __init__(self, words: str) -> None:
        self._words, self._begun = words, time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def move(self, done: int, total: int) -> None:
        if self._bar is None and time.monotonic() - self._begun > BAR_PATIENCE_S:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._words, total=total)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class _Waiting:
    """A spinner on stderr that comes late and goes without a trace."""

    def __init__(self, words: str) -> None:
        self._words, self._lock, self._over = words, threading.Lock(), False
        self._status: Status | None = None
        self._timer = threading.Timer(PATIENCE_S, self._begin)
        self._timer.daemon = True
        self._timer.start()

    def _begin(self) -> None:
        from rich.console import Console
        from rich.status import Status

        with self._lock:
            if not self._over:
                self._status = Status(self._words, console=Console(stderr=True))
                self._status.start()

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._status is not None:
                self._status.stop()


def width_of(stream: TextIO) -> int:
    """Return the cells of a line: COLUMNS if it is set, else the terminal's, else 120; 40 at least."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return max(int(given), NARROWEST)
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        found = 0
    return max(found or PIPED_WIDTH, NARROWEST)


def coloured(stream: TextIO) -> bool:
    """Return whether to colour: on a terminal or with FORCE_COLOR, and never with NO_COLOR or a dumb terminal."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def writes(stream: TextIO, text: str) -> bool:
    """Return whether the stream's encoding can hold the text."""
    try:
        text.encode(stream.encoding or "utf-8")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def unwritable(problem: OSError) -> ZhenfaError:
    """Return the error for output that nobody takes."""
    return ZhenfaError(f"the output cannot be written: {os.strerror(problem.errno or 0)}.")
