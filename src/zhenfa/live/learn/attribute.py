"""Which law makes a measured step differ from the predicted one.

Predicted seconds are replaced by measured ones, law by law and place by place, in the very composition that predicted
the step; what the step changes by is what that law being off adds to it. Where several laws are off the order of
replacing matters, so it is done there and back and the mean taken: the parts then add up whatever the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zhenfa import units
from zhenfa.estimate.costs import PlanCost
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost
from zhenfa.live.learn.changes import cards_in_words, changes_of
from zhenfa.live.learn.model import Change, StepModel
from zhenfa.live.learn.timings import Timings
from zhenfa.live.placement import CardPlace
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Attribution, Figure, LawRow

EMULATED: Final = 1.1
"""A step on emulated cards is as declared, within what the host's lateness makes of it: the measured step was 5.6 %
from the predicted one at most over thirty random plans (``benchmarks/live_plans.py``)."""
ON_CARDS: Final = frozenset({"compute", "optimizer"})
"""Laws that are a card's own."""
LEAST: Final = 0.1
"""Share of the step's difference that a law must make up to be named."""


@dataclass(frozen=True)
class Predicted:
    """What was predicted of a plan: its cost in a setting, the step's figure with its band, and the machine's pools."""

    plan: Plan
    setting: Setting
    cost: PlanCost
    step: Figure
    formation: Formation


def attribute(
    predicted: Predicted, places: Sequence[CardPlace], timings: Timings, measured_s: float, *, valid: bool,
    busiest: float | None = None,
) -> Attribution:  # fmt: skip
    """Return what each law predicted beside what was measured of it, and which of them make the step differ.

    ``timings`` of the cards that stand at ``places``, ``measured_s`` the mean seconds of the steps that were timed;
    ``valid``: whether that timing is good for a verdict; ``busiest``: tokens of the busiest of the cards that share
    experts out over the mean, where that was measured.
    """
    uneven = None
    if busiest is not None:
        uneven = cost(predicted.plan.model_copy(update={"expert_imbalance": busiest}), predicted.setting)
    model = StepModel(predicted.plan, predicted.setting, predicted.cost, places, busiest or 1.0, uneven)
    changes = changes_of(model, timings, predicted.formation)
    effects = _effects(model, changes)
    low, high, band = _band(predicted)
    rows = [_row(change, effect, low, high) for change, effect in zip(changes, effects, strict=True)]
    ends, expected = timings.pipeline / max(timings.steps, 1), model.pipeline(changes)
    schedule = Change("schedule", predicted.plan.schedule, (), expected, ends, frozenset(), lambda *_: None)
    rows.append(_row(schedule, ends - expected, low, high))
    before = predicted.cost.step
    off = not low <= measured_s / before <= high
    difference = measured_s - before
    if off and valid:
        rows = [row.model_copy(update={"named": _to_blame(row, difference)}) for row in rows]
    wrong = _sentences(rows)
    return Attribution(
        predicted_step_s=before, measured_step_s=measured_s, low=low, high=high, band=band, steps=timings.steps,
        off=off, judged=valid, rows=tuple(rows), remainder_s=difference - sum(row.effect_s for row in rows),
        verdict=_verdict(measured_s / before, off, valid, bool(wrong), band), wrong=wrong,
    )  # fmt: skip


def _effects(model: StepModel, changes: Sequence[Change]) -> list[float]:
    """Return what each change adds to the step: the mean over replacing one after the other, there and back."""
    found = dict.fromkeys(range(len(changes)), 0.0)
    for order in (range(len(changes)), range(len(changes) - 1, -1, -1)):
        taken: list[Change] = []
        before = model.step()
        for index in order:
            taken.append(changes[index])
            after = model.step(taken)
            found[index] += (after - before) / 2
            before = after
    return list(found.values())


def _band(predicted: Predicted) -> tuple[float, float, str]:
    step = predicted.step
    if step.value and step.p10 is not None and step.p90 is not None:
        return step.p10 / step.value, step.p90 / step.value, "p10 to p90 of the estimate"
    return 1 / EMULATED, EMULATED, "emulated cards are as fast as declared, within 10 %"


def _row(change: Change, effect: float, low: float, high: float) -> LawRow:
    ratio = change.measured / change.predicted if change.predicted > 0 else None
    return LawRow(
        law=change.law, where=change.where, pool=change.pool, cards=change.cards, predicted_s=change.predicted,
        measured_s=change.measured, ratio=ratio, within=None if ratio is None else low <= ratio <= high,
        effect_s=effect,
    )  # fmt: skip


def _to_blame(row: LawRow, difference: float) -> bool:
    """Return whether a law out of its band makes up a good part of the step's difference; any that was not predicted
    at all is out of it."""
    return row.within is not True and row.effect_s / difference >= LEAST


def _sentences(rows: Sequence[LawRow]) -> tuple[str, ...]:
    """Say which laws are wrong, the one that matters most first; all cards of a pool together where all are named."""
    together: dict[tuple[str, str], list[LawRow]] = {}
    for row in rows:
        if row.named:
            whole = row.law in ON_CARDS and row.pool is not None and all(one.named for one in rows if _same(one, row))
            together.setdefault((row.law, f"pool {row.pool}" if whole else row.where), []).append(row)
    found = sorted(together.items(), key=lambda item: -abs(sum(row.effect_s for row in item[1])))
    return tuple(_sentence(law, where, mine) for (law, where), mine in found)


def _same(one: LawRow, other: LawRow) -> bool:
    return (one.law, one.pool) == (other.law, other.pool)


def _sentence(law: str, where: str, rows: Sequence[LawRow]) -> str:
    before, after = sum(row.predicted_s for row in rows), sum(row.measured_s for row in rows)
    effect = sum(row.effect_s for row in rows)
    cards = "" if len(rows) == 1 else f" ({cards_in_words([card for row in rows for card in row.cards])})"
    times = f", {after / before:.3g} times as long" if before else ""
    adds = f"it {'adds' if effect > 0 else 'takes'} {units.show(abs(effect), 'time')} {'to' if effect > 0 else 'off'}"
    return (
        f"{law}, {where}{cards}: predicted {units.show(before, 'time')} a step, measured {units.show(after, 'time')}"
        f"{times}; {adds} the step"
    )


def _verdict(ratio: float, off: bool, valid: bool, named: bool, band: str) -> str:
    said = f"the step took {ratio:.3g} times as long as predicted"
    if not valid:
        return f"{said}; not judged, because the timing is not valid"
    if not off:
        return f"{said}, within the band ({band})"
    return f"{said}, outside the band ({band})" + ("" if named else "; no single law is off by more")
