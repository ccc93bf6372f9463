"""The ways to cut the stages of one pool in a mixed pipeline, gathered in groups that share all but expert degree and
recomputation: a bound with the least of each part holds for the whole group."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from zhenfa.estimate.setting import Setting
from zhenfa.laws.arrays import values_of
from zhenfa.plan import bounds
from zhenfa.plan.bounds import Floats, Work
from zhenfa.plan.build import Slot
from zhenfa.plan.space import Bools, Candidates, Ints, divisors, experts, reach, tensor_degrees
from zhenfa.spec.job import Limits

MAX_MIXED_TENSOR: Final = 16

MAX_MIXED_EXPERT: Final = 512

SHARED: Final = (1, 2, 4)
"""Over how many groups of cards of one replica's stage its micro-batches may be shared out."""

MANY_CARDS: Final = 2048
"""On machines of more cards, they are shared out over two groups at most: there the search takes long enough."""

FEW_CUTS: Final = 48
"""Up to so many cuts of a pool's stages, all are tried."""

SPREAD_OVER: Final = 32
"""Cards over which experts are spread at least, where they can be and there are more than :data:`FEW_CUTS` cuts."""


@dataclass(frozen=True)
class Options:
    """The ways to cut one pool's stages.

    ``cuts``: one micro-batch of each cut, one stage deep, and ``cut_work`` its seconds; their ``data`` are the groups
    of cards of a replica's stage that share it out, ``size`` the sequences that each of them gets. An option is a
    tensor degree and a number of such groups with what number of cards experts may be spread over; its ``ways``,
    ``[options, ways]``, are the cuts that it allows (the last repeated where there are fewer than in the widest
    option), ``many`` how many, ``work`` the least seconds of each part over them.
    """

    pool: str
    cuts: Candidates
    cut_work: Work
    width: Ints
    """Cards of one replica's stage, per option."""
    shared: Ints
    """Groups of them that share a micro-batch out, per option."""
    context: int
    degrees: Ints
    """Cards of one replica's stage, per tensor degree and number of groups."""
    groups: Ints
    """Those groups, per tensor degree and number of them."""
    ways: Ints
    many: Ints
    work: Work
    count: int
    routed: int
    """Experts (1: the model has none)."""
    place: Ints
    """Option of each of ``degrees`` and divisor of the experts, -1 where there is none."""

    def __len__(self) -> int:
        return len(self.width)

    def option_of(self, degree: Ints, replicas: Ints) -> Ints:
        """Return the option of one of ``degrees`` (by number) with so many replicas; -1 where there is none."""
        parts = np.array(divisors(self.routed, self.routed))
        spread = np.gcd(replicas * self.degrees[degree], self.routed)
        option: Ints = self.place[degree, np.searchsorted(parts, spread)]
        return option

    def slot(self, cut: int) -> Slot:
        """Return one cut as a slot."""
        found = self.cuts
        columns = (found.tensor, found.expert, found.recompute, found.context, found.expert_tensor)
        return Slot(self.pool, *(int(column[cut]) for column in columns), data=int(found.data[cut]))


def shared_over(setting: Setting, limits: Limits) -> tuple[int, ...]:
    """Return over how many groups of cards micro-batches may be shared out on a stage."""
    if not setting.traits.shares_batches or limits.micro_batch_size is not None:
        return (1,)
    return SHARED if setting.formation.cards <= MANY_CARDS else SHARED[:2]


def options_of(
    setting: Setting, name: str, sizes: Sequence[int], contexts: Sequence[int], limits: Limits
) -> dict[tuple[int, int], Options]:
    """Return the ways to cut one pool's stages, by micro-batch size and context degree where there are any.

    A micro-batch may be shared out over groups of cards (:func:`shared_over`). Where there are more than
    :data:`FEW_CUTS` cuts, an option has the two quickest expert degrees of each recomputation among those that spread
    the experts over :data:`SPREAD_OVER` cards or more, or else as far as they can be.
    """
    count = min(setting.formation.pool(name).count, reach(setting, name))
    degrees = [one for one in tensor_degrees(setting, name, limits) if one <= MAX_MIXED_TENSOR]
    spread = divisors(experts(setting), MAX_MIXED_EXPERT)
    groups = shared_over(setting, limits)
    rows = [
        row
        for row in itertools.product(sizes, contexts, groups, degrees, spread, setting.traits.recompute)
        if row[0] % row[2] == 0 and (width := row[1] * row[2] * row[3]) <= count and row[4] <= count // width * width
    ]
    if not rows:
        return {}
    size, context, shared, tensor, expert, again = np.array(rows, dtype=np.int64).T
    ones = np.ones_like(tensor)
    cuts = Candidates.of(
        tensor, context=context, pipeline=ones, data=shared, expert=expert, size=size // shared, total=ones,
        zero=0 * ones, recompute=again,
    )  # fmt: skip
    work = bounds.work_per_micro_batch(setting, name, cuts)
    found: dict[tuple[int, int], Options] = {}
    for key in itertools.product(sizes, contexts):
        here = np.flatnonzero((size == key[0]) & (context == key[1]))
        if len(here):
            options = _options(setting, name, cuts.where(here), work.take(here), count, key[1])
            found |= {} if options is None else {key: options}
    return found


def _options(setting: Setting, name: str, cuts: Candidates, work: Work, count: int, context: int) -> Options | None:
    """Return the options of one micro-batch size and context degree."""
    routed = experts(setting)
    pairs = list(itertools.product(values_of(cuts.tensor), values_of(cuts.data)))
    every = divisors(routed, routed)
    found: list[tuple[int, list[int]]] = []
    place = np.full((len(pairs), len(every)), -1)
    for number, (degree, groups) in enumerate(pairs):
        modes = _by_mode(cuts, work, (cuts.tensor == degree) & (cuts.data == groups))
        few = int((cuts.data == groups).sum()) <= FEW_CUTS
        for column, most in enumerate(every):
            allowed = _allowed(modes, most, few=few)
            if allowed:
                place[number, column] = len(found)
                found.append((number, allowed))
    if not found:
        return None
    widest = max(len(allowed) for _, allowed in found)
    ways = np.array([allowed + allowed[-1:] * (widest - len(allowed)) for _, allowed in found])
    degrees = np.array([degree * groups * context for degree, groups in pairs])
    shared, option = np.array([groups for _, groups in pairs]), np.array([number for number, _ in found])
    return Options(
        name, cuts, work, degrees[option], shared[option], context, degrees, shared, ways,
        np.array([len(allowed) for _, allowed in found]), _least(setting, work, ways), count, routed, place,
    )  # fmt: skip


def _by_mode(cuts: Candidates, work: Work, same: Bools) -> list[list[tuple[int, int]]]:
    """Return some cuts with their expert degrees, the quickest first, of each recomputation."""
    modes = []
    for mode in values_of(cuts.recompute):
        here = np.flatnonzero(same & (cuts.recompute == mode) & np.isfinite(work.whole))
        here = here[np.argsort(work.whole[here], kind="stable")]
        modes.append(list(zip(here.tolist(), cuts.expert[here].tolist(), strict=True)))
    return modes


def _allowed(modes: Sequence[Sequence[tuple[int, int]]], most: int, *, few: bool) -> list[int]:
    """Return the cuts whose experts can be shared out over a divisor of ``most`` cards."""
    least, count = (1, None) if few else (min(SPREAD_OVER, most), 2)
    each = ([cut for cut, expert in cuts if most % expert == 0 and expert >= least][:count] for cuts in modes)
    return sorted(itertools.chain(*each))


def _least(setting: Setting, work: Work, ways: Ints) -> Work:
    """Return the least of each part of the work over the ways of each option."""
    names = Work.NAMES[1:]
    parts = [getattr(work, name)[:, ways].min(axis=-1) for name in names]
    counts = np.bincount(setting.graph.layers, minlength=len(setting.graph.kinds))
    layers, ends = parts[:2]
    whole: Floats = (counts[:, None] * layers).sum(axis=0) + ends.sum(axis=0)
    return Work(whole=whole, **dict(zip(names, parts, strict=True)))
