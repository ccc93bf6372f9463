"""What a search wants: one score for each plan, smaller is better, and bounds on it for plans not yet costed.

Every training search keeps and compares scores of one :class:`Goal`. That of :data:`QUICKEST` is the step time itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zhenfa.estimate.training import PlanCost
from zhenfa.laws.arrays import Array
from zhenfa.plan.bounds import Floats
from zhenfa.spec.plan import Plan

Cards = Mapping[str, Array]
"""Cards that work, by pool: of one plan, or of many as arrays of one shape."""


@dataclass(frozen=True)
class Goal:
    """The objective of a search and what its plans must keep to."""

    @property
    def only_step(self) -> bool:
        """Return whether a score is the step time itself, so that no cards need to be known."""
        return True

    def score(self, plan: Plan, cost: PlanCost) -> float:
        """Return the score of a plan that is costed: smaller is better."""
        return cost.step

    def refusal(self, plan: Plan, cost: PlanCost) -> str:
        """Return why a plan that is costed is not allowed; empty where it is."""
        return ""

    def floor(self, step: Floats, cards: Cards) -> Floats:
        """Return scores that no plan with at least these steps and exactly these cards can beat."""
        return step

    def floor_of_fewer(self, step: Floats, cards: Cards, busy: Floats) -> Floats:
        """Return scores that no plan with at least these steps, at most these cards of one pool, and at least ``busy``
        seconds of work added over its cards can beat."""
        return step

    def step_within(self, score: float, cards: Cards) -> float:
        """Return the step from which on no plan with these cards has a smaller score."""
        return score

    def step_within_any(self, score: float) -> float:
        """Return the step from which on no plan at all has a smaller score."""
        return score


QUICKEST = Goal()
