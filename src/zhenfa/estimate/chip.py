"""A pool's cards as plain floats for the laws, with the tag of each and a list of what was assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from zhenfa import units
from zhenfa.errors import MissingFactError
from zhenfa.estimate import priors
from zhenfa.estimate.reached import Reached, reached
from zhenfa.estimate.traits import RUNTIME_BYTES
from zhenfa.spec.fact import Fact, Tag, missing, weakest
from zhenfa.spec.machine import BYTES, Accelerator, Achievable, CardPool, Precision

ACTIVATION_BYTES: Final = 2.0
"""Bytes per element of what flows between kernels in 16-bit formats."""

SUBSTITUTES: Final[dict[Precision, tuple[str, ...]]] = {
    "bf16": ("bf16_cube", "bf16", "fp16", "aggregate_dtype_unstated"),
    "fp16": ("fp16_cube", "fp16", "bf16_cube", "bf16", "aggregate_dtype_unstated"),
    "fp8": ("fp8_cube", "fp8"),
    "fp4": ("fp4_cube", "fp4"),
    "tf32": ("tf32", "fp32"),
}


@dataclass(frozen=True)
class Processor:
    """What the laws need of a host's processor beyond a card's: FLOP/s of attention, B/s of keys and values and of
    weights that come from memory, seconds of an attention kernel beyond its work and of automatic differentiation for
    each kernel, and the speed of chains of element-wise operators over a stream's, forward and backward."""

    attention_rate: float
    cold_rate: float
    attention_launch: float
    weight_rate: float
    autograd: float = 0.0
    chains: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chip:
    """One accelerator as the laws see it. Rates are per card; ``tag`` is the weakest of the inputs' tags.

    ``achievable`` is the share of the peak that a large matmul reaches, ``memory_share`` that of the bandwidth that a
    stream reaches, ``launch`` the seconds of the smallest kernel. ``kernels`` holds the coefficients of each law (see
    :data:`~zhenfa.estimate.coefficients.LAWS`), ``cores`` what they spread tiles over, ``tile`` its rows and columns.
    """

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
    cores: float = 1.0
    weight_bytes: float = 2.0
    input_bytes: float = 2.0
    tile: tuple[float, float] = (128.0, 128.0)
    kernels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    processor: Processor | None = None
    """Set where the card is a host's processor."""
    lockstep: float = 1.0
    """Seconds of work that cards do together over those of one card, where that was measured."""
    room: float = 1.0
    """Bytes that a job may fill over ``capacity``."""
    learned: float = 1.0
    """Seconds of training's forwards and backwards, as runs measured them, over those of the laws."""
    learned_update: float = 1.0
    """The same of the optimizer's update."""

    @property
    def usable(self) -> float:
        """Return the bytes that a job may fill."""
        return self.capacity if self.emulated else self.capacity * self.room


def room(capacity: Fact) -> float:
    """Return the share of a card's memory that a job may fill: above 1 where a maker's gigabyte is a binary one.

    Left free: what the runtime takes, and what fragmentation does.

    >>> from zhenfa.spec.fact import read_fact
    >>> round(80e9 * room(read_fact("80 GB", "data")) / 1e9, 1), round(80e9 * room(read_fact(80e9, "data")) / 1e9, 1)
    (81.2, 75.4)
    """
    binary = capacity.unit == "GB" and capacity.confidence != "calibrated"
    whole = priors.MAKERS_GIGABYTE if binary else 1.0
    taken = RUNTIME_BYTES / capacity.value if capacity.value else 0.0
    return whole - min(taken + priors.MEMORY_RESERVE * whole, priors.MOST_RESERVED * whole)


def matmul_peak(accelerator: Accelerator, precision: Precision) -> tuple[float, Tag, str | None]:
    """Return peak FLOP/s of matmul at a precision, its tag, and a note if another figure had to stand in for it.

    Raises :class:`MissingFactError` if nobody has published one.
    """
    for key in SUBSTITUTES.get(precision, (precision,)):
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
    usable = usable_precision(accelerator)
    other = f" Or ask for one that it has: workload.precision: {usable}." if usable else ""
    raise MissingFactError(problem.message + extra, hint=f"{problem.hint}{other}")


def in_precisions(pool: CardPool, allowed: Sequence[Precision]) -> dict[Precision, Chip]:
    """Return a pool's card in each of the precisions that its facts have a rate for, in their order.

    Raises :class:`MissingFactError` where there is none, naming those that it has.
    """
    found: dict[Precision, Chip] = {}
    for one in allowed:
        try:
            matmul_peak(pool.accelerator, one)
        except MissingFactError as problem:
            refused = problem
        else:
            found[one] = chip(pool, one)
    if not found:
        raise _none_of(pool.accelerator, allowed, refused)
    return found


def _none_of(accelerator: Accelerator, allowed: Sequence[Precision], problem: MissingFactError) -> MissingFactError:
    """Return the error for a card that has none of the allowed precisions, with one that it has as a way out."""
    has = usable_precision(accelerator)
    if has is None:
        return problem
    names = " or ".join(allowed)
    supply = problem.hint.partition(" Or ")[0] if problem.hint else ""
    way = f"allow one that it has beside {'it' if len(allowed) == 1 else 'them'}: workload.precision: "
    listed = f"[{', '.join([*allowed, has])}]"
    said = problem.message if len(allowed) == 1 else f"{problem.message} {accelerator.id} has no {names} to compute in."
    return MissingFactError(said, hint=f"{supply} Or {way}{listed}.")


def usable_precision(accelerator: Accelerator) -> Precision | None:
    """Return the first of bf16, fp16 and fp32 that a card has a rate for; None for none."""
    wide: tuple[Precision, ...] = ("bf16", "fp16", "fp32")
    facts = ((one, accelerator.peak.get(one)) for one in wide)
    return next((one for one, fact in facts if fact is not None and fact.value is not None), None)


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
    ``vllm``, ``sglang``), by default what is typical of the three.

    Raises :class:`MissingFactError` naming the first undisclosed value that no prior may stand in for.
    """
    accelerator = pool.accelerator
    name = accelerator.id
    peak, peak_tag, note = matmul_peak(accelerator, precision)
    notes = [note] if note else []
    attention = peak if precision not in {"fp8", "fp4", "int8"} else matmul_peak(accelerator, "bf16")[0]
    bandwidth = accelerator.memory.bandwidth.require(f"{name}.memory.bandwidth")
    capacity = accelerator.memory.capacity.require(f"{name}.memory.capacity")
    if accelerator.emulated:
        found = _emulated(accelerator, precision)
    elif on_processor(accelerator):
        found = _calibrated(
            accelerator, precision, reached(accelerator, precision, weights, block_scaled, engine, []), notes
        )
    else:
        found = reached(accelerator, precision, weights, block_scaled, engine, notes)
    size = BYTES[weights or precision]
    scaled = BYTES[precision] < ACTIVATION_BYTES
    tag = weakest(peak_tag, found.tag, accelerator.memory.bandwidth.tag, accelerator.memory.capacity.tag)
    # on a processor the host's own time is part of every kernel's; on a card an engine counts it beside them
    host = accelerator.achievable.host.value if on_processor(accelerator) else None
    launch = found.kernels["stream"]["fixed"] + (host or 0.0)
    share = room(accelerator.memory.capacity)
    if not accelerator.emulated and share > 1:
        usable = units.show(capacity * share, "data")
        notes.append(
            f"{name}: {accelerator.memory.capacity.show()} of the maker are binary gigabytes; {usable} of them usable"
        )
    tile = tuple(
        fact.value or 128.0 for fact in (accelerator.achievable.tile_rows, accelerator.achievable.tile_outputs)
    )
    return Chip(
        name, accelerator.maker, precision, peak, attention, found.kernels["matmul"]["share"], bandwidth,
        found.kernels["stream"]["memory_share"], launch, capacity, accelerator.emulated, tag,
        tuple(notes), found.cores, size,
        ACTIVATION_BYTES + 2 * BYTES[precision] if scaled else max(BYTES[precision], ACTIVATION_BYTES),
        (tile[0], tile[1]), found.kernels, _processor(accelerator, precision, peak, bandwidth, found),
        accelerator.achievable.lockstep.value or 1.0,
        share,
        pool.learned.compute.value or 1.0,
        pool.learned.optimizer.value or 1.0,
    )  # fmt: skip


def _emulated(accelerator: Accelerator, precision: Precision) -> Reached:
    """Return the declared speeds of an emulated card; all of the peak where nothing is declared."""
    stated = accelerator.achievable
    own = stated.matmul.get(precision)
    share = 1.0 if own is None or own.value is None else own.value
    memory = 1.0 if stated.memory.value is None else stated.memory.value
    kernels = {
        "matmul": {"share": share, "fixed": stated.launch.value or 0.0},
        "stream": {"memory_share": memory, "fixed": stated.launch.value or 0.0},
    }
    return Reached(kernels, 1.0, "derived" if own is None else own.tag)


CHAINS: Final = ("norm", "activation", "rope", "cross-entropy")
"""Chains of element-wise operators whose pace on a processor is measured one by one."""

_ATTENTION_OF_MATMUL: Final = 0.5
_COLD_OF_WARM: Final = 0.5
"""On a processor that nobody has measured. Assumed: the order that calibrated ones show."""


def on_processor(accelerator: Accelerator) -> bool:
    """Return whether torch reaches the accelerator as the host's processor, and it is not emulated."""
    software = accelerator.software
    return not accelerator.emulated and software is not None and software.torch_device == "cpu"


def _calibrated(accelerator: Accelerator, precision: Precision, found: Reached, notes: list[str]) -> Reached:
    """Return what is known of a processor with the tag of what calibration measured, or of the assumptions without."""
    stated = accelerator.achievable
    cold = stated.decode if stated.decode.known else stated.weights
    facts = [stated.matmul.get(precision), stated.attention.get(precision), stated.memory, cold, stated.launch]
    if all(fact is not None and fact.known for fact in facts):
        return replace(found, tag=weakest(*(fact.tag for fact in facts if fact is not None)))
    notes.append(f"{accelerator.id}: a processor that nobody has calibrated: the prior over chips stands in")
    return replace(found, tag="assumed")


def _processor(
    accelerator: Accelerator, precision: Precision, peak: float, bandwidth: float, found: Reached
) -> Processor | None:
    """Return what the laws need of a host's processor; None for any other card, and for an emulated one."""
    if not on_processor(accelerator):
        return None
    stated = accelerator.achievable
    attention, cold = stated.attention.get(precision), stated.decode.value
    own = attention.value if attention is not None else None
    longer, weights = stated.attention_launch.value, stated.weights.value
    rate, warm = peak * found.kernels["matmul"]["share"], bandwidth * found.kernels["stream"]["memory_share"]
    cold = weights if cold is None else cold  # a cache that is read no faster than its arithmetic shows no rate
    cold_rate = warm * _COLD_OF_WARM if cold is None else bandwidth * cold
    chains = {name: (_pace(stated, name), _pace(stated, f"{name} backward")) for name in CHAINS}
    return Processor(
        rate * _ATTENTION_OF_MATMUL if own is None else peak * own,
        cold_rate,
        (found.kernels["stream"]["fixed"] if longer is None else longer) + (stated.host.value or 0.0),
        cold_rate if weights is None else bandwidth * weights,
        stated.autograd.value or 0.0,
        {name: paces for name, paces in chains.items() if paces != (1.0, 1.0)},
    )


def _pace(stated: Achievable, name: str) -> float:
    found = stated.chains.get(name)
    return 1.0 if found is None or found.value is None else found.value
