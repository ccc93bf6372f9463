"""Every error that Zhenfa raises on purpose.

The tree::

    ZhenfaError                  exit 1   something failed
    ├── InputError               exit 2   what the user gave cannot be used
    │   ├── DocumentError        exit 2   a file: names file, line, column, key
    │   ├── UnitError            exit 2   a quantity that cannot be read
    │   ├── UnknownNameError     exit 2   no machine, model or term of that name
    │   └── MissingFactError     exit 2   a needed value is undisclosed; says how to supply it
    ├── InfeasibleError          exit 3   no plan fits; names the nearest miss and what would make it fit
    ├── CapabilityError          exit 1   asked of a maker, engine or model what it cannot do
    ├── RunError                 exit 1   a run that had started failed
    └── InternalError            exit 1   a promise of ours is broken: a mistake in Zhenfa, not in what was given

Each carries a message of one or more plain sentences and, where there is a way out, a hint. The command line prints
``error: <message>`` and ``hint: <hint>`` and exits with ``exit_code``; a traceback never reaches a user.
"""

from __future__ import annotations

import copyreg
import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class ZhenfaError(Exception):
    """The root of the tree: a failure with words for the user."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else printable(hint)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), self.message), self.__dict__  # type: ignore[attr-defined]


class InputError(ZhenfaError, ValueError):
    """What the user gave cannot be used. Also a ``ValueError``, so that it passes through document validation whole."""

    exit_code = 2


class DocumentError(InputError):
    """A document cannot be read: the message starts with ``file:line:column`` where they are known."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        source: str | None = None,
        line: int | None = None,
        column: int | None = None,
        key: str | None = None,
    ) -> None:
        name = source if source is None or source.isprintable() else repr(source)
        place = ":".join(str(part) for part in (name, line, column) if part is not None)
        message = printable(message, lines=False)
        text = f"{place}: {message}" if place else message
        super().__init__(text, hint=hint)
        self.source, self.line, self.column, self.key = source, line, column, key


class UnitError(InputError):
    """A quantity whose number or unit cannot be read."""


class UnknownNameError(InputError):
    """Nothing of that name: lists the near misses."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str | None = None) -> None:
        known = sorted(known)
        near = near_misses(name, known)
        guess = f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
        way_out = hint or f"`zhenfa show {kind}s` lists all {len(known)}."
        super().__init__(f"no {kind} is called {quote(name)}.{guess}", hint=way_out)
        self.name, self.near = name, near


class MissingFactError(InputError):
    """A value that the answer needs is undisclosed."""


class InfeasibleError(ZhenfaError):
    """No plan fits."""

    exit_code = 3


class CapabilityError(ZhenfaError):
    """A maker, an engine or a model was asked for something that it cannot do."""


class RunError(ZhenfaError):
    """A run that had started failed."""


class InternalError(ZhenfaError):
    """A promise that the code makes of itself is broken, such as time that does not add up: a mistake in Zhenfa."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        ours = "this is a mistake in Zhenfa, not in what you gave; please report it with the command you ran."
        super().__init__(message, hint=hint or ours)


def near_misses(name: str, known: Iterable[str], limit: int = 2) -> list[str]:
    """Return up to ``limit`` of the known names that are close to ``name`` or that contain it."""
    if len(name) > 200:
        return []
    wanted = name.casefold()
    by_folded = {item.casefold(): item for item in known}
    found = difflib.get_close_matches(wanted, by_folded, n=limit, cutoff=0.6)
    if len(wanted) >= 3:
        found += sorted((item for item in by_folded if wanted in item and item not in found), key=len)
    return [by_folded[item] for item in found[:limit]]


def printable(text: str, *, lines: bool = True) -> str:
    """Return the text with what no terminal shows as it is escaped; line breaks and tabs stay where ``lines``.

    >>> printable("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or (lines and one in "\n\t") else ascii(one)[1:-1] for one in text)


def quote(value: object) -> str:
    """Return a user's value in quotes for a message: cut short when long, control characters escaped.

    >>> quote("64 gigs")
    "'64 gigs'"
    """
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of about {round(value.bit_length() * 0.30103):,} digits"
    if isinstance(value, str) and len(value) > 80:
        return f"{value[:60]!r}… ({len(value):,} characters)"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:60]}…"
