"""What kernels reach on an accelerator: fitted to its tables, stated in its document, or the prior over chips.

In this order: a coefficient that the document states beyond what the catalog says of that chip (``calibrate`` writes
such documents); the fit to the chip's own tables; the fit to its generation; the prior over all chips, shifted by what
the catalog has measured of the chip's best matmul and stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Final

from zhenfa import catalog
from zhenfa.estimate import priors
from zhenfa.estimate.coefficients import Found, generation, library
from zhenfa.spec.fact import Fact, Tag, weakest
from zhenfa.spec.machine import Accelerator, Achievable, Precision

_DTYPES: Final[dict[Precision, str]] = {
    "bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8", "int8": "fp8", "fp4": "nvfp4", "fp6": "fp8",
    "int4": "nvfp4", "tf32": "bfloat16", "fp32": "bfloat16", "fp64": "bfloat16",
}  # fmt: skip
"""Data type of the tables whose kernels stand for a precision."""

_UNPACKED: Final[dict[Precision, str]] = {"int8": "int8_wo", "int4": "int4_wo", "fp4": "w4a16_mxfp4"}


_USUAL_MAKER: Final = {"experts": "trtllm"}
"""Whose kernels stand for a law where no engine is named: those of tuned libraries, which training uses too, and not
the untuned generated ones that make up most rows."""


@dataclass
class Reached:
    """Coefficients by law, the cores that tiles are spread over, and how sure they are."""

    kernels: dict[str, dict[str, float]]
    cores: float
    tag: Tag


def reached(
    accelerator: Accelerator,
    precision: Precision,
    weights: Precision | None,
    block_scaled: bool,
    engine: str | None,
    notes: list[str],
) -> Reached:
    """Return what kernels reach on an accelerator; what was assumed is added to ``notes``."""
    chip = accelerator.id
    found = _fitted(chip, precision, weights, block_scaled, engine)
    kernels = {name: dict(one.values) for name, one in found.items()}
    kernels["stream"] = {"fixed": kernels["stream"]["fixed"], "memory_share": _stream(accelerator, notes)}
    known = chip in library().factors
    stated = accelerator.achievable
    usual = measured_of(chip)
    tag: Tag = "fitted"
    if not known:
        era = generation(chip).name
        if era is None:
            notes.append(f"{chip}: kernels as on the chips that were measured (prior over chips)")
            tag = _shift(kernels, accelerator, precision, usual, notes)
        else:
            notes.append(f"{chip}: kernels as on the other chips of the {era} generation")
            _slower(kernels, accelerator, era, notes)
    cores = generation(chip).cores
    if cores is None:
        for name in ("matmul", "experts", "prefill"):
            kernels[name]["wave"] = 0.0
    own = _stated(kernels, stated, usual, precision)
    if stated.cores.value is not None:
        cores = round(stated.cores.value)
    if own is not None and not known:  # what was measured on this very card outweighs the prior for the rest
        tag = weakest(own, "fitted" if tag == "fitted" else "assumed")
    return Reached(kernels, float(cores or 1), tag)


def _fitted(
    chip: str, precision: Precision, weights: Precision | None, block_scaled: bool, engine: str | None
) -> dict[str, Found]:
    """Return the entry of the library for each law."""
    shelf = library()
    dtype = _DTYPES[precision]
    if dtype == "fp8" and block_scaled:
        dtype = "fp8_block"
    unpacked = _UNPACKED.get(weights or precision)
    if weights is not None and unpacked is not None and precision in {"bf16", "fp16"}:
        dtype = unpacked
    asked = {
        "matmul": ("gemm", dtype if dtype != "w4a16_mxfp4" else "int4_wo"), "experts": ("moe", dtype),
        "prefill": ("context_attention", "bfloat16/bfloat16"), "decode": ("generation_attention", "bfloat16/bfloat16"),
        "decode8": ("generation_attention", "bfloat16/fp8"), "latent_prefill": ("context_mla", "bfloat16/bfloat16"),
        "latent": ("generation_mla", "bfloat16/bfloat16"), "scan": ("gdn", "context"),
        "scan_step": ("gdn", "generation"), "stream": ("gemm", "bfloat16"),
    }  # fmt: skip
    found = {}
    for law, (op, kind) in asked.items():
        maker = engine or _USUAL_MAKER.get(law)
        kernel = shelf.best_kernel(op, kind, chip, maker) if maker is not None else None
        found[law] = shelf.find(op, kind, chip, maker if kernel else None, kernel)
    return found


CUT: Final = 0.5
"""Below this share of its generation's peak per core, a chip's matrix units are cut by design, and not clocked down."""


def _slower(kernels: dict[str, dict[str, float]], accelerator: Accelerator, era: str, notes: list[str]) -> None:
    """Let kernels reach more of the peak on a chip whose cores have fewer matrix units than their generation's.

    What keeps a kernel from the peak (loads, scaling, softmax, filling a tile) takes the other parts of a core, which
    are whole: the share ``s`` becomes ``1/(1 + (1/s - 1) ratio)``, and costs counted in FLOP (a tile filled, rows that
    pad an expert's last tile, cores that wait beside it) shrink with the ratio.
    """
    peak, cores = accelerator.peak.get("bf16"), generation(accelerator.id).cores
    usual = _peak_of_a_core(era)
    if peak is None or peak.value is None or not cores or usual is None:
        return
    ratio = peak.value / cores / usual
    if ratio >= CUT:
        return
    for one in kernels.values():
        for name in ("share", "attention", "index"):
            if one.get(name):
                one[name] = 1.0 / (1.0 + (1.0 / min(one[name], 1.0) - 1.0) * ratio)
        for name in ("fill", "pad", "softmax", *(["wave"] if "pad" in one else [])):
            if name in one:
                one[name] *= ratio
    notes.append(f"{accelerator.id}: matrix units cut to {ratio:.0%} of the generation's, of which kernels reach more")


@cache
def _peak_of_a_core(era: str) -> float | None:
    """Return the median bf16 peak of a core of a generation's measured chips."""
    found = []
    for chip in library().factors:
        one = catalog.accelerators().get(chip)
        cores, peak = generation(chip).cores, one.peak.get("bf16") if one is not None else None
        if generation(chip).name == era and cores and peak is not None and peak.value is not None:
            found.append(peak.value / cores)
    return median(found) if found else None


def _stream(accelerator: Accelerator, notes: list[str]) -> float:
    """Return the share of the bandwidth that a stream reaches: measured on the chip, or the median of all measured."""
    measured = accelerator.achievable.memory
    if measured.value is not None:
        return measured.require(f"{accelerator.id}.achievable.memory")
    prior = priors.memory_share()
    notes.append(f"{accelerator.id}: achievable bandwidth {prior.value:.0%} ({prior.why})")
    return prior.value


def measured_of(chip: str) -> Achievable:
    """Return what the catalog has measured of a chip."""
    name = catalog.accelerators().get(chip)
    return name.achievable if name is not None else Achievable()


@cache
def _usual(what: str) -> float:
    """Return the median, over the chips that the laws were fitted to, of the best share that others measured."""
    shares = []
    for chip in library().factors:
        one = measured_of(chip)
        fact = one.memory if what == "memory" else one.matmul.get(what)  # type: ignore[call-overload]
        shares += [fact.value] if fact is not None and fact.value is not None else []
    return median(shares) if shares else 0.8


def _shift(
    kernels: dict[str, dict[str, float]], accelerator: Accelerator, precision: Precision, usual: Achievable,
    notes: list[str],
) -> Tag:  # fmt: skip
    """Scale the prior by how the chip's best matmul and stream compare with the usual; return the weakest tag used."""
    tags: list[Tag] = []
    narrow = precision in {"fp8", "int8", "fp4", "int4", "fp6"}
    for key in (precision, "fp8" if narrow else "bf16", "fp16", "bf16"):
        fact = usual.matmul.get(key)
        if fact is not None and fact.value is not None:
            factor = fact.require(accelerator.id) / _usual("fp8" if key in {"fp8", "int8", "fp4"} else "bf16")
            for one in kernels.values():
                for name in ("share", "attention", "index"):
                    if name in one:
                        one[name] = min(one[name] * factor, 1.0)
            notes.append(
                f"{accelerator.id}: kernels scaled by {factor:.2f}, as its best {key} matmul ({fact.value:.0%})"
            )
            tags.append("fitted")
            break
    else:
        tags.append("assumed")
    if usual.memory.value is not None:
        factor = usual.memory.require(accelerator.id) / _usual("memory")
        for law, one in kernels.items():
            if law == "stream":
                continue
            one["memory_share"] = min(one["memory_share"] * factor, 1.0)
        notes.append(
            f"{accelerator.id}: streams scaled by {factor:.2f}, as its measured one ({usual.memory.value:.0%})"
        )
    return weakest(*tags)


def own_fact(fact: Fact | None, usual: Fact | None) -> Fact | None:
    """Return a stated fact that says something else than the catalog."""
    if fact is None or fact.value is None or (usual is not None and usual.value == fact.value):
        return None
    return fact


def _stated(
    kernels: dict[str, dict[str, float]], stated: Achievable, usual: Achievable, precision: Precision
) -> Tag | None:
    """Put in what the document states of the chip; return the weakest tag of it."""
    tags: list[Tag] = []

    def put(fact: Fact | None, name: str, *laws: str) -> None:
        if fact is not None and fact.value is not None:
            tags.append(fact.tag)
            for law in laws:
                kernels[law][name] = fact.value

    for key in (precision, *_SIBLINGS.get(precision, ())):
        share = own_fact(stated.matmul.get(key), usual.matmul.get(key))
        if share is not None and share.value is not None:
            factor = share.value / kernels["matmul"]["share"]
            for law in ("experts", "prefill", "latent_prefill", "scan"):
                kernels[law]["share"] = min(kernels[law]["share"] * factor, 1.0)
            put(share, "share", "matmul")
            break
    put(own_fact(stated.attention.get(precision), usual.attention.get(precision)), "share", "prefill", "latent_prefill")
    put(own_fact(stated.scan, usual.scan), "share", "scan")
    streams = (
        "stream",
        "matmul",
        "experts",
        "prefill",
        "latent_prefill",
        "scan",
        "scan_step",
        "decode",
        "decode8",
        "latent",
    )
    put(own_fact(stated.memory, usual.memory), "memory_share", *streams)
    put(own_fact(stated.decode, usual.decode), "memory_share", "decode", "decode8", "latent")
    every = (
        "stream",
        "matmul",
        "experts",
        "prefill",
        "latent_prefill",
        "decode",
        "decode8",
        "latent",
        "scan",
        "scan_step",
    )
    put(own_fact(stated.launch, usual.launch), "fixed", *every)
    put(
        own_fact(stated.attention_launch, usual.attention_launch),
        "fixed",
        "prefill",
        "latent_prefill",
        "decode",
        "decode8",
        "latent",
    )
    put(own_fact(stated.scan_launch, usual.scan_launch), "fixed", "scan", "scan_step")
    put(own_fact(stated.fill, usual.fill), "fill", "matmul", "experts")
    return weakest(*tags) if tags else None


_SIBLINGS: Final[dict[Precision, tuple[Precision, ...]]] = {"bf16": ("fp16",), "fp16": ("bf16",)}
