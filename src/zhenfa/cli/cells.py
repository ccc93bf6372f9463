"""Text in terminal cells: a Chinese character takes two, an accent on the letter before it none."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

CLOSING = "，。、；：？！）》」』”’"
"""Chinese punctuation that does not begin a line."""


def width(text: str) -> int:
    """Return how many cells the text takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def pad(text: str, cells: int, *, right: bool = False) -> str:
    """Return the text with blanks up to ``cells``; ``right`` puts them in front."""
    blanks = " " * (cells - width(text))
    return blanks + text if right else text + blanks


def wrap(text: str, cells: int) -> list[str]:
    """Break the text into lines of at most ``cells``: at blanks, between Chinese characters, and inside a word only
    where it is longer than a line. At least one line.
    """
    lines: list[str] = []
    line = ""
    for atom, gap in _atoms(text):
        blank = " " if gap and line else ""
        if width(line) + len(blank) + width(atom) <= cells:
            line += blank + atom
            continue
        if line:
            lines.append(line)
        *whole, line = _chop(atom, max(cells, 2))
        lines += whole
    return [*lines, line]


def _atoms(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the pieces between which a line may end, and whether a blank stands before each."""
    for word in text.split():
        atom, gap = "", True
        for character in word:
            wide = _cells(character) == 2
            if atom and character not in CLOSING and (wide or _cells(atom[-1]) == 2):
                yield atom, gap
                atom, gap = "", False
            atom += character
        yield atom, gap


def _chop(word: str, cells: int) -> Iterator[str]:
    piece = ""
    for character in word:
        if width(piece) + _cells(character) > cells:
            yield piece
            piece = ""
        piece += character
    yield piece
