"""Even splits as arrays: what their stages take, and seconds that no step over them can beat.

Of ``n`` stages each holds ``floor(L/n)`` of ``L`` layers or one more; those that hold more stand on the places without
stem or head first (:func:`even_ranges`), as the engines that run other schedules than 1F1B cut a model.

A place ``j`` cannot start before the first micro-batch has come through the places before it (``A_j``: forwards ``f``
and hops), and does the work ``P_j`` of all its stages (forwards and backwards ``b``, of which ``w`` is for gradients of
weights) ``m`` times. What is behind it on the way back is ``D_j``. So a step takes at least, over the places ``j``:

* interleaved: ``A_j + m P_j + D_j`` with whole backwards in ``D_j``: the last backward of a place is that of its first
  stage, and goes back through all places before it;
* GPipe: the same; and as no backward starts before the last stage has done all forwards, the longest way of the
  forwards and that of the backwards, one after the other;
* zero-bubble: the same with ``b - w`` in ``D_j``, less the weights' gradients that are put off behind the last of those
  of the input, ``min(j + 1, m)`` of them, and with the first place's own last one;
* ZB-V: ``A_j + m P_j``; and the same as above with at most ``2 p`` gradients put off, for the memory that it may use;
* DualPipe: ``A_j + m/2 P_j`` from the nearer end, ``P_j`` of two stages, less the exchange of tokens that it hides;
* any: there and back once, gradients of weights aside.

To the first four of these comes what the first place does when it has ended (sum of gradients, update), and what
gathering weights adds before it starts. All of it is from the same functions as the cost of a plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from zhenfa.estimate import traffic
from zhenfa.estimate.holding import Holding
from zhenfa.estimate.reduction import Terms, exchange
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.shape import Shape
from zhenfa.estimate.stage import update_seconds
from zhenfa.estimate.training import at_an_end
from zhenfa.laws.arrays import Array, values_of
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.space import Bools, Candidates, Ints
from zhenfa.spec.plan import Schedule

SLACK: Final = 1 - 1e-9

FIRST_ENDS_LAST: Final = ("gpipe", "interleaved")
"""Schedules in which the last operation of all is the first place's."""


class Variant(NamedTuple):
    """A schedule with so many stages to a place; ``held`` stages of the model at each place."""

    schedule: Schedule
    virtual: int
    held: int


class Stages(NamedTuple):
    """Seconds of a micro-batch over the stages in the order of the model, ``[stages, candidates]``; ``hop`` to the next
    stage, ``[stages - 1, candidates]``."""

    forward: Floats
    backward: Floats
    weight: Floats
    hop: Floats
    spared: Floats
    """Seconds that DualPipe hides where it runs two passes as one."""

    def take(self, index: Ints) -> Stages:
        """Return the stages of the candidates that an index selects."""
        return Stages(*(part[:, index] for part in self))


@lru_cache(maxsize=4096)
def even_ranges(layers: int, places: int, turns: int) -> list[tuple[int, int]]:
    """Return the layers of ``turns`` stages to a place in the order of the model, as even as can be.

    >>> even_ranges(7, 4, 1)
    [(0, 2), (2, 4), (4, 6), (6, 7)]
    >>> [last - first for first, last in even_ranges(10, 4, 2)]
    [1, 2, 2, 1, 1, 1, 1, 1]
    """
    least, more = divmod(layers, places * turns)
    order = sorted(range(places), key=lambda place: (place == places - 1, place == 0, place))
    longer = {turn * places + place for turn in range(turns) for place in order[: max(more - turn * places, 0)]}
    sizes = [least + (stage in longer) for stage in range(places * turns)]
    borders = np.cumsum([0, *sizes]).tolist()
    return list(itertools.pairwise(borders))


@lru_cache(maxsize=4096)
def _kinds(layers: tuple[int, ...], places: int, turns: int) -> Floats:
    """Return how many layers of each kind each stage of an even split holds, ``[stages, kinds]``."""
    there = np.zeros((len(layers) + 1, max(layers) + 1))
    for index, kind in enumerate(layers):
        there[index + 1] = there[index]
        there[index + 1, kind] += 1
    borders = np.array(even_ranges(len(layers), places, turns))
    return np.asarray(there[borders[:, 1]] - there[borders[:, 0]])


def stages_of(setting: Setting, pool: str, variant: Variant, places: int, part: Candidates, work: Work) -> Stages:
    """Return what the stages of even splits take; all candidates have as many ``places``."""
    counts = _kinds(setting.graph.layers, places, variant.virtual)
    forward, weight = counts @ work.forward, counts @ work.weight
    backward = counts @ (work.layers - work.forward)
    for stage, end in ((0, 0), (-1, 1)):
        forward[stage] += work.ends_forward[end]
        backward[stage] += work.ends[end] - work.ends_forward[end]
        weight[stage] += work.ends_weight[end]
    hop = _hops(setting, pool, variant, places, part)
    spared = counts @ work.expert if variant.schedule == "dualpipe" else np.zeros_like(forward)
    if setting.traits.pipeline_overlap < 1:
        share, waits = _blocking(setting, part, hop)
        forward, backward, hop = forward + waits, backward + waits, share * hop
    return Stages(forward, backward, weight, hop, spared)


def _hops(setting: Setting, pool: str, variant: Variant, places: int, part: Candidates) -> Floats:
    """Return the seconds of an activation from each stage to the next, ``[stages - 1, candidates]``."""
    cards = part.tensor * part.context
    volume = np.array([traffic.activation_bytes(setting, size) for size in part.size.tolist()]) / cards
    apart = cards * part.data
    start = np.arange(places - 1)[:, None] * apart
    there: Floats = traffic.hop(setting, pool, volume, start, apart)
    if variant.virtual == 1:
        return there
    if variant.schedule == "zero-bubble-v":
        return np.concatenate([there, np.zeros((1, len(part))), there[::-1]])
    home = traffic.hop(setting, pool, volume, 0 * apart, apart * (places - 1))[None]
    return np.concatenate([there, *[home, there] * (variant.virtual - 1)])


def _blocking(setting: Setting, part: Candidates, hop: Floats) -> tuple[Floats, Floats]:
    """Return the share of each hop that nobody waits for, and what both ends of a stage wait."""
    whole = np.array([traffic.activation_bytes(setting, size) for size in part.size.tolist()])
    small = whole / (part.tensor * part.context) <= setting.traits.buffer_bytes
    share = np.where(small, 1.0, setting.traits.pipeline_overlap)
    waits = np.zeros((len(hop) + 2, len(part)))
    waits[1:-1] = (1 - share) * hop
    return share, np.maximum(waits[:-1], waits[1:])


def chain(variant: Variant, stages: Stages, times: Ints) -> Floats:
    """Return seconds that no schedule over these stages can beat, gathers and sums aside, ``[candidates]``."""
    count = len(stages.forward)
    places = count // variant.virtual
    arrival = _ahead(stages.forward[:places] + _next(stages.hop, places))
    match variant.schedule:
        case "interleaved":
            work = (stages.forward + stages.backward).reshape(variant.virtual, places, -1).sum(axis=0)
            back = _ahead(stages.backward[:places] + _next(stages.hop, places))
            found = arrival + times * work + back
        case "gpipe":
            work = stages.forward + stages.backward
            back = _ahead(stages.backward + _next(stages.hop, places))
            there = arrival + times * stages.forward + _behind(stages.forward, stages.hop)
            home = _behind(stages.backward, stages.hop) + times * stages.backward + back
            found = np.maximum(arrival + times * work + back, there.max(axis=0) + home.max(axis=0))
        case "zero-bubble":
            work = stages.forward + stages.backward
            put_off = np.minimum(np.arange(places)[:, None] + 1, times) * stages.weight
            back = _ahead(stages.backward - stages.weight + _next(stages.hop, places))
            own = arrival + times * work
            found = np.maximum(
                own, own - put_off + back + np.where(np.arange(places)[:, None] > 0, stages.weight[0], 0)
            )
        case "zero-bubble-v":
            work = stages.forward + stages.backward
            work = work[:places] + work[: places - 1 : -1]
            most = 2 * np.minimum(places, times) * np.maximum(stages.weight[:places], stages.weight[: places - 1 : -1])
            behind = _ahead((stages.backward - stages.weight)[:places] + _next(stages.hop, places))
            own = arrival + times * work
            found = np.maximum(own, own - most + behind)
        case _:
            mirrored = _ahead(stages.forward + _next(stages.hop, places))
            work = stages.forward + stages.backward - stages.spared
            found = np.minimum(mirrored, mirrored[::-1]) + times / 2 * (work + work[::-1])
    once = (stages.forward + stages.backward - stages.weight - stages.spared).sum(axis=0) + 2 * stages.hop.sum(axis=0)
    longest: Floats = np.maximum(found.max(axis=0), once) * SLACK
    return longest


def _next(hop: Floats, places: int) -> Floats:
    """Return each place's hop to the next; none behind the last."""
    return np.concatenate([hop[: places - 1], np.zeros((1, hop.shape[1]))])


def _ahead(seconds: Floats) -> Floats:
    """Return the sums over the places before each."""
    found: Floats = seconds.cumsum(axis=0) - seconds
    return found


def _behind(seconds: Floats, hop: Floats) -> Floats:
    """Return the sums over the places behind each, hops to them included."""
    way = seconds.copy()
    way[:-1] += hop
    found: Floats = way[::-1].cumsum(axis=0)[::-1] - seconds
    return found


class Group(NamedTuple):
    """Candidates of one schedule over as many places, and what their stages take."""

    variant: Variant
    places: int
    part: Candidates
    stages: Stages
    again: Ints | None = None
    """Layers of a stage that are computed again at least, where some of them are."""
    longest_backward: Floats | None = None
    """What ``stages.backward`` would be if all of them were."""

    @property
    def share(self) -> float:
        """Return the share of the micro-batches that goes through each of a place's stages."""
        return 0.5 if self.variant.schedule == "dualpipe" else 1.0

    def take(self, index: Ints) -> Group:
        """Return the candidates that an index selects."""
        again = None if self.again is None else self.again[index]
        longest = None if self.longest_backward is None else self.longest_backward[:, index]
        return self._replace(
            part=self.part.where(index), stages=self.stages.take(index), again=again, longest_backward=longest
        )

    @property
    def hides(self) -> tuple[Floats, Floats]:
        """Return the passes of each stage beside which replicas may exchange, at their longest."""
        longest = self.longest_backward
        return self.stages.forward, self.stages.backward if longest is None else longest


Blocks = Sequence[tuple[Holding, Array]]
"""What one block of each kind, the stem and the head hold, and their working sets."""


def may_fit(
    setting: Setting, pool: str, group: Group, blocks: Blocks, spared: Floats | float = 0.0, working: Array = 0.0
) -> Bools:
    """Return which candidates pass a memory test that every plan that fits passes: at each place, the state of its
    stages, and as many micro-batches of the stage that keeps the least as the place keeps of all its stages together
    (:func:`zhenfa.laws.schedules.held_micro_batches`). ``spared``: bytes of a micro-batch that layers which are
    computed again do not keep, ``[stages, candidates]``; ``working``: those held at work at least."""
    counts = _blocks_of(setting, group)
    state = _sums(counts, [np.asarray(held.state) for held, _ in blocks], len(group.part))
    activation = _sums(counts, [np.asarray(held.activation) for held, _ in blocks], len(group.part))
    activation = (activation - spared) * bounds.kept_here(group.part)
    place, times = np.arange(group.places)[:, None], group.part.micro_batches
    virtual, places = group.variant.virtual, group.places
    match group.variant.schedule:
        case "interleaved":
            kept = np.minimum(2 * (places - place - 1) + (virtual - 1) * places + 1, times * virtual)
        case "gpipe":
            kept = times + 0 * place
        case "zero-bubble":
            kept = np.minimum(places, times) + 0 * place
        case "zero-bubble-v":
            kept = np.minimum(2 * places, 2 * times) + 0 * place
        case _:
            kept = places + 1 + 0 * place + 0 * times
    homes = [home_of(group.variant, places, one) for one in range(places)]
    needed = np.stack(
        [state[home].sum(axis=0) + kept[one] * activation[home].min(axis=0) for one, home in enumerate(homes)]
    )
    mask: Bools = needed.max(axis=0) + working <= setting.chips[pool].usable / SLACK
    return mask


def _blocks_of(setting: Setting, group: Group) -> Floats:
    """Return how many blocks of each kind, stems and heads each stage holds, ``[stages, blocks]``."""
    counts = _kinds(setting.graph.layers, group.places, group.variant.virtual)
    ends = np.zeros((len(counts), 2))
    ends[0, 0] = ends[-1, 1] = 1.0
    return np.concatenate([counts, ends], axis=1)


def _sums(counts: Floats, blocks: Sequence[Floats], candidates: int) -> Floats:
    found: Floats = counts @ np.stack([np.broadcast_to(block, candidates) for block in blocks])
    return found


def around(setting: Setting, pool: str, groups: Sequence[Group], every: Candidates, blocks: Blocks) -> Floats:
    """Return seconds that gathering weights before and summing gradients behind the schedule add at least, with the
    update of the weights, over the candidates of all groups: those of the place that ends last, the first one under
    interleaving and GPipe, and else that with the least of it among the first, a middle and the last."""
    seconds = np.empty(len(every))
    looks = [_Beside.at(setting, groups, which) for which in range(3)]
    for zero in values_of(every.zero):
        rows = np.flatnonzero(every.zero == zero)
        shape = bounds.shape_of(setting, every.where(rows))
        held = [
            Holding(*(np.broadcast_to(np.asarray(part), len(every))[rows] for part in vars(one).values()))
            for one, _ in blocks
        ]
        terms = Terms.usual(setting.chips[pool].precision, zero)
        behind: list[Array] = []
        ahead: list[Array] = []
        for look in looks[: 1 if all(one.variant.schedule in FIRST_ENDS_LAST for one in groups) else 3]:
            after, before = look.exposed(setting, pool, terms, shape, held, rows)
            behind.append(after)
            ahead.append(before)
        seconds[rows] = np.min(np.array(behind), axis=0) + ahead[0]
    return seconds * SLACK


class _Beside(NamedTuple):
    """One place of every candidate: its blocks, ``[blocks, candidates]``, what its passes take, the layers of the first
    of its stages, and of all of them: one layer's part of the exchange of any stage is at least one of all together."""

    counts: Floats
    forward: Floats
    backward: Floats
    layers: Floats
    all: Floats

    @classmethod
    def at(cls, setting: Setting, groups: Sequence[Group], which: int) -> _Beside:
        """Look at the first place of each group, or where another may end last, at a middle or the last one."""
        parts = []
        for group in groups:
            place = (0, group.places // 2, group.places - 1)[0 if group.variant.schedule in FIRST_ENDS_LAST else which]
            home = home_of(group.variant, group.places, place)
            counts = _blocks_of(setting, group)
            size = len(group.part)
            sides = (group.share * one[home].sum(axis=0) for one in group.hides)
            held = np.repeat(counts[home].sum(axis=0)[:, None], size, axis=1)
            layers = counts[home, :-2].sum(axis=1)
            parts.append((held, *sides, np.full(size, layers[0]), np.full(size, layers.sum())))
        return cls(*(np.concatenate(one, axis=-1) for one in zip(*parts, strict=True)))

    def exposed(
        self, setting: Setting, pool: str, terms: Terms, shape: Shape, blocks: Sequence[Holding], rows: Ints
    ) -> tuple[Array, Array]:
        """Return the seconds behind the last backward of some candidates, and those before their first forward."""
        held = Holding(
            *(
                sum(getattr(block, name) * count for block, count in zip(blocks, self.counts[:, rows], strict=True))
                for name in Holding.__dataclass_fields__
            )
        )
        once, traits, layers = exchange(terms, setting, pool, shape, held, 1), setting.traits, self.layers[rows]
        (reduce, gather), parts = once.at_ends(terms, self.all[rows]), terms.parts(layers)
        behind = at_an_end(setting, reduce, self.backward[rows], parts[0], traits.gradient_overlap)
        ahead = at_an_end(setting, gather, self.forward[rows], parts[1], traits.gather_overlap)
        return behind + update_seconds(terms, setting, pool, shape, held), ahead


def home_of(variant: Variant, places: int, place: int) -> list[int]:
    """Return the stages that a place holds."""
    if variant.schedule in ("gpipe", "zero-bubble"):
        return [place]
    if variant.schedule == "interleaved":
        return list(range(place, places * variant.virtual, places))
    return sorted({place, places * variant.virtual - 1 - place})
