"""Checkpoints that can be resumed at another split: layers under global names, written whole or not at all.

The cards write into a folder that ends in ``.partial``, each its own file; the driver joins their records, adds a
manifest with the SHA-256 of every file, syncs and renames. A folder without a manifest is not a checkpoint. Reading
checks the manifest first and refuses pickled objects other than torch's own records of tensors. Torch is imported when
a function is called.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import InputError

MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"
"""Holds the SHA-256 of the manifest, which holds those of all other files."""
FORMAT: Final = "zhenfa.checkpoint/1"
PARTIAL: Final = ".partial"


RECORDS: Final = ".records"
"""How the file ends in which one card says where its tensors lie, until :func:`finish` puts them together."""


SUMS: Final = ".sums"
"""How the file ends in which one card says that its share is written, and the SHA-256 of its files."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where a tensor lies in a larger one of shape ``size``: its first element stands at ``offsets``."""

    size: tuple[int, ...]
    offsets: tuple[int, ...]


def told_on_disk(partial: Path, cards: int) -> dict[str, str] | None:
    """Return the sums of all files of an unfinished checkpoint if every one of ``cards`` has written its share."""
    sums: dict[str, str] = {}
    for rank in range(cards):
        try:
            sums |= json.loads((partial / f"{file_of(rank)}{SUMS}").read_text())
        except (OSError, ValueError):
            return None
    return sums


def file_of(rank: int) -> str:
    """Return the name under which card ``rank`` writes, without ending."""
    return f"card-{rank:05d}"


def finish(partial: Path, facts: dict[str, Any], sums: Mapping[str, str] | None = None) -> Path:
    """Turn the folder that the cards have written into a checkpoint and return its path.

    ``facts`` (plan, sizes, step) are kept in the manifest; ``sums`` are the SHA-256 of files that the cards have told.
    All of it is on the disk before. An older checkpoint of the same name is replaced.
    """
    _put_together(partial)
    for path in partial.glob(f"*{SUMS}"):
        path.unlink()
    known = dict(sums or {})
    own = {MANIFEST, SEAL}
    files = {
        path.name: known.get(path.name) or sha256(path) for path in sorted(partial.iterdir()) if path.name not in own
    }
    manifest = json.dumps({"schema": FORMAT, **facts, "files": files}, indent=1).encode()
    for name, content in ((MANIFEST, manifest), (SEAL, hashlib.sha256(manifest).hexdigest().encode())):
        with (partial / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(partial)
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _sync(final.parent)
    return final


def _put_together(partial: Path) -> None:
    """Join the cards' records of where tensors lie into the one file that torch reads."""
    own = sorted(partial.glob(f"*{RECORDS}"))
    if not own:
        return
    whole = None
    for path in own:
        one = _read_records(path)
        data = path.name.removesuffix(RECORDS) + ".distcp"
        one.storage_data = {
            key: dataclasses.replace(info, relative_path=data) for key, info in one.storage_data.items()
        }
        if whole is None:
            whole = one
            continue
        whole.state_dict_metadata = _joined(whole.state_dict_metadata, one.state_dict_metadata)
        whole.planner_data |= one.planner_data
        whole.storage_data |= one.storage_data
    with (partial / ".metadata").open("wb") as file:
        pickle.dump(whole, file)
    for path in own:
        path.unlink()


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the records of both, a tensor's pieces together."""
    found = one | other
    for name in one.keys() & other.keys():
        if hasattr(found[name], "chunks"):
            chunks = {tuple(chunk.offsets): chunk for chunk in (*one[name].chunks, *other[name].chunks)}
            found[name] = dataclasses.replace(other[name], chunks=list(chunks.values()))
    return found


def place_pieces(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Have a card's records say of which larger tensors its own are pieces, by name."""
    if not pieces:
        return
    from torch import Size
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    records = _read_records(path)
    for name, piece in pieces.items():
        known = records.state_dict_metadata[name]
        chunk = ChunkStorageMetadata(Size(piece.offsets), known.size)
        records.state_dict_metadata[name] = dataclasses.replace(known, size=Size(piece.size), chunks=[chunk])
    records.storage_data = {
        MetadataIndex(index.fqn, Size(pieces[index.fqn].offsets)) if index.fqn in pieces else index: info
        for index, info in records.storage_data.items()
    }
    with path.open("wb") as file:
        pickle.dump(records, file)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint in a folder, None if there is none, and why newer ones were passed over."""
    refused: list[str] = []
    for path in sorted(folder.glob("checkpoint-*"), reverse=True):
        if path.name.endswith(PARTIAL):
            continue
        try:
            verify(path)
        except InputError as problem:
            refused.append(problem.message)
        else:
            return path, refused
    return None, refused


def remove(path: Path) -> None:
    """Remove a checkpoint: first its manifest, so that half of it is none."""
    path.joinpath(MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def manifest_of(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint, its files unread. Raises :class:`InputError` if it is not whole."""
    try:
        content, seal = (path / MANIFEST).read_bytes(), (path / SEAL).read_bytes()
        manifest = json.loads(content)
    except FileNotFoundError as problem:
        missing = Path(problem.filename).name
        raise InputError(f"{str(path)!r} is not a whole checkpoint: it has no {missing}.") from None
    except (OSError, ValueError) as problem:
        raise InputError(f"the manifest of {str(path)!r} cannot be read: {problem}.") from None
    if hashlib.sha256(content).hexdigest().encode() != seal:
        raise InputError(f"the manifest of {str(path)!r} has changed since it was written.")
    known_form = isinstance(manifest, dict) and manifest.get("schema") == FORMAT
    if not known_form or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{str(path)!r} is not a {FORMAT}.")
    return dict(manifest)


def verify(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint whose files are all there and unchanged, else raise :class:`InputError`."""
    manifest = manifest_of(path)
    for name, known in manifest["files"].items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"{name!r} of the checkpoint {str(path)!r} is missing.")
        if sha256(file) != known:
            raise InputError(f"{name!r} of the checkpoint {str(path)!r} has changed since it was written.")
    return manifest


def load(path: Path, module: Any, optimizer: Any = None, *, verified: bool = False) -> dict[str, Any]:
    """Fill a stage (or a whole model) and its optimizer from a checkpoint made at any split; return the manifest.

    ``module`` is a :class:`~zhenfa.live.decoder.StageModule`; ``verified`` says that its files have just been checked.
    No card waits for another. Raises :class:`InputError` for a checkpoint that is not
    whole, has changed, or holds anything but tensors and plain values.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    manifest = manifest_of(path) if verified else verify(path)
    state = state_of(module, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it loads without the other cards, which is meant
        checkpoint.load(state, storage_reader=_reader(path), planner=_planner(), no_dist=True)
    set_model_state_dict(module, state["model"])
    if optimizer is not None:
        set_optimizer_state_dict(module, optimizer, state["optimizer"], options=_options())
    return manifest


def load_tensors(path: Path, branch: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Fill those of the tensors ``wanted`` that a checkpoint has under ``branch`` in their shape, and return them.

    The files must have been checked (:func:`verify`). No card waits for another.
    """
    from torch.distributed import checkpoint

    there = _read_records(path / ".metadata").state_dict_metadata
    found = {
        name: tensor
        for name, tensor in wanted.items()
        if getattr(there.get(f"{branch}.{name}"), "size", None) == tensor.shape
    }
    if found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that it loads without the other cards, which is meant
            checkpoint.load({branch: found}, storage_reader=_reader(path), planner=_planner(), no_dist=True)
    return found


def shapes(path: Path, branch: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a checkpoint has under ``branch``, by their global names."""
    there = _read_records(path / ".metadata").state_dict_metadata
    start = f"{branch}."
    return {
        name.removeprefix(start): tuple(one.size)
        for name, one in there.items()
        if name.startswith(start) and hasattr(one, "size")
    }


def state_of(module: Any, optimizer: Any) -> dict[str, Any]:
    """Return the tensors and numbers of a stage and its optimizer under their global names."""
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

    records = _read_records(path / ".metadata")

    class Reader(FileSystemReader):  # type: ignore[misc]
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            records.storage_meta.load_id = self.load_id
            return records

    return Reader(path)


def _read_records(path: Path) -> Any:
    """Return torch's records from a file. Raises :class:`InputError` if there is anything else in it."""
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    try:
        with path.open("rb") as file:
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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
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
