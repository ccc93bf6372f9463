"""Measured power of serving: a row's activity, the law's answer, and what other points of the same curve add."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from zhenfa import catalog
from zhenfa.catalog import files
from zhenfa.estimate.power import card_draw, serving_activity
from zhenfa.spec.fact import Tag
from zhenfa.spec.graph import Graph
from zhenfa.spec.machine import Accelerator
from zhenfa.validation.quantities import number

LENGTHS: Final = {"gpqa": (2500.0, 0.1), "aime": (4000.0, 0.05), "fim": (500.0, 4.0), "code": (1000.0, 1.0)}
"""Mean tokens before the one being made, and prompt tokens per token made, of tasks that rows name without lengths.
Reasoning makes long answers, completion of code short ones."""

CHAT: Final = (700.0, 0.2)
"""The same for chat and for a task of another name: 615 tokens out on average and a short prompt (ML.ENERGY)."""

OCTAVES: Final = 2.0
"""How far along log2(batch) a measured point still says half as much about another one: engines change kernels and
graphs every few octaves."""

TRUST: Final = 0.25
"""Weight of the law against one measured point at the same batch."""


@dataclass(frozen=True)
class Point:
    """One measured point of a power curve. ``power`` is of all cards together."""

    series: tuple[str, ...]
    batch: float
    power: float
    throughput: float
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Activity:
    """What one card does on average."""

    accelerator: Accelerator
    bytes_per_second: float
    flops: float
    notes: tuple[str, ...]


def point_of(record: Mapping[str, Any]) -> Point | None:
    """Return the point that a row measured; None where it lacks batch, power or throughput."""
    batch, power, throughput = (number(record.get(key)) for key in ("avg_batch", "power_W", "tok_per_s"))
    batch = batch if batch is not None else number(record.get("max_seqs"))
    if not batch or not power or not throughput or min(batch, power, throughput) <= 0:
        return None
    keys = ("model", "gpu", "gpus", "tp", "ep", "task")
    series = tuple(str(record.get(key, "")).casefold() for key in keys)
    return Point(series, batch, power, throughput, record)


@cache
def packaged_points() -> tuple[Point, ...]:
    """Return the points of the packaged rows."""
    rows: Sequence[Any] = files.read(files.ROOT / "measurements" / "reliability_energy.yaml").get("energy_llm", ())
    found = (point_of(row) for row in rows if isinstance(row, Mapping))
    return tuple(point for point in found if point is not None)


def activity_of(record: Mapping[str, Any]) -> Activity | str:
    """Return what one card does in a row, or why that cannot be told."""
    card = catalog.find_accelerator(str(record.get("gpu") or record.get("accelerator") or ""))
    if card is None:
        return f"the catalog has no accelerator {str(record.get('gpu'))[:40]!r}"
    name = str(record.get("model") or "")
    model, sizes = catalog.find_model(name), _sizes(name)
    if model is None and sizes is None:
        return f"the catalog has no model {name[:60]!r}, and the name states no size"
    throughput, batch = number(record.get("tok_per_s")), number(record.get("avg_batch") or record.get("max_seqs"))
    latency = number(record.get("median_itl_ms"))
    if not batch or batch <= 0:
        return "the row states no batch"
    if not throughput and latency:
        throughput = 1000.0 * batch / latency
    if not throughput or throughput <= 0:
        return "the row states no throughput"
    cards = number(record.get("gpus")) or 1.0
    (context, prompt), note = _lengths(record)
    tensor, bits = number(record.get("tp")) or 1.0, _bits(name)
    if model is not None:
        moved, flops = serving_activity(
            graph_of(model.name), tokens_per_second=throughput, batch=batch, context=context, cards=cards,
            tensor=tensor, prompt_share=prompt, bits=bits,
        )  # fmt: skip
        return Activity(card, float(moved), float(flops), note)
    total, active = sizes or (0.0, 0.0)
    read = total if active == total else total * (1.0 - (1.0 - active / total) ** batch)
    moved = read * (bits or 16.0) / 8 * throughput / batch / (tensor if active == total else cards)
    flops = 2.0 * active * (1.0 + prompt) * throughput / cards
    note = ("sizes taken from the model's name, the cache left out",)
    return Activity(card, float(moved), float(flops), note)


@cache
def graph_of(name: str) -> Graph:
    """Return the operators of a model of the catalog, built once."""
    return catalog.model(name).graph()


def _lengths(record: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[str, ...]]:
    task = str(record.get("task") or "").casefold()
    found = next((value for key, value in LENGTHS.items() if key in task), CHAT)
    return found, (f"mean context of {found[0]:.0f} tokens assumed",)


_SIZE: Final = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])")
_ACTIVE: Final = re.compile(r"(?<![a-z0-9])a(\d+(?:\.\d+)?)b(?![a-z0-9])")


def _sizes(name: str) -> tuple[float, float] | None:
    """Return the parameters that a model's name states, all and those of one token: ``30B-A3B``, ``27b``."""
    text = name.casefold()
    whole, part = _SIZE.search(text), _ACTIVE.search(text)
    if whole is None or not 0 < float(whole[1]) < 1e5:
        return None
    total = 1e9 * float(whole[1])
    active = 1e9 * float(part[1]) if part is not None else total
    return total, min(active, total) if active > 0 else total


def _bits(name: str) -> float | None:
    """Return bits per weight that a model's name states."""
    words = set(re.findall(r"[a-z0-9]+", name.casefold()))
    if words & {"fp8", "int8", "w8a8", "mxfp8"}:
        return 8.0
    return 4.25 if words & {"fp4", "nvfp4", "mxfp4", "int4", "awq", "gptq"} else None


def law_power(record: Mapping[str, Any]) -> tuple[float, Tag, str] | str:
    """Return the power of all cards of a row by the law alone, its tag and what it rests on; or why there is none."""
    activity = activity_of(record)
    if isinstance(activity, str):
        return activity
    drawn = card_draw(activity.accelerator, flops=activity.flops, bytes_per_second=activity.bytes_per_second, share=1.0)
    if drawn is None:
        return f"nobody publishes what {activity.accelerator.id} draws"
    cards = number(record.get("gpus")) or 1.0
    return cards * drawn.busy, drawn.tag, "; ".join((drawn.words, *activity.notes))


def predict(record: Mapping[str, Any]) -> tuple[float, Tag, str] | str:
    """Return the power of all cards of a row: the law, corrected by other measured points of its curve.

    The row's own point is never used. Each other point pulls the law towards it, the more the nearer its batch.
    """
    found = law_power(record)
    if isinstance(found, str):
        return found
    power, tag, words = found
    own = point_of(record)
    batch = own.batch if own is not None else number(record.get("avg_batch"))
    errors = (
        []
        if batch is None
        else [
            (math.log2(batch / other.batch), error)
            for other in packaged_points()
            if other.series == _series(record) and not _same(other, record, batch)
            if (error := _error(other)) is not None
        ]
    )
    if not errors:
        return power, tag, words
    return power * math.exp(pull(errors)), tag, f"{words}; {len(errors)} other points of its curve"


def pull(errors: Sequence[tuple[float, float]]) -> float:
    """Return the correction of the law, in logarithms, from the errors at other points: ``(octaves away, error)``.

    Between two neighbours it runs straight from one to the other along log2(batch); beyond the last point it fades.
    """
    below = [pair for pair in errors if pair[0] >= 0]
    above = [pair for pair in errors if pair[0] < 0]
    if below and above:
        (left, first), (right, second) = min(below), max(above)
        return float(first + (second - first) * left / (left - right))
    away, error = min(errors, key=lambda pair: abs(pair[0]))
    weight = math.pow(2.0, -abs(away) / OCTAVES)
    return float(error * weight / (weight + TRUST))


@cache
def _law_errors() -> dict[int, float]:
    return {}


def _error(other: Point) -> float | None:
    """Return by how much the law misses a measured point, in logarithms."""
    known = _law_errors()
    if id(other) not in known:
        found = law_power(other.record)
        known[id(other)] = math.nan if isinstance(found, str) else math.log(other.power / found[0])
    error = known[id(other)]
    return None if math.isnan(error) else error


def _series(record: Mapping[str, Any]) -> tuple[str, ...]:
    keys = ("model", "gpu", "gpus", "tp", "ep", "task")
    return tuple(str(record.get(key, "")).casefold() for key in keys)


def _same(other: Point, record: Mapping[str, Any], batch: float) -> bool:
    """Return whether a packaged point is the row itself."""
    return record.get("id") == other.record.get("id") or abs(math.log(batch / other.batch)) < 0.02
