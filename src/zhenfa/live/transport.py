"""Messages between the stages of a pipeline, as a torch process group.

Every message goes through host memory and gloo, so that cards of different makers meet. Sends never block; receives
of a whole step are posted ahead, so that data moves while the card computes. On an emulated link a message is held
until latency + bytes / bandwidth have passed on the link, which carries one message at a time: the sender works the
arrival out and sends it along, the receiver waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from zhenfa.live.links import Link
from zhenfa.live.pace import Pacer, Span

BACKEND: Final = "zhenfa"


class Sent:
    """A send under way. To wait for it is to return at once: the message is buffered."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return at once."""
        return True


@dataclass
class Received:
    """A receive under way: the payload, and a header of when it arrives, its time on the link and its micro-batch."""

    tensor: Any
    host: Any
    header: Any
    works: tuple[Any, Any]
    source: int
    pacer: Pacer

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return when the message has arrived on the card."""
        called = self.pacer.time()
        self.pacer.board.write(self.pacer.rank, "receive", peer=self.source, step=self.pacer.step)
        for work in self.works:
            work.wait()
        at, transfer, micro_batch = self.header.tolist()
        self.pacer.arrive(at, transfer, self.source, called, int(micro_batch))
        if self.host is not self.tensor:
            with torch.no_grad():
                self.tensor.copy_(self.host)
        return True


class Messages(dist.ProcessGroup):  # type: ignore[misc]
    """The process group of one pipeline, for ``isend`` and ``irecv`` alone.

    ``ranks`` are the global ranks of the members, ``links`` the emulated links by global rank of the receiver.
    """

    def __init__(
        self, rank: int, ranks: Sequence[int], pacer: Pacer, links: dict[int, Link], to_host: Callable[[Any], Any]
    ) -> None:
        super().__init__(rank, len(ranks))
        self.ranks = list(ranks)
        self._pacer, self._links, self._to_host = pacer, links, to_host
        self._free: dict[int, float] = {}
        self._sent: deque[tuple[Any, ...]] = deque()
        self._expected: dict[int, deque[Received]] = {}

    def getBackendName(self) -> str:  # noqa: N802
        """Return the name under which torch knows the group."""
        return BACKEND

    def send(self, tensors: list[Any], dst: int, tag: int = 0) -> Sent:
        """Send one tensor to member ``dst``; never blocks."""
        peer = self.ranks[dst]
        payload = self._to_host(tensors[0])
        start, transfer, arrival = self._pass(peer, payload.nbytes)
        micro_batch = self._pacer.micro_batch
        header = torch.tensor([arrival, transfer, micro_batch], dtype=torch.float64)
        works = (dist.isend(header, peer, tag=2 * tag + 1), dist.isend(payload, peer, tag=2 * tag))
        self._sent.append((*works, header, payload))
        self._pacer.spans.append(Span("send", micro_batch, start, max(arrival, start), peer))
        return Sent()

    def recv(self, tensors: list[Any], src: int, tag: int = 0) -> Received:
        """Receive one tensor from member ``src``: the one expected, or a new one."""
        peer = self.ranks[src]
        waiting = self._expected.get(peer)
        if waiting and waiting[0].tensor.data_ptr() == tensors[0].data_ptr():
            return waiting.popleft()
        return self._post(tensors[0], peer, tag)

    def expect(self, tensor: Any, src: int) -> None:
        """Post a receive ahead; receives from one member must be expected in the order in which they are sent."""
        peer = self.ranks[src]
        self._expected.setdefault(peer, deque()).append(self._post(tensor, peer, 0))

    def flush(self) -> None:
        """Wait until all that was sent has left; raises what the network raised."""
        while self._sent:
            header, payload, *_ = self._sent.popleft()
            header.wait()
            payload.wait()

    def _post(self, tensor: Any, peer: int, tag: int) -> Received:
        host = tensor if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
        header = torch.empty(3, dtype=torch.float64)
        works = (dist.irecv(header, peer, tag=2 * tag + 1), dist.irecv(host, peer, tag=2 * tag))
        return Received(tensor, host, header, works, peer, self._pacer)

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


def open_groups(
    members: Sequence[Sequence[int]], pacer: Pacer, links: dict[int, Link], to_host: Callable[[Any], Any]
) -> Messages:
    """Open one group for each pipeline (global ranks in stage order) and return the caller's own.

    Every process of the default group must call it with the same members.
    """

    def create(_store: Any, rank: int, size: int, _timeout: timedelta) -> Messages:
        ranks = next(group for group in members if pacer.rank in group)
        return Messages(rank, ranks, pacer, links, to_host)

    card = torch.accelerator.current_accelerator()
    dist.Backend.register_backend(BACKEND, create, devices=["cpu", *([] if card is None else [card.type])])
    groups = [dist.new_group(list(ranks), backend=BACKEND) for ranks in members]
    return next(group for group in groups if isinstance(group, Messages))
