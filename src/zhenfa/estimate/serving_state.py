"""The steady state of a serving plan: where running, prefilling and waiting requests make up the load; one or many.

Between the points of a plan's curves its seconds are straight lines, so that what it does is a function of one place on
them (:func:`_stand`): so many run, which gives the rate, which gives the wait. The requests that are then in the system
are a continuous function of the place, from none at its start on, and a closed loop stands where they are first as many
as its load. That place is enclosed: between the two points where they pass the load, then between two of :data:`CUTS`
places laid between those, :data:`ROUNDS` times. No wait is carried from one round to the next, so that nothing can
swing, and what is found obeys Little's law however steep the wait is. There is only one such place wherever more
running requests do not leave at a lower rate: the wait for shared steps rises with the rate, and what it falls by where
requests are away for longer (:func:`zhenfa.laws.queueing.closed_wait`, of which half counts) is less than that time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zhenfa.estimate import serving_first
from zhenfa.estimate.rows import between, finer
from zhenfa.estimate.serving_curves import Paces, Service, admitted
from zhenfa.estimate.serving_first import FirstToken
from zhenfa.spec.serving import ServingWorkload

FINE: Final = 600
"""Points of the grid of batches among which the most that a plan takes is looked for."""

CUTS: Final = 16
"""Parts into which the place of the steady state is cut in a round."""

ROUNDS: Final = 4
"""Times that it is: enough for a straight line through the last part to be exact to a billionth."""


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
    track = _track(service, workload, pace)
    if workload.request_rate is None:
        load = float(workload.concurrency or workload.requests or 1.0)
        place, waiting = _balance(service, workload, pace, track, load)
    else:
        place, waiting = track.end, 0.0 * track.end
    if np.ndim(pace.running) == 1:  # one plan: numbers, not rows of one
        place, waiting = place[0], waiting[0]
    batch, rate, tpot, own, alone = _stand(workload, track, place)
    longer, later = _delays(service, workload, pace, rate, own, alone, workload.mean_decoded * tpot)
    share, count = workload.first_share, track.count
    come = count * admitted(workload, count, pace.capacity)
    first = FirstToken(
        own + longer, later + waiting / rate * (1.0 - share / 2.0),
        serving_first.wave(come, pace.rate, service.engine.front) if share else 0.0, share,
    )  # fmt: skip
    return State(tpot, first, alone, batch, waiting, rate)


def waits(
    service: Service, workload: ServingWorkload, pace: Paces, through: Any, own: Any, alone: Any, away: Any
) -> Any:
    """Return the mean seconds by which others delay a first token: until the engine looks, and for the prompts before
    it; where prefill is apart, also for those that share its steps."""
    longer, later = _delays(service, workload, pace, through, own, alone, away)
    return longer + later


def _delays(
    service: Service, workload: ServingWorkload, pace: Paces, through: Any, own: Any, alone: Any, away: Any
) -> tuple[Any, Any]:
    """Return by how much others lengthen a prompt's own steps, and how long it waits for them."""
    if pace.given is not None:
        return pace.given.beside(through, requests=workload.concurrency, away=away)
    queue = serving_first.prompt_wait(
        through, own - service.engine.entry, np.maximum(pace.rate * own, 1.0), requests=workload.concurrency, away=away
    )
    return 0.0, np.asarray((0.5 + service.engine.polls) * alone + queue)


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


@dataclass(frozen=True)
class _Track:
    """A plan's curves, from no running request at place 0 on; ``end`` is the place where the instances are full, or
    the rate is the highest that is asked for or possible (``most``)."""

    running: Any
    tpot: Any
    own: Any
    alone: Any
    count: Any
    most: Any
    end: Any


def _track(service: Service, workload: ServingWorkload, pace: Paces) -> _Track:
    def from_none(values: Any) -> Any:
        return np.concatenate([values[..., :1], values], axis=-1)

    running, tpot, own, alone = (from_none(one) for one in (pace.running, pace.tpot, pace.own, pace.alone))
    running[..., 0] = 0.0
    count, most = service.decode.cut.count, pace.bound
    if workload.request_rate is not None:
        most = np.minimum(most, workload.request_rate)
    rate = count * running / (workload.mean_decoded * tpot)
    beyond = rate >= most
    last = np.where(beyond.any(axis=-1, keepdims=True), beyond.argmax(axis=-1, keepdims=True), beyond.shape[-1] - 1)
    before = last - 1
    (b0, b1), (t0, t1) = (
        [between(one, place) for place in (before, last)] for one in (running, tpot)
    )  # where count b = most O t, both straight
    with np.errstate(invalid="ignore"):
        under, over = (count * b - most * workload.mean_decoded * t for b, t in ((b0, t0), (b1, t1)))
        end = np.where(over > 0, before + under / (under - over), last)
    return _Track(running, tpot, own, alone, count, most, end)


def _stand(workload: ServingWorkload, track: _Track, place: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return what a plan does at places of its curves: requests that run in an instance, requests/s in all, and
    seconds: TPOT, the first token without a wait, a step without prompts."""
    batch, tpot, own, alone = (between(one, place) for one in (track.running, track.tpot, track.own, track.alone))
    rate = np.minimum(track.count * batch / (workload.mean_decoded * tpot), track.most)
    return batch, rate, tpot, own, alone


def _balance(service: Service, workload: ServingWorkload, pace: Paces, track: _Track, load: float) -> tuple[Any, Any]:
    """Return the place where so many requests are in the system, and how many in all wait for room."""

    def present(place: Any) -> Any:
        batch, rate, tpot, own, alone = _stand(workload, track, place)
        wait = waits(service, workload, pace, rate, own, alone, workload.mean_decoded * tpot)
        return track.count * batch + rate * (own + wait)

    places = np.minimum(np.arange(track.running.shape[-1]), track.end)
    held = present(places)
    left = np.maximum(load - held[..., -1:], 0.0)
    for _ in range(ROUNDS):
        low, high, _, _ = _enclosed(places, held, load)
        places = low + (high - low) * np.linspace(0.0, 1.0, CUTS + 1)
        held = present(places)
    low, high, under, over = _enclosed(places, held, load)
    part = (load - under) / np.where(over > under, over - under, 1.0)
    return low + (high - low) * np.clip(part, 0.0, 1.0), left


def _enclosed(places: Any, held: Any, load: float) -> tuple[Any, Any, Any, Any]:
    """Return the two neighbours between which what is held first passes the load, and what each holds; twice the last
    where it never does."""
    reached = held >= load
    never = ~reached.any(axis=-1, keepdims=True)
    high = np.where(never, held.shape[-1] - 1, np.maximum(reached.argmax(axis=-1, keepdims=True), 1))
    low = np.where(never, high, high - 1)
    found = [np.take_along_axis(one, at, -1) for one in (places, held) for at in (low, high)]
    return found[0], found[1], found[2], found[3]
