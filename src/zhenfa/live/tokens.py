"""Tokens that lie in files as such: raw integers, NumPy arrays, folders of them, and Hugging Face datasets on disk.

Everything is mapped into memory, not read: a sample costs only its own tokens. Rows of a dataset follow each other
without a gap, in the order of the dataset.
"""

from __future__ import annotations

import bisect
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zhenfa.errors import CapabilityError, InputError

Integers = npt.NDArray[Any]

NARROW: Final = 1 << 16
"""Vocabularies up to this size have their tokens in 16 bits in files of raw integers (as nanoGPT's ``prepare.py``
writes them, and Megatron-LM's ``indexed_dataset.py`` below 65,500 tokens), larger ones in 32."""
SUFFIXES: Final = (".bin", ".npy")


@dataclass(frozen=True)
class Tokens:
    """Arrays of tokens read as one. ``ends[i]`` is where array ``i`` ends."""

    name: str
    pieces: tuple[Integers, ...]
    ends: tuple[int, ...]
    unit: str = "tokens"

    @property
    def size(self) -> int:
        """Return how many tokens there are."""
        return self.ends[-1] if self.ends else 0

    def read(self, start: int, count: int) -> Integers:
        """Return ``count`` tokens from ``start`` on, over the ends of arrays."""
        found: list[Integers] = []
        while count > 0:
            index = bisect.bisect_right(self.ends, start)
            offset = start - (self.ends[index - 1] if index else 0)
            piece = self.pieces[index][offset : offset + count]
            found.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(found).astype(np.int64)


def tokens_of(path: Path, vocabulary: int) -> Tokens:
    """Return the tokens of a ``.bin`` or ``.npy`` file, of a folder of such files, or of a dataset on disk.

    Raises :class:`InputError` for what cannot be read as tokens, :class:`CapabilityError` without pyarrow.
    """
    if path.is_file():
        return _together(path, [_array(path, vocabulary)])
    if (path / "state.json").is_file():
        return _dataset(path)
    files = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES)
    if not files:
        splits = sorted(one.name for one in path.iterdir() if (one / "state.json").is_file())
        way_out = f"write one of its splits, such as {str(path / splits[0])!r}." if splits else (
            "tokens lie in .bin or .npy files, or in a dataset written with save_to_disk."
        )  # fmt: skip
        raise InputError(f"{str(path)!r} holds no tokens.", hint=way_out)
    return _together(path, [_array(one, vocabulary) for one in files])


def _together(path: Path, pieces: list[Integers]) -> Tokens:
    kept = tuple(piece for piece in pieces if len(piece))
    return Tokens(str(path), kept, tuple(itertools.accumulate(len(piece) for piece in kept)))


def _array(path: Path, vocabulary: int) -> Integers:
    if path.suffix == ".bin":
        kind = np.dtype("<u2" if vocabulary <= NARROW else "<u4")
        if path.stat().st_size % kind.itemsize:
            raise InputError(f"{str(path)!r} does not hold whole tokens of {8 * kind.itemsize} bits.")
        return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)
    try:
        found: Integers = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as problem:
        raise InputError(f"{str(path)!r} cannot be read: {problem}.") from None
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(f"{str(path)!r} holds {found.ndim}-dimensional {found.dtype}, not a row of tokens.")
    return found


def _dataset(path: Path) -> Tokens:
    """Return the tokens (``input_ids``) of a dataset, or the bytes of its ``text``.

    Source: ``Dataset.save_to_disk`` and ``load_from_disk`` of Hugging Face datasets 4: Arrow streams that
    ``state.json`` lists under ``_data_files``.
    """
    try:
        import pyarrow as arrow
        import pyarrow.ipc
    except ImportError:
        raise CapabilityError("pyarrow is not installed.", hint="pip install 'zhenfa[datasets]'.") from None
    try:
        state = json.loads((path / "state.json").read_text())
        if state.get("_indices_data_files"):
            raise InputError(f"{str(path)!r} is a selection of rows.", hint="write it with flatten_indices() first.")
        names = [str(one["filename"]) for one in state["_data_files"]]
        tables = [arrow.ipc.open_stream(arrow.memory_map(str(path / Path(name).name))).read_all() for name in names]
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"the dataset {str(path)!r} cannot be read: {problem}.") from None
    columns = tables[0].column_names if tables else []
    column = next((name for name in ("input_ids", "text") if name in columns), None)
    if column is None:
        raise InputError(
            f"the dataset {str(path)!r} has no input_ids and no text; it has {', '.join(columns) or 'no columns'}."
        )
    chunks = [chunk for table in tables for chunk in table.column(column).chunks]
    found = _together(path, [_flat(chunk, column, path) for chunk in chunks])
    return Tokens(found.name, found.pieces, found.ends, "tokens" if column == "input_ids" else "bytes")


def _flat(chunk: Any, column: str, path: Path) -> Integers:
    """Return the values of one Arrow array of lists or texts as one row, without a copy."""
    import pyarrow as arrow

    if chunk.null_count:
        raise InputError(f"column {column} of {str(path)!r} has empty rows (null).")
    if column == "text":
        if not (arrow.types.is_string(chunk.type) or arrow.types.is_large_string(chunk.type)):
            raise InputError(f"column text of {str(path)!r} holds {chunk.type}, not text.")
        _, offsets, values = chunk.buffers()
        wide = np.int64 if arrow.types.is_large_string(chunk.type) else np.int32
        bounds = np.frombuffer(offsets, wide)[chunk.offset : chunk.offset + len(chunk) + 1]
        return np.frombuffer(values or b"", np.uint8)[int(bounds[0]) : int(bounds[-1])] if len(chunk) else (
            np.empty(0, np.uint8)
        )  # fmt: skip
    if not hasattr(chunk, "flatten") or not arrow.types.is_integer(getattr(chunk.type, "value_type", chunk.type)):
        raise InputError(f"column input_ids of {str(path)!r} holds {chunk.type}, not lists of integers.")
    found: Integers = chunk.flatten().to_numpy(zero_copy_only=False)
    return found
