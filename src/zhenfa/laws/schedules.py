"""Pipeline schedules in which a place runs several stages, or splits the backward pass in two.

A *place* is a set of cards, a *stage* a run of layers. Interleaved 1F1B gives each place several stages, ``p`` apart;
zero-bubble schedules compute the gradient of the input (which the stage before waits for) and that of the weights
(which nothing waits for) apart; DualPipe feeds micro-batches from both ends, each place holding a stage of either
direction. The model of time is that of :mod:`zhenfa.laws.pipeline`: operations in a fixed order at each place, one
message at a time on each directed link, senders that do not wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.errors import InputError
from zhenfa.laws import orders
from zhenfa.laws.orders import Order
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

FULL_GROUPS: Final = 12
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


class _Step(NamedTuple):
    """One operation in an order in which everything that it waits for comes before it."""

    place: int
    kind: str
    stage: int
    micro_batch: int
    needs: tuple[int, ...]
    sends: tuple[tuple[int, int, int], ...]
    """Message number, link number and hop (the lower stage) of what is sent on."""
    seconds: tuple[tuple[str, int], ...]


class _Program(NamedTuple):
    steps: tuple[_Step, ...]
    messages: int
    links: int
    places: int


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
    found = [
        (step.place, Event(step.stage, step.kind, step.micro_batch, start, end))
        for step, start, end in zip(run.program.steps, run.start, run.end, strict=True)
    ]
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
        change = np.zeros((len(order), places * virtual_stages))
        for row, together in enumerate(order):
            for kind, stage, _ in together:
                change[row, stage] += {"forward": 1, "backward": -1, "input": 0, "weight": -1}[kind]
        # a pair's forward is kept while its backward is: count what is added before what is taken away
        before = np.vstack([np.zeros(change.shape[1]), np.cumsum(change, axis=0)[:-1]])
        moments = np.unique(before + np.maximum(change, 0), axis=0)
        found.append(_fullest(moments))
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
    tables = _tables(durations)
    paired = list(durations.paired) or [0.0] * len(durations.forward)
    hop = list(durations.transfer)
    free = [0.0] * program.places
    arrived, link = [0.0] * program.messages, [0.0] * program.links
    start, end = [], []
    for step in program.steps:
        begin = free[step.place]
        for message in step.needs:
            begin = max(begin, arrived[message])
        now = begin
        for kind, stage in step.seconds:
            now += tables[kind][stage]
        if step.kind == "pair":
            now -= sum(paired[stage] for _, stage in step.seconds) / 2
        free[step.place] = now
        start.append(begin)
        end.append(now)
        for message, wire, lower in step.sends:
            sent = max(link[wire], now) + hop[lower]
            link[wire] = arrived[message] = sent
    return _Starts(program, start, end, np.array(free))


def _tables(durations: Durations) -> dict[str, list[float]]:
    whole, weight = list(durations.backward), list(durations.weight)
    inputs = [both - one for both, one in zip(whole, weight, strict=True)]
    return {"forward": list(durations.forward), "backward": whole, "weight": weight, "input": inputs}


def _gain(run: _Starts, places: int, virtual_stages: int, groups: int) -> float | None:
    """Return the seconds that each further group of ``places`` micro-batches adds, if the last ones repeat.

    Compared are the starts of all forwards of the last groups and of the backwards among them: where those of two
    groups in turn all come the same seconds later, so do those of every group after (baccelli1992, section 3.7).
    """
    table = np.full((2, groups, places * virtual_stages * places), np.nan)
    for step, start in zip(run.program.steps, run.start, strict=True):
        group, rest = divmod(step.micro_batch, places)
        table[int(step.kind == "backward"), group, step.stage * places + rest] = start
    forwards, backwards = table[0, groups - 4 :], table[1, groups - 8 : groups - 4]
    gains = np.concatenate([later - earlier for part in (forwards, backwards) for earlier, later in pairwise(part)])
    least, most = float(gains.min()), float(gains.max())
    return least if most - least <= PERIODIC * float(run.ends.max()) * 4 else None


@lru_cache(maxsize=64)
def _program(schedule: str, places: int, virtual_stages: int, micro_batches: int) -> _Program:
    """Return all operations so that each comes after what it waits for, with messages and links numbered."""
    todo = orders.orders(schedule, places, virtual_stages, micro_batches)
    last = places * virtual_stages - 1
    numbers: dict[tuple[str, int, int], int] = {}
    wires: dict[tuple[int, int], int] = {}
    place_of = {
        (stage, micro): place for place, order in enumerate(todo) for together in order for _, stage, micro in together
    }
    steps: list[_Step] = []
    at, ready = [0] * places, list(range(places))
    while ready:
        place = ready.pop()
        while at[place] < len(todo[place]):
            together = todo[place][at[place]]
            needed = _needed(together, last)
            if any(one not in numbers for one in needed):
                break
            at[place] += 1
            sends = []
            for key, lower in _sent(together, last):
                target = place_of[key[1], key[2]]
                number = numbers.setdefault(key, len(numbers))
                sends.append((number, wires.setdefault((place, target), len(wires)), lower))
                ready.append(target)
            kind, stage, micro = together[0]
            steps.append(
                _Step(
                    place, "pair" if len(together) > 1 else kind, stage, micro, tuple(numbers[one] for one in needed),
                    tuple(sends), tuple((one, where) for one, where, _ in together),
                )
            )  # fmt: skip
    if any(here < len(order) for here, order in zip(at, todo, strict=True)):
        raise InputError(f"schedule {schedule} cannot run {micro_batches} micro-batches over {places} places.")
    return _Program(tuple(steps), len(numbers), len(wires), places)


def _needed(together: Order, last: int) -> list[tuple[str, int, int]]:
    """Return the messages that operations run as one wait for: what earlier operations of one place did is there."""
    needed = []
    for kind, stage, micro in together:
        if kind == "forward" and stage:
            needed.append(("down", stage, micro))
        elif kind in ("backward", "input") and stage < last:
            needed.append(("up", stage, micro))
    return needed


def _sent(together: Order, last: int) -> Iterable[tuple[tuple[str, int, int], int]]:
    """Yield the messages that operations send, with the lower of the two stages."""
    for kind, stage, micro in together:
        if kind == "forward" and stage < last:
            yield ("down", stage + 1, micro), stage
        elif kind in ("backward", "input") and stage:
            yield ("up", stage - 1, micro), stage - 1
