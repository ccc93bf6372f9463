"""Time of one training step through a pipeline of unequal stages.

The model is that of torch's ``ScheduleGPipe`` and ``Schedule1F1B``: each stage executes its forwards and backwards in
the schedule's fixed order; a forward starts when the stage is free and the activation has arrived, a backward when the
gradient has; a directed link between neighbours carries one message at a time in order; a send does not block its
sender. Where a maker's library makes a send wait for its receiver, the step is longer than these laws say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.errors import InputError
from zhenfa.laws.arrays import Array, plain, values_of

GPIPE: Final = cite.declare(
    "huang2019", "Y. Huang et al. GPipe: efficient training of giant neural networks. NeurIPS 2019, arXiv:1811.06965."
)
ONE_FORWARD_ONE_BACKWARD: Final = cite.declare(
    "narayanan2021",
    "D. Narayanan et al. Efficient large-scale language model training on GPU clusters using Megatron-LM. "
    "SC 2021, arXiv:2104.04473.",
)
MAX_PLUS: Final = cite.declare(
    "baccelli1992",
    "F. Baccelli et al. Synchronization and Linearity: an algebra for discrete event systems. Wiley 1992.",
)

CHUNK: Final = 16384
"""Candidates simulated together: fewer pay more for Python, more gain nothing and take memory."""

PERIODIC: Final = 1e-12
"""Relative spread of the increments below which two rounds of the schedule count as the same round, later."""


class Event(NamedTuple):
    """One operation of a pipeline: seconds from the start of the step."""

    stage: int
    kind: str
    micro_batch: int
    start: float
    end: float


def pipeline_bound(forward: Array, backward: Array, micro_batches: Array, transfer: Array = 0.0) -> Array:
    """Return a lower bound of the step's seconds under any schedule that runs stages one operation at a time.

    Arguments: ``forward`` and ``backward`` seconds per micro-batch, shape ``[..., stages]``; ``micro_batches``, shape
    ``[...]``; ``transfer`` seconds per hop, a number or shape ``[..., stages - 1]``.
    Returns: seconds, shape ``[...]``: the largest, over stages, of all its work plus the way of the first activation to
    it and of the last gradient from it.
    Counts work and the two ways; omits waits inside. Agrees with (m + p - 1)(f + b) on equal stages without transfers.

    >>> pipeline_bound(np.array([1.0, 3.0]), np.array([2.0, 6.0]), 4)
    39.0

    Source: huang2019, section 2.3 (bubble); for unequal stages counted.
    """
    cite.use(GPIPE)
    work = np.add(forward, backward, dtype=float)
    hops = 2.0 * np.broadcast_to(transfer, (*np.shape(transfer)[:-1], work.shape[-1] - 1))
    ways = np.cumsum(np.add(work[..., :-1], hops), axis=-1)
    ways = np.concatenate([np.zeros((*ways.shape[:-1], 1)), ways], axis=-1)
    return plain(np.max(ways + np.expand_dims(micro_batches, -1) * work, axis=-1))


def uniform_pipeline_time(
    forward: Array, backward: Array, stages: Array, micro_batches: Array, transfer: Array = 0.0
) -> Array:
    """Return the step's seconds on equal stages.

    Arguments: ``forward`` and ``backward`` seconds per micro-batch of every stage; ``stages``; ``micro_batches``;
    ``transfer`` seconds per hop; any shapes that broadcast.
    Returns: seconds, broadcast shape: ``(m + p - 1)(f + b) + 2 (p - 1) t``.
    Counts the bubble, (p - 1)/m of the ideal time. Agrees with :func:`pipeline_time` for GPipe while a transfer is
    shorter than a forward and a backward, and for 1F1B without transfers; with them 1F1B waits longer, because only
    ``p`` micro-batches are under way to hide the hops.

    >>> uniform_pipeline_time(1, 2, 4, 8)
    33.0

    Source: huang2019, section 2.3; narayanan2021, section 2.2.1 (bubble fraction (p - 1)/m).
    """
    cite.use(GPIPE, ONE_FORWARD_ONE_BACKWARD)
    slots = np.add(micro_batches, stages) - 1.0
    return plain(slots * np.add(forward, backward) + 2.0 * np.subtract(stages, 1) * transfer)


def pipeline_time(
    forward: Array,
    backward: Array,
    transfer: Array,
    micro_batches: Array,
    schedule: str = "1f1b",
    *,
    latency: Array = 0.0,
) -> Array:
    """Return the exact seconds of a step through unequal stages.

    Arguments: ``forward`` and ``backward`` seconds per micro-batch, shape ``[..., stages]``; ``transfer`` seconds for
    which a message occupies its link, a number or shape ``[..., stages - 1]``, the same both ways; ``micro_batches``,
    shape ``[...]``; ``schedule`` ``"gpipe"`` or ``"1f1b"``; ``latency`` seconds that a message travels besides, shaped
    like ``transfer``.
    Returns: seconds until the first stage's last backward ends, shape ``[...]``. Raises :class:`InputError` for another
    schedule.
    Counts the waits of the module's model; omits gradient reduction and the optimizer. GPipe is a tandem queue of equal
    jobs and has a closed form; 1F1B is a max-plus recurrence, followed until its rounds repeat and jumped from there.

    >>> pipeline_time(np.array([1.0, 1.0]), np.array([2.0, 2.0]), 0.0, 4)
    15.0

    Source: narayanan2021, section 2.2.1 (order); baccelli1992, section 3.7 (periodicity).
    """
    ends = stage_ends(forward, backward, transfer, micro_batches, schedule, latency=latency)
    return plain(np.asarray(ends)[..., 0])


def stage_ends(
    forward: Array,
    backward: Array,
    transfer: Array,
    micro_batches: Array,
    schedule: str = "1f1b",
    *,
    latency: Array = 0.0,
) -> npt.NDArray[np.float64]:
    """Return when each stage's last backward ends, in seconds from the start of the step.

    Arguments: those of :func:`pipeline_time`.
    Returns: seconds, shape ``[..., stages]``; the first stage ends last, at :func:`pipeline_time`. Raises
    :class:`InputError` for another schedule.
    Counts what :func:`pipeline_time` counts: what a stage does after the step (its gradient sum) can start here.

    >>> stage_ends(np.array([1.0, 1.0]), np.array([2.0, 2.0]), 0.0, 4)
    array([15., 13.])

    Source: narayanan2021, section 2.2.1 (order); baccelli1992, section 3.7 (periodicity).
    """
    _check(schedule)
    stages = np.shape(forward)[-1]
    hop_shape = (stages - 1,)
    shape = np.broadcast_shapes(
        np.shape(forward)[:-1],
        np.shape(backward)[:-1],
        np.shape(transfer)[:-1],
        np.shape(latency)[:-1],
        np.shape(micro_batches),
    )
    first, second = (np.broadcast_to(np.asarray(part, float), (*shape, stages)) for part in (forward, backward))
    hop, flight = (np.broadcast_to(np.asarray(part, float), shape + hop_shape) for part in (transfer, latency))
    count = np.broadcast_to(np.asarray(micro_batches), shape)
    if schedule == "gpipe":
        cite.use(GPIPE)
        return _gpipe(first, second, hop, flight, count)
    cite.use(ONE_FORWARD_ONE_BACKWARD, MAX_PLUS)
    flat = [part.reshape(count.size, part.shape[-1]).T for part in (first, second, hop, flight)]
    seconds = np.empty((stages, flat[0].shape[1]))
    numbers = count.reshape(-1)
    for number in values_of(numbers):
        chosen = np.flatnonzero(numbers == number)
        for piece in np.array_split(chosen, -(-len(chosen) // CHUNK)):
            seconds[:, piece] = _one_forward_one_backward([part[:, piece] for part in flat], number)
    return seconds.T.reshape((*shape, stages))


def _check(schedule: str) -> None:
    if schedule not in ("gpipe", "1f1b"):
        raise InputError(f"schedule is {schedule!r}.", hint="write 'gpipe' or '1f1b'.")


def _gpipe(forward: Any, backward: Any, hop: Any, flight: Any, micro_batches: Any) -> npt.NDArray[np.float64]:
    """Seconds of two tandem queues of equal jobs: one trip of the first job plus the slowest server for each other."""
    others = np.expand_dims(micro_batches, -1) - 1
    slowest_hop = hop.max(-1, initial=0.0, keepdims=True)
    down = forward.sum(-1, keepdims=True) + (hop + flight).sum(-1, keepdims=True)
    down = down + others * np.maximum(forward.max(-1, keepdims=True), slowest_hop)
    ways = np.concatenate([backward[..., :-1] + hop + flight, backward[..., -1:]], axis=-1)
    servers = np.concatenate([np.maximum(backward[..., :-1], hop), backward[..., -1:]], axis=-1)
    trip = np.cumsum(ways[..., ::-1], axis=-1)[..., ::-1]
    slowest = np.maximum.accumulate(servers[..., ::-1], axis=-1)[..., ::-1]
    ends: npt.NDArray[np.float64] = down + trip + others * slowest
    return ends


class _Rounds:
    """The state of 1F1B after a round: times as floats for one candidate, as rows of arrays for many.

    Round ``k`` of stage ``s`` is backward ``k`` followed by forward ``k + stages - s``. With the stages taken from last
    to first, a round needs nothing but the round before: when each stage is free and when each link has delivered.
    """

    def __init__(self, parts: list[Any], state: list[Any], larger: Callable[[Any, Any], Any]) -> None:
        self.parts, self.larger = parts, larger
        self.forward, self.backward, self.hop, self.flight = parts
        self.stages = len(self.forward)
        self.state = state

    @property
    def free(self) -> Any:
        """When the first stage is free."""
        return self.state[0]

    @property
    def ends(self) -> list[Any]:
        """When every stage is free."""
        return self.state[: self.stages]

    def step(self, number: int, micro_batches: int) -> None:
        """Advance by round ``number``; micro-batches outside ``0 .. micro_batches - 1`` do not exist."""
        state, stages, larger = self.state, self.stages, self.larger
        last = stages - 1
        for stage in range(last, -1, -1):
            free, down, up = state[stage], stages + stage, 2 * stages - 1 + stage
            if number >= 0:
                if stage < last:
                    free = larger(free, state[up] + self.flight[stage])
                free = free + self.backward[stage]
                if stage:
                    state[up - 1] = larger(state[up - 1], free) + self.hop[stage - 1]
            if 0 <= number + stages - stage < micro_batches:
                if stage:
                    free = larger(free, state[down - 1] + self.flight[stage - 1])
                free = free + self.forward[stage]
                if stage < last:
                    state[down] = larger(state[down], free) + self.hop[stage]
            state[stage] = free

    def take(self, mask: Any) -> _Rounds:
        """Return a copy with the candidates of the mask only."""
        return _Rounds([part[:, mask] for part in self.parts], [row[mask] for row in self.state], self.larger)


def _one_pipeline(parts: list[Any], micro_batches: int) -> list[float]:
    """Return the ends of 1F1B for one candidate: the same rounds on plain floats, which Python adds quickest."""
    rows = [part[:, 0].tolist() for part in parts]
    rounds = _Rounds(rows, [0.0] * (3 * len(rows[0]) - 2), max)
    stages = rounds.stages
    for number in range(-stages, 0):
        rounds.step(number, micro_batches)
    whole = max(0, micro_batches - stages)
    number, anchor, anchor_number = 0, list(rounds.state), -1
    while number < whole:
        rounds.step(number, micro_batches)
        number += 1
        gains = [now - before for now, before in zip(rounds.state, anchor, strict=True)]
        least = min(gains)
        if number > stages and max(gains) - least <= PERIODIC * rounds.free:
            skipped = (whole - number) // (number - 1 - anchor_number)
            rounds.state = [row + skipped * least for row in rounds.state]
            number += skipped * (number - 1 - anchor_number)
            break
        if number <= stages or number - 1 - anchor_number > stages:
            anchor, anchor_number = list(rounds.state), number - 1
    return _finish(rounds, number, micro_batches)


def _one_forward_one_backward(parts: list[Any], micro_batches: int) -> Any:
    """Ends of 1F1B, ``[stages, candidates]``, from forward, backward, hop and flight ``[stages or hops, candidates]``.

    A round is max-plus linear in the one before. Once a round differs from an earlier one by the same seconds in every
    row, all later rounds repeat with that gain, so the jump over them is exact.
    """
    stages, candidates = parts[0].shape
    if candidates == 1:
        return np.array(_one_pipeline(parts, micro_batches))[:, None]
    rounds = _Rounds(parts, [np.zeros(candidates) for _ in range(3 * stages - 2)], np.maximum)
    for number in range(-stages, 0):
        rounds.step(number, micro_batches)
    seconds = np.empty((stages, candidates))
    left = np.arange(candidates)
    whole = max(0, micro_batches - stages)
    anchor, anchor_number = np.stack(rounds.state), -1
    for number in range(whole):
        rounds.step(number, micro_batches)
        if number < stages or number - anchor_number > stages:
            anchor, anchor_number = np.stack(rounds.state), number
            continue
        same, gain = _repeating(rounds, anchor)
        if not same.any():
            continue
        period = number - anchor_number
        skipped = (whole - 1 - number) // period
        done = rounds.take(same)
        done.state = [row + skipped * gain for row in done.state]
        seconds[:, left[same]] = _finish(done, number + 1 + skipped * period, micro_batches)
        left, rounds, anchor = left[~same], rounds.take(~same), anchor[:, ~same]
        if not len(left):
            return seconds
    seconds[:, left] = _finish(rounds, whole, micro_batches)
    return seconds


def _repeating(rounds: _Rounds, anchor: Any) -> tuple[Any, Any]:
    """Return which candidates have gained the same seconds in every row since the anchor, and how many those gained."""
    first, last = 0, rounds.stages - 1
    slack = PERIODIC * rounds.state[first]
    same = np.abs(rounds.state[first] - anchor[first] - (rounds.state[last] - anchor[last])) <= slack
    likely = np.flatnonzero(same)
    gains = np.stack([row[likely] for row in rounds.state]) - anchor[:, likely]
    least = gains.min(axis=0)
    sure = gains.max(axis=0) - least <= slack[likely]
    same[likely] = sure
    return same, least[sure]


def _finish(rounds: _Rounds, number: int, micro_batches: int) -> list[Any]:
    for following in range(number, micro_batches):
        rounds.step(following, micro_batches)
    return rounds.ends


def schedule_order(stage: int, stages: int, micro_batches: int, schedule: str = "1f1b") -> list[tuple[str, int]]:
    """Return the operations of one stage in order, as ``(kind, micro_batch)`` with kind ``forward`` or ``backward``.

    Arguments: ``stage`` from 0; ``stages``; ``micro_batches``; ``schedule`` ``"gpipe"`` or ``"1f1b"``.
    Returns: ``2 * micro_batches`` operations. 1F1B begins with ``min(micro_batches, stages - stage)`` forwards and then
    alternates backward and forward, as torch's ``Schedule1F1B`` does. Raises :class:`InputError` for another schedule.

    >>> [kind[0] + str(index) for kind, index in schedule_order(0, 2, 3)]
    ['f0', 'f1', 'b0', 'f2', 'b1', 'b2']

    Source: narayanan2021, figure 4; huang2019, figure 2.
    """
    _check(schedule)
    forwards = [("forward", index) for index in range(micro_batches)]
    backwards = [("backward", index) for index in range(micro_batches)]
    if schedule == "gpipe":
        return forwards + backwards
    warm_up = min(micro_batches, stages - stage)
    order = forwards[:warm_up]
    for index, operation in enumerate(backwards):
        order.append(operation)
        order.extend(forwards[warm_up + index : warm_up + index + 1])
    return order


def pipeline_events(
    forward: npt.ArrayLike,
    backward: npt.ArrayLike,
    transfer: npt.ArrayLike,
    micro_batches: int,
    schedule: str = "1f1b",
    *,
    latency: npt.ArrayLike = 0.0,
) -> list[Event]:
    """Return every operation of one step of one candidate, ordered by start and stage.

    Arguments: those of :func:`pipeline_time` for a single candidate: shapes ``[stages]`` and ``[stages - 1]``.
    Returns: ``2 * stages * micro_batches`` events; the latest end is :func:`pipeline_time`. Raises :class:`InputError`
    for another schedule.

    >>> [tuple(event) for event in pipeline_events([1.0], [2.0], 0.0, 1)]
    [(0, 'forward', 0, 0.0, 1.0), (0, 'backward', 0, 1.0, 3.0)]

    Source: narayanan2021, figure 4.
    """
    cite.use(ONE_FORWARD_ONE_BACKWARD)
    first, second = np.asarray(forward, float).tolist(), np.asarray(backward, float).tolist()
    stages = len(first)
    hop, flight = (np.broadcast_to(np.asarray(part, float), stages - 1).tolist() for part in (transfer, latency))
    seconds = {"forward": first, "backward": second}
    onward = {"forward": 1, "backward": -1}
    todo = [schedule_order(stage, stages, micro_batches, schedule)[::-1] for stage in range(stages)]
    free, link = [0.0] * stages, {kind: [0.0] * stages for kind in seconds}
    arrived = {("forward", 0, index): 0.0 for index in range(micro_batches)}
    events: list[Event] = []
    ready = list(range(stages))
    while ready:
        stage = ready.pop()
        while todo[stage]:
            kind, index = todo[stage][-1]
            turn = kind == "backward" and stage == stages - 1
            begin = free[stage] if turn else arrived.get((kind, stage, index))
            if begin is None:
                break
            todo[stage].pop()
            start = max(free[stage], begin)
            free[stage] = start + seconds[kind][stage]
            events.append(Event(stage, kind, index, start, free[stage]))
            target = stage + onward[kind]
            if 0 <= target < stages:
                wire = min(stage, target)
                link[kind][wire] = max(link[kind][wire], free[stage]) + hop[wire]
                arrived[kind, target, index] = link[kind][wire] + flight[wire]
                ready.append(target)
    return sorted(events, key=lambda event: (event.start, event.stage, event.end))
