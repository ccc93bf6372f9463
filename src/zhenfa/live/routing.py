"""How evenly the tokens of a run's last step fell on experts and on the cards that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from zhenfa.spec.result import Figure, Routing


def routing_of(reports: Sequence[Mapping[str, Any]]) -> Routing | None:
    """Return what the cards counted (``chosen`` by layer, ``loads`` by exchange); None of a dense model."""
    layers: dict[str, Counter[int]] = {}
    for report in reports:
        for layer, counts in report["routing"]["chosen"].items():
            layers.setdefault(layer, Counter()).update(dict(enumerate(counts)))
    if not layers:
        return None
    ratios = [max(counts.values()) * len(counts) / counts.total() for counts in layers.values() if counts.total()]
    return Routing(
        busiest_expert=Figure(
            value=sum(ratios) / len(ratios), tag="measured",
            note="tokens of a layer's busiest expert in a step over the mean, mean over layers",
        ),
        busiest_card=_of_cards([load for report in reports for load in report["routing"]["loads"]]),
        unused_experts=sum(count == 0 for counts in layers.values() for count in counts.values()),
        experts=sum(len(counts) for counts in layers.values()),
    )  # fmt: skip


def busiest_card(reports: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the tokens of the busiest of the cards that share experts out over the mean; None where none do, or
    nothing was counted."""
    return _of_cards([load for report in reports for load in report["routing"]["loads"]]).value


def _of_cards(loads: Sequence[float]) -> Figure:
    if not loads:
        return Figure()
    note = "tokens on the busiest of the cards that share experts out over the mean, mean over exchanges"
    return Figure(value=sum(loads) / len(loads), tag="measured", note=note)
