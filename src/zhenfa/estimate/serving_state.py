"""The steady state of a serving plan: where running, prefilling and waiting requests make up the load; one or many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zhenfa.estimate import serving_first
from zhenfa.estimate.rows import along, finer
from zhenfa.estimate.serving_curves import Paces, Service, admitted
from zhenfa.estimate.serving_first import FirstToken
from zhenfa.spec.serving import ServingWorkload

FINE: Final = 600
"""Points of the grid of batches on which the state is looked for."""

ROUNDS: Final = 3
"""Times that wait and load are adjusted to each other; twice as often where prompts that step together make the wait
steep."""


@dataclass(frozen=True)
class State:
    """What plans do under a load: seconds, requests per instance (``running``) or in all (``waiting``)."""

    tpot: Any
    first: FirstToken
    iteration: Any
    running: Any
    waiting: Any
    through: Any


@dataclass(frozen=True)
class Points:
    """What a plan does at each of :data:`FINE` batches with arrivals at random that keep it there.

    ``rate`` requests/s over all instances, ``running`` requests per instance, mean seconds ``tpot`` and ``ttft``, of
    which ``own`` without any wait.
    """

    running: Any
    rate: Any
    tpot: Any
    ttft: Any
    own: Any = 0.0


def meet(service: Service, workload: ServingWorkload, pace: Paces) -> State:
    """Find where running, prefilling and waiting requests make up the load."""
    count = service.decode.cut.count
    wait: Any = 0.0 * pace.alone
    apart = pace.given is not None
    for number in range(2 * ROUNDS if apart else ROUNDS):  # the wait depends on the load that leaves room for it
        batch, waiting = _balance(workload, pace, count, wait)
        tpot = along(batch, pace.running, pace.tpot)
        through = np.minimum(count * batch / (workload.mean_decoded * tpot), pace.bound)
        if workload.request_rate is not None:
            through = np.minimum(through, workload.request_rate)  # to the last digit, where a queue is steep
        away = workload.mean_decoded * tpot
        found = waits(service, workload, pace, through, pace.own, pace.alone, away)
        wait = (wait + found) / 2.0 if apart and number else found  # the one falls where the other rises
    least, alone = along(batch, pace.running, pace.own), along(batch, pace.running, pace.alone)
    if pace.given is None:
        later = waits(service, workload, pace, through, least, alone, away)
    else:
        longer, later = pace.given.beside(through, requests=workload.concurrency, away=away)
        least = least + longer
    share = workload.first_share
    come = count * admitted(workload, count, pace.capacity)
    first = FirstToken(
        least, later + waiting / through * (1.0 - share / 2.0),
        serving_first.wave(come, pace.rate, service.engine.front) if share else 0.0, share,
    )  # fmt: skip
    return State(tpot, first, alone, batch, waiting, through)


def waits(
    service: Service, workload: ServingWorkload, pace: Paces, through: Any, own: Any, alone: Any, away: Any
) -> Any:
    """Return the mean seconds by which others delay a first token: until the engine looks, and for the prompts before
    it; where prefill is apart, also for those that share its steps."""
    if pace.given is not None:
        return sum(pace.given.beside(through, requests=workload.concurrency, away=away))
    queue = serving_first.prompt_wait(
        through, own - service.engine.entry, np.maximum(pace.rate * own, 1.0), requests=workload.concurrency, away=away
    )
    return np.asarray((0.5 + service.engine.polls) * alone + queue)


def points(service: Service, workload: ServingWorkload, pace: Paces) -> Points:
    """Return what a plan does at every batch of a fine grid with requests that come at random.

    A batch counts only where no smaller one yields as much: elsewhere ``rate`` is 0. It is 0 where the bound is passed.
    """
    batch, tpot, own, alone = (finer(one, FINE) for one in (pace.running, pace.tpot, pace.own, pace.alone))
    rate = service.decode.cut.count * batch / (workload.mean_decoded * tpot)
    before = np.maximum.accumulate(rate, axis=-1)
    rises = np.concatenate([np.ones_like(rate[..., :1]), rate[..., 1:] > before[..., :-1]], axis=-1)
    rate = np.where((rises > 0) & (rate <= pace.bound), rate, 0.0)
    wait = waits(service, workload, pace, rate, own, alone, workload.mean_decoded * tpot)
    return Points(batch, rate, tpot, own + wait, own)


def _balance(workload: ServingWorkload, pace: Paces, count: Any, wait: Any) -> tuple[Any, Any]:
    """Return running requests per instance, and those in all that wait for room."""
    at, tpot, start = (finer(one, FINE) for one in (pace.running, pace.tpot, pace.own + wait))
    rate = count * at / (workload.mean_decoded * tpot)
    beyond = rate >= pace.bound
    last = np.where(beyond.any(axis=-1, keepdims=True), np.maximum(beyond.argmax(axis=-1, keepdims=True), 1), FINE - 1)
    index = np.minimum(np.arange(FINE), last)
    at, tpot, start, rate = (np.take_along_axis(one, index, -1) for one in (at, tpot, start, rate))
    at = np.where(np.arange(FINE) >= last, np.minimum(at, pace.bound * workload.mean_decoded * tpot / count), at)
    rate = np.minimum(rate, pace.bound)
    present = count * at + rate * start
    if workload.request_rate is not None:
        return _inverse(workload.request_rate, rate, at), 0.0 * present[..., -1:].sum()
    load = float(workload.concurrency or workload.requests or 1.0)
    end = present[..., -1:] if at.ndim > 1 else present[-1]
    return _inverse(load, present, at), np.maximum(load - end, 0.0)


def _inverse(load: float, present: Any, at: Any) -> Any:
    """Return the least batch at which ``load`` requests are present; below the grid, in proportion."""
    first, least = (present[..., :1], at[..., :1]) if at.ndim > 1 else (present[0], at[0])
    found = along(load * (1 - 1e-12), np.maximum.accumulate(present, axis=-1), at)
    return np.where(load <= first, least * load / first, found)
