"""The accelerator that the timings describe: coefficients fitted, each with source, confidence and spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zhenfa import catalog, units
from zhenfa.live.calibrate import predict
from zhenfa.live.calibrate.fit import Fitted, Knob, fit
from zhenfa.live.calibrate.samples import CHAINS, Sample, quantile
from zhenfa.live.calibrate.session import Measurements
from zhenfa.live.makers import DeviceRecord, maker
from zhenfa.spec import fact as facts
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Accelerator, Memory, Precision, Software

HEADROOM: Final = 2.0
"""Where no maker states a peak, the search takes twice the best that was measured; the result is then stated as the
peak that the timings tend to, of which large kernels reach all."""
BEYOND: Final = 16.0
"""How many times that peak the search may reach: where memory holds every matmul back, arithmetic is far faster than
the best that was measured."""

FITTED_KINDS: Final = (
    "matmul", "attention", "attention backward", "decode", "stream", "chain", "chain backward", "launch",
    "eager decode", "eager step", "optimizer",
)  # fmt: skip
ON_PROCESSORS: Final = frozenset({"chain", "chain backward", "eager decode", "eager step"})
"""Kinds that are fitted where the host's time is part of every kernel's; a card's host is told by them apart."""
RATIOS: Final = ("matmul", "attention", "memory", "decode", "weights", "chains")
DIMENSIONS: Final[dict[str, units.Dimension]] = {
    "memory": "ratio", "decode": "ratio", "launch": "time", "attention_launch": "time", "host": "time", "fill": "count",
    "autograd": "time", "weights": "ratio", "lockstep": "ratio",
}  # fmt: skip
TELLS: Final = {
    "matmul": ("matmul",), "attention": ("attention", "attention backward"), "memory": ("stream", "optimizer"),
    "decode": ("decode",), "weights": ("matmul",), "chains": ("chain", "chain backward"),
    "launch": ("launch", "stream", "matmul"), "host": ("eager decode",), "autograd": ("eager step",),
    "fill": ("matmul",), "attention_launch": ("attention", "decode"),
}  # fmt: skip
"""The kinds of timings that each coefficient is told by."""


LOCKSTEP: Final = "the slowest card's seconds of each round of timings over the mean card's"


@dataclass(frozen=True)
class Calibrated:
    """An accelerator with what it was made from: per timing its predicted over measured seconds."""

    accelerator: Accelerator
    measurements: Measurements
    samples: tuple[Sample, ...]
    ratios: tuple[float, ...]

    def error(self, kind: str) -> tuple[int, float, float]:
        """Return how many timings of a kind there are, and the median and p90 of abs(ln(predicted / measured))."""
        found = [abs(float(np.log(ratio))) for one, ratio in zip(self.samples, self.ratios, strict=True)
                 if one.task.kind == kind]  # fmt: skip
        return len(found), quantile(found, 0.5), quantile(found, 0.9)


def card_of(measurements: Measurements) -> Calibrated:
    """Fit the coefficients of the laws to what was measured.

    The maker's peaks and bandwidth are taken from the catalog where it knows the device by its name; else the peaks are
    those that the timings tend to.
    """
    fitted = [kind for kind in FITTED_KINDS if measurements.device.provider == "cpu" or kind not in ON_PROCESSORS]
    samples = [one for one in measurements.samples if one.task.kind in fitted and one.seconds]
    words = measurements.source
    known = catalog.find_accelerator(measurements.device.name) if measurements.device.provider != "cpu" else None
    base = known or _unknown(measurements, samples, words)
    precisions = list(dict.fromkeys(one.task.precision for one in samples if one.task.kind == "matmul"))
    knobs = _knobs(samples, precisions, 1.0 if known else BEYOND)
    tasks = [one.task for one in samples]
    measured = np.array([one.middle * measurements.stretch for one in samples])

    def predicted(values: Mapping[str, float]) -> Any:
        return predict.seconds(tasks, _with(base, {name: (value, "") for name, value in values.items()}, words))

    found = fit(knobs, predicted, list(measured), _weights(samples))
    kept = {name: found.values[name] for name in found.values if name in found.shown}
    if known is None:
        base, kept = _whole(base, kept)
    noted = {name: (value, _spread(name, value, samples, found)) for name, value in kept.items()}
    if measurements.device.provider != "cpu" and (issued := predict.issuing(measurements.samples, base)):
        noted["host"] = (issued, "the smaller of a decode and a training step with next to no work, by kernel")
    accelerator = _named(_with(base, noted, words), measurements, known)
    if measurements.cards > 1:
        accelerator = _with(accelerator, {"lockstep": (measurements.lockstep, LOCKSTEP)}, words)
    ratios = predict.seconds(tasks, accelerator) / measured
    return Calibrated(accelerator, measurements, tuple(samples), tuple(float(one) for one in ratios))


def _knobs(samples: Sequence[Sample], precisions: Sequence[Precision], most: float) -> list[Knob]:
    found = []
    for precision in precisions:
        found.append(Knob(f"matmul.{precision}", 0.5, 0.01, most))
        found.append(Knob(f"attention.{precision}", 0.3, 0.005, most))
    tiny = [one.median for one in samples if one.task.kind == "launch"]
    launch = max(min(tiny, default=4e-6), 1e-7)
    kinds = {one.task.kind for one in samples}
    found += [Knob("memory", 0.5, 0.01, 1.0), Knob("launch", launch, launch / 5, launch * 5)]
    found += [Knob("fill", 32.0, 1.0, 1024.0), Knob("attention_launch", 2 * launch, launch / 5, launch * 200)]
    if "eager step" in kinds:
        found += [Knob(name, 2 * launch, launch / 20, launch * 50) for name in ("host", "autograd")]
        found.append(Knob("weights", 0.3, 0.01, 1.0))
    for name in dict.fromkeys(_chain_of(one) for one in samples if one.task.kind in {"chain", "chain backward"}):
        found.append(Knob(name, 1.0, 0.05, 20.0))
    return found + ([Knob("decode", 0.5, 0.01, 1.0)] if "decode" in kinds else [])


def _told(one: Sample) -> str:
    return _chain_of(one) if one.task.kind.startswith("chain") else ""


def _chain_of(one: Sample) -> str:
    """Return the coefficient of the chain and pass that was timed."""
    return "chains." + CHAINS[one.task.sizes["what"]] + (" backward" if one.task.kind == "chain backward" else "")


def _weights(samples: Sequence[Sample]) -> list[float]:
    """Weigh each kind alike, however many timings it has."""
    counts = {one.task.kind: 0 for one in samples}
    for one in samples:
        counts[one.task.kind] += 1
    mean = len(samples) / len(counts)
    return [mean / counts[one.task.kind] for one in samples]


def _with(base: Accelerator, values: Mapping[str, tuple[float, str]], words: str) -> Accelerator:
    """Return the accelerator with coefficients put in, each with a note."""
    changes: dict[str, Any] = {name: dict(getattr(base.achievable, name)) for name in ("matmul", "attention", "chains")}
    for name, (value, note) in values.items():
        field, _, precision = name.partition(".")
        if precision:
            changes[field][precision] = _fact(value, "ratio", words, note)
        else:
            changes[field] = _fact(value, DIMENSIONS[field], words, note)
    return base.model_copy(update={"achievable": base.achievable.model_copy(update=changes)})


UNITS: Final[dict[units.Dimension, str]] = {"speed": "GFLOPS", "rate": "GB/s", "data": "GB", "time": "us"}
"""The units in which measured values are written; others in their base unit."""


def _fact(value: float, dimension: units.Dimension, words: str, note: str) -> Fact:
    unit = UNITS.get(dimension, units.BASE[dimension])
    scale = units.factor(unit, dimension)
    return Fact(
        value=float(f"{value / scale:.5g}") * scale, dimension=dimension, unit=unit, source=words,
        confidence="calibrated", note=note or None,
    )  # fmt: skip


def _spread(name: str, value: float, samples: Sequence[Sample], found: Fitted) -> str:
    """Say between what the coefficient would lie if each of the timings that tell it decided alone."""
    kinds = TELLS[name.partition(".")[0]]
    precision = name.partition(".")[2]
    rest = [
        float(residual)
        for one, residual in zip(samples, found.residuals, strict=True)
        if one.task.kind in kinds and (not precision or precision == one.task.precision or name == _told(one))
    ]
    rise = 1.0 if name.partition(".")[0] in RATIOS else -1.0
    low, high = sorted(value * float(np.exp(rise * quantile(rest, share))) for share in (0.1, 0.9))
    dimension = DIMENSIONS.get(name, "ratio")
    ends = (units.show(end, dimension) if dimension == "time" else f"{end:.3g}" for end in (low, high))
    return f"10 to 90 % of {len(rest)} timings: {' to '.join(ends)}"


def _unknown(measurements: Measurements, samples: Sequence[Sample], words: str) -> Accelerator:
    """Return an accelerator that no maker describes, its peaks :data:`HEADROOM` times the best that was measured."""
    peaks: dict[str, Fact] = {}
    for one in samples:
        if one.task.kind == "matmul":
            sizes = one.task.sizes
            speed = HEADROOM * 2.0 * sizes["rows"] * sizes["inputs"] * sizes["outputs"] / one.p10
            before = peaks.get(one.task.precision)
            if before is None or speed > (before.value or 0.0):
                peaks[one.task.precision] = _fact(speed, "speed", words, "")
    streams = [
        HEADROOM * 4.0 * one.task.sizes["elements"] * one.task.sizes["tensors"] / one.p10
        for one in samples
        if one.task.kind == "stream"
    ]
    whole = measurements.device.memory_bytes
    capacity = whole and whole / (measurements.cards if measurements.device.provider == "cpu" else 1)
    shared = "this card's share of the host's" if measurements.device.provider == "cpu" else ""
    return Accelerator(
        id="measured-card", maker=measurements.device.maker, name=measurements.device.name, peak=peaks,
        memory=Memory(
            capacity=_fact(capacity, "data", words, shared) if capacity else facts.undisclosed("data"),
            bandwidth=_fact(max(streams), "rate", words, ""),
        ),
        software=_software(measurements.device),
    )  # fmt: skip


def _whole(base: Accelerator, values: Mapping[str, float]) -> tuple[Accelerator, dict[str, float]]:
    """State the peaks and the bandwidth that the timings tend to, of which large kernels then reach all."""
    found, peak = dict(values), dict(base.peak)
    for precision, before in base.peak.items():
        share = found.get(f"matmul.{precision}", 1.0)
        tends = "no maker states a peak: the speed to which the timed matmuls tend"
        peak[precision] = _times(before, share, tends)
        for name in (f"matmul.{precision}", f"attention.{precision}"):
            if name in found:
                found[name] /= share
    share = found.get("memory", 1.0)
    reach = "no maker states it: what the timed streams reach, one of three tensors from memory, two from cache"
    memory = base.memory.model_copy(update={"bandwidth": _times(base.memory.bandwidth, share, reach)})
    for name in ("memory", "decode", "weights"):
        if name in found:
            found[name] /= share
    return base.model_copy(update={"peak": peak, "memory": memory}), found


def _times(fact: Fact, share: float, note: str) -> Fact:
    return _fact((fact.value or 0.0) * share, fact.dimension, fact.source, note)


def _named(accelerator: Accelerator, measurements: Measurements, known: Accelerator | None) -> Accelerator:
    """Name the accelerator, as the catalog does if it knows it, and say how torch reaches it."""
    device = measurements.device
    threads = f"{measurements.threads} threads each" if measurements.threads > 1 else "one thread each"
    note = f"{measurements.cards} at once, {threads}; {measurements.quiet.words()}"
    return accelerator.model_copy(
        update={
            "id": known.id if known else f"{slug(device.name)}-measured",
            "aliases": (),
            "software": accelerator.software or _software(device),
            "note": note,
        }
    )


def _software(device: DeviceRecord) -> Software:
    kind = (device.torch_device or "").partition(":")[0]
    return Software(torch_device=kind, collective_backend=maker(device.provider).collective or "gloo")


def slug(text: str) -> str:
    """Return a text as a name that machines and files may have.

    >>> slug("AMD EPYC, 2 cores")
    'amd-epyc-2-cores'
    """
    letters = "".join(
        character if character.isascii() and character.isalnum() else "-" for character in text.casefold()
    )
    return "-".join(part for part in letters.split("-") if part)[:60] or "device"
