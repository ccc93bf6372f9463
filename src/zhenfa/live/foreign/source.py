"""Where a module comes from, and what was found out about it: plain data that every card is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["python", "transformers"]


@dataclass(frozen=True)
class Source:
    """A module with a list of blocks, cut into what runs before the first, the blocks, and what runs after the last.

    ``kind`` ``python``: ``function`` of the file ``path`` returns it, and ``digest`` is the SHA-256 of that file;
    ``transformers``: it is built from the ``config.json`` at ``path``. ``blocks`` is the global name of the list.
    ``stem``, ``head``, ``ends`` name the weights that run before, after, and both (tied); ``counts`` are the numbers of
    weights in these three, ``block_counts`` in each block. Features go into a block as its argument ``argument`` (a
    position, or a keyword) and come out as its result, or as element ``result[0]`` of ``result[1]``.
    """

    kind: Kind
    path: str
    function: str
    digest: str
    blocks: str
    stem: tuple[str, ...]
    ends: tuple[str, ...]
    head: tuple[str, ...]
    counts: tuple[int, int, int]
    block_counts: tuple[int, ...]
    argument: int | str
    result: tuple[int, int] | None

    def __post_init__(self) -> None:
        """Take lists for tuples, as plain data has them."""
        for name in ("stem", "ends", "head", "counts", "block_counts", "result"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))

    @property
    def label(self) -> str:
        """Return what messages call the module."""
        return f"{self.path}:{self.function}" if self.kind == "python" else self.path

    @property
    def parts(self) -> list[str]:
        """Return the parts of the module that hold weights, in its order.

        The same weights before and after the blocks are a part of their own, ``ends``.
        """
        layers = [f"layer {index}" for index, count in enumerate(self.block_counts) if count]
        named = (("stem", self.stem), ("ends", self.ends))
        return [*(name for name, weights in named if weights), *layers, *(["head"] if self.head else [])]

    def part_of(self, name: str) -> str:
        """Return the part that a weight belongs to."""
        if name.startswith(f"{self.blocks}."):
            return f"layer {name.removeprefix(f'{self.blocks}.').split('.', 1)[0]}"
        return "ends" if name in self.ends else "stem" if name in self.stem else "head"

    def held(self, layers: Sequence[int], *, first: bool, last: bool) -> list[str]:
        """Return the parts that a card with these layers holds; ``first``, ``last``: and what is before and after."""
        wanted = {f"layer {index}" for index in layers} | ({"stem", "ends"} if first else set())
        wanted |= {"ends", "head"} if last else set()
        return [part for part in self.parts if part in wanted]

    def weights(self, part: str) -> int:
        """Return how many weights a part has."""
        kind, *number = part.split()
        return self.block_counts[int(number[0])] if number else self.counts[("stem", "ends", "head").index(kind)]

    @classmethod
    def from_data(cls, data: Any) -> Source:
        """Read plain data."""
        return data if isinstance(data, Source) else cls(**data)
