"""Training that goes on: steps, faults, what is done about them, and a log of it.

A run is a row of generations. In each the cards take up a plan at a state and take steps until one fails; then the
:mod:`ladder <zhenfa.live.ladder>` says what to do, the cards that are left come together anew, load the newest whole
copy of the state, and go on from the step after it. A step is a function of state, seed and number, so that what is
done again comes out as it was.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from zhenfa.errors import CapabilityError, InputError, RunError, ZhenfaError
from zhenfa.live import checkpoint, marks
from zhenfa.live.engine import Blame, CardError
from zhenfa.live.health import Finding, HealthWatch
from zhenfa.live.ladder import Ladder, Rung, Trouble
from zhenfa.live.placement import Card
from zhenfa.live.roster import Roster
from zhenfa.live.snapshots import Snapshots
from zhenfa.live.stragglers import Stragglers
from zhenfa.live.train import Driver, Measured, Progress, Step
from zhenfa.spec.job import Fault
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Evaluation, Incident, Kind, Wall

Replan = Callable[[Formation], Plan]
"""Called with the machine that is left; returns the best plan of the same job on it, or raises."""

Learn = Callable[[Measured], None]
"""Called with what the cards measured with a plan, before another one is made and at the end."""

GOES: Final = 4
"""How often a step is taken whose gradients are not sound, before the card or the training is at fault."""


class DivergedError(RunError):
    """The gradients of a step are not finite, and come out so every time: no card is at fault."""


@dataclass
class Supervisor:
    """Takes a plan through ``steps`` steps on a driver's cards, whatever happens to them.

    ``replan`` makes plans for what is left of the machine (None: the run stops where it would be needed); ``resume`` is
    a checkpoint to begin from; ``disk`` takes checkpoints; ``stop`` is asked after every step whether to end there;
    ``learn`` is told what a plan was measured at before the next one is made.
    """

    driver: Driver
    plan: Plan
    replan: Replan | None = None
    resume: Path | None = None
    disk: Path | None = None
    on_step: Progress | None = None
    say: Callable[[str], None] = lambda _: None
    stop: Callable[[], bool] = lambda: False
    learn: Learn = lambda _: None
    incidents: list[Incident] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roster = Roster(self.driver.formation)
        self.ladder = Ladder(can_plan=self.replan is not None)
        self.snapshots = Snapshots(self.driver, self.disk)
        self.stragglers = Stragglers()
        engine = self.driver.engine
        self.watch = HealthWatch(
            self.driver.execution.health_every_s, engine.ask_devices, engine.told_devices, engine.seat
        )
        self._faults = sorted(self.driver.execution.faults, key=lambda fault: fault.step)
        self._back: list[tuple[int, Card]] = []
        self._losses: dict[int, float] = {}
        self._norms: dict[int, float] = {}
        self._evaluations: dict[int, float] = {}
        self._begun = time.monotonic()
        self._ended: float | None = None
        self.saved: Path | None = None
        self._useful = self._again_s = 0.0
        self._struck: float | None = None

    @property
    def losses(self) -> tuple[float, ...]:
        """Return the loss of every step from the first that this run took."""
        return tuple(self._losses[number] for number in sorted(self._losses))

    @property
    def gradient_norms(self) -> tuple[float, ...]:
        """Return the norm of the whole model's gradients at every step, where the job clips them."""
        return tuple(self._norms[number] for number in sorted(self._norms))

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Return the losses on held-out text."""
        return tuple(Evaluation(step=step, loss=self._evaluations[step]) for step in sorted(self._evaluations))

    @property
    def effective_share(self) -> float:
        """Return the share of the wall-clock time in which steps were taken that stayed: ETTR, as measured."""
        passed = self.passed
        return min(self._useful / passed, 1.0) if passed > 0 else 1.0

    @property
    def passed(self) -> float:
        """Return the wall-clock seconds of training so far."""
        return (self._ended or time.monotonic()) - self._begun

    def reliability(self) -> Wall:
        """Return the reliability wall as measured: where the wall-clock time went that no lasting step took."""
        passed = max(self.passed, 1e-9)
        down = sum(one.down_s + (one.noticed_s or 0.0) for one in self.incidents)
        parts = {"down": down / passed, "done again": self._again_s / passed}
        parts["between steps"] = max(1.0 - self.effective_share - sum(parts.values()), 0.0)
        count = len(self.incidents)
        said = "nothing failed" if not count else f"{count} incident" + "s" * (count > 1)
        shares = ", ".join(f"{name} {share:.1%}" for name, share in parts.items() if share >= 5e-4)
        return Wall(share=1.0 - self.effective_share, parts=parts, detail=f"{said}; {shares}" if shares else said)

    def run(self) -> Measured:
        """Take all steps and return what the cards measured with the plan they ended with.

        Raises :class:`CardError` when nothing more can be done, :class:`CardFullError`, :class:`DivergedError`; what
        was trained until then is saved on ``disk`` first where it can be.
        """
        steps = self.driver.execution.steps
        try:
            measured = self._form()
            self._see()
            self._begun = time.monotonic()
            self._faults = [fault for fault in self._faults if fault.step > measured.done]
            while not self._ended:
                while measured.done < steps and not (self.stop() and measured.losses):
                    measured = self._advance(measured)
                measured = self._finish(measured)
            self.learn(measured)
        except ZhenfaError:
            self._keep_newest()
            raise
        return measured

    def _finish(self, measured: Measured) -> Measured:
        """Have the cards report, and write the last checkpoint; come back with the plan under way, not ended after a
        failure: the run is not over before what was trained is on ``disk``."""
        begun = time.monotonic()
        try:
            self.driver.finish_saves()
            self.snapshots.let_go()
            measured.reports = self.driver.call("report", {})
            if self.disk is not None:
                self.say("saving the checkpoint")
                self.saved = self.driver.save(measured, self.disk)
        except CardError as failure:
            steps = self.driver.execution.steps
            kept = self._newest()[1] >= steps and not self._newest(below=steps)[1]  # and all else would be done again
            if kept or not self.driver.execution.recover:
                raise
            return self._recover(measured, failure)
        if self.disk is not None:
            self.driver.prune(self.disk, self.driver.execution.keep_checkpoints)
        self._ended = begun
        return measured

    def _see(self) -> None:
        """Hold all hosts to seeing the run's folder. Raises :class:`CapabilityError`."""
        engine, disk = self.driver.engine, self.disk
        if not self.snapshots.possible:
            self.driver.notes.append("no copies of the state were kept: the run has no folder that all hosts see")
        blind = engine.blind(disk) if disk is not None and not engine.one_host else []
        if blind:
            raise CapabilityError(
                f"the run's folder {str(disk)!r} is not seen by {', '.join(blind)}.",
                hint="write the run to a file system that all hosts share (--out), or start it in such a folder.",
            )

    def _advance(self, measured: Measured) -> Measured:
        """Take a step and what follows it; come back with the plan under way, another one after a failure."""
        number = measured.done + 1
        try:
            self._happen(measured, number)
            self._take(measured, number)
            self._save(measured)
            self.ladder.progressed()
            failing = self._failing(measured)
            return self._evict(measured, failing) if failing else self._reconsider(measured)
        except CardError as failure:
            if not self.driver.execution.recover:
                raise
            return self._recover(measured, failure)

    def _take(self, measured: Measured, number: int) -> None:
        execution = self.driver.execution
        twice = bool(execution.replay_every) and number % execution.replay_every == 0
        begun = time.monotonic()
        step = self.driver.step(measured, twice=twice)
        if not step.used:
            self._again(measured, number, step, twice, begun)
        self._losses[number] = measured.losses[-1]
        if measured.gradient_norm is not None:
            self._norms[number] = measured.gradient_norm
        if measured.evaluation is not None:
            self._evaluations[number] = measured.evaluation
        self._useful += measured.step_times[-1]
        if self.on_step is not None:
            self.on_step(number, execution.steps, measured.losses[-1], measured.step_times[-1])

    def _again(self, measured: Measured, number: int, step: Step, twice: bool, begun: float) -> None:
        """Take a step anew whose gradients are not sound, or are to be seen twice; log what differed between the goes.

        Raises :class:`DivergedError` for what is not finite go after go, :class:`CardError` for what does not come out
        the same twice.
        """
        goes = [step]
        while len(goes) < GOES and not goes[-1].used:
            goes.append(self.driver.step(measured, before=[one.norms for one in goes], twice=twice))
        first, last = goes[0], goes[-1]
        odd = next((one for one in goes if not _alike(one.norms, last.norms)), None)
        if last.used:
            if odd is not None:
                pairs = enumerate(zip(odd.norms, last.norms, strict=True))
                ranks = list(odd.bad) or [rank for rank, (one, other) in pairs if one != other]
                verdict = odd.verdict if odd.bad else "not the same twice"
                self._log_poison(measured, number, ranks, verdict, "retry", time.monotonic() - begun)
            return
        ranks = list(last.bad) or list(first.bad)
        if last.verdict == "not finite" and odd is None:
            raise DivergedError(
                f"the gradients of step {number} are not finite on {measured.places[ranks[0]].label}, and come out so "
                f"every time: the training has diverged.",
                hint="lower execution.learning_rate, or clip gradients.",
            )
        raise _poisoned(measured, ranks, last.verdict)

    def _log_poison(
        self, measured: Measured, number: int, ranks: Sequence[int], verdict: str, rung: Rung, down: float
    ) -> None:
        for rank in ranks[:1]:
            label = measured.places[rank].label
            self._note(number, "poison", label, f"gradients: {verdict}", rung, 0, down)

    def _save(self, measured: Measured) -> None:
        execution = self.driver.execution
        done = measured.done
        if self.disk is not None:
            self.driver.prune(self.disk, execution.keep_checkpoints)
        if self.disk is not None and execution.checkpoint_every and done % execution.checkpoint_every == 0:
            self.driver.begin_save(measured, self.disk)
            return
        wanted = execution.recover and execution.snapshot_every > 0 and done < execution.steps
        if wanted and done % execution.snapshot_every == 0:
            self.snapshots.begin(measured)

    def _reconsider(self, measured: Measured) -> Measured:
        """Plan again at the end of a step if cards have come back or have turned out slow."""
        left = self.driver.execution.steps - measured.done
        if not self.driver.execution.recover:
            return measured
        came = [card for at, card in self._back if at <= measured.done and left]
        if came:
            self._back = [one for one in self._back if one[1] not in came]
            self.roster.lost -= set(came)
            return self._change(measured, came[0], "grow", "came back")
        slow = self.stragglers.look(measured, left)
        if slow is None or self.replan is None:
            return measured
        card, factor = slow
        self.roster.slower[card] = self.roster.slower.get(card, 1.0) * factor
        return self._change(measured, card, "re-balance", f"takes {factor:.1f} times as long as before")

    def _failing(self, measured: Measured) -> list[Finding]:
        """Ask what is wrong with the cards, note warnings, and return what makes a card unfit for another step."""
        found = self.watch.findings(measured.places)
        recover = self.driver.execution.recover
        for one in found:
            if not (one.fatal and recover):
                self.say(f"{one.place.label}: {one.words}")
                label = f"card {one.place.index} of pool {one.place.pool}"
                self._note(measured.done, "health", label, one.words, "none", 0, 0.0)
        left = self.driver.execution.steps - measured.done
        return [one for one in found if one.fatal and recover and left > 0]

    def _evict(self, measured: Measured, failing: Sequence[Finding]) -> Measured:
        """Take cards out that are about to fail: spare cards take their places, else what is left plans anew."""
        lost = {one.place.card for one in failing}
        self.roster.lost |= lost
        used = {place.card for place in measured.places}
        wanted = Counter(pool for pool, _ in lost)
        spare = all(len(self.roster.spares(used, pool)) >= count for pool, count in wanted.items())
        first = failing[0]
        self.say(f"{first.place.label}: {first.words}. {_PLAINLY['replace' if spare else 're-form']}")
        words = f"{first.words}; taken out before it failed"
        return self._change(measured, first.place.card, "replace" if spare else "re-form", words, lost)

    def _change(
        self, measured: Measured, card: Card, rung: Rung | Literal["none"], words: str, lost: Collection[Card] = ()
    ) -> Measured:
        """Go over to a new plan, or to spare cards, between two steps; nothing is lost but the cards named so."""
        begun, done, label = time.monotonic(), measured.done, f"card {card[1]} of pool {card[0]}"
        kind: Kind = "health" if lost else "back" if rung == "grow" else "slow"
        if rung != "replace" and self.replan is not None:
            self.learn(measured)
            try:
                self.plan = self.replan(self.roster.formation())
            except ZhenfaError as problem:
                self.say(f"no other plan: {problem.message}")
                self.stragglers.begin()
                rung = "none"
        elif rung != "replace":
            rung = "none"
        if rung == "none":
            if lost:
                self._note(done, kind, label, f"{words.partition(';')[0]}; nothing stands in for it", rung, 0, 0.0)
            return measured
        self.driver.finish_saves()
        self.snapshots.begin(measured)
        self.driver.finish_saves()
        for one in lost:
            self.driver.engine.discard(one)
        formed = self._form()
        down = time.monotonic() - begun
        self._note(done, kind, label, words, rung, done - formed.done, down)
        return formed

    def _recover(self, measured: Measured, failure: CardError) -> Measured:
        """Climb the ladder until the cards train again. Raises the last failure when there is nothing left to try."""
        begun, number = time.monotonic(), min(measured.done + 1, self.driver.execution.steps)
        noticed = None if self._struck is None else begun - self._struck
        self._struck = None
        while True:
            blame = failure.blamed[0] if failure.blamed else None
            if blame is None:
                raise failure
            rung = self._climb(blame, failure, measured)
            if rung == "stop":
                raise failure
            self.say(f"{failure.message} {_PLAINLY[rung]}")
            try:
                formed = self._form()
            except CardError as next_failure:
                failure = next_failure
                continue
            lost = measured.done - formed.done
            again = sum(measured.step_times[len(measured.step_times) - lost :]) if lost > 0 else 0.0
            self._useful, self._again_s = self._useful - again, self._again_s + again
            trouble: Kind = "poison" if blame.doing == POISON else blame.kind
            down = time.monotonic() - begun
            self._note(number, trouble, blame.label, blame.words, rung, max(lost, 0), down, noticed)
            return formed

    def _climb(self, blame: Blame, failure: CardError, measured: Measured) -> Rung:
        """Decide, and make ready: kill what must go, choose a spare, plan again."""
        engine, number = self.driver.engine, measured.done + 1
        used = {place.card for place in engine.places}
        trouble: Trouble = "poison" if blame.doing == POISON else blame.kind
        self.roster.lost |= engine.unreachable()
        if blame.card in self.roster.lost:
            trouble = "lost"
        spares = self.roster.spares(used, blame.card[0])
        rung = self.ladder.rung(blame.card, trouble, number, spares=len(spares))
        for other in failure.blamed:
            if other.kind != "error" or rung != "retry":
                engine.discard(other.card)
        engine.settle()
        self.driver.drop_saves()
        if rung in ("replace", "re-form", "stop"):
            self.roster.lost.add(blame.card)
        if rung == "re-form" and self.replan is not None:
            self.learn(measured)
            try:
                self.plan = self.replan(self.roster.formation())
            except ZhenfaError as problem:
                self.say(f"no plan for the cards that are left: {problem.message}")
                return "stop"
        return rung

    def _form(self) -> Measured:
        """Have the cards take up the plan at the newest whole state after which there is a step left to take."""
        source, done = self._newest(below=self.driver.execution.steps)
        self.stragglers.begin()
        return self.driver.form(self.plan, there=self.roster.cards(), load=source, done=done)

    def _newest(self, below: int | None = None) -> tuple[Path | None, int]:
        """Return the newest whole copy of the state that this run made or began from, and its step (one ``below``)."""
        for done, path in sorted(self.driver.written, reverse=True):
            if below is not None and done >= below:
                continue
            try:
                if marks.is_copy(path):
                    marks.verify(path, done)
                else:
                    checkpoint.verify(path)
            except InputError as problem:
                self.say(f"passed over: {problem.message}")
            else:
                return path, done
        if self.resume is not None:
            return self.resume, int(checkpoint.verify(self.resume)["step"])
        return None, 0

    def _happen(self, measured: Measured, number: int) -> None:
        """Have the faults happen that were asked for before this step."""
        while self._faults and self._faults[0].step <= number:
            fault = self._faults.pop(0)
            if fault.card >= len(measured.places):
                there = f"the plan has {len(measured.places)} cards, no card {fault.card}"
                self.driver.notes.append(f"fault {fault.kind} of step {number} did not happen: {there}")
                continue
            self._one_fault(measured, fault, number)

    def _one_fault(self, measured: Measured, fault: Fault, number: int) -> None:
        engine, card = self.driver.engine, measured.places[fault.card].card
        if fault.kind in ("kill", "hang", "lose"):
            self._struck = time.monotonic()
        if fault.kind == "hang":
            engine.stop(fault.card)
        elif fault.kind in ("kill", "lose"):
            if fault.kind == "lose":
                self.roster.lost.add(card)
                if fault.back is not None:
                    self._back.append((number + fault.back, card))
            engine.kill(fault.card)
        else:
            self.driver.call_one(fault.card, "fault", {"kind": fault.kind, "factor": fault.factor})

    def _note(
        self, number: int, kind: Kind, card: str, words: str, rung: Rung | Literal["none"], lost: int,
        down: float, noticed: float | None = None,
    ) -> None:  # fmt: skip
        self.incidents.append(
            Incident(
                step=number, at_s=time.monotonic() - self._begun, kind=kind, card=card, words=words, action=rung,
                steps_lost=lost, noticed_s=noticed, down_s=down,
            )
        )  # fmt: skip

    def _keep_newest(self) -> None:
        """Put the newest copy in memory onto the disk before giving up."""
        if self.disk is None or self.snapshots.folder is None:
            return
        path, done = self._newest()
        if path is None or not marks.is_copy(path):
            return
        target = self.disk / f"checkpoint-{done:06d}"
        try:
            self.snapshots.keep(path, target)
        except OSError as problem:
            self.say(f"what was trained could not be saved: {problem}")
        else:
            self.say(f"saved as far as it went: {target}")


POISON: Final = "computing gradients"
_PLAINLY: Final[dict[Rung, str]] = {
    "retry": "Trying again.",
    "restart": "Giving the card a new process.",
    "replace": "Putting a spare card in its place.",
    "re-form": "Going on with the cards that are left.",
}


def _poisoned(measured: Measured, ranks: Sequence[int], verdict: str) -> CardError:
    blamed = [
        Blame(rank, measured.places[rank].card, measured.places[rank].label, "error", f"gradients: {verdict}", POISON)
        for rank in ranks[:1]
    ]
    return CardError(f"{blamed[0].label} gives gradients that are {verdict}, go after go.", blamed=blamed)


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two rows of norms are the same, numbers that are none counted as equal."""
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True))
