"""The machine of a published training row: a card of the catalog, or of the row's own figures, and its tiers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from statistics import median
from typing import Any, Final

from zhenfa import catalog, units
from zhenfa.errors import InputError
from zhenfa.spec.fact import Fact, undisclosed
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Memory, Precision, Tier
from zhenfa.validation.train_words import bandwidth, number, one_way, part, text, whole

POOL: Final = "cards"
SOURCE: Final = "the row"

_DIRECT: Final = re.compile(r"full.mesh|all.to.all|hccs|infinity fabric|xgmi")
_SWITCH_ADDS: Final = re.compile(r"nvlink\s?[45]|nvl72|nvlink switch")


def formation_of(record: Mapping[str, Any], count: int, notes: list[str]) -> Formation:
    """Return the machine of a row with ``count`` cards; ``notes`` gains what was assumed of it.

    Raises :class:`InputError` where neither the catalog nor the row says what the card is.
    """
    raw = part(record, "hardware")
    card = accelerator_of(raw, notes)
    pool = CardPool(POOL, card, count, tiers_of(raw, card, count, notes), undisclosed("power"))
    return Formation("row", "a measured run", (pool,), None, undisclosed("ratio"))


def accelerator_of(raw: Mapping[str, Any], notes: list[str]) -> Accelerator:
    """Return the card that a row writes out, the catalog's of that name, or one made of the row's own figures."""
    if isinstance(raw.get("document"), Mapping):
        return written_out(raw["document"])
    name = str(raw.get("accel") or "")
    memory, peak = number(raw.get("mem_gb")), number(raw.get("peak_bf16_tf"))
    found = _named(name, memory, peak)
    if found is None:
        return _described(raw, name, memory, peak, notes)
    if found.peak and not any(fact.known for fact in found.peak.values()) and peak:
        notes.append(f"{found.id}: peak of the row, {peak:g} TFLOP/s")
        return found.model_copy(update={"peak": {"bf16": _fact(peak * 1e12, "speed")}})
    return found


@cache
def _aliases() -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the words of every name in the catalog with the card's id, longest first."""
    names = [(alias, key) for key, item in catalog.accelerators().items() for alias in (key, *item.aliases)]
    words = {(_tokens(name), key) for name, key in names}
    return tuple(sorted(words, key=lambda pair: (-len("".join(pair[0])), pair[1])))


def _tokens(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9]+", name.casefold()))


def _named(name: str, memory: float | None, peak: float | None) -> Accelerator | None:
    """Return the card of the catalog whose name stands in ``name``: among several the nearest in memory and peak."""
    words = _tokens(name)
    joined = " " + " ".join(words) + " "
    squeezed = "".join(words)
    hits = [key for alias, key in _aliases() if f" {' '.join(alias)} " in joined]
    if not hits:
        hits = [key for alias, key in _aliases() if len("".join(alias)) >= 4 and "".join(alias) in squeezed]
    family = re.search(r"\b(910b|910c|950|a100|h100|gh200|gb200|gb300)\w*", " ".join(words))
    stem = family[1] if family else None
    pool = dict.fromkeys([*hits[:1], *(key for key in catalog.accelerators() if stem and stem in key.split("-"))])
    if stem in {"910b", "910c", "950"}:
        pool.update(dict.fromkeys(key for key in catalog.accelerators() if key.startswith(f"ascend-{stem}")))
    cards = [catalog.accelerator(key) for key in pool]
    return min(cards, key=lambda card: _distance(card, memory, peak), default=None)


def _distance(card: Accelerator, memory: float | None, peak: float | None) -> float:
    """Return how far a card is from the row's figures; a maker's figure may add the vector unit (fp16)."""
    capacity = card.memory.capacity.value
    peaks = [fact.value for key in ("bf16", "fp16") if (fact := card.peak.get(key)) and fact.value]
    far = abs(capacity / (memory * 1e9) - 1) if memory and capacity else 0.0
    return far + (min(abs(value / (peak * 1e12) - 1) for value in peaks) if peak and peaks else 0.0)


@cache
def _bytes_per_flop() -> float:
    """Return the median memory bandwidth over bf16 peak of the catalog's cards."""
    shares = [
        card.memory.bandwidth.value / peak.value
        for card in catalog.accelerators().values()
        if not card.emulated and card.memory.bandwidth.value and (peak := card.peak.get("bf16")) and peak.value
    ]
    return median(shares)


def _described(
    raw: Mapping[str, Any], name: str, memory: float | None, peak: float | None, notes: list[str]
) -> Accelerator:
    if peak is None or peak <= 0:
        raise InputError(f"the card {name!r} is not in the catalog, and the row gives no peak for it.")
    peaks = {"bf16": peak, "fp16": peak, "fp8": number(raw.get("peak_fp8_tf")) or None}
    rate = number(raw.get("mem_bw_gbs")) or number(raw.get("mem_gb_s"))
    moved = rate * 1e9 if rate else peak * 1e12 * _bytes_per_flop()
    notes.append(f"card {name or '?'} of the row's own figures; {moved / 1e9:.0f} GB/s of memory bandwidth")
    return Accelerator(
        id=re.sub(r"[^A-Za-z0-9._-]", "-", name).strip("-._")[:60] or "card",
        maker=str(raw.get("vendor") or "undisclosed"), name=name or "undisclosed",
        peak={key: _fact(value * 1e12, "speed") for key, value in peaks.items() if value},
        memory=Memory(capacity=_fact((memory or 64.0) * 1e9, "data"), bandwidth=_fact(moved, "rate")),
    )  # fmt: skip


def _fact(value: float, dimension: units.Dimension) -> Fact:
    return Fact(value=value, dimension=dimension, unit=units.BASE[dimension], source=SOURCE, confidence="stated")


def written_out(document: Mapping[str, Any]) -> Accelerator:
    """Return the accelerator of a row that carries its document, as calibration keeps them."""
    try:
        return Accelerator.model_validate(document)
    except ValueError as problem:
        raise InputError(f"the accelerator in the row cannot be read: {str(problem).splitlines()[0]}.") from None


def tiers_of(raw: Mapping[str, Any], card: Accelerator, count: int, notes: list[str]) -> tuple[Tier, ...]:
    """Return the tiers that a row's words describe, filled from the card where they give no number."""
    domain = _domain(raw, count, notes)
    intra = text(raw.get("intra"))
    rate = one_way(raw.get("intra"))
    if rate is None:
        rate = card.scale_up.bandwidth.value
        if rate is None:
            notes.append("bandwidth inside a node assumed: 64 GB/s (PCIe 5.0 x16)")
            rate = 64e9
    mesh = bool(_DIRECT.search(intra)) and domain > 2 and "switch" not in intra
    inner = Tier(
        name="node", size=max(domain, 1), bandwidth=_fact(rate, "rate"),
        topology="full-mesh" if mesh else "torus" if "torus" in intra else "switch",
        in_network_reduction=bool(_SWITCH_ADDS.search(intra)) and not mesh,
    )  # fmt: skip
    if count <= domain:
        return (inner,)
    outer = Tier(name="network", size=count, bandwidth=_fact(_outer(raw, card, notes), "rate"), topology="clos")
    return inner, outer


def _domain(raw: Mapping[str, Any], count: int, notes: list[str]) -> int:
    """Return the cards of a scale-up domain. A larger job takes whole hosts of a domain, a power of two of cards."""
    per_node = whole(raw.get("per_node"), most=10**5) or 8
    domain = whole(raw.get("scale_up_domain"), most=10**6) or per_node
    if count > domain and domain & (domain - 1):
        used = 1 << (domain.bit_length() - 1)
        if count % used == 0:
            notes.append(f"{used} of the {domain} cards of a domain work")
            return used
    return domain


def _outer(raw: Mapping[str, Any], card: Accelerator, notes: list[str]) -> float:
    per_node = whole(raw.get("per_node"), most=10**5) or 8
    found = bandwidth(raw.get("inter"), per_node)
    if found is not None and found[0] > 0:
        return found[0]
    rate = card.scale_out.value
    if rate is None:
        systems = [item for item in catalog.systems().values() if item.accelerator == card.id]
        rate = next((item.scale_out.bandwidth.value for item in systems if item.scale_out.bandwidth.value), None)
    if rate is None:
        peak = card.peak.get("bf16") or card.peak.get("fp16")
        rate = 25e9 if peak is None or not peak.value or peak.value < 600e12 else 50e9
    notes.append(f"network of {rate / 1e9:g} GB/s a card assumed")
    return rate


_PRECISIONS: Final[tuple[tuple[str, Precision], ...]] = (
    ("nvfp4", "fp4"), ("mxfp4", "fp4"), ("fp4", "fp4"), ("mxfp8", "fp8"), ("hif8", "fp8"), ("fp8", "fp8"),
    ("float8", "fp8"), ("e4m3", "fp8"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"), ("float16", "fp16"),
    ("half", "fp16"), ("amp", "fp16"), ("tf32", "tf32"), ("fp32", "fp32"),
)  # fmt: skip


def precision_of(record: Mapping[str, Any], card: Accelerator, notes: list[str]) -> Precision:
    """Return the precision of the matmuls, the fewest bits that the row names and the card has."""
    words = text(record.get("precision"))
    spoken = (words.split("(")[0], words.split("(attention")[0])  # what stands in brackets may say what was not used
    found = next((precision for part in spoken for mark, precision in _PRECISIONS if mark in part), None)
    if found is None:
        found = "bf16" if "bf16" in card.peak else "fp16"
        notes.append(f"precision {found} assumed")
    if found == "fp32" and _has(card, "tf32"):
        notes.append("fp32 matmuls taken as TF32, the default of NVIDIA's containers")
        return "tf32"
    if found == "tf32" and not _has(card, "tf32"):
        return "fp32"
    return found


def _has(card: Accelerator, precision: str) -> bool:
    fact = card.peak.get(precision)
    return fact is not None and fact.value is not None
