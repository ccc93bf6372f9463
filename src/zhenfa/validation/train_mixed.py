"""Rows of training over unequal cards: those with measured step times and a described cluster, as mixed plans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from zhenfa import units
from zhenfa.errors import InputError
from zhenfa.estimate import wires
from zhenfa.spec.fact import Confidence, Fact, undisclosed
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Network, Tier
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.validation.train_machine import accelerator_of, precision_of
from zhenfa.validation.train_model import model_of, sequence_of
from zhenfa.validation.train_words import number, part, text, whole

CARDS_PER_NODE: Final = 8

REASONS: Final = {
    "ratio": "a ratio: neither absolute speeds nor layouts are published",
    "config-only": "a configuration without a measured speed",
    "homogeneous-parts": "no mixed run: its parts are training rows of their own",
}


def accepts(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a row of training over unequal cards."""
    return "kind" in record and "cluster" in record and "measured" in record


def skip_reason(record: Mapping[str, Any]) -> str | None:
    """Return why a row cannot be predicted, or None."""
    kind = text(record.get("kind"))
    if kind in REASONS:
        return REASONS[kind]
    if "placeholder, do not use" in text(record.get("notes")):
        return "the row's own notes call the figure a placeholder"
    if number(part(record, "measured").get("iter_s")) is None:
        return "no step time is published"
    if not _stages(record):
        return "the layout over the cards is not published"
    return None


def _stages(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    stages = part(record, "parallel").get("stages")
    return [item for item in stages if isinstance(item, Mapping)] if isinstance(stages, list) else []


def read_mixed(record: Mapping[str, Any], notes: list[str]) -> tuple[Any, Formation, Plan]:
    """Return a mixed row as graph, machine and plan.

    Raises :class:`InputError` where the cluster or the layout cannot be read.
    """
    model = dict(part(record, "model"))
    model.setdefault("gated_mlp", False)
    graph = model_of({"model": model}, notes).graph()
    formation = _formation(record, notes)
    sequence = sequence_of(record)
    if sequence is None:
        raise InputError("the row does not give the length of a sequence.")
    newest = max((pool.accelerator for pool in formation.pools), key=lambda card: card.year or 0)
    precision = precision_of(record, newest, notes)
    pipelines = _pipelines(record, formation, len(graph.layers))
    plan = Plan(
        job="row", model="row", machine="row", sequence_length=sequence, precision=precision, pipelines=pipelines
    )
    return graph, formation, plan


def _formation(record: Mapping[str, Any], notes: list[str]) -> Formation:
    cluster = part(record, "cluster")
    counts, sizes = part(cluster, "counts"), part(cluster, "gpus")
    measured = part(cluster, "measured_bandwidth_asymptote_GBps")
    between = part(measured, "inter_node_p2p")
    pools, uplinks = [], []
    for name, cards in counts.items():
        count = whole(cards, most=10**6)
        if count is None:
            raise InputError(f"the row gives no number of {name} cards.")
        card = accelerator_of({"accel": name, "mem_gb": number(sizes.get(name))}, notes)
        each = min(count, CARDS_PER_NODE)
        inside = _of_a_card(measured, name, each, card)
        tiers = [_tier("node", each, inside, card.scale_up.bandwidth.value, "switch")]
        uplink = number(between.get(name))
        uplinks.append((uplink or 10.0) * 1e9 / each)
        if count > each:
            tiers.append(_tier("network", count, uplink / each if uplink else None, 1.25e9, "clos"))
        pools.append(CardPool(_slug(name), card, count, tuple(tiers), undisclosed("power")))
    if not pools:
        raise InputError("the row does not say which cards there are.")
    notes.append("the cards of a node share its measured uplink")
    network = Network(bandwidth=_rate(min(uplinks)), host_staged=False) if len(pools) > 1 else None
    return Formation("row", "a measured run", tuple(pools), network, undisclosed("ratio"))


_INSIDE: Final = re.compile(r"intra_node_tp(\d+)")


def _of_a_card(measured: Mapping[str, Any], name: str, working: int, card: Accelerator) -> float | None:
    """Return the GB/s of one card inside a node of which so many cards are at work.

    The figures of ``intra_node_tpN`` are sums: half of N cards send to the other half at once, and the bytes of all are
    divided by the time (eth-easl/sailor, profiling/networking/test_sendrecv.py). The cards at work share the sum
    between them; one alone has no more than its own link, and never less than its share of all N.
    """
    for key in measured:
        cards, total = _INSIDE.fullmatch(key), number(part(measured, key).get(name))
        if cards and total:
            least = total / max(int(cards[1]) // 2, 1)
            shared = total / max(working // 2, 1)
            slot = wires.slot_rate(card)
            return max(least, min(shared, slot / 1e9 if slot else least))
    return None


def _tier(name: str, size: int, gigabytes: float | None, otherwise: float | None, topology: Any) -> Tier:
    rate = _rate(gigabytes * 1e9) if gigabytes else _rate(otherwise or 16e9, "paper-measured")
    return Tier(name=name, size=max(size, 1), bandwidth=rate, topology=topology)


def _rate(value: float, confidence: Confidence = "calibrated") -> Fact:
    """Return a bandwidth; what the row measured is what transfers reach."""
    return Fact(value=value, dimension="rate", unit=units.BASE["rate"], source="the row", confidence=confidence)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).strip("-._")[:60] or "cards"


def _pipelines(record: Mapping[str, Any], formation: Formation, layers: int) -> tuple[Pipeline, ...]:
    parallel, stages = part(record, "parallel"), _stages(record)
    tensor = whole(parallel.get("tp"), most=10**4) or 1
    held = _held([whole(item.get("n_layers"), least=0, most=10**5) for item in stages], layers)
    ends = list(accumulate(held))
    places = [[_place(words, formation, tensor) for words in item.get("replicas") or ()] for item in stages]
    replicas = {len(row) for row in places}
    if len(replicas) != 1 or not replicas - {0}:
        raise InputError("the row does not place the same number of replicas on every stage.")
    count = replicas.pop()
    size = whole(parallel.get("mbs"), most=10**6) or 1
    batch = whole(parallel.get("gbs"), most=10**9)
    micro = whole(parallel.get("microbatches"), most=10**8) or max((batch or 8 * size * count) // (size * count), 1)
    pipelines: dict[tuple[tuple[str, int], ...], int] = {}
    for replica in range(count):
        key = tuple(row[replica] for row in places)
        pipelines[key] = pipelines.get(key, 0) + 1
    return tuple(
        Pipeline(
            count=number_of,
            micro_batches=micro,
            micro_batch_size=size,
            stages=tuple(
                Stage(pool=pool, first=last - own, last=last, tensor_parallel=degree)
                for (pool, degree), own, last in zip(key, held, ends, strict=True)
            ),
        )
        for key, number_of in pipelines.items()
    )


def _held(counts: Sequence[int | None], layers: int) -> list[int]:
    """Return the transformer layers of each stage; embedding and head may be counted as a layer each."""
    held = [count for count in counts if count is not None]
    if len(held) == len(counts) and sum(held) == layers + 2:
        held[0] -= 1
        held[-1] -= 1
    if len(held) != len(counts) or sum(held) != layers or min(held) < 0:
        raise InputError("the layers of the stages do not add up to the model's.")
    return held


def _place(words: Any, formation: Formation, tensor: int) -> tuple[str, int]:
    """Return the pool and the degree of ``RTX-3090 x8 (tp8)``."""
    name = _slug(str(words).split(" x")[0].strip())
    if name not in {pool.name for pool in formation.pools}:
        raise InputError(f"a stage stands on {name!r}, which the cluster does not list.")
    degree = re.search(r"tp\s?(\d+)", str(words))
    return name, int(degree[1]) if degree else tensor
