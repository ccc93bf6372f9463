"""Typed documents: YAML or JSON in, a checked object out, and messages that say where and what instead."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema

from zhenfa.errors import DocumentError, InputError, UnitError, near_misses, quote
from zhenfa.spec import yaml

T = TypeVar("T", bound="Document")


def _make_strict(schema: Any, *, inside: bool) -> None:
    """Turn off pydantic's conversions between numbers, text and yes or no in one model, short of models in it."""
    if isinstance(schema, list | tuple):
        for item in schema:
            _make_strict(item, inside=inside)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind in ("int", "float", "bool", "str"):
        schema["strict"] = True
    if kind == "model" and inside:
        return
    for key, item in schema.items():
        if key not in ("metadata", "serialization", "default", "function", "cls", "config"):
            _make_strict(item, inside=inside or kind == "model")


class Part(BaseModel):
    """A piece of a document: unknown keys are refused, values do not change once read.

    A number is not taken for text, nor text, true or false for a number; a list is taken for a tuple. What checks a
    part is built when the first one is read: a command reads few of them.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True, defer_build=True
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler, /) -> CoreSchema:
        schema = handler(source)
        if cls.__dict__.get("__pydantic_complete__"):  # a part of another: made strict when it was built
            return schema
        _make_strict(schema, inside=False)
        return schema


class Document(Part):
    """A whole file. ``schema`` names kind and version, such as ``zhenfa.machine/1``."""

    schema_name: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _without_schema(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "schema" not in data:
            return data
        if data["schema"] != cls.schema_name:
            raise DocumentError(
                f"this reads {cls.schema_name!r}.", key="schema", hint=f"a {cls.kind()} is wanted here."
            )
        return {key: value for key, value in data.items() if key != "schema"}

    @classmethod
    def from_data(cls, data: Any, *, source: str = "<data>", positions: yaml.Positions | None = None) -> Self:
        """Check plain data. Raises :class:`DocumentError` naming the key, the value, the near miss and the way out."""
        if positions is None:
            positions = yaml.Positions(source)
            fault = yaml.unreadable(data)
            if fault is not None:
                from zhenfa.spec.explain import path_name

                name = path_name(fault[0])
                raise DocumentError(f"{name}: {fault[1]}", source=source, key=name)
        if not isinstance(data, dict):
            from zhenfa.spec.explain import kind_of

            line, column = positions.find(())
            raise DocumentError(
                f"a {cls.kind()} is a mapping of keys, not {kind_of(data)}.", source=source, line=line, column=column
            )
        try:
            return cls.model_validate(data)
        except ValidationError as problem:
            from zhenfa.spec.explain import explain

            raise explain(cls, cls.kind(), problem, data, positions) from None

    @classmethod
    def from_text(cls, text: str | bytes, *, source: str = "<text>") -> Self:
        """Read one document from YAML or JSON text."""
        data, positions = yaml.read(text, source)
        return cls.from_data(data, source=source, positions=positions)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read one document from a file. Raises :class:`DocumentError`."""
        return cls.from_text(read_file(path), source=str(path))

    @classmethod
    def kind(cls) -> str:
        """Return the document's kind in a word."""
        return cls.schema_name.split(".")[1].split("/")[0]

    def to_data(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_data` reads back to an equal document."""
        return {"schema": self.schema_name, **self.model_dump(mode="json", exclude_defaults=True, by_alias=True)}

    def to_yaml(self) -> str:
        """Return the document as YAML text."""
        return yaml.write(self.to_data())


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file of at most :data:`yaml.MAX_BYTES`, or raise :class:`DocumentError` in words.

    A pipe, a socket or a device is refused, and never waited for.
    """
    if not str(path):
        raise DocumentError("no file is named.", hint="give the path of a file.")
    place = Path(path)
    try:
        mode = place.stat().st_mode
        text = _read_regular(place) if stat.S_ISREG(mode) else None
    except FileNotFoundError:
        raise DocumentError(f"there is no file {_path(path)}.", hint=_near_file(place)) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise DocumentError(f"{_path(path)} cannot be read: {reason[:1].lower()}{reason[1:]}.") from None
    if text is None:
        raise DocumentError(f"{_path(path)} is {_special(mode)}.", hint="name a regular file.")
    if len(text) > yaml.MAX_BYTES:
        raise DocumentError(f"the file is larger than {yaml.MAX_BYTES:,} bytes.", source=str(path))
    return text


def _read_regular(place: Path) -> bytes | None:
    """Return the bytes, one more than allowed at most; None if the file has meanwhile become something else."""
    handle = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb", closefd=True) as file:
        return file.read(yaml.MAX_BYTES + 1) if stat.S_ISREG(os.fstat(handle).st_mode) else None


def _path(path: str | os.PathLike[str]) -> str:
    """Return a path in quotes, whole unless it is absurd."""
    return repr(str(path)) if len(str(path)) <= 1000 else quote(str(path))


def _special(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _near_file(place: Path) -> str | None:
    """Name a file beside it whose name is close, or the folder that was looked in."""
    try:
        siblings = [entry.name for entry, _ in zip(os.scandir(place.parent), range(1000), strict=False)]
    except OSError as problem:
        missing = isinstance(problem, FileNotFoundError | NotADirectoryError)
        return None if not missing else f"there is no folder {_path(place.parent)} either."
    near = near_misses(place.name, siblings, limit=1)
    if near:
        return f"did you mean {_path(place.parent / near[0])}?"
    return f"it is looked for in {_path(Path.cwd())}." if place == Path(place.name) else None


def safe_join(root: Path, relative: str) -> Path:
    """Return ``root / relative`` with links followed, refusing a path that leaves ``root``. Raises InputError."""
    if Path(relative).is_absolute() or "\x00" in relative:
        raise InputError(f"{quote(relative)} must be a relative path.", hint=f"paths are read below {_path(root)}.")
    try:
        base = root.resolve()
        target = (base / relative).resolve()
    except (OSError, RuntimeError, ValueError) as problem:
        raise InputError(f"{quote(relative)} cannot be followed: {problem}.") from None
    if not target.is_relative_to(base):
        raise InputError(
            f"{quote(relative)} leaves {_path(root)}.", hint="paths and links that lead out of the folder are refused."
        )
    return target


__all__ = ["Document", "Part", "UnitError", "read_file", "safe_join"]
