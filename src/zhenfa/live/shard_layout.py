"""How cards that hold the same layers share out their weights and gradients (ZeRO-2 and ZeRO-3), told in advance.

Each weight is cut by rows, as evenly as they go, over the cards that hold its part of the model. What a card gathers
and gives away in a step follows from its place, its stages and the schedule alone, so that every card knows what each
of the others will want of it, however unlike their stages and their numbers of micro-batches are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Final

from zhenfa.laws.orders import Operation
from zhenfa.live.operations import operations
from zhenfa.live.placement import CardPlace, Chunk
from zhenfa.live.replicas import owners, parts
from zhenfa.live.sizes import Sizes
from zhenfa.spec.plan import Reshard

STEM: Final = "stem"
HEAD: Final = "head"
GIVES: Final = ("backward", "weight")
"""Kinds of operations after which gradients of weights are whole for a micro-batch."""

Times = dict[int, dict[Operation, tuple[float, float]]]
"""By rank and operation: when about it begins, and how long it takes, in no unit."""


@dataclass(frozen=True)
class SharedPart:
    """A part of the model that the cards ``ranks`` share out; ``number`` counts all parts."""

    name: str
    number: int
    ranks: tuple[int, ...]


@dataclass
class Course:
    """What a card does in a step: which parts it gathers, one unit after the other, and, by part, when about it gives
    gradients away."""

    takes: list[tuple[str, ...]] = field(default_factory=list)
    gives: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def gathers(self) -> Counter[str]:
        """Return how often each part is gathered."""
        return Counter(part for parts in self.takes for part in parts)


def shared_parts(places: Sequence[CardPlace], rank: int, sizes: Sizes, held: Sequence[str]) -> dict[str, SharedPart]:
    """Return the parts that a card holds (``held``), each with all cards that share it, this one included."""
    order = {part: number for number, part in enumerate(parts(sizes))}
    ranks = {part: one.ranks for one in owners(places, sizes) if rank in one.ranks for part in one.parts}
    return {part: SharedPart(part, order[part], ranks.get(part, (rank,))) for part in held}


def rows_of(rows: int, cards: int) -> list[tuple[int, int]]:
    """Return where each card's rows of a weight begin and end.

    >>> rows_of(7, 3)
    [(0, 3), (3, 5), (5, 7)]
    """
    each, more = divmod(rows, cards)
    ends = [number * each + min(number, more) for number in range(cards + 1)]
    return list(pairwise(ends))


def units_of(chunk: Chunk, place: CardPlace, sizes: Sizes) -> dict[str, tuple[str, ...]]:
    """Return what a stage gathers at once, in the order of the model: each with its parts of the model.

    A layer comes with those of its experts that the card holds, a tied embedding with the head.
    """
    found: dict[str, tuple[str, ...]] = {STEM: (STEM,)} if chunk.stem else {}
    for layer in range(chunk.first, chunk.last):
        experts = place.experts(sizes.experts(layer))
        found[f"layer {layer}"] = (f"layer {layer}", *(f"layer {layer} expert {expert}" for expert in experts))
    if chunk.head:
        found[HEAD] = (HEAD, STEM) if sizes.tied else (HEAD,)
    return found


@dataclass(frozen=True)
class Presence:
    """When gathered weights go. ``reshard``: after each layer, each micro-batch, or the step; ``training``: there are
    backward passes."""

    reshard: Reshard = "layer"
    training: bool = True

    @property
    def goes_after_forward(self) -> bool:
        """Return whether a layer's weights go when its forward pass has ended."""
        return self.reshard == "layer" or (self.reshard == "micro-batch" and not self.training)

    @property
    def goes_after_backward(self) -> bool:
        """Return whether a layer's weights go when its backward pass has ended."""
        return self.reshard != "step"


def worked(place: CardPlace, schedule: str) -> list[Operation]:
    """Return the operations of a card in a step, those on micro-batches of nothing left out where it skips them."""
    rows = operations(schedule, place.stages, place.virtual_stages, place.rounds)[place.stage]
    shares_experts = len(place.expert_ranks) > 1
    return [one for moment in rows for one in moment if shares_experts or one[2] < place.micro_batches]


def course_of(
    place: CardPlace, sizes: Sizes, schedule: str, presence: Presence, times: Times, *, every: bool = True,
    whole: bool = False,
) -> Course:  # fmt: skip
    """Return what a card gathers and gives away in a step.

    ``times`` are those of :func:`times_of`. ``every``: gradients go with every micro-batch, else once a step.
    ``whole``: weights are never dropped (ZeRO-2).
    """
    chunks = {chunk.stage: units_of(chunk, place, sizes) for chunk in place.chunks}
    found, here = Course(), set[str]()
    own = [one for one in worked(place, schedule) if presence.training or one[0] == "forward"]
    last = {one[1]: one for one in own if one[0] in GIVES}
    for operation in own:
        kind, stage, _ = operation
        units = chunks[stage]
        if kind != "weight" and not whole:
            found.takes += _taken(units, kind, presence, here)
        if kind in GIVES and (every or operation == last[stage]):
            start, seconds = times[place.rank][operation]
            for number, held in enumerate(reversed(units.values()), 1):
                for part in held:
                    found.gives.setdefault(part, []).append(start + seconds * number / len(units))
    return found


def _taken(
    units: dict[str, tuple[str, ...]], kind: str, presence: Presence, here: set[str]
) -> Iterator[tuple[str, ...]]:
    """Yield for each unit the parts that a pass over a stage gathers; ``here`` are those that the card has, and has
    afterwards."""
    forward = kind == "forward"
    for unit, held in units.items() if forward else reversed(units.items()):
        if forward or unit != STEM:
            missing = tuple(part for part in held if part not in here)
            if missing:
                yield missing
            here.update(held)
        if presence.goes_after_forward if forward else presence.goes_after_backward:
            here.difference_update(held)


def times_of(places: Sequence[CardPlace], sizes: Sizes, schedule: str) -> Times:
    """Return about when each card begins each of its operations, and how long it takes, by rank.

    Counts matrices and declared speeds; where a card's is not known, every replica is taken to need the same time for
    its share of the batch, which is how shares are planned. Omits messages. What depends on another operation always
    comes after it.
    """
    found: Times = {}
    known = all(place.rate is not None for place in places)
    for pipeline in dict.fromkeys(place.pipeline for place in places):
        cards = [place for place in places if place.pipeline == pipeline]
        first = {place.stage: place for place in cards if not place.tensor}
        held = _timeline(first, sizes, schedule, known=known)
        longest = max(start + seconds for row in held.values() for start, seconds in row.values())
        scale = 1.0 if known else 1 / longest
        for place in cards:
            row = held[place.stage]
            found[place.rank] = {one: (start * scale, seconds * scale) for one, (start, seconds) in row.items()}
    return found


def _timeline(
    cards: dict[int, CardPlace], sizes: Sizes, schedule: str, *, known: bool
) -> dict[int, dict[Operation, tuple[float, float]]]:
    """Return start and length of all operations of one pipeline, by place: each when its place and its input are
    there."""
    one = cards[0]
    rows = operations(schedule, one.stages, one.virtual_stages, one.rounds)
    speed = {
        place: (card.rate if known and card.rate else 1.0) / card.micro_batch_size for place, card in cards.items()
    }
    seconds = {
        (place, kind, chunk.stage): _work(kind, chunk, sizes) / speed[place]
        for place, card in cards.items() for chunk in card.chunks for kind in ("forward", *GIVES, "input")
    }  # fmt: skip
    last = max(stage for _, _, stage in seconds)
    ends: dict[Operation, float] = {}
    found: dict[int, dict[Operation, tuple[float, float]]] = {place: {} for place in cards}
    left = {place: list(reversed(row)) for place, row in enumerate(rows)}
    free = dict.fromkeys(cards, 0.0)
    while any(left.values()):
        for place, row in left.items():
            while row and all(key in ends for op in row[-1] for key in _inputs(op, last, row[-1])):
                moment = row.pop()
                at = max([free[place], *(ends[key] for op in moment for key in _inputs(op, last, moment))])
                for op in moment:
                    length = seconds[place, op[0], op[1]]
                    found[place][op] = (at, length)
                    at += length
                    ends[_result(op)] = at
                free[place] = at
    return found


def _work(kind: str, chunk: Chunk, sizes: Sizes) -> float:
    """Return the work of an operation of a stage, about as its matrices go."""
    layers = (chunk.last - chunk.first) * sizes.layer_parameters
    whole = layers + (sizes.hidden * sizes.vocabulary if chunk.head else 0) + 1
    again = chunk.recomputed * sizes.layer_parameters
    return {"forward": whole, "input": whole + again, "weight": whole, "backward": 2 * whole + again}[kind]


def _result(operation: Operation) -> Operation:
    """Return under which name others wait for what an operation gives: both kinds of backward pass give the same."""
    kind, stage, micro = operation
    return ("backward" if kind == "input" else kind, stage, micro)


def _inputs(operation: Operation, last: int, moment: Sequence[Operation]) -> list[Operation]:
    """Return what must have ended elsewhere before an operation can begin, its own moment apart."""
    kind, stage, micro = operation
    if kind == "weight":
        return []
    wanted = ("forward", stage - 1, micro) if kind == "forward" else ("backward", stage + 1, micro)
    if not 0 <= wanted[1] <= last or any(_result(one) == wanted for one in moment):
        return []
    return [wanted]


def arrivals(parts: Sequence[SharedPart], courses: Mapping[int, Course]) -> list[tuple[SharedPart, int]]:
    """Return in which order gradients of parts are added up, whoever is there first: a part, and the card whose
    gradients of it come.

    All cards keep the one order of :func:`times_of`, in which nothing comes before what it depends on. So a card that
    waits until its gradients have been taken never waits in a circle.
    """
    found = [
        (at, -one.number, rank, one) for one in parts for rank in one.ranks for at in courses[rank].gives[one.name]
    ]
    return [(one, rank) for _, _, rank, one in sorted(found, key=lambda row: row[:3])]
