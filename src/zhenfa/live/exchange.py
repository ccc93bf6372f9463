"""Copies of tokens on their way to experts and back: put in order, and sent to the cards that hold the experts.

Dispatch and combine are all-to-alls of uneven parts through host memory and gloo, with their own backward passes. All
of them move rows and add them in a fixed order, so that what comes of it is the same to the bit every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.live.links import Link
from zhenfa.live.placement import CardPlace


@dataclass(frozen=True)
class Order:
    """Copies sorted by their experts, the tokens of each in order. ``copies[i]`` is the copy that stands at place
    ``i`` of the sorted, ``token[i]`` its token; ``places[j]`` is where copy ``j`` stands; ``active`` copies a token."""

    copies: Any
    token: Any
    places: Any
    active: int

    @classmethod
    def of(cls, chosen: Any) -> Order:
        """Return the order of the copies that go to ``chosen`` ``[tokens, active]``."""
        copies = chosen.flatten().argsort(stable=True)
        return cls(copies, copies // chosen.shape[1], inverse(copies), chosen.shape[1])


def inverse(permutation: Any) -> Any:
    """Return the permutation that undoes another."""
    found = torch.empty_like(permutation)
    found[permutation] = torch.arange(len(permutation), device=permutation.device)
    return found


def _gathered(rows: Any, order: Order) -> Any:
    return rows[order.places].view(-1, order.active, rows.shape[-1]).sum(1)


class Copied(torch.autograd.Function):  # type: ignore[misc]
    """A copy of each token for each of its experts, in the experts' order."""

    @staticmethod
    def forward(ctx: Any, features: Any, order: Order) -> Any:
        """Return the copies ``[tokens x active, hidden]`` of ``[tokens, hidden]``."""
        ctx.order = order
        return features[order.token]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """Return the sum over the copies of each token."""
        return _gathered(gradients[0], ctx.order), None


class Joined(torch.autograd.Function):  # type: ignore[misc]
    """The sum over the copies of each token."""

    @staticmethod
    def forward(ctx: Any, copies: Any, order: Order) -> Any:
        """Return the sums ``[tokens, hidden]`` of ``[tokens x active, hidden]``."""
        ctx.order = order
        return _gathered(copies, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """Return the gradient of each copy."""
        return gradients[0][ctx.order.token], None


class Permuted(torch.autograd.Function):  # type: ignore[misc]
    """Rows in another order."""

    @staticmethod
    def forward(ctx: Any, rows: Any, permutation: Any) -> Any:
        """Return ``rows[permutation]``."""
        ctx.permutation = permutation
        return rows[permutation]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """Return the gradient in the order before."""
        return gradients[0][inverse(ctx.permutation)], None


@dataclass(frozen=True)
class Split:
    """How copies go from card to card of a group. ``sent`` and ``received`` by peer, ``rows`` by expert of this card;
    ``by_expert`` sorts what was received, ``by_source`` undoes it; ``loads`` are the copies that each card gets."""

    sent: list[int]
    received: list[int]
    rows: list[int]
    by_expert: Any
    by_source: Any
    loads: Any


class ExpertGroup:
    """The cards that share the experts of a stage out, this one among them: number ``index`` of ``size``.

    ``out`` and ``back`` are the emulated links to and from each of the ``ranks``. ``seconds`` adds up what exchanges
    take on them, waits for slower cards included, for the operation under way; ``clock`` tells its time so far on this
    card, which is ``slower`` than it should be by a factor.
    """

    def __init__(
        self, index: int = 0, size: int = 1, group: Any = None, links: Sequence[tuple[Link, Link]] = ()
    ) -> None:
        self.index, self.size, self.group, self.links = index, size, group, list(links)
        self.seconds, self.slower = 0.0, 1.0
        self.clock: Callable[[], float] | None = None

    def __deepcopy__(self, _memo: dict[int, Any]) -> ExpertGroup:
        return self

    def held(self, experts: int) -> range:
        """Return which experts of a layer this card holds."""
        each = experts // self.size
        return range(self.index * each, (self.index + 1) * each)

    def split(self, counts: Any) -> Split:
        """Tell the others how many copies go to each expert ``[experts]``, and return who sends how many to whom."""
        now = 0.0 if self.clock is None else self.clock()
        own = torch.cat((counts.to("cpu", torch.float64), torch.tensor([now], dtype=torch.float64)))
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own, group=self.group)
        table = torch.stack(rows)
        self._wait(float(table[:, -1].max()) - now)
        copies = table[:, :-1].long().view(self.size, self.size, -1)  # from card, to card, expert there
        mine = copies[:, self.index]
        expert = torch.arange(mine.shape[1]).repeat(self.size).repeat_interleave(mine.flatten())
        by_expert = expert.argsort(stable=True).to(counts.device)
        return Split(
            copies[self.index].sum(1).tolist(), mine.sum(1).tolist(), mine.sum(0).tolist(), by_expert,
            inverse(by_expert), copies.sum((0, 2)),
        )  # fmt: skip

    def exchange(self, rows: Any, sent: Sequence[int], received: Sequence[int], *, met: bool = False) -> Any:
        """Send so many rows to each card and return those received, in the order of the cards.

        ``met``: the cards have just waited for each other.
        """
        if self.clock is not None and not met:
            now = self.clock()
            latest = torch.tensor([now], dtype=torch.float64)
            dist.all_reduce(latest, op=dist.ReduceOp.MAX, group=self.group)
            self._wait(float(latest) - now)
        host = rows.detach().to("cpu").contiguous()
        found = host.new_empty((sum(received), *host.shape[1:]))
        dist.all_to_all_single(found, host, list(received), list(sent), group=self.group)
        self.seconds += self._transfer(host[:1].nbytes if len(host) else found[:1].nbytes, sent, received)
        return found.to(rows.device)

    def taken(self) -> float:
        """Return the seconds of all exchanges since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _wait(self, seconds: float) -> None:
        """Have waited for the last card of the group; a slow card waits no slower than others."""
        if self.clock is not None:
            self.seconds += max(seconds, 0.0) / self.slower

    def _transfer(self, row: int, sent: Sequence[int], received: Sequence[int]) -> float:
        """Return the seconds of an exchange on emulated links: out and in side by side, one message after the other."""
        if not self.links:
            return 0.0
        peers = [peer for peer in range(self.size) if peer != self.index]
        pairs = list(zip(peers, self.links, strict=True))
        out = sum(link.seconds(row * sent[peer]) for peer, (link, _) in pairs)
        back = sum(link.seconds(row * received[peer]) for peer, (_, link) in pairs)
        return max(out, back) + max(max(one.latency, other.latency) for one, other in self.links)


class Exchanged(torch.autograd.Function):  # type: ignore[misc]
    """Rows sent to the cards of a group; gradients go the other way."""

    @staticmethod
    def forward(
        ctx: Any, rows: Any, group: ExpertGroup, sent: Sequence[int], received: Sequence[int], met: bool
    ) -> Any:
        """Return the rows received."""
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return group.exchange(rows, sent, received, met=met)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None, None, None]:
        """Return the gradients of the rows sent."""
        return ctx.group.exchange(gradients[0], ctx.received, ctx.sent), None, None, None, None


def group_of(
    places: Sequence[CardPlace], rank: int, links: Mapping[int, Mapping[int, Link]], timeout: timedelta
) -> ExpertGroup:  # fmt: skip
    """Return the group that a card shares experts out with. Every card must call it, for every group is opened by all,
    in one order."""
    own = ExpertGroup()
    for ranks in dict.fromkeys(place.expert_ranks for place in places if len(place.expert_ranks) > 1):
        group = dist.new_group(list(ranks), backend="gloo", timeout=timeout)
        if rank in ranks:
            peers = [peer for peer in ranks if peer != rank]
            pairs = [(links.get(rank, {}).get(peer), links.get(peer, {}).get(rank)) for peer in peers]
            emulated = [(out, back) for out, back in pairs if out is not None and back is not None]
            own = ExpertGroup(ranks.index(rank), len(ranks), group, emulated if len(emulated) == len(peers) else ())
    return own
