"""What cards do together: in their maker's own collective library where they can, through host memory and gloo else.

Cards of one maker whose torch has the maker's library hand it their tensors where they lie. Everybody else copies to
the host, goes through gloo, and copies back: between makers there is no other way (the libraries do not know each
other's cards), and inside one it is what is left where the library is missing, which is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal

import torch
import torch.distributed as dist

from zhenfa.live.makers import maker
from zhenfa.live.placement import CardPlace

Use = Literal["sums", "crew"]
HOST: Final = "gloo"
"""What joins cards of different makers."""


@dataclass(frozen=True)
class Way:
    """How some cards do collectives: in which ``backend`` of torch, on tensors on the card or (``staged``) on the host.

    ``note`` says why their maker's own library is not used, empty where it is or where there are several makers.
    """

    backend: str
    staged: bool
    note: str = ""


STAGED: Final = Way(HOST, staged=True)


def has_library(provider: str) -> bool:
    """Return whether a maker has a collective library between its cards, wherever this is asked."""
    mine = maker(provider)
    return mine.torch_device != "cpu" and mine.collective is not None


def way_of(providers: Sequence[str]) -> Way:
    """Return how cards of these providers do collectives. The same on every card, as long as their torch is."""
    if len(set(providers)) > 1:
        return STAGED
    mine = maker(providers[0])
    if mine.torch_device == "cpu":
        return Way(HOST, staged=False)
    library = mine.collective_library or mine.collective
    if mine.collective is None:
        return Way(HOST, staged=True, note=f"{mine.name}: torch's name of its collective library is not known")
    if not dist.is_backend_available(mine.collective):
        return Way(
            HOST, staged=True, note=f"{mine.name}: torch here has no {mine.collective} ({library}); sums inside the "
            "maker go through host memory and gloo",
        )  # fmt: skip
    return Way(mine.collective, staged=False)


@dataclass
class Collective:
    """Cards (global ``ranks``) that do collectives, this card among them. All of them call the same, in one order."""

    ranks: tuple[int, ...]
    way: Way
    group: Any

    def all_reduce(self, tensor: Any) -> Any:
        """Return the sum of a tensor over the cards; the tensor given may be used for it."""
        own = self._lay(tensor)
        dist.all_reduce(own, group=self.group)
        return own.to(tensor.device)

    def reduce(self, tensor: Any, rank: int) -> Any:
        """Return the sum on card ``rank``, and nothing of use on the others."""
        own = self._lay(tensor)
        dist.reduce(own, dst=rank, group=self.group)
        return own.to(tensor.device)

    def broadcast(self, tensor: Any, rank: int) -> Any:
        """Return the tensor of card ``rank``; the others give one of the same shape."""
        own = self._lay(tensor)
        dist.broadcast(own, src=rank, group=self.group)
        return own.to(tensor.device)

    def all_gather(self, tensor: Any) -> list[Any]:
        """Return the tensors of all cards, in the order of their ranks."""
        own = self._lay(tensor)
        rows = [torch.empty_like(own) for _ in self.ranks]
        dist.all_gather(rows, own, group=self.group)
        return [row.to(tensor.device) for row in rows]

    def send(self, tensor: Any, rank: int) -> None:
        """Send a tensor to one of the cards, which must be receiving it."""
        dist.send(self._lay(tensor), rank, group=self.group)

    def receive(self, tensor: Any, rank: int) -> Any:
        """Return what card ``rank`` sends, of the shape and kind of ``tensor``."""
        own = self._lay(torch.empty_like(tensor))
        dist.recv(own, rank, group=self.group)
        return own.to(tensor.device)

    def latest(self, at: float) -> float:
        """Return the largest of the cards' numbers. On emulated cards alone, which lie on the host."""
        entered = torch.tensor([at], dtype=torch.float64)
        dist.all_reduce(entered, op=dist.ReduceOp.MAX, group=self.group)
        return float(entered)

    def _lay(self, tensor: Any) -> Any:
        """Return a tensor where the library takes it."""
        return (tensor.detach().to("cpu") if self.way.staged else tensor.detach()).contiguous()


@dataclass
class Opener:
    """Opens groups of cards, each once for each use. All cards of a run, members or not, ask for the same groups in one
    order: the groups' names count them. What goes on beside something else is another use, for collectives of one group
    are told apart by their order alone."""

    places: Sequence[CardPlace]
    rank: int
    timeout: timedelta
    notes: list[str] = field(default_factory=list)
    _open: dict[tuple[tuple[int, ...], bool, Use], Collective | None] = field(default_factory=dict)

    def open(self, ranks: Sequence[int], *, host: bool = False, use: Use = "sums") -> Collective | None:
        """Return the collective of some cards, None if this is none of them; ``host``: through the host in any case.

        ``use``: for sums of gradients, which go on beside the passes, or for the matrices that a ``crew`` splits.
        """
        key = (tuple(ranks), host, use)
        if key not in self._open:
            member = self.rank in ranks
            way = way_of([self.places[rank].provider for rank in ranks]) if member and not host else STAGED
            # Who is no member may be of another maker, whose torch does not know the library, and need not.
            group = dist.new_group(list(ranks), backend=way.backend, timeout=self.timeout)
            self._open[key] = Collective(tuple(ranks), way, group) if member else None
            if way.note and way.note not in self.notes:
                self.notes.append(way.note)
        return self._open[key]
