"""What wires of one family and the libraries on them reach, beside what their data sheet says."""

from __future__ import annotations

from typing import Literal

from zhenfa.spec import fact
from zhenfa.spec.document import Part
from zhenfa.spec.machine import Name


class Reach(Part):
    """Share of the link rate inside groups of at most ``size`` cards, where hosts have no switch of their own."""

    size: int
    share: fact.Ratio = fact.empty("ratio")


class LinkFamily(Part):
    """Coefficients of a family of links; what each means is told by :class:`zhenfa.laws.fabric.Fabric`.

    ``protocols`` are the beginnings of a scale-up protocol's name that belong to the family; ``place`` says between
    what it runs. ``share`` is of the data sheet's rate, ``write_share`` that of one-sided writes where it is less than
    that of reads. ``latency`` is of one step where a machine's document does not say it; ``step`` is what the library
    adds to each, as a host's proxy does. ``spread``: half width of the band that holds four of five measurements, as a
    natural logarithm, by what is predicted (large, small, exchange, point). ``measured``: systems behind the values.
    """

    id: Name
    protocols: tuple[str, ...] = ()
    place: Literal["scale-up", "scale-out", "host"]
    reduces: bool = False
    share: fact.Ratio = fact.empty("ratio")
    write_share: fact.Ratio = fact.empty("ratio")
    reaches: tuple[Reach, ...] = ()
    latency: fact.Time = fact.empty("time")
    step: fact.Time = fact.empty("time")
    start: fact.Time = fact.empty("time")
    own_copy: fact.Rate = fact.empty("rate")
    fill: fact.Time = fact.empty("time")
    fill_bytes: fact.Data = fact.empty("data")
    switch_share: fact.Ratio = fact.empty("ratio")
    switch_gain: fact.Ratio = fact.empty("ratio")
    switch_fill: fact.Time = fact.empty("time")
    exchange: fact.Ratio = fact.empty("ratio")
    exits: fact.Count = fact.empty("count")
    peer_share: fact.Ratio = fact.empty("ratio")
    peer_start: fact.Time = fact.empty("time")
    peer_step: fact.Time = fact.empty("time")
    forward_share: fact.Ratio = fact.empty("ratio")
    forward_start: fact.Time = fact.empty("time")
    low_latency_share: fact.Ratio = fact.empty("ratio")
    low_latency_start: fact.Time = fact.empty("time")
    expert_peer: fact.Time = fact.empty("time")
    spread: dict[str, float] = {}
    measured: tuple[str, ...] = ()
    note: str | None = None
