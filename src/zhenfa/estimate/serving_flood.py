"""Requests that come all at once: a deterministic walk through the steps, from the first prompt to the last token.

Prompts are taken in as fast as the front end, the engine's chunks and the memory allow; a request that ends makes room
for the next. Step times come from the curves of the steady state; the walk itself only counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from zhenfa.estimate.serving import Curves, Served, Service, decode_seconds, prompt_seconds
from zhenfa.estimate.serving_first import FirstToken
from zhenfa.spec.serving import ServingWorkload

SPREAD: Final = 64
"""Lengths into which a spread of outputs is cut."""


def lengths(workload: ServingWorkload, *, natural: bool) -> npt.NDArray[np.float64]:
    """Return output lengths, every one as frequent: even from the shortest, or exponential where people wrote them."""
    at = (np.arange(SPREAD) + 0.5) / SPREAD
    if natural:
        drawn = -np.log1p(-at)
        return np.asarray(np.maximum(workload.mean_output * drawn / drawn.mean(), 1.0))
    first = workload.shortest * workload.output_length
    return np.asarray(np.maximum(first + (workload.output_length - first) * at, 1.0))


@dataclass
class _Walk:
    """Where the walk stands. ``ends[i]`` lists what ends after decode step ``i``: requests, first step, first token.

    Who comes at once is taken in by the front end before anything is sent back: no first token is seen earlier.
    """

    left: float
    front: float = 0.0
    asked: float = 0.0
    running: float = 0.0
    now: float = 0.0
    credit: float = 0.0
    taken: int = 0
    firsts: float = 0.0
    paces: list[tuple[float, float]] = field(default_factory=list)
    spans: float = 0.0
    steps: float = 0.0
    ends: dict[int, list[tuple[float, int, float]]] = field(default_factory=dict)

    def arrived(self) -> float:
        """Return the requests that the front end has passed on and that have no place yet."""
        if self.front <= 0:
            return self.left
        passed = min(self.now / self.front + 1.0, self.asked)
        return max(passed - (self.asked - self.left), 0.0)

    def end(self, amount: float, steps: int, since: float) -> None:
        """Let ``amount`` requests end that had their first token at ``since``, ``steps`` steps ago."""
        self.running -= amount
        span = self.now - since
        self.paces.append((span / steps, amount))
        self.spans += amount * span
        self.steps += amount * steps


def flood(service: Service, workload: ServingWorkload, curves: Curves, *, natural: bool = False) -> Served:
    """Return what aggregated instances do with ``workload.requests`` that all come at once.

    Counts ramp, steady state and drain. ``natural``: output lengths as of real conversations, else as the workload
    says. Omits preemption: a request keeps its place until it ends.
    """
    count = service.decode.instance.count
    total = float(workload.requests or workload.concurrency or 1.0) / count
    most = int(max(min(curves.capacity, total), 1))
    batch = np.arange(most + 1, dtype=float)
    step = np.interp(batch, curves.running, decode_seconds(service, curves)) * np.minimum(batch, 1.0)
    prompt = np.interp(batch, curves.running, prompt_seconds(service, curves))
    outputs = np.maximum(np.round(lengths(workload, natural=natural) / service.accepted), 1).astype(int)
    order = np.argsort(np.arange(SPREAD) * 37 % SPREAD)  # every run of a few has short and long ones
    walk = _Walk(total, service.engine.front * count, total)
    budget = float(service.decode.instance.chunk or service.engine.chunk) * service.decode.instance.data_parallel
    fresh = workload.mean_input * (1 - workload.cached_prefix)
    _go(walk, step, prompt, outputs[order], most, budget / fresh, mixed=service.engine.mixed)
    return _result(service, workload, curves, walk, total, most)


def _go(
    walk: _Walk, step: npt.NDArray[np.float64], prompt: npt.NDArray[np.float64], outputs: npt.NDArray[np.int64],
    most: int, per_step: float, *, mixed: bool,
) -> None:  # fmt: skip
    times, prompts, drawn = step.tolist(), prompt.tolist(), outputs.tolist()
    drawn = drawn if min(drawn) < max(drawn) else drawn[:1]
    index = 0
    while walk.left > 1e-9 or walk.running > 1e-9:
        room = most - walk.running
        wanted = min(walk.arrived(), room)
        if walk.running <= 1e-9 and wanted < min(walk.left, 1.0) - 1e-9:
            walk.now += walk.front
            continue
        working = min(per_step, max(wanted - walk.credit, 0.0))
        walk.credit += working
        taken = min(wanted, float(int(walk.credit + 1e-9)) if wanted >= 1 else walk.credit)
        at = min(int(walk.running), most)
        decodes = mixed or working <= 1e-9  # else running requests stand still while prompts are taken in
        walk.now += working * prompts[at] + (times[at] if decodes else 0.0)
        index += decodes
        if taken > 0:
            _take(walk, taken, drawn, index)
        if decodes:
            for amount, began, since in walk.ends.pop(index, ()):
                walk.end(amount, max(index - began, 1), since)


def _take(walk: _Walk, taken: float, outputs: list[int], index: int) -> None:
    walk.credit -= taken
    walk.left -= taken
    walk.running += taken
    walk.firsts += taken * max(walk.now, walk.front * walk.asked)
    pieces = max(int(taken), 1) if len(outputs) > 1 else 1
    each = taken / pieces
    for _ in range(pieces):
        length = outputs[walk.taken % len(outputs)]
        walk.taken += 1
        walk.ends.setdefault(index + max(length - 1, 1), []).append((each, index, walk.now))


def _result(
    service: Service, workload: ServingWorkload, curves: Curves, walk: _Walk, total: float, most: int
) -> Served:
    count = service.decode.instance.count
    paces = np.array(sorted(walk.paces))
    pace = float(paces[:, 0] @ paces[:, 1]) / total / service.accepted
    middle = float(paces[np.searchsorted(np.cumsum(paces[:, 1]), total / 2).clip(0, len(paces) - 1), 0])
    mean = walk.firsts / total + service.engine.entry
    return Served(
        tpot=pace, ttft=mean, first=FirstToken(0.0, 0.0, 2.0 * mean, 1.0), tpot_median=middle / service.accepted,
        itl=walk.spans / walk.steps, iteration=float(decode_seconds(service, curves)[-1]), running=float(most),
        waiting=max(total - most, 0.0) * count, capacity=curves.capacity, prefill=0.0, prefill_rate=np.inf,
        requests_per_second=total * count / walk.now, workload=workload, cards=service.plan.cards,
        decode_cards=count * service.decode.instance.cards,
    )  # fmt: skip
