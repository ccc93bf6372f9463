"""What the cards are saving: it counts when they have all told that their share is written."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from zhenfa.live import checkpoint


@dataclass
class Pending(ABC):
    """A state after ``step`` that ``cards`` cards are saving in folder ``path``; ``ranks`` have told of their share."""

    path: Path
    step: int
    cards: int
    ranks: set[int] = field(default_factory=set)
    remembered: ClassVar[bool] = True
    """Whether the folder is one that the engine is to remove should the driver die."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Return what cards tell of it under."""

    def told(self, rank: int, word: Mapping[str, Any]) -> bool:
        """Take in a card's word that its share is written; return whether all have told."""
        del word
        self.ranks.add(rank)
        return len(self.ranks) == self.cards

    @abstractmethod
    def is_written(self) -> bool:
        """Return whether all cards have written their share, though one of them can no longer tell."""

    @abstractmethod
    def finish(self) -> Path:
        """Make what it is for of what the cards have written; return the path of that."""

    @abstractmethod
    def give_up(self) -> None:
        """Let go of what has been written."""


@dataclass
class Saving(Pending):
    """A checkpoint, in a folder that is still unfinished. ``facts`` are for its manifest."""

    facts: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return what cards tell of it under."""
        return str(self.path)

    def told(self, rank: int, word: Mapping[str, Any]) -> bool:
        """Take in a card's word, with the SHA-256 of its files."""
        self.sums |= word["files"]
        return super().told(rank, word)

    def is_written(self) -> bool:
        """Return whether all cards have put the SHA-256 of their files beside them."""
        sums = checkpoint.told_on_disk(self.path, self.cards)
        self.sums |= sums or {}
        return sums is not None

    def finish(self) -> Path:
        """Put the cards' records together, and give the folder its name."""
        return checkpoint.finish(self.path, self.facts, self.sums)

    def give_up(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
