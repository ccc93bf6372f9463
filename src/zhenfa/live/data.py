"""Training data: tokens, or bytes as such, drawn in an order that depends on seed and step alone.

``python-stdlib`` is the source of the standard library of the running Python. Files are indexed, not loaded; a
sample reads only its own bytes.
"""

from __future__ import annotations

import bisect
import itertools
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from zhenfa.errors import InputError
from zhenfa.live.sizes import Sizes
from zhenfa.live.tokens import SUFFIXES, Tokens, tokens_of
from zhenfa.spec.job import Execution

BYTE_VALUES: Final = 256
STANDARD_LIBRARY: Final = "python-stdlib"
SKIPPED_FOLDERS: Final = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules"})
MOST_BYTES: Final = 40_000_000


@dataclass(frozen=True)
class Corpus:
    """Files read as one long text. ``ends[i]`` is where file ``i`` ends."""

    name: str
    paths: tuple[Path, ...]
    ends: tuple[int, ...]
    unit: str = "bytes"

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return self.ends[-1] if self.ends else 0

    def read(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Return ``count`` bytes from ``start`` on, over the ends of files."""
        pieces: list[bytes] = []
        while count > 0:
            index = bisect.bisect_right(self.ends, start)
            offset = start - (self.ends[index - 1] if index else 0)
            with self.paths[index].open("rb") as file:
                file.seek(offset)
                piece = file.read(min(count, self.ends[index] - start))
            if not piece:
                raise InputError(f"{str(self.paths[index])!r} has become shorter while it was read.")
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.frombuffer(b"".join(pieces), dtype=np.uint8)


def corpus(name: str, vocabulary: int = BYTE_VALUES) -> Corpus | Tokens:
    """Return a corpus by name (``python-stdlib``), the tokens at that path, or the bytes of the file there.

    Raises :class:`InputError` if there is neither.
    """
    if name == STANDARD_LIBRARY:
        return _index(name, _standard_library())
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix in SUFFIXES):
        return tokens_of(path, vocabulary)
    if path.is_file():
        return _index(name, [path])
    way_out = "use 'python-stdlib', or the path of a file or folder."
    raise InputError(f"there is no data called {name!r}.", hint=way_out)


def located(execution: Execution, sizes: Sizes) -> Execution:
    """Return the settings with paths that hold wherever a card's process runs.

    Raises :class:`InputError` if the data are not there or cannot be read.
    """
    changes = {}
    if execution.data != STANDARD_LIBRARY:
        corpus(execution.data, sizes.vocabulary)
        changes["data"] = str(Path(execution.data).resolve())
    if execution.weights is not None:
        changes["weights"] = str(Path(execution.weights).resolve())
    return execution.model_copy(update=changes)


def batch(
    text: Corpus | Tokens, *, seed: int, step: int, global_batch: int, length: int,
    which: Sequence[int] | None = None, share: float = 0.0, held_out: bool = False, vocabulary: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:  # fmt: skip
    """Return inputs and targets of sequences of a step's global batch: ``which``, by their numbers (None: all).

    Both have shape ``[sequences, length]``; targets are the inputs moved by one byte. The global batch depends on
    ``seed`` and ``step`` alone, not on who reads which part of it. ``share`` of the text, at its end, is held out:
    sequences are drawn from the rest, or, if ``held_out``, from that share alone. Raises :class:`InputError` for a
    token that a model of this ``vocabulary`` does not have.
    """
    border = text.size - int(text.size * share)
    low, high = (border, text.size) if held_out else (0, border)
    if high - low <= length:
        part = " held out" if held_out else ""
        raise InputError(f"{text.name!r} has {high - low} {text.unit}{part}, too few for sequences of {length}.")
    stream = [seed, step, 1] if held_out else [seed, step]
    starts = np.random.default_rng(stream).integers(low, high - length, size=global_batch)
    rows = [text.read(int(start), length + 1) for start in (starts if which is None else starts[list(which)])]
    tokens = np.stack(rows).astype(np.int64)
    if vocabulary is not None and tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        wrong = int(tokens.max()) if int(tokens.max()) >= vocabulary else int(tokens.min())
        raise InputError(
            f"{text.name!r} has the token {wrong}, and the model has {vocabulary}, from 0 on.",
            hint="tokenize the data for this model, or take a model with a larger vocabulary.",
        )
    return tokens[:, :-1], tokens[:, 1:]


def _index(name: str, paths: list[Path]) -> Corpus:
    sizes: list[int] = []
    kept: list[Path] = []
    total = 0
    for path in paths:
        size = path.stat().st_size
        if size == 0 or not os.access(path, os.R_OK):
            continue
        if total + size > MOST_BYTES and kept:
            break
        total += size
        kept.append(path)
        sizes.append(size)
    return Corpus(name, tuple(kept), tuple(itertools.accumulate(sizes)))


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        found += [Path(folder, name) for name in sorted(files) if name.endswith(".py")]
    return found
