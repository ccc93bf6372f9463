"""Faults on purpose, to rehearse what a run does about them.

``kill`` ends a card's process with signal 9, ``hang`` stops it (signal 19), ``lose`` ends it for good, so that its card
does not come back; these need nothing of the card. ``slow`` makes its operations take a multiple of their time. ``nan``
and ``scale`` poison the gradients of its next step: with a number that is none, or times a factor. Nothing here happens
unless a run asks for it, and its report says that it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass
class Faults:
    """What is to happen to the gradients of the next step."""

    _kind: str | None = None
    _factor: float = 1.0

    def poison_next(self, kind: str, factor: float) -> None:
        """Have the next step's gradients poisoned: ``nan``, or ``scale`` by ``factor``."""
        self._kind, self._factor = kind, factor

    @property
    def pending(self) -> bool:
        """Return whether the next step's gradients are to be poisoned."""
        return self._kind is not None

    def poison(self, gradients: Sequence[Any]) -> None:
        """Do to the gradients what is to happen to them, once."""
        poison = self.taken()
        if poison is not None:
            poison(gradients)

    def taken(self) -> Callable[[Sequence[Any]], None] | None:
        """Return what is to happen to gradients of one step, wherever they come from; None if nothing is."""
        kind, self._kind = self._kind, None
        return None if kind is None else partial(_poison, kind, self._factor)


def _poison(kind: str, factor: float, gradients: Sequence[Any]) -> None:
    if kind == "nan" and gradients:
        gradients[0].view(-1)[0] = float("nan")
    if kind != "nan":
        for gradient in gradients:
            gradient.mul_(factor)
