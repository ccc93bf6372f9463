"""Validation errors in words: which key, at which place, what stands there, what was meant, what is wanted."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from zhenfa import units
from zhenfa.errors import DocumentError, InputError, near_misses, quote
from zhenfa.spec.yaml import Path, Positions

_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
_MOST: Final = 200
_WANTED: Final = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "int_parsing_size": "a whole number", "float_type": "a number", "float_parsing": "a number",
    "finite_number": "a finite number", "string_type": "text", "bool_type": "true or false",
    "bool_parsing": "true or false", "tuple_type": "a list", "list_type": "a list", "dict_type": "a mapping",
    "model_type": "a mapping", "model_attributes_type": "a mapping", "none_required": "null",
}  # fmt: skip


class UnknownKeyError(DocumentError):
    """A mapping inside a document has the ``key``, which nobody reads."""


def explain(
    cls: type[BaseModel], kind: str, problem: ValidationError, data: Any, positions: Positions
) -> DocumentError:
    """Turn a validation error of a whole document into one message; further problems are counted.

    A key that is not known comes first, because a misspelt key is often why another is missing; then the first in the
    file. Of a union, only the member that the value evidently meant is talked about.
    """
    found = problem.errors(include_url=False)
    errors = _without_shadows(_meant_only([_trace(cls, error, data) for error in found[:_MOST]], data))

    def rank(error: _Problem) -> tuple[bool, int, int]:
        line, column = positions.find(error.path, key=error.at_key)
        return (not error.unknown_key, line or 0, column or 0)

    best = min(errors, key=rank)
    message, hint = _words(kind, best)
    others = len({error.path for error in errors} - {best.path})
    if others:
        count = str(others) if len(found) <= _MOST else "many"
        message += f" ({count} more {'problem' if count == '1' else 'problems'} in this document.)"
    line, column = positions.find(best.path, key=best.at_key)
    return DocumentError(
        message, hint=hint, source=positions.source, line=line, column=column, key=".".join(map(str, best.path))
    )


@dataclass(frozen=True)
class _Choice:
    """One passage of an error through a union: where, among which members, by which one."""

    path: Path
    members: tuple[Any, ...]
    taken: Any


@dataclass(frozen=True)
class _Problem:
    kind: str
    path: Path
    given: Any
    choices: tuple[_Choice, ...] = ()
    cause: BaseException | None = None
    context: dict[str, Any] | None = None
    message: str = ""
    of_key: bool = False
    owner: Any = None  # the annotation of what holds the last step

    @property
    def at_key(self) -> bool:
        """Return whether the key is at fault, and not the value."""
        return self.unknown_key or self.of_key or isinstance(self.cause, UnknownKeyError)

    @property
    def unknown_key(self) -> bool:
        """Return whether nobody reads a key of that name."""
        return self.kind in {"extra_forbidden", "invalid_key"}


def _trace(cls: type[BaseModel], error: ErrorDetails, data: Any) -> _Problem:
    """Find the place in the data of pydantic's location, which also names union members and added steps."""
    path: list[str | int] = []
    choices: list[_Choice] = []
    here: Any = data
    annotation: Any = cls
    owner: Any = None
    location = list(error["loc"])
    for step in location:
        members = _members(annotation)
        if len(members) > 1:
            annotation = _taken(members, str(step))
            choices.append(_Choice(tuple(path), members, annotation))
            continue
        owner = members[0]
        annotation = _inside(owner, step)
        if (isinstance(here, dict) and step in here) or (
            isinstance(here, list) and isinstance(step, int) and step < len(here)
        ):
            here = here[step]  # type: ignore[index]
        elif isinstance(here, dict) and isinstance(step, str) and annotation is not None:
            here = None
        elif annotation is not None or step == "[key]":
            continue
        path.append(step)
    context = error.get("ctx", {})
    cause = context.get("error")
    inner = cause.key if isinstance(cause, DocumentError) else None
    if "discriminator" in context:
        inner = context["discriminator"].strip("'")
    if inner is not None:
        path.append(inner)
        here = here.get(inner) if isinstance(here, dict) else None
    if location[-1:] == ["[key]"]:
        here = path[-1]
    return _Problem(
        error["type"], tuple(path), here, tuple(choices), cause, context, error["msg"],
        of_key=location[-1:] == ["[key]"], owner=owner,
    )  # fmt: skip


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return what an annotation may be, without None; one member unless it is a union of several."""
    if get_origin(annotation) is typing.Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for part in get_args(annotation) for member in _members(part)]
        return tuple(member for member in members if member is not type(None)) or (type(None),)
    return (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _taken(members: tuple[Any, ...], label: str) -> Any:
    """Return the member of a union that pydantic calls ``label``: a model's name or tag, or a plain type's name."""
    for member in members:
        if _is_model(member):
            tags = {tag for info in member.model_fields.values() for tag in _literals(info.annotation)}
            if label in (member.__name__, *tags) or label.endswith(f", {member.__name__}]"):
                return member
    plain = [member for member in members if not _is_model(member)]
    words = {"constrained-str": "str", "constrained-int": "int", "constrained-float": "float"}
    label = words.get(label, label)
    origins: dict[str, Any] = {"tuple": tuple, "list": list, "dict": dict, "literal": Literal}
    origin = origins.get(label.partition("[")[0])
    plain = [member for member in plain if origin is not None and get_origin(member) is origin] or plain
    return next((member for member in plain if getattr(member, "__name__", "") == label), plain[0] if plain else None)


def _literals(annotation: Any) -> tuple[Any, ...]:
    return tuple(
        value for member in _members(annotation) if get_origin(member) is Literal for value in get_args(member)
    )  # fmt: skip


def _inside(annotation: Any, step: str | int) -> Any:
    """Return the annotation of what stands at ``step`` of a value; None if it is not known there."""
    if _is_model(annotation):
        for key, info in annotation.model_fields.items():
            if step in (key, info.alias):
                return info.annotation
        return None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict and step != "[key]":
        return arguments[1]
    if origin in (tuple, list) and isinstance(step, int):
        return arguments[0] if origin is list or arguments[-1] is Ellipsis else arguments[min(step, len(arguments) - 1)]
    return None


def _meant_only(errors: list[_Problem], data: Any) -> list[_Problem]:
    """Leave, of the errors inside a union, those of the member that the value meant; one in all if there is none."""
    kept: list[_Problem] = []
    for error in errors:
        misfit = None
        for choice in error.choices:
            meant = _meant(choice.members, _value_at(data, choice.path))
            if meant is None:
                misfit = _Problem("union", choice.path, _value_at(data, choice.path), (choice,))
                break
            if meant is not choice.taken:
                break
        else:
            kept.append(error)
        if misfit is not None and misfit not in kept:
            kept.append(misfit)
    return kept or errors


def _without_shadows(errors: list[_Problem]) -> list[_Problem]:
    """Leave out that a list is too short when it only lacks the items that have an error of their own."""

    def has_inner(path: Path) -> bool:
        return any(other.path[: len(path)] == path != other.path for other in errors)

    return [error for error in errors if error.kind != "too_short" or not has_inner(error.path)]


def _meant(members: tuple[Any, ...], value: Any) -> Any:
    """Return the member of a union whose shape the value has; among models, the one that knows most of its keys."""
    shapes: dict[type, tuple[type, ...]] = {
        dict: (dict,), list: (tuple, list), str: (str,), bool: (bool,), int: (int, float), float: (float,),
    }  # fmt: skip
    wanted = shapes.get(type(value), ())
    plain = [member for member in members if (get_origin(member) or member) in wanted]
    if isinstance(value, str):
        plain += [member for member in members if get_origin(member) is Literal]
    if plain:
        return plain[0]
    models = [member for member in members if _is_model(member)]
    if isinstance(value, dict) and models:
        tagged = [
            model for model in models for key in ("kind", "task") if value.get(key) in _literals(_inside(model, key))
        ]
        return max(tagged or models, key=lambda model: len(set(model.model_fields) & set(value)))
    return None


def _value_at(data: Any, path: Path) -> Any:
    for step in path:
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


def kind_of(value: Any) -> str:
    """Return what sort of plain value this is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list) and not value:
        return "empty"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return kind_of(value) if isinstance(value, dict | list) else quote(value)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _words(kind: str, error: _Problem) -> tuple[str, str | None]:
    """Return message and hint."""
    path = error.path
    name = path_name(path) or kind
    shown = _shown(error.given)
    if error.unknown_key:
        known = _known_keys(error.owner)
        return f"{_quoted(name)} is not a key here.{_guess(path[-1], known)}", _listed("known here:", known)
    if error.kind == "missing":
        return f"{_quoted(name)} is missing.", None
    if error.cause is not None:
        words = error.cause.message if isinstance(error.cause, InputError) else str(error.cause)
        hint = error.cause.hint if isinstance(error.cause, InputError) else None
        plain = isinstance(error.cause, InputError) and not isinstance(error.given, dict | list) and not error.at_key
        return f"{name} is {shown}: {_sentence(words)}" if plain else f"{name}: {_sentence(words)}", hint
    if error.kind in {"literal_error", "enum", "union_tag_invalid"}:
        context = error.context or {}
        expected = str(context.get("expected_tags") or context.get("expected", ""))
        choices = [choice.strip().strip("'") for choice in expected.replace(" or ", ", ").split(",")]
        what = "not a key here" if error.of_key else shown
        return f"{name} is {what}.{_guess(error.given, choices)}", _listed("it is one of", choices)
    if error.kind == "union_tag_not_found":
        return f"{_quoted(name)} is missing.", "it says what kind of thing this is."
    return f"{name} is {shown}: {_limit(error)}", _way_out(error)


def path_name(path: Path) -> str:
    """Return a path for people: keys joined by dots, in quotes where they are empty, long or not printable."""
    texts = map(str, path)
    return ".".join(text if text.isprintable() and 0 < len(text) <= 80 else quote(text) for text in texts)


def _quoted(name: str) -> str:
    return name if "'" in name else f"'{name}'"


def _guess(given: Any, known: typing.Iterable[str]) -> str:
    near = near_misses(str(given), known, limit=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _listed(lead: str, items: typing.Collection[str]) -> str | None:
    return f"{lead} {', '.join(sorted(items) if isinstance(items, set) else items)}." if items else None


def _limit(error: _Problem) -> str:
    """Say what is wanted instead of what stands there."""
    context = error.context or {}
    bounds = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    for key, words in bounds.items():
        if key in context:
            return f"it must be {words} {_number(context[key])}."
    if error.kind == "string_pattern_mismatch":
        if context.get("pattern") == _NAME_PATTERN:
            return "a name has letters, digits, '.', '_' and '-', at most 80, and begins with a letter or a digit."
        return f"it must look like {context.get('pattern')}."
    if error.kind.endswith("too_short"):
        return f"it must have at least {_count(context['min_length'], error.given)}."
    if error.kind.endswith("too_long"):
        return f"it must have at most {_count(context['max_length'], error.given)}."
    if error.kind == "union":
        wanted = dict.fromkeys(_noun(member) for member in error.choices[0].members)
        return f"{' or '.join(wanted)} is wanted."
    if error.kind in _WANTED:
        return f"{_WANTED[error.kind]} is wanted."
    return _sentence(error.message[:1].lower() + error.message[1:])


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:g}"


def _count(number: int, given: Any) -> str:
    what = "character" if isinstance(given, str) else "item"
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _noun(annotation: Any) -> str:
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
    origin = get_origin(annotation) or annotation
    if origin in (tuple, list):
        return "a list"
    return "a mapping" if _is_model(annotation) else plain.get(origin, "text")


def _way_out(error: _Problem) -> str | None:
    given = error.given
    if _WANTED.get(error.kind, "").endswith("number"):
        return _as_number(given)
    if error.kind == "string_type" and isinstance(given, int | float):
        return "put it in quotes."
    if error.kind == "bool_type" and str(given).lower() in ("yes", "no", "on", "off"):
        return f"write {str(str(given).lower() in ('yes', 'on')).lower()}."
    if error.kind in {"tuple_type", "list_type"}:
        return "begin each item on a line of its own with '- ', or put them in [ ]."
    return None


def _as_number(given: Any) -> str | None:
    """Say how to write the number that was meant."""
    if isinstance(given, float) and given.is_integer() and abs(given) < 1e15:
        return f"write {int(given)}."
    if not isinstance(given, str) or len(given) > 40:
        return None
    try:
        value = units.parse(given.replace("_", ""), "count")
    except InputError:
        return None
    if given.replace(".", "").isdigit():
        return f"write {given} without quotes." if value.is_integer() else None
    return f"write {int(value)}." if value.is_integer() and abs(value) < 1e9 else f"write {value:g}."


def _known_keys(owner: Any) -> set[str]:
    """Return the keys of a model; none for anything else."""
    if not _is_model(owner):
        return set()
    keys = {info.alias or key for key, info in owner.model_fields.items()}
    return keys | ({"schema"} if hasattr(owner, "schema_name") else set())
