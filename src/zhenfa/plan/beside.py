"""A plan laid beside the first: what differs, what bound it, and single changes; for plans that train or serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

P = TypeVar("P")
"""A plan."""

C = TypeVar("C")
"""What a plan costs, or takes."""

E = TypeVar("E")
"""The estimate of a plan."""


@dataclass(frozen=True)
class Difference:
    """One thing that differs between the first plan and another: as text, or as numbers of a unit."""

    what: str
    first: str
    other: str


@dataclass(frozen=True)
class Gap:
    """One number of the first plan and of another, and its share of the first plan's whole (step, or memory)."""

    what: str
    first: float
    other: float
    share: float

    @property
    def gap(self) -> float:
        """Return how much more the other has."""
        return self.other - self.first


@dataclass(frozen=True)
class Constraint:
    """What bound a plan: in a word, in a sentence, and the seconds of a step that it costs where they are known."""

    kind: str
    words: str
    seconds: float | None = None


@dataclass(frozen=True)
class Searched:
    """Whether a plan lies in the searched space (None: not told, of mixed pipelines), and words that say more."""

    contained: bool | None
    words: tuple[str, ...]


@dataclass(frozen=True)
class SingleChange(Generic[P, C]):
    """A plan with one thing changed, and what it then costs or takes. ``barred``: why it cannot be (empty if it can);
    ``by``: what bars it, in a word (memory, limits, cards, micro-batches, bandwidth, targets, load, shape)."""

    what: str
    before: str
    after: str
    plan: P | None = None
    cost: C | None = None
    barred: str = ""
    by: str = ""
    score: float | None = None
    """What it is worth in the job's objective: smaller is better."""

    @property
    def step(self) -> float | None:
        """Return the seconds of a step, where they can be told."""
        found: float | None = getattr(self.cost, "step", None)
        return found

    @property
    def words(self) -> str:
        """Return the change in words."""
        return f"{self.what}: {self.after} instead of {self.before}" if self.before else self.what


@dataclass(frozen=True)
class Beside(Generic[P, E, C]):
    """A plan beside the first. ``problems``: why it cannot run (empty if it can). ``parts`` sum to the gap of the two:
    seconds of a step, or, of plans that serve, card-seconds of a request (``step`` is then a decode step)."""

    name: str
    layout: str
    first_layout: str
    plan: P
    estimate: E | None
    step: float | None
    first_step: float
    score: float | None
    first_score: float
    problems: tuple[str, ...]
    parts: tuple[Gap, ...]
    memory: tuple[Gap, ...]
    figures: tuple[Gap, ...]
    walls: tuple[Gap, ...]
    differences: tuple[Difference, ...]
    constraints: tuple[Constraint, ...]
    changes: tuple[SingleChange[P, C], ...]
    searched: Searched

    @property
    def possible(self) -> tuple[SingleChange[P, C], ...]:
        """Return the changes that can be, the best first."""
        return tuple(one for one in self.changes if not one.barred)

    @property
    def nearest(self) -> SingleChange[P, C] | None:
        """Return the single change that brings the plan nearest to the first; None where none makes it better."""
        best = next(iter(self.possible), None)
        if best is None or best.score is None:
            return None
        worse = self.problems or self.score is None or best.score < self.score * (1 - 1e-6)
        return best if worse else None

    @property
    def behind(self) -> float | None:
        """Return how much worse than the first plan it is in the job's objective, as a share; None if not known."""
        return None if self.score is None else self.behind_by(self.score)

    def behind_by(self, score: float) -> float:
        """Return how much worse than that of the first plan a score is, as a share."""
        return score / self.first_score - 1

    @property
    def longer(self) -> float | None:
        """Return how much longer than that of the first plan the step is, as a share."""
        return None if self.step is None else self.step / self.first_step - 1
