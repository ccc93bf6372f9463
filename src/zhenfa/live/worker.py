"""The process of one card: it builds its stage, takes steps when told to, and reports what it did."""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from zhenfa.errors import ZhenfaError
from zhenfa.live import linux, wire
from zhenfa.live.card_run import CardRun
from zhenfa.live.linux import ABANDON
from zhenfa.live.makers import maker
from zhenfa.live.orders import Orders


class AbandonedError(RuntimeError):
    """A step was broken off."""


COLLECTIONS: Final = 5
"""How often a card looks again for what nothing refers to, while it finds more."""


class CardWorker:
    """One card. Methods take and return plain data, so that any engine can carry them."""

    def __init__(self, board: str | None = None) -> None:
        self._board = board
        self._run: CardRun | None = None
        self._device: Any = None
        self._bench: Any = None
        self._slower = 1.0
        self._in_step = False

    def hello(self) -> dict[str, Any]:
        """Return who answers."""
        return {"pid": os.getpid(), "torch": torch.__version__}

    def open(
        self, rank: int, orders: dict[str, Any], load: str | None = None, ahead: float = 0.0
    ) -> dict[str, Any]:  # fmt: skip
        """Join the other cards and build this card's stage of the model.

        ``load`` is a checkpoint to begin from; ``ahead`` how far the driver's clock is ahead of this host's (s).
        """
        self.close()
        read = Orders.from_data(orders)
        provider = maker(read.places[rank].provider)
        if self._device is None:
            self._device = provider.open()
        torch.set_num_threads(read.threads)
        linux.sharp_timers()
        try:
            self._run = CardRun(rank, read, provider, self._device, Path(self._board or ""))
            self._run.pacer.slower, self._run.pacer.ahead = self._slower, ahead
            if load is not None:
                self._run.load(Path(load))
        except BaseException:
            self._leave()
            raise
        return {"parameters": self._run.parameter_count, "device": str(self._device)}

    def step(
        self, number: int, at: float, ahead: float, before: Sequence[Sequence[float]] = (), twice: bool = False
    ) -> dict[str, Any]:
        """Take training step ``number``, starting ``at`` (s, the driver's clock, ``ahead`` of this host's).

        A card that fails leaves the group at once, so that those who wait for it need not wait on.
        """
        self._in_step = True
        try:
            self._opened().pacer.ahead = ahead
            return self._opened().step(number, at, before=before, twice=twice)
        except BaseException:
            self._in_step = False
            self._leave()
            raise
        finally:
            self._in_step = False

    def abandon(self, *_: object) -> None:
        """Break off the step under way, if there is one: another card has failed, and it cannot come to an end."""
        if self._in_step:
            self._in_step = False
            raise AbandonedError("the step was broken off, because another card failed")

    def report(self) -> dict[str, Any]:
        """Return what the card counted and measured since it was opened."""
        return self._opened().report()

    def save(self, path: str) -> None:
        """Copy this card's share of a checkpoint and begin to write it."""
        self._opened().save(Path(path))

    def copy(self, path: str, step: int, key: str, mapped: bool) -> None:
        """Copy this card's share of the state, and begin to see that the copy is whole."""
        self._opened().copy(Path(path), step, key, mapped=mapped)

    def let_copies_go(self) -> None:
        """Let go of the memory that copies are in."""
        self._opened().copier.let_go()

    def saved(self) -> list[dict[str, Any]]:
        """Wait until nothing is being written, and return what has been since the last word of it."""
        return self._opened().saver.tell(wait=True)

    def fault(self, kind: str, factor: float = 1.0) -> None:
        """Have a fault happen on purpose, see :mod:`zhenfa.live.faults`; a slow card stays slow under later plans."""
        if kind == "slow":
            self._slower = self._opened().pacer.slower = factor
        else:
            self._opened().faults.poison_next(kind, factor)

    def measure(
        self, rank: int, provider: str, tasks: list[dict[str, Any]], trials: list[dict[str, Any]], seconds: float,
        threads: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Time the tasks and trials of a calibration, or go on with them; ``rank`` names the card to the driver."""
        from zhenfa.live.calibrate.worker import Bench

        del rank
        if self._device is None:
            self._device = maker(provider).open()
        torch.set_num_threads(threads)
        linux.sharp_timers()
        if self._bench is None:
            self._bench = Bench(tasks, trials, self._device)
        found: dict[str, Any] = self._bench.run(seconds)
        return found

    def measure_wires(self, **orders: Any) -> dict[str, Any]:
        """Time messages and sums between the cards, as :func:`zhenfa.live.calibrate.worker.measure_wires` says."""
        from zhenfa.live.calibrate.worker import measure_wires

        return measure_wires(**orders)

    def preflight(self, rank: int, provider: str, **orders: Any) -> list[list[float] | None]:
        """Time the messages and sums of a plan, as :func:`zhenfa.live.doctor.on_card.preflight` says."""
        from zhenfa.live.doctor.on_card import preflight

        if self._device is None:
            self._device = maker(provider).open()
        torch.set_num_threads(1)
        return preflight(maker(provider), self._device, rank=rank, **orders)

    def close(self) -> None:
        """Leave the group and free the model."""
        if self._run is not None:
            self._run.close()
            self._run = None
        _forget()  # and what the exception of a step that failed has held

    def _leave(self) -> None:
        """Leave a group in which something failed, whatever state it is in."""
        if self._run is not None:
            self._run.let_go()
        self._run = None
        if dist.is_initialized():
            dist.destroy_process_group()
        _forget()

    def _opened(self) -> CardRun:
        if self._run is None:
            raise RuntimeError("the card has not been opened")
        return self._run


def _forget() -> None:
    """Give back what nothing refers to any more.

    What torch holds for a module or a graph is found only when what held those has gone: one collection is not enough.
    """
    for _ in range(COLLECTIONS):
        if not gc.collect():
            break
    linux.give_back_memory()


def serve(channel: socket.socket, board: str | None = None) -> None:
    """Obey the driver until it closes the socket; ``board`` is the path of this host's board."""
    linux.one_heap()
    gc.freeze()  # what has been imported stays: 0.1 s less in each collection
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = CardWorker(board)
    signal.signal(ABANDON, worker.abandon)
    reader = wire.Reader(channel)
    while reader.open:
        for message in reader.read(wait=True):
            wire.send(channel, obey(worker, message))


def obey(worker: CardWorker, message: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one order: ``{"value": ...}``, or ``{"error": ..., "trace": ...}``."""
    try:
        return {"id": message["id"], "value": getattr(worker, message["method"])(**message["arguments"])}
    except ZhenfaError as problem:
        return {"id": message["id"], "error": problem.message, "hint": problem.hint, "trace": traceback.format_exc()}
    except Exception as problem:
        words = str(problem).strip().splitlines() or [type(problem).__name__]
        return {"id": message["id"], "error": words[0], "kind": type(problem).__name__, "trace": traceback.format_exc()}
