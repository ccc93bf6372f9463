"""Hypothesis strategies for plain data that a document type reads, built from its annotations."""

from __future__ import annotations

import types
import typing
from functools import cache
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from zhenfa import units
from zhenfa.spec.fact import Confidence

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
HARSH = ("\U000f0000", "\u202e", "\xad", "x" * 200)
WORDS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp")), max_size=20),
    st.sampled_from(HARSH),
)
POSITIVE = st.floats(1e-6, 1e6)
NUMBERS = st.floats(0, 1e15) | st.integers(0, 10**15) | st.floats(0, 1)


def quantities(dimension: units.Dimension) -> st.SearchStrategy[Any]:
    """Draw a quantity in every form in which one is written."""
    unit = st.sampled_from(sorted(units._TABLE[dimension]))
    mapping = st.fixed_dictionaries(
        {},
        optional={
            "value": st.none() | NUMBERS | st.builds(lambda number, unit: f"{number} {unit}", NUMBERS, unit),
            "unit": unit,
            "source": WORDS,
            "confidence": st.sampled_from(get_args(Confidence)),
            "note": WORDS,
        },
    )
    text = st.builds(lambda number, unit: f"{number!r} {unit}", NUMBERS, unit)
    return st.none() | NUMBERS | text | mapping


@cache
def documents(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw plain data of which ``model`` refuses nothing field by field; its own validators may still object."""
    required = {key: _field(info) for key, info in model.model_fields.items() if info.is_required()}
    optional = {key: _field(info) for key, info in model.model_fields.items() if not info.is_required()}
    return st.fixed_dictionaries(required, optional=optional)


def _field(info: FieldInfo) -> st.SearchStrategy[Any]:
    return _draw(info.annotation, tuple(info.metadata))


def _draw(annotation: Any, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _draw(arguments[0], (*arguments[1:], *metadata))
    for item in metadata:
        if isinstance(item, BeforeValidator) and item.func.func is units.parse:  # type: ignore[union-attr]
            return POSITIVE | st.builds(lambda number: f"{number!r} ms", POSITIVE)
        if isinstance(item, BeforeValidator):
            return quantities(item.func.keywords["dimension"])  # type: ignore[union-attr]
        if isinstance(item, FieldInfo):
            return _draw(annotation, tuple(item.metadata))
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_draw(argument) for argument in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        least = next((item.min_length for item in metadata if isinstance(item, MinLen)), 0)
        if arguments[-1] is Ellipsis:
            return st.lists(_draw(arguments[0]), min_size=least, max_size=least + 1)
        return st.tuples(*map(_draw, arguments)).map(list)
    if origin is dict:
        return st.dictionaries(_draw(arguments[0]), _draw(arguments[1]), max_size=2)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return st.deferred(lambda: documents(annotation))
    return _scalar(annotation, metadata)


def _scalar(annotation: Any, metadata: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if annotation is type(None):
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return NAMES if any(getattr(item, "pattern", None) for item in metadata) else WORDS
    low = next((item.ge for item in metadata if isinstance(item, Ge)), None)
    above = next((item.gt for item in metadata if isinstance(item, Gt)), None)
    high = next((item.le for item in metadata if isinstance(item, Le)), 10**6)
    below = next((item.lt for item in metadata if isinstance(item, Lt)), None)
    assert not any(isinstance(item, MaxLen) for item in metadata)
    if annotation is int:
        return st.integers(low if low is not None else -(10**6), high)
    assert annotation is float, annotation
    least = above if above is not None else low
    if below is not None:
        return st.floats(least, float(below), exclude_min=above is not None, exclude_max=True)
    return st.floats(-1e9 if least is None else least, float(high), exclude_min=above is not None) | st.integers(
        1, int(high)
    )
