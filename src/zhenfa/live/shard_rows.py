"""What one card keeps of weights that are shared out: its rows of each, and what it computes with."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn

from zhenfa.live.checkpoint import Piece
from zhenfa.live.collective import Opener
from zhenfa.live.decoder import Decoder
from zhenfa.live.shard_layout import SharedPart, rows_of, shared_parts
from zhenfa.live.sizes import part_of

WIDE: Final = torch.float32
"""What weights are updated in and gradients are added up in, whatever matmuls compute in."""


class Rows:
    """The weights of one card, cut by rows.

    ``module`` holds them whole, on the host; its weights become those that forwards and backwards work with, of type
    ``dtype`` on ``device``. ``drops``: they are there only while they are needed (ZeRO-3). ``own`` are the rows that
    the card keeps and updates, in 32 bits, by name; ``names`` are the weights of each part of the model.
    """

    def __init__(self, opener: Opener, module: Decoder, *, drops: bool, dtype: Any, device: Any) -> None:
        self.rank, self.module, self._crew = opener.rank, module, module.crew
        self.dtype, self.device, self._drops = dtype, device, drops
        self.names: dict[str, list[str]] = {}
        for name, _ in module.named_parameters():
            self.names.setdefault(part_of(name), []).append(name)
        self.parts = shared_parts(opener.places, opener.rank, module.sizes, list(self.names))
        self.shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
        self._rows = {
            name: dict(zip(one.ranks, rows_of(self.shapes[name][0], len(one.ranks)), strict=True))
            for part, one in self.parts.items() for name in self.names[part]
        }  # fmt: skip
        self._counts = {part: {rank: self._sum(part, rank) for rank in one.ranks} for part, one in self.parts.items()}
        self._flats: dict[str, Any] = {}
        self.own = self._cut()
        self.weights: dict[str, Any] = dict(module.named_parameters())

    @property
    def counts(self) -> frozenset[str]:
        """Return the weights whose gradients this card counts, its rows of each."""
        return frozenset(filter(self._crew.counts, self.own))

    def rows(self, name: str, rank: int | None = None) -> tuple[int, int]:
        """Return where the rows of a weight that a card (None: this one) keeps begin and end."""
        return self._rows[name][self.rank if rank is None else rank]

    def piece(self, name: str) -> Piece:
        """Return where this card's rows lie in the whole weight."""
        part = self._crew.piece(name, self.shapes[name])
        return Piece(part.size, (part.offsets[0] + self.rows(name)[0], *part.offsets[1:]))

    def fill(self, name: str, whole: Any) -> None:
        """Take a weight from the whole one (this card's part of it, where a crew splits it)."""
        first, last = self.rows(name)
        with torch.no_grad():
            if name in self.own:
                self.own[name].copy_(whole[first:last])
            if not self.goes(part_of(name)):
                self.weights[name].copy_(whole)

    def refresh(self) -> None:
        """Take the rows that this card keeps into the weights that it computes with, where those stay."""
        with torch.no_grad():
            for name, kept in self.own.items():
                weight = self.weights[name]
                if not self.goes(part_of(name)) and weight.dtype != WIDE:
                    first, last = self.rows(name)
                    weight[first:last].copy_(kept)

    def goes(self, part: str) -> bool:
        """Return whether a part's weights are dropped between the passes that need them."""
        return self._drops and len(self.parts[part].ranks) > 1

    def flat(self, part: str) -> Any:
        """Return the rows of a part that this card keeps, one after the other on the host, as matmuls take them."""
        if part in self._flats:
            return self._flats[part].to("cpu", self.dtype)
        rows = [self.own[name].detach().flatten() for name in self.names[part] if name in self.own]
        return torch.cat(rows).to("cpu", self.dtype) if rows else torch.empty(0, dtype=self.dtype)

    def count(self, part: str, rank: int) -> int:
        """Return how many numbers of a part a card keeps."""
        return self._counts[part][rank]

    def _sum(self, part: str, rank: int) -> int:
        rows = {name: self.rows(name, rank) for name in self.names[part]}
        return sum((last - first) * math.prod(self.shapes[name][1:]) for name, (first, last) in rows.items())

    def largest(self, one: SharedPart) -> int:
        """Return how many numbers of a part the card keeps that keeps most."""
        return max(self._counts[one.name].values())

    def _cut(self) -> dict[str, nn.Parameter]:
        """Cut all weights of the module, one after the other; return the rows that this card keeps, in 32 bits, of
        those weights of which it keeps any."""
        own: dict[str, nn.Parameter] = {}
        for path, holder in self.module.named_modules():
            for local, whole in list(holder.named_parameters(recurse=False)):
                name = f"{path}.{local}" if path else local
                first, last = self.rows(name)
                goes = self.goes(part_of(name))
                kept = whole.detach()
                if goes:
                    weight = nn.Parameter(torch.empty(whole.shape, dtype=self.dtype, device=self.device))
                    weight.untyped_storage().resize_(0)
                else:
                    weight = nn.Parameter(kept.to(self.device, self.dtype))
                # In 32 bits rows of a weight that stays are a view of it.
                rows = kept[first:last].to(self.device, WIDE, copy=True)
                if not goes and self.dtype == WIDE:
                    rows = weight.detach()[first:last]
                holder._parameters[local] = weight
                if last > first:
                    own[name] = nn.Parameter(rows)
        for part in filter(self.goes, self.names):
            self._lay_together(part, own)
        return own

    def _lay_together(self, part: str, own: dict[str, nn.Parameter]) -> None:
        """Have the rows of a part that this card keeps lie one after the other, as other cards fetch them."""
        held = [own[name] for name in self.names[part] if name in own]
        if not held:
            return
        self._flats[part] = flat = torch.cat([kept.detach().flatten() for kept in held])
        offset = 0
        for kept in held:
            kept.data = flat[offset : offset + kept.numel()].view(kept.shape)
            offset += kept.numel()

    def kept_bytes(self) -> dict[str, int]:
        """Return the bytes of weights that stay, in the format of the matmuls, and of 32-bit ones kept beside those."""
        stay = [name for part in self.names if not self.goes(part) for name in self.names[part]]
        rows = sum(kept.numel() for name, kept in self.own.items() if self.goes(part_of(name)))
        weights = sum(self.weights[name].nbytes for name in stay) + rows * self.dtype.itemsize
        return {
            "parameters": weights,
            "wide": 0 if self.dtype == WIDE else sum(one.nbytes for one in self.own.values()),
        }
