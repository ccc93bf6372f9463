"""A number with a unit, a source and a confidence: the only form in which facts enter."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final, Literal, Self, cast, get_args

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from zhenfa import cite, units
from zhenfa.errors import DocumentError, InputError, MissingFactError, near_misses, quote
from zhenfa.spec.document import Part

Tag = Literal["measured", "fitted", "datasheet", "claim", "assumed", "derived"]
"""What is exact, what is a model, what is a claim: every printed number carries one."""

Confidence = Literal[
    "vendor-datasheet",
    "vendor-via-compilation",
    "paper-measured",
    "bench-measured",
    "calibrated",
    "press",
    "estimate",
    "derived",
    "medium",
    "low",
    "stated",
    "assumed",
    "undisclosed",
]

TAG_OF: Final[dict[str, Tag]] = {
    "vendor-datasheet": "datasheet",
    "vendor-via-compilation": "datasheet",
    "paper-measured": "measured",
    "bench-measured": "measured",
    "calibrated": "measured",
    "press": "claim",
    "estimate": "assumed",
    "derived": "derived",
    "medium": "claim",
    "low": "assumed",
    "stated": "assumed",
    "assumed": "assumed",
    "undisclosed": "assumed",
}

WEAKNESS: Final[dict[Tag, int]] = {
    "measured": 0,
    "datasheet": 1,
    "derived": 2,
    "fitted": 3,
    "claim": 4,
    "assumed": 5,
}


def weakest(*tags: Tag) -> Tag:
    """Return the tag of a result that rests on inputs with these tags."""
    return max(tags, key=WEAKNESS.__getitem__, default="derived")


class Fact(Part):
    """One number. ``value`` is in the base unit of ``dimension``; None means that nobody has published it.

    ``unit`` is the one in which it was written, and in which it is written back. A computed value that no number of
    that unit hits exactly is written in the base unit, so that nothing drifts from file to file.
    """

    value: float | None
    dimension: units.Dimension
    unit: str = ""
    source: str = "this document"
    confidence: Confidence = "stated"
    note: str | None = None

    @model_validator(mode="after")
    def _written_exactly(self) -> Self:
        if self.value is not None and _in_unit(self.value, self.unit, self.dimension) is None:
            self.__dict__["unit"] = units.BASE[self.dimension]
        return self

    @property
    def tag(self) -> Tag:
        """Return where the number comes from, in one word."""
        return TAG_OF[self.confidence]

    @property
    def known(self) -> bool:
        """Return whether there is a value."""
        return self.value is not None

    def require(self, name: str) -> float:
        """Return the value and cite its source; raise :class:`MissingFactError` if nobody has published it.

        ``name`` is the dotted name under which ``--assume`` supplies it.
        """
        if self.value is None:
            raise missing(name, self.dimension, self.note)
        cite.use(self.source)
        return self.value

    def show(self) -> str:
        """Return the value for people."""
        return units.show(self.value, self.dimension)

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        value, unit = self.value, self.unit
        if value is not None:
            number = _in_unit(value, unit, self.dimension)
            value, unit = (value, units.BASE[self.dimension]) if number is None else (number, unit)
        plain = {"value": value, "unit": unit, "source": self.source, "confidence": self.confidence}
        return plain | ({"note": self.note} if self.note is not None else {})


def _in_unit(value: float, unit: str, dimension: units.Dimension) -> float | None:
    """Return the number of units that is read back to exactly ``value``, or None if there is none.

    Every value that was read in this unit has one, within two steps of the quotient.
    """
    scale = units.factor(unit, dimension)
    quotient = value / scale
    lower, upper = math.nextafter(quotient, -math.inf), math.nextafter(quotient, math.inf)
    steps = (lower, upper, math.nextafter(lower, -math.inf), math.nextafter(upper, math.inf))
    return next((n for n in (float(f"{quotient:.15g}"), quotient, *steps) if n * scale == value), None)


def missing(name: str, dimension: units.Dimension, note: str | None = None) -> MissingFactError:
    """Return the error for a value that nobody has published: which one, and how to supply it."""
    reason = f" ({note})" if note else ""
    value = units.example(dimension).split("'")[1]
    return MissingFactError(
        f"{name} is undisclosed{reason}, and this plan needs it.",
        hint=f'supply it with --assume {name}="{value}" (your value); the result is then tagged assumed.',
    )


def undisclosed(dimension: units.Dimension, note: str | None = None) -> Fact:
    """Return a fact that nobody has published."""
    return Fact(
        value=None, dimension=dimension, unit=units.BASE[dimension], source="undisclosed", confidence="undisclosed",
        note=note,
    )  # fmt: skip


def read_fact(raw: Any, dimension: units.Dimension) -> Fact:
    """Read ``"64 GB"``, a bare number in the base unit, or ``{value, unit, source, confidence, note}``.

    Raises :class:`UnitError` for text or a number, :class:`DocumentError` with the ``key`` at fault for a mapping.
    """
    if isinstance(raw, Fact):
        if raw.dimension != dimension:
            raise DocumentError(f"a quantity of {raw.dimension} stands where {dimension} is wanted.")
        return raw
    if isinstance(raw, dict):
        return _from_mapping(raw, dimension)
    if raw is None:
        return undisclosed(dimension)
    if not isinstance(raw, str | int | float):
        raise DocumentError(
            f"a quantity of {dimension} is text, or a mapping with value, unit, source and confidence.",
            hint=f"write {units.example(dimension)}.",
        )
    value = _not_negative(units.parse(raw, dimension))
    unit = units.split(raw, dimension)[1]
    return Fact(value=value, dimension=dimension, unit=units.BASE[dimension] if unit is None else unit)


_KEYS: Final = ("value", "unit", "source", "confidence", "note")


def _from_mapping(raw: dict[Any, Any], dimension: units.Dimension) -> Fact:
    for key in raw:
        if key not in _KEYS:
            from zhenfa.spec.explain import UnknownKeyError

            near = near_misses(str(key), _KEYS, limit=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownKeyError(
                f"{quote(key)} is not a key of a quantity.{guess}", hint=f"known: {', '.join(_KEYS)}.", key=str(key)
            )
    unit = _text(raw, "unit") or units.BASE[dimension]
    _at_key("unit", units.factor, unit, dimension)
    value = raw.get("value")
    if value is not None:
        value = _at_key("value", _value_in, value, unit, dimension)
    confidence = _text(raw, "confidence") or ("undisclosed" if value is None else "stated")
    if confidence not in get_args(Confidence):
        near = near_misses(confidence, get_args(Confidence), limit=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise DocumentError(
            f"{quote(confidence)} is not a confidence.{guess}",
            hint=f"it is one of {', '.join(get_args(Confidence))}.",
            key="confidence",
        )
    source = _text(raw, "source")
    return Fact(
        value=value, dimension=dimension, unit=unit, source="this document" if source is None else source,
        confidence=cast(Confidence, confidence), note=_text(raw, "note"),
    )  # fmt: skip


def _value_in(raw: Any, unit: str, dimension: units.Dimension) -> float:
    """Return ``raw`` times ``unit`` in the base unit; text may name a unit of its own instead."""
    number, own = units.split(raw, dimension)
    value = number * units.factor(unit if own is None else own, dimension)
    if not math.isfinite(value):
        raise DocumentError("this is more than a number can hold.")
    return _not_negative(value)


def _text(raw: dict[Any, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise DocumentError("text is wanted.", key=key, hint="put it in quotes.")
    return value


def _at_key(key: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``read``; an error of it is laid at ``key``."""
    try:
        return read(*arguments)
    except InputError as problem:
        raise DocumentError(problem.message, hint=problem.hint, key=key) from None


def _not_negative(value: float) -> float:
    if value < 0:
        raise DocumentError("a quantity is zero or more.")
    return value


def _reader(dimension: units.Dimension) -> Callable[[Any], Fact]:
    return partial(read_fact, dimension=dimension)


Data = Annotated[Fact, BeforeValidator(_reader("data"))]
Rate = Annotated[Fact, BeforeValidator(_reader("rate"))]
Time = Annotated[Fact, BeforeValidator(_reader("time"))]
Power = Annotated[Fact, BeforeValidator(_reader("power"))]
Speed = Annotated[Fact, BeforeValidator(_reader("speed"))]
Ratio = Annotated[Fact, BeforeValidator(_reader("ratio"))]
Price = Annotated[Fact, BeforeValidator(_reader("money/time"))]
Count = Annotated[Fact, BeforeValidator(_reader("count"))]
Pace = Annotated[Fact, BeforeValidator(_reader("tokens/s"))]


def empty(dimension: units.Dimension) -> Any:
    """Return a field default: undisclosed."""
    return Field(default_factory=lambda: undisclosed(dimension))
