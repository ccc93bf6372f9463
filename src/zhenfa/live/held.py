"""What of a run's state one card answers for, tensor by tensor: the same for copies in memory and for checkpoints.

Each tensor has the name under which torch's distributed checkpoint keeps it (``model.NAME``,
``optimizer.state.NAME.exp_avg``), and says where it lies in the whole one, so that any other layout can take it up:
cards that split a matrix, or keep rows of it, give their pieces, and nobody gathers anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch

from zhenfa.errors import CapabilityError
from zhenfa.live.checkpoint import Piece
from zhenfa.live.crew import Crew
from zhenfa.live.placement import CardPlace
from zhenfa.live.replicas import counted, owners
from zhenfa.live.shard_rows import Rows
from zhenfa.live.sizes import Sizes

MODEL: Final = "model"
OPTIMIZER: Final = "optimizer"
CUT_OFF: Final = "cut_off"
"""Where a checkpoint has what packing for the bridge has cut off of gradients."""
MOMENTS: Final = ("exp_avg", "exp_avg_sq")
ONE_NUMBER: Final = Piece((), ())


class Held(NamedTuple):
    """A tensor that a card answers for, where it is now, under its global name; it is a ``piece`` of the whole one."""

    key: str
    tensor: Any
    piece: Piece


class Source(Protocol):
    """A state that was kept, from which any piece of any tensor can be had."""

    def fill(self, key: str, tensor: Any, piece: Piece) -> None:
        """Fill a tensor that is a ``piece`` of the one kept as ``key``."""


def answers_for(places: Sequence[CardPlace], rank: int, sizes: Sizes) -> frozenset[str]:
    """Return the parts that ``rank`` holds and does not write, because another card does."""
    held = {part for one in owners(places, sizes) if rank in one.ranks for part in one.parts}
    return frozenset(held - counted(places, rank, sizes))


def held_whole(module: Any, optimizer: Any, left_out: frozenset[str], alone: frozenset[str]) -> Iterator[Held]:
    """Yield what a card answers for that holds weights whole, or a crew's part of them; not the parts ``left_out``.

    ``alone``: the weights that it alone of all their holders updates, whoever answers for the weights themselves.
    Raises :class:`CapabilityError` for what a module keeps that is no tensor.
    """
    crew, part_of = module.crew, module.sizes.part_of
    for name, value in module.state_dict().items():
        if part_of(name) not in left_out and crew.counts(name):
            if not torch.is_tensor(value):
                raise CapabilityError(f"the module's {name!r} is no tensor, and is not saved.")
            yield Held(f"{MODEL}.{name}", value, crew.piece(name, value.shape))
    for name, weight in updated(module, optimizer):
        if crew.counts(name) and (name in alone or part_of(name) not in left_out):
            yield from _moments(name, optimizer.state.get(weight), weight, crew.piece(name, weight.shape))


def held_rows(rows: Rows, optimizer: Any) -> Iterator[Held]:
    """Yield the rows that a card keeps, and their moments."""
    for name, kept in rows.own.items():
        if rows.module.crew.counts(name):
            piece = rows.piece(name)
            yield Held(f"{MODEL}.{name}", kept.detach(), piece)
            yield from _moments(name, optimizer.state.get(kept), kept, piece)


def settings_of(optimizer: Any) -> dict[str, Any]:
    """Return the settings that all weights of an optimizer have."""
    return {} if optimizer is None else {
        key: value for key, value in optimizer.param_groups[0].items() if key != "params"
    }  # fmt: skip


def updated(module: Any, optimizer: Any) -> list[tuple[str, Any]]:
    """Return the weights that an optimizer updates, with their global names."""
    own = set() if optimizer is None else {id(weight) for weight in optimizer.param_groups[0]["params"]}
    return [(name, weight) for name, weight in module.named_parameters() if id(weight) in own]


def _moments(name: str, known: dict[str, Any] | None, weight: Any, piece: Piece) -> Iterator[Held]:
    """Yield the state of a weight; of one that was never updated it is zero."""
    key = f"{OPTIMIZER}.state.{name}"
    yield Held(f"{key}.step", known["step"] if known else torch.zeros(()), ONE_NUMBER)
    for moment in MOMENTS:
        yield Held(f"{key}.{moment}", known[moment] if known else torch.zeros(weight.shape), piece)


def take_whole(source: Source, module: Any, optimizer: Any) -> None:
    """Fill a module, or a crew's part of it, and its optimizer."""
    crew: Crew = module.crew
    for name, value in module.state_dict().items():
        source.fill(f"{MODEL}.{name}", value, crew.piece(name, value.shape))
    for name, weight in updated(module, optimizer):
        optimizer.state[weight] = _state(source, name, weight, crew.piece(name, weight.shape))


def take_rows(source: Source, rows: Rows, optimizer: Any) -> None:
    """Fill a card's rows and their moments, one weight at a time."""
    crew: Crew = rows.module.crew
    for name, shape in rows.shapes.items():
        part = torch.empty(shape)
        source.fill(f"{MODEL}.{name}", part, crew.piece(name, shape))
        rows.fill(name, part)
        if name in rows.own:
            weight = rows.own[name]
            optimizer.state[weight] = _state(source, name, weight, rows.piece(name))


def _state(source: Source, name: str, weight: Any, piece: Piece) -> dict[str, Any]:
    key = f"{OPTIMIZER}.state.{name}"
    found = {"step": torch.zeros((), device=weight.device)}
    source.fill(f"{key}.step", found["step"], ONE_NUMBER)
    for moment in MOMENTS:
        found[moment] = torch.zeros_like(weight, requires_grad=False)
        source.fill(f"{key}.{moment}", found[moment], piece)
    return found
