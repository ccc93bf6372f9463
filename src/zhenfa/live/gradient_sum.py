"""Gradients summed over the cards that hold the same layers, whichever way each replica splits them.

Every replica works on its own share of the step's sequences and divides its loss by the tokens of the whole step, so
that the plain sum of the replicas' gradients is the gradient of the whole batch, however unequal the shares.

Gradients go in *buckets* of neighbouring parts of the model, the last parts first, which is the order in which backward
passes finish them; all cards keep that one order, so that none waits for another in a circle. A bucket whose gradients
are whole is summed beside the backward passes that still run (Li et al. 2020, arXiv:2006.15704, section 3.2.3).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.nn import functional

from zhenfa.live.beside import Beside
from zhenfa.live.bridge import Tally
from zhenfa.live.checkpoint import Piece
from zhenfa.live.collective import Opener
from zhenfa.live.crew import Crew
from zhenfa.live.held import CUT_OFF, Held
from zhenfa.live.links import Link
from zhenfa.live.pace import Pacer, Span
from zhenfa.live.replicas import counted, owners, parts, shares
from zhenfa.live.sizes import Sizes
from zhenfa.live.sums import WIDTH, Exchange
from zhenfa.spec.job import BridgeFormat

BUCKET_BYTES: Final = 25 << 20
"""Least bytes of a bucket where links are real, as torch's data parallel has them (Li et al. 2020, section 5.2)."""
LATENCIES: Final = 4
"""Least bytes of a bucket on emulated links: so many times the latency on the wire, so that cutting the sum into
buckets adds a quarter to its time at most."""


@dataclass(frozen=True)
class Bucket:
    """Neighbouring ``parts`` of the model that the same cards hold, and the weights (global ``names``) of them.

    ``split``: the weights that each card updates, where the optimizer's state is shared out (None: all update all).
    ``unlike``: the cards split the matrices over different numbers of cards. ``gradients`` are in it, ``count`` numbers
    with what aligns them. ``last``: the number of its last part in the model.
    """

    exchange: Exchange
    parts: frozenset[str]
    names: tuple[str, ...]
    split: dict[int, list[str]] | None
    unlike: bool
    gradients: int
    count: int
    last: int


class GradientSum:
    """The gradient sums of one card, in the one order that all cards keep.

    ``weights`` are those of the card by global name. With ``zero`` 1 each gradient is summed on the one card that
    updates its weight, which then sends the weight to the others (Rajbhandari et al. 2020, section 5.1). ``overlap``:
    sums begin while backward passes still run. ``kind``: of what crosses the bridge; ``tally`` counts that.
    """

    def __init__(
        self, opener: Opener, pacer: Pacer, links: dict[int, dict[int, Link]], *, sizes: Sizes, weights: dict[str, Any],
        crew: Crew, zero: int = 0, kind: BridgeFormat = "none", overlap: bool = False, tally: Tally | None = None,
    ) -> None:  # fmt: skip
        self._places, self._pacer, self._links, self._crew = opener.places, pacer, links, crew
        self._weights, self._overlap, self._tally = weights, overlap, tally or Tally()
        self._part_of = sizes.part_of
        first = counted(self._places, pacer.rank, sizes)
        counts = {name for name in weights if self._part_of(name) in first and crew.counts(name)}
        updates, alone = set(weights), set[str]()
        self._buckets: list[Bucket] = []
        for bucket in self._made(opener, kind, sizes, zero):
            self._buckets.append(bucket)
            if bucket.split is not None:
                updates -= {*bucket.names} - {*bucket.split[pacer.rank]}
                alone |= {*bucket.split[pacer.rank]}
                own = {name for name in bucket.split[pacer.rank] if crew.counts(name)}
                counts = (counts - {*bucket.names}) | own
        self.counts, self.updates, self.alone = frozenset(counts), frozenset(updates), frozenset(alone)
        self._beside = Beside()
        self._have: set[str] = set()
        self._at: dict[str, float] = {}
        self._under_way: list[Future[Any]] = []
        self._early = False

    def begin(self, *, early: bool = True) -> None:
        """Begin a step. Unless ``early``, no sum begins before :meth:`finish`."""
        self._early = early and self._overlap
        self._have.clear()
        self._at.clear()
        self._under_way.clear()
        for exchange in self._exchanges():
            exchange.forget()

    def ready(self, part: str) -> None:
        """Say that the gradients of a part of the model are whole on this card: what is ready is summed beside."""
        self._have.add(part)
        while self._early and len(self._under_way) < len(self._buckets):
            bucket = self._buckets[len(self._under_way)]
            if not bucket.parts <= self._have:
                return
            self._under_way.append(self._beside.give(self._work(bucket)))

    def was_ready(self, part: str, at: float) -> None:
        """Say at which time of an emulated card the gradients of a part were whole."""
        self._at[part] = at

    def finish(self) -> None:
        """Replace each shared gradient by its sum over the owners; a card that does not update a weight drops it."""
        results: list[Any] | None = None
        free = 0.0
        for number, bucket in enumerate(self._buckets):
            with self._pacer.operation("reduce") as operation:
                start = self._pacer.now
                if results is None or not self._overlap:
                    results = (results or []) + self._results(number)
                result, begun, ended = results[number]
                if bucket.exchange.ring:
                    ready = max(self._at.get(part, start) for part in bucket.parts) if self._early else start
                    begun = bucket.exchange.whole.latest(max(ready, free))
                    ended = free = begun + self._seconds(bucket)
                    operation.seconds = max(free - start, 0.0)
                self._put_back(bucket, result)
            self._count(bucket)
            self._pacer.spans.append(Span("sum", bucket.last, begun, ended, bucket.exchange.ranks[0]))

    def spread(self) -> None:
        """Send each weight from the card that has updated it to the others that hold it."""
        for bucket in self._buckets:
            if bucket.split is None:
                continue
            with self._pacer.operation("reduce") as operation, torch.no_grad():
                start, whole = self._pacer.now, bucket.exchange.whole
                if bucket.exchange.ring:
                    seconds = bucket.exchange.gather_seconds(self._counts(bucket.split))
                    operation.seconds = max(whole.latest(start) - start, 0.0) + seconds
                for rank, names in bucket.split.items():
                    if names:
                        held = [self._weights[name] for name in names]
                        _unpack(whole.broadcast(_flat(held), rank), held)
            if bucket.exchange.crosses:
                size = bucket.exchange.around(sum(self._counts(bucket.split).values()) / 2)
                self._tally.count("weights", size.raw, size.sent, size.seconds)

    def total(self, value: float) -> float:
        """Return the sum of a number over all cards, the same to the bit on each."""
        return total_of(value, self._pacer, self._links, len(self._places))

    def keep(self) -> None:
        """The step's gradients have been used: what packing cut off goes into the next step's."""
        for exchange in self._exchanges():
            exchange.keep()

    def kept(self) -> Iterator[Held]:
        """Yield what packing has cut off and the next sums will have, by maker and weight: what this card of its crew
        answers for."""
        crew = self._crew
        for bucket in self._buckets:
            for names, flat in bucket.exchange.kept.items():
                if not {*names} <= {*bucket.names}:
                    continue
                offset = 0
                for name in names:
                    shape = self._shape(name, bucket.unlike)
                    part = flat[offset : offset + math.prod(shape)].view(shape)
                    offset += _aligned(part.numel(), bucket.exchange.align)
                    if crew.index == 0 or (not bucket.unlike and crew.counts(name)):
                        piece = Piece(tuple(shape), (0,) * len(shape)) if bucket.unlike else crew.piece(name, shape)
                        yield Held(f"{CUT_OFF}.{self._key(name)}", part, piece)

    def take_up(self, read: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Go on from what :meth:`kept` gave: ``read`` fills those of the tensors given that a checkpoint has, by name,
        and returns them. Weights of which it has none begin with nothing cut off."""
        for bucket in self._buckets:
            for names in self._spoken_for(bucket):
                wanted = {
                    self._key(name): torch.empty(self._shape(name, unlike=True), dtype=torch.float32) for name in names
                }
                found = read(wanted)
                if not found:
                    continue
                pieces = []
                for name in names:
                    whole = found.get(self._key(name), torch.zeros(self._shape(name, unlike=True)))
                    pieces.append(whole if bucket.unlike else self._crew.part(name, whole))
                flat = _flat(pieces, bucket.exchange.align)
                bucket.exchange.kept[names] = flat.to(self._weights[names[0]].device)

    def _spoken_for(self, bucket: Bucket) -> list[tuple[str, ...]]:
        """Return the vectors that this card packs for its maker."""
        if not bucket.exchange.packs:
            return []
        if bucket.split is None:
            return [bucket.names]
        own = bucket.exchange.own
        return [tuple(names) for rank, names in bucket.split.items() if names and rank not in own]

    def _key(self, name: str) -> str:
        return f"{self._places[self._pacer.rank].maker}/{name}"

    def _shape(self, name: str, unlike: bool) -> list[int]:
        """Return the shape of this card's part of a weight, or of the whole one where cards split it unlike."""
        shape, axis = list(self._weights[name].shape), self._crew.axis(name)
        if unlike and axis is not None:
            shape[axis] *= self._crew.size
        return shape

    def kept_bytes(self) -> int:
        """Return the bytes of what packing has cut off."""
        return sum(int(flat.nbytes) for exchange in self._exchanges() for flat in exchange.kept.values())

    def close(self) -> None:
        """End the thread of the sums."""
        self._beside.close()

    def _exchanges(self) -> list[Exchange]:
        return list({id(bucket.exchange): bucket.exchange for bucket in self._buckets}.values())

    def _made(self, opener: Opener, kind: BridgeFormat, sizes: Sizes, zero: int) -> list[Bucket]:
        """Return this card's buckets, those first that are whole first: backward passes end with the first parts."""
        order = {part: number for number, part in enumerate(parts(sizes))}
        found: list[tuple[tuple[int, tuple[int, ...]], Bucket]] = []
        for shared in owners(self._places, sizes):
            exchange = Exchange.open(opener, shared.ranks, self._links, kind)
            if exchange is None:
                continue
            least = _least_bytes(exchange.ring) if self._overlap else math.inf
            for held in self._cut(shared.parts, shared.unlike, least):
                names = tuple(name for name in self._weights if self._part_of(name) in held)
                elements = [(name, self._elements(name, shared.unlike)) for name in names]
                split = shares(elements, shared.ranks) if zero and not shared.unlike else None
                gradients = sum(count for _, count in elements)
                count = sum(_aligned(count, exchange.align) for _, count in elements)
                last = max(order[part] for part in held)
                key = (-min(order[part] for part in held), shared.ranks)  # it is whole with the first of its parts
                found.append(
                    (key, Bucket(exchange, frozenset(held), names, split, shared.unlike, gradients, count, last))
                )
        return [bucket for _, bucket in sorted(found, key=lambda one: one[0])]

    def _cut(self, parts: Sequence[str], unlike: bool, least: float) -> Iterator[tuple[str, ...]]:
        """Yield parts in buckets of at least so many bytes, the last parts first; the first parts take what is left."""
        own: list[str] = []
        left = sum(self._bytes(part, unlike) for part in parts)
        for part in reversed(parts):
            own.append(part)
            size = sum(self._bytes(one, unlike) for one in own)
            if size >= least and left - size >= least:
                yield tuple(reversed(own))
                left, own = left - size, []
        yield tuple(reversed(own))

    def _bytes(self, part: str, unlike: bool) -> int:
        return WIDTH * sum(self._elements(name, unlike) for name in self._weights if self._part_of(name) == part)

    def _elements(self, name: str, unlike: bool) -> int:
        """Return the gradients of a weight that are summed: of the whole one where cards split it unlike."""
        return math.prod(self._shape(name, unlike))

    def _counts(self, split: dict[int, list[str]], align: int = 1) -> dict[int, int]:
        return {
            rank: sum(_aligned(self._weights[name].numel(), align) for name in names) for rank, names in split.items()
        }

    def _work(self, bucket: Bucket) -> Callable[[], tuple[Any, float, float]]:
        """Return what sums a bucket's gradients as they are now, with the result that :meth:`_put_back` takes, and the
        host's time when it began and ended."""
        gradients = {name: self._gradient(name) for name in bucket.names}
        if bucket.split is not None:
            flats = {
                rank: _flat([gradients[name] for name in names], bucket.exchange.align)
                for rank, names in bucket.split.items() if names
            }  # fmt: skip
            return partial(_timed, partial(_sum_apart, bucket.exchange, flats, bucket.split))
        if bucket.unlike:
            gradients = {name: self._whole(name, gradient) for name, gradient in gradients.items()}
        flat = _flat(list(gradients.values()), bucket.exchange.align)
        return partial(_timed, partial(bucket.exchange.sum, flat, bucket.names))

    def _gradient(self, name: str) -> Any:
        """Return the gradient of a weight: zero of one that this step's tokens did not reach."""
        weight = self._weights[name]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad

    def _results(self, number: int) -> list[tuple[Any, float, float]]:
        """Return what came of all sums or, without overlap, of sum ``number``, now; with begin and end.

        With overlap all of them come before whatever else the cards tell each other: on a card that began none early
        as well, for all keep one order.
        """
        if self._overlap:
            self._under_way += [self._beside.give(self._work(one)) for one in self._buckets[len(self._under_way) :]]
            return [one.result() for one in self._under_way]
        return [self._work(self._buckets[number])()]

    def _put_back(self, bucket: Bucket, result: Any) -> None:
        held = {name: self._weights[name].grad for name in bucket.names}
        align = bucket.exchange.align
        if bucket.split is not None:
            rank = self._pacer.rank
            if bucket.split[rank]:
                _unpack(result[rank], [held[name] for name in bucket.split[rank]], align)
            for name in {*bucket.names} - {*bucket.split[rank]}:
                self._weights[name].grad = None
            return
        if not bucket.unlike:
            _unpack(result, list(held.values()), align)
            return
        whole = [self._whole(name, gradient) for name, gradient in held.items()]
        _unpack(result, whole, align)
        for (name, gradient), one in zip(held.items(), whole, strict=True):
            gradient.copy_(self._crew.part(name, one))

    def _whole(self, name: str, gradient: Any) -> Any:
        """Return a gradient of the whole weight that is this card's where it has a part, and zero elsewhere."""
        axis, whole = self._crew.axis(name), gradient.new_zeros(self._shape(name, unlike=True))
        if axis is not None or self._crew.index == 0:
            self._crew.part(name, whole).copy_(gradient)
        return whole

    def _seconds(self, bucket: Bucket) -> float:
        if bucket.split is None:
            return bucket.exchange.seconds(bucket.count)
        return bucket.exchange.seconds_apart(self._counts(bucket.split, bucket.exchange.align))

    def _count(self, bucket: Bucket) -> None:
        """Note what a sum put onto the bridge, and how long it held the card up."""
        if not bucket.exchange.crosses:
            return
        exchange, split = bucket.exchange, bucket.split
        if split is None:
            size = exchange.volume(bucket.count, bucket.gradients)
        else:
            size = exchange.volume_apart(self._counts(split, exchange.align), self._counts(split))
        self._tally.count("gradients", size.raw, size.sent, size.seconds)
        span = self._pacer.spans[-1]  # of the operation that waited for it
        self._tally.held_s += span.end - span.start


def total_of(value: float, pacer: Pacer, links: dict[int, dict[int, Link]], cards: int) -> float:
    """Return the sum of a number over all cards, the same to the bit on each.

    On emulated links it takes as long as one number needs up and down a binary tree: 2 ceil(log2 n) messages.
    """
    with pacer.operation("reduce") as operation:
        own = torch.tensor([value, pacer.now], dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(cards)]
        dist.all_gather(rows, own)
        times = [link.latency + link.seconds(own.nbytes) for row in links.values() for link in row.values()]
        if times:
            entered = max(float(row[1]) for row in rows)
            rounds = 2 * math.ceil(math.log2(cards))
            operation.seconds = max(entered - pacer.now, 0.0) + rounds * max(times)
    return math.fsum(float(row[0]) for row in rows)


def _timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    begun = time.monotonic()
    return work(), begun, time.monotonic()


def _sum_apart(exchange: Exchange, flats: dict[int, Any], split: dict[int, list[str]]) -> dict[int, Any]:
    return {rank: exchange.sum_on(flat, tuple(split[rank]), rank) for rank, flat in flats.items()}


def _least_bytes(ring: Sequence[Link]) -> float:
    """Return the least bytes of a bucket, see :data:`LATENCIES` and :data:`BUCKET_BYTES`."""
    if not ring:
        return BUCKET_BYTES
    return LATENCIES * len(ring) * max(link.latency for link in ring) * min(link.bandwidth for link in ring)


def _flat(tensors: Sequence[Any], align: int = 1) -> Any:
    """Return tensors one after the other, each beginning at a multiple of ``align``."""
    rows = [tensor.detach().flatten() for tensor in tensors]
    return torch.cat([functional.pad(row, (0, -len(row) % align)) for row in rows])


def _unpack(flat: Any, tensors: Sequence[Any], align: int = 1) -> None:
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += _aligned(tensor.numel(), align)


def _aligned(count: int, align: int) -> int:
    return -(-count // align) * align
