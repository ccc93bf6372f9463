"""``zhenfa show``: what the catalog holds, each number with unit, source and confidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from pydantic import BaseModel

from zhenfa import catalog, cite, units
from zhenfa.cli import console
from zhenfa.cli.terms import terms
from zhenfa.errors import UnknownNameError, near_misses
from zhenfa.plan.request import find_model
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Accelerator, Formation, System
from zhenfa.spec.model import Model


def show_entry(name: str | None, *, as_json: bool, cite_sources: bool) -> None:
    """Print a kind's entries, one entry, or what kinds there are."""
    if name is None:
        _overview(as_json)
        return
    folded = name.casefold()
    for kind, listing in LISTINGS.items():
        if folded in {kind, kind.removesuffix("s")}:
            listing(as_json)
            return
    with cite.collect() as used:
        _one(name, as_json, used)
    if cite_sources and not as_json:
        console.print_sources(cite.text(key) for key in used)


def _one(name: str, as_json: bool, used: dict[str, None]) -> None:
    found = {
        "machine": _match(name, catalog.machines()),
        "accelerator": _match(
            name, (alias for item in catalog.accelerators().values() for alias in (item.id, *item.aliases))
        ),
        "system": _match(name, (alias for item in catalog.systems().values() for alias in (item.id, *item.aliases))),
        "model": _match(name, catalog.models()),
        "link": _match(name, (item.id for item in catalog.links().values())),
    }
    if found["machine"]:
        _machine(found["machine"], as_json, used)
    elif found["accelerator"]:
        _document(catalog.accelerator(found["accelerator"]), as_json, used)
    elif found["system"]:
        _document(catalog.system(found["system"]), as_json, used)
    elif found["model"]:
        _model(find_model(found["model"]), as_json)
    elif found["link"]:
        _document(catalog.link(found["link"]), as_json, used)
    else:
        raise _unknown(name)


def _match(name: str, known: Iterable[str]) -> str | None:
    return {item.casefold(): item for item in known}.get(name.casefold())


def _unknown(name: str) -> UnknownNameError:
    known = [
        *catalog.machines(), *(item.id for item in catalog.accelerators().values()), *(item.id for item in catalog.systems().values()),
        *catalog.models(), *(item.id for item in catalog.links().values()), *LISTINGS,
    ]  # fmt: skip
    near = near_misses(name, known)
    hint = f"`zhenfa show {near[0]}` shows that." if near else "`zhenfa show` lists the kinds."
    return UnknownNameError("entry", name, known, hint=hint)


def _overview(as_json: bool) -> None:
    counts = {
        "machines": len(catalog.machines()), "systems": len(catalog.systems()),
        "accelerators": len(catalog.accelerators()), "links": len(catalog.links()), "models": len(catalog.models()),
        "terms": len(terms()),
    }  # fmt: skip
    if as_json:
        console.print_json({"schema": "zhenfa.catalog/1", "counts": counts})
        return
    meaning = {
        "machines": "pools that a job can be planned on",
        "systems": "supernodes, nodes and pods as one buys them",
        "accelerators": "cards of every maker",
        "links": "scale-up and scale-out technologies",
        "models": "language models as operator graphs",
        "terms": "words of the field, explained",
    }
    rows = [(kind, str(count), meaning[kind], f"zhenfa show {kind}") for kind, count in counts.items()]
    console.data().print(console.table(("kind", "entries", "what", "command"), rows, right=(1,)))


def _accelerators(as_json: bool) -> None:
    items = catalog.accelerators().values()
    if as_json:
        console.print_json({"schema": "zhenfa.accelerators/1", "accelerators": [_plain(item) for item in items]})
        return
    rows = [
        (
            item.id, item.maker, _short(_peak(item)), _short(item.memory.capacity), _short(item.memory.bandwidth),
            _short(item.scale_up.bandwidth), _short(item.tdp), "EMULATED" if item.emulated else (item.software or _NONE).torch_device,
        )
        for item in items
    ]  # fmt: skip
    names = ("id", "maker", "matmul peak", "memory", "bandwidth", "scale-up", "TDP", "torch device")
    console.data().print(console.table(names, rows, right=(2, 3, 4, 5, 6)))
    _legend()


class _NoSoftware:
    torch_device = "-"


_NONE: Final = _NoSoftware()


def _peak(item: Accelerator) -> Fact | None:
    for key in ("bf16_cube", "bf16", "fp16", "aggregate_dtype_unstated", "fp32"):
        fact = item.peak.get(key)
        if fact is not None and fact.value is not None:
            return fact
    return None


def _systems(as_json: bool) -> None:
    items = catalog.systems().values()
    if as_json:
        console.print_json({"schema": "zhenfa.systems/1", "systems": [_plain(item) for item in items]})
        return
    rows = [
        (
            item.id, item.vendor, f"{item.count:,} x {item.accelerator or 'brand undisclosed'}",
            _short(item.tiers[-2].bandwidth if len(item.tiers) > 1 else item.tiers[0].bandwidth if item.tiers else None),
            _short(item.power), _short(item.pue, plain=True), item.status or "",
        )
        for item in items
    ]  # fmt: skip
    names = ("id", "vendor", "cards", "scale-up", "power", "PUE", "status")
    console.data().print(console.table(names, rows, right=(3, 4, 5)))
    _legend()


def _machines(as_json: bool) -> None:
    names = catalog.machines()
    if as_json:
        found = [catalog.machine(name).to_data() for name in names]
        console.print_json({"schema": "zhenfa.machines/1", "machines": found})
        return
    rows = []
    for name in names:
        formation = catalog.resolve(catalog.machine(name))
        pools = " + ".join(f"{pool.count:,} {pool.accelerator.id}" for pool in formation.pools)
        rows.append((name, f"{formation.cards:,}", pools, "EMULATED" if formation.emulated else formation.title))
    console.data().print(console.table(("machine", "cards", "pools", "title"), rows, right=(1,)))


def _links(as_json: bool) -> None:
    items = catalog.links().values()
    if as_json:
        console.print_json({"schema": "zhenfa.links/1", "links": [_plain(item) for item in items]})
        return
    rows = [(item.id, item.owner, _short(item.bandwidth), _short(item.latency), item.note or "") for item in items]
    names = ("link", "owner", "per direction", "latency", "note")
    console.data().print(console.table(names, rows, right=(2, 3)))
    _legend()


def _models(as_json: bool) -> None:
    rows, plain = [], []
    for name in catalog.models():
        graph = find_model(name).graph()
        total, active = graph.parameters, graph.active_parameters
        rows.append(
            (name, f"{total / 1e9:,.4g} B", f"{active / 1e9:,.4g} B", str(len(graph.layers)), f"{graph.hidden:,}")
        )
        plain.append({"name": name, "parameters": total, "active_parameters": active, "layers": len(graph.layers)})
    if as_json:
        console.print_json({"schema": "zhenfa.models/1", "models": plain})
        return
    console.data().print(console.table(("model", "parameters", "active", "layers", "hidden"), rows, right=(1, 2, 3, 4)))


def _terms(as_json: bool) -> None:
    items = terms()
    if as_json:
        console.print_json({"schema": "zhenfa.terms/1", "terms": sorted(items)})
        return
    rows = [(term.name, term.chinese, term.meaning) for term in items.values()]
    console.data().print(console.table(("term", "中文", "meaning"), rows))


LISTINGS: Final[dict[str, Callable[[bool], None]]] = {
    "accelerators": _accelerators,
    "systems": _systems,
    "machines": _machines,
    "links": _links,
    "models": _models,
    "terms": _terms,
}


def _short(fact: Fact | None, *, plain: bool = False) -> str:
    if fact is None or fact.value is None:
        return "-"
    mark = {"measured": "", "datasheet": "", "derived": "=", "fitted": "~", "claim": "!", "assumed": "?"}[fact.tag]
    return (f"{fact.value:g}" if plain else fact.show()) + mark


def _legend() -> None:
    console.talk().print(
        "- undisclosed   = derived   ! claim or from memory   ? assumed or weak", style="dim", markup=False
    )


def _facts(part: BaseModel, path: str = "") -> Iterator[tuple[str, Fact]]:
    """Yield every fact below a part with its dotted name."""
    for key in type(part).model_fields:
        yield from _facts_in(getattr(part, key), f"{path}{key}")


def _facts_in(value: Any, path: str) -> Iterator[tuple[str, Fact]]:
    if isinstance(value, Fact):
        yield path, value
    elif isinstance(value, BaseModel):
        yield from _facts(value, f"{path}.")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _facts_in(item, f"{path}.{key}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            name = getattr(item, "name", None) or getattr(item, "id", None) or str(index)
            yield from _facts_in(item, f"{path}.{name}")


def _plain(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_defaults=True)


def _document(item: Accelerator | System | Any, as_json: bool, used: dict[str, None]) -> None:
    if as_json:
        console.print_json({"schema": f"zhenfa.{type(item).__name__.lower()}/1", **_plain(item)})
        return
    out = console.data()
    mark = " [EMULATED]" if getattr(item, "emulated", False) else ""
    maker = getattr(item, "maker", None) or getattr(item, "vendor", None) or getattr(item, "owner", "")
    name = getattr(item, "name", item.id)
    out.print(
        f"{item.id}{mark}: {name} ({maker}{', ' + str(item.year) if getattr(item, 'year', None) else ''})",
        markup=False,
        style="bold",
    )
    for label in ("granularity", "status", "cooling", "note"):
        if getattr(item, label, None):
            out.print(f"{label}: {getattr(item, label)}", markup=False)
    if isinstance(item, Accelerator) and item.software:
        soft = item.software
        out.print(
            f"software: torch {soft.torch_device}, collectives {soft.collective_backend} ({soft.collective_library}), tool {soft.smi}",
            markup=False,
        )
    if isinstance(item, System):
        out.print(f"cards: {item.count:,} x {item.accelerator or 'brand undisclosed'}", markup=False)
        for tier in item.tiers:
            out.print(f"tier {tier.name}: {tier.size:,} cards, {tier.topology}. {tier.description or ''}", markup=False)
    out.print()
    _fact_table(_facts(item), used)
    _remarks(item)


def _fact_table(facts: Iterable[tuple[str, Fact]], used: dict[str, None]) -> None:
    rows = []
    for path, fact in facts:
        if fact.value is None and fact.note is None and fact.source == "undisclosed":
            continue
        cite.use(fact.source)
        shown = f"{fact.value:g}" if fact.dimension == "ratio" and fact.value is not None else fact.show()
        rows.append((path, shown, fact.tag if fact.known else "-", fact.confidence, fact.source, fact.note or ""))
    names = ("fact", "value", "tag", "confidence", "source", "note")
    console.data().print(console.table(names, rows, right=(1,)))


def _remarks(item: Any) -> None:
    out = console.data()
    claims = getattr(item, "claims", ())
    if claims:
        out.print("\n[bold]Claims beside arithmetic[/bold]")
        rows = [(claim.what, claim.claimed, claim.derived or "-", claim.source, claim.note or "") for claim in claims]
        out.print(console.table(("what", "claimed", "derived", "source", "note"), rows))
    for trap in getattr(item, "traps", ()):
        out.print(f"! {trap}", markup=False)


def _machine(name: str, as_json: bool, used: dict[str, None]) -> None:
    machine = catalog.machine(name)
    if as_json:
        console.print_json(machine.to_data())
        return
    formation: Formation = catalog.resolve(machine)
    out = console.data()
    mark = " [EMULATED]" if formation.emulated else ""
    out.print(f"{formation.name}{mark}: {formation.title}", markup=False, style="bold")
    out.print(f"{formation.cards:,} cards in {len(formation.pools)} pool{'s' if len(formation.pools) > 1 else ''}")
    if machine.note:
        out.print(machine.note, markup=False)
    for pool in formation.pools:
        out.print(
            f"\npool {pool.name}: {pool.count:,} x {pool.accelerator.id} ({pool.maker})", markup=False, style="bold"
        )
        rows = [
            (
                tier.name,
                f"{tier.size:,}",
                _short(tier.bandwidth),
                _short(tier.latency),
                tier.topology,
                tier.description or "",
            )
            for tier in pool.tiers
        ]
        out.print(
            console.table(("tier", "cards", "per card", "latency", "topology", "description"), rows, right=(1, 2, 3))
        )
        needed = [
            ("peak (matmul)", _peak(pool.accelerator)),
            ("memory.capacity", pool.accelerator.memory.capacity),
            ("memory.bandwidth", pool.accelerator.memory.bandwidth),
            ("power_per_card", pool.power_per_card),
        ]
        _fact_table(((label, fact) for label, fact in needed if fact is not None), used)
        for label, fact in needed:
            if fact is None or fact.value is None:
                path = "peak.bf16" if label.startswith("peak") else label
                value = {"memory.capacity": "64 GB", "memory.bandwidth": "1.6 TB/s", "power_per_card": "700 W"}.get(
                    label, "400 TFLOPS"
                )
                out.print(
                    f'undisclosed: supply it with --assume {pool.accelerator.id}.{path}="{value}" (your value)',
                    markup=False,
                )
    if formation.network is not None:
        network = formation.network
        staged = ", staged through the hosts" if network.host_staged else ""
        out.print(
            f"\nnetwork between pools: {network.name}, {_short(network.bandwidth)} per card, {_short(network.latency)}{staged}",
            markup=False,
        )
    _remarks(formation)
    _legend()


def _model(model: Model, as_json: bool) -> None:
    graph = model.graph()
    if as_json:
        console.print_json(
            {"schema": "zhenfa.model-summary/1", "name": graph.name, "parameters": graph.parameters,
             "active_parameters": graph.active_parameters, "extra_parameters": graph.extra_parameters,
             "layers": len(graph.layers), "hidden": graph.hidden, "vocabulary": graph.vocabulary, "document": model.to_data()}
        )  # fmt: skip
        return
    out = console.data()
    out.print(
        f"{graph.name}: {graph.parameters:,} parameters, {graph.active_parameters:,} active per token",
        markup=False,
        style="bold",
    )
    if graph.extra_parameters:
        out.print(f"and {graph.extra_parameters:,} in multi-token prediction modules, used in training")
    tied = ", tied embeddings" if graph.tied else ""
    out.print(f"{len(graph.layers)} layers, hidden {graph.hidden:,}, vocabulary {graph.vocabulary:,}{tied}\n")
    rows = []
    for index, kind in enumerate(graph.kinds):
        count = graph.layers.count(index)
        for operator in kind.operators:
            rows.append(
                (
                    f"{kind.name} x {count}",
                    operator.name,
                    operator.kind,
                    _sizes(operator),
                    f"{operator.parameters:,}",
                    operator.shard,
                )
            )
    out.print(console.table(("layer", "operator", "kind", "size", "parameters", "split"), rows, right=(4,)))


def _sizes(operator: Any) -> str:
    if operator.kind in {"attention", "scan"}:
        window = f", window {operator.window:,}" if operator.window else ""
        return f"{operator.heads} heads ({operator.kv_heads} kv) x {operator.key_dim}/{operator.value_dim}{window}"
    routed = f", {operator.active_experts} of {operator.experts} experts" if operator.experts > 1 else ""
    return f"{operator.inputs:,} -> {operator.outputs:,}{routed}"


__all__ = ["show_entry", "units"]
