"""What carries the cards: one interface for processes on this host and for Ray.

An engine starts a process for each card, passes orders to them by the rank that a card has in the plan under way,
tells at once when one has died, and leaves nothing behind when it is closed. A card keeps its process from plan to
plan; its rank may change. :func:`call_all` adds the watchdog: a card that makes no progress is killed and named.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from zhenfa.errors import CapabilityError, RunError
from zhenfa.live.board import Board
from zhenfa.live.makers import DeviceRecord, maker, maker_for
from zhenfa.live.placement import Card, CardPlace
from zhenfa.live.watchdog import Watchdog
from zhenfa.spec.machine import Formation

MOST_CARDS: Final = 256
"""Cards of one host: all are processes of it."""
SETTLE_S: Final = 0.4
"""Seconds to wait after a first failure: when a card dies its neighbours fail too, and the dead one is the cause."""
QUIET_S: Final = 5.0
"""Seconds in which the cards that are left must answer once one has failed; a card that does not is killed."""


@dataclass(frozen=True)
class Reply:
    """What came back from a card: the ``value`` of an ``order``, an ``error``, or word of its ``death``.

    ``rank`` is -1 for a card that the plan under way does not use.
    """

    rank: int
    order: int = -1
    value: Any = None
    error: str | None = None
    hint: str | None = None
    trace: str | None = None
    death: str | None = None

    @property
    def failed(self) -> bool:
        """Return whether the card could not do it."""
        return self.error is not None or self.death is not None


@dataclass(frozen=True)
class Blame:
    """A card that a failure is put down to, what happened to it, and what it was doing."""

    rank: int
    card: Card
    label: str
    kind: Literal["death", "hang", "error"]
    words: str
    doing: str


class CardError(RunError):
    """One or more cards failed. ``blamed`` says which, and how; the plan under way cannot go on."""

    def __init__(self, message: str, *, hint: str | None = None, blamed: Sequence[Blame] = ()) -> None:
        super().__init__(message, hint=hint)
        self.blamed = tuple(blamed)


class Engine(ABC):
    """Carries cards. Use it as a context manager: leaving it ends every process that it started.

    ``address`` is the one at which the driver's host is reached by all cards. The machine's cards are said before the
    first start, see :meth:`carry`.
    """

    name: str
    address = "127.0.0.1"
    most_cards = MOST_CARDS

    def __init__(self) -> None:
        self.places: tuple[CardPlace, ...] = ()
        self.pools: Counter[str] = Counter()
        self.providers: dict[str, str] = {}
        self.hosts_of: dict[str, tuple[str, ...]] = {}
        self._ranks: dict[Card, int] = {}
        self._providers: dict[Card, str] = {}
        self._orders = itertools.count(1)
        self._open: dict[int, Card] = {}
        self._devices: list[tuple[str | None, str, Sequence[DeviceRecord]]] = []
        self._undelivered: list[Reply] = []
        self.folder = Path(tempfile.mkdtemp(prefix="zhenfa-"))
        self.board: Board | None = None

    def carry(self, formation: Formation) -> None:
        """Say what machine the cards are of: how many each pool has, of which kind, and on which hosts."""
        for pool in formation.pools:
            self.pools[pool.name] = max(self.pools[pool.name], pool.count)
            self.providers[pool.name] = maker_for(pool.accelerator).id
            self.hosts_of[pool.name] = pool.hosts

    def place(self, places: Sequence[CardPlace]) -> None:
        """Say which cards are needed from now on, by rank. Cards that have started are used again.

        Raises :class:`CapabilityError` if there are too many, or if one has started as another kind of card.
        """
        if len(places) > self.most_cards:
            raise CapabilityError(
                f"engine {self.name} carries {self.most_cards} cards at most; this plan needs {len(places)}."
            )
        for new in places:
            if self._providers.setdefault(new.card, new.provider) != new.provider:
                raise CapabilityError(
                    f"card {new.index} of pool {new.pool} has started as a card of {self._providers[new.card]} and "
                    f"cannot become one of {new.provider}.",
                    hint="run the plan in an engine of its own.",
                )
        self.places = tuple(places)
        self._undelivered.clear()
        self._ranks = {place.card: place.rank for place in places}
        if self.board is None:
            self.board = Board(self.folder / "board", self.most_cards, create=True)

    def post(self, rank: int, method: str, arguments: dict[str, Any]) -> int:
        """Give card ``rank`` an order and return its number; the reply comes through :meth:`poll`."""
        order, card = next(self._orders), self.places[rank].card
        if not self._has(card):  # its death was told to somebody who waited for another card
            self._undelivered.append(Reply(rank, order, death="its process is gone"))
            return order
        self._open[order] = card
        self._send(card, order, method, arguments)
        return order

    def poll(self, seconds: float) -> list[Reply]:
        """Return the replies and deaths that have come in, waiting up to ``seconds`` for the first."""
        replies, self._undelivered = self._undelivered, []
        replies = replies or self._receive(seconds)
        for reply in replies:
            self._open.pop(reply.order, None)
        return replies

    def settle(self, seconds: float = QUIET_S) -> list[Card]:
        """Break off the orders under way; kill and return the cards that do not come to an end in ``seconds``."""
        deadline = time.monotonic() + seconds
        for card in set(self._open.values()):
            self._interrupt(card)
        while self._open and (left := deadline - time.monotonic()) > 0:
            self.poll(min(left, 0.5))
        late = sorted(set(self._open.values()))
        for card in late:
            self.discard(card)
        return late

    def discard(self, card: Card) -> None:
        """Kill a card's process, if it has one, and forget it: the card gets a new one at the next start."""
        self._open = {order: one for order, one in self._open.items() if one != card}
        self._end(card)

    @abstractmethod
    def start(self) -> None:
        """Start a process for every card that has none. Returns when they all answer."""

    @abstractmethod
    def _has(self, card: Card) -> bool:
        """Return whether a card has a process that has not ended as far as is known."""

    @abstractmethod
    def _send(self, card: Card, order: int, method: str, arguments: dict[str, Any]) -> None:
        """Send an order to a card's process; one that is gone is told of by :meth:`_receive`."""

    @abstractmethod
    def _receive(self, seconds: float) -> list[Reply]:
        """Return what has come in, waiting up to ``seconds`` for the first."""

    @abstractmethod
    def _end(self, card: Card) -> None:
        """Kill a card's process and forget it."""

    @abstractmethod
    def _interrupt(self, card: Card) -> None:
        """Have a card break off the step under way, if it is on this host."""

    @abstractmethod
    def kill(self, rank: int) -> None:
        """Kill one card at once."""

    @abstractmethod
    def process(self, rank: int) -> int | None:
        """Return the process id of a card on its host, None before it has started."""

    @abstractmethod
    def stop(self, rank: int) -> None:
        """Stop one card as a signal does from which it does not come back: SIGSTOP."""

    @abstractmethod
    def is_stopped(self, rank: int) -> bool:
        """Return whether a card's process was stopped by a signal."""

    def host_name(self, rank: int) -> str | None:
        """Return the name of a card's host, None where all are on the driver's own."""
        del rank
        return None

    def seat(self, card: Card) -> tuple[str | None, int]:
        """Return a card's host, None for the driver's own, and its number among the maker's cards there."""
        return None, card[1]

    def ask_devices(self, host: str | None, provider: str) -> None:
        """Have a host tell of the cards of a maker: :meth:`told_devices`."""
        self._devices.append((host, provider, maker(provider).look()))

    def told_devices(self) -> list[tuple[str | None, str, Sequence[DeviceRecord]]]:
        """Return what hosts have told of makers' cards since the last call: host, maker's id, cards."""
        told, self._devices = self._devices, []
        return told

    def ahead(self, rank: int) -> float:
        """Return how far the driver's clock is ahead of that of a card's host (s)."""
        del rank
        return 0.0

    def unreachable(self) -> set[Card]:
        """Return the cards whose host is gone: they cannot be started again."""
        return set()

    def blind(self, folder: Path) -> list[str]:
        """Return the hosts that do not see what lies in ``folder`` on the driver's."""
        del folder
        return []

    @property
    def one_host(self) -> bool:
        """Return whether all cards are on the driver's own host."""
        return True

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


def call_all(
    engine: Engine, method: str, arguments: Sequence[dict[str, Any]], seconds: float, *, progress: float | None = None
) -> list[Any]:
    """Give every card an order and return their values by rank.

    Raises :class:`CardError` that names the card which died, failed, was stopped, did not answer within ``seconds``, or
    held the others up while no card made progress for ``progress`` seconds; a silent card is killed.
    """
    orders = {engine.post(rank, method, row): rank for rank, row in enumerate(arguments)}
    values: dict[int, Any] = {}
    watchdog = Watchdog(engine.board, engine.is_stopped, progress)
    deadline = time.monotonic() + seconds
    while len(values) < len(orders):
        left = deadline - time.monotonic()
        replies = engine.poll(min(max(left, 0.0), watchdog.look_every))
        failures = [reply for reply in replies if reply.failed and (reply.order in orders or reply.death)]
        failures = [reply for reply in failures if reply.rank >= 0]
        if failures:
            raise _failure(engine, failures)
        values |= {orders[reply.order]: reply.value for reply in replies if reply.order in orders}
        silent = [rank for rank in orders.values() if rank not in values]
        held = watchdog.held_up(silent)
        if silent and (left <= 0 or held):
            raise _silence(engine, watchdog, silent, held or f"no answer within {seconds:g} s")
    return [values[rank] for rank in range(len(orders))]


def _failure(engine: Engine, failures: list[Reply]) -> CardError:
    """Wait a moment for what else fails, and blame a death before an error."""
    end = time.monotonic() + SETTLE_S
    while not any(reply.death for reply in failures) and (left := end - time.monotonic()) > 0:
        if not all(_from_network(reply) for reply in failures):
            break
        failures += [reply for reply in engine.poll(left) if reply.failed and reply.rank >= 0]
    deaths = [reply for reply in failures if reply.death]
    causes = deaths or [reply for reply in failures if not _from_network(reply)] or failures[:1]
    blamed = [
        Blame(
            reply.rank, engine.places[reply.rank].card, engine.places[reply.rank].label,
            "death" if reply.death else "error", reply.death or (reply.error or "").rstrip("."),
            _doing(engine, reply.rank),
        )
        for reply in causes
    ]  # fmt: skip
    cause = blamed[0]
    if cause.kind == "death":
        message = f"{cause.label} died ({cause.words}) while {cause.doing}."
        return CardError(message, hint="the other cards were stopped.", blamed=blamed)
    message = f"{cause.label} failed while {cause.doing}: {cause.words}."
    return CardError(message, hint=causes[0].hint, blamed=blamed)


def _silence(engine: Engine, watchdog: Watchdog, silent: list[int], reason: str) -> CardError:
    """Name the cards that hold the others up, kill them, and say what they were doing."""
    guilty, why = watchdog.guilty(silent)
    blamed = [
        Blame(rank, engine.places[rank].card, engine.places[rank].label, "hang", why or reason, _doing(engine, rank))
        for rank in guilty
    ]
    words = " and ".join(f"{one.label}, {one.doing}" for one in blamed)
    for rank in guilty:
        engine.kill(rank)
    verb = "has" if len(guilty) == 1 else "have"
    also = f" {why}" if why else ""
    return CardError(
        f"{reason}: {words}, {verb} been killed.{also}",
        hint="raise execution.step_timeout_s or execution.progress_timeout_s if a step may take longer.",
        blamed=blamed,
    )


def _doing(engine: Engine, rank: int) -> str:
    return engine.board.read(rank).words() if engine.board is not None else "starting up"


def _from_network(reply: Reply) -> bool:
    """Return whether an error is only the echo of another card's failure."""
    words = (reply.error or "").casefold()
    return any(word in words for word in ("connection", "gloo", "timed out", "socket", "broken pipe"))
