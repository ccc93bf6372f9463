"""A number with a unit, a source and a confidence: the only form in which facts enter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator, Field, model_serializer

from zhenfa import cite, units
from zhenfa.errors import InputError, MissingFactError
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
    """One number. ``value`` is in the base unit of ``dimension``; None means that nobody has published it."""

    value: float | None
    dimension: units.Dimension
    unit: str = ""
    source: str = "this document"
    confidence: Confidence = "stated"
    note: str | None = None

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
        value = None if self.value is None else self.value / units.factor(self.unit, self.dimension)
        plain = {"value": value, "unit": self.unit, "source": self.source, "confidence": self.confidence}
        return plain | ({"note": self.note} if self.note else {})


def missing(name: str, dimension: units.Dimension, note: str | None = None) -> MissingFactError:
    """Return the error for a value that nobody has published: which one, and how to supply it."""
    reason = f" ({note})" if note else ""
    example = {"data": "64 GB", "rate": "400 GB/s", "speed": "400 TFLOPS", "time": "2 us", "power": "600 W"}
    value = example.get(dimension, "1")
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
    """Read ``"64 GB"``, a bare number in the base unit, or ``{value, unit, source, confidence, note}``."""
    if isinstance(raw, Fact):
        return raw
    if isinstance(raw, dict):
        return _from_mapping(dict(raw), dimension)
    if raw is None:
        return undisclosed(dimension)
    if not isinstance(raw, str | int | float):
        raise InputError("a quantity is text such as '64 GB', or a mapping with value, unit, source, confidence.")
    value = _not_negative(units.parse(raw, dimension), raw)
    return Fact(value=value, dimension=dimension, unit=units.BASE[dimension])


def _from_mapping(raw: dict[str, Any], dimension: units.Dimension) -> Fact:
    unit = str(raw.pop("unit", None) or units.BASE[dimension])
    value = raw.pop("value", None)
    scale = units.factor(unit, dimension)
    if value is not None:
        value = _not_negative(units.parse(value, dimension) * scale, f"{value} {unit}")
    confidence = raw.pop("confidence", "undisclosed" if value is None else "stated")
    if confidence not in get_args(Confidence):
        raise InputError(f"{confidence!r} is not a confidence.", hint=f"one of {', '.join(get_args(Confidence))}.")
    source, note = raw.pop("source", "this document"), raw.pop("note", None)
    if raw:
        raise InputError(
            f"{next(iter(raw))!r} is not a key of a quantity.", hint="known: value, unit, source, confidence, note."
        )
    return Fact(value=value, dimension=dimension, unit=unit, source=source, confidence=confidence, note=note)


def _not_negative(value: float, raw: Any) -> float:
    if value < 0:
        raise InputError(f"{raw!r} is negative.")
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


def empty(dimension: units.Dimension) -> Any:
    """Return a field default: undisclosed."""
    return Field(default_factory=lambda: undisclosed(dimension))
