"""A pool's card as a serving engine uses it: one :class:`Chip` for each format in which weights are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zhenfa.estimate import chip as chips
from zhenfa.estimate.chip import Chip
from zhenfa.spec.fact import Tag, weakest
from zhenfa.spec.graph import Graph
from zhenfa.spec.machine import Accelerator, CardPool, Precision
from zhenfa.spec.serving import CACHE_BYTES, WEIGHT_BYTES, CacheFormat, WeightFormat

_STORED: Final[dict[WeightFormat, Precision]] = {
    "bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "int8": "int8", "nvfp4": "fp4", "mxfp4": "fp4", "int4": "int4",
    "w4a8": "int4",
}  # fmt: skip
_MULTIPLIED: Final[dict[WeightFormat, tuple[Precision, ...]]] = {
    "bf16": ("bf16",), "fp16": ("fp16",), "fp8": ("fp8", "bf16"), "int8": ("int8", "bf16"), "nvfp4": ("fp4", "bf16"),
    "mxfp4": ("fp4", "bf16"), "int4": ("bf16",), "w4a8": ("int8", "fp8", "bf16"),
}  # fmt: skip
"""In what precision weights of a format are multiplied, the first that the card has a peak for."""

KERNEL_MAKERS: Final = ("trtllm", "vllm", "sglang")
"""Engines whose kernels were measured apart."""


@dataclass(frozen=True)
class Cards:
    """What the step laws need of the cards: a chip for each kind of operator, and bytes per stored number."""

    dense: Chip
    experts: Chip
    head: Chip
    dense_bytes: float
    expert_bytes: float
    cache_bytes: float
    moe_only: bool
    """Whether the narrow format holds only the feed-forward weights, attention staying in ``attention``."""
    attention: Chip
    attention_bytes: float

    @property
    def tag(self) -> Tag:
        """Return the weakest tag of the chips."""
        return weakest(self.dense.tag, self.experts.tag, self.head.tag, self.attention.tag)


def _has(accelerator: Accelerator, precision: Precision) -> bool:
    fact = accelerator.peak.get(precision)
    return fact is not None and fact.value is not None


def chip_for(pool: CardPool, weights: WeightFormat, *, block_scaled: bool, engine: str | None) -> Chip:
    """Return the pool's card as it multiplies weights of a format; unpacked to 16 bits where it cannot."""
    wanted = _MULTIPLIED[weights]
    precision = next((one for one in wanted if _has(pool.accelerator, one)), wanted[-1])
    stored = _STORED[weights]
    return chips.chip(
        pool, precision, weights=None if stored == precision else stored,
        block_scaled=block_scaled and precision == "fp8", engine=engine if engine in KERNEL_MAKERS else None,
    )  # fmt: skip


def stored_format(graph: Graph) -> WeightFormat:
    """Return the format in which the model's own checkpoint stores most of its weights."""
    operators = [(graph.layers.count(i) * one.parameters, one.bits) for i, kind in enumerate(graph.kinds)
                 for one in kind.operators]  # fmt: skip
    bits = max(operators, default=(0, 16.0))[1]
    if bits >= 12:
        return "bf16"
    return "fp8" if bits >= 6 else "mxfp4" if bits < 4.4 else "nvfp4"


def look_up(
    pool: CardPool,
    graph: Graph,
    weights: WeightFormat,
    cache: CacheFormat,
    *,
    attention: WeightFormat | None = None,
    engine: str | None = None,
) -> Cards:
    """Look up the chips for a model's weights in a format.

    4-bit formats of models with experts hold the feed-forward weights only, as the published checkpoints do; attention
    then stays in ``attention``, by default 16 bits. Their 8-bit formats carry a scale per block. Output projection and
    embedding are always in 16 bits.
    """
    routed = any(operator.kind == "grouped_matmul" for kind in graph.kinds for operator in kind.operators)
    scaled = routed or any(8.0 < operator.bits < 8.5 for kind in graph.kinds for operator in kind.operators)
    narrow = WEIGHT_BYTES[weights] < 1
    own: WeightFormat = attention or ("bf16" if narrow and routed else weights)

    def find(form: WeightFormat) -> Chip:
        return chip_for(pool, form, block_scaled=scaled, engine=engine)

    return Cards(
        dense=find(weights), experts=find(weights), head=find("fp16" if weights == "fp16" else "bf16"),
        dense_bytes=WEIGHT_BYTES[weights], expert_bytes=WEIGHT_BYTES[weights], cache_bytes=CACHE_BYTES[cache],
        moe_only=own != weights, attention=find(own), attention_bytes=WEIGHT_BYTES[own],
    )  # fmt: skip
