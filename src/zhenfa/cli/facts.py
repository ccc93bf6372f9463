"""The facts of a catalog entry as rows: value, tag, confidence, source, note; and what nobody has published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from zhenfa import cite, units
from zhenfa.cli.tables import Column, Table, table
from zhenfa.cli.words import quantity
from zhenfa.spec.fact import TAG_OF, Fact
from zhenfa.spec.machine import Achievable, CardPool, Formation, TextFact

EXAMPLES: Final[dict[units.Dimension, str]] = {
    "data": "64 GB", "rate": "1.6 TB/s", "power": "700 W", "speed": "400 TFLOPS", "money/time": "18 CNY/h",
    "time": "2 us", "ratio": "1.2",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One fact under its dotted name, as it is shown."""

    name: str
    value: str
    tag: str
    confidence: str
    source: str
    note: str


def rows_of(part: BaseModel, prefix: str = "") -> Iterator[Row]:
    """Yield every published fact of a part, with its dotted name, and those that were looked for in vain."""
    for key in type(part).model_fields:
        yield from _rows(getattr(part, key), f"{prefix}{key}")


def _rows(value: Any, path: str) -> Iterator[Row]:
    if isinstance(value, Fact):
        if not _silent(value):
            yield row(path, value)
    elif isinstance(value, TextFact):
        yield _words(path, value.model_dump())
    elif isinstance(value, BaseModel):
        yield from rows_of(value, f"{path}.")
    elif isinstance(value, Mapping) and "confidence" in value:
        yield _words(path, value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _rows(item, f"{path}.{key}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            name = getattr(item, "name", None) or getattr(item, "id", None) or str(index)
            yield from _rows(item, f"{path}.{name}")


def _silent(fact: Fact) -> bool:
    """Return whether a fact is empty and nothing is said of it."""
    return fact.value is None and fact.note is None and fact.source == "undisclosed"


def row(name: str, fact: Fact) -> Row:
    """Return one fact as it is shown."""
    cite.use(fact.source)
    tag = fact.tag if fact.known else "-"
    return Row(name, quantity(fact), tag, fact.confidence if fact.known else "-", fact.source, fact.note or "")


def _words(name: str, found: Mapping[str, Any]) -> Row:
    """Return a published figure that is kept as it was read."""
    source, confidence, value = str(found.get("source") or "-"), str(found["confidence"]), found.get("value")
    cite.use(source)
    number = f"{value:,.15g}" if isinstance(value, int | float) else str(value)
    shown = "undisclosed" if value is None else f"{number} {found.get('unit') or ''}".strip()
    tag = TAG_OF.get(confidence, "assumed") if value is not None else "-"
    return Row(name, shown, tag, confidence if value is not None else "-", source, str(found.get("note") or ""))


def empty_of(part: BaseModel) -> list[str]:
    """Return the names of the facts that are empty and of which nothing is said.

    Coefficients that only calibration fills are no part of it.
    """
    names = []
    for key in type(part).model_fields:
        value = getattr(part, key)
        if isinstance(value, Fact) and _silent(value):
            names += [] if isinstance(part, Achievable) and key not in {"memory", "launch"} else [key]
        elif isinstance(value, BaseModel) and not isinstance(value, Fact | TextFact):
            names += [f"{key}.{name}" for name in empty_of(value)]
    return names


def fact_table(rows: Iterable[Row]) -> Table:
    """Return the rows as a table; notes stand beside or below."""
    found = list(rows)
    columns = (
        Column("fact", style="strong"), Column("value", right=True, wrap=16), Column("tag"),
        Column("confidence", drop=2), Column("source", wrap=14),
    )  # fmt: skip
    body = [(one.name, one.value, one.tag, one.confidence, one.source) for one in found]
    return table(columns, body, notes=[one.note for one in found])


@dataclass(frozen=True)
class Need:
    """A value that nobody has published and that an answer needs; ``name`` is that of ``--assume``."""

    name: str
    dimension: units.Dimension
    needed_for: str
    note: str = ""
    example: str = ""

    @property
    def path(self) -> str:
        """Return the name without that of the card, pool or machine."""
        return self.name.partition(".")[2]

    @property
    def assume(self) -> str:
        """Return the option that supplies it, with a value that is only an example."""
        return f'--assume {self.name}="{self.example or EXAMPLES[self.dimension]}"'


def needs_of(formation: Formation) -> list[Need]:
    """Return what a plan on the machine needs and nobody has published, each under its name for ``--assume``."""
    found = [need for pool in formation.pools for need in (*_card_needs(pool), *_tier_needs(pool))]
    network = formation.network
    if network is not None and len(formation.pools) > 1 and not network.bandwidth.known:
        found.append(Need(f"{formation.name}.network.bandwidth", "rate", "plans across pools", example="50 GB/s"))
    return list({need.name: need for need in found}.values())


def extras_of(formation: Formation) -> list[Need]:
    """Return what energy and cost need and nobody has published. A plan is found without it."""
    if formation.emulated:
        return []
    found = [
        Need(f"{pool.name}.power_per_card", "power", "the energy wall")
        for pool in formation.pools
        if not pool.power_per_card.known and not pool.accelerator.tdp.known
    ]
    if not formation.pue.known:
        found.append(Need(f"{formation.name}.pue", "ratio", "energy at the meter", formation.pue.note or ""))
    prices = [pool.accelerator for pool in formation.pools if not pool.accelerator.price.known]
    found += [Need(f"{card.id}.price", "money/time", "the cost of a run") for card in prices]
    return list({need.name: need for need in found}.values())


def _card_needs(pool: CardPool) -> Iterator[Need]:
    card = pool.accelerator
    if not any(fact.known for key, fact in card.peak.items() if not key.startswith("int")):
        given = card.peak.get("bf16")
        yield Need(f"{card.id}.peak.bf16", "speed", "every plan", (given.note if given else None) or "")
    for key in ("capacity", "bandwidth"):
        fact = getattr(card.memory, key)
        if not fact.known:
            yield Need(f"{card.id}.memory.{key}", fact.dimension, "every plan", fact.note or "")


def _tier_needs(pool: CardPool) -> Iterator[Need]:
    for tier in pool.tiers:
        if not tier.bandwidth.known:
            name = f"{pool.name}.tiers.{tier.name}.bandwidth"
            yield Need(name, "rate", "layouts that cross this tier", tier.bandwidth.note or "", "100 GB/s")


def need_table(needs: Iterable[Need]) -> Table:
    """Return what is undisclosed as a table."""
    found = list(needs)
    notes = [f"{need.needed_for} ({need.note})" if need.note else need.needed_for for need in found]
    return table(
        (Column("supply your value with", style="strong"),), [(need.assume,) for need in found], notes=notes,
        title="needed for",
    )  # fmt: skip
