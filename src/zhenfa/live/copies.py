"""Copies of the state in host memory: one file for each card, laid out once, and filled anew for every copy.

A card maps its file into memory with a view for each tensor, and a copy is one operator that copies them all; nothing
is pickled, and the interpreter has next to nothing to do. A file has the form of safetensors (the length of a header,
the header, the tensors one after the other), with where the tensors lie in the whole ones beside it. When a card's
tensors are all there, a thread takes the CRC-32 of the file, and writes a *mark*: the step, the length, that sum. The
mark goes before the file is filled anew. A copy is whole if all cards' marks are of its step, and the sums are right:
what is cut short or changed is passed over, but for one change in four thousand million.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from zhenfa.errors import InputError
from zhenfa.live.checkpoint import Piece, file_of
from zhenfa.live.held import Held
from zhenfa.live.marks import MARK, TENSORS, Mark, mark_of, sealed

LENGTH_BYTES: Final = 8
ALIGN: Final = 64
NAMES: Final = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
KINDS: Final = {name: kind for kind, name in NAMES.items()}
Row = tuple[str, tuple[int, ...], torch.dtype, Piece]
"""A tensor's key, shape and type, and where it lies in the whole one."""


@dataclass
class Slot:
    """A card's file, laid out for these tensors. ``space`` is the whole of it, ``views`` the tensors in it; ``mapped``:
    it is the file itself, else memory beside it."""

    rows: list[Row]
    space: Any
    views: list[Any]
    mapped: bool


class Copier:
    """Copies the state of one card. ``rank`` names its files, ``cards`` is how many there are."""

    def __init__(self, rank: int, cards: int) -> None:
        self._rank, self._cards = rank, cards
        self._slots: dict[Path, Slot] = {}
        self._beside: Slot | None = None

    def copy(
        self, folder: Path, step: int, held: Sequence[Held], settings: dict[str, Any], *, mapped: bool,
        synchronize: Callable[[], None],
    ) -> Callable[[], dict[str, Any]]:  # fmt: skip
        """Copy tensors; return what is left to do, beside the next step: to see that the copy is whole, and say so.

        ``mapped``: the folder is one that the host keeps in memory. What was left of the copy before must be done.
        ``settings`` are those of the optimizer.
        """
        # Large elements first: each then lies at a multiple of its own size, without gaps.
        held = sorted(held, key=lambda one: -one.tensor.element_size())
        rows = [(one.key, tuple(one.tensor.shape), one.tensor.dtype, one.piece) for one in held]
        (folder / f"{file_of(self._rank)}{MARK}").unlink(missing_ok=True)
        slot = self._slot(folder, rows, mapped=mapped)
        with torch.no_grad():
            if held:
                torch._foreach_copy_(slot.views, [one.tensor for one in held], non_blocking=True)
        synchronize()
        return lambda: self._done(folder, slot, step, settings)

    def let_go(self) -> None:
        """Let go of the memory that copies are in; what is written stays."""
        self._slots.clear()
        self._beside = None

    def _slot(self, folder: Path, rows: list[Row], *, mapped: bool) -> Slot:
        known = self._slots.get(folder) if mapped else self._beside
        if known is not None and known.rows == rows:
            return known
        slot = _laid_out(rows, folder / f"{file_of(self._rank)}{TENSORS}" if mapped else None)
        if mapped:
            self._slots[folder] = slot
        else:
            self._beside = slot
        return slot

    def _done(self, folder: Path, slot: Slot, step: int, settings: dict[str, Any]) -> dict[str, Any]:
        content = slot.space.numpy()
        total = zlib.crc32(content)
        name = file_of(self._rank)
        if not slot.mapped:
            draft = folder / f"{name}.draft"
            with draft.open("wb", buffering=0) as file:
                _write_all(file.fileno(), content)
            os.replace(draft, folder / f"{name}{TENSORS}")
        facts = {"step": step, "cards": self._cards, "bytes": content.nbytes, "crc32": total, "settings": settings}
        draft = folder / f"{name}.draft"
        draft.write_bytes(sealed(json.dumps(facts).encode()))
        os.replace(draft, folder / f"{name}{MARK}")
        return {"bytes": content.nbytes}


def _write_all(file: int, content: Any) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def _laid_out(rows: list[Row], path: Path | None) -> Slot:
    """Return a new file for these tensors, mapped into memory, or memory alone where there is no path."""
    sizes = [math.prod(shape) * kind.itemsize for _, shape, kind, _ in rows]
    ends = list(itertools.accumulate(sizes))
    header: dict[str, Any] = {
        key: {"dtype": NAMES[kind], "shape": shape, "data_offsets": [end - size, end]}
        for (key, shape, kind, _), size, end in zip(rows, sizes, ends, strict=True)
    }
    header["__metadata__"] = {"pieces": json.dumps({key: [piece.size, piece.offsets] for key, _, _, piece in rows})}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + LENGTH_BYTES) % ALIGN)
    first = LENGTH_BYTES + len(text)
    total = first + (ends[-1] if ends else 0)
    space = torch.empty(total, dtype=torch.uint8) if path is None else _mapped(path, total)
    start = len(text).to_bytes(LENGTH_BYTES, "little") + text
    space[:first] = torch.frombuffer(bytearray(start), dtype=torch.uint8)
    views = [
        space[first + end - size : first + end].view(kind).view(shape)
        for (_, shape, kind, _), size, end in zip(rows, sizes, ends, strict=True)
    ]
    return Slot(rows, space, views, mapped=path is not None)


def _mapped(path: Path, size: int) -> Any:
    """Return the memory of a new file. All of it is there: what is mapped and is not would kill whoever writes it."""
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        draft.unlink()
        raise
    finally:
        os.close(handle)
    space = torch.from_file(str(draft), shared=True, size=size, dtype=torch.uint8)
    os.replace(draft, path)
    return space


# Reading


def shares(path: Path) -> Iterator[tuple[int, Mark, list[Held]]]:
    """Yield what each card has written of a copy that has been verified: its rank, its mark, its tensors."""
    for rank in range(mark_of(path, 0).cards):
        yield rank, mark_of(path, rank), _tensors(path / f"{file_of(rank)}{TENSORS}")


def _tensors(path: Path) -> list[Held]:
    size = path.stat().st_size
    space = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    first = LENGTH_BYTES + int.from_bytes(bytes(space[:LENGTH_BYTES].tolist()), "little")
    header = json.loads(space[LENGTH_BYTES:first].numpy().tobytes())
    pieces = json.loads(header.pop("__metadata__")["pieces"])
    found = []
    for key, one in header.items():
        begin, end = one["data_offsets"]
        tensor = space[first + begin : first + end].view(KINDS[one["dtype"]]).view(one["shape"])
        whole, offsets = pieces[key]
        found.append(Held(key, tensor, Piece(tuple(whole), tuple(offsets))))
    return found


class Copy:
    """A copy that has been verified, read by any layout: see :class:`zhenfa.live.held.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, list[Held]] = {}
        for _, _, tensors in shares(path):
            for one in tensors:
                self._found.setdefault(one.key, []).append(one)

    def fill(self, key: str, tensor: Any, piece: Piece) -> None:
        """Fill a tensor that is a ``piece`` of the one kept as ``key``. Raises :class:`InputError` if it is not all
        there."""
        there = {one.piece.offsets: one for one in self._found.get(key, ()) if one.piece.size == piece.size}
        exact = there.get(piece.offsets)
        if exact is not None and exact.tensor.shape == tensor.shape:
            tensor.copy_(exact.tensor)
            return
        filled = sum(_overlap(one, tensor, piece) for one in there.values())
        if filled != tensor.numel():
            raise InputError(
                f"the copy {str(self._path)!r} has {filled:,} of the {tensor.numel():,} numbers of {key!r} that "
                f"begin at {list(piece.offsets)} of {list(piece.size)}."
            )

    def tensors(self, branch: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Fill those of the whole tensors ``wanted`` that the copy has under ``branch`` in their shape; return them."""
        found = {}
        for name, tensor in wanted.items():
            key = f"{branch}.{name}"
            if any(one.piece.size == tuple(tensor.shape) for one in self._found.get(key, ())):
                self.fill(key, tensor, Piece(tuple(tensor.shape), (0,) * tensor.ndim))
                found[name] = tensor
        return found


def _overlap(one: Held, tensor: Any, piece: Piece) -> int:
    """Copy what a kept piece and a wanted one have in common; return how many numbers that is."""
    ours, theirs, count = [], [], 1
    for own, length, other, size in zip(
        piece.offsets, tensor.shape, one.piece.offsets, one.tensor.shape, strict=True
    ):  # fmt: skip
        first, last = max(own, other), min(own + length, other + size)
        if first >= last:
            return 0
        ours.append(slice(first - own, last - own))
        theirs.append(slice(first - other, last - other))
        count *= last - first
    tensor[tuple(ours)].copy_(one.tensor[tuple(theirs)])
    return count
