"""Where the coefficient that carries an operator's time comes from: its tag, and a few words."""

from __future__ import annotations

from typing import Final, NamedTuple

from zhenfa.estimate.chip import SUBSTITUTES, on_processor
from zhenfa.estimate.coefficients import generation, library
from zhenfa.estimate.reached import measured_of, own_fact
from zhenfa.spec.fact import WEAKNESS, Fact, Tag
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import Accelerator, Precision


class Origin(NamedTuple):
    """The tag of what an operator's time rests on most weakly, and what that is."""

    tag: Tag
    words: str


_LAWS: Final = {"matmul": "matmul", "grouped_matmul": "matmul", "attention": "attention", "scan": "scan"}
"""Kinds of operators that arithmetic carries, and the stated coefficient of each; all others stream memory."""


def origin(operator: Operator, accelerator: Accelerator, precision: Precision) -> Origin:
    """Return the weakest of what carries an operator on a card: the rate of its data sheet, or what kernels reach."""
    rate = _peak(accelerator, precision) if operator.kind in _LAWS else _bandwidth(accelerator)
    return max(_reached(operator, accelerator, precision), rate, key=lambda one: WEAKNESS[one.tag])


def _peak(accelerator: Accelerator, precision: Precision) -> Origin:
    for key in SUBSTITUTES.get(precision, (precision,)):
        fact = accelerator.peak.get(key)
        if fact is not None and fact.value is not None:
            own = key.startswith(precision)
            return Origin(fact.tag if own else "assumed", f"{key} peak" if own else f"{key} peak for {precision}")
    return Origin("assumed", f"{precision} peak")


def _bandwidth(accelerator: Accelerator) -> Origin:
    return Origin(accelerator.memory.bandwidth.tag, "memory bandwidth")


def _reached(operator: Operator, accelerator: Accelerator, precision: Precision) -> Origin:
    """Return where the share of the rate comes from that kernels of this sort reach."""
    if accelerator.emulated:
        return Origin("derived", "declared for emulated cards")
    law, stated, usual = _LAWS.get(operator.kind, "stream"), accelerator.achievable, measured_of(accelerator.id)
    fact: Fact | None = stated.memory
    if law in ("matmul", "attention"):
        fact = own_fact(getattr(stated, law).get(precision), getattr(usual, law).get(precision))
    elif law == "scan":
        fact = own_fact(stated.scan, usual.scan)
    if fact is not None and fact.value is not None:
        how = "measured on" if fact.tag == "measured" else "stated of"
        return Origin(fact.tag, f"{'streams' if law == 'stream' else law} {how} this card")
    if law == "stream":
        return Origin("assumed", "median share of the bandwidth on measured cards")
    if on_processor(accelerator):
        return Origin("assumed", "a processor that nobody has calibrated")
    if accelerator.id in library().factors:
        return Origin("fitted", "fitted to this chip's operator tables")
    era = generation(accelerator.id).name
    if era is not None:
        return Origin("fitted", f"fitted to other {era} chips")
    known = any(usual.matmul.get(key) for key in (precision, "bf16", "fp16"))
    return Origin("fitted" if known else "assumed", f"prior over chips{', scaled by its best matmul' if known else ''}")
