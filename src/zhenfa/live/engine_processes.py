"""What engines have in common whose cards are processes that answer to the driver by a socket, on whatever host."""

from __future__ import annotations

import contextlib
import itertools
import select
import selectors
import shutil
import signal
import socket
import time
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import RunError
from zhenfa.live import linux, wire
from zhenfa.live.engine import Engine, Reply
from zhenfa.live.hosts import Host
from zhenfa.live.placement import Card, CardPlace

START_S: Final = 120.0
ENDING_S: Final = 1.0
"""Seconds in which a nursery tells how a card ended."""


@dataclass
class Process:
    """A card's process: its host, the number of its fork, its id once the nursery has told, the socket once it is
    there."""

    host: Host
    number: int
    pid: int | None = None
    reader: wire.Reader | None = None


class ProcessEngine(Engine):
    """Cards as processes that nurseries fork. Who inherits it says on which host a card is, and makes the hosts."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = selectors.DefaultSelector()
        self._hosts: dict[str, Host] = {}
        self._processes: dict[Card, Process] = {}
        self._forks = itertools.count()
        self._endings: dict[tuple[str, int], int] = {}

    def start(self) -> None:
        """Fork a process for every card that has none."""
        missing = [place for place in self.places if place.card not in self._processes]
        self._make_ready(missing)
        for place in missing:
            self._fork(place)
        deadline = time.monotonic() + START_S
        while not all(self._is_up(place.card) for place in missing):
            if time.monotonic() > deadline:
                raise RunError(f"the cards did not start within {START_S:g} s. {self._last_words()}")
            self._receive(1.0)

    def _make_ready(self, places: list[CardPlace]) -> None:
        """Have the hosts there that carry these cards."""

    @abstractmethod
    def _host_of(self, place: CardPlace) -> Host:
        """Return the host that carries a card."""

    def seat(self, card: Card) -> tuple[str | None, int]:
        """Return a card's host, None for the driver's own, and its number among the maker's cards there.

        Cards are counted in the order of the machine's pools.
        """
        return (None if self.one_host else self._name_of(card)), self._number(card)

    def _number(self, card: Card) -> int:
        provider, host = self.providers.get(card[0]), self._name_of(card)
        cards = [
            (pool, index)
            for pool, count in self.pools.items()
            if self.providers.get(pool) == provider
            for index in range(count)
        ]
        return [one for one in cards if self._name_of(one) == host].index(card) if card in cards else card[1]

    def _name_of(self, card: Card) -> str:
        """Return the name of the host on which a card is, or would be."""
        del card
        return "localhost"

    def _add_host(self, host: Host) -> None:
        self._hosts[host.name] = host
        self._selector.register(host.channel, selectors.EVENT_READ, host)

    def _is_up(self, card: Card) -> bool:
        process = self._processes.get(card)
        return process is None or (process.pid is not None and process.reader is not None)

    def _fork(self, place: CardPlace) -> None:
        host, number = self._host_of(place), next(self._forks)
        self._processes[place.card] = Process(host, number)
        channel = host.fork(number, place.provider, self._number(place.card))
        if channel is not None:
            self._attach(place.card, channel)

    def _of_fork(self, number: int) -> Card | None:
        """Return the card for which a fork was asked for, None if it has been forgotten since."""
        return next((card for card, process in self._processes.items() if process.number == number), None)

    def _attach(self, card: Card, channel: socket.socket) -> None:
        self._processes[card].reader = wire.Reader(channel)
        self._selector.register(channel, selectors.EVENT_READ, card)

    def _has(self, card: Card) -> bool:
        return card in self._processes

    def _send(self, card: Card, order: int, method: str, arguments: dict[str, Any]) -> None:
        reader = self._processes[card].reader
        try:
            if reader is not None:
                wire.send(reader.channel, {"id": order, "method": method, "arguments": arguments})
        except OSError:
            return  # the card is gone; its death is told of when its socket is read

    def _receive(self, seconds: float) -> list[Reply]:
        replies: list[Reply] = []
        for key, _ in self._selector.select(seconds):
            if isinstance(key.data, Host):
                replies += self._hear_host(key.data)
            elif isinstance(key.data, str):
                self._hear_other(key.data)
            elif key.data in self._processes:
                replies += self._hear_card(key.data)
        return replies + self._look_after()

    def _hear_other(self, what: str) -> None:
        """Take in what came from neither a host nor a card."""

    def _look_after(self) -> list[Reply]:
        """Return word of what did not come in and should have."""
        return []

    def kill(self, rank: int) -> None:
        """Kill one card."""
        self._signal(self.places[rank].card, signal.SIGKILL)

    def stop(self, rank: int) -> None:
        """Stop one card."""
        self._signal(self.places[rank].card, signal.SIGSTOP)

    def _interrupt(self, card: Card) -> None:
        self._signal(card, linux.ABANDON)

    def _signal(self, card: Card, number: int) -> None:
        process = self._processes.get(card)
        if process is not None and process.pid is not None:
            with contextlib.suppress(RunError):  # the cards of a host that is gone are gone with it
                process.host.signal(process.pid, number)

    def _end(self, card: Card) -> None:
        self._signal(card, signal.SIGKILL)
        self._drop(card)

    def _drop(self, card: Card) -> Process | None:
        """Forget a card's process and close the socket to it."""
        process = self._processes.pop(card, None)
        if process is not None and process.reader is not None:
            self._selector.unregister(process.reader.channel)
            process.reader.channel.close()
        return process

    def process(self, rank: int) -> int | None:
        """Return the card's process id."""
        process = self._processes.get(self.places[rank].card)
        return None if process is None else process.pid

    def is_stopped(self, rank: int) -> bool:
        """Return whether the card's process was stopped by a signal."""
        process = self._processes.get(self.places[rank].card)
        return process is not None and process.pid is not None and process.host.is_stopped(process.pid)

    def ahead(self, rank: int) -> float:
        """Return how far the driver's clock is ahead of that of the card's host (s)."""
        process = self._processes.get(self.places[rank].card)
        return 0.0 if process is None else process.host.ahead

    def remember(self, folder: Path) -> None:
        """Have the nurseries remove a folder should the driver die."""
        for host in list(self._hosts.values()):
            host.tell({"do": "remember", "folders": [str(folder)]})

    def forget(self, folder: Path) -> None:
        """Take it back."""
        for host in list(self._hosts.values()):
            host.tell({"do": "forget", "folders": [str(folder)]})

    def close(self) -> None:
        """End the cards and the nurseries, and remove the folder."""
        for card in list(self._processes):
            self._end(card)
        if self._selector.get_map() is not None:
            self._selector.close()
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
        if self.board is not None:
            self.board.close()
            self.board = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _hear_host(self, host: Host) -> list[Reply]:
        for message in host.reader.read():
            host.heard = time.monotonic()
            if "forked" in message:
                card = self._of_fork(message["number"])
                if card is not None:
                    self._processes[card].pid = message["forked"]
            elif "ended" in message:
                self._endings[host.name, message["ended"]] = message["code"]
            else:
                self._take_in(host, message)
        return [] if host.reader.open else self._lose(host)

    def _take_in(self, host: Host, message: dict[str, Any]) -> None:
        """Take in what only a nursery on another host tells."""

    def _lose(self, host: Host) -> list[Reply]:
        """Do without a host that is gone, and return word of the death of its cards."""
        del host
        raise RunError(f"the process that starts the cards has ended. {self._last_words()}")

    def _hear_card(self, card: Card) -> list[Reply]:
        process, rank = self._processes[card], self._ranks.get(card, -1)
        if process.reader is None:
            return []
        fields = ("value", "error", "hint", "trace")
        replies = [
            Reply(rank, message["id"], **{key: message.get(key) for key in fields}) for message in process.reader.read()
        ]
        for reply in replies:
            if reply.trace:
                with (self.folder / "cards.log").open("a") as log:
                    log.write(f"card {rank}:\n{reply.trace}\n")
        if not process.reader.open:
            self._drop(card)
            replies.append(self._dead(card, self._ending(process)))
        return replies

    def _dead(self, card: Card, how: str) -> Reply:
        self._open = {order: one for order, one in self._open.items() if one != card}
        return Reply(self._ranks.get(card, -1), death=how)

    def _ending(self, process: Process) -> str:
        """Return how a card ended, once the nursery has told."""
        deadline, key = time.monotonic() + ENDING_S, (process.host.name, process.pid or -1)
        while key not in self._endings and process.host.reader.open and time.monotonic() < deadline:
            if select.select([process.host.channel], [], [], 0.1)[0]:
                self._undelivered += self._hear_host(process.host)
        code = self._endings.pop(key, None)
        if code is None:
            return "its process ended"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        log = self.folder / "cards.log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return f"It said last: {lines[-1]}" if lines else "It said nothing."
