"""Gradients of weights that are shared out: each card sends the others their rows, and adds up its own.

Every card adds up what comes in one order, told in advance (:func:`zhenfa.live.shard_layout.arrivals`), so that sums
are the same to the bit each time. A card gives no more away before what it gave last has been taken: so no more than
two units' gradients are there at once, however far the other cards lag.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist

from zhenfa.live.beside import Beside
from zhenfa.live.bridge import Tally
from zhenfa.live.links import Link, gather_seconds
from zhenfa.live.shard_layout import Course, SharedPart, arrivals
from zhenfa.live.shard_rows import WIDE, Rows
from zhenfa.live.sizes import part_of
from zhenfa.live.update import squares_of

PATIENCE_S: Final = 0.1
"""How often a card that waits for its own thread looks whether that has failed."""
NEVER_SENT: Final = 2**20
"""A tag that no message of parts has."""
AT_ONCE: Final = timedelta(milliseconds=1)
PARTING_S: Final = 5.0
"""How long a card that leaves waits for a thread whose connections are broken."""
NUMBERS: Final = 2
"""Numbers of 32 bits that a time takes (s, 64 bits)."""


@dataclass
class Waits:
    """What an emulated card waits for others inside an operation. ``clock`` tells the time there, None on a real card;
    ``seconds`` add up until they are asked for."""

    clock: Callable[[], float] | None = None
    seconds: float = 0.0

    def hold(self, seconds: float) -> None:
        """Wait for so many seconds, if there are any."""
        self.seconds += max(seconds, 0.0)

    def taken(self) -> float:
        """Return the seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Gradients:
    """The gradients of one card. ``courses`` are what each card that shares anything with this one does in a step;
    ``rings`` the emulated links between those that share a part; ``elsewhere`` the cards beyond the bridge."""

    def __init__(
        self, rows: Rows, waits: Waits, group: Any, *, courses: Mapping[int, Course],
        rings: Mapping[tuple[int, ...], list[Link]], elsewhere: frozenset[int], tally: Tally, paced: bool,
    ) -> None:  # fmt: skip
        self._rows, self._waits, self._group, self._rings = rows, waits, group, rings
        self._elsewhere, self._tally, self._paced = elsewhere, tally, paced
        together: dict[tuple[int, ...], list[SharedPart]] = {}
        for one in rows.parts.values():
            together.setdefault(one.ranks, []).append(one)
        # A thread for each set of cards: none waits for what others have not given yet.
        self._arrivals = [(Beside(), arrivals(parts, courses)) for parts in together.values()]
        self._sent: deque[tuple[list[Any], Any, Any]] = deque()
        self._own_sent = 0
        self._free = self._given_at = 0.0
        self._taken: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._given: dict[str, queue.SimpleQueue[Any]] = {}
        self._sums: dict[str, Any] = {}
        self._adding: list[Future[Any]] = []
        self._late: dict[str, Any] = {}
        self.spoil: Callable[[Sequence[Any]], None] | None = None
        self.squares, self.most = 0.0, 0

    def begin(self, at: float) -> None:
        """Begin a step at time ``at`` (s) of an emulated card."""
        self.squares, self._free = 0.0, at
        self._given = {part: queue.SimpleQueue() for part in self._rows.parts}
        self._sums = {}
        self._adding = [beside.give(partial(self._add_up, coming)) for beside, coming in self._arrivals]

    def finish(self) -> float:
        """Have all gradients of the step added up; return when, on emulated cards, this card's were taken."""
        taken = self.until_taken()
        for adding in self._adding:
            adding.result()
        for name, kept in self._rows.own.items():
            kept.grad = self._piece(self._sums[part_of(name)], name)
        return taken

    def close(self) -> None:
        """End the threads that add up, whatever they wait for.

        Two cards whose threads wait for each other would keep the group, and all that hangs on it, until it times out.
        """
        for given in self._given.values():
            given.put(None)
        if not all(adding.done() for adding in self._adding):
            break_off(self._group, {rank for _, coming in self._arrivals for _, rank in coming} - {self._rows.rank})
        for beside, _ in self._arrivals:
            beside.close(PARTING_S)
        self._adding.clear()

    def give(self, part: str, gradients: dict[str, Any] | None = None) -> None:
        """Send each card its rows of a part's gradients (None: those just computed), and have its own added up."""
        if gradients is None:
            gradients = {name: self._rows.weights[name].grad for name in self._rows.names[part]}
        one = self._rows.parts[part]
        if self.spoil is not None:
            self.spoil([gradient for gradient in gradients.values() if gradient is not None])
        self.squares += squares_of(gradients.values())
        if self._waits.clock is not None:
            size = WIDE.itemsize * self._rows.largest(one)
            self._free = max(self._free, self._given_at) + gather_seconds(size, self._rings[one.ranks])
        pieces = {rank: self._pieces(part, rank, gradients) for rank in one.ranks}
        for rank, piece in pieces.items():
            if rank == self._rows.rank:
                self._given[part].put((piece, self._free))
                self._own_sent += 1
            elif len(piece):
                self._send(one, rank, piece)
        self.measure(sum(piece.nbytes for piece in pieces.values()))
        for name in self._rows.names[part]:
            self._rows.weights[name].grad = None

    def keep_back(self, part: str) -> None:
        """Add a part's gradients to those that leave at the end of the step."""
        for name in self._rows.names[part]:
            gradient = self._rows.weights[name].grad
            if gradient is not None:
                self._late[name] = self._late[name].add_(gradient) if name in self._late else gradient.to(WIDE)
        self.measure()
        for name in self._rows.names[part]:
            self._rows.weights[name].grad = None

    def give_kept(self, part: str) -> None:
        """Send each card its rows of what was kept back of a part's gradients."""
        self.give(part, {name: self._late.pop(name, None) for name in self._rows.names[part]})

    def stall(self) -> None:
        """Wait until the gradients given away last have been taken: no more than one unit's wait at a time.

        On an emulated card they take as long as the links need, and are taken when those that come before them are.
        """
        taken = self.until_taken()
        if self._waits.clock is not None:
            now = self._waits.clock()
            self._waits.hold(taken - now)
            self._given_at = max(now, taken)

    def until_taken(self) -> float:
        """Wait until all gradients given away have been taken; return when, on emulated cards, the last were."""
        latest = 0.0
        while self._sent:
            works, _, told = self._sent.popleft()
            for work in works:
                work.wait()
            latest = max(latest, float(told))
        while self._own_sent:
            try:
                latest = max(latest, self._taken.get(timeout=PATIENCE_S))
                self._own_sent -= 1
            except queue.Empty:
                for adding in self._adding:
                    if adding.done():
                        adding.result()
        return latest

    def _send(self, one: SharedPart, rank: int, piece: Any) -> None:
        """Send a card its rows, which says at which time of an emulated card it has taken them."""
        if rank in self._elsewhere:
            self._tally.count("gradients", piece.nbytes, piece.nbytes)
        held = torch.cat([piece.to("cpu"), _as_numbers(self._free)])
        works = [dist.isend(held, rank, group=self._group, tag=3 * one.number + 1)]
        told = torch.zeros(1, dtype=torch.float64)
        if self._waits.clock is not None:
            works.append(dist.irecv(told, rank, group=self._group, tag=3 * one.number + 2))
        self._sent.append((works, held, told))

    def _pieces(self, part: str, rank: int, gradients: dict[str, Any]) -> Any:
        """Return a card's rows of the gradients of a part, one after the other."""
        found = []
        for name in self._rows.names[part]:
            first, last = self._rows.rows(name, rank)
            if last > first:
                gradient = gradients[name]
                shape = (last - first, *self._rows.shapes[name][1:])
                rows = torch.zeros(shape, device=self._rows.device) if gradient is None else gradient[first:last]
                found.append(rows.detach().to(WIDE).flatten())
        return torch.cat(found) if found else torch.empty(0)

    def _add_up(self, coming: Sequence[tuple[SharedPart, int]]) -> None:
        """Add up the gradients of this card's rows as they come, in the order told in advance; in a thread."""
        told: deque[tuple[Any, Any]] = deque()
        now = 0.0
        for one, rank in coming:
            count = self._rows.count(one.name, self._rows.rank)
            if rank == self._rows.rank:
                given = self._given[one.name].get()
                if given is None:
                    raise RuntimeError("the step was given up")
                piece, at = given
                now = max(now, at)
                self._taken.put(now)
            elif count:
                held = torch.empty(count + NUMBERS, dtype=WIDE)
                dist.recv(held, rank, group=self._group, tag=3 * one.number + 1)
                piece, at = held[:count].to(self._rows.device), float(held[count:].clone().view(torch.float64))
                now = max(now, at)
                if self._paced:
                    word = torch.tensor([now], dtype=torch.float64)
                    told.append((dist.isend(word, rank, group=self._group, tag=3 * one.number + 2), word))
            else:
                continue
            known = self._sums.get(one.name)
            self._sums[one.name] = piece if known is None else known.add_(piece)
        for work, _ in told:
            work.wait()

    def _piece(self, flat: Any, name: str) -> Any:
        """Return a weight's rows of what lies one after the other."""
        offset = 0
        for other in self._rows.names[part_of(name)]:
            if other == name:
                kept = self._rows.own[name]
                return flat[offset : offset + kept.numel()].view(kept.shape)
            offset += self._rows.own[other].numel() if other in self._rows.own else 0
        raise KeyError(name)

    def measure(self, more: int = 0) -> None:
        """Note how many bytes of gradients there are now: as computed, on their way (``more``: this card's own rows
        among them), and added up."""
        computed = sum(weight.grad.nbytes for weight in self._rows.weights.values() if weight.grad is not None)
        way = sum(held.nbytes for _, held, _ in self._sent)
        late = sum(whole.nbytes for whole in self._late.values())
        sums = sum(WIDE.itemsize * kept.numel() for kept in self._rows.own.values())
        self.most = max(self.most, computed + max(way, more) + late + sums)


def break_off(group: Any, ranks: Iterable[int]) -> None:
    """Break a group's connections to other cards, so that no thread of theirs or of this card waits on.

    Gloo has no word for it (``abort`` does nothing in torch 2.13), but breaks them all where one wait takes too long.
    """
    for rank in ranks:
        with suppress(RuntimeError):
            dist.irecv(torch.empty(1), rank, group=group, tag=NEVER_SENT).wait(AT_ONCE)


def _as_numbers(at: float) -> Any:
    """Return a time as numbers that can be sent with gradients, to the bit."""
    return torch.tensor([at], dtype=torch.float64).view(WIDE)
