"""A pool's cards as plain floats for the laws, with the tag of each and a list of what was assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zhenfa.errors import MissingFactError
from zhenfa.estimate import priors
from zhenfa.spec.fact import Tag, missing, weakest
from zhenfa.spec.machine import Accelerator, CardPool, Precision

_SUBSTITUTES: Final[dict[Precision, tuple[str, ...]]] = {
    "bf16": ("bf16_cube", "bf16", "fp16", "aggregate_dtype_unstated"),
    "fp16": ("fp16_cube", "fp16", "bf16_cube", "bf16", "aggregate_dtype_unstated"),
    "fp8": ("fp8_cube", "fp8"),
    "fp4": ("fp4_cube", "fp4"),
    "tf32": ("tf32", "fp32"),
}


@dataclass(frozen=True)
class Processor:
    """What the laws need of a host's processor beyond a card's: FLOP/s of attention, B/s of operands that come from
    memory, seconds of an attention kernel beyond its work."""

    attention_rate: float
    cold_rate: float
    attention_launch: float


@dataclass(frozen=True)
class Chip:
    """One accelerator as the laws see it. Rates are per card; ``tag`` is the weakest of the inputs' tags."""

    name: str
    maker: str
    precision: Precision
    peak: float
    peak_attention: float
    achievable: float
    bandwidth: float
    memory_share: float
    launch: float
    capacity: float
    emulated: bool
    tag: Tag
    assumptions: tuple[str, ...]
    processor: Processor | None = None
    """Set where the card is a host's processor."""

    @property
    def usable(self) -> float:
        """Return the bytes that a job may fill."""
        return self.capacity if self.emulated else self.capacity * (1 - priors.MEMORY_RESERVE)


def matmul_peak(accelerator: Accelerator, precision: Precision) -> tuple[float, Tag, str | None]:
    """Return peak FLOP/s of matmul at a precision, its tag, and a note if another figure had to stand in for it.

    Raises :class:`MissingFactError` if nobody has published one.
    """
    for key in _SUBSTITUTES.get(precision, (precision,)):
        fact = accelerator.peak.get(key)
        if fact is not None and fact.value is not None:
            note = None
            if key == "aggregate_dtype_unstated":
                note = f"{accelerator.id}: the vendor's {fact.show()} states no data type; taken as {precision}"
            elif not key.startswith(precision):
                note = f"{accelerator.id}: {key} peak stands in for {precision}"
            return fact.require(f"{accelerator.id}.peak.{key}"), "assumed" if note else fact.tag, note
    published = sorted(key for key, fact in accelerator.peak.items() if fact.value is not None)
    given = accelerator.peak.get(precision)
    problem = missing(f"{accelerator.id}.peak.{precision}", "speed", given.note if given else None)
    extra = f" Published: {', '.join(published)}." if published else ""
    raise MissingFactError(problem.message + extra, hint=problem.hint)


def chip(
    pool: CardPool,
    precision: Precision,
    *,
    weights: Precision | None = None,
    block_scaled: bool = False,
    engine: str | None = None,
) -> Chip:
    """Look up what the laws need of a pool's card.

    ``precision`` of the arithmetic; ``weights``: the narrower one in which weights are stored, where they are unpacked
    on the way in; ``block_scaled``: 8-bit numbers carry a scale per block; ``engine`` whose kernels run (``trtllm``,
    ``vllm``, ``sglang``), by default the median of the three.

    Raises :class:`MissingFactError` naming the first undisclosed value that no prior may stand in for.
    """
    del weights, block_scaled, engine
    accelerator = pool.accelerator
    name = accelerator.id
    peak, peak_tag, note = matmul_peak(accelerator, precision)
    notes = [note] if note else []
    attention = peak if precision not in {"fp8", "fp4", "int8"} else matmul_peak(accelerator, "bf16")[0]
    share, share_tag = _share(accelerator, precision, notes)
    memory_share, memory_tag = _memory_share(accelerator, notes)
    launch = accelerator.achievable.launch.value
    if launch is None:
        launch = priors.LAUNCH_S
        notes.append(f"{name}: {1e6 * launch:.0f} us to launch a kernel (stated constant)")
    bandwidth = accelerator.memory.bandwidth.require(f"{name}.memory.bandwidth")
    capacity = accelerator.memory.capacity.require(f"{name}.memory.capacity")
    tag = weakest(peak_tag, share_tag, memory_tag, accelerator.memory.bandwidth.tag, accelerator.memory.capacity.tag)
    return Chip(
        name, accelerator.maker, precision, peak, attention, share, bandwidth, memory_share, launch, capacity,
        accelerator.emulated, tag, tuple(notes),
        _processor(accelerator, precision, peak * share, bandwidth * memory_share, launch),
    )  # fmt: skip


_ATTENTION_OF_MATMUL: Final = 0.5
_COLD_OF_WARM: Final = 0.5
"""On a processor that nobody has measured. Assumed: the order that calibrated ones show."""


def _processor(
    accelerator: Accelerator, precision: Precision, rate: float, warm: float, launch: float
) -> Processor | None:
    """Return what the laws need of a host's processor; None for any other card, and for an emulated one."""
    if accelerator.emulated or accelerator.software is None or accelerator.software.torch_device != "cpu":
        return None
    reached = accelerator.achievable
    attention, cold = reached.attention.get(precision), reached.decode.value
    own = attention.value if attention is not None else None
    longer = reached.attention_launch.value
    return Processor(
        rate * _ATTENTION_OF_MATMUL if own is None else matmul_peak(accelerator, precision)[0] * own,
        warm * _COLD_OF_WARM if cold is None else accelerator.memory.bandwidth.require(accelerator.id) * cold,
        launch if longer is None else longer,
    )


_SIBLINGS: Final[dict[Precision, Precision]] = {"bf16": "fp16", "fp16": "bf16"}


def _share(accelerator: Accelerator, precision: Precision, notes: list[str]) -> tuple[float, Tag]:
    """Return the share of peak that a matmul reaches: measured, or measured in the other 16-bit format, or a prior."""
    for key in (precision, _SIBLINGS.get(precision, precision)):
        fact = accelerator.achievable.matmul.get(key)
        if fact is not None and fact.value is not None:
            if key != precision:
                notes.append(f"{accelerator.id}: the matmul share measured in {key} stands in for {precision}")
            return fact.require(f"{accelerator.id}.achievable.matmul.{key}"), fact.tag
    prior = priors.matmul_share(precision)
    notes.append(f"{accelerator.id}: matmul reaches {prior.value:.0%} of peak ({prior.why})")
    return prior.value, "assumed"


def _memory_share(accelerator: Accelerator, notes: list[str]) -> tuple[float, Tag]:
    fact = accelerator.achievable.memory
    if fact.value is not None:
        return fact.require(f"{accelerator.id}.achievable.memory"), fact.tag
    prior = priors.memory_share()
    notes.append(f"{accelerator.id}: achievable bandwidth {prior.value:.0%} ({prior.why})")
    return prior.value, "assumed"
