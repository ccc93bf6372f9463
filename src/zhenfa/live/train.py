"""Training steps on started cards: orders out, times and losses back."""

from __future__ import annotations

import shutil
import signal
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import RunError
from zhenfa.live import checkpoint
from zhenfa.live.engine import Engine, call_all
from zhenfa.live.guard import HISTORY, LEAST, total
from zhenfa.live.host import processors
from zhenfa.live.learn.timings import Timings, sharing
from zhenfa.live.orders import Orders
from zhenfa.live.pending import Pending, Saving
from zhenfa.live.placement import Card, CardPlace, links_of, place
from zhenfa.live.recipe import Recipe
from zhenfa.live.sizes import Sizes
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan

Progress = Callable[[int, int, float, float], None]
"""Called after each step with its number (from 1), how many there are, the loss, and the seconds it took."""

OPEN_S: Final = 120.0
LEAD_S: Final = 0.02
"""Seconds between the order for a step and its start, in which the order reaches every card."""


@dataclass(frozen=True)
class Step:
    """What came of one go at a step: whether its gradients were used, the verdict on them, and every card's norm."""

    used: bool
    verdict: str
    bad: tuple[int, ...]
    norms: tuple[float, ...]


class CardFullError(RunError):
    """A card holds more than its memory."""


@dataclass
class Measured:
    """What the cards did with one plan. ``spans`` are of the last step, by rank; times in s from its start.

    ``gradient_norm`` and ``evaluation`` (the loss on held-out text) are of the last step as
    well. ``begun`` counts the steps that were taken before the cards took up this plan. ``timings``
    are of the steps that ``step_time`` is the mean of.
    """

    plan: Plan
    places: tuple[CardPlace, ...]
    begun: int = 0
    step_times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    spans: list[list[tuple[str, int, float, float, int, int]]] = field(default_factory=list)
    gradient_norm: float | None = None
    evaluation: float | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)

    @property
    def done(self) -> int:
        """Return the number of the last step taken, 0 before the first."""
        return self.begun + len(self.losses)

    @property
    def step_time(self) -> float:
        """Return the mean seconds of a step, the first (in which caches fill) left out if there are more."""
        kept = self.step_times[1:] or self.step_times
        return sum(kept) / len(kept)


class Driver:
    """Runs plans of one model on the cards of one engine, one after the other.

    ``bridge``: what cards of different makers compress. ``written`` are the checkpoints and copies made so far that are
    still there, each with its step; ``notes`` what went wrong without ending anything.
    """

    def __init__(self, engine: Engine, formation: Formation, sizes: Sizes, execution: Execution) -> None:
        self.engine, self.formation, self.sizes, self.execution = engine, formation, sizes, execution
        engine.carry(formation)
        self._store, self._port = open_store(engine.address)
        self._generation = 0
        self._totals: deque[float] = deque(maxlen=HISTORY)
        self._saving: dict[str, Pending] = {}
        self.bridge = execution.bridge
        self.written: list[tuple[int, Path]] = []
        self.notes: list[str] = []

    def train(
        self, plan: Plan, steps: int, on_step: Progress | None = None, *, load: Path | None = None, done: int = 0
    ) -> Measured:
        """Build the model on the cards as ``plan`` says and take ``steps`` steps; whatever fails ends it.

        ``load`` is a checkpoint made after ``done`` steps to begin from.

        Raises :class:`RunError`, :class:`CardFullError` after the first step if an emulated card's memory is too small.
        """
        measured = self.form(plan, load=load, done=done)
        for number in range(done + 1, done + steps + 1):
            step = self.step(measured)
            if not step.used and not self.step(measured, before=[step.norms]).used:
                raise RunError(
                    f"the gradients of step {number} are {step.verdict}.", hint="lower execution.learning_rate."
                )
            if on_step is not None:
                on_step(number, steps, measured.losses[-1], measured.step_times[-1])
        measured.reports = self.call("report", {})
        return measured

    def form(
        self, plan: Plan, *, there: Mapping[str, Sequence[Card]] | None = None, load: Path | None = None, done: int = 0
    ) -> Measured:
        """Have the cards take up a plan, from the beginning or from a checkpoint made after ``done`` steps."""
        places = place(plan, self.formation, self.sizes, there)
        self.engine.place(places)
        self.engine.start()
        orders = self._orders(plan, places).to_data()
        source = None if load is None else str(load)
        ahead = self.engine.ahead
        arguments = [
            {"rank": item.rank, "orders": orders, "load": source, "ahead": ahead(item.rank)} for item in places
        ]
        call_all(self.engine, "open", arguments, OPEN_S)
        return Measured(plan, places, begun=done)

    def step(self, measured: Measured, *, before: Sequence[Sequence[float]] = (), twice: bool = False) -> Step:
        """Take the next step, and note it if its gradients were used; see :meth:`CardRun.step` for the rest."""
        number, at = measured.done + 1, time.monotonic() + LEAD_S
        order = {"number": number, "at": at, "before": [list(row) for row in before], "twice": twice}
        execution = self.execution
        orders = [order | {"ahead": self.engine.ahead(rank)} for rank in range(len(measured.places))]
        answers = call_all(
            self.engine, "step", orders, execution.step_timeout_s, progress=execution.progress_timeout_s
        )  # fmt: skip
        for rank, answer in enumerate(answers):
            self._told(rank, answer["saved"])
        step = Step(answers[0]["used"], answers[0]["verdict"], tuple(answers[0]["bad"]), tuple(answers[0]["norms"]))
        if step.used:
            self._totals.append(total(step.norms))
            measured.step_times.append(max(answer["ended"] for answer in answers) - at)
            measured.losses.append(sum(answer["loss"] for answer in answers if answer["loss"] is not None))
            measured.spans = [
                [(kind, batch, start - at, end - at, *rest) for kind, batch, start, end, *rest in answer["spans"]]
                for answer in answers
            ]
            self._time(measured)
            measured.gradient_norm = answers[0]["gradient_norm"]
            parts = [answer["evaluation"] for answer in answers if answer["evaluation"] is not None]
            measured.evaluation = sum(parts) if parts else None
            if len(measured.losses) == 1:
                self._check_memory(measured.places)
        return step

    @property
    def generation(self) -> int:
        """Return how often cards have taken up a plan."""
        return self._generation

    @property
    def saving(self) -> set[Path]:
        """Return the folders into which the cards are writing."""
        return {one.path for one in self._saving.values()}

    def facts(self, measured: Measured) -> dict[str, Any]:
        """Return what the manifest of a checkpoint says of the run."""
        return {
            "step": measured.done, "plan": measured.plan.to_data(), "sizes": asdict(self.sizes),
            "seed": self.execution.seed,
        }  # fmt: skip

    def begin_save(self, measured: Measured, folder: Path) -> None:
        """Have the cards copy their state and begin to write a checkpoint into ``folder`` while they go on."""
        partial = folder / f"checkpoint-{measured.done:06d}{checkpoint.PARTIAL}"
        if partial in self.saving:
            return
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        saving = Saving(partial, measured.done, len(measured.places), facts=self.facts(measured))
        self.begin(saving, "save", {"path": str(partial)})

    def begin(self, pending: Pending, method: str, arguments: dict[str, Any]) -> None:
        """Have the cards save their state."""
        self._saving[pending.key] = pending
        if pending.remembered:
            self.engine.remember(pending.path)
        self.call(method, arguments)

    def finish_saves(self) -> None:
        """Wait until what was begun is written."""
        if self._saving:
            for rank, told in enumerate(self.call("saved", {})):
                self._told(rank, told)

    def prune(self, folder: Path, keep: int) -> None:
        """Remove all but the newest ``keep`` of the checkpoints that were written into ``folder``."""
        own = sorted(one for one in self.written if one[1].parent == folder)
        for one in own[: max(len(own) - keep, 0)]:
            self.written.remove(one)
            checkpoint.remove(one[1])

    def drop_saves(self) -> None:
        """Finish what all cards have written, though one of them can no longer tell, and give up the rest."""
        for one in self._saving.values():
            if one.is_written():
                self._finish(one)
            else:
                self._give_up(one)
        self._saving.clear()

    def save(self, measured: Measured, folder: Path) -> Path:
        """Write a checkpoint of what the cards hold into ``folder`` and return its path."""
        self.finish_saves()
        self.begin_save(measured, folder)
        self.finish_saves()
        final = folder / f"checkpoint-{measured.done:06d}"
        if (measured.done, final) not in self.written:
            raise RunError(f"the checkpoint {str(final)!r} was not written. {' '.join(self.notes[-1:])}".rstrip())
        return final

    def close(self) -> None:
        """Close the store and its port."""
        self._store = None

    def call(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        """Give every card the same order and return their values by rank."""
        return call_all(self.engine, method, [arguments] * len(self.engine.places), OPEN_S)

    def call_one(self, rank: int, method: str, arguments: dict[str, Any]) -> None:
        """Give one card an order and wait for its answer; a card that is gone is told of at the next step."""
        order = self.engine.post(rank, method, arguments)
        deadline = time.monotonic() + OPEN_S
        while time.monotonic() < deadline:
            replies = self.engine.poll(0.5)
            if any(reply.order == order or (reply.rank == rank and reply.death) for reply in replies):
                return

    def _time(self, measured: Measured) -> None:
        """Take the last step into the timings, which leave the first one out as soon as there is another."""
        if len(measured.step_times) <= 2:
            clipped = self.execution.clip_gradient_norm is not None
            measured.timings = Timings(sharing(measured.places, self.sizes), clipped)
        measured.timings.add(measured.spans, measured.step_times[-1])

    def _told(self, rank: int, told: Sequence[Mapping[str, Any]]) -> None:
        """Note what a card has written; the last card's word makes it count."""
        for word in told:
            one = self._saving.get(word["key"])
            if one is None:
                continue
            if "error" in word:
                del self._saving[one.key]
                self._give_up(one)
                self.notes.append(f"step {one.step} was not saved: {self.engine.places[rank].label}: {word['error']}")
            elif one.told(rank, word):
                del self._saving[one.key]
                self._finish(one)

    def _finish(self, one: Pending) -> None:
        final = one.finish()
        if (one.step, final) not in self.written:
            self.written.append((one.step, final))
        if one.remembered:
            self.engine.forget(one.path)

    def _give_up(self, one: Pending) -> None:
        one.give_up()
        if one.remembered:
            self.engine.forget(one.path)

    def _check_memory(self, places: tuple[CardPlace, ...]) -> None:
        """Hold emulated cards to their memory, as a real card would."""
        for item, report in zip(places, self.call("report", {}), strict=True):
            held = sum(report["memory"].values())
            if item.rate is not None and item.capacity is not None and held > item.capacity:
                raise CardFullError(
                    f"{item.label} is out of memory: it holds {held / 1e6:.1f} MB of tensors and has "
                    f"{item.capacity / 1e6:.1f} MB.",
                    hint="give the card fewer layers, a smaller micro-batch, or recompute: full.",
                )

    def _orders(self, plan: Plan, places: tuple[CardPlace, ...]) -> Orders:
        self._generation += 1
        execution = self.execution
        emulated = any(item.rate is not None for item in places)
        return Orders(
            places=places, links=links_of(places, self.formation), sizes=self.sizes, schedule=plan.schedule,
            zero=plan.zero, reshard=plan.reshard, reduce_every=plan.reduce_every,
            length=plan.sequence_length, global_batch=plan.global_batch, seed=execution.seed,
            recipe=Recipe.of(execution), data=execution.data,
            weights=execution.weights,
            address=self.engine.address, port=self._port, generation=f"generation-{self._generation}",
            threads=1 if emulated else threads_of(self.formation),
            timeout_s=execution.step_timeout_s + 60.0, activations=self.bridge.activations,
            gradients=self.bridge.gradients, overlap=execution.overlap_gradient_sum,
            usual_norm=statistics.median(self._totals) if len(self._totals) >= LEAST else None,
        )  # fmt: skip


def threads_of(formation: Formation) -> int:
    """Return the threads of each card's process: its share of the processors if all cards of the machine work."""
    return max(1, processors() // max(formation.cards, 1))


def open_store(address: str = "127.0.0.1") -> tuple[Any, int]:
    """Open the store where cards find each other, at this address alone; return it and its port."""
    with _interrupts_later():
        from torch.distributed import TCPStore

    listener = socket.create_server((address, 0), backlog=128)
    port = int(listener.getsockname()[1])
    store = TCPStore(
        address, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=OPEN_S),
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    return store, port


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block: an interrupt in the middle of importing torch can be swallowed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [item for item in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(item))]
    caught: list[int] = []
    before = {number: signal.signal(number, lambda got, _: caught.append(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for got in caught[:1]:
            signal.raise_signal(got)
