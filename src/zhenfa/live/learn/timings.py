"""What the cards of a plan were timed at, step by step, added up by what a law predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zhenfa.live.pace import BESIDE, COMPUTE
from zhenfa.live.placement import CardPlace
from zhenfa.live.sizes import Sizes

Spans = Sequence[tuple[str, int, float, float, int, int]]
"""What a card did in a step: kind, micro-batch, start and end in s from the step's start, peer, stage."""

PASSES = frozenset(COMPUTE) - {"optimizer"}


@dataclass
class Sum:
    """Seconds added up, and of how many."""

    seconds: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        """Add one."""
        self.seconds += seconds
        self.count += 1

    @property
    def mean(self) -> float:
        """Return the mean, 0 of none."""
        return self.seconds / self.count if self.count else 0.0


@dataclass
class Timings:
    """Seconds over ``steps`` steps.

    ``work``: of each forward, backward, input and weight pass, by rank, stage and kind. ``gaps``: a step, between
    operations of the pipeline in which the card neither worked nor waited for a message, by rank. ``messages``: of each
    message, by the ranks that it went from and to. ``sums``: a step, of gradients and of weights sent after the update,
    from when the last card of those that share weights was there, by the ranks that do. ``optimizer``: of each update,
    by rank. ``tail``: a step, after the last backward pass, in none of these. ``pipeline``: until the last backward.
    """

    together: tuple[tuple[int, ...], ...] = ()
    clipped: bool = False
    steps: int = 0
    work: dict[tuple[int, int, str], Sum] = field(default_factory=dict)
    gaps: dict[int, float] = field(default_factory=dict)
    messages: dict[tuple[int, int], Sum] = field(default_factory=dict)
    sums: dict[tuple[int, ...], float] = field(default_factory=dict)
    optimizer: dict[int, Sum] = field(default_factory=dict)
    tail: float = 0.0
    pipeline: float = 0.0

    def add(self, rows: Sequence[Spans], seconds: float) -> None:
        """Take in one step of ``seconds``: the spans of every card, by rank."""
        self.steps += 1
        ends = [max((end for kind, _, _, end, *_ in row if kind in PASSES), default=0.0) for row in rows]
        for rank, row in enumerate(rows):
            self._work(rank, row)
            self.gaps[rank] = self.gaps.get(rank, 0.0) + _gap(row, ends[rank])
        for target, row in enumerate(rows):
            self._messages(rows, target, row)
        self.pipeline += max(ends)
        self._tail(rows, ends, seconds)

    def _work(self, rank: int, row: Spans) -> None:
        for kind, _, start, end, _, stage in row:
            if kind in PASSES:
                self.work.setdefault((rank, stage, kind), Sum()).add(end - start)
            elif kind == "optimizer":
                self.optimizer.setdefault(rank, Sum()).add(end - start)

    def _messages(self, rows: Sequence[Spans], target: int, row: Spans) -> None:
        """Time messages to a card: as long as an emulated link held them; else from when one was sent until it was
        there, where the card already waited for it."""
        for kind, micro_batch, start, end, source, _ in row:
            if kind == "send" and end > start:
                self.messages.setdefault((target, source), Sum()).add(end - start)
            if kind != "wait" or source < 0:
                continue
            sends = (one for one in rows[source] if one[0] == "send" and one[2] == one[3] <= end)
            sent = [one[2] for one in sends if (one[1], one[4]) == (micro_batch, target)]
            if sent and start <= max(sent):
                self.messages.setdefault((source, target), Sum()).add(end - max(sent))

    def _tail(self, rows: Sequence[Spans], ends: Sequence[float], seconds: float) -> None:
        """Split what comes after the last backward: sums net of waiting for the last card, updates, and the rest."""
        before, after, updates = [], [], []
        for row, end in zip(rows, ends, strict=True):
            update = next(((one[2], one[3]) for one in row if one[0] == "optimizer"), (seconds, seconds))
            reduces = [one for one in row if one[0] == "reduce"]
            early = [one[3] for one in reduces if one[2] < update[0]]
            if self.clipped and early:
                early.pop()
            before.append(max([end, *early]))
            after.append(max([update[1], *(one[3] for one in reduces if one[2] >= update[0])]))
            updates.append(update)
        known = 0.0
        taken = _sums(rows)
        for ranks in self.together:
            first = max(taken[rank] for rank in ranks)
            second = max(after[rank] for rank in ranks) - max(updates[rank][1] for rank in ranks)
            self.sums[ranks] = self.sums.get(ranks, 0.0) + first + second
            known = max(known, second)
        longest = max(end - start for start, end in updates)
        self.tail += max(seconds - max(before) - longest - known, 0.0)


def _sums(rows: Sequence[Spans]) -> list[float]:
    """Return the seconds of each card's sums of gradients, each from when the last of its cards was there: they go on
    beside backward passes."""
    times: dict[tuple[int, int], tuple[float, float]] = {}
    for row in rows:
        for kind, number, start, end, first, _ in row:
            if kind == "sum":
                begun, ended = times.get((first, number), (start, end))
                times[first, number] = max(begun, start), max(ended, end)
    return [sum(times[one[4], one[1]][1] - times[one[4], one[1]][0] for one in row if one[0] == "sum") for row in rows]


def _gap(row: Spans, until: float) -> float:
    """Return the seconds up to ``until`` in which a card neither worked nor waited: its spans follow each other."""
    known = sorted((start, min(end, until)) for kind, _, start, end, *_ in row if kind not in BESIDE and start < until)
    reached, gap = 0.0, 0.0
    for start, end in known:
        gap += max(start - reached, 0.0)
        reached = max(reached, end)
    return gap


def sharing(places: Sequence[CardPlace], sizes: Sizes) -> tuple[tuple[int, ...], ...]:
    """Return the ranks that sum gradients with each other, directly or through a third, in groups of two and more."""
    from zhenfa.live.replicas import owners

    home: Mapping[int, set[int]] = {place.rank: {place.rank} for place in places}
    for shared in owners(places, sizes):
        joined = set().union(*(home[rank] for rank in shared.ranks))
        home = {**home, **dict.fromkeys(joined, joined)}
    groups = {tuple(sorted(ranks)) for ranks in home.values() if len(ranks) > 1}
    return tuple(sorted(groups))
