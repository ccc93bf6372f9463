"""Training steps on started cards: orders out, times and losses back."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import RunError
from zhenfa.live import checkpoint
from zhenfa.live.engine import Engine, call_all
from zhenfa.live.orders import Orders
from zhenfa.live.placement import CardPlace, links_of, place
from zhenfa.live.providers import processors
from zhenfa.live.sizes import Sizes
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan

Progress = Callable[[int, int, float, float], None]
"""Called after each step with its number (from 1), how many there are, the loss, and the seconds it took."""

OPEN_S: Final = 120.0
LEAD_S: Final = 0.02
"""Seconds between the order for a step and its start, in which the order reaches every card."""


class CardFullError(RunError):
    """A card holds more than its memory."""


@dataclass
class Measured:
    """What the cards did with one plan. ``spans`` are of the last step, by rank; times in s from its start."""

    plan: Plan
    places: tuple[CardPlace, ...]
    step_times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    spans: list[list[tuple[str, int, float, float, int]]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def step_time(self) -> float:
        """Return the mean seconds of a step, the first (in which caches fill) left out if there are more."""
        kept = self.step_times[1:] or self.step_times
        return sum(kept) / len(kept)


class Driver:
    """Runs plans of one model on the cards of one engine, one after the other."""

    def __init__(self, engine: Engine, formation: Formation, sizes: Sizes, execution: Execution) -> None:
        self.engine, self.formation, self.sizes, self.execution = engine, formation, sizes, execution
        self._store, self._port = open_store()
        self._generation = 0

    def train(self, plan: Plan, steps: int, on_step: Progress | None = None) -> Measured:
        """Build the model on the cards as ``plan`` says and take ``steps`` steps.

        Raises :class:`RunError`, :class:`CardFullError` after the first step if an emulated card's memory is too small.
        """
        places = place(plan, self.formation, self.sizes)
        self.engine.place(places)
        self.engine.start()
        orders = self._orders(plan, places).to_data()
        call_all(self.engine, "open", [{"rank": item.rank, "orders": orders} for item in places], OPEN_S)
        measured = Measured(plan, places)
        for number in range(1, steps + 1):
            self._step(measured, number)
            if number == 1:
                self._check_memory(places)
            if on_step is not None:
                on_step(number, steps, measured.losses[-1], measured.step_times[-1])
        measured.reports = self._call("report", {})
        return measured

    def save(self, measured: Measured, folder: Path) -> Path:
        """Write a checkpoint of what the cards hold into ``folder`` and return its path."""
        steps = len(measured.losses)
        partial = folder / f"checkpoint-{steps:06d}{checkpoint.PARTIAL}"
        self.engine.remember(partial)
        partial.mkdir(parents=True, exist_ok=True)
        self._call("save", {"path": str(partial)})
        facts = {"step": steps, "plan": measured.plan.to_data(), "sizes": vars(self.sizes), "seed": self.execution.seed}
        final = checkpoint.finish(partial, facts)
        self.engine.forget(partial)
        return final

    def close(self) -> None:
        """Close the store and its port."""
        self._store = None

    def _step(self, measured: Measured, number: int) -> None:
        at = time.monotonic() + LEAD_S
        answers = call_all(
            self.engine, "step", [{"number": number, "at": at}] * len(measured.places), self.execution.step_timeout_s
        )
        measured.step_times.append(max(answer["ended"] for answer in answers) - at)
        measured.losses.append(sum(answer["loss"] for answer in answers if answer["loss"] is not None))
        measured.spans = [
            [(kind, batch, start - at, end - at, peer) for kind, batch, start, end, peer in answer["spans"]]
            for answer in answers
        ]

    def _check_memory(self, places: tuple[CardPlace, ...]) -> None:
        """Hold emulated cards to their memory, as a real card would."""
        for item, report in zip(places, self._call("report", {}), strict=True):
            held = sum(report["memory"].values())
            if item.rate is not None and item.capacity is not None and held > item.capacity:
                raise CardFullError(
                    f"{item.label} is out of memory: it holds {held / 1e6:.1f} MB of tensors and has "
                    f"{item.capacity / 1e6:.1f} MB.",
                    hint="give the card fewer layers, a smaller micro-batch, or recompute: full.",
                )

    def _call(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        return call_all(self.engine, method, [arguments] * len(self.engine.places), OPEN_S)

    def _orders(self, plan: Plan, places: tuple[CardPlace, ...]) -> Orders:
        self._generation += 1
        execution = self.execution
        emulated = any(item.rate is not None for item in places)
        return Orders(
            places=places, links=links_of(places, self.formation), sizes=self.sizes, schedule=plan.schedule,
            length=plan.sequence_length, global_batch=plan.global_batch, seed=execution.seed,
            learning_rate=execution.learning_rate, weight_decay=execution.weight_decay, data=execution.data,
            port=self._port, generation=f"generation-{self._generation}", board=str(self.engine.folder / "board"),
            threads=1 if emulated else threads_of(self.formation),
            timeout_s=execution.step_timeout_s + 60.0,
        )  # fmt: skip


def threads_of(formation: Formation) -> int:
    """Return the threads of each card's process: its share of the processors if all cards of the machine work."""
    return max(1, processors() // max(formation.cards, 1))


def open_store() -> tuple[Any, int]:
    """Open the store where cards find each other, on the loopback interface alone; return it and its port."""
    with _interrupts_later():
        from torch.distributed import TCPStore

    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = int(listener.getsockname()[1])
    store = TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=OPEN_S),
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
