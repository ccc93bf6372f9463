"""Typed documents: YAML or JSON in, a checked object out, and messages that say where and what instead."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from zhenfa.errors import DocumentError, InputError, UnitError, near_misses
from zhenfa.spec import yaml

T = TypeVar("T", bound="Document")


class Part(BaseModel):
    """A piece of a document: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)


class Document(Part):
    """A whole file. ``schema`` names kind and version, such as ``zhenfa.machine/1``."""

    schema_name: ClassVar[str]

    @classmethod
    def from_data(cls, data: Any, *, source: str = "<data>", positions: yaml.Positions | None = None) -> Self:
        """Check plain data. Raises :class:`DocumentError` naming the key, the value, the near miss and the way out."""
        positions = positions or yaml.Positions(source)
        if not isinstance(data, dict):
            raise DocumentError(f"a {cls.kind()} is a mapping of keys, not {_kind_of(data)}.", source=source)
        declared = data.get("schema", cls.schema_name)
        if declared != cls.schema_name:
            line, column = positions.find(("schema",))
            raise DocumentError(
                f"schema is {declared!r}; this reads {cls.schema_name!r}.", source=source, line=line, column=column,
                key="schema", hint=f"a {cls.kind()} is wanted here.",
            )  # fmt: skip
        try:
            return cls.model_validate({key: value for key, value in data.items() if key != "schema"})
        except ValidationError as problem:
            raise _explain(cls, problem, data, positions) from None

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
    """Return a file's bytes, or raise :class:`DocumentError` in words."""
    place = Path(path)
    try:
        if place.stat().st_size > yaml.MAX_BYTES:
            raise DocumentError(f"the file is larger than {yaml.MAX_BYTES:,} bytes.", source=str(path))
        return place.read_bytes()
    except FileNotFoundError:
        siblings = [item.name for item in place.parent.iterdir()] if place.parent.is_dir() else []
        near = near_misses(place.name, siblings)
        guess = f"did you mean {str(place.parent / near[0])!r}?" if near else None
        raise DocumentError(f"there is no file {str(path)!r}.", hint=guess) from None
    except IsADirectoryError:
        raise DocumentError(f"{str(path)!r} is a folder.", hint="name a file in it.") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise DocumentError(f"{str(path)!r} cannot be read: {reason}.") from None


def safe_join(root: Path, relative: str) -> Path:
    """Return ``root / relative``, refusing a path that leaves ``root``."""
    if Path(relative).is_absolute() or "\x00" in relative:
        raise InputError(f"{relative!r} must be a relative path.", hint=f"paths are read below {str(root)!r}.")
    target = (root / relative).resolve()
    if not target.is_relative_to(root.resolve()):
        raise InputError(f"{relative!r} leaves {str(root)!r}.", hint="paths with '..' that climb out are refused.")
    return target


def _kind_of(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _explain(cls: type[Document], problem: ValidationError, data: Any, positions: yaml.Positions) -> DocumentError:
    """Turn pydantic's first complaint into words; the rest is counted."""
    errors = problem.errors(include_url=False)
    best = max(errors, key=lambda error: (error["type"] == "extra_forbidden", len(error["loc"])))
    path = _data_path(best["loc"], data)
    message, hint = _words(cls, best, path)
    at_key = best["type"] == "extra_forbidden"
    line, column = positions.find(path, key=at_key)
    places = {_data_path(error["loc"], data) for error in errors}
    if len(places) > 1:
        message += f" ({len(places) - 1} more like this in the file.)"
    return DocumentError(
        message, hint=hint, source=positions.source, line=line, column=column, key=".".join(map(str, path))
    )


def _data_path(location: tuple[str | int, ...], data: Any) -> yaml.Path:
    """Drop from pydantic's location the names of union members, which are not in the file."""
    path: list[str | int] = []
    here = data
    last = len(location) - 1
    for index, step in enumerate(location):
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
        elif index != last or not isinstance(here, dict):
            continue
        path.append(step)
    return tuple(path)


def _words(cls: type[Document], error: ErrorDetails, path: yaml.Path) -> tuple[str, str | None]:
    name = ".".join(map(str, path)) or cls.kind()
    given = error.get("input")
    shown = f"{given!r}" if not isinstance(given, dict | list) else _kind_of(given)
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _known_keys(cls, path[:-1])
        near = near_misses(str(path[-1]), known)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return f"{name!r} is not a key here.{guess}", f"known here: {', '.join(sorted(known))}." if known else None
    if kind == "missing":
        return f"{name!r} is missing.", None
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return f"{name} is {shown}: {cause.message}", cause.hint
    if cause is not None:
        return f"{name}: {cause}", None
    if kind in {"literal_error", "enum"}:
        wanted = str(error["ctx"].get("expected", ""))
        choices = [choice.strip().strip("'") for choice in wanted.replace(" or ", ", ").split(",")]
        near = near_misses(str(given), choices)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return f"{name} is {shown}.{guess}", f"it is one of {', '.join(choices)}."
    if kind == "union_tag_invalid":
        return f"{name}: {error['msg'].removeprefix('Input tag ')}.", None
    return f"{name} is {shown}: {_lower(error['msg'])}.", None


def _lower(text: str) -> str:
    text = text.removeprefix("Input ").removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _known_keys(cls: type[BaseModel], path: yaml.Path) -> set[str]:
    """Return the keys that are known at ``path``, following nested parts, lists and unions."""
    models: set[type[BaseModel]] = {cls}
    for step in path:
        found: set[type[BaseModel]] = set()
        for model in models:
            if isinstance(step, int):
                found.add(model)
                continue
            for key, info in model.model_fields.items():
                if step in (key, info.alias):
                    found |= _models_in(info.annotation)
        models = found
    keys = {info.alias or key for model in models for key, info in model.model_fields.items()}
    return keys | ({"schema"} if not path else set())


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    found: set[type[BaseModel]] = set()
    for argument in getattr(annotation, "__args__", ()):
        found |= _models_in(argument)
    return found


__all__ = ["Document", "Part", "UnitError", "read_file", "safe_join"]
