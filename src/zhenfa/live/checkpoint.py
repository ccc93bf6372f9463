"""Checkpoints that can be resumed at another split: layers under global names, written whole or not at all.

The cards write into a folder that ends in ``.partial``; the driver adds a manifest with the SHA-256 of every file,
syncs and renames. A folder without a manifest is not a checkpoint. Reading checks the manifest first and refuses
pickled objects other than torch's own records of tensors. Torch is imported when a function is called: the driver
verifies and finishes a checkpoint without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import InputError

MANIFEST: Final = "manifest.json"
FORMAT: Final = "zhenfa.checkpoint/1"
PARTIAL: Final = ".partial"


def finish(partial: Path, facts: dict[str, Any]) -> Path:
    """Turn the folder that the cards have written into a checkpoint and return its path.

    ``facts`` (plan, sizes, step) are kept in the manifest. An older checkpoint of the same name is replaced.
    """
    files = {path.name: _sum(path) for path in sorted(partial.iterdir()) if path.name != MANIFEST}
    manifest = {"schema": FORMAT, **facts, "files": files}
    with (partial / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(partial)
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _sync(final.parent)
    return final


def verify(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint whose files are all there and unchanged, else raise :class:`InputError`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} is not a whole checkpoint: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as problem:
        raise InputError(f"the manifest of {str(path)!r} cannot be read: {problem}.") from None
    known_form = isinstance(manifest, dict) and manifest.get("schema") == FORMAT
    if not known_form or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{str(path)!r} is not a {FORMAT}.")
    for name, known in manifest["files"].items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"{name!r} of the checkpoint {str(path)!r} is missing.")
        if _sum(file) != known:
            raise InputError(f"{name!r} of the checkpoint {str(path)!r} has changed since it was written.")
    return dict(manifest)


def save_parts(path: Path, module: Any, optimizer: Any) -> None:
    """Write this card's parameters and optimizer state. All cards of the default group call it together."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    checkpoint.save(
        _state(module, optimizer),
        storage_writer=checkpoint.FileSystemWriter(path, sync_files=True, thread_count=1),
        planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
    )


def load(path: Path, module: Any, optimizer: Any = None) -> dict[str, Any]:
    """Fill a stage (or a whole model) and its optimizer from a checkpoint made at any split; return the manifest.

    ``module`` is a :class:`~zhenfa.live.decoder.StageModule`. Raises :class:`InputError` for a checkpoint that is not
    whole, has changed, or holds anything but tensors and plain values.
    """
    from torch import distributed
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    manifest = verify(path)
    state = _state(module, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        checkpoint.load(
            state, storage_reader=_reader(path), planner=_planner(), no_dist=not distributed.is_initialized()
        )
    set_model_state_dict(module, state["model"])
    if optimizer is not None:
        set_optimizer_state_dict(module, optimizer, state["optimizer"], options=_options())
    return manifest


def _state(module: Any, optimizer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    state = {"model": get_model_state_dict(module)}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(module, optimizer, options=_options())
    return state


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(flatten_optimizer_state_dict=True)


METADATA: Final = "torch.distributed.checkpoint.metadata"
SAFE: Final = frozenset(
    {
        (METADATA, "BytesStorageMetadata"),
        (METADATA, "ChunkStorageMetadata"),
        (METADATA, "Metadata"),
        (METADATA, "MetadataIndex"),
        (METADATA, "StorageMeta"),
        (METADATA, "TensorProperties"),
        (METADATA, "TensorStorageMetadata"),
        (METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("pathlib", "PosixPath"),
    }
)
"""Names that the file of torch's records may call for. Exact: a dotted name could reach what a module imports."""


class _Records(pickle.Unpickler):
    """Reads torch's records of where tensors lie, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in SAFE or _is_dtype(module, name):
            return super().find_class(module, name)
        raise InputError(f"the checkpoint holds {module}.{name}, which is not read.")


def _is_dtype(module: str, name: str) -> bool:
    import torch

    return module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)


def _reader(path: Path) -> Any:
    from torch.distributed.checkpoint import FileSystemReader

    records = _records(path)

    class Reader(FileSystemReader):  # type: ignore[misc]
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            records.storage_meta.load_id = self.load_id
            return records

    return Reader(path)


def _records(path: Path) -> Any:
    """Return torch's records of a checkpoint. Raises :class:`InputError` if there is anything else in their file."""
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    try:
        with (path / ".metadata").open("rb") as file:
            records = _Records(file).load()
    except (OSError, ValueError, EOFError, pickle.UnpicklingError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"the records of {str(path)!r} cannot be read: {problem}.") from None
    if not isinstance(records, Metadata):
        raise InputError(f"the records of {str(path)!r} are a {type(records).__name__}.")
    records.storage_meta = records.storage_meta or StorageMeta()
    return records


def _planner() -> Any:
    import torch
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    class Planner(DefaultLoadPlanner):  # type: ignore[misc]
        def load_bytes(self, read_item: Any, value: Any) -> None:
            torch.load(value, weights_only=True)  # refuses anything but plain values
            value.seek(0)
            super().load_bytes(read_item, value)

    return Planner()


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
