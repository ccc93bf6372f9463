"""Messages between the stages of a pipeline.

Every message goes through host memory and gloo, so that cards of different makers meet. Sends never block; receives
of a whole step are posted ahead, so that data moves while the card computes. On an emulated link a message is held
until latency + bytes / bandwidth have passed on the link, which carries one message at a time: the sender works the
arrival out and sends it along, the receiver waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.live.links import Link
from zhenfa.live.pace import Pacer, Span


@dataclass
class Received:
    """A receive under way: the payload, and a header of when it arrives and its time on the link."""

    tensor: Any
    host: Any
    header: Any
    works: tuple[Any, Any]
    source: int
    micro_batch: int
    pacer: Pacer

    def wait(self) -> Any:
        """Return the tensor when the message has arrived on the card."""
        called = self.pacer.time()
        self.pacer.board.write(self.pacer.rank, "receive", peer=self.source, step=self.pacer.step)
        for work in self.works:
            work.wait()
        at, transfer = self.header.tolist()
        self.pacer.arrive(at, transfer, self.source, called, self.micro_batch)
        if self.host is not self.tensor:
            with torch.no_grad():
                self.tensor.copy_(self.host)
        return self.tensor


class Messages:
    """What one card sends to the others and receives from them, each message under a tag of its own.

    ``links`` are the emulated links by global rank of the receiver.
    """

    def __init__(self, pacer: Pacer, links: dict[int, Link], to_host: Callable[[Any], Any]) -> None:
        self._pacer, self._links, self._to_host = pacer, links, to_host
        self._free: dict[int, float] = {}
        self._sent: deque[tuple[Any, ...]] = deque()

    def send(self, tensor: Any, peer: int, tag: int, micro_batch: int) -> None:
        """Send a tensor to the card of rank ``peer``; never blocks."""
        payload = self._to_host(tensor)
        start, transfer, arrival = self._pass(peer, payload.nbytes)
        header = torch.tensor([arrival, transfer], dtype=torch.float64)
        works = (dist.isend(header, peer, tag=2 * tag + 1), dist.isend(_raw(payload), peer, tag=2 * tag))
        self._sent.append((*works, header, payload))
        self._pacer.spans.append(Span("send", micro_batch, start, max(arrival, start), peer))

    def expect(self, tensor: Any, peer: int, tag: int, micro_batch: int) -> Received:
        """Post a receive from the card of rank ``peer`` into ``tensor``."""
        host = tensor if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
        header = torch.empty(2, dtype=torch.float64)
        works = (dist.irecv(header, peer, tag=2 * tag + 1), dist.irecv(_raw(host), peer, tag=2 * tag))
        return Received(tensor, host, header, works, peer, micro_batch, self._pacer)

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
