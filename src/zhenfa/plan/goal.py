"""What a search wants: one score for each plan, smaller is better, bounds on it for plans not yet costed, and limits.

Every training search keeps and compares scores of one :class:`Goal`. That of :data:`QUICKEST` is the step time itself.
Let a plan take ``X`` seconds a step on ``n_i`` cards of pool ``i``; ``e(n)`` is its ETTR, ``u(n)`` the share of time in
which as many nodes are up as it needs (:func:`zhenfa.estimate.operating.up_share`). Both follow from the cards alone,
so that a bound on ``X`` is one on the score, as sharp as it is itself:

=========== ======================== ==================================================================
objective   score                    of
=========== ======================== ==================================================================
step        X                        seconds of a step, failures left out
throughput  X / (e u)                seconds of a step that counts, all nodes up
time        X / (e u) * T / B        seconds until ``T`` tokens are trained, ``B`` a step
cost        X sum(n_i c_i) / (e B)   CNY of a token at ``c_i`` CNY/s a card
energy      J / B                    joules of a token at the meter, lost work and waiting included
cards       n + X / (1 + X)          cards; of plans with as many the shorter step
=========== ======================== ==================================================================

Proofs of the floors, for plans with a step of at least ``X`` and exactly the cards ``n``: every score grows with ``X``.
Where replicas may leave alone, ``e`` is replaced by the most that it is for any number of them. A card draws at least
what it draws when it computes nothing (``w_i`` with its host), and all of the step is worked at least once, so that
``J >= X sum(n_i (w_i + waiting_i (1 / e - 1)))`` times PUE, or, where PUE follows the load, times its part that is
proportional, plus the fixed power over the step.

For plans with fewer replicas (at most ``n`` cards, at least ``X``): the cards together are busy for at least ``W``
seconds a step whatever the replicas, so that ``X n >= W``; ``e`` and ``u`` are replaced by their maxima over all card
counts up to ``n``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np

from zhenfa import units
from zhenfa.errors import InputError
from zhenfa.estimate.costs import PlanCost
from zhenfa.estimate.energy_wall import energy_wall, least_draw, pue_at
from zhenfa.estimate.failing import failing_cards
from zhenfa.estimate.operating import up_share
from zhenfa.estimate.report import card_price, step_parts, work_by_pool
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.survival import kept_shares, leaving, survival
from zhenfa.laws.arrays import Array
from zhenfa.plan.bounds import Floats
from zhenfa.plan.columns import alike
from zhenfa.plan.space import Bools, Ints
from zhenfa.plan.supply import is_maker, is_one
from zhenfa.spec.fact import missing
from zhenfa.spec.job import Limits, Objective
from zhenfa.spec.machine import BYTES
from zhenfa.spec.plan import Plan

Cards = Mapping[str, Array]
"""Cards that work, by pool: of one plan, or of many as arrays of one shape."""

SLACK: Final = 1e-9
"""By how much a limit may be passed before it is."""

COUNTED_AT_MOST: Final = 1 << 18
"""Cards up to which every count is looked at for the best share of time that is kept."""

MANY: Final = 1e9
"""Replicas beyond which more of them change nothing."""


@dataclass(frozen=True)
class Goal:
    """The objective of a search and what its plans must keep to: by default the shortest step, and no limit."""

    objective: Objective = "step"
    setting: Setting | None = None
    limits: Limits = field(default_factory=Limits)
    _known: dict[tuple[tuple[str, Array], ...], tuple[float, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _survived: dict[tuple[object, ...], float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, objective: Objective, setting: Setting, limits: Limits) -> Goal:
        """Return the goal of a job.

        Raises :class:`InputError` where the workload says too little for it, :class:`MissingFactError` where a price or
        a power that it needs is undisclosed.
        """
        found = cls(objective, setting, limits)
        tokens, formation = setting.workload.tokens, setting.formation
        if tokens is None and (objective == "time" or limits.deadline.known):
            what = "the objective time" if objective == "time" else "limits.deadline"
            raise InputError(
                f"{what} needs the length of the run, and the workload names no number of tokens.",
                hint="write workload.tokens, such as 14.8e12.",
            )
        if objective == "cost":
            for pool in formation.pools:
                card_price(setting, pool.name)
        if objective == "energy" or limits.power.known:
            if formation.emulated:
                raise InputError(
                    f"{formation.name} is emulated: its cards draw no power of their own.",
                    hint="plan for another objective, and leave limits.power out.",
                )
            for pool in formation.pools:
                if least_draw(pool, formation) is None:
                    raise missing(f"{pool.name}.power_per_card", "power")
        return found

    @cached_property
    def only_step(self) -> bool:
        """Return whether a score is the step time itself and nothing limits the cards, so that none need be known."""
        return self.objective == "step" and not self.bounded

    @cached_property
    def bounded(self) -> bool:
        """Return whether there is a limit beyond those that shape the search."""
        said = self.limits
        return bool(
            said.least_share or said.power.known or said.deadline.known or said.tokens_per_s.known or self._shared
        )

    @cached_property
    def unbounded(self) -> Goal:
        """Return this objective without its limits: for plans of one pool that are parts of others."""
        names = ("supply", "least_share", "power", "deadline", "tokens_per_s")
        free = {name: Limits.model_fields[name].get_default(call_default_factory=True) for name in names}
        return replace(self, limits=self.limits.model_copy(update=free))

    # what one plan is worth

    def kept(self, plan: Plan) -> float:
        """Return the share of the wall clock that counts: ETTR, times the share in which enough nodes are up."""
        return self._ettr(plan) * self._up(plan.cards_by_pool())

    def score(self, plan: Plan, cost: PlanCost) -> float:
        """Return the score of a plan that is costed: smaller is better."""
        step = cost.step
        if self.objective == "step" or self.setting is None:
            return step
        if self.objective == "cards":
            return plan.cards + step / (1.0 + step)
        if self.objective == "energy":
            return _joules(plan, self.setting, cost)
        ettr = self._ettr(plan)
        if self.objective == "cost":
            price = sum(count * card_price(self.setting, pool) for pool, count in plan.cards_by_pool().items())
            return step * price / ettr / self._tokens
        counted = step / self.kept(plan)
        return counted * self._steps if self.objective == "time" else counted

    def refusal(self, plan: Plan, cost: PlanCost) -> str:
        """Return why a plan that is costed is not allowed; empty where it is."""
        if not self.bounded or self.setting is None:
            return ""
        cards = plan.cards_by_pool()
        for reason, barred in self.barred(np.asarray(cost.step), cards):
            if barred:
                return reason
        if self._needed is not None and cost.step > self._needed * self.kept(plan) * (1 + SLACK):
            return self._late
        cap = self.limits.power.value
        if cap is not None and power_of(plan, self.setting, cost) > cap * (1 + SLACK):
            return self._hot
        if self.limits.least_share:
            work = work_by_pool(plan, self.setting, cost)
            for maker, least in self.limits.least_share.items():
                share = sum(part for pool, part in work.items() if is_maker(self.setting.formation.pool(pool), maker))
                if share < (least.value or 0.0) - SLACK:
                    return _too_little(maker, least.value)
        return ""

    # bounds on plans that are not costed

    def barred(self, step: Floats, cards: Cards) -> Iterator[tuple[str, Bools]]:
        """Yield each limit, in words, with which of the plans that have at least these steps and exactly these cards
        surely break it."""
        if not self.bounded or self.setting is None:
            return
        there = [self.setting.formation.pool(pool) for pool in cards]
        shape = np.broadcast_shapes(np.shape(step), *(np.shape(count) for count in cards.values()))
        for names, most in self._shared:
            count = sum(one for pool, one in zip(there, cards.values(), strict=True) if is_one(pool, [names]))
            yield _beyond(names, most), np.broadcast_to(np.greater(count, most), shape)
        for maker, least in self.limits.least_share.items():
            if least.value and not any(is_maker(pool, maker) for pool in there):
                yield _too_little(maker, least.value), np.ones(shape, dtype=bool)
        if self._needed is not None:
            allowed = self._needed * self._most_kept(cards) * (1 + SLACK)
            yield self._late, np.broadcast_to(step > allowed, shape)
        cap = self.limits.power.value
        if cap is not None:
            power = sum(count * self._watts[pool][0] for pool, count in cards.items())
            ratio = pue_at_least(self.setting, np.asarray(power, float))
            yield self._hot, np.broadcast_to(power * ratio > cap * (1 + SLACK), shape)

    def floor(self, step: Floats, cards: Cards) -> Floats:
        """Return scores that no plan with at least these steps and exactly these cards can beat: infinite where none
        keeps the limits."""
        found = self.floor_without_limits(step, cards)
        for _, barred in self.barred(step, cards):
            found = np.where(barred, np.inf, found)
        return found

    def floor_without_limits(self, step: Floats, cards: Cards) -> Floats:
        """Return scores that no plan with at least these steps and these cards can beat, limits aside."""
        return self._score_of(step, cards, None)

    def floor_of_fewer(self, step: Floats, cards: Cards, busy: Cards) -> Floats:
        """Return scores that no plan with at least these steps, and at most these cards, can beat: infinite where none
        keeps the limits. ``busy``: seconds a step that the cards of each pool would be busy in all, did they all of the
        work; what pools share is at least the least of them."""
        if self.setting is None:
            return step
        found = self._score_of(step, cards, busy)
        if self._needed is not None:
            found = np.where(step > self._needed * self._best_kept(cards, both=True) * (1 + SLACK), np.inf, found)
        return found

    def step_within(self, score: float, cards: Cards) -> float:
        """Return the step from which on no plan with these cards has a smaller score or keeps the limits."""
        if self.only_step or self.setting is None:
            return score
        longest = np.inf
        if self._needed is not None:
            longest = float(self._needed * self._most_kept(cards) * (1 + 2 * SLACK))
        if not np.isfinite(score):
            return longest
        if self.objective == "cards":
            part = score - sum(float(count) for count in cards.values())
            within = 0.0 if part <= 0 else part / (1.0 - part) if part < 1 else np.inf
        else:
            within = score / max(float(self._score_of(np.ones(()), cards, None)), 1e-300)
        return min(longest, within * (1 + SLACK))

    def step_within_any(self, score: float) -> float:
        """Return the step from which on no plan at all has a smaller score."""
        if self.objective in ("step", "throughput") or self.setting is None:
            return score
        if self.objective == "time":
            return score / self._steps
        if self.objective == "cards":
            return np.inf if self._needed is None else self._needed * (1 + SLACK)
        pools = [pool.name for pool in self.setting.formation.pools]
        if self.objective == "cost":
            least = min(card_price(self.setting, pool) for pool in pools)
        else:
            least = min(self._watts[pool][0] for pool in pools) * self._pue[0]
        return score * self._tokens / max(least * self._least_cards, 1e-300)

    @cached_property
    def _least_cards(self) -> float:
        """Return cards that every plan has: together they hold the weights in two bytes or less each."""
        assert self.setting is not None  # noqa: S101
        usable = max(chip.usable for chip in self.setting.chips.values())
        each = min(2.0, *(BYTES[one] for one in self.setting.workload.precisions))
        return max(self.setting.graph.parameters * each / usable, 1.0)

    def _score_of(self, step: Floats, cards: Cards, busy: Cards | None) -> Floats:
        """Return the score of a step on these cards or, with ``busy``, the least on as many or fewer."""
        if self.setting is None or self.objective == "step":
            return step
        if self.objective == "cards":
            count = sum(cards.values()) if busy is None else self._fewest(busy)
            return np.asarray(count + step / (1.0 + step))
        if self.objective in ("throughput", "time"):
            kept = self._most_kept(cards) if busy is None else self._best_kept(cards, both=True)
            with np.errstate(divide="ignore"):
                counted: Floats = step / kept
            return counted * self._steps if self.objective == "time" else counted
        work = self._most_work(cards) if busy is None else self._best_kept(cards, both=False)
        if self.objective == "cost":
            each = {pool: card_price(self.setting, pool) / work for pool in cards}
        else:
            each = {pool: self._watts[pool][0] + self._watts[pool][1] * (1.0 / work - 1.0) for pool in cards}
        if busy is None:
            spent = step * sum(count * each[pool] for pool, count in cards.items())
        else:
            spent = np.min(np.broadcast_arrays(*(busy[pool] * each[pool] for pool in cards)), axis=0)
        if self.objective == "energy":
            spent = spent * self._pue[0] + step * self._pue[1]
        return np.asarray(spent / self._tokens)

    def _fewest(self, busy: Cards) -> Array:
        """Return the fewest cards that are busy for so long in the longest step allowed."""
        if self._needed is None:
            return 1.0
        least: Floats = np.min(np.broadcast_arrays(*busy.values()), axis=0)
        return np.maximum(np.ceil(least / self._needed * (1 - 1e-6)), 1.0)

    # the parts that follow from the cards alone

    @cached_property
    def _tokens(self) -> float:
        assert self.setting is not None  # noqa: S101
        return float(self.setting.workload.global_batch * self.setting.workload.sequence_length)

    @cached_property
    def _steps(self) -> float:
        """Return the steps of the whole run; 1 where its length is not known."""
        tokens = None if self.setting is None else self.setting.workload.tokens
        return 1.0 if tokens is None else tokens / self._tokens

    @cached_property
    def _needed(self) -> float | None:
        """Return the longest step that counts, failures included, with which deadline and throughput are kept."""
        paces = [self.limits.tokens_per_s.value]
        if self.limits.deadline.value and self.setting is not None and self.setting.workload.tokens:
            paces.append(self.setting.workload.tokens / self.limits.deadline.value)
        wanted = max((pace for pace in paces if pace), default=None)
        return None if wanted is None else self._tokens / wanted

    @property
    def _late(self) -> str:
        asked = [
            f"limits.{name} of {getattr(self.limits, name).show()}"
            for name in ("deadline", "tokens_per_s")
            if getattr(self.limits, name).known
        ]
        return f"too slow for {' or '.join(asked)}"

    @property
    def _hot(self) -> str:
        return f"drawing more than limits.power of {self.limits.power.show()}"

    @cached_property
    def _shared(self) -> list[tuple[str, int]]:
        """Return the supplies that several pools share."""
        pools = () if self.setting is None else self.setting.formation.pools
        return [
            (name, most) for name, most in self.limits.supply.items() if sum(is_one(pool, [name]) for pool in pools) > 1
        ]

    @cached_property
    def _watts(self) -> dict[str, tuple[float, float]]:
        """Return what a card of each pool and its share of the host draw at least, busy and waiting."""
        assert self.setting is not None  # noqa: S101
        formation = self.setting.formation
        found = {pool.name: least_draw(pool, formation) for pool in formation.pools}
        return {name: (one.busy, one.waiting) for name, one in found.items() if one is not None}

    @cached_property
    def _pue(self) -> tuple[float, float]:
        """Return PUE, or its part in proportion to the load and the fixed power where it follows the load."""
        assert self.setting is not None  # noqa: S101
        facility = self.setting.formation.facility
        if not facility.known:
            return self.setting.formation.pue.value or 1.0, 0.0
        power = facility.design_power.require("facility.design_power") * facility.fixed.require("facility.fixed")
        return 1.0 + facility.proportional.require("facility.proportional"), power

    def _ettr(self, plan: Plan) -> float:
        assert self.setting is not None  # noqa: S101
        if self.setting.formation.emulated:
            return 1.0
        alone = leaving(plan) if self.setting.recovery.elastic else 0
        key = (*plan.cards_by_pool().items(), plan.precision, plan.trainable, plan.lora_rank, alone)
        if key not in self._survived:
            self._survived[key] = survival(plan, self.setting).ettr
        return self._survived[key]

    def _up(self, cards: Cards) -> float:
        return float(self._looked_up(cards)[1])

    def _most_work(self, cards: Cards) -> Array:
        """Return the highest ETTR on these cards."""
        return self._looked_up(cards)[0]

    def _most_kept(self, cards: Cards) -> Array:
        """Return the highest share of the wall clock that counts on these cards."""
        work, up = self._looked_up(cards)
        return work * up

    def _looked_up(self, cards: Cards) -> tuple[Array, Array]:
        """Return ETTR and the share of time in which enough nodes are up, each distinct count looked at once."""
        assert self.setting is not None  # noqa: S101
        if self.setting.formation.emulated:
            return 1.0, 1.0
        if all(isinstance(one, int) for one in cards.values()):
            known = tuple(cards.items())
            if known not in self._known:
                self._known[known] = tuple(float(one) for one in kept(self.setting, cards))
            return self._known[known][0], self._known[known][1]
        counts = np.broadcast_arrays(*(np.asarray(one, dtype=np.int64) for one in cards.values()))
        first, back = alike([one.ravel() for one in counts])
        kinds = {pool: one.ravel()[first] for pool, one in zip(cards, counts, strict=True)}
        work, up = self._of_kinds(kinds)
        return work[back].reshape(counts[0].shape), up[back].reshape(counts[0].shape)

    def _of_kinds(self, kinds: Mapping[str, Ints]) -> tuple[Floats, Floats]:
        """Return the same for counts that are all different."""
        assert self.setting is not None  # noqa: S101
        keys = [tuple(zip(kinds, row, strict=True)) for row in np.stack([*kinds.values()], axis=1).tolist()]
        fresh = [number for number, key in enumerate(keys) if key not in self._known]
        if fresh:
            work, up = kept(self.setting, {pool: counts[fresh] for pool, counts in kinds.items()})
            for number, *shares in zip(fresh, work.tolist(), up.tolist(), strict=True):
                self._known[keys[number]] = tuple(shares)
        found = np.array([self._known[key] for key in keys], dtype=float).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def _best_kept(self, cards: Cards, *, both: bool) -> Array:
        """Return the highest share of time that is work (and, with ``both``, up) on as many cards or fewer."""
        assert self.setting is not None  # noqa: S101
        if self.setting.formation.emulated or len(cards) > 1:
            return 1.0
        ((pool, count),) = cards.items()
        if self.setting.formation.pool(pool).count > COUNTED_AT_MOST:
            return 1.0
        found: Array = self._best[pool][int(both)][np.asarray(count, dtype=np.int64)]
        return found

    @cached_property
    def _best(self) -> dict[str, tuple[Floats, Floats]]:
        """Return, for each pool, the highest share of work and of kept time on up to so many cards."""
        assert self.setting is not None  # noqa: S101
        found = {}
        for pool in self.setting.formation.pools:
            if pool.count <= COUNTED_AT_MOST:
                work, up = kept(self.setting, {pool.name: np.arange(1, pool.count + 1)})
                most = [np.maximum.accumulate(np.concatenate([[0.0], part])) for part in (work, work * up)]
                found[pool.name] = (most[0], most[1])
        return found


QUICKEST: Final = Goal()


def kept(setting: Setting, cards: Cards) -> tuple[Floats, Floats]:
    """Return the ETTR, the most that it is for any number of replicas, and the share of time with enough nodes up."""
    work = np.asarray(kept_shares(cards, setting)["work"])
    if setting.recovery.elastic:
        work = np.maximum(work, kept_shares(cards, setting, MANY)["work"])
    return work, np.asarray(up_share(cards, setting, failing_cards(cards, setting)))


def _joules(plan: Plan, setting: Setting, cost: PlanCost) -> float:
    found = energy_wall(plan, setting, cost, step_parts(cost.worst), survival(plan, setting)).figure.value
    assert found is not None  # noqa: S101
    return found


def power_of(plan: Plan, setting: Setting, cost: PlanCost) -> float:
    """Return what a plan draws at the meter while its cards work."""
    found = energy_wall(plan, setting, cost, step_parts(cost.worst), survival(plan, setting)).facility.value
    assert found is not None  # noqa: S101
    return found


def pue_at_least(setting: Setting, power: Floats) -> Array:
    """Return the PUE at these powers of the equipment, in W."""
    if not setting.formation.facility.known:
        return setting.formation.pue.value or 1.0
    return np.array([pue_at(setting.formation, float(one)).value for one in np.ravel(power)]).reshape(np.shape(power))


def _beyond(name: str, most: int) -> str:
    return f"taking more than limits.supply of {most:,} {name} cards"


def _too_little(maker: str, least: float | None) -> str:
    return f"giving {maker} less than limits.least_share of {units.show(least, 'ratio')}"
