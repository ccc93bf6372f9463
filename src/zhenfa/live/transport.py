"""Messages between the stages of a pipeline.

Every message goes through host memory and gloo, so that cards of different makers meet. Sends never block; receives
of a whole step are posted ahead, so that data moves while the card computes. Between makers a message may be packed
into fewer bits (:mod:`zhenfa.live.codec`), on the card and before it goes to the host. On an emulated link a message is
held until latency + bytes / bandwidth have passed on the link, which carries one message at a time: the sender works
the arrival out and sends it along, the receiver waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.live.bridge import Crossing
from zhenfa.live.codec import moved_bytes, pack, packed_bytes, unpack
from zhenfa.live.links import Link
from zhenfa.live.pace import Pacer, Span


@dataclass
class Received:
    """A receive under way: the packed payload, and a header of when it arrives and its time on the link."""

    tensor: Any
    raw: Any
    header: Any
    works: tuple[Any, Any]
    source: int
    micro_batch: int
    pacer: Pacer
    crossing: Crossing

    def wait(self) -> Any:
        """Return the tensor when the message has arrived on the card."""
        called = self.pacer.time()
        self.pacer.board.write(self.pacer.rank, "receive", peer=self.source, step=self.pacer.step)
        for work in self.works:
            work.wait()
        at, transfer = self.header.tolist()
        self.pacer.arrive(at, transfer, self.source, called, self.micro_batch)
        kind = self.crossing.format(self.source)
        if self.source in self.crossing.ranks:
            waited = max(self.pacer.now - called, 0.0)  # of it, on an emulated link, what the message spent there
            self.crossing.tally.held_s += min(waited, transfer) if transfer else waited
        if self.raw is not None:
            read_written = moved_bytes(kind, self.tensor.numel(), self.tensor.element_size())[1]
            with self.pacer.packing(self.micro_batch, read_written, self.crossing.memory_rate), torch.no_grad():
                self.tensor.copy_(unpack(kind, self.raw.to(self.tensor.device), self.tensor))
        return self.tensor


class Messages:
    """What one card sends to the others and receives from them, each message under a tag of its own.

    ``links`` are the emulated links by global rank of the receiver.
    """

    def __init__(
        self, pacer: Pacer, links: dict[int, Link], to_host: Callable[[Any], Any], crossing: Crossing | None = None
    ) -> None:
        self._pacer, self._links, self._to_host = pacer, links, to_host
        self._crossing = crossing or Crossing()
        self._free: dict[int, float] = {}
        self._sent: deque[tuple[Any, ...]] = deque()

    def send(self, tensor: Any, peer: int, tag: int, micro_batch: int, beside: float = 1.0) -> None:
        """Send a tensor to the card of rank ``peer``; never blocks.

        ``beside``: how many times its bytes an emulated link carries meanwhile, where others send or get parts too.
        """
        crossing, kind, rate = self._crossing, self._crossing.format(peer), self._crossing.memory_rate
        if kind == "none":
            payload = _raw(self._to_host(tensor))
        else:
            with self._pacer.packing(micro_batch, moved_bytes(kind, tensor.numel(), tensor.element_size())[0], rate):
                payload = self._to_host(pack(kind, tensor))
        start, transfer, arrival = self._pass(peer, round(payload.nbytes * beside))
        header = torch.tensor([arrival, transfer], dtype=torch.float64)
        works = (dist.isend(header, peer, tag=2 * tag + 1), dist.isend(payload, peer, tag=2 * tag))
        self._sent.append((*works, header, payload))
        if peer in crossing.ranks:
            crossing.tally.count("activations", tensor.nbytes, payload.nbytes, transfer)
        self._pacer.spans.append(Span("send", micro_batch, start, max(arrival, start), peer))

    def expect(self, tensor: Any, peer: int, tag: int, micro_batch: int) -> Received:
        """Post a receive from the card of rank ``peer`` into ``tensor``."""
        kind, raw = self._crossing.format(peer), None
        if kind != "none" or tensor.device.type != "cpu":
            raw = torch.empty(packed_bytes(kind, tensor.numel(), tensor.element_size()), dtype=torch.uint8)
        header = torch.empty(2, dtype=torch.float64)
        payload = _raw(tensor) if raw is None else raw
        works = (dist.irecv(header, peer, tag=2 * tag + 1), dist.irecv(payload, peer, tag=2 * tag))
        return Received(tensor, raw, header, works, peer, micro_batch, self._pacer, self._crossing)

    def flush(self) -> None:
        """Wait until all that was sent has left; raises what the network raised."""
        while self._sent:
            header, payload, *_ = self._sent.popleft()
            header.wait()
            payload.wait()

    def _pass(self, peer: int, size: int) -> tuple[float, float, float]:
        """Return when the message enters the link to ``peer``, how long it holds it, and when it arrives."""
        now = self._pacer.time()
        link = self._links.get(peer)
        if link is None:
            return now, 0.0, now
        start = max(now, self._free.get(peer, 0.0))
        transfer = link.seconds(size)
        self._free[peer] = start + transfer
        return start, transfer + link.latency, start + transfer + link.latency


def _raw(tensor: Any) -> Any:
    """Return the tensor's bytes as such: what carries them need not know the number format."""
    return tensor.view(torch.uint8)
