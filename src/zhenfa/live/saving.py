"""How a card saves its share of a checkpoint: copied at once, written by a thread while training goes on.

No card waits for another. Each writes the tensors that it answers for (:mod:`zhenfa.live.held`), under their global
names, in torch's own format, and tells the SHA-256 of its file; the driver puts the records together when all have
told (see :func:`zhenfa.live.checkpoint.finish`). A card that dies while it writes leaves an unfinished folder, no
checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zhenfa.live.checkpoint import RECORDS, SUMS, Piece, file_of, load, place_pieces, sha256
from zhenfa.live.held import MODEL, OPTIMIZER, Held


def share_of(held: Iterable[Held], settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Piece]]:
    """Return a copy, in host memory, of what a card answers for as torch's checkpoint has it, and where the pieces lie
    in whole tensors; the next step may begin. ``settings`` are those of the optimizer."""
    state: dict[str, Any] = {MODEL: {}, OPTIMIZER: {}}
    pieces: dict[str, Piece] = {}
    for key, tensor, piece in held:
        branch, _, name = key.partition(".")
        state.setdefault(branch, {})[name] = tensor.detach().to("cpu", copy=True)
        if piece.size != tuple(tensor.shape):
            pieces[key] = piece
        if branch == OPTIMIZER and name.endswith(".step"):
            weight = name.removeprefix("state.").removesuffix(".step")
            state[branch] |= {f"param_groups.{weight}.{setting}": value for setting, value in settings.items()}
    return state, pieces


def load_parts(path: Path, module: Any, optimizer: Any, whole: Any) -> None:
    """Fill a card's parts of matrices and its optimizer from a checkpoint; ``whole`` is the same layers unsplit."""
    import torch

    names = {id(weight): name for name, weight in module.named_parameters()}
    unsplit = dict(whole.named_parameters())
    own = [] if optimizer is None else optimizer.param_groups[0]["params"]
    moments = torch.optim.AdamW([unsplit[names[id(weight)]] for weight in own]) if own else None
    load(path, whole, moments, verified=True)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(module.crew.part(name, unsplit[name]))
    for weight in own:
        name = names[id(weight)]
        found = moments.state[unsplit[name]]  # type: ignore[union-attr]
        optimizer.state[weight] = {
            key: module.crew.part(name, value).clone().to(weight.device) if value.ndim else value.clone()
            for key, value in found.items()
        }


@dataclass
class Saver:
    """Does what is left to do of saving in a thread of its own, one after the other."""

    _thread: threading.Thread | None = None
    _told: deque[dict[str, Any]] = field(default_factory=deque)

    def begin(self, key: str, work: Callable[[], dict[str, Any]]) -> None:
        """Begin some work, whose result is told under ``key``; waits for the work before it."""
        self.wait()
        self._thread = threading.Thread(target=self._work, args=(key, work), daemon=True, name="saving")
        self._thread.start()

    def fail(self, key: str, problem: Exception) -> None:
        """Have it told that what was begun under ``key`` has failed."""
        words = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        self._told.append({"key": key, "error": words})

    def tell(self, *, wait: bool = False) -> list[dict[str, Any]]:
        """Return what has been done since the last call, or an error."""
        if wait:
            self.wait()
        return [self._told.popleft() for _ in range(len(self._told))]

    def wait(self) -> None:
        """Return when nothing is being done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, key: str, work: Callable[[], dict[str, Any]]) -> None:
        try:
            self._told.append({"key": key} | work())
        except Exception as problem:  # told to the driver, which decides
            self.fail(key, problem)


def _planner() -> Any:
    """Return torch's planner, which turns each value into bytes once: the optimizer's settings, which every weight has,
    are most of the entries, and take longest otherwise."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    known: dict[tuple[type, str], bytes] = {}

    class Planner(DefaultSavePlanner):  # type: ignore[misc]
        def transform_object(self, write_item: Any, object: Any) -> Any:  # noqa: A002 - torch's name
            if object is not None and not isinstance(object, bool | int | float | str | tuple):
                return super().transform_object(write_item, object)
            key = type(object), repr(object)
            if key not in known:
                known[key] = super().transform_object(write_item, object).getvalue()
            return io.BytesIO(known[key])

    return Planner()


def write_share(
    folder: Path, rank: int, state: dict[str, Any], *, pieces: Mapping[str, Piece] | None = None
) -> dict[str, str]:
    """Write one card's share into an unfinished checkpoint; return the SHA-256 of its files by name.

    Sees them onto the disk. ``pieces``: which tensors are pieces of larger ones. The sums also lie beside the
    files, last of all, for a driver whom the card can no longer tell.
    """
    from torch.distributed import checkpoint

    own = folder / f"{file_of(rank)}.folder"
    own.mkdir()
    writer = checkpoint.FileSystemWriter(own, sync_files=True, thread_count=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it saves without the other cards, which is meant
        checkpoint.save(state, storage_writer=writer, planner=_planner(), no_dist=True)
    place_pieces(own / ".metadata", pieces or {})
    for file in own.iterdir():
        name = f"{file_of(rank)}{RECORDS}" if file.name == ".metadata" else f"{file_of(rank)}{file.suffix}"
        os.replace(file, folder / name)
    shutil.rmtree(own)
    data = folder / f"{file_of(rank)}.distcp"
    sums = {data.name: sha256(data)} if data.exists() else {}
    draft = folder / f"{file_of(rank)}.draft"
    draft.write_text(json.dumps(sums))
    os.replace(draft, folder / f"{file_of(rank)}{SUMS}")
    return sums
