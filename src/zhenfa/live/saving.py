"""How a card saves its share of a checkpoint: copied at once, written by a thread while training goes on.

No card waits for another. Each writes the parts that it answers for, under their global names, in torch's own format,
and tells the SHA-256 of its file; the driver puts the records together when all have told (see
:func:`zhenfa.live.checkpoint.finish`). A card that dies while it writes leaves an unfinished folder, no checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zhenfa.live.checkpoint import RECORDS, SUMS, Piece, file_of, load, place_pieces, sha256, state_of
from zhenfa.live.crew import of_expert
from zhenfa.live.placement import CardPlace
from zhenfa.live.replicas import counted, owners
from zhenfa.live.sizes import Sizes


def answers_for(places: Sequence[CardPlace], rank: int, sizes: Sizes) -> frozenset[str]:
    """Return the parts that ``rank`` holds and does not write, because another card does."""
    held = {part for one in owners(places, sizes) if rank in one.ranks for part in one.parts}
    return frozenset(held - counted(places, rank, sizes))


def share_of(
    module: Any, optimizer: Any, left_out: frozenset[str], updates: frozenset[str] | None = None
) -> dict[str, Any]:
    """Return a copy, in host memory, of a card's state without the parts ``left_out``; the next step may begin.

    ``updates``: the weights whose optimizer state this card alone keeps, whoever writes the weights (None: the parts
    ``left_out`` count for both).
    """
    state, part_of = state_of(module, optimizer), module.sizes.part_of
    kept: dict[str, Any] = {"model": {}, "optimizer": {}}
    for name, value in state["model"].items():
        if part_of(name) not in left_out:
            kept["model"][name] = _copy(value)
    for name, value in state.get("optimizer", {}).items():
        if updates is not None or part_of(name.split(".", 1)[1]) not in left_out:
            kept["optimizer"][name] = _copy(value)
    return kept


def whole_share(
    module: Any, optimizer: Any, left_out: frozenset[str], updates: frozenset[str] | None
) -> dict[str, Any]:  # fmt: skip
    """Return what :func:`share_of` does where a crew splits the matrices: whole ones, on its first card alone, and on
    each card the experts that it holds whole.

    All cards of the crew call it together.
    """
    crew, state = module.crew, share_of(module, optimizer, left_out, updates)

    def kept(name: str) -> bool:
        return crew.index == 0 or (of_expert(name) and not crew.experts)

    model = {name: crew.whole(name, value) for name, value in state["model"].items()}
    moments = {name: (name.split(".", 1)[1].rsplit(".", 1)[0], value) for name, value in state["optimizer"].items()}
    whole = {
        name: (weight, crew.whole(weight, value) if getattr(value, "ndim", 0) else value)
        for name, (weight, value) in moments.items()
    }
    return {
        "model": {name: value for name, value in model.items() if kept(name)},
        "optimizer": {name: value for name, (weight, value) in whole.items() if kept(weight)},
    }


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


def _copy(value: Any) -> Any:
    import torch

    return value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value


@dataclass
class Saver:
    """Writes one state after the other in a thread of its own. ``rank`` names the card's file."""

    rank: int
    _thread: threading.Thread | None = None
    _told: list[dict[str, Any]] = field(default_factory=list)

    def begin(
        self, folder: Path, state: dict[str, Any], *, to_disk: bool, pieces: Mapping[str, Piece] | None = None
    ) -> None:
        """Write ``state`` into ``folder``; waits for the one before it. ``to_disk`` sees it onto the disk; ``pieces``:
        which tensors are pieces of larger ones."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(folder, state, to_disk, pieces or {}), daemon=True)
        self._thread.start()

    def tell(self, *, wait: bool = False) -> list[dict[str, Any]]:
        """Return what has been written since the last call: folder and file sums, or an error."""
        if wait:
            self.wait()
        told, self._told = self._told, []
        return told

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, folder: Path, state: dict[str, Any], to_disk: bool, pieces: Mapping[str, Piece]) -> None:
        try:
            sums = write_share(folder, self.rank, state, to_disk=to_disk, pieces=pieces)
            self._told.append({"folder": str(folder), "files": sums})
        except Exception as problem:  # told to the driver, which decides
            words = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            self._told.append({"folder": str(folder), "error": words})


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
    folder: Path, rank: int, state: dict[str, Any], *, to_disk: bool, pieces: Mapping[str, Piece] | None = None
) -> dict[str, str]:
    """Write one card's share into an unfinished checkpoint; return the SHA-256 of its files by name.

    They also lie beside them, last of all, for a driver whom the card can no longer tell.
    """
    from torch.distributed import checkpoint

    own = folder / f"{file_of(rank)}.folder"
    own.mkdir()
    writer = checkpoint.FileSystemWriter(own, sync_files=to_disk, thread_count=1)
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
