"""``zhenfa show NAME``: one accelerator, system, link or machine. Every number with its unit, source and confidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from zhenfa import catalog, cite
from zhenfa.catalog.facts import dimensions, take
from zhenfa.cli.console import Output
from zhenfa.cli.facts import Row, empty_of, extras_of, fact_table, need_table, needs_of, row, rows_of
from zhenfa.cli.model_page import model
from zhenfa.cli.tables import Column, table
from zhenfa.cli.words import EMULATED, LEGEND, short
from zhenfa.spec.machine import Accelerator, CardPool, Claim, Formation, Link, Machine, Network, Software, System

EMULATION: Final = "EMULATED: processes on this host held to declared speeds; no measurement of any accelerator."


def accelerator(item: Accelerator, output: Output) -> None:
    """Print an accelerator."""
    rows = list(rows_of(item))
    if output.as_json:
        from zhenfa.cli.catalog_documents import AcceleratorEntry, plain

        output.document(AcceleratorEntry(accelerator=plain(item), sources=_bibliography(rows)))
        return
    _title(output, item.id, item.emulated, f"{item.name} ({item.maker}{f', {item.year}' if item.year else ''})")
    if item.emulated:
        output.data.text(EMULATION, style="warn")
    _labels(output, {
        "also": ", ".join(item.aliases), "counted as": item.granularity or "", "status": item.status or "",
        "devices": f"{item.devices} to torch" if item.devices > 1 else "", "note": item.note or "",
        "software": _software(item.software),
    })  # fmt: skip
    _facts(output, rows, empty_of(item))
    _conflicts(output, item)
    _remarks(output, (), item.traps)


def _software(software: Software | None) -> str:
    if software is None:
        return ""
    cite.use(software.source or "this document")
    library = f" ({software.collective_library})" if software.collective_library else ""
    tool = f", tool {software.smi}" if software.smi else ""
    where = f"; source {software.source}, {software.confidence}" if software.source else ""
    return f"torch device {software.torch_device}, collectives {software.collective_backend}{library}{tool}{where}"


def _conflicts(output: Output, item: Accelerator) -> None:
    if not item.conflicts:
        return
    output.data.head("Sources that disagree")
    for conflict in item.conflicts:
        values = "; ".join(f"{value.get('value')} ({value.get('source')})" for value in conflict.values)
        output.data.items([f"{conflict.field}: {values}" + (f"; {conflict.prefer} is used" if conflict.prefer else "")])


def system(item: System, output: Output) -> None:
    """Print a supernode, node or pod."""
    rows = list(rows_of(item))
    if output.as_json:
        from zhenfa.cli.catalog_documents import SystemEntry, plain

        output.document(SystemEntry(system=plain(item), sources=_bibliography(rows)))
        return
    _title(output, item.id, False, f"{item.name} ({item.vendor}{f', {item.year}' if item.year else ''})")
    _labels(output, {
        "also": ", ".join(item.aliases), "cards": f"{item.count:,} x {item.accelerator or 'brand undisclosed'}",
        "status": item.status or "", "cooling": item.cooling or "", "note": item.note or "",
        "joined by": item.scale_out.network or "",
    })  # fmt: skip
    for tier in item.tiers:
        reduction = ", reduces in the network" if tier.in_network_reduction else ""
        about = f"{tier.size:,} cards, {tier.topology}{reduction}"
        output.data.text(f"{about}. {tier.description}" if tier.description else about, first=f"tier {tier.name}: ")
    _facts(output, rows, empty_of(item))
    _remarks(output, item.claims, item.traps)


def link(item: Link, output: Output) -> None:
    """Print a link technology."""
    rows = list(rows_of(item))
    if output.as_json:
        from zhenfa.cli.catalog_documents import LinkEntry, plain

        output.document(LinkEntry(link=plain(item), sources=_bibliography(rows)))
        return
    _title(output, item.id, False, item.owner)
    yes_no = {True: "yes", False: "no", None: ""}
    _labels(output, {
        "also": ", ".join(item.aliases), "load and store": yes_no[item.load_store],
        "reduces in the network": item.in_network_reduction or "", "note": item.note or "",
    })  # fmt: skip
    _facts(output, rows, empty_of(item))


def machine(item: Machine, output: Output) -> None:
    """Print a machine with everything looked up. Raises :class:`zhenfa.errors.InputError` if it does not hold."""
    formation = catalog.resolve(item)
    if output.as_json:
        _machine_document(item, formation, output)
        return
    _title(output, formation.name, formation.emulated, formation.title)
    if formation.emulated:
        output.data.text(EMULATION, style="warn")
    pools = f"{len(formation.pools)} pool{'s' if len(formation.pools) > 1 else ''}"
    _labels(output, {
        "cards": f"{formation.cards:,} in {pools}", "PUE": short(formation.pue) if formation.pue.known else "",
        "note": item.note or "",
    })  # fmt: skip
    left_out: list[str] = []
    for pool in formation.pools:
        left_out += _pool(output, pool)
    if formation.network is not None and len(formation.pools) > 1:
        _network(output, formation.network)
    for title, needs in (("A plan needs", needs_of(formation)), ("Energy and cost need", extras_of(formation))):
        if needs:
            output.data.head(title, "values that nobody has published")
            left_out += output.data.table(need_table(needs), indent=2)
    _remarks(output, formation.claims, ())
    output.data.line()
    output.data.text(LEGEND, style="dim")
    output.left_out(left_out)


def _pool(output: Output, pool: CardPool) -> list[str]:
    where = f", {pool.system}" if pool.system else ""
    mark = f" [{EMULATED}]" if pool.accelerator.emulated else ""
    output.data.head(f"Pool {pool.name}: {pool.count:,} x {pool.accelerator.id}{mark}", f"({pool.maker}{where})")
    columns = (
        Column("tier", style="strong"), Column("cards", right=True), Column("bandwidth per card", right=True),
        Column("latency", right=True), Column("topology"),
    )  # fmt: skip
    tiers = [
        (tier.name, f"{tier.size:,}", short(tier.bandwidth), short(tier.latency), tier.topology) for tier in pool.tiers
    ]
    left_out = []
    if tiers:
        left_out += output.data.table(table(columns, tiers, notes=[tier.description or "" for tier in pool.tiers]))
        output.data.line()
    card = pool.accelerator
    rows = [row(f"peak.{key}", fact) for key, fact in card.peak.items() if fact.known or fact.note]
    rows += [row(f"memory.{key}", getattr(card.memory, key)) for key in ("capacity", "bandwidth")]
    for path, _ in dimensions(card.achievable, "achievable."):
        reached = take(card, path)
        rows += [row(path, reached)] if reached is not None and reached.known else []
    rows.append(row("power_per_card", pool.power_per_card))
    rows += [row("tdp", card.tdp)] if card.tdp.known and not pool.power_per_card.known else []
    return left_out + output.data.table(fact_table(rows))


def _network(output: Output, network: Network) -> None:
    staged = "(staged through the hosts)" if network.host_staged else ""
    output.data.head(f"Network between the pools: {network.name}", staged)
    output.data.table(fact_table([row("bandwidth per card", network.bandwidth), row("latency", network.latency)]))
    if network.direct is not None:
        output.data.head(f"Beside it: {network.direct.name}", "(past the hosts)")
        direct = [("bandwidth per card", network.direct.bandwidth), ("latency", network.direct.latency)]
        output.data.table(fact_table([row(name, value) for name, value in direct]))


def _machine_document(item: Machine, formation: Formation, output: Output) -> None:
    from zhenfa.cli.catalog_documents import FormationEntry, PoolEntry, Undisclosed, plain

    pools = [
        PoolEntry(
            name=pool.name, count=pool.count, maker=pool.maker, system=pool.system,
            accelerator=plain(pool.accelerator), tiers=tuple(plain(tier) for tier in pool.tiers),
            power_per_card=plain(pool.power_per_card),
        )
        for pool in formation.pools
    ]  # fmt: skip
    rows = [found for pool in formation.pools for part in (pool.accelerator, *pool.tiers) for found in rows_of(part)]
    rows += [row("power_per_card", pool.power_per_card) for pool in formation.pools]
    missing = tuple(
        Undisclosed(name=need.name, dimension=need.dimension, needed_for=need.needed_for, assume=need.assume)
        for need in (*needs_of(formation), *extras_of(formation))
    )
    document = FormationEntry(
        name=formation.name, title=formation.title, cards=formation.cards, emulated=formation.emulated,
        pools=tuple(pools), network=plain(formation.network) if formation.network else None, pue=plain(formation.pue),
        claims=tuple(plain(claim) for claim in formation.claims), undisclosed=missing, machine=item.to_data(),
        sources=_bibliography([*rows, row("pue", formation.pue)]),
    )  # fmt: skip
    output.document(document)


def _title(output: Output, name: str, emulated: bool, words: str) -> None:
    mark = f" [{EMULATED}]" if emulated else ""
    output.data.text(f"{name}{mark}: {words.removeprefix(f'{EMULATED}: ')}", style="head")


def _labels(output: Output, labels: dict[str, str]) -> None:
    for label, words in labels.items():
        if words:
            output.data.text(words, first=f"{label}: ")


def _facts(output: Output, rows: Sequence[Row], empty: Sequence[str]) -> None:
    output.data.line()
    left_out = output.data.table(fact_table(rows)) if rows else []
    if empty:
        output.data.line()
        output.data.text(", ".join(empty), first="undisclosed: ")
    output.left_out(left_out)


def _remarks(output: Output, claims: Iterable[Claim], traps: Iterable[str]) -> None:
    found = list(claims)
    if found:
        output.data.head("Claims beside arithmetic")
        columns = (
            Column("what", wrap=22, style="strong"), Column("claimed", right=True), Column("arithmetic", right=True),
            Column("source", wrap=14),
        )  # fmt: skip
        rows = [(claim.what, claim.claimed, claim.derived or "-", claim.source) for claim in found]
        for claim in found:
            cite.use(claim.source)
        output.data.table(table(columns, rows, notes=[claim.note or "" for claim in found]))
    for trap in traps:
        output.data.text(trap, first="! ", style="warn")


def _bibliography(rows: Iterable[Row]) -> dict[str, str]:
    """Return the bibliography line of each source key of the rows; a source in words is its own line."""
    keys = dict.fromkeys(one.source for one in rows if one.source not in {"-", "undisclosed", "this document"})
    return {key: cite.text(key) for key in keys}


__all__ = ["accelerator", "link", "machine", "model", "system"]
