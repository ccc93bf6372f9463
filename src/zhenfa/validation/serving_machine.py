"""The machine of a serving row: cards by name and the tiers that join them, from the catalog where it knows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from zhenfa import catalog
from zhenfa.errors import InputError
from zhenfa.estimate import wires
from zhenfa.spec import fact
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Accelerator, Formation, Machine, Pool, Tier
from zhenfa.validation.train_machine import written_out

POOL: Final = "cards"
CLUSTER: Final = 100_000
CLUSTER_BYTES_PER_S: Final = 50e9
"""400 Gb/s per card between nodes, where the catalog knows nothing better. Assumed."""
PCIE_BYTES_PER_S: Final = 50e9
"""What a slot carries in one direction, for cards without ports of their own and of no known slot. Assumed."""
SAME: Final = {"ascend_910b": "ascend-910b3", "hopper": "nvidia-h100-sxm"}
"""Names that rows give to a family, and the member that stands for it."""


def part_of(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a mapping within a row; an empty one where the row has something else there."""
    found = row.get(name)
    return found if isinstance(found, Mapping) else {}


def find_accelerator(row: Mapping[str, Any]) -> Accelerator:
    """Return the card of a row. Raises :class:`InputError` if the row writes none out and the catalog has none of that
    name."""
    hardware = part_of(row, "hardware")
    if isinstance(hardware.get("document"), Mapping):
        return written_out(hardware["document"])
    names = [str(hardware.get("accelerator") or ""), str(row.get("acc_id") or "")]
    for name in (*names, names[1].replace("_", "-")):
        found = catalog.find_accelerator(SAME.get(name.strip().lower(), name)) if name.strip() else None
        if found is not None:
            return found
    raise InputError(f"no accelerator of the catalog is called {names[0]!r} or {names[1]!r}.")


def counted_in_dies(row: Mapping[str, Any]) -> bool:
    """Return whether a row's devices, and its figures per device, are dies of a package."""
    text = str(part_of(row, "hardware").get("accelerator") or "").lower()
    return bool(re.search(r"\bdies?\b", text)) and "both dies" not in text


def laid_out_in_dies(row: Mapping[str, Any]) -> bool:
    """Return whether the degrees of a row's layout count dies, whatever its figures are per."""
    parts = [one for one in part_of(row, "parallelism").values() if isinstance(one, Mapping)]
    return counted_in_dies(row) or any("dies" in name for part in parts for name in part)


def one_die(accelerator: Accelerator) -> Accelerator:
    """Return one device of a package as an accelerator of its own: its share of speed, memory and ports."""
    share = 1.0 / accelerator.devices

    def cut(one: Fact) -> Fact:
        return one if one.value is None else one.model_copy(update={"value": one.value * share})

    memory = accelerator.memory.model_copy(
        update={"capacity": cut(accelerator.memory.capacity), "bandwidth": cut(accelerator.memory.bandwidth)}
    )
    up = accelerator.scale_up.model_copy(update={"bandwidth": cut(accelerator.scale_up.bandwidth)})
    peak = {name: cut(one) for name, one in accelerator.peak.items()}
    update = {"peak": peak, "memory": memory, "scale_up": up, "scale_out": cut(accelerator.scale_out), "devices": 1}
    return accelerator.model_copy(update={**update, "tdp": cut(accelerator.tdp)})


def formation(row: Mapping[str, Any], cards: int, *, dies: bool) -> Formation:
    """Return a machine of ``cards`` of the row's accelerator, wired as its system is."""
    accelerator = find_accelerator(row)
    dies = dies and accelerator.devices > 1
    tiers = _tiers(row, accelerator, dies=dies)
    card = one_die(accelerator) if dies else accelerator
    pool = Pool(name=POOL, accelerator=card, count=max(cards, 1), tiers=tiers)
    return catalog.resolve(Machine(name="row", pools=(pool,)))


def _tiers(row: Mapping[str, Any], accelerator: Accelerator, *, dies: bool) -> tuple[Tier, ...]:
    known = [one for one in catalog.systems().values() if one.accelerator == accelerator.id]
    usable = [one for one in known if one.tiers and all(tier.bandwidth.known for tier in one.tiers)]
    if usable:
        tiers = min(usable, key=lambda one: one.count).tiers
        if not dies:
            return tiers
        return tuple(_of_dies(tier, accelerator.devices) for tier in tiers)
    return _assumed(row, accelerator)


def _of_dies(tier: Tier, devices: int) -> Tier:
    rate = tier.bandwidth.model_copy(update={"value": (tier.bandwidth.value or 0.0) / devices})
    return tier.model_copy(update={"size": tier.size * devices, "bandwidth": rate})


def _assumed(row: Mapping[str, Any], accelerator: Accelerator) -> tuple[Tier, ...]:
    size = int(part_of(row, "hardware").get("node_size") or 8)
    up = accelerator.scale_up.bandwidth
    rate = up if up.known else _rate(wires.slot_rate(accelerator) or PCIE_BYTES_PER_S)
    nvidia = accelerator.maker == "NVIDIA" and up.known
    mesh = accelerator.maker == "AMD" or "ascend-910b" in accelerator.id
    node = Tier(
        name="node", size=max(size, 2), bandwidth=rate, topology="full-mesh" if mesh and up.known else "switch",
        in_network_reduction=nvidia and size >= 8,
    )  # fmt: skip
    out = accelerator.scale_out if accelerator.scale_out.known else _rate(CLUSTER_BYTES_PER_S)
    return (node, Tier(name="cluster", size=CLUSTER, bandwidth=out, topology="clos"))


def _rate(value: float) -> Fact:
    return fact.Fact(value=value, dimension="rate", unit="B/s", source="assumed", confidence="assumed")
