"""Pipeline schedules in which a place runs several stages, or splits the backward pass in two.

A *place* is a set of cards, a *stage* a run of layers. Interleaved 1F1B gives each place several stages, ``p`` apart;
zero-bubble schedules compute the gradient of the input (which the stage before waits for) and that of the weights
(which nothing waits for) apart; DualPipe feeds micro-batches from both ends, each place holding a stage of either
direction. The model of time is that of :mod:`zhenfa.laws.pipeline`: operations in a fixed order at each place, one
message at a time on each directed link, senders that do not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.errors import InputError
from zhenfa.laws import orders
from zhenfa.laws.orders import Operation
from zhenfa.laws.pipeline import PERIODIC, Event

Floats = npt.NDArray[np.float64]

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


_Move = tuple[int, int, int, int, int]
"""Number of an operation's kind and stage together; of the message that it waits for and of the one that it sends, -1
for none; of the link that carries it; and the lower of the two stages that it joins."""

KINDS: Final = ("forward", "backward", "weight", "input")


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
    return _starts(durations, micro_batches, schedule, virtual_stages).ends


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
    most = 6 * places if schedule == "interleaved" and micro_batches % places == 0 else micro_batches
    return _held(places, min(micro_batches, most), schedule, virtual_stages)


@lru_cache(maxsize=128)
def _held(places: int, micro_batches: int, schedule: str, virtual_stages: int) -> tuple[Floats, ...]:
    found = []
    for order in orders.orders(schedule, places, virtual_stages, micro_batches):
        own = sorted({stage for together in order for _, stage, _ in together})
        change = np.zeros((len(order), len(own)))
        for row, together in enumerate(order):
            for kind, stage, _ in together:
                change[row, own.index(stage)] += {"forward": 1, "backward": -1, "input": 0, "weight": -1}[kind]
        # a pair's forward is kept while its backward is: count what is added before what is taken away
        before = np.vstack([np.zeros(len(own)), np.cumsum(change, axis=0)[:-1]])
        moments = _fullest(np.unique(before + np.maximum(change, 0), axis=0))
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


@lru_cache(maxsize=64)
def _program(schedule: str, places: int, virtual_stages: int, micro_batches: int) -> _Program:
    """Lay out all operations of a schedule so that each comes after what it waits for."""
    todo = orders.orders(schedule, places, virtual_stages, micro_batches)
    stages = places * virtual_stages
    home = _homes(schedule, places, stages, micro_batches)
    sent = bytearray(2 * stages * micro_batches)
    wires: dict[tuple[int, int], int] = {}

    def move(place: int, operation: Operation) -> _Move:
        kind, stage, micro = operation
        number = KINDS.index(kind) * stages + stage
        if kind == "weight":
            return number, -1, -1, 0, 0
        down = kind == "forward"
        base, target = (0, stage + 1) if down else (stages, stage - 1)
        waits = stage > 0 if down else stage < stages - 1
        need = (base + stage) * micro_batches + micro if waits else -1
        if not 0 <= target < stages:
            return number, need, -1, 0, 0
        wire = wires.setdefault((place, home(target, micro)), len(wires))
        return number, need, (base + target) * micro_batches + micro, wire, min(stage, target)

    steps: list[tuple[int, _Move, _Move | None]] = []
    micros: list[int] = []
    at, ready = [0] * places, list(range(places))
    while ready:
        place = ready.pop()
        order = todo[place]
        while at[place] < len(order):
            together = order[at[place]]
            moves = [move(place, operation) for operation in together]
            if any(need >= 0 and not sent[need] for _, need, _, _, _ in moves):
                break
            at[place] += 1
            for (_, _, message, _, _), (kind, stage, micro) in zip(moves, together, strict=True):
                if message >= 0:
                    sent[message] = 1
                    ready.append(home(stage + 1 if kind == "forward" else stage - 1, micro))
            steps.append((place, moves[0], moves[1] if len(moves) > 1 else None))
            micros.append(together[0][2])
    if any(here < len(order) for here, order in zip(at, todo, strict=True)):
        raise InputError(f"schedule {schedule} cannot run {micro_batches} micro-batches over {places} places.")
    return _Program(steps, micros, len(sent), len(wires), places, stages)


def _homes(schedule: str, places: int, stages: int, micro_batches: int) -> Callable[[int, int], int]:
    """Return at which place a stage of a micro-batch is worked on."""
    if schedule == "dualpipe":
        return lambda stage, micro: stage if 2 * micro < micro_batches else stages - 1 - stage
    if schedule == "zero-bubble-v":
        return lambda stage, micro: stage if stage < places else stages - 1 - stage
    return lambda stage, micro: stage % places
