"""Facts inside a part of a document, by dotted path: list them, take one, put one in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar, get_args

from zhenfa import units
from zhenfa.spec.document import Part
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Precision

P = TypeVar("P", bound=Part)

OPEN: Final[dict[str, units.Dimension]] = {"peak": "speed", "matmul": "ratio", "attention": "ratio"}
"""Mappings by precision to which a fact may be added, and its dimension."""


def dimensions(part: Part, prefix: str = "") -> Iterator[tuple[str, units.Dimension]]:
    """Yield the dotted path and dimension of every fact that the part has or may have."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        path = f"{prefix}{name}"
        if isinstance(value, Fact):
            yield path, value.dimension
        elif isinstance(value, Part):
            yield from dimensions(value, f"{path}.")
        elif name in OPEN:
            yield from ((f"{path}.{key}", OPEN[name]) for key in dict.fromkeys([*value, *get_args(Precision)]))


def take(part: Part, path: str) -> Fact | None:
    """Return the fact at a dotted path, or None."""
    here: object = part
    for step in path.split("."):
        here = here.get(step) if isinstance(here, dict) else getattr(here, step, None)
    return here if isinstance(here, Fact) else None


def put(part: P, path: str, fact: Fact) -> P:
    """Return a copy of the part with the fact at a dotted path that :func:`dimensions` lists."""
    first, _, rest = path.partition(".")
    here = getattr(part, first)
    value: object = fact
    if isinstance(here, dict):
        value = here | {rest: fact}
    elif rest:
        value = put(here, rest, fact)
    return part.model_copy(update={first: value})
