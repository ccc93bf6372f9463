"""How many cards of one kind replace those of another for one job, at the same throughput and the same targets.

The job is planned on the machine that is there; then the least number of the other cards is looked for whose best plan
reaches the same tokens/s (:mod:`zhenfa.plan.counting`). Lower and upper count do the same for the ends of the band of
the ratio of both throughputs, in which the bands of both sides are joined.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from zhenfa.errors import InfeasibleError, MissingFactError, UnknownNameError
from zhenfa.estimate import bands
from zhenfa.estimate.bands import Band
from zhenfa.plan import merit
from zhenfa.plan.asked import read_assumptions, read_job
from zhenfa.plan.best_plan import LOST, BestPlan
from zhenfa.plan.compare import Contender, Entry, plan_one, sized
from zhenfa.plan.counting import Counts, rate_of
from zhenfa.plan.request import Request, find_machine, make_request
from zhenfa.plan.shape import Shape, find_shape
from zhenfa.spec.job import Job, Limits
from zhenfa.spec.machine import Machine
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Figure
from zhenfa.spec.serving import ServingWorkload

Progress = Callable[[int, int], None]

WALL_OF: Final = {
    "arithmetic at peak": "compute", "below peak": "compute", "recomputation": "compute", "bubble": "compute",
    "waiting": "compute", "optimizer": "compute", "kernels": "compute", "engine": "compute", "tensor": "communication",
    "expert": "communication", "context": "communication", "pipeline": "communication", "bridge": "communication",
    "data": "communication", "reduction": "communication", "experts": "communication", LOST: "reliability",
}  # fmt: skip
"""The wall of each part of a step; of parts of one group of instances, that of the part."""


@dataclass(frozen=True)
class Asked:
    """What is to be replaced by what."""

    job: Job
    machine: Machine
    to: str
    cards: int | None = None
    shape: str | None = None
    step: int | None = None
    assume: Mapping[str, str | float] | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Swap:
    """The answer. ``old`` is what is there; ``new`` the fewest cards that reach its throughput; ``whole`` the fewest
    whole systems that do, where those are more cards than ``new`` has (None: as many, or none does)."""

    job: Job
    old: Entry
    new: Entry
    shape: Shape
    lower: int | None
    upper: int | None
    whole: Entry | None
    counts: Counts
    trust: tuple[float, float] | None
    seconds: float

    @property
    def cards(self) -> int:
        """Return the cards that replace the old ones."""
        return cards_of(self.new)

    @property
    def systems(self) -> tuple[int, int]:
        """Return the whole systems that hold the new cards and still reach the throughput, and their cards."""
        cards = cards_of(self.whole) if self.whole is not None else self.cards
        return self.shape.systems(cards), cards

    @property
    def replaced(self) -> int:
        """Return the cards that work in the old plan: any more are idle there too."""
        return self.old.best.plan.cards if self.old.best else 0

    @property
    def ratio(self) -> float:
        """Return new cards for each old one."""
        return self.cards / self.replaced

    @property
    def ratio_lower(self) -> float | None:
        """Return new cards for each old one at the lower count."""
        return None if self.lower is None else self.lower / self.replaced

    @property
    def ratio_upper(self) -> float | None:
        """Return new cards for each old one at the upper count."""
        return None if self.upper is None else self.upper / self.replaced

    @cached_property
    def spent(self) -> dict[str, tuple[float, float]]:
        """Return the card-seconds that a million useful tokens take, by part, of the old and the new cards."""
        old, new = card_seconds(self.old), card_seconds(self.new)
        return {part: (old.get(part, 0.0), new.get(part, 0.0)) for part in {**old, **new}}

    @cached_property
    def walls(self) -> dict[str, tuple[float, float]]:
        """Return the same by wall."""
        found: dict[str, tuple[float, float]] = {}
        for part, (old, new) in self.spent.items():
            wall = wall_of(part)
            known = found.get(wall, (0.0, 0.0))
            found[wall] = known[0] + old, known[1] + new
        return found

    def parts_of(self, wall: str) -> list[str]:
        """Return the parts of the step that belong to a wall."""
        return [part for part in self.spent if wall_of(part) == wall]

    @property
    def decided_by(self) -> tuple[str, str]:
        """Return the wall, and the part of it, that make the most of the difference between the two sides."""
        wall = max(self.walls, key=lambda name: abs(self.walls[name][1] - self.walls[name][0]))
        sign = 1.0 if self.walls[wall][1] >= self.walls[wall][0] else -1.0
        return wall, max(self.parts_of(wall), key=lambda part: sign * (self.spent[part][1] - self.spent[part][0]))


def wall_of(part: str) -> str:
    """Return the wall that a part of a step belongs to.

    >>> wall_of("prefill: experts")
    'communication'
    """
    return WALL_OF.get(part.rpartition(": ")[2], "compute")


def cards_of(entry: Entry) -> int:
    """Return the cards that a machine has."""
    return entry.formation.cards if entry.formation else 0


def card_seconds(entry: Entry) -> dict[str, float]:
    """Return the card-seconds that a million useful tokens take, by part of the busiest stage's step, and lost."""
    if entry.best is None:
        return {}
    rate = merit.useful(entry.best).value or float("nan")
    return {part: 1e6 * share * entry.best.plan.cards / rate for part, share in entry.best.shares.items()}


def trusted(old: Entry, new: Entry) -> tuple[float, float] | None:
    """Return how far the ratio of new to old throughput may be off, as two factors; None where no band is known.

    The bands of both sides are joined as those of errors that have nothing to do with each other. Where both sides have
    the same cards their errors are the same, and the factors are 1.
    """
    if old.formation and new.formation:
        mine, others = ({pool.accelerator.id for pool in one.formation.pools} for one in (old, new) if one.formation)
        if mine == others:
            return 1.0, 1.0
    ends = [_relative(entry) for entry in (old, new)]
    if ends[0] is None or ends[1] is None:
        return None
    (old_low, old_high), (new_low, new_high) = ends[0], ends[1]
    both = bands.joined(
        Band("old, turned", 1.0 / old_high, 1.0 / old_low, 0, 0.8), Band("new", new_low, new_high, 0, 0.8)
    )
    return None if both is None else (both.low, both.high)


def _relative(entry: Entry) -> tuple[float, float] | None:
    rate = entry.best.figures.tokens_per_s if entry.best else Figure()
    if not rate.value or rate.p10 is None or rate.p90 is None:
        return None
    return rate.p10 / rate.value, rate.p90 / rate.value


def read_swap(
    path: str, machine: str, to: str, *, cards: int | None = None, shape: str | None = None, step: int | None = None,
    assume: Sequence[str] = (), settings: Sequence[str] = (),
) -> Asked:  # fmt: skip
    """Read a job file and say what is to be replaced by what. Raises what reading them raises."""
    return Asked(
        read_job(path, settings), find_machine(machine), to, cards, shape, step, read_assumptions(assume),
        Path(path).resolve().parent,
    )  # fmt: skip


def swap(asked: Asked, progress: Progress | None = None) -> Swap:
    """Return how many of the wanted cards replace those of a machine for a job.

    Raises :class:`InfeasibleError` if the job does not fit the machine, or no number of the wanted cards reaches it;
    :class:`MissingFactError` if either side needs an undisclosed value.
    """
    begun = time.perf_counter()
    machine = asked.machine if asked.cards is None else sized(asked.machine, asked.cards)
    like = machine.pools[0].system if len(machine.pools) == 1 else None
    shape = find_shape(asked.to, shape=asked.shape, step=asked.step, like=like and _system(like))
    assume = _Assumed(asked, machine, shape)
    old_job, new_job = _jobs(asked.job)
    old = _needed(plan_one(Contender(machine.name, machine.title or machine.name, assume.request(machine, old_job))))
    told = progress or (lambda done, total: None)

    def plan(count: int) -> Entry:
        told(len(counts.points), len(counts.points) + 8)
        wanted = shape.of(count)
        return plan_one(Contender(shape.name, wanted.title or wanted.name, assume.request(wanted, new_job)))

    counts = Counts(plan, shape.step, shape.most)
    target = rate_of(old)
    found = counts.least(target, cards_of(old))
    if found is None:
        raise _out_of_reach(asked, old, shape, counts)
    new = counts.entry(found // shape.step)
    trust = trusted(old, new)
    lower = counts.least(target / trust[1], found) if trust else None
    upper = counts.least(target / trust[0], found) if trust else None
    whole = _whole(shape, found, target, plan)
    return Swap(asked.job, old, new, shape, lower, upper, whole, counts, trust, time.perf_counter() - begun)


def _jobs(job: Job) -> tuple[Job, Job]:
    """Return the job as each side plans it: for the shortest step, so that throughput is what can be had.

    Limits of which cards, how many and how soon say nothing about the new ones; those of a layout, of memory and of
    power hold on both sides. Spares are counted on neither. Where requests per second are given, the new cards are
    asked for the most that they can take, so that every number of them has an answer.
    """
    nothing = Limits()
    old = {"spares": nothing.spares}
    which = ("max_cards", "makers", "refuse", "supply", "least_share", "deadline", "tokens_per_s")
    new = {**old, **{name: getattr(nothing, name) for name in which}}
    here, there = (
        job.model_copy(update={"objective": "step", "limits": job.limits.model_copy(update=changed)})
        for changed in (old, new)
    )
    if isinstance(job.workload, ServingWorkload) and job.workload.request_rate is not None:
        most = job.workload.model_copy(update={"request_rate": None})
        there = there.model_copy(update={"workload": most})
    return here, there


def _system(name: str) -> str:
    from zhenfa import catalog

    return catalog.system(name).id


@dataclass(frozen=True)
class _Assumed:
    """Assumptions shared out over both sides: each takes those that it knows."""

    asked: Asked
    old: Machine
    shape: Shape

    def request(self, machine: Machine, job: Job) -> Request:
        """Return the job on a machine of either side."""
        job = job.model_copy(update={"machine": machine, "assume": {}})
        mine = {name: value for name, value in self._all.items() if self._knows(machine, name, value)}
        return make_request(job, folder=self.asked.folder, assume=mine)

    @property
    def _all(self) -> dict[str, str | float]:
        return {**self.asked.job.assume, **(self.asked.assume or {})}

    def _knows(self, machine: Machine, name: str, value: str | float) -> bool:
        other = self.shape.machine if machine.pools == self.old.pools else self.old
        try:
            self._try(machine, name, value)
        except UnknownNameError:
            self._try(other, name, value)
            return False
        return True

    def _try(self, machine: Machine, name: str, value: str | float) -> None:
        job = self.asked.job.model_copy(update={"machine": machine, "assume": {}})
        try:
            make_request(job, folder=self.asked.folder, assume={name: value})
        except MissingFactError:
            return


def _needed(entry: Entry) -> Entry:
    """Return an entry that has a plan; raise its reason where it has none."""
    if entry.problem is not None:
        kind = MissingFactError if entry.problem.kind == "missing fact" else InfeasibleError
        raise kind(entry.problem.message, hint=entry.problem.hint)
    return entry


def _whole(shape: Shape, found: int, target: float, plan: Callable[[int], Entry]) -> Entry | None:
    """Return the fewest whole systems from ``found`` cards on that reach the target, of the first few."""
    if found % shape.whole == 0:
        return None
    first = shape.systems(found)
    for systems in range(first, first + 3):
        if systems * shape.whole > shape.most:
            return None
        entry = plan(systems * shape.whole)
        if rate_of(entry) >= target * (1 - 1e-9):
            return entry
    return None


def _out_of_reach(asked: Asked, old: Entry, shape: Shape, counts: Counts) -> Exception:
    """Return the error for cards of which no number reaches the throughput: how far they come, and what holds them."""
    entries = [counts.points[steps] for steps in sorted(counts.points)]
    best = max(entries, key=rate_of)
    last = entries[-1].problem
    wanted = f"{old.name} makes {rate_of(old):,.0f} tokens/s on {asked.job.name}"
    if best.best is None:
        words = last.message if last else ""
        error = MissingFactError if last and last.kind == "missing fact" else InfeasibleError
        return error(f"{wanted}; no number of {shape.name} cards up to {cards_of(entries[-1]):,} has a plan: {words}",
                     hint=last.hint if last else None)  # fmt: skip
    share = f"{rate_of(best):,.0f} tokens/s, {rate_of(best) / rate_of(old):.1%} of it, on {cards_of(best):,} cards"
    if last is not None and last.kind == "missing fact":
        return MissingFactError(
            f"{wanted}; {shape.name} reaches {share}, and more need this: {last.message}", hint=last.hint
        )
    held = _held(best.best)
    if cards_of(entries[-1]) + shape.step > shape.most:
        held += f"; its outermost tier joins {shape.most:,} cards"
    return InfeasibleError(
        f"{wanted}; no number of {shape.name} cards was found that does: the most is {share}, up to "
        f"{cards_of(entries[-1]):,} planned. There {held}.",
        hint="a larger global batch lets more cards work, and so do lifted limits; or take another shape or card.",
    )  # fmt: skip


def _held(best: BestPlan) -> str:
    """Return what a plan that reaches no further is held by."""
    plan, binds = best.plan, f"the {best.walls.binding} wall binds"
    if not isinstance(plan, Plan):
        return f"the plan is {best.layout}, and {binds}"
    each = plan.global_batch / plan.replicas
    return (
        f"a global batch of {plan.global_batch:,} sequences over {plan.replicas:,} replicas leaves {each:.3g} a step "
        f"to each ({best.layout}), and {binds}"
    )
