"""The plans that a run goes by, and what measuring them teaches for the next one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from zhenfa.live.learn.attribute import Predicted, attribute
from zhenfa.live.learn.feedback import Lesson, applied, lesson, with_lesson
from zhenfa.live.planned import best_plans
from zhenfa.live.roster import slow_pools
from zhenfa.live.routing import busiest_card
from zhenfa.plan import Answer
from zhenfa.plan.request import Request
from zhenfa.spec.machine import Formation, Machine
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Attribution, Run

if TYPE_CHECKING:
    from zhenfa.live.train import Measured


@dataclass
class Learner:
    """The answer that a run goes by: the first one, or the newest one made for what was left of the machine.

    ``lessons``: what the plans before the one under way have taught. ``measured``: what the cards measured with the
    plan that they took up last. ``odd``: pools of which a card turned slow, from which nothing is learned.
    ``measured_before``: whether the machine was measured before it was planned on.
    """

    request: Request
    answer: Answer
    lessons: list[Lesson] = field(default_factory=list)
    measured: Measured | None = None
    odd: set[str] = field(default_factory=set)
    measured_before: bool = False

    def learn(self, measured: Measured) -> None:
        """Take in what the cards measured with the plan under way."""
        self.measured = measured

    def anew(self, formation: Formation) -> Plan:
        """Return the best plan of the job on a machine that has changed, with all that was learned, and remember it."""
        self.odd |= slow_pools(self.request.formation, formation)
        found = self.attributed(valid=True)
        if found is not None:
            self.lessons.append(self._lesson(found))
        for taught in self.lessons:
            formation = applied(formation, taught)
        self.answer = best_plans(replace(self.request, formation=formation))
        self.measured = None
        return self.answer.best.plan

    def attributed(self, *, valid: bool) -> Attribution | None:
        """Return which law was off in the plan that was measured last; None where no step of it was timed."""
        best, measured = self.answer.best, self.measured
        if measured is None or not measured.timings.steps or best.plan != measured.plan:
            return None
        step, formation = best.estimate.figures.step_time_s, self.request.formation
        predicted = Predicted(best.plan, self.answer.setting, best.cost, step, formation)
        return attribute(
            predicted, measured.places, measured.timings, measured.step_time, valid=valid,
            busiest=busiest_card(measured.reports),
        )  # fmt: skip

    def machine(self, found: Attribution | None) -> Machine | None:
        """Return the machine's document with all that was learned, the last of it from ``found``; as it was where the
        timing of that is not valid. None where the request came without a document."""
        document = self.request.machine
        if document is None or found is None or not found.judged:
            return document
        for taught in (*self.lessons, self._lesson(found)):
            document = with_lesson(document, taught)
        return document

    def with_energy(self, run: Run) -> Run:
        """Return a run with the energy of its cards, where anything was measured of the plan that it ended with."""
        from zhenfa.live.energy import with_energy

        measured = self.measured
        if measured is None or not measured.timings.steps or self.answer.best.plan != measured.plan:
            return run
        return with_energy(run, measured, self.answer.setting, self.request.formation)

    def _lesson(self, found: Attribution) -> Lesson:
        plan = self.answer.best.plan
        stages = [one for entry in plan.pipelines for one in entry.stages]
        split = {one.pool for one in stages if one.tensor_parallel > 1 or one.expert_parallel > 1}
        emulated = self.request.formation.emulated
        return lesson(found, self.request.job.name, emulated=emulated, split=split, odd=self.odd)
