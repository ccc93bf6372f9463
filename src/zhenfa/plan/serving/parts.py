"""One part of a serving plan: instances of one type, or of two where prefill is apart; how much each can take.

What a part can take is the most requests per second, at random, that meet the targets of the mean TTFT and TPOT. For
instances that do both it is looked for among the batches of :func:`zhenfa.estimate.serving_state.points`. Where prefill
is apart, TPOT depends on the decode instances alone and the wait for the first token on the prefill instances alone, so
that the most is the lesser of what ``n`` of the one (:mod:`zhenfa.plan.serving.givers`) and ``m`` of the other
(:func:`decode_limit`) can take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from zhenfa.estimate.rows import finer, take
from zhenfa.estimate.serving_curves import Service
from zhenfa.estimate.serving_spread import slowest, wait_factor
from zhenfa.estimate.serving_state import FINE, Points
from zhenfa.plan.serving.space import Family, Types
from zhenfa.spec.serving import ServingPlan, ServingWorkload

HALVINGS: Final = 44
"""Times that the interval of a rate is halved."""

BLOCK: Final = 128
"""Rows of a table that are worked on at once."""

SLACK: Final = 1e-9
"""Relative excess over a target that rounding may cause."""


@dataclass(frozen=True)
class Part:
    """Instances of one type (``decode``), or of two; ``rate`` requests/s that they take.

    ``rate`` is 0 until it is known.
    """

    decode: Types
    at: int
    count: int
    rate: float = 0.0
    prefill: Types | None = None
    prefill_at: int = 0
    prefill_count: int = 0

    @property
    def decode_cards(self) -> int:
        """Return the cards of the instances that decode."""
        return self.count * int(self.decode.cards[self.at])

    @property
    def prefill_cards(self) -> int:
        """Return the cards of the instances that do nothing but prefill."""
        return 0 if self.prefill is None else self.prefill_count * int(self.prefill.cards[self.prefill_at])

    def cards_by_pool(self) -> dict[str, int]:
        """Return how many cards of each pool work."""
        found = {self.decode.family.pool.name: self.decode_cards}
        if self.prefill is not None:
            name = self.prefill.family.pool.name
            found[name] = found.get(name, 0) + self.prefill_cards
        return found

    @property
    def cards(self) -> int:
        """Return how many cards work."""
        return sum(self.cards_by_pool().values())

    @property
    def mixed(self) -> bool:
        """Return whether prefill and decode instances store weights in different formats."""
        return self.prefill is not None and self.prefill.family.weights != self.decode.family.weights

    @property
    def key(self) -> tuple[object, ...]:
        """Return what makes two parts the same to a reader: pools, formats, and how decode is cut, chunks and attention
        data parallelism aside (within a factor of two)."""
        family = self.decode.family
        source = (self.prefill.family.pool.name, self.prefill.family.weights) if self.prefill else None
        cut = self.decode.shapes[self.at]
        return (family.pool.name, family.weights, family.cache, family.speculation, cut, source)

    def plan(self) -> ServingPlan:
        """Return the part as a plan of its own."""
        plan = self.decode.service.plan
        prefill = self.prefill.instance(self.prefill_at, self.prefill_count) if self.prefill else None
        own = self.prefill.family.weights if self.prefill is not None and self.mixed else None
        return plan.model_copy(update={
            "decode": self.decode.instance(self.at, self.count), "prefill": prefill,
            "prefill_weights": own,
        })  # fmt: skip


def blocks(rows: int) -> Iterator[slice]:
    """Yield the rows of a table in parts whose fine grids stay in a processor's cache."""
    yield from (slice(first, min(first + BLOCK, rows)) for first in range(0, rows, BLOCK))


def most_together(types: Types, index: Any, counts: Any) -> Any:
    """Return the most requests/s that meet the targets, of so many instances of each type that do both."""
    index, counts = np.asarray(index), np.asarray(counts)
    found = [_most_of(types, index[part], counts[part]) for part in blocks(len(index))]
    return np.concatenate(found) if found else np.zeros(0)


def _most_of(types: Types, index: Any, counts: Any) -> Any:
    workload = types.workload
    seen = types.points(index, counts)
    met = on_time(workload, seen) & (seen.rate > 0)
    return np.max(np.where(met, seen.rate, 0.0), axis=-1)


def on_time(workload: ServingWorkload, seen: Points) -> Any:
    """Return at which batches the targets are met: of the means, or of the percentiles that the job asks for."""
    tpot = slowest(seen.running, seen.tpot, workload.tpot_percentile)
    return (tpot <= ceiling(workload.tpot_target)) & first_on_time(workload, seen)


def first_on_time(workload: ServingWorkload, seen: Points) -> Any:
    """Return at which batches the target of TTFT is met."""
    late = seen.own + wait_factor(workload.ttft_percentile) * (seen.ttft - seen.own)
    return late <= ceiling(workload.ttft_target)


def ceiling(target: float | None) -> float:
    """Return the most seconds that a target allows."""
    return np.inf if target is None else target * (1 + SLACK)


def together_bound(types: Types) -> Any:
    """Return requests/s that one instance of each type cannot exceed, however many there are.

    Proof: requests wait for no less than nothing, so that no batch is allowed that TPOT alone, or the first token
    alone without any wait, forbids.
    """
    workload = types.workload
    found = []
    for part in blocks(len(types)):
        pace = types.paces(part, np.ones(part.stop - part.start))
        limits = (pace.tpot, ceiling(workload.tpot_target)), (pace.own, ceiling(workload.ttft_target))
        found.append(most_within(pace.running, pace.tpot, workload.mean_decoded, *limits))
    return np.concatenate(found)


def most_within(running: Any, tpot: Any, mean: float, *limits: tuple[Any, float]) -> Any:
    """Return the most requests/s of one instance at any batch where each of some curves is within its limit.

    Proof: between two points the curves are straight, so that batch over TPOT rises or falls all the way: it is highest
    at a point, or where a curve reaches its limit.
    """

    def highest(part: Any) -> Any:
        batch, pace, *curves = (
            one[..., :-1] + part * np.diff(one) for one in (running, tpot, *(curve for curve, _ in limits))
        )
        allowed = zip(curves, (limit for _, limit in limits), strict=True)
        inside = np.all([curve <= limit * (1 + SLACK) for curve, limit in allowed], axis=0)
        return np.max(np.where(inside, batch / (mean * pace), 0.0), axis=-1)

    found = np.maximum(highest(0.0), highest(1.0))
    for curve, limit in limits:
        with np.errstate(divide="ignore", invalid="ignore"):
            part = (limit - curve[..., :-1]) / np.diff(curve)
        found = np.maximum(found, highest(np.where((part > 0) & (part < 1), part, 0.0)))
    return found


def decode_limit(types: Types) -> Any:
    """Return the most requests/s that one instance of each type decodes within the target of TPOT.

    Counts a batch only where no smaller one yields as much.
    """
    workload = types.workload
    lines, tpot = types.curves, types.tpot
    found = []
    for part in blocks(len(types)):
        batch, pace = finer(lines.running[part], FINE), finer(tpot[part], FINE)
        within = slowest(batch, pace, workload.tpot_percentile) <= ceiling(workload.tpot_target)
        found.append(np.max(np.where(within, batch / (workload.mean_decoded * pace), 0.0), axis=-1))
    return np.concatenate(found)


def one_of(types: Types, at: int) -> Service:
    """Return the service of one type, as it would stand in a plan."""
    group = replace(types.group, cut=take(types.group.cut, [at]))
    return replace(types.service, decode=group)


def fits_together(first: Family, other: Family) -> bool:
    """Return whether two families may be prefill and decode of one plan: the cache goes from one to the other as it is.

    Weights stay where they are, so that each may store them in its own format.
    """
    return (first.cache, first.speculation) == (other.cache, other.speculation)


def workload_of(workload: ServingWorkload, rate: float) -> ServingWorkload:
    """Return a workload under which so many requests come per second."""
    return workload.model_copy(update={"request_rate": rate, "concurrency": None, "requests": None, "total": None})


def share_on(chosen: Iterable[Part], pools: Collection[str], prompt: float) -> float:
    """Return the share of all tokens that some pools work on; ``prompt``: the share of a request's that its prompt is.

    Every token takes the same model FLOPs, attention aside.
    """
    total = done = 0.0
    for part in chosen:
        total += part.rate
        source = (part.prefill or part.decode).family.pool.name
        done += part.rate * (prompt * (source in pools) + (1 - prompt) * (part.decode.family.pool.name in pools))
    return done / total if total else 0.0
