"""``zhenfa show``: what the catalog holds, each number with unit, source and confidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zhenfa import catalog, cite
from zhenfa.catalog.entries import ACCELERATORS, LINKS, SYSTEMS
from zhenfa.cli import listings, pages
from zhenfa.cli.console import Output
from zhenfa.cli.terms import find, terms
from zhenfa.errors import UnknownNameError, near_misses
from zhenfa.spec import yaml
from zhenfa.spec.document import read_file
from zhenfa.spec.machine import Machine
from zhenfa.spec.model import read_model

Page = Callable[[Output], None]

DOCUMENTS: Final = (".yaml", ".yml", ".json")


def show_entry(name: str | None, output: Output) -> None:
    """Print a kind's entries, one entry, or what kinds there are. Raises :class:`UnknownNameError`."""
    if name is None:
        listings.overview(output)
        return
    with cite.collect() as used:
        page = _listing(name) or (_file(name) if _is_path(name) else _entry(name))
        page(output)
    if output.cite and not output.as_json and used:
        keys = [key for key in used if cite.text(key) != key]
        output.sources([f"{key}: {cite.text(key)}" for key in keys] + [key for key in used if key not in keys])


def _listing(name: str) -> Page | None:
    folded = name.strip().casefold()
    return next((one for kind, one in listings.LISTINGS.items() if folded in {kind, kind.removesuffix("s")}), None)


def _is_path(name: str) -> bool:
    return "/" in name or name.startswith(".") or name.casefold().endswith(DOCUMENTS)


def _file(path: str) -> Page:
    """Return the page of a machine or model document, or of a Hugging Face configuration."""
    if not Path(path).is_dir():
        data, _ = yaml.read(read_file(path), path)
        if isinstance(data, dict) and str(data.get("schema", "")).startswith("zhenfa.machine/"):
            machine = Machine.from_file(path)
            return lambda output: pages.machine(machine, output)
    model = read_model(path)
    return lambda output: pages.model(model, output)


def _entry(name: str) -> Page:
    for kind in (_machine, _accelerator, _system, _model, _link, _term):
        page = kind(name.strip())
        if page is not None:
            return page
    known = list(dict.fromkeys([*_names(), *listings.LISTINGS]))
    near = near_misses(name, known)
    hint = f"`zhenfa show {_quoted(near[0])}` shows the first." if near else "`zhenfa show` lists the kinds."
    raise UnknownNameError("entry", name, known, hint=hint)


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def _names() -> Iterator[str]:
    yield from catalog.machine_names()
    for shelf in (ACCELERATORS, SYSTEMS, LINKS):
        yield from shelf.names
    yield from catalog.models()
    yield from (alias for term in terms().values() for alias in term.names)


def _machine(name: str) -> Page | None:
    if name.casefold() not in {known.casefold() for known in catalog.machine_names()}:
        return None
    found = catalog.machine(name)
    return lambda output: pages.machine(found, output)


def _accelerator(name: str) -> Page | None:
    if ACCELERATORS.find(name) is None:
        return None
    found = catalog.accelerator(name)
    return lambda output: pages.accelerator(found, output)


def _system(name: str) -> Page | None:
    if SYSTEMS.find(name) is None:
        return None
    found = catalog.system(name)
    return lambda output: pages.system(found, output)


def _link(name: str) -> Page | None:
    if LINKS.find(name) is None:
        return None
    found = catalog.link(name)
    return lambda output: pages.link(found, output)


def _model(name: str) -> Page | None:
    if name.casefold() not in {known.casefold() for known in catalog.models()}:
        return None
    found = catalog.model(name)
    return lambda output: pages.model(found, output)


def _term(name: str) -> Page | None:
    from zhenfa.cli.explain import explain_term

    try:
        term = find(name)
    except UnknownNameError:
        return None
    return lambda output: explain_term(term.name, output)
