"""The contest of systems on one job: the best plan of each machine, side by side, ranked.

Every machine is planned by itself (:func:`zhenfa.plan.best_plan.find_best`); one on which there is no plan stays in
with its reason. Machines may be planned in several processes; the answer does not depend on how many.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from zhenfa.errors import CapabilityError, InfeasibleError, InputError, MissingFactError, UnknownNameError, ZhenfaError
from zhenfa.plan import merit
from zhenfa.plan.asked import read_assumptions, read_job
from zhenfa.plan.best_plan import BestPlan, find_best
from zhenfa.plan.merit import By
from zhenfa.plan.request import Request, find_machine, make_request
from zhenfa.spec.job import Job
from zhenfa.spec.machine import Formation, Machine
from zhenfa.spec.result import Figure
from zhenfa.spec.serving import ServingWorkload

Kind = Literal["missing fact", "does not fit", "cannot run", "too small"]

KINDS: Final[dict[type[ZhenfaError], Kind]] = {
    MissingFactError: "missing fact", InfeasibleError: "does not fit", CapabilityError: "cannot run",
}  # fmt: skip

SERIAL_S: Final = 2.0
"""Seconds of planning that are left, judged by the machines planned so far, for which no process is started."""

Progress = Callable[[int, int], None]
"""Takes the machines planned so far, and all of them."""


@dataclass(frozen=True)
class Problem:
    """Why there is no plan on a machine."""

    kind: Kind
    message: str
    hint: str | None = None


@dataclass(frozen=True)
class Contender:
    """A machine of the contest, its names looked up; ``problem`` where that already shows that there is no plan."""

    name: str
    title: str
    request: Request | None
    problem: Problem | None = None


@dataclass(frozen=True)
class Entry:
    """How one machine fares. ``best``: its best plan; ``problem`` where there is none."""

    name: str
    title: str
    formation: Formation | None
    best: BestPlan | None = None
    problem: Problem | None = None
    considered: int = 0
    seconds: float = 0.0

    @cached_property
    def per_kilowatt(self) -> Figure:
        """Return tokens/s per kW of facility power."""
        return Figure(unit="tokens/s/kW") if self.best is None else merit.per_kilowatt(self.best)

    @cached_property
    def per_money(self) -> Figure:
        """Return useful tokens per CNY."""
        if self.best is None or self.formation is None:
            return Figure(unit="tokens/CNY")
        return merit.per_money(self.best, self.formation)

    @property
    def power_without_building(self) -> bool:
        """Return whether facility power is that of the equipment alone, its PUE being undisclosed."""
        if self.formation is None or self.per_kilowatt.value is None:
            return False
        return self.formation.pue.value is None and not self.formation.facility.known

    def measure(self, by: By) -> Figure:
        """Return the figure that the machine is ranked by; empty where it has none."""
        if self.best is None or self.formation is None:
            return Figure()
        return merit.measure(by)(self.best, self.formation)


@dataclass(frozen=True)
class Comparison:
    """The contest: entries ranked by ``by``, best first; then those without that figure, then those without a plan."""

    job: Job
    by: By
    entries: tuple[Entry, ...]
    cards: int | None
    seconds: float

    @property
    def planned(self) -> tuple[Entry, ...]:
        """Return the machines that have a plan."""
        return tuple(entry for entry in self.entries if entry.best is not None)

    @property
    def ranked(self) -> tuple[Entry, ...]:
        """Return the machines that have the figure that is ranked by."""
        return tuple(entry for entry in self.planned if entry.measure(self.by).value is not None)

    def rank(self, entry: Entry) -> int | None:
        """Return the place of a machine; None where the figure that is ranked by is unknown."""
        return next((place for place, one in enumerate(self.ranked, 1) if one is entry), None)

    @property
    def level(self) -> tuple[tuple[Entry, ...], ...]:
        """Return the groups in which no machine can be told apart from any other, none of them part of another.

        Bands that overlap pair by pair have a value in common, so that the lower ends of all bands show every group.
        """
        banded = [(entry, entry.measure(self.by)) for entry in self.ranked if entry.measure(self.by).p10 is not None]
        found = [
            tuple(entry for entry, other in banded if (other.p10 or 0.0) <= (one.p10 or 0.0) <= (other.p90 or 0.0))
            for _, one in banded
        ]
        names = [{entry.name for entry in group} for group in found]
        whole = [group for group, mine in zip(found, names, strict=True) if not any(mine < other for other in names)]
        return tuple({tuple(one.name for one in group): group for group in whole if len(group) > 1}.values())

    @property
    def without_pue(self) -> tuple[Entry, ...]:
        """Return the machines whose facility power leaves the building out, because nobody has published a PUE."""
        return tuple(entry for entry in self.planned if entry.power_without_building)

    @property
    def priced(self) -> tuple[Entry, ...]:
        """Return the machines of which the tokens for money are known."""
        return tuple(entry for entry in self.planned if entry.per_money.value is not None)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Return the cards whose price is undisclosed, so that nothing can be said of tokens for money."""
        found = (name for entry in self.planned if entry.formation for name in merit.unpriced(entry.formation))
        return tuple(dict.fromkeys(found))

    def level_with(self, entry: Entry) -> tuple[Entry, ...]:
        """Return the machines that cannot be told apart from one: their bands overlap with its own."""
        own = entry.measure(self.by)
        return tuple(one for one in self.ranked if one is not entry and merit.overlap(own, one.measure(self.by)))

    @property
    def equal_cards(self) -> int | None:
        """Return the cards at which throughput is compared: those of the smallest plan."""
        return min((entry.best.plan.cards for entry in self.planned if entry.best), default=None)

    @property
    def equal_power_w(self) -> float | None:
        """Return the facility power at which throughput is compared: that of the plan that draws least."""
        known = (entry.best.operating.facility_power_w.value for entry in self.planned if entry.best)
        return min((value for value in known if value is not None), default=None)

    def shares(self, entry: Entry) -> dict[str, float]:
        """Return the parts of a machine's wall-clock time, what failures take among them: they add up to one."""
        return {} if entry.best is None else entry.best.shares

    def at_equal_cards(self, entry: Entry) -> Figure:
        """Return tokens/s of as many cards as the smallest plan has, at the same throughput per card."""
        if entry.best is None or self.equal_cards is None:
            return Figure(unit="tokens/s")
        return merit.scaled(entry.best.figures.tokens_per_s_per_card, self.equal_cards, "tokens/s")

    def at_equal_power(self, entry: Entry) -> Figure:
        """Return tokens/s at the facility power of the plan that draws least, at the same throughput per kW."""
        if self.equal_power_w is None:
            return Figure(unit="tokens/s")
        return merit.scaled(entry.per_kilowatt, self.equal_power_w / merit.KILOWATT, "tokens/s")


def read_contest(
    path: str,
    machines: Sequence[str],
    *,
    assume: Sequence[str] = (),
    cards: int | None = None,
    settings: Sequence[str] = (),
) -> tuple[Job, list[Contender]]:
    """Read a job file and look up the machines of a contest; ``cards`` of each instead of as many as they have, and
    ``settings`` (``key=value`` texts) instead of what the file says.

    Raises :class:`InputError` for no machine, one alone, or one given twice, and what reading job and machines raises.
    """
    job = read_job(path, settings)
    return job, enter(job, machines, folder=Path(path).resolve().parent, assume=read_assumptions(assume), cards=cards)


def enter(
    job: Job,
    machines: Sequence[str | Machine],
    *,
    folder: Path | None = None,
    assume: Mapping[str, str | float] | None = None,
    cards: int | None = None,
) -> list[Contender]:
    """Look up the machines of a contest. An assumption goes to every machine that it says something about.

    Raises :class:`InputError` for no machine, one alone, or one given twice, and what looking them up raises.
    """
    if len(machines) < 2:
        words = "no machine is given" if not machines else "one machine alone is no contest"
        raise InputError(
            f"{words}.", hint="name two or more, such as --on cloudmatrix384,gb200-nvl72; "
            "`zhenfa show machines` lists them, and `zhenfa plan` plans on one.",
        )  # fmt: skip
    found = [one if isinstance(one, Machine) else find_machine(one) for one in machines]
    given = [one.name if isinstance(one, Machine) else one for one in machines]
    names = [one.name for one in found]
    labels = [text if names.count(one.name) > 1 else one.name for one, text in zip(found, given, strict=True)]
    _refuse_twins(found, given)
    wanted = {**job.assume, **(assume or {})}
    bare = job.model_copy(update={"assume": {}})
    shares = _share_out(bare, found, folder, wanted)
    return [
        _enter(bare, label, machine, folder, share, cards)
        for label, machine, share in zip(labels, found, shares, strict=True)
    ]


def _refuse_twins(machines: Sequence[Machine], given: Sequence[str]) -> None:
    """Refuse a machine that is given twice, under the same name or two. Raises :class:`InputError`."""
    seen: dict[str, str] = {}
    for machine, text in zip(machines, given, strict=True):
        pools = tuple(pool.model_copy(update={"name": "cards"}) for pool in machine.pools)
        content = machine.model_copy(update={"name": "same", "title": None, "note": None, "claims": (), "pools": pools})
        key = content.model_dump_json() if len(pools) == 1 else machine.model_dump_json()
        if key in seen:
            other = seen[key]
            words = f"{text!r} is given twice" if text == other else f"{other!r} and {text!r} are the same machine"
            raise InputError(f"{words}: a contest has each machine once.", hint="leave one of them out.")
        seen[key] = text


def _share_out(
    job: Job, machines: Sequence[Machine], folder: Path | None, assume: Mapping[str, str | float]
) -> list[dict[str, str | float]]:
    """Return, for each machine, the assumptions whose names it knows: a pool's name means nothing to the others.

    Raises :class:`UnknownNameError` for a name that no machine knows.
    """
    shares: list[dict[str, str | float]] = [{} for _ in machines]
    for name, value in assume.items():
        strange: UnknownNameError | None = None
        known = False
        for machine, share in zip(machines, shares, strict=True):
            try:
                make_request(job.model_copy(update={"machine": machine}), folder=folder, assume={name: value})
            except UnknownNameError as problem:
                strange = problem
                continue
            except MissingFactError:
                pass
            share[name], known = value, True
        if strange is not None and not known:
            raise strange
    return shares


def _enter(
    job: Job, label: str, machine: Machine, folder: Path | None, assume: Mapping[str, str | float], cards: int | None
) -> Contender:
    title = machine.title or machine.name
    machine = machine if cards is None else sized(machine, cards)
    try:
        request = make_request(job.model_copy(update={"machine": machine}), folder=folder, assume=assume)
    except (MissingFactError, CapabilityError) as problem:
        return Contender(label, title, None, problem_of(problem))
    except InputError as problem:
        if cards is None:
            raise
        return Contender(label, title, None, Problem("too small", problem.message, problem.hint))
    return Contender(label, title, request)


def sized(machine: Machine, cards: int) -> Machine:
    """Return a machine of one pool with another number of cards. Raises :class:`InputError` for several pools."""
    if len(machine.pools) > 1:
        pools = ", ".join(pool.name for pool in machine.pools)
        raise InputError(
            f"{machine.name!r} has several pools ({pools}), so that a number of cards does not say which.",
            hint="leave it out, or name a machine of one pool.",
        )
    return machine.model_copy(update={"pools": (machine.pools[0].model_copy(update={"count": cards}),)})


def problem_of(error: ZhenfaError, formation: Formation | None = None) -> Problem:
    """Return an error as the reason for which there is no plan; raise it if it is no such reason.

    Values to assume are named by the card: a pool's name may be that of other machines' pools.
    """
    kind = next((kind for known, kind in KINDS.items() if isinstance(error, known)), None)
    if kind is None:
        raise error
    hint = error.hint
    for pool in formation.pools if formation and hint else ():
        hint = str(hint).replace(f"--assume {pool.name}.memory.", f"--assume {pool.accelerator.id}.memory.")
    return Problem(kind, error.message, hint)


def compare(
    job: Job,
    contenders: Sequence[Contender],
    *,
    by: By | None = None,
    processes: int | None = None,
    cards: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Plan a job on every machine and rank them: by default by throughput, or where every machine takes the same load,
    by throughput per card.

    ``processes`` to plan in at once; by default as many as there are cores, and none where the rest is likely to take
    less than :data:`SERIAL_S`. The answer is the same.
    """
    begun = time.perf_counter()
    by = by or default_by(job)
    entries = _planned(contenders, processes, progress or (lambda done, total: None))
    entries.sort(key=lambda entry: _order(entry, by))
    return Comparison(job, by, tuple(entries), cards, time.perf_counter() - begun)


def default_by(job: Job) -> By:
    """Return what machines are ranked by where nothing was asked for."""
    given = isinstance(job.workload, ServingWorkload) and job.workload.request_rate is not None
    return "card" if given else "throughput"


def _order(entry: Entry, by: By) -> tuple[int, float]:
    value = entry.measure(by).value
    if value is not None:
        return 0, -value
    return (1 if entry.best is not None else 2), 0.0


def _planned(contenders: Sequence[Contender], processes: int | None, progress: Progress) -> list[Entry]:
    """Plan on every machine: in this process while little is left, else in several."""
    entries: list[Entry] = []
    total, begun = len(contenders), time.perf_counter()
    most = processes if processes is not None else os.cpu_count() or 1
    while len(entries) < total:
        left = total - len(entries)
        likely = (time.perf_counter() - begun) / len(entries) * left if entries else 0.0
        if most > 1 and left > 1 and (processes is not None or likely > SERIAL_S):
            break
        entries.append(plan_one(contenders[len(entries)]))
        progress(len(entries), total)
    rest = contenders[len(entries) :]
    if rest:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(most, len(rest)), mp_context=context) as pool:
            for entry in pool.map(plan_one, rest):
                entries.append(entry)
                progress(len(entries), total)
    return entries


def plan_one(contender: Contender) -> Entry:
    """Return how one machine fares."""
    formation = contender.request.formation if contender.request else None
    entry = Entry(contender.name, contender.title, formation, problem=contender.problem)
    if contender.request is None:
        return entry
    begun = time.perf_counter()
    try:
        best, considered, seconds = find_best(contender.request)
    except ZhenfaError as error:
        return replace(entry, problem=problem_of(error, formation), seconds=time.perf_counter() - begun)
    return replace(entry, best=best, considered=considered, seconds=seconds)
