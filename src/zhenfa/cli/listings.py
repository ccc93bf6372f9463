"""``zhenfa show KIND``: the entries of one kind, a line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from zhenfa import catalog
from zhenfa.cli.console import Output
from zhenfa.cli.facts import Need, needs_of
from zhenfa.cli.tables import Column, Table, table
from zhenfa.cli.terms import terms
from zhenfa.cli.words import EMULATED, LEGEND, parameters, short
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Accelerator, Formation

if TYPE_CHECKING:
    from zhenfa.cli.catalog_documents import MachineLine

MEANING: Final = {
    "machines": "pools that a job can be planned on",
    "systems": "supernodes, nodes and pods as one buys them",
    "accelerators": "cards of every maker",
    "links": "scale-up and scale-out technologies",
    "models": "language models as operator graphs",
    "terms": "words of the field, explained in English and Chinese",
}


def overview(output: Output) -> None:
    """Print what kinds there are."""
    counts = {
        "machines": len(catalog.machine_names()), "systems": len(catalog.systems()),
        "accelerators": len(catalog.accelerators()), "links": len(catalog.links()), "models": len(catalog.models()),
        "terms": len(terms()),
    }  # fmt: skip
    if output.as_json:
        from zhenfa.cli.catalog_documents import Catalog

        output.document(Catalog(counts=counts))
        return
    columns = (
        Column("kind", style="strong"),
        Column("entries", right=True),
        Column("what", wrap=20),
        Column("command"),
    )
    rows = [(kind, str(count), MEANING[kind], f"zhenfa show {kind}") for kind, count in counts.items()]
    _print(output, table(columns, rows))


def accelerators(output: Output) -> None:
    """Print every accelerator."""
    items = list(catalog.accelerators().values())
    if output.as_json:
        from zhenfa.cli.catalog_documents import Accelerators, plain

        output.document(Accelerators(accelerators=tuple(plain(item) for item in items)))
        return
    columns = (
        Column("accelerator", style="strong"), Column("maker", drop=2, wrap=14), Column("matmul peak", right=True),
        Column("memory", right=True), Column("bandwidth", right=True), Column("scale-up", right=True, drop=3),
        Column("TDP", right=True, drop=4), Column("torch", drop=5), Column(""),
    )  # fmt: skip
    rows = [
        (
            item.id, item.maker, short(matmul_peak(item)), short(item.memory.capacity), short(item.memory.bandwidth),
            short(item.scale_up.bandwidth), short(item.tdp), item.software.torch_device if item.software else "-",
            EMULATED if item.emulated else "",
        )
        for item in items
    ]  # fmt: skip
    _print(output, table(columns, rows), "Matmul peak: dense BF16, else FP16, else what the maker states. " + LEGEND)


def matmul_peak(item: Accelerator) -> Fact | None:
    """Return the published peak that a BF16 matmul is held against: of the matrix units alone where it is known."""
    wanted = ("bf16_cube", "bf16", "fp16", "aggregate_dtype_unstated", "fp32")
    return next((fact for key in wanted if (fact := item.peak.get(key)) is not None and fact.known), None)


def systems(output: Output) -> None:
    """Print every system."""
    items = list(catalog.systems().values())
    if output.as_json:
        from zhenfa.cli.catalog_documents import Systems, plain

        output.document(Systems(systems=tuple(plain(item) for item in items)))
        return
    columns = (
        Column("system", style="strong"), Column("vendor", drop=3, wrap=12), Column("cards", right=True),
        Column("of", wrap=18), Column("scale-up", right=True), Column("power", right=True),
        Column("PUE", right=True, drop=2), Column("status", drop=4, wrap=24),
    )  # fmt: skip
    rows = [
        (
            item.id, item.vendor, f"{item.count:,}", item.accelerator or "brand undisclosed",
            short(item.tiers[0].bandwidth if item.tiers else None), short(item.power), short(item.pue),
            item.status or "",
        )
        for item in items
    ]  # fmt: skip
    _print(output, table(columns, rows), "Scale-up: per card and direction, in the innermost tier. " + LEGEND)


def machines(output: Output) -> None:
    """Print every machine, and what a plan on it needs that nobody has published."""
    found: list[tuple[Formation, list[Need]]] = []
    for name in catalog.machine_names():
        formation = catalog.resolve(catalog.machine(name))
        found.append((formation, needs_of(formation)))
    if output.as_json:
        from zhenfa.cli.catalog_documents import Machines

        lines = [_machine_line(one, needs) for one, needs in found]
        output.document(Machines(machines=tuple(lines)))
        return
    columns = (
        Column("machine", style="strong"), Column("cards", right=True), Column("pools", wrap=24),
        Column("title", drop=1, wrap=28), Column("a plan needs", wrap=24),
    )  # fmt: skip
    rows = [
        (
            one.name, f"{one.cards:,}", _pools(one), one.title.removeprefix(f"{EMULATED}: "),
            ", ".join(need.path for need in needs) or "-",
        )
        for one, needs in found
    ]  # fmt: skip
    _print(
        output,
        table(columns, rows),
        "A plan needs: values that nobody has published; `zhenfa show MACHINE` gives the --assume that supplies them.",
    )


def _machine_line(formation: Formation, needs: list[Need]) -> MachineLine:
    from zhenfa.cli.catalog_documents import MachineLine, PoolLine

    pools = [
        PoolLine(name=pool.name, count=pool.count, accelerator=pool.accelerator.id, maker=pool.maker)
        for pool in formation.pools
    ]
    return MachineLine(
        name=formation.name, title=formation.title, cards=formation.cards, emulated=formation.emulated,
        pools=tuple(pools), undisclosed=tuple(need.name for need in needs),
    )  # fmt: skip


def _pools(formation: Formation) -> str:
    mark = f"{EMULATED}: " if formation.emulated else ""
    return mark + " + ".join(f"{pool.count:,} {pool.accelerator.id}" for pool in formation.pools)


def links(output: Output) -> None:
    """Print every link technology."""
    items = list(catalog.links().values())
    if output.as_json:
        from zhenfa.cli.catalog_documents import Links, plain

        output.document(Links(links=tuple(plain(item) for item in items)))
        return
    columns = (
        Column("link", style="strong"), Column("owner", wrap=16), Column("bandwidth", right=True),
        Column("latency", right=True), Column("joins", right=True),
    )  # fmt: skip
    rows = [(item.id, item.owner, short(item.bandwidth), short(item.latency), short(item.max_domain)) for item in items]
    shown = table(columns, rows, notes=[item.note or "" for item in items])
    _print(output, shown, "Bandwidth: per card and direction. Joins: cards at most. " + LEGEND)


def models(output: Output) -> None:
    """Print every model with the parameters counted from its operators."""
    found = [catalog.model(name) for name in catalog.models()]
    if output.as_json:
        from zhenfa.cli.catalog_documents import ModelLine, Models

        lines = [
            ModelLine(
                name=item.name, title=item.title, parameters=item.graph().parameters, layers=item.layer_count,
                active_parameters=item.graph().active_parameters, hidden=item.hidden_size,
                vocabulary=item.vocabulary_size,
            )
            for item in found
        ]  # fmt: skip
        output.document(Models(models=tuple(lines)))
        return
    columns = (
        Column("model", style="strong"), Column("parameters", right=True), Column("active", right=True),
        Column("layers", right=True), Column("hidden", right=True), Column("vocabulary", right=True, drop=1),
        Column("title", drop=2),
    )  # fmt: skip
    rows = [
        (
            item.name, parameters(item.graph().parameters), parameters(item.graph().active_parameters),
            str(item.layer_count), f"{item.hidden_size:,}", f"{item.vocabulary_size:,}", item.title or "",
        )
        for item in found
    ]  # fmt: skip
    _print(output, table(columns, rows), "Parameters: counted from the operators; active: those that one token meets.")


def all_terms(output: Output) -> None:
    """Print every term."""
    items = list(terms().values())
    if output.as_json:
        from zhenfa.cli.catalog_documents import TermLine, Terms

        lines = [
            TermLine(
                name=term.name, chinese=term.chinese, aliases=term.aliases, unit=term.unit, meaning=term.meaning,
                meaning_chinese=term.meaning_chinese,
            )
            for term in items
        ]  # fmt: skip
        output.document(Terms(terms=tuple(lines)))
        return
    columns = (Column("term", style="strong"), Column("中文"), Column("meaning", wrap=30))
    _print(output, table(columns, [(term.name, term.chinese, term.meaning) for term in items]))


LISTINGS: Final[dict[str, Callable[[Output], None]]] = {
    "machines": machines,
    "systems": systems,
    "accelerators": accelerators,
    "links": links,
    "models": models,
    "terms": all_terms,
}


def _print(output: Output, shown: Table, legend: str = "") -> None:
    left_out = output.data.table(shown)
    if legend:
        output.data.line()
        output.data.text(legend, style="dim")
    output.left_out(left_out)
