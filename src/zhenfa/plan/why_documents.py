"""Why a plan lost, and what its estimate rests on, as parts of the published document ``zhenfa.plans/1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zhenfa.spec.fact import Tag
from zhenfa.spec.printed import Item, PlanData, ServingPlanData
from zhenfa.spec.result import Figures

if TYPE_CHECKING:
    from zhenfa.plan.beside import Gap
    from zhenfa.plan.explain import Why
    from zhenfa.plan.sensitivity import Row, Sensitivity
    from zhenfa.plan.serving.explain import ServingWhy


class GapPart(Item):
    """One number of the first plan and of the other. ``share``: the difference over the step, or over the first's own
    value; of a wall, the difference of the two shares."""

    what: str
    first: float
    other: float
    difference: float
    share: float


class DifferencePart(Item):
    """One thing in which two layouts differ, in words."""

    what: str
    first: str
    other: str


class ConstraintPart(Item):
    """What bound a plan, and the seconds of a step that it cost where they are known."""

    kind: str
    words: str
    seconds: float | None


class ChangePart(Item):
    """One thing of the plan changed and costed. ``behind_first``: in the job's objective. ``barred``: why it cannot be
    (empty if it can), ``by`` in a word."""

    what: str
    before: str
    after: str
    step_s: float | None
    behind_first: float | None
    barred: str
    by: str


class WhyPart(Item):
    """``--why``: a plan beside the first. ``problems``: why it cannot run, empty if it can. ``parts`` sum to the
    difference of the steps; of a job that serves, seconds are of a decode step, ``parts_s`` card-seconds of a request.
    ``searched``: whether the space that is searched holds it (null: not told)."""

    name: str
    layout: str
    plan: PlanData | ServingPlanData
    step_s: float | None
    first_step_s: float
    behind_first: float | None
    problems: tuple[str, ...]
    estimate: Figures | None
    parts_s: tuple[GapPart, ...]
    memory_bytes: tuple[GapPart, ...]
    figures: tuple[GapPart, ...]
    walls: tuple[GapPart, ...]
    differences: tuple[DifferencePart, ...]
    constraints: tuple[ConstraintPart, ...]
    changes: tuple[ChangePart, ...]
    searched: bool | None
    searched_words: tuple[str, ...]


def why_part(why: Why | ServingWhy) -> WhyPart:
    """Return why a plan lost as a part of a document."""
    return WhyPart(
        name=why.name, layout=why.layout, plan=why.plan.to_data(), step_s=why.step, first_step_s=why.first_step,
        behind_first=why.behind,
        problems=why.problems, estimate=None if why.estimate is None else why.estimate.figures,
        parts_s=_gaps(why.parts), memory_bytes=_gaps(why.memory), figures=_gaps(why.figures), walls=_gaps(why.walls),
        differences=tuple(
            DifferencePart(what=one.what, first=one.first, other=one.other) for one in why.differences
        ),
        constraints=tuple(
            ConstraintPart(kind=one.kind, words=one.words, seconds=one.seconds) for one in why.constraints
        ),
        changes=tuple(
            ChangePart(
                what=one.what, before=one.before, after=one.after, step_s=one.step,
                behind_first=None if one.score is None else why.behind_by(one.score), barred=one.barred, by=one.by,
            )
            for one in why.changes
        ),
        searched=why.searched.contained, searched_words=why.searched.words,
    )  # fmt: skip


def _gaps(gaps: tuple[Gap, ...]) -> tuple[GapPart, ...]:
    return tuple(
        GapPart(what=one.what, first=one.first, other=one.other, difference=one.gap, share=one.share) for one in gaps
    )


class OtherBest(Item):
    """Another plan that becomes the best with an input moved by the factor ``at``, and how much better it is there."""

    at: float
    layout: str
    better: float


class InputPart(Item):
    """One number moved: by the factors ``low`` and ``high`` (``why``). What that does to the answer, to the seconds of
    a step and to the energy of a token, as shares, at both ends; ``elasticity``: per cent of the answer for each of
    the input. ``asked``: who could tell the number (maker, measure). ``problem``: why the plan does not run at an end.
    ``best_changes`` is null where the search was not run again."""

    name: str
    value: float | None
    dimension: str
    tag: Tag
    asked: str
    low: float
    high: float
    why: str
    answer: tuple[float, float]
    step: tuple[float, float]
    energy: tuple[float, float] | None
    span: float
    elasticity: float | None
    problem: str
    best_changes: bool | None
    others: tuple[OtherBest, ...]


class SensitivityPart(Item):
    """``--sensitivity``: which input moves the answer of the first plan most, widest first. ``answer``: what is counted
    for each token, by the job's objective; ``ask_first``: the widest input that is assumed or a claim."""

    objective: str
    answer: float
    inputs: tuple[InputPart, ...]
    still: tuple[str, ...]
    ask_first: str | None


def sensitivity_part(found: Sensitivity) -> SensitivityPart:
    """Return which input moves the answer most as a part of a document."""
    first = found.ask_first
    return SensitivityPart(
        objective=found.objective, answer=found.now.answer, inputs=tuple(map(_input, found.rows)), still=found.still,
        ask_first=None if first is None else first.input.name,
    )  # fmt: skip


def _input(row: Row) -> InputPart:
    one = row.input
    return InputPart(
        name=one.name, value=one.value, dimension=one.dimension, tag=one.tag, asked=one.asked, low=one.low,
        high=one.high, why=one.why, answer=row.ends(), step=row.ends("step"),
        energy=None if row.now.energy is None else row.ends("energy"), span=row.span(), elasticity=row.elasticity,
        problem=row.low.problem or row.high.problem, best_changes=bool(row.others) if row.searched else None,
        others=tuple(OtherBest(at=other.at, layout=other.layout, better=other.better) for other in row.others),
    )  # fmt: skip
