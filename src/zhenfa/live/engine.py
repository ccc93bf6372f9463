"""What carries the cards: one interface for processes on this host and for Ray.

An engine places cards, starts their processes, passes orders to them, tells at once when one has died, and leaves
nothing behind when it is closed. :func:`call_all` adds the deadline: a card that does not answer is killed and named.
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from zhenfa.errors import CapabilityError, RunError
from zhenfa.live import linux
from zhenfa.live.board import Board
from zhenfa.live.placement import CardPlace
from zhenfa.live.providers import PROVIDERS

MOST_CARDS: Final = 256
"""Cards of one engine: all are processes of this host."""
SETTLE_S: Final = 0.4
"""Seconds to wait after a first failure: when a card dies its neighbours fail too, and the dead one is the cause."""


@dataclass(frozen=True)
class Reply:
    """What came back from a card: the ``value`` of an order, an ``error``, or word of its ``death``."""

    rank: int
    value: Any = None
    error: str | None = None
    hint: str | None = None
    trace: str | None = None
    death: str | None = None

    @property
    def failed(self) -> bool:
        """Return whether the card could not do it."""
        return self.error is not None or self.death is not None


class Engine(ABC):
    """Carries cards. Use it as a context manager: leaving it ends every process that it started."""

    name: str

    def __init__(self) -> None:
        self.places: tuple[CardPlace, ...] = ()
        self._known: dict[int, CardPlace] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="zhenfa-"))
        self.board: Board | None = None

    def place(self, places: Sequence[CardPlace]) -> None:
        """Say which cards will be needed, by rank. Cards that have started are used again.

        Raises :class:`CapabilityError` if a started card would have to be another one, or there are too many.
        """
        if len(places) > MOST_CARDS:
            raise CapabilityError(f"one host carries {MOST_CARDS} cards at most; this plan needs {len(places)}.")
        for new in places:
            old = self._known.setdefault(new.rank, new)
            if self._card(old) != self._card(new):
                raise CapabilityError(
                    f"{old.label} has started and cannot become card {new.index} of pool {new.pool}.",
                    hint="run the plan in an engine of its own.",
                )
        self.places = tuple(places)
        if self.board is None:
            self.board = Board(self.folder / "board", MOST_CARDS, create=True)

    def _card(self, place: CardPlace) -> tuple[object, ...]:
        """Return what of a card stays as it is once its process has started: processor cards are all alike."""
        bound = PROVIDERS[place.provider].visible_devices is not None
        return (place.provider, place.pool, place.index) if bound else (place.provider,)

    @abstractmethod
    def start(self) -> None:
        """Start a process for every card that has none. Returns when they all answer."""

    @abstractmethod
    def post(self, rank: int, method: str, arguments: dict[str, Any]) -> None:
        """Give card ``rank`` an order; its reply comes through :meth:`poll`."""

    @abstractmethod
    def poll(self, seconds: float) -> list[Reply]:
        """Return the replies and deaths that have come in, waiting up to ``seconds`` for the first."""

    @abstractmethod
    def kill(self, rank: int) -> None:
        """Kill one card at once."""

    @abstractmethod
    def process(self, rank: int) -> int | None:
        """Return the process id of a card on this host, None before it has started."""

    @abstractmethod
    def close(self) -> None:
        """End every process, free every port, remove the temporary folder. May be called again."""

    @abstractmethod
    def remember(self, folder: Path) -> None:
        """Have an unfinished folder (its name ends in ``.partial``) removed should the driver die."""

    @abstractmethod
    def forget(self, folder: Path) -> None:
        """Take :meth:`remember` back."""

    @property
    def protection(self) -> str:
        """Return what keeps the cards' share of the processor: ``cgroup`` or ``none``."""
        return "none"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def call_all(engine: Engine, method: str, arguments: Sequence[dict[str, Any]], seconds: float) -> list[Any]:
    """Give every card an order and return their values by rank.

    Raises :class:`RunError` that names the card which died, failed, or did not answer within ``seconds``, and what it
    was doing; a silent card is killed. The engine is of no further use then.
    """
    for rank, row in enumerate(arguments):
        engine.post(rank, method, row)
    values: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    while len(values) < len(arguments):
        left = deadline - time.monotonic()
        if left <= 0:
            raise _silence(engine, [rank for rank in range(len(arguments)) if rank not in values], seconds)
        replies = engine.poll(left)
        failures = [reply for reply in replies if reply.failed]
        if failures:
            raise _failure(engine, failures)
        values |= {reply.rank: reply.value for reply in replies}
    return [values[rank] for rank in range(len(arguments))]


def _failure(engine: Engine, failures: list[Reply]) -> RunError:
    """Wait a moment for what else fails, and blame a death before an error."""
    end = time.monotonic() + SETTLE_S
    while not any(reply.death for reply in failures) and (left := end - time.monotonic()) > 0:
        failures += [reply for reply in engine.poll(left) if reply.failed]
    deaths = [reply for reply in failures if reply.death]
    cause = (deaths or [reply for reply in failures if not _from_network(reply)] or failures)[0]
    label = engine.places[cause.rank].label
    doing = _doing(engine, cause.rank)
    if cause.death:
        return RunError(f"{label} died ({cause.death}) while {doing}.", hint="the other cards were stopped.")
    words = (cause.error or "").rstrip(".")
    return RunError(f"{label} failed while {doing}: {words}.", hint=cause.hint)


def _silence(engine: Engine, silent: list[int], seconds: float) -> RunError:
    """Name the cards that hold the others up, kill them, and say what they were doing."""
    guilty = _guilty(engine, silent)
    words = " and ".join(f"{engine.places[rank].label}, {_doing(engine, rank)}" for rank in guilty)
    stopped = [rank for rank in guilty if _is_stopped(engine, rank)]
    for rank in silent:
        engine.kill(rank)
    reason = " Its process was stopped by a signal." if stopped else ""
    verb = "has" if len(guilty) == 1 else "have"
    return RunError(
        f"no answer within {seconds:g} s: {words}, {verb} been killed.{reason}",
        hint="raise execution.step_timeout_s if a step may take longer.",
    )


def _guilty(engine: Engine, silent: list[int]) -> list[int]:
    """Of the silent cards return those stopped, else those that do not wait for another, else all."""
    stopped = [rank for rank in silent if _is_stopped(engine, rank)]
    if stopped or engine.board is None:
        return stopped or silent
    busy = [rank for rank in silent if engine.board.read(rank).activity not in {"receive", "reduce", "idle"}]
    return busy or silent


def _is_stopped(engine: Engine, rank: int) -> bool:
    pid = engine.process(rank)
    return pid is not None and linux.state_of(pid) in {"T", "t"}


def _doing(engine: Engine, rank: int) -> str:
    return engine.board.read(rank).words() if engine.board is not None else "starting up"


def _from_network(reply: Reply) -> bool:
    """Return whether an error is only the echo of another card's failure."""
    words = (reply.error or "").casefold()
    return any(word in words for word in ("connection", "gloo", "timed out", "socket", "broken pipe"))
