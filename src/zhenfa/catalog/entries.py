"""Accelerators, systems, links, machines and models by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from zhenfa.catalog import files
from zhenfa.catalog.shelf import Shelf
from zhenfa.errors import UnknownNameError
from zhenfa.spec.link_family import LinkFamily
from zhenfa.spec.machine import Accelerator, Link, Machine, Pool, System
from zhenfa.spec.model import Model, read_model

ACCELERATORS: Final = Shelf("accelerator", Accelerator, "accelerators", folder="accelerators")
SYSTEMS: Final = Shelf("system", System, "systems", folder="systems")
LINKS: Final = Shelf("link", Link, "links", file="links.yaml")
FAMILIES: Final = Shelf("link family", LinkFamily, "fabrics", file="fabrics.yaml")

_DOCUMENTS: Final = (".yaml", ".yml", ".json")


def accelerators() -> Mapping[str, Accelerator]:
    """Return every accelerator by id."""
    return ACCELERATORS.all()


def accelerator(name: str) -> Accelerator:
    """Return the accelerator of that id or alias. Raises :class:`zhenfa.errors.UnknownNameError`."""
    return ACCELERATORS.get(name)


def systems() -> Mapping[str, System]:
    """Return every system by id."""
    return SYSTEMS.all()


def system(name: str) -> System:
    """Return the system of that id or alias. Raises :class:`zhenfa.errors.UnknownNameError`."""
    return SYSTEMS.get(name)


def links() -> Mapping[str, Link]:
    """Return every link technology by id."""
    return LINKS.all()


def link(name: str) -> Link:
    """Return the link technology of that id. Raises :class:`zhenfa.errors.UnknownNameError`."""
    return LINKS.get(name)


def link_families() -> Mapping[str, LinkFamily]:
    """Return every family of links, the most particular first."""
    return FAMILIES.all()


@cache
def _machine_paths() -> dict[str, Path]:
    return {path.stem: path for path in files.paths("machines")}


def machine_names() -> list[str]:
    """Return the names of the packaged machines."""
    return list(_machine_paths())


def machines() -> dict[str, Machine]:
    """Return every packaged machine by name."""
    return {name: _packaged(name) for name in _machine_paths()}


@cache
def _packaged(name: str) -> Machine:
    path = _machine_paths()[name]
    return Machine.from_data(files.read(path), source=str(path))


def machine(name: str) -> Machine:
    """Return the packaged machine of that name, or the machine made of one system of that name.

    Raises :class:`zhenfa.errors.UnknownNameError` with near misses.
    """
    wanted = name.strip().casefold()
    found = next((item for item in _machine_paths() if item.casefold() == wanted), None)
    if found:
        return _packaged(found)
    if SYSTEMS.find(name) is None:
        hint = (
            "`zhenfa show machines` and `zhenfa show systems` list them; a path of your own has a '/' or ends in .yaml."
        )
        raise UnknownNameError("machine", name, {*_machine_paths(), *SYSTEMS.names}, hint=hint)
    one = SYSTEMS.get(name)
    return Machine(name=one.id, title=one.name, pools=(Pool(name="cards", system=one.id),))


def load_machine(wanted: str | os.PathLike[str] | Machine) -> Machine:
    """Return a machine given itself, a name, or the path of a document.

    Text is a path when it has a separator or ends in .yaml, .yml or .json, and otherwise a name; a name that the
    catalog does not know but that is a file is read as one.
    Raises :class:`zhenfa.errors.UnknownNameError` or :class:`zhenfa.errors.DocumentError`.
    """
    if isinstance(wanted, Machine):
        return wanted
    text = os.fspath(wanted)
    separators = {os.sep, os.altsep, "/"} - {None}
    if not isinstance(wanted, str) or any(mark in text for mark in separators if mark):
        return Machine.from_file(text)
    if text.casefold().endswith(_DOCUMENTS):
        return Machine.from_file(text)
    try:
        return machine(text)
    except UnknownNameError:
        if Path(text).is_file():
            return Machine.from_file(text)
        raise


@cache
def _model_paths() -> dict[str, Path]:
    folder = files.ROOT / "models"
    return {path.stem: path for path in sorted(folder.glob("*")) if path.suffix in {".yaml", ".json"}}


def models() -> list[str]:
    """Return the names of the packaged models."""
    return list(_model_paths())


def model_path(name: str) -> Path:
    """Return the document of the packaged model of that name. Raises :class:`zhenfa.errors.UnknownNameError`."""
    wanted = name.strip().casefold()
    for known, path in _model_paths().items():
        if known.casefold() == wanted:
            return path
    raise UnknownNameError("model", name, _model_paths())


@cache
def _model(path: Path) -> Model:
    return Model.from_data(files.read(path), source=str(path)) if path.suffix == ".yaml" else read_model(path)


def model(name: str) -> Model:
    """Return the packaged model of that name. Raises :class:`zhenfa.errors.UnknownNameError`."""
    return _model(model_path(name))
