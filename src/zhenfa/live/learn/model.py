"""A plan's step as the laws compose it, with some of their seconds replaced by measured ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from zhenfa.estimate.costs import SIMPLE, GroupCost, PlanCost, StageCost
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import groups_of, homes_of, timed_again
from zhenfa.live.placement import CardPlace
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Law

Apply = Callable[[int, list[StageCost]], None]
"""Puts measured seconds into the stages of a replica, whose number it is given."""


@dataclass(frozen=True)
class Home:
    """One place of one replica: the cards (ranks) that stand there, and the stages that they hold."""

    replica: int
    place: int
    pool: str
    ranks: tuple[int, ...]
    stages: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Change:
    """What one law predicted at one place and what was measured there, in seconds of a step, and how the step is timed
    with what was measured; ``later``: seconds that come on top of it all."""

    law: Law
    where: str
    cards: tuple[int, ...]
    predicted: float
    measured: float
    replicas: frozenset[int]
    apply: Apply
    pool: str | None = None
    later: float = 0.0


@dataclass
class StepModel:
    """A costed plan on cards that stand at ``places``: what its step takes under any choice of changes."""

    plan: Plan
    setting: Setting
    cost: PlanCost
    places: Sequence[CardPlace]
    busiest: float = 1.0
    """Tokens of the busiest of the cards that share experts out over the mean, as measured."""
    uneven: PlanCost | None = None
    """The cost with tokens on experts that fall so."""
    homes: tuple[Home, ...] = ()
    groups: tuple[int, ...] = ()
    """The group of the plan's cost that each replica belongs to."""
    _known: dict[tuple[int, frozenset[int]], GroupCost] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.groups = tuple(self._groups())
        self.homes = tuple(self._homes())

    def stages(self, replica: int) -> tuple[StageCost, ...]:
        """Return the stages of a replica as they were costed."""
        return self.cost.groups[self.groups[replica]].stages

    def routed(self, replica: int) -> tuple[StageCost, ...]:
        """Return the stages of a replica with tokens on experts as they were measured to fall."""
        return (self.uneven or self.cost).groups[self.groups[replica]].stages

    def step(self, changes: Collection[Change] = ()) -> float:
        """Return the seconds of a step."""
        later = sum(change.later for change in changes)
        return max(self.group(replica, changes).step for replica in range(len(self.groups))) + later

    def pipeline(self, changes: Collection[Change] = ()) -> float:
        """Return the seconds until the last backward pass ends, the known part of waiting for each other included."""
        found = [self.group(replica, changes) for replica in range(len(self.groups))]
        return max(one.pipeline + one.tail_parts["host"] for one in found)

    def group(self, replica: int, changes: Collection[Change]) -> GroupCost:
        """Return what a replica costs under some changes."""
        mine = [change for change in changes if replica in change.replicas]
        key = (replica, frozenset(id(change) for change in mine))
        if key not in self._known:
            stages = list(self.stages(replica))
            for change in mine:
                change.apply(replica, stages)
            self._known[key] = timed_again(self.plan, self.setting, self.cost, self.groups[replica], stages)
        return self._known[key]

    def _groups(self) -> Iterator[int]:
        keys = list(groups_of(self.plan))
        for entry in self.plan.pipelines:
            for _ in range(entry.count):
                yield keys.index((entry.stages, entry.micro_batch_size))

    def _homes(self) -> Iterator[Home]:
        for replica, number in enumerate(self.groups):
            entry = list(groups_of(self.plan).values())[number][0]
            count = len(entry.stages)
            order = [entry.place_of(index, self.plan.schedule) for index in range(count)]
            apart = [[index] for index in range(count)]
            held = apart if self.plan.schedule in SIMPLE else homes_of(self.plan, count, order)
            for place, stages in enumerate(held):
                cards = [one for one in self.places if (one.pipeline, one.stage) == (replica, place)]
                yield Home(replica, place, cards[0].pool, tuple(one.rank for one in cards), tuple(stages))
