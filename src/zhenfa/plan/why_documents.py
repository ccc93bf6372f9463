"""Why a plan lost, and what its estimate rests on, as parts of the published document ``zhenfa.plans/1``."""

from __future__ import annotations

from zhenfa.plan.explain import Gap, Why
from zhenfa.spec.printed import Item, PlanData
from zhenfa.spec.result import Figures


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
    difference of the steps. ``searched``: whether the space that is searched holds it (null: not told)."""

    name: str
    layout: str
    plan: PlanData
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


def why_part(why: Why) -> WhyPart:
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
