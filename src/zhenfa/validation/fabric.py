"""Fabric rows: collectives, transfers between two cards, dispatch and combine of experts, beside what the laws say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from zhenfa.estimate import wires
from zhenfa.estimate.wires import Wire
from zhenfa.laws import communication, expert_exchange
from zhenfa.laws.fabric import Fabric, point_to_point_time
from zhenfa.spec.fact import Tag
from zhenfa.spec.link_family import LinkFamily
from zhenfa.validation import fabric_network, fabric_words
from zhenfa.validation.fabric_network import NotStatedError
from zhenfa.validation.outcome import Outcome

SECTIONS: Final = ("measurements", "nccl_curves")
METRICS: Final = ("latency_us", "bw_GBps", "busbw_GBps", "dispatch_us", "combine_us", "dispatch_GBps", "combine_GBps")
LARGE: Final = 8 * 2.0**30
"""Bytes of a collective whose size a record leaves out: the largest that nccl-tests runs by habit."""
SMALL: Final = 512.0
"""Bytes of a message of which a record gives only the latency."""
MANY_NODES: Final = 32
"""Nodes where a record says only that there are several: enough for the network's limit to show."""
MEGABYTE: Final = 1e6
MEASURED: Final = ("paper-measured", "bench-measured")

COLLECTIVES: Final[dict[str, tuple[Callable[..., Any], float]]] = {
    "all_reduce": (communication.all_reduce_time, 2.0),
    "all_gather": (communication.all_gather_time, 1.0),
    "reduce_scatter": (communication.reduce_scatter_time, 1.0),
    "all_to_all": (communication.all_to_all_time, 1.0),
    "broadcast": (communication.broadcast_time, 1.0),
}
"""The law of each collective, and how often its bus bandwidth counts ``(n - 1)/n`` of the buffer."""

LOW_LATENCY: Final = ("low latency", "low-latency", "cann ep", "nvlinkonesided", "nvlinktwosided")
"""Words of records whose kernels do not forward."""
ONE_PER_CARD: Final = ("nvlinkonesided", "nvlinktwosided", "mori")
"""Of those, the kernels that send a token once to a card and not once to an expert."""

Families = Mapping[str, LinkFamily]


@dataclass(frozen=True)
class _Case:
    """A record with the tiers it ran on."""

    record: Mapping[str, Any]
    text: str
    wires: list[Wire]
    fabric: Fabric

    @property
    def tag(self) -> Tag:
        return (
            "fitted"
            if all(wire.family.measured for wire in self.wires if not math.isnan(wire.bandwidth))
            else "assumed"
        )

    def band(self, what: str, predicted: float, spread_of: LinkFamily) -> tuple[float, float]:
        half = spread_of.spread.get(what, 0.4)
        return predicted * math.exp(-half), predicted * math.exp(half)


def accepts(record: Mapping[str, Any]) -> bool:
    """Return whether a record is one of a fabric: a collective, a transfer, a dispatch or a combine."""
    section = record.get("section")
    if section is not None:
        return section in SECTIONS
    return "op" in record and "system" in record and any(key in record for key in METRICS)


def outcomes(record: Mapping[str, Any], families: Families | None = None) -> list[Outcome]:
    """Return every measured number of a record beside its prediction; one with the reason where there is none.

    ``families`` stand in for the catalog's families of links of the same id.
    """
    kind = _kind(str(record.get("op") or ""))
    name = str(record.get("id") or "unnamed")
    gate = record.get("confidence") in MEASURED
    groups = (_group(kind, record),)
    try:
        if record.get("confidence") == "low":
            raise NotStatedError("its own source says that it is odd and not to be relied on (confidence low)")
        found = list(_outcomes(kind, name, _case(record, families or {})))
    except NotStatedError as why:
        return [_skip(name, groups, str(why), gate)]
    except (ValueError, TypeError, KeyError, ArithmeticError) as problem:
        return [_skip(name, groups, f"the record cannot be read: {problem}", gate)]
    if not found:
        return [_skip(name, groups, "it holds no number that is a time or a bandwidth", gate)]
    return [replace(one, gate=gate) for one in found]


def _skip(name: str, groups: tuple[str, ...], why: str, gate: bool) -> Outcome:
    return Outcome(name, "fabric", groups, "time", "us", skipped=why, gate=gate)


def _kind(op: str) -> str:
    text = op.casefold().replace("-", "_").replace(" ", "_")
    for name in COLLECTIVES:
        if text.startswith(name) or text.startswith(name.replace("_", "")):
            return name
    if "dispatch" in text or "combine" in text:
        return "exchange"
    return "point"


def _group(kind: str, record: Mapping[str, Any]) -> str:
    if kind == "exchange":
        return "expert dispatch and combine"
    if kind == "point":
        return "point to point"
    size = _message(record)
    return "collectives < 1 MB" if size is not None and size < MEGABYTE else "collectives >= 1 MB"


def _message(record: Mapping[str, Any]) -> float | None:
    given = record.get("message", record.get("bytes"))
    if isinstance(given, list):
        return None
    return fabric_words.size(given) or fabric_words.size(record.get("conditions"))


def _case(record: Mapping[str, Any], families: Families) -> _Case:
    counts = fabric_words.ranks(record.get("ranks", record.get("ep")))
    found = wires.with_families(fabric_network.tiers(record, counts[-1] if counts else None), families)
    return _Case(record, fabric_words.words(record), found, wires.assemble(found))


def _outcomes(kind: str, name: str, case: _Case) -> Iterator[Outcome]:
    if kind == "exchange":
        yield from _exchange(name, case)
    elif kind == "point":
        yield from _point(name, case)
    elif isinstance(case.record.get("bytes"), list):
        yield from _curve(kind, name, case)
    else:
        yield from _collective(kind, name, case)


def _outermost(case: _Case, ranks: float) -> LinkFamily:
    """The family of the widest tier that so many ranks cross; refuses what is not known."""
    if fabric_network.unknown_between(case.wires, int(ranks)):
        raise NotStatedError(f"{ranks:g} ranks reach over nodes, and the record names no network between them")
    wire = next(wire for wire in case.wires if ranks <= wire.size)
    if any(math.isnan(one.bandwidth) for one in case.wires if one.size <= wire.size):
        raise NotStatedError(f"the bandwidth between {ranks:g} ranks is not published")
    return wire.family


def _fabric(case: _Case) -> Fabric:
    ring = "ring" in str(case.record.get("op")).casefold().split() or "nvls off" in case.text.casefold()
    return replace(case.fabric, in_network_reduction=np.zeros(case.fabric.tiers, bool)) if ring else case.fabric


def _curve(kind: str, name: str, case: _Case) -> Iterator[Outcome]:
    """One outcome for every message size of a curve."""
    counts = fabric_words.ranks(case.record.get("ranks"))
    if not counts:
        raise NotStatedError("the number of ranks is not stated")
    family, law = _outermost(case, counts[0]), COLLECTIVES[kind][0]
    sizes = [float(one) for one in case.record["bytes"]]
    times = case.record.get("latency_us") or []
    predicted = np.atleast_1d(1e6 * law(np.array(sizes), float(counts[0]), 1.0, _fabric(case)))
    for size, measured, time in zip(sizes, times, predicted.tolist(), strict=False):
        value = fabric_words.number(measured)
        if value is not None:
            large = size >= MEGABYTE
            p10, p90 = case.band("large" if large else "small", time, family)
            group = f"collectives {'>=' if large else '<'} 1 MB"
            yield Outcome(
                f"{name}-{size:.0f}", "fabric", (group,), "latency", "us", value, time, case.tag, p10=p10, p90=p90
            )


def _collective(kind: str, name: str, case: _Case) -> Iterator[Outcome]:
    counts = fabric_words.ranks(case.record.get("ranks")) or _many_nodes(case)
    law, factor = COLLECTIVES[kind]
    size, note = _message(case.record), None
    only_latency = all(case.record.get(key) is None for key in ("busbw_GBps", "bw_GBps"))
    if size is None:
        size = SMALL if only_latency else LARGE
        note = f"the size is not stated: {size:.3g} bytes assumed"
    family = _outermost(case, counts[-1])
    times = [float(law(size, float(count), 1.0, _fabric(case))) for count in counts]
    buses = [factor * (count - 1) / count * size / time / 1e9 for count, time in zip(counts, times, strict=True)]
    large = size >= MEGABYTE
    group = f"collectives {'>=' if large else '<'} 1 MB"
    found = {"latency_us": 1e6 * _middle(times), "busbw_GBps": _middle(buses), "bw_GBps": _middle(buses)}
    for key, value in found.items():
        measured = fabric_words.number(case.record.get(key))
        if measured is not None:
            p10, p90 = case.band("large" if large else "small", value, family)
            metric, unit = ("latency", "us") if key == "latency_us" else ("bus bandwidth", "GB/s")
            yield Outcome(
                name, "fabric", (group,), metric, unit, measured, value, case.tag, p10=p10, p90=p90, note=note
            )


def _many_nodes(case: _Case) -> tuple[int, ...]:
    """The ranks of a record that tells them only in words: cards, nodes, or just many nodes."""
    text = f"{case.record.get('system')} ; {case.text}"
    cards = fabric_words.count_before(text, "GPUs?", "NPUs?", "cards?", "ranks?")
    if cards:
        return (int(cards),)
    if not re.search(r"nodes\b", text, re.IGNORECASE):
        raise NotStatedError("the number of ranks is not stated")
    nodes = fabric_words.count_before(text, "nodes") or MANY_NODES
    return (int(nodes * case.wires[0].size),)


def _middle(values: list[float]) -> float:
    return math.exp(sum(math.log(one) for one in values) / len(values))


def _point(name: str, case: _Case) -> Iterator[Outcome]:
    """One-sided transfers: no kernel starts, and a latency is that of the wire."""
    text = case.text.casefold()
    fabric, distance, family = replace(case.fabric, start=0.0), 1.0, case.wires[0].family
    if "h2d" in text or "d2h" in text:
        raise NotStatedError("it crosses the host's own bus, whose lanes the record does not state")
    network = "rdma" in text or re.search(r"\bib_(write|read|send)\b|\bib_(write|read|send)_", text) is not None
    if network or "inter" in text or "two nodes" in text or "between nodes" in text:
        distance = _across(case, network)
        family = case.wires[-1].family if network else family
        if network:
            fabric = replace(fabric, sizes=np.where(np.arange(fabric.tiers) == fabric.tiers - 1, fabric.sizes, 1.0))
    slower = family.write_share.value if "write" in text and family.write_share.value else 1.0
    factor = slower * (2.0 if "bidirectional" in text.split(";")[0] else 1.0)
    size = _message(case.record) or LARGE
    time = float(point_to_point_time(size, distance, fabric))
    wire = float(point_to_point_time(SMALL, distance, fabric))
    for key, metric, unit, value in (
        ("bw_GBps", "bandwidth", "GB/s", factor * size / time / 1e9),
        ("busbw_GBps", "bandwidth", "GB/s", factor * size / time / 1e9),
        ("latency_us", "latency", "us", 1e6 * wire),
    ):
        measured = fabric_words.number(case.record.get(key))
        if measured is not None:
            p10, p90 = case.band("point", value, family)
            yield Outcome(
                name, "fabric", ("point to point",), metric, unit, measured, value, case.tag, p10=p10, p90=p90
            )


def _across(case: _Case, network: bool) -> float:
    """The distance that leaves the node: over the network, or over the next tier of the card's own ports."""
    if network and case.wires[-1].family.place != "scale-out":
        raise NotStatedError("the record names no rate of the network between nodes")
    if len(case.wires) == 1:
        raise NotStatedError("the record names no network between nodes")
    return case.wires[-2].size if network else case.wires[0].size


def _exchange(name: str, case: _Case) -> Iterator[Outcome]:
    shape = _Shape.of(case)
    family = _outermost(case, shape.ranks)
    phases = [phase for phase in ("dispatch", "combine") if phase in str(case.record.get("op")).casefold()]
    both = 0.0
    for phase in phases:
        law = expert_exchange.dispatch_time if phase == "dispatch" else expert_exchange.combine_time
        width = shape.dispatch if phase == "dispatch" else shape.combine
        seconds = float(
            law(
                shape.tokens, shape.hidden, shape.top_k, float(shape.ranks), 1.0, case.fabric,
                bytes_per_element=width, experts=shape.experts, nodes_limited=shape.nodes_limited,
                low_latency=shape.low_latency, per_expert=shape.per_expert,
            )
        )  # fmt: skip
        both += seconds
        logical = shape.tokens * shape.hidden * width * shape.counted(case)
        keys = ("latency_us", "bw_GBps") if len(phases) == 1 else (f"{phase}_us", f"{phase}_GBps")
        values = (1e6 * seconds, logical / seconds / 1e9)
        for key, value, unit in zip(keys, values, ("us", "GB/s"), strict=True):
            measured = fabric_words.number(case.record.get(key))
            if measured is not None:
                p10, p90 = case.band("exchange", value, family)
                metric, group = f"{phase} {'time' if unit == 'us' else 'bandwidth'}", "expert dispatch and combine"
                yield Outcome(
                    name, "fabric", (group,), metric, unit, measured, value, case.tag, p10=p10, p90=p90, note=shape.note
                )
    together = fabric_words.number(case.record.get("latency_us"))
    if len(phases) == 2 and together is not None:
        p10, p90 = case.band("exchange", 1e6 * both, family)
        yield Outcome(
            name, "fabric", ("expert dispatch and combine",), "dispatch and combine time", "us", together, 1e6 * both,
            case.tag, p10=p10, p90=p90, note=shape.note,
        )  # fmt: skip


@dataclass(frozen=True)
class _Shape:
    """What was exchanged, as far as the record says; DeepSeek-V3's where it does not."""

    ranks: int
    tokens: float
    hidden: float
    top_k: float
    experts: float
    dispatch: float
    combine: float
    nodes_limited: float
    low_latency: bool
    per_expert: bool
    note: str | None

    @classmethod
    def of(cls, case: _Case) -> _Shape:
        text, record = case.text, case.record
        ranks = fabric_words.ranks(record.get("ep", record.get("ranks"))) or _ranks_of(text)
        if not ranks:
            raise NotStatedError("the number of ranks is not stated")
        tokens = fabric_words.number(record.get("tokens_per_rank")) or fabric_words.count_before(text, "tokens?")
        tokens = tokens or fabric_words.count_after(text, "batch")
        if tokens is None:
            raise NotStatedError("the number of tokens is not stated")
        hidden, top_k = fabric_words.count_after(text, "hidden(?: size)?"), fabric_words.count_after(text, "top")
        groups = fabric_words.count_before(text, "groups")
        bare = re.sub(r"top[\s-]*\d+ groups", "", text)
        routed = fabric_words.count_after(bare, "top") or top_k
        experts = fabric_words.count_before(re.sub(r"top[\s-]*\d+ experts", "", bare), "experts")
        low = any(word in text.casefold() for word in LOW_LATENCY)
        shared = any(word in text.casefold() for word in ONE_PER_CARD)
        return cls(
            ranks[0], tokens, hidden or 7168.0, routed or 8.0, experts or 256.0,
            fabric_words.element_bytes(text, "dispatch") or 1.03125, fabric_words.element_bytes(text, "combine") or 2.0,
            groups or math.inf, low, not shared, None if hidden and top_k else "hidden 7168 and top-8 assumed",
        )  # fmt: skip

    def counted(self, case: _Case) -> float:
        """Copies of a token that the source's bandwidth counts, the card's own among them.

        Low-latency kernels count every chosen expert; forwarding ones the nodes where a network is crossed, else the
        cards.
        """
        if self.low_latency and self.per_expert:
            return self.top_k
        if self.low_latency:
            return float(expert_exchange.distinct_places(self.top_k, float(self.ranks), self.experts))
        inner = case.wires[case.fabric.outermost[0]].size
        places = self.ranks / inner if self.ranks > inner else float(self.ranks)
        chosen = self.nodes_limited if self.ranks > inner else math.inf
        return float(expert_exchange.distinct_places(self.top_k, places, self.experts, chosen))


def _ranks_of(text: str) -> tuple[int, ...]:
    """Ranks from a configuration such as ``EP8x4 (4 nodes)``."""
    found = re.search(r"\bEP(\d+)(?:x(\d+))?", text)
    return (int(found[1]) * int(found[2] or 1),) if found else ()
