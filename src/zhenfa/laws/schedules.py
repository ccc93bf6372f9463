"""Pipeline schedules in which a place runs several stages, or splits the backward pass in two.

A *place* is a set of cards, a *stage* a run of layers. Interleaved 1F1B gives each place several stages, ``p`` apart;
zero-bubble schedules compute the gradient of the input (which the stage before waits for) and that of the weights
(which nothing waits for) apart; DualPipe feeds micro-batches from both ends, each place holding a stage of either
direction. The model of time is that of :mod:`zhenfa.laws.pipeline`: operations in a fixed order at each place, one
message at a time on each directed link, senders that do not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.errors import InputError
from zhenfa.laws import orders
from zhenfa.laws.pipeline import PERIODIC, Event

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

INTERLEAVED: Final = cite.declare(
    "narayanan2021",
    "D. Narayanan et al. Efficient large-scale language model training on GPU clusters using Megatron-LM. "
    "SC 2021, arXiv:2104.04473.",
)
ZERO_BUBBLE: Final = cite.declare(
    "qi2024", "P. Qi et al. Zero bubble (almost) pipeline parallelism. ICLR 2024, arXiv:2401.10241."
)
DUALPIPE: Final = cite.declare("deepseek-v3", "DeepSeek-AI. DeepSeek-V3 technical report. arXiv:2412.19437.")

SOURCES: Final = {
    "interleaved": INTERLEAVED, "zero-bubble": ZERO_BUBBLE, "zero-bubble-v": ZERO_BUBBLE, "dualpipe": DUALPIPE,
}  # fmt: skip

FULL_GROUPS: Final = 6
"""Groups of micro-batches that are followed before the rest is jumped, where the last of them repeat."""


class Durations(NamedTuple):
    """Seconds of a micro-batch: each a sequence over the stages in the order of the model.

    ``backward`` is the whole backward pass, ``weight`` the part of it that computes gradients of weights, ``transfer``
    from each stage to the next (one less). ``paired``: seconds saved where DualPipe runs a forward and a backward of
    one place as one (the communication of one behind the arithmetic of the other), over the stages.
    """

    forward: Sequence[float]
    backward: Sequence[float]
    weight: Sequence[float]
    transfer: Sequence[float]
    paired: Sequence[float] = ()


KINDS: Final = ("forward", "backward", "weight", "input")

_ENDING: Final = frozenset({"backward", "weight"})
"""Kinds after which a micro-batch's activations are no longer kept."""

_NUMBER: Final = {kind: number for number, kind in enumerate(KINDS)}

_Move = tuple[int, int, int, int, int]
"""Number of an operation's kind and stage together; of the message that it waits for and of the one that it sends, -1
for none; of the link that carries it; and the lower of the two stages that it joins."""


class _Program(NamedTuple):
    """All operations so that each comes after what it waits for: place, what it does, and what it does as well
    (DualPipe runs two as one); their micro-batches; and how many messages, links and places there are."""

    steps: list[tuple[int, _Move, _Move | None]]
    micro_batches: list[int]
    messages: int
    links: int
    places: int
    stages: int


def schedule_ends(
    durations: Durations, micro_batches: int, schedule: str, *, virtual_stages: int = 1
) -> npt.NDArray[np.float64]:
    """Return when each place's last operation ends, in seconds from the start of the step.

    Arguments: ``durations``, over all stages in the order of the model; ``micro_batches``; ``schedule``
    ``"interleaved"``, ``"zero-bubble"``, ``"zero-bubble-v"`` or ``"dualpipe"``; ``virtual_stages`` to a place.
    Returns: seconds, shape ``[places]``. Raises :class:`InputError` for another schedule, or too few micro-batches.
    Counts the waits of the module's model; omits gradient sums and the optimizer. Long interleaved schedules are
    followed for :data:`FULL_GROUPS` groups of micro-batches and jumped from there if the last groups repeat exactly.
    Agrees with (m v + p - 1)(f + b)/v for interleaved, m (f + b) + (p - 1)(f + b - 2 w) for ZB-H1 (b whole) and
    the bubble (p/2 - 1)(f + b - 3 w + b_in) of DualPipe on equal stages without transfers.

    >>> part = [0.5] * 8
    >>> float(schedule_ends(Durations(part, [1.0] * 8, part, [0.0] * 7), 8, "interleaved", virtual_stages=2).max())
    28.5

    Source: narayanan2021, section 2.2.2; qi2024, section 2; deepseek-v3, section 3.2.1.
    """
    cite.use(SOURCES.get(schedule, INTERLEAVED))
    places = _places(durations, virtual_stages)
    groups = micro_batches // places
    if schedule == "interleaved" and groups > FULL_GROUPS and micro_batches % places == 0:
        short = _starts(durations, FULL_GROUPS * places, schedule, virtual_stages)
        gain = _gain(short, places, virtual_stages, FULL_GROUPS)
        if gain is not None:
            return short.ends + (groups - FULL_GROUPS) * gain
    return _ends(durations, micro_batches, schedule, virtual_stages)


def schedule_events(
    durations: Durations, micro_batches: int, schedule: str, *, virtual_stages: int = 1
) -> list[tuple[int, Event]]:
    """Return every operation of one step as ``(place, event)``, ordered by start and place.

    Arguments: those of :func:`schedule_ends`.
    Returns: events whose ``stage`` is that of the model and whose kinds are ``forward``, ``backward``, ``input``,
    ``weight`` and ``pair`` (a forward and a backward run as one). Raises :class:`InputError` as there.
    Counts what :func:`schedule_ends` counts.

    >>> one = Durations([1.0], [2.0], [1.0], [])
    >>> [(place, event.kind, event.end) for place, event in schedule_events(one, 1, "zero-bubble")]
    [(0, 'forward', 1.0), (0, 'input', 2.0), (0, 'weight', 3.0)]

    Source: narayanan2021, figure 4; qi2024, figure 3; deepseek-v3, figure 5.
    """
    run = _starts(durations, micro_batches, schedule, virtual_stages)
    found = []
    rows = zip(run.program.steps, run.program.micro_batches, run.start, run.end, strict=True)
    for (place, move, other), micro, start, end in rows:
        turn, stage = divmod(move[0], run.program.stages)
        found.append((place, Event(stage, KINDS[turn] if other is None else "pair", micro, start, end)))
    return sorted(found, key=lambda one: (one[1].start, one[0], one[1].end))


def held_micro_batches(
    places: int, micro_batches: int, schedule: str, *, virtual_stages: int = 1
) -> tuple[npt.NDArray[np.float64], ...]:
    """Return how many micro-batches' activations of each of its stages a place may keep at once.

    Arguments: ``places``; ``micro_batches``; ``schedule`` as in :func:`schedule_ends`; ``virtual_stages`` to a place.
    Returns: per place, an array ``[moments, stages of the model]``: the fullest moments, of which the one that binds
    depends on how many bytes each stage keeps. Raises :class:`InputError` as there.
    Counts a micro-batch from its forward to its backward, or to its weight gradient where that is apart. Agrees with
    2 (p - s - 1) + (v - 1) p + 1 for interleaved, p for ZB-H1 and p + 1 for DualPipe.

    >>> [float(kept.sum(axis=1).max()) for kept in held_micro_batches(4, 8, "interleaved", virtual_stages=2)]
    [11.0, 9.0, 7.0, 5.0]

    Source: narayanan2021, section 2.2.2; qi2024, table 1; deepseek-v3, table 2.
    """
    cite.use(SOURCES.get(schedule, INTERLEAVED))
    whole = schedule != "interleaved" or micro_batches % places == 0
    most = 6 * places if whole else micro_batches
    return _held(places, min(micro_batches, most), schedule, virtual_stages)


@lru_cache(maxsize=128)
def _held(places: int, micro_batches: int, schedule: str, virtual_stages: int) -> tuple[Floats, ...]:
    found = []
    for order in orders.orders(schedule, places, virtual_stages, micro_batches):
        own = sorted({stage for together in order for _, stage, _ in together})
        column = {stage: index for index, stage in enumerate(own)}
        kept, seen = [0] * len(own), set()
        for together in order:
            # a pair's forward is kept while its backward is: count what is added before what is taken away
            for kind, stage, _ in together:
                kept[column[stage]] += kind == "forward"
            seen.add(tuple(kept))
            for kind, stage, _ in together:
                kept[column[stage]] -= kind in _ENDING
        moments = _fullest(np.array(sorted(seen)))
        whole = np.zeros((len(moments), places * virtual_stages))
        whole[:, own] = moments
        found.append(whole)
    return tuple(found)


def _fullest(moments: Floats) -> Floats:
    """Return the rows that no other row exceeds in every column."""
    above = np.all(moments[None] >= moments[:, None], axis=2) & np.any(moments[None] > moments[:, None], axis=2)
    return np.asarray(moments[~np.any(above, axis=1)], float)


def _places(durations: Durations, virtual_stages: int) -> int:
    stages = len(durations.forward)
    if stages % virtual_stages:
        raise InputError(
            f"{stages} stages cannot stand {virtual_stages} to a place.",
            hint="give a number of stages that virtual_stages divides.",
        )
    return stages // virtual_stages


class _Starts(NamedTuple):
    program: _Program
    start: list[float]
    end: list[float]
    ends: Floats


def _ends(durations: Durations, micro_batches: int, schedule: str, virtual_stages: int) -> Floats:
    """Follow a schedule operation by operation, and keep only when its places end."""
    if schedule == "dualpipe":
        return _starts(durations, micro_batches, schedule, virtual_stages).ends
    program = _program(schedule, _places(durations, virtual_stages), virtual_stages, micro_batches)
    seconds, hop = _seconds(durations), list(durations.transfer)
    free = [0.0] * program.places
    arrived, link = [0.0] * program.messages, [0.0] * program.links
    for place, (number, need, message, wire, lower), _ in program.steps:
        now = free[place]
        if need >= 0 and arrived[need] > now:
            now = arrived[need]
        free[place] = now = now + seconds[number]
        if message >= 0:
            busy = link[wire]
            now = busy if busy > now else now  # max() would take as long as the rest
            link[wire] = arrived[message] = now + hop[lower]
    return np.array(free)


def _starts(durations: Durations, micro_batches: int, schedule: str, virtual_stages: int) -> _Starts:
    """Follow a schedule operation by operation."""
    program = _program(schedule, _places(durations, virtual_stages), virtual_stages, micro_batches)
    seconds, hop = _seconds(durations), list(durations.transfer)
    spared = [one / 2 for one in durations.paired] or [0.0] * program.stages
    free = [0.0] * program.places
    arrived, link = [0.0] * program.messages, [0.0] * program.links
    start, end = [], []
    for place, (number, need, message, wire, lower), other in program.steps:
        begin = free[place] if need < 0 else max(free[place], arrived[need])
        now = begin + seconds[number]
        if other is not None:
            begin = begin if other[1] < 0 else max(begin, arrived[other[1]])
            both = (number, other[0])
            now = begin + sum(seconds[one] - spared[one % program.stages] for one in both)
            if other[2] >= 0:
                link[other[3]] = arrived[other[2]] = max(link[other[3]], now) + hop[other[4]]
        free[place] = now
        start.append(begin)
        end.append(now)
        if message >= 0:
            link[wire] = arrived[message] = max(link[wire], now) + hop[lower]
    return _Starts(program, start, end, np.array(free))


def _seconds(durations: Durations) -> list[float]:
    """Return the seconds of every operation by its number: kinds in the order of :data:`KINDS`, over the stages."""
    inputs = [whole - weight for whole, weight in zip(durations.backward, durations.weight, strict=True)]
    return [*durations.forward, *durations.backward, *durations.weight, *inputs]


def _gain(run: _Starts, places: int, virtual_stages: int, groups: int) -> float | None:
    """Return the seconds that each further group of ``places`` micro-batches adds, if the last ones repeat.

    Compared are the starts of all forwards of the last groups and of the backwards among them: where those of two
    groups in turn all come the same seconds later, so do those of every group after (baccelli1992, section 3.7).
    """
    table = np.empty((2, groups, places * virtual_stages * places))
    turn, stage = np.divmod([move[0] for _, move, _ in run.program.steps], places * virtual_stages)
    group, rest = np.divmod(run.program.micro_batches, places)
    table[turn, group, stage * places + rest] = run.start
    forwards, backwards = table[0, groups - 3 :], table[1, groups - 5 : groups - 2]
    gains = np.concatenate([later - earlier for part in (forwards, backwards) for earlier, later in pairwise(part)])
    least, most = float(gains.min()), float(gains.max())
    return least if most - least <= PERIODIC * float(run.ends.max()) * 4 else None


@lru_cache(maxsize=256)
def _program(schedule: str, places: int, virtual_stages: int, micro_batches: int) -> _Program:
    """Lay out all operations of a schedule so that each comes after what it waits for."""
    todo = orders.orders(schedule, places, virtual_stages, micro_batches)
    stages = places * virtual_stages
    rows = [_moves(order, place, schedule, places, stages, micro_batches) for place, order in enumerate(todo)]
    sent = bytearray(2 * stages * micro_batches + 1)
    sent[-1] = 1  # number -1 waits for nothing
    steps: list[tuple[int, _Move, _Move | None]] = []
    micros: list[int] = []
    at, ends = [0] * places, [len(moves) for moves, _, _ in rows]
    ready = list(range(places))
    while ready:
        place = ready.pop()
        (moves, targets, numbers), here = rows[place], at[place]
        while here < ends[place]:
            move, other = moves[here]
            if not sent[move[1]] or (other is not None and not sent[other[1]]):
                break
            steps.append((place, move, other))
            micros.append(numbers[here])
            for message, target in targets[here]:
                sent[message] = 1
                ready.append(target)
            here += 1
        at[place] = here
    if at != ends:
        raise InputError(f"schedule {schedule} cannot run {micro_batches} micro-batches over {places} places.")
    return _Program(steps, micros, 2 * stages * micro_batches, places * places, places, stages)


_Row = tuple[list[tuple[_Move, _Move | None]], list[list[tuple[int, int]]], list[int]]


def _moves(order: tuple[orders.Order, ...], place: int, schedule: str, places: int, stages: int, micros: int) -> _Row:
    """Return a place's moments as moves, the messages that each sends with the places they go to, and micro-batches."""
    kinds, *rest = zip(*(operation for together in order for operation in together), strict=True)
    kind = np.array([_NUMBER[one] for one in kinds])
    stage, micro = np.array(rest)
    down, joins = kind == 0, kind != _NUMBER["weight"]
    target = np.where(down, stage + 1, stage - 1)
    base = np.where(down, 0, stages * micros)
    waits = joins & np.where(down, stage > 0, stage < stages - 1)
    sends = joins & (target >= 0) & (target < stages)
    need = np.where(waits, base + stage * micros + micro, -1)
    message = np.where(sends, base + target * micros + micro, -1)
    goes = np.where(sends, _home(schedule, places, stages, micros, target, micro), -1)
    wire = np.where(sends, place * places + goes, 0)
    columns = (kind * stages + stage, need, message, wire, np.where(sends, np.minimum(stage, target), 0))
    flat: list[_Move] = list(zip(*(column.tolist() for column in columns), strict=True))
    sent = [[one] if one[0] >= 0 else [] for one in zip(message.tolist(), goes.tolist(), strict=True)]
    numbers = micro.tolist()
    if len(flat) == len(order):
        return [(move, None) for move in flat], sent, numbers
    first = np.cumsum([0, *(len(together) for together in order[:-1])]).tolist()
    pairs = [len(together) > 1 for together in order]
    return (
        [(flat[at], flat[at + 1] if pair else None) for at, pair in zip(first, pairs, strict=True)],
        [sent[at] + sent[at + 1] if pair else sent[at] for at, pair in zip(first, pairs, strict=True)],
        [numbers[at] for at in first],
    )


def _home(schedule: str, places: int, stages: int, micro_batches: int, stage: Ints, micro: Ints) -> Ints:
    """Return at which place a stage of a micro-batch is worked on."""
    if schedule == "dualpipe":
        return np.where(2 * micro < micro_batches, stage, stages - 1 - stage)
    if schedule == "zero-bubble-v":
        return np.where(stage < places, stage, stages - 1 - stage)
    return stage % places
