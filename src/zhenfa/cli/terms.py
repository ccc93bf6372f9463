"""The terms of the field, in English and Chinese: what ``zhenfa explain`` and ``zhenfa show terms`` print."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from zhenfa.errors import UnknownNameError
from zhenfa.spec import yaml

FILE: Final = Path(__file__).with_name("terms.yaml")

Polarity = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Term:
    """One term.

    ``unit`` is None for what is not a quantity. ``polarity`` is the better direction. ``see`` names related terms.
    ``law`` is the function of ``zhenfa.laws`` that computes it, as ``module.function``.
    """

    name: str
    chinese: str
    meaning: str
    meaning_chinese: str
    unit: str | None
    polarity: Polarity
    see: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    formula: str | None = None
    law: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return every name under which the term is found."""
        return (self.name, *self.aliases, self.chinese)


@cache
def terms() -> dict[str, Term]:
    """Return every term by its name, in the order of the file: from cards to trust."""
    data, _ = yaml.read(FILE.read_bytes(), str(FILE))
    if not isinstance(data, dict):
        raise TypeError(f"{FILE} is not a mapping")
    items = [Term(**item | {"see": tuple(item["see"]), "aliases": tuple(item["aliases"])}) for item in data["terms"]]
    return {item.name: item for item in items}


@cache
def _index() -> dict[str, Term]:
    return {_fold(name): term for term in terms().values() for name in term.names}


def _fold(text: str) -> str:
    """Leave out case, blanks, hyphens and underscores: "All Reduce" is "all-reduce"."""
    return "".join(character for character in text.casefold() if character not in " -_\t")


def find(text: str) -> Term:
    """Return the term of that name, alias or Chinese name; case, blanks and hyphens do not count.

    Raises :class:`UnknownNameError` with near misses.
    """
    term = _index().get(_fold(text))
    if term is not None:
        return term
    known = [name for item in terms().values() for name in item.names]
    raise UnknownNameError("term", text, known, hint=f"`zhenfa show terms` lists all {len(terms())}.")
