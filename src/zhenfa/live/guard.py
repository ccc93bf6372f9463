"""Whether a step's gradients may be used: every card shows its own, and all come to the same verdict.

Before gradients are summed each card takes the norm of its own; the norms are gathered, so that all cards know which
one put what into the sum. Numbers that are not finite are never used. A norm far above what the card showed before is
suspect: the step is taken once more, which on sound cards gives the same norm to the bit, and then it is used. What
differs between two goes at the same step is a fault of the card, not of the training.

Counts: whatever changes a gradient. Omits: a fault that leaves every norm as it was, one in the optimizer's step, and
large numbers in the first steps of a run, which have no past to be judged by.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

SUSPECT: Final = 20.0
"""Times its own median above which a card's norm is suspect. A step taken again for nothing costs only its time."""
HISTORY: Final = 16
LEAST: Final = 3
"""Steps that a card must have shown before its norm can be suspect."""

Verdict = Literal["sound", "not finite", "suspect", "not the same twice"]


@dataclass
class Guard:
    """The norms of all cards, step by step. Equal on all of them.

    ``usual`` is the :func:`total` of a usual step under the plans before, which hold for the first steps of this one.
    """

    cards: int
    usual: float | None = None
    _shown: deque[tuple[float, ...]] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def judge(
        self, norms: Sequence[float], before: Sequence[Sequence[float]] = (), *, twice: bool = False
    ) -> tuple[Verdict, list[int]]:
        """Return what is to be held of the ``norms`` of all cards, and the ranks that are not sound.

        ``before`` are those of the goes at the same step before this one: what is exactly as it was then is sound, even
        if it is suspect. ``twice``: nothing else is.
        """
        bad = [rank for rank, norm in enumerate(norms) if not math.isfinite(norm)]
        if bad:
            return "not finite", bad
        if any(list(norms) == list(row) for row in before):
            return "sound", []
        if twice:
            pairs = zip(before[-1], norms, strict=True) if before else ()
            return "not the same twice", [rank for rank, (one, other) in enumerate(pairs) if one != other]
        suspect = [rank for rank, norm in enumerate(norms) if self._is_suspect(rank, norm)]
        return ("suspect", suspect) if suspect else ("sound", [])

    def used(self, norms: Sequence[float]) -> None:
        """Remember the norms of a step that was used."""
        self._shown.append(tuple(norms))

    def _is_suspect(self, rank: int, norm: float) -> bool:
        if len(self._shown) < LEAST:
            return self.usual is not None and norm > SUSPECT * self.usual
        return norm > SUSPECT * statistics.median(row[rank] for row in self._shown)


def total(norms: Sequence[float]) -> float:
    """Return one number for the norms of all cards, much the same however a model is spread over them."""
    return math.sqrt(sum(norm * norm for norm in norms))


def norm_of(gradients: Iterable[Any]) -> float:
    """Return the Euclidean norm of a card's gradients, in float64 whatever they are held in."""
    import torch

    total = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        total += gradient.detach().double().square().sum().cpu()
    return float(total.sqrt())


def gather(norm: float, now: float, cards: int) -> tuple[list[float], float]:
    """Return the norms of all cards of the default group by rank, and the latest of their clocks (s)."""
    import torch
    import torch.distributed as dist

    rows = [torch.zeros(2, dtype=torch.float64) for _ in range(cards)]
    dist.all_gather(rows, torch.tensor([norm, now], dtype=torch.float64))
    return [float(row[0]) for row in rows], max(float(row[1]) for row in rows)
