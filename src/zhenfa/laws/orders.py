"""In which order each place of a pipeline executes its operations, schedule by schedule.

An operation is ``(kind, stage, micro_batch)`` with the stage's number in the model, and kind ``forward``, ``backward``
(whole), ``input`` (gradient of the input alone) or ``weight`` (gradient of the weights alone). An order is a tuple of
moments, each a tuple of the operations run as one: one, or in DualPipe a forward and a backward.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

import numpy as np

from zhenfa.errors import InputError

Operation = tuple[str, int, int]
Order = tuple[Operation, ...]
Orders = tuple[tuple[Order, ...], ...]


@lru_cache(maxsize=64)
def orders(schedule: str, places: int, virtual_stages: int, micro_batches: int) -> Orders:
    """Return the order of every place.

    Arguments: ``schedule`` ``"interleaved"``, ``"zero-bubble"``, ``"zero-bubble-v"`` or ``"dualpipe"``; ``places``;
    ``virtual_stages`` to a place; ``micro_batches``.
    Returns: per place its moments. Raises :class:`InputError` for another schedule, or too few micro-batches.
    Counts every operation of the step once. Interleaved runs groups of ``places`` micro-batches through one stage after
    another (groups as even as can be, where the number is no multiple). ZB-H1 is 1F1B with the weight gradient of place
    ``s`` kept back by ``s`` micro-batches. ZB-V is what a greedy rule gives when all operations take the same time:
    input gradients first, of the oldest micro-batch, then forwards, the way back before the way there, while no more
    than ``2 places`` halves are kept, then weight gradients: places then wait while the pipeline fills, and no more.

    >>> [kind[0] + str(micro) for ((kind, stage, micro),) in orders("zero-bubble", 2, 1, 2)[1]]
    ['f0', 'i0', 'f1', 'i1', 'w0', 'w1']

    Source: narayanan2021, section 2.2.2; qi2024, sections 2.1 and 6; deepseek-v3, section 3.2.1 and figure 5.
    """
    match schedule:
        case "interleaved":
            return _interleaved(places, virtual_stages, micro_batches)
        case "zero-bubble":
            return _half_bubble(places, micro_batches)
        case "zero-bubble-v":
            return _as_v(places, micro_batches)
        case "dualpipe":
            return _from_both_ends(places, micro_batches)
    raise InputError(
        f"schedule is {schedule!r}.",
        hint="write 'gpipe', '1f1b', 'interleaved', 'zero-bubble', 'zero-bubble-v' or 'dualpipe'.",
    )


def _interleaved(places: int, virtual: int, micro_batches: int) -> Orders:
    groups = [part.tolist() for part in np.array_split(np.arange(micro_batches), max(1, micro_batches // places))]
    turns = [(turn, micro) for group in groups for turn in range(virtual) for micro in group]
    back = [(turn, micro) for group in groups for turn in reversed(range(virtual)) for micro in group]
    widest = max(len(group) for group in groups)
    found = []
    for place in range(places):
        forward = [("forward", turn * places + place, micro) for turn, micro in turns]
        backward = [("backward", turn * places + place, micro) for turn, micro in back]
        ahead = 2 * (places - place - 1) + (virtual - 1) * widest if virtual > 1 else places - place - 1
        ahead = min(ahead, len(forward))
        order = forward[:ahead]
        for index, operation in enumerate(backward):
            order.extend(forward[ahead + index : ahead + index + 1])
            order.append(operation)
        found.append(tuple((operation,) for operation in order))
    return tuple(found)


def _half_bubble(places: int, micro_batches: int) -> Orders:
    found = []
    for place in range(places):
        ahead = min(places - place, micro_batches)
        order: list[Operation] = [("forward", place, micro) for micro in range(ahead)]
        for micro in range(micro_batches):
            order.append(("input", place, micro))
            if micro >= place:
                order.append(("weight", place, micro - place))
            if ahead + micro < micro_batches:
                order.append(("forward", place, ahead + micro))
        order.extend(("weight", place, micro) for micro in range(max(micro_batches - place, 0), micro_batches))
        found.append(tuple((operation,) for operation in order))
    return tuple(found)


def _as_v(places: int, micro_batches: int) -> Orders:
    """Return what each place does when every operation takes one tick and messages none."""
    last = 2 * places - 1
    waiting: dict[str, list[deque[tuple[int, int]]]] = {
        kind: [deque() for _ in range(places)] for kind in ("input", "weight")
    }
    forwards: list[list[deque[int]]] = [[deque(), deque()] for _ in range(places)]
    forwards[0][0].extend(range(micro_batches))
    held, done = [0] * places, 0
    order: list[list[Order]] = [[] for _ in range(places)]
    while done < 6 * places * micro_batches:
        moves = [
            _next(waiting["input"][place], waiting["weight"][place], forwards[place], held[place], place, places)
            for place in range(places)
        ]
        for place, move in enumerate(moves):
            if move is None:
                continue
            kind, stage, micro = move
            done += 1
            order[place].append((move,))
            if kind == "forward":
                forwards[place][stage >= places].popleft()
                held[place] += 1
                if stage == last:
                    waiting["input"][place].append((stage, micro))
                else:
                    forwards[_v_place(stage + 1, places)][stage + 1 >= places].append(micro)
            elif kind == "input":
                waiting["input"][place].remove((stage, micro))
                waiting["weight"][place].append((stage, micro))
                if stage:
                    waiting["input"][_v_place(stage - 1, places)].append((stage - 1, micro))
            else:
                waiting["weight"][place].popleft()
                held[place] -= 1
    return tuple(tuple(row) for row in order)


def _v_place(stage: int, places: int) -> int:
    return stage if stage < places else 2 * places - 1 - stage


def _next(
    inputs: deque[tuple[int, int]],
    weights: deque[tuple[int, int]],
    forwards: list[deque[int]],
    held: int,
    place: int,
    places: int,
) -> Operation | None:
    """Return the operation that a place begins now."""
    if inputs:
        stage, micro = min(inputs, key=lambda one: (one[1], -one[0]))
        return "input", stage, micro
    if forwards[1] and held < 2 * places:
        return "forward", 2 * places - 1 - place, forwards[1][0]
    if forwards[0] and held < 2 * places:
        return "forward", place, forwards[0][0]
    if weights:
        return "weight", *weights[0]
    return None


def _from_both_ends(places: int, micro_batches: int) -> Orders:
    if places % 2 or micro_batches % 2 or micro_batches < 2 * places:
        raise InputError(
            f"DualPipe over {places} places with {micro_batches} micro-batches: it needs an even number of places and "
            f"an even number of micro-batches, {2 * places} or more.",
            hint="change the stages or micro_batches, or write schedule: 1f1b.",
        )
    return tuple(_Dual(place, places, micro_batches).order() for place in range(places))


class _Dual:
    """The order of one place. Direction 0 is the one that enters at the nearer end."""

    def __init__(self, place: int, places: int, micro_batches: int) -> None:
        self.far = place >= places // 2
        self.depth = min(place, places - 1 - place)
        self.places, self.half, self.count = places, places // 2, micro_batches // 2
        self.stages = (place, places - 1 - place)
        self.forwards, self.backwards = [0, 0], [0, 0]
        self.late: deque[Operation] = deque()
        self.moments: list[Order] = []

    def order(self) -> tuple[Order, ...]:
        """Return the eight phases of the schedule one after the other."""
        inner, outer = self.half - self.depth - 1, self.depth + 1
        for _ in range(2 * inner):
            self._run(self._forward(0))
        for _ in range(outer):
            self._run(self._forward(0))
            self._run(self._forward(1))
        for _ in range(inner):
            self._apart(1)
            self._run(self.late.popleft())
            self._run(self._forward(1))
        for index in range(self.count - self.places + self.depth + 1):
            if index == 0 and self.depth == self.half - 1:  # the two middle places have nothing to pair yet
                self._run(self._forward(0))
                self._run(self._backward(1))
            else:
                self._run(self._forward(0), self._backward(1))
            self._run(self._forward(1), self._backward(0))
        for _ in range(inner):
            self._run(self._backward(1))
            self._run(self._forward(1), self._backward(0))
        for index in range(outer):
            self._back(1, apart=index > outer // 2 or (index == outer // 2 and self.depth % 2 == 1))
            self._back(0, apart=index >= outer // 2)
        for _ in range(inner):
            if self.late:
                self._run(self.late.popleft())
            self._apart(0)
        while self.late:
            self._run(self.late.popleft())
        return tuple(self.moments)

    def _run(self, *operations: Operation) -> None:
        self.moments.append(operations)

    def _at(self, way: int, number: int) -> tuple[int, int]:
        """Return the stage and the micro-batch of the ``number``-th of a direction, seen from this place."""
        reverse = way != int(self.far)
        return self.stages[reverse], number + self.count * reverse

    def _forward(self, way: int) -> Operation:
        self.forwards[way] += 1
        return "forward", *self._at(way, self.forwards[way] - 1)

    def _backward(self, way: int) -> Operation:
        self.backwards[way] += 1
        return "backward", *self._at(way, self.backwards[way] - 1)

    def _apart(self, way: int) -> None:
        _, stage, micro = self._backward(way)
        self._run(("input", stage, micro))
        self.late.append(("weight", stage, micro))

    def _back(self, way: int, *, apart: bool) -> None:
        if apart:
            self._apart(way)
        else:
            self._run(self._backward(way))
