"""Values as words: marks of trust, counts of parameters, memory held, two figures side by side.

The difference and the ratio of two figures that are shown next to each other are the only arithmetic of the faces.
"""

from __future__ import annotations

from typing import Final

from zhenfa import cite, units
from zhenfa.spec.fact import Fact, Tag
from zhenfa.spec.plan import Plan
from zhenfa.spec.words import amount, band, bare, figure, ratio

MARKS: Final[dict[Tag, str]] = {
    "measured": "", "datasheet": "", "derived": "=", "fitted": "~", "claim": "!", "assumed": "?",
}  # fmt: skip

LEGEND: Final = "no mark: measured or datasheet; = derived; ~ fitted; ! claim or from memory; ? assumed; -: undisclosed"

EMULATED: Final = "EMULATED"


def short(fact: Fact | None, digits: int = 3) -> str:
    """Return a value with the mark of its tag, or ``-`` where nobody has published one. Its source is cited."""
    if fact is None or fact.value is None:
        return "-"
    cite.use(fact.source)
    return f"{quantity(fact, digits)}{MARKS[fact.tag]}"


def quantity(fact: Fact, digits: int = 4) -> str:
    """Return a value with its unit. A ratio above 1, such as a PUE, is no share and stays a plain number."""
    if fact.dimension == "ratio" and fact.value is not None and fact.value > 1:
        return f"{fact.value:.{digits}g}"
    if fact.dimension == "count" and fact.value is not None:
        return f"{fact.value:,.15g}" if fact.value < 1e7 else parameters(fact.value)
    return units.show(fact.value, fact.dimension, digits)


def parameters(count: float) -> str:
    """Return a count of parameters as the field writes it, in billions where it can: ``671 B``.

    >>> parameters(671_026_404_352)
    '671 B'
    """
    for letter, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {letter}" if count < 999.5 * scale else f"{count / scale:,.0f} {letter}"
    return f"{count:,.0f}"


def of(part: float, whole: float) -> str:
    """Return bytes held of bytes there are: ``94.8 of 120 GB``."""
    held, there = units.show(part, "data"), units.show(whole, "data")
    number, _, unit = held.partition(" ")
    return f"{number if there.endswith(f' {unit}') else held} of {there}"


def batches(plan: Plan) -> str:
    """Return replicas x micro-batches x sequences for each kind of pipeline; the products sum to the global batch."""
    kinds = [f"{one.count:,} x {one.micro_batches:,} x {one.micro_batch_size:,}" for one in plan.pipelines]
    return " + ".join(kinds[:2]) + (f" + {len(kinds) - 2} more" if len(kinds) > 2 else "")


def signed(share: float) -> str:
    """Return a share with its sign; without one where it rounds to nothing.

    >>> signed(0.123), signed(-0.00001)
    ('+12.3%', '0.0%')
    """
    return "0.0%" if abs(share) < 0.0005 else f"{share:+.1%}"


def difference(mine: float, other: float) -> str:
    """Return how many seconds longer ``mine`` is, with its sign."""
    gap = mine - other
    return ("-" if gap < 0 else "+") + units.show(abs(gap), "time")


__all__ = (
    "EMULATED", "LEGEND", "MARKS", "amount", "band", "bare", "batches", "difference", "figure", "of", "parameters",
    "quantity", "ratio", "short", "signed",
)  # fmt: skip
