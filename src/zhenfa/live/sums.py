"""One sum of gradients over cards of one maker or of several.

Cards of one maker sum among themselves. Where several makers hold the same weights, and what crosses the bridge is
compressed or a maker has a library of its own, each maker's cards sum first, on one of them, its *head*; the heads send
each other their sums in the bridge's format; every card then adds up the same bytes in the same order, so that all come
to the same sum to the bit. What packing cuts off a head keeps and adds to the next step's sum (error feedback). Source:
Seide et al. 2014, section 3.1; Karimireddy et al. 2019 (arXiv:1901.09847), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from zhenfa.live.bridge import sides
from zhenfa.live.codec import BLOCK, moved_bytes, pack, packed_bytes, unpack
from zhenfa.live.collective import Collective, Opener, has_library
from zhenfa.live.links import Link, chain_seconds, gather_seconds, ring_of, ring_seconds
from zhenfa.live.placement import CardPlace
from zhenfa.spec.job import BridgeFormat

WIDTH: Final = 4
"""Bytes of a gradient that is summed, whatever the precision of the matmuls."""


@dataclass(frozen=True)
class Volume:
    """What one card puts onto the bridge in a sum, in bytes as computed and as sent, and the seconds on its link."""

    raw: float = 0.0
    sent: float = 0.0
    seconds: float = 0.0


@dataclass
class Exchange:
    """The cards that sum the same weights, this card (``rank``) among them.

    ``sides`` are their ranks by maker. ``whole``: all of them together, as plain sums go. ``side``: those of this
    card's maker, ``heads`` the first of every maker if this card is one; both empty where the sum is plain.
    ``memory_rate``: of the slowest emulated card, B/s.
    """

    rank: int
    ranks: tuple[int, ...]
    sides: tuple[tuple[int, ...], ...]
    kind: BridgeFormat
    apart: bool
    whole: Collective
    side: Collective | None
    heads: Collective | None
    ring: list[Link]
    side_rings: list[list[Link]]
    head_ring: list[Link]
    memory_rate: float | None
    kept: dict[tuple[str, ...], Any] = field(default_factory=dict)
    _next: dict[tuple[str, ...], Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls, opener: Opener, ranks: tuple[int, ...], links: dict[int, dict[int, Link]], kind: BridgeFormat
    ) -> Exchange | None:
        """Open the groups of some cards, which all cards of the run do; None on one that is none of them."""
        places, rank = opener.places, opener.rank
        rows = sides(places, ranks)
        apart = len(rows) > 1 and (kind != "none" or any(_has_library(places, row) for row in rows))
        whole = opener.open(ranks, host=len(rows) > 1)
        together = [opener.open(row) if apart and len(row) > 1 else None for row in rows]
        firsts = tuple(sorted(row[0] for row in rows))
        heads = opener.open(firsts, host=True) if apart else None
        if whole is None:
            return None
        side = next(one for one, row in zip(together, rows, strict=True) if rank in row)
        rates = [rate for one in ranks if (rate := places[one].memory_rate) is not None]
        return cls(
            rank, ranks, rows, kind, apart, whole, side, heads, ring_of(ranks, links),
            [ring_of(row, links) for row in rows], ring_of(firsts, links), min(rates) if rates else None,
        )  # fmt: skip

    @property
    def crosses(self) -> bool:
        """Return whether the cards are of several makers."""
        return len(self.sides) > 1

    @property
    def is_head(self) -> bool:
        """Return whether this card speaks for its maker's."""
        return self.apart and any(row[0] == self.rank for row in self.sides)

    @property
    def packs(self) -> bool:
        """Return whether this card packs its maker's sums, and keeps what is cut off."""
        return self.is_head and self.kind != "none"

    @property
    def align(self) -> int:
        """Return of how many numbers each weight of a vector takes a multiple: a block holds numbers of one weight, so
        that what all cards of a crew hold is packed alike whatever lies beside it."""
        return BLOCK if self.apart and self.kind == "int8" else 1

    @property
    def own(self) -> tuple[int, ...]:
        """Return the cards of this card's maker."""
        return next(row for row in self.sides if self.rank in row)

    def sum(self, flat: Any, names: tuple[str, ...]) -> Any:
        """Return the sum of a vector over the cards, the same on each to the bit. ``names``: of the weights in it."""
        if not self.apart:
            return self.whole.all_reduce(flat)
        head = self.own[0]
        if self.side is not None:
            flat = self.side.reduce(flat, head)
        heads = sorted(row[0] for row in self.sides)
        if self.heads is not None:
            payloads = self.heads.all_gather(self._packed(flat, names))
        else:
            size = packed_bytes(self.kind, flat.numel(), flat.element_size())
            payloads = [torch.empty(size, dtype=torch.uint8, device=flat.device) for _ in heads]
        if self.side is not None:
            payloads = [self.side.broadcast(payload, head) for payload in payloads]
        total = unpack(self.kind, payloads[0], flat)
        for payload in payloads[1:]:
            total = total + unpack(self.kind, payload, flat)
        return total

    def sum_on(self, flat: Any, names: tuple[str, ...], owner: int) -> Any:
        """Return the sum of a vector on card ``owner``, and nothing of use on the others."""
        if not self.apart:
            return self.whole.reduce(flat, owner)
        own = self.own
        head = owner if owner in own else own[0]
        if self.side is not None:
            flat = self.side.reduce(flat, head)
        if self.rank == owner:
            size = packed_bytes(self.kind, flat.numel(), flat.element_size())
            given = torch.empty(size, dtype=torch.uint8, device=flat.device)
            for row in self.sides:
                if owner not in row:
                    flat = flat + unpack(self.kind, self.whole.receive(given, row[0]), flat)
        elif self.rank == head:
            self.whole.send(self._packed(flat, names), owner)
        return flat

    def keep(self) -> None:
        """Use what packing cut off in the step's sums in the next one: the step's gradients have been used."""
        self.kept |= self._next
        self._next = {}

    def forget(self) -> None:
        """Leave what earlier steps have kept as it is: the step's gradients are not used."""
        self._next = {}

    def seconds(self, count: int) -> float:
        """Return the seconds of a sum of so many gradients on emulated links, once all cards are there."""
        size = count * WIDTH
        if not self.apart:
            return ring_seconds(size, self.ring)
        packed = packed_bytes(self.kind, count, WIDTH)
        inside = max(ring_seconds(size, ring) for ring in self.side_rings)
        outside = gather_seconds(packed, self.head_ring)
        back = max(chain_seconds(packed * len(self.sides), ring) for ring in self.side_rings)
        return inside + outside + back + self._packing(count, len(self.sides))

    def seconds_apart(self, counts: dict[int, int]) -> float:
        """Return the seconds of a sum of which each card gets its own part, of so many gradients."""
        largest = max(counts.values())
        if not self.apart:
            return ring_seconds(largest * WIDTH * len(self.ranks), self.ring) / 2
        inside = max(ring_seconds(sum(counts.values()) * WIDTH, ring) / 2 for ring in self.side_rings)
        foreign = max(sum(count for rank, count in counts.items() if rank not in row) for row in self.sides)
        outside = chain_seconds(packed_bytes(self.kind, foreign, WIDTH), self.head_ring)
        return inside + outside + self._packing(foreign, len(self.sides) - 1)

    def gather_seconds(self, counts: dict[int, int]) -> float:
        """Return the seconds in which every card gets the parts that the others have updated."""
        return ring_seconds(max(counts.values()) * WIDTH * len(self.ranks), self.ring) / 2

    def volume(self, count: int, gradients: int) -> Volume:
        """Return what this card puts onto the bridge for a sum of ``count`` numbers, ``gradients`` of them not there to
        align the others."""
        if not self.crosses:
            return Volume()
        if not self.apart:
            return self.around(gradients)
        if not self.is_head:
            return Volume()
        others, packed = len(self.sides) - 1, packed_bytes(self.kind, count, WIDTH)
        return Volume(others * gradients * WIDTH, others * packed, gather_seconds(packed, self.head_ring))

    def volume_apart(self, counts: dict[int, int], gradients: dict[int, int]) -> Volume:
        """Return what this card puts onto the bridge for a sum of which each card gets its part, see :meth:`volume`."""
        if not self.crosses:
            return Volume()
        if not self.apart:
            return self.around(sum(gradients.values()) / 2)
        if not self.is_head:
            return Volume()
        packed = packed_bytes(self.kind, self._foreign(counts), WIDTH)
        return Volume(self._foreign(gradients) * WIDTH, packed, chain_seconds(packed, self.head_ring))

    def around(self, count: float) -> Volume:
        """Return what a ring all-reduce of so many numbers sends from this card to the next, if that is of another
        maker; what goes round once alone, as weights do, is half of it."""
        at = self.ranks.index(self.rank)
        if self.ranks[(at + 1) % len(self.ranks)] in self.own:
            return Volume()
        size = 2 * (len(self.ranks) - 1) / len(self.ranks) * count * WIDTH
        return Volume(size, size, size / self.ring[at].bandwidth if self.ring else 0.0)

    def _foreign(self, counts: dict[int, int]) -> int:
        """Return how many numbers of those that each card gets go to cards of other makers than this one's."""
        return sum(count for rank, count in counts.items() if rank not in self.own)

    def _packed(self, flat: Any, names: tuple[str, ...]) -> Any:
        """Return a head's sum in the bridge's format, with what was cut off before, and note what is cut off now."""
        if self.kind == "none":
            return pack("none", flat)
        if names in self.kept:
            flat = flat + self.kept[names]
        packed = pack(self.kind, flat)
        # What is no number goes over the bridge, where the step is refused for it, and is not kept.
        self._next[names] = torch.nan_to_num(flat - unpack(self.kind, packed, flat), 0.0, 0.0, 0.0)
        return packed

    def _packing(self, count: int, others: int) -> float:
        """Return the seconds in which an emulated card packs its sum, keeps what is cut off, and unpacks the others'.

        The rest is read and written once, and so is each sum as it is added.
        """
        if self.memory_rate is None or self.kind == "none":
            return 0.0
        packing, unpacking = moved_bytes(self.kind, count, WIDTH)
        return (packing + unpacking + 3 * count * WIDTH + others * (unpacking + 2 * count * WIDTH)) / self.memory_rate


def _has_library(places: Sequence[CardPlace], ranks: Sequence[int]) -> bool:
    """Return whether the cards of a maker sum among themselves without the host, if their torch can."""
    return len(ranks) > 1 and has_library(places[ranks[0]].provider)
