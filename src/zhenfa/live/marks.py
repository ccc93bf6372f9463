"""What cards say of their shares of a copy in memory, and whether these are whole and unchanged.

The driver looks at copies without torch, which takes long to load: see :mod:`zhenfa.live.copies` for their files.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import InputError
from zhenfa.live.checkpoint import file_of
from zhenfa.live.host import processors

COPY: Final = ".copy"
"""How the name of a folder ends in which a copy lies."""
MARK: Final = ".mark"
TENSORS: Final = ".safetensors"


def is_copy(path: Path) -> bool:
    """Return whether a folder is one for copies, and no checkpoint."""
    return path.suffix == COPY


@dataclass(frozen=True)
class Mark:
    """What a card says of its share of a copy."""

    step: int
    cards: int
    bytes: int
    crc32: int
    settings: dict[str, Any]


def verify(path: Path, step: int) -> None:
    """Raise :class:`InputError` unless the files of a copy made after ``step`` are all there and unchanged."""
    marks = [mark_of(path, 0)]
    marks += [mark_of(path, rank) for rank in range(1, marks[0].cards)]
    if {(mark.step, mark.cards) for mark in marks} != {(step, len(marks))}:
        raise InputError(f"the copy {str(path)!r} is not of step {step} throughout.")
    with ThreadPoolExecutor(processors()) as pool:  # the sums let the interpreter go
        rights = list(pool.map(lambda rank: _is_right(path, rank, marks[rank]), range(len(marks))))
    if not all(rights):
        name = f"{file_of(rights.index(False))}{TENSORS}"
        raise InputError(f"{name!r} of the copy {str(path)!r} is missing, or has changed since it was written.")


def mark_of(path: Path, rank: int) -> Mark:
    """Return what a card says of its share. Raises :class:`InputError` if it has not said it, or it has changed."""
    name = f"{file_of(rank)}{MARK}"
    try:
        content = (path / name).read_bytes()
        text = content.partition(b"\n")[0]
        if content != sealed(text):
            raise ValueError("it has changed since it was written")
        return Mark(**json.loads(text))
    except FileNotFoundError:
        raise InputError(f"the copy {str(path)!r} is not whole: it has no {name}.") from None
    except (OSError, ValueError, TypeError) as problem:
        raise InputError(f"{name!r} of the copy {str(path)!r} cannot be read: {problem}.") from None


def _is_right(path: Path, rank: int, mark: Mark) -> bool:
    try:
        with (path / f"{file_of(rank)}{TENSORS}").open("rb") as file:
            if os.fstat(file.fileno()).st_size != mark.bytes:
                return False
            with mmap.mmap(file.fileno(), mark.bytes, prot=mmap.PROT_READ) as content:
                return zlib.crc32(content) == mark.crc32
    except OSError:
        return False


def is_told(path: Path, step: int, cards: int) -> bool:
    """Return whether every card has said that its share of the copy of a step is whole."""
    try:
        return all(mark_of(path, rank).step == step for rank in range(cards))
    except InputError:
        return False


def sealed(text: bytes) -> bytes:
    """Return what a mark's file holds: a line of facts, and a line with its CRC-32."""
    return text + f"\n{zlib.crc32(text)}\n".encode()
