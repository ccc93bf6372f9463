"""Weights and gradients shared out over the cards that hold the same layers (ZeRO-2 and ZeRO-3).

A card keeps its rows of every weight, their two moments and the sum of their gradients. Under ZeRO-3 that is all it
keeps: a layer's weights are gathered before it computes and dropped as the plan says. After each backward pass of a
layer every other card gets its rows of the gradient and adds them up in an order told in advance. Source: Rajbhandari
et al. 2020, sections 5.2 and 5.3.

Nothing here is a collective. Weights do not change during a step, so each card lays out at its start what the others
will fetch of it, and how often is known (:mod:`zhenfa.live.shard_layout`): nobody waits for a card that has another
number of micro-batches, or other layers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.live.bridge import Tally, across
from zhenfa.live.collective import Opener
from zhenfa.live.decoder import Decoder
from zhenfa.live.gradient_sum import total_of
from zhenfa.live.links import Link, gather_seconds, ring_of
from zhenfa.live.pace import Pacer
from zhenfa.live.shard_gradients import Gradients, Waits
from zhenfa.live.shard_layout import (
    GIVES,
    HEAD,
    STEM,
    Course,
    Presence,
    SharedPart,
    course_of,
    times_of,
    units_of,
    worked,
)
from zhenfa.live.shard_rows import Rows
from zhenfa.live.sizes import part_of
from zhenfa.spec.plan import Reshard


class Sharded:
    """The weights and gradients of one card, shared out.

    ``module`` holds the weights whole, on the host, see :class:`~zhenfa.live.shard_rows.Rows`. ``zero`` is 2 or 3;
    ``every``: gradients go with every micro-batch, else once a step; ``overlap``: they go beside the backward passes.
    """

    def __init__(
        self, opener: Opener, pacer: Pacer, links: dict[int, dict[int, Link]], *, module: Decoder, zero: int,
        reshard: Reshard, every: bool, overlap: bool, schedule: str, dtype: Any, device: Any, tally: Tally,
    ) -> None:  # fmt: skip
        self._places, self._rank, self._pacer, self._links = opener.places, opener.rank, pacer, links
        self._schedule, self._every, self._overlap, self._tally = schedule, every, overlap, tally
        self.module, self._drops = module, zero == 3
        self._group = dist.new_group(list(range(len(opener.places))), backend="gloo", timeout=opener.timeout)
        self.rows = Rows(opener, module, drops=self._drops, dtype=dtype, device=device)
        place = opener.places[opener.rank]
        self._units = {chunk.stage: units_of(chunk, place, module.sizes) for chunk in place.chunks}
        self._parts = {unit: held for units in self._units.values() for unit, held in units.items()}
        self._unit_of = {id(weight): self._found(name) for name, weight in self.rows.weights.items()}
        self._presence = (Presence(reshard), Presence(reshard, training=False))
        self._courses = self._all_courses()
        self._rings = {one.ranks: ring_of(one.ranks, links) for one in self.rows.parts.values()}
        self._elsewhere = across(opener.places, opener.rank)
        self.waits = Waits()
        self.gradients = Gradients(
            self.rows, self.waits, self._group, courses=self._courses[0], rings=self._rings,
            elsewhere=self._elsewhere, tally=tally, paced=pacer.paced,
        )  # fmt: skip
        self._uses = Counter(
            (stage, unit) for kind, stage, _ in worked(place, schedule) if kind in GIVES for unit in self._units[stage]
        )
        self._now, self._left = self._presence[0], Counter[tuple[int, str]]()
        self._here: set[str] = set()
        self._takes: deque[tuple[str, ...]] = deque()
        self._fetching: dict[str, list[tuple[int, Any, Any]]] = {}
        self._issued = 0.0
        self._posted: list[Any] = []
        self.most_gathered = 0
        module.sharded = self

    def _found(self, name: str) -> str:
        """Return the unit whose matrices' gradients are left for later with a weight's."""
        part = part_of(name)
        return HEAD if part == STEM else next(unit for unit, held in self._parts.items() if part in held)

    def _all_courses(self) -> tuple[dict[int, Course], dict[int, Course]]:
        """Return what each card that shares anything with this one does in a step, and in an evaluation."""
        near = sorted({rank for one in self.rows.parts.values() for rank in one.ranks})
        sizes, schedule = self.module.sizes, self._schedule
        times = times_of(self._places, sizes, schedule)
        training, evaluating = (
            {
                rank: course_of(
                    self._places[rank], sizes, schedule, presence, times, every=self._every, whole=not self._drops
                )
                for rank in near
            }
            for presence in self._presence
        )
        return training, evaluating

    # A step

    @property
    def counts(self) -> frozenset[str]:
        """Return the weights whose gradients this card counts, its rows of each."""
        return self.rows.counts

    def begin(self, *, early: bool = True) -> None:
        """Begin a step: lay out what other cards will fetch, and begin to add up gradients, ``early`` or not."""
        del early  # what poisons gradients does so before they go
        self._begin(training=True)
        self._left = self._uses.copy()
        self.gradients.begin(self._pacer.now)

    def begin_evaluation(self) -> None:
        """Begin an evaluation: lay out what other cards will fetch."""
        self._begin(training=False)

    def _begin(self, *, training: bool) -> None:
        self._now = self._presence[0 if training else 1]
        self.rows.refresh()
        courses = self._courses[0 if training else 1]
        for part, one in self.rows.parts.items():
            if self.rows.goes(part):
                flat = self.rows.flat(part)
                for rank in one.ranks:
                    if rank != self._rank:
                        self._lay_out(part, rank, flat, courses[rank].gathers[part])
        own = [tuple(filter(self.rows.goes, taken)) for taken in courses[self._rank].takes]
        self._takes = deque(filter(None, own))
        self._issued = self._pacer.now
        self._ask_ahead()

    def end(self) -> None:
        """End a step or an evaluation: let go of what is left of gathered weights, and of what was laid out."""
        for part in list(self._here):
            self._drop(part)
        self._until_fetched()

    def finish(self) -> None:
        """End a step's passes; the sums of gradients are then those of all replicas."""
        with self._pacer.operation("reduce") as operation:
            start = self._pacer.now
            latest = self._latest(max(start, self.gradients.finish()))
            self.end()
            operation.seconds = max(latest - start, 0.0)

    def spread(self) -> None:
        """Send the rows that this card has updated to the others, where weights stay on every card."""
        if self._drops:
            return
        with self._pacer.operation("reduce") as operation:
            start = self._pacer.now
            latest = self._latest(start)
            self.rows.refresh()
            shared = [one for one in self.rows.parts.values() if len(one.ranks) > 1]
            for one in shared:
                flat = self.rows.flat(one.name)
                for rank in one.ranks:
                    if rank != self._rank:
                        self._lay_out(one.name, rank, flat, 1)
            for one in shared:
                self._receive(one, self._ask(one))
            self._until_fetched()
            operation.seconds = max(latest - start, 0.0) + self._gather_seconds([one.name for one in shared])

    def total(self, value: float) -> float:
        """Return the sum of a number over all cards."""
        return total_of(value, self._pacer, self._links, len(self._places))

    def close(self) -> None:
        """End the thread that adds up, whatever it waits for."""
        self.gradients.close()
        self.module.sharded = None

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of weights that stay, in the format of the matmuls; of gathered ones at their peak; of
        gradients at their peak; and of 32-bit weights kept beside those."""
        return self.rows.kept_bytes() | {"gathered": self.most_gathered, "gradients": self.gradients.most}

    # Passes

    def enter(self, unit: str, features: Any, stage: int) -> Any:
        """Gather a unit's weights for its forward pass; return its input."""
        self._take(unit)
        keeps = torch.is_grad_enabled() and features.requires_grad
        return Closing.apply(features, self, unit, stage) if keeps else features

    def leave(self, unit: str, features: Any) -> Any:
        """Drop a unit's weights after its forward pass, if they go then; return its result."""
        if self._now.goes_after_forward:
            self._release(unit)
        return Opening.apply(features, self, unit) if torch.is_grad_enabled() and unit != STEM else features

    def behind(self, unit: str, stage: int) -> None:
        """A unit's backward pass has ended."""
        if self._now.goes_after_backward:
            self._release(unit)
        if self.module.delayed is None:
            self.give(unit, stage)

    def after_backward(self, stage: int) -> None:
        """A stage's backward pass has ended: that of the stem has, which has no input to tell it."""
        if STEM in self._units[stage]:
            self.behind(STEM, stage)

    def add_later(self, stage: int, late: Sequence[Any]) -> None:
        """Add what was left of the gradients of weights, and give each unit's away."""
        of_unit: dict[str, list[Any]] = {unit: [] for unit in self._units[stage]}
        for one in late:
            of_unit[self._unit_of[id(one.weight)]].append(one)
        for unit in reversed(of_unit):
            for one in of_unit[unit]:
                one.add()
            self.give(unit, stage)

    def give(self, unit: str, stage: int) -> None:
        """Send the other cards their rows of a unit's gradients, and keep this card's own."""
        self.gradients.stall()
        self._left[stage, unit] -= 1
        for part in self._parts[unit]:
            if self._every:
                self.gradients.give(part)
                continue
            self.gradients.keep_back(part)
            if not self._left[stage, unit]:
                self.gradients.give_kept(part)
        if not self._overlap:
            self.gradients.stall()

    # Weights

    def _take(self, unit: str) -> None:
        """Have a unit's weights whole on this card, and have the next ones come beside what it computes now."""
        now = 0.0 if self.waits.clock is None else self.waits.clock()
        missing = tuple(part for part in self._parts[unit] if self.rows.goes(part) and part not in self._here)
        if not missing:
            return
        if missing != self._takes[0]:
            raise RuntimeError(f"{missing} are gathered where {self._takes[0]} were to be")
        self._takes.popleft()
        for part in missing:
            self._here.add(part)
            self._gather(part)
        if self.waits.clock is not None:
            there = self._issued + self._gather_seconds(missing)
            self.waits.hold(there - now)
            self._issued = max(now, there)
        self._ask_ahead()

    def _ask_ahead(self) -> None:
        """Begin to fetch the weights that are gathered next."""
        for part in self._takes[0] if self._takes else ():
            self._fetching[part] = self._ask(self.rows.parts[part])
        self.most_gathered = max(self.most_gathered, self.gathered_bytes)

    def _release(self, unit: str) -> None:
        for part in self._parts[unit]:
            if part in self._here:
                self._drop(part)

    def _drop(self, part: str) -> None:
        self._here.discard(part)
        for name in self.rows.names[part]:
            self.rows.weights[name].untyped_storage().resize_(0)

    def _gather(self, part: str) -> None:
        """Have a part's weights whole on this card."""
        for name in self.rows.names[part]:
            weight = self.rows.weights[name]
            weight.untyped_storage().resize_(weight.numel() * weight.element_size())
            if name in self.rows.own:
                first, last = self.rows.rows(name)
                weight.data[first:last].copy_(self.rows.own[name].data)
        self.most_gathered = max(self.most_gathered, self.gathered_bytes)
        self._receive(self.rows.parts[part], self._fetching.pop(part))

    def _ask(self, one: SharedPart) -> list[tuple[int, Any, Any]]:
        """Begin to fetch the other cards' rows of a part, which they have laid out."""
        fetched = []
        for rank in one.ranks:
            if rank != self._rank and (count := self.rows.count(one.name, rank)):
                piece = torch.empty(count, dtype=self.rows.dtype)
                fetched.append((rank, piece, dist.irecv(piece, rank, group=self._group, tag=3 * one.number)))
        return fetched

    def _receive(self, one: SharedPart, fetched: Sequence[tuple[int, Any, Any]]) -> None:
        """Put the other cards' rows of a part where they belong."""
        for rank, piece, work in fetched:
            work.wait()
            offset = 0
            for name in self.rows.names[one.name]:
                first, last = self.rows.rows(name, rank)
                target = self.rows.weights[name].data[first:last]
                target.copy_(piece[offset : offset + target.numel()].view(target.shape))
                offset += target.numel()
            if rank in self._elsewhere:
                self._tally.count("weights", piece.nbytes, piece.nbytes)

    def _gather_seconds(self, parts: Sequence[str]) -> float:
        """Return the seconds of one gather of parts on emulated links."""
        counts: dict[tuple[int, ...], int] = {}
        for part in parts:
            one = self.rows.parts[part]
            counts[one.ranks] = counts.get(one.ranks, 0) + self.rows.largest(one)
        width = self.rows.dtype.itemsize
        return sum(gather_seconds(width * count, self._rings[ranks]) for ranks, count in counts.items())

    def _lay_out(self, part: str, rank: int, flat: Any, count: int) -> None:
        """Have a card fetch this card's rows of a part so many times."""
        if len(flat):
            number = 3 * self.rows.parts[part].number
            self._posted += [dist.isend(flat, rank, group=self._group, tag=number) for _ in range(count)]

    def _until_fetched(self) -> None:
        """Wait until the other cards have fetched what was laid out."""
        for work in self._posted:
            work.wait()
        self._posted.clear()

    def _latest(self, at: float) -> float:
        """Return the latest of the clocks of the cards that share anything with this one, once all are there."""
        rows = [torch.zeros(1, dtype=torch.float64) for _ in self._places]
        dist.all_gather(rows, torch.tensor([at], dtype=torch.float64))
        near = {rank for one in self.rows.parts.values() for rank in one.ranks}
        return max(float(rows[rank]) for rank in near)

    @property
    def gathered_bytes(self) -> int:
        """Return the bytes of the gathered weights that are here now, and of those on their way."""
        here: int = sum(
            self.rows.weights[name].untyped_storage().nbytes()
            for part in self._here for name in self.rows.names[part]
        )  # fmt: skip
        coming: int = sum(piece.nbytes for one in self._fetching.values() for _, piece, _ in one)
        return here + coming


class Opening(torch.autograd.Function):  # type: ignore[misc]
    """A unit's result as it is; its backward pass gathers the unit's weights."""

    @staticmethod
    def forward(ctx: Any, features: Any, sharded: Sharded, unit: str) -> Any:
        """Return the features."""
        ctx.sharded, ctx.unit = sharded, unit
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None]:
        """Return the gradient as it is."""
        ctx.sharded._take(ctx.unit)
        return gradients[0], None, None


class Closing(torch.autograd.Function):  # type: ignore[misc]
    """A unit's input as it is; its backward pass, the unit's last, drops weights and gives gradients away."""

    @staticmethod
    def forward(ctx: Any, features: Any, sharded: Sharded, unit: str, stage: int) -> Any:
        """Return the features."""
        ctx.sharded, ctx.unit, ctx.stage = sharded, unit, stage
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None, None]:
        """Return the gradient as it is."""
        ctx.sharded.behind(ctx.unit, ctx.stage)
        return gradients[0], None, None, None
