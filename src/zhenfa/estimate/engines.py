"""Training engines: what each software family does beside the cards, as data, matched by the words of its name.

``catalog/data/training_engines.yaml`` describes a family once, what its versions change, and what its kernels reach on
a generation of cards. A name that nothing matches gets the default, and says so.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any, Final

from zhenfa import cite
from zhenfa.catalog import files
from zhenfa.estimate.traits import MEGATRON_LIKE, OWN_RUNTIME, Traits, on_processors
from zhenfa.spec.machine import Formation

FILE: Final = files.ROOT / "training_engines.yaml"
FITS: Final = files.ROOT / "training_fits.yaml"
EVERY: Final = "every"
"""The key of traits that are fitted to all engines and cards alike."""
_LISTS: Final = (
    "fused",
    "lean",
    "zero_stages",
    "recompute",
    "summed_whole",
    "summed_alone",
    "selective",
    "planned_again",
    "adapted",
)


@dataclass(frozen=True)
class Engine:
    """One software family as a row or a user names it, on one kind of card.

    ``known`` is False where nothing matched the name and the default stands in. ``source`` and ``confidence`` are of
    the description as a whole.
    """

    id: str
    family: str
    traits: Traits
    source: str
    confidence: str
    known: bool = True


def find(software: str | None, *, card: str = "", hint: str = "") -> Engine:
    """Return the engine that a name stands for, on the accelerator of that id.

    ``hint`` is searched where the name is empty or unknown.

    >>> find("NeMo 26.02 / Megatron-Bridge").family, find("my own trainer").known
    ('Megatron-Core', False)
    """
    for words in (software or "", hint):
        for entry in _document()["engines"]:
            if words and re.search(entry["match"], words, re.IGNORECASE):
                return _engine(entry["id"], words, card)
    default = next(entry for entry in _document()["engines"] if entry.get("default"))
    return dataclasses.replace(_engine(default["id"], "", card), known=False)


@dataclass(frozen=True)
class Planned:
    """The engine that plans for a machine are meant for, what changes on each pool's cards, and what was assumed."""

    traits: Traits
    changes: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]


def for_machine(formation: Formation) -> Planned:
    """Return the engine that plans for a machine are meant for: our own on processors, else the default family.

    On cards of a generation that no training row was measured on, matmuls reach what they reach on the median
    generation.
    """
    if formation.emulated or on_processors(formation):
        return Planned(OWN_RUNTIME, {}, ())
    default = next(str(entry["id"]) for entry in _document()["engines"] if entry.get("default"))
    common = _engine(default, "", "").traits
    changes, notes = {}, [f"engine: {common.name}"]
    for pool in formation.pools:
        card = pool.accelerator.id
        here = _engine(default, "", card).traits
        known = "matmul_share" in (fits().get(generation(card)) or {})
        changes[pool.name] = {
            name: value for name in _FIELDS if (value := getattr(here, name)) != getattr(common, name)
        }
        origin = f"fitted to runs on {generation(card)} cards" if known else "median of the generations measured"
        notes.append(
            f"{card}: matmuls of a long step reach {here.matmul_share:.0%} of a single kernel's speed ({origin})"
        )
    return Planned(common, changes, tuple(notes))


def usual_share() -> float:
    """Return the median over generations of the matmul speed in a long step over that of a single kernel.

    It stands for cards of a generation on which no step has been measured.
    """
    found = [
        entry["matmul_share"]
        for name in _document()["generations"]
        if "matmul_share" in (entry := fits().get(name) or {})
    ]
    return float(median(_value("matmul_share", one) for one in found)) if found else 1.0


def families() -> tuple[str, ...]:
    """Return the names of all families."""
    return tuple(dict.fromkeys(str(entry["family"]) for entry in _document()["engines"]))


@cache
def _document() -> Mapping[str, Any]:
    files.sources()
    document: Mapping[str, Any] = files.read(FILE)
    return document


_fits: Mapping[str, Mapping[str, Any]] | None = None


def fits() -> Mapping[str, Mapping[str, Any]]:
    """Return fitted traits by what they belong to: a generation of cards, an engine, or ``engine/generation``."""
    if _fits is None:
        use_fits(files.read(FITS)["fits"])
    return _fits or {}


def use_fits(table: Mapping[str, Mapping[str, Any]]) -> None:
    """Use these fitted traits instead of the packaged ones, as the tool that fits them does."""
    global _fits  # noqa: PLW0603
    _fits = table
    _made.cache_clear()


def lineage(identifier: str) -> tuple[str, ...]:
    """Return the ids of an engine and of those that it is based on."""
    return tuple(str(entry["id"]) for entry in _lineage(identifier))


def generation(card: str) -> str:
    """Return the generation of an accelerator's id; empty where none is described.

    >>> generation("nvidia-h200-sxm")
    'hopper'
    """
    generations = _document()["generations"]
    return next((name for name, match in generations.items() if card and re.search(match, card)), "")


def _lineage(identifier: str) -> list[Mapping[str, Any]]:
    """Return the entry of an engine after those that it is based on."""
    entry: Mapping[str, Any] = next(item for item in _document()["engines"] if item["id"] == identifier)
    return [*(_lineage(entry["like"]) if "like" in entry else []), entry]


def _engine(identifier: str, words: str, card: str) -> Engine:
    """Return an engine on a card, and note its source: a cache must not keep that from a second answer."""
    found = _made(identifier, words, card)
    cite.use(found.source)
    return found


@cache
def _made(identifier: str, words: str, card: str) -> Engine:
    entry = _lineage(identifier)[-1]
    traits = dataclasses.replace(MEGATRON_LIKE, name=str(entry["family"]))
    family = generation(card)
    traits = _where(traits, _document()["cards"], card)
    traits = _with(traits, fits().get(EVERY) or {})
    traits = _with(traits, {"matmul_share": usual_share(), **(fits().get(family) or {})})
    for each in _lineage(identifier):
        traits = _with(traits, each.get("traits") or {})
        traits = _where(traits, each.get("versions") or (), words)
        traits = _with(traits, fits().get(each["id"]) or {})
        traits = _where(traits, each.get("cards") or (), card)
        traits = _with(traits, fits().get(f"{each['id']}/{family}") or {})
    return Engine(entry["id"], entry["family"], traits, entry["source"], entry["confidence"])


def _where(traits: Traits, entries: Sequence[Mapping[str, Any]], words: str) -> Traits:
    """Return traits with the changes of the first entry whose match is found in ``words``."""
    for entry in entries:
        if words and re.search(entry["match"], words, re.IGNORECASE):
            return _with(traits, entry["traits"])
    return traits


_FIELDS: Final = frozenset(item.name for item in dataclasses.fields(Traits))


def _with(base: Traits, changes: Mapping[str, Any]) -> Traits:
    return base.but(**{key: _value(key, value) for key, value in changes.items() if key in _FIELDS})


def _value(key: str, value: Any) -> Any:
    """Return a trait as the class holds it; a number may stand with its unit, source and spread."""
    if isinstance(value, Mapping) and "value" in value:
        value = value["value"]
    if key in _LISTS and isinstance(value, list):
        return frozenset(value) if key in ("fused", "lean") else tuple(value)
    return value


def switch(engine: Engine, name: str) -> Mapping[str, Any]:
    """Return the traits that a flag of the engine turns on, such as ``tensor-overlap``; empty where it has none."""
    for entry in reversed([{"switches": _document().get("switches")}, *_lineage(engine.id)]):
        changes = (entry.get("switches") or {}).get(name)
        if changes is not None:
            return {key: _value(key, value) for key, value in changes.items() if key in _FIELDS}
    return {}
