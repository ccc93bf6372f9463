"""The tiers that a fabric record was measured on: the catalog's, or what the record states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from zhenfa import catalog
from zhenfa.catalog.entries import ACCELERATORS, SYSTEMS
from zhenfa.estimate import wires
from zhenfa.estimate.wires import Wire
from zhenfa.spec.link_family import LinkFamily
from zhenfa.spec.machine import Accelerator, System
from zhenfa.validation import fabric_words as words

CHIPS: Final = {"sm80": "a100", "sm90": "h100", "sm100": "b200", "sm103": "b300"}
"""Chips by the name that CUDA gives to their architecture."""

NODE: Final = 8
"""Cards of a node where neither the catalog nor the record says it."""

_EVERYWHERE: Final = 1_000_000


class NotStatedError(Exception):
    """The record leaves out something that a prediction needs; the message is the reason for skipping it."""


def find_system(name: str) -> tuple[System | None, Accelerator | None]:
    """Return the catalog's system and accelerator that a record's words name; None for what they do not."""
    key = SYSTEMS.find(name)
    if key is not None:
        found = catalog.system(key)
        return found, catalog.accelerator(found.accelerator) if found.accelerator else None
    card = _accelerator(name)
    if card is None:
        return None, None
    holds = [item for item in catalog.systems().values() if item.accelerator == card.id]
    return (holds[0] if holds else None), card


def _accelerator(name: str) -> Accelerator | None:
    key = ACCELERATORS.find(name)
    if key is not None:
        return catalog.accelerator(key)
    text = name.casefold()
    plain = {word: alias for word, alias in CHIPS.items() if re.search(rf"\b{word}\b", text)}
    aliases = sorted(ACCELERATORS.names, key=len, reverse=True)
    for alias in (*plain.values(), *aliases):
        if alias in plain.values() or re.search(rf"(?<![a-z0-9]){re.escape(alias.casefold())}(?![0-9])", text):
            return catalog.accelerator(alias)
    return None


def tiers(record: Mapping[str, Any], ranks: int | None = None) -> list[Wire]:
    """Return the tiers of a record of so many ranks, inside-out, one rank a card: a package of two dies is two ranks.

    Raises :class:`NotStatedError`.
    """
    name = str(record.get("system") or "")
    system, card = find_system(name)
    text = words.words(record)
    bare = card is not None and system is None and card.scale_up.bandwidth.value is None
    found = _host_links(name, text, record, ranks) if card is None or bare else None
    if found is not None:
        return found
    if card is None:
        raise NotStatedError(f"the catalog knows no system or accelerator in {name!r}, and the record no link rate")
    inner = _catalog_tiers(system, card) if system else _node(card, ranks)
    rate = words.number(record.get("peak_GBps_per_dir"))
    if rate is not None:
        inner = [replace(wire, bandwidth=1e9 * rate * card.devices) if _own(wire) else wire for wire in inner]
    found = _with_network([_per_device(wire, card.devices) for wire in inner], text, card)
    return _few_of_each_node(found, f"{name} ; {text}", ranks)


def _few_of_each_node(found: list[Wire], text: str, ranks: int | None) -> list[Wire]:
    """Make a node as small as what a record uses of it, where it states nodes and fewer ranks than they hold."""
    nodes = words.count_before(text, "nodes")
    own = [wire for wire in found if _own(wire)]
    if not ranks or not nodes or nodes < 2 or len(own) != 1 or len(found) < 2 or ranks >= nodes * own[0].size:
        return found
    return [replace(own[0], size=max(float(ranks // int(nodes)), 1.0)), *(wire for wire in found if not _own(wire))]


def _reach(family: LinkFamily, rate: float, ranks: int | None) -> Wire:
    """Return a host's slots as far as so many ranks reach: what a ring over them gets, not tiers one above another."""
    sizes = [part.size for part in family.reaches] or [NODE]
    size = next((one for one in sizes if ranks is not None and ranks <= one), sizes[-1])
    return Wire(float(size), rate, None, False, family.reduces, family)


def _own(wire: Wire) -> bool:
    return wire.family.place != "scale-out"


def _catalog_tiers(system: System, card: Accelerator) -> list[Wire]:
    found = []
    for index, tier in enumerate(system.tiers):
        family = wires.tier_family(card, tier, index)
        rate = float("nan") if tier.bandwidth.value is None else tier.bandwidth.value
        mesh = tier.topology == "full-mesh"
        found.append(Wire(float(tier.size), rate, tier.latency.value, mesh, tier.in_network_reduction, family))
    return found


def _node(card: Accelerator, ranks: int | None) -> list[Wire]:
    """A node of eight cards of a kind that no system of the catalog is made of."""
    rate = card.scale_up.bandwidth.value
    slot = re.match(r"[345]", card.pcie.value or "") if card.pcie else None
    if rate is None and card.scale_up.protocol is None and slot:
        return [_reach(wires.own_family(card), PCIE[f"pcie{slot[0]}"], ranks)]
    if rate is None:
        raise NotStatedError(f"the bandwidth of {card.id}'s own links ({card.scale_up.protocol}) is not published")
    family = wires.family_of(card.scale_up.protocol)
    mesh = "mesh" in (card.scale_up.topology or "") or card.scale_up.pair_bandwidth.value is not None
    return [Wire(float(NODE), rate, None, mesh, family.reduces, family)]


def _host_links(name: str, text: str, record: Mapping[str, Any], ranks: int | None) -> list[Wire] | None:
    """Cards out of the catalog: on the host's own PCIe, on links that the record names, or at a stated rate."""
    given = words.number(record.get("peak_GBps_per_dir"))
    for family in catalog.link_families().values():
        known = family.place == "host" and wires.measured_on(family, name)
        if not known and not any(word.casefold() in text.casefold() for word in family.protocols):
            continue
        rate = 1e9 * given if given else PCIE.get(family.id) or _link_rate(family.id)
        if rate is not None:
            return [_reach(family, rate, ranks)]
    return [Wire(float(NODE), 1e9 * given, None, False, False, wires.family(wires.OTHER))] if given else None


def _link_rate(name: str) -> float | None:
    links = catalog.links()
    return links[name].bandwidth.value if name in links else None


PCIE: Final = {f"pcie{generation}": rate for generation, rate in wires.SLOTS.items()}
"""Bytes/s of sixteen lanes, one direction."""


def _per_device(wire: Wire, devices: int) -> Wire:
    return wire if devices == 1 else replace(wire, size=wire.size * devices, bandwidth=wire.bandwidth / devices)


def _with_network(inner: list[Wire], text: str, card: Accelerator) -> list[Wire]:
    """Put the network that the record names, or the card's own, around its node."""
    rate, family = words.network_rate(text), wires.family(wires.NETWORK)
    if rate is None and card.scale_out.value is not None:
        rate = card.scale_out.value / card.devices
    own = [wire for wire in inner if _own(wire)]
    outer = [wire for wire in inner if not _own(wire)]
    if rate is not None:
        adds = bool(re.search(r"\bSHARP\b", text))
        latency = next((wire.latency for wire in outer if wire.latency is not None), None)
        outer = [Wire(float(_EVERYWHERE), rate, latency, False, adds, family)]
    return [*own, *outer] or inner


def unknown_between(found: list[Wire], ranks: int) -> bool:
    """Return whether so many ranks reach over the border of what is known."""
    return ranks > found[-1].size
