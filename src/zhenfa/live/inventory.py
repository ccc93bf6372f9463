"""The cards of a host as a machine document: what is there, and what nobody tells left empty."""

from __future__ import annotations

from collections.abc import Sequence

from zhenfa import catalog
from zhenfa.errors import CapabilityError
from zhenfa.live.calibrate.card import slug
from zhenfa.live.makers.maker import Maker
from zhenfa.live.makers.record import DeviceRecord
from zhenfa.live.makers.registry import maker
from zhenfa.spec import fact
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Accelerator, Machine, Memory, Network, Pool, Software, Tier
from zhenfa.units import Dimension


def machine_of(found: Sequence[DeviceRecord], name: str) -> Machine:
    """Return a machine with a pool for each kind of card; the processor is a card where there is no other.

    Cards that the catalog knows are named as it does. Links are not told by anybody here: their bandwidth and latency
    stay empty, and `zhenfa calibrate` measures them. Raises :class:`CapabilityError` if there are no cards.
    """
    cards = [one for one in found if one.provider != "cpu"] or list(found)
    if not cards:
        raise CapabilityError("there are no cards to write down.")
    kinds: dict[tuple[str, str, int | None], list[DeviceRecord]] = {}
    for one in cards:
        kinds.setdefault((one.provider, one.name, one.memory_bytes), []).append(one)
    pools = tuple(_pool(rows, number) for number, rows in enumerate(kinds.values()))
    title = " + ".join(f"{len(rows)} x {rows[0].name}" for rows in kinds.values())
    return Machine(
        name=slug(name), title=title, pools=pools, network=Network() if len(pools) > 1 else None,
        note="written by `zhenfa devices --as-machine`; empty values were told by nobody",
    )  # fmt: skip


def _pool(rows: Sequence[DeviceRecord], number: int) -> Pool:
    first, mine = rows[0], maker(rows[0].provider)
    known = catalog.find_accelerator(first.name) if first.provider != "cpu" else None
    tier = Tier(name="host", size=len(rows), description="how the cards of this host are joined was told by nobody")
    card: str | Accelerator = known.id if known is not None else _card(first, mine)
    return Pool(name=f"{slug(first.provider)}-{number}", accelerator=card, count=len(rows), tiers=(tier,))


def _card(record: DeviceRecord, mine: Maker) -> Accelerator:
    ways = ", ".join(sorted(set(record.told_by.values()))) or record.maker_from
    words = f"zhenfa devices, as {ways} told"
    kind = (record.torch_device or "").partition(":")[0] or mine.torch_device
    software = None
    if kind is not None:
        software = Software(
            torch_device=kind, collective_backend=mine.collective or "gloo", plugin=mine.module,
            collective_library=mine.collective_library, smi=mine.smi[0] if mine.smi else None,
        )  # fmt: skip
    return Accelerator(
        id=slug(record.name), maker=record.maker, name=record.name, software=software,
        memory=Memory(capacity=_told(record.memory_bytes, "data", "B", words)),
        tdp=_told(record.power_limit_w, "power", "W", f"{words} (the limit that is set)"),
    )  # fmt: skip


def _told(value: float | None, dimension: Dimension, unit: str, source: str) -> Fact:
    if value is None:
        return fact.undisclosed(dimension)
    return Fact(value=float(value), dimension=dimension, unit=unit, source=source, confidence="stated")
