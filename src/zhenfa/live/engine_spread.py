"""Cards on several hosts: on each an outpost forks them, and all of them come to the driver's door.

A host is gone when its outpost hangs up or is not heard of for :attr:`SpreadEngine.silent_s`; its cards are then lost
to the run, which goes on with the others. The folder in which a run keeps its state must be seen by all hosts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from zhenfa.errors import CapabilityError, RunError
from zhenfa.live import linux
from zhenfa.live.door import Door
from zhenfa.live.engine import Blame, CardError, Reply
from zhenfa.live.engine_processes import START_S, ProcessEngine
from zhenfa.live.hosts import END_S, Host, LocalHost, deal, environment
from zhenfa.live.makers.recorded import record_of
from zhenfa.live.outpost import MOST_RANKS
from zhenfa.live.placement import Card, CardPlace
from zhenfa.spec.machine import Formation

BEAT_S: Final = 2.0
LOOK_S: Final = 10.0


class SpreadEngine(ProcessEngine):
    """Cards on several hosts. ``address`` is this host's as the others reach it; ``hosts`` are their names, in order.

    Who inherits it starts the outposts in :meth:`_launch`.
    """

    most_cards = MOST_RANKS
    silent_s = 20.0

    def __init__(self, address: str, hosts: Sequence[str], *, protect: bool = True) -> None:
        super().__init__()
        self.address, self.names, self._protect = address, tuple(hosts), protect
        self._guard = LocalHost(self.folder, preload=False)
        self._door = Door(address)
        self._selector.register(self._door.bell, selectors.EVENT_READ, "door")
        self._gone: set[str] = set()
        self._deal: dict[Card, str] = {}
        self._protected: dict[str, bool] = {}
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    @property
    def one_host(self) -> bool:
        """Return False: cards need not be on the driver's own host, nor see its memory and files."""
        return False

    @property
    def protection(self) -> str:
        """Return ``cgroup`` if the cards have one of their own on every host."""
        return "cgroup" if self._protected and all(self._protected.values()) else "none"

    def host(self, name: str) -> Host:
        """Return a host that is there. Raises :class:`KeyError`."""
        return self._hosts[name]

    def host_name(self, rank: int) -> str | None:
        """Return the name of a card's host."""
        return self._name_of(self.places[rank].card)

    def unreachable(self) -> set[Card]:
        """Return the cards whose host is gone."""
        return {card for card, name in self._dealt().items() if name in self._gone}

    def blind(self, folder: Path) -> list[str]:
        """Return the hosts that do not see what lies in ``folder`` on the driver's."""
        folder.mkdir(parents=True, exist_ok=True)
        probe, words = folder / f".probe-{secrets.token_hex(8)}", secrets.token_hex(16)
        probe.write_text(words)
        try:
            asked = dict(self._hosts)
            for host in asked.values():
                host.tell({"do": "look", "path": str(probe)})
            deadline = time.monotonic() + LOOK_S
            while any(str(probe) not in host.looked for host in asked.values()) and time.monotonic() < deadline:
                self._undelivered += self._receive(0.5)
            return [name for name, host in asked.items() if host.looked.pop(str(probe), None) != words]
        finally:
            probe.unlink()

    def ask_devices(self, host: str | None, provider: str) -> None:
        """Ask a host that is there; the answer comes with what else it says."""
        with contextlib.suppress(KeyError, RunError):  # a host that is gone is noticed where its answers are read
            self._hosts[host or ""].tell({"do": "devices", "provider": provider})

    def remember(self, folder: Path) -> None:
        """Have a folder removed should the driver die."""
        self._guard.tell({"do": "remember", "folders": [str(folder)]})

    def forget(self, folder: Path) -> None:
        """Take it back."""
        self._guard.tell({"do": "forget", "folders": [str(folder)]})

    def close(self) -> None:
        """End the cards, the outposts and what started them."""
        self._over.set()
        self._beating.join()
        super().close()
        self._door.close()
        self._end_launch()
        self._guard.close()

    @abstractmethod
    def _launch(self, cards: Sequence[Card]) -> None:
        """Begin to start the outposts that these cards need and that have not been started."""

    @abstractmethod
    def _still_launching(self) -> bool:
        """Return whether hosts may still come."""

    def _end_launch(self) -> None:
        """Wait for what started the outposts, or end it."""

    def _make_ready(self, places: list[CardPlace]) -> None:
        self._launch([place.card for place in places])
        deadline = time.monotonic() + START_S
        while missing := self._missing(places):
            if time.monotonic() > deadline or not self._still_launching():
                raise RunError(
                    f"{_hosts(missing)} did not answer within {START_S:g} s. {self._last_words()}",
                    hint=f"the driver listens on {self.address}; set ZHENFA_ADDRESS if the hosts reach it by another.",
                )
            self._undelivered += self._receive(0.2)

    def _missing(self, places: Sequence[CardPlace]) -> list[str]:
        wanted = {self._name_of(place.card) for place in places}
        return [name for name in self.names if name in wanted and name not in self._hosts and name not in self._gone]

    def carry(self, formation: Formation) -> None:
        """Say what machine the cards are of, and deal them out."""
        super().carry(formation)
        self._deal = deal(self.pools, self.names, self.hosts_of) if self.names else {}

    def _dealt(self) -> dict[Card, str]:
        """Return which host carries each card."""
        return self._deal

    def _name_of(self, card: Card) -> str:
        return self._dealt().get(card, self.names[0])

    def _host_of(self, place: CardPlace) -> Host:
        name = self._name_of(place.card)
        if name not in self._hosts:
            words = f"its host {name} is gone"
            blame = Blame(place.rank, place.card, place.label, "death", words, "starting up")
            raise CardError(f"{place.label} cannot start: {words}.", blamed=[blame])
        return self._hosts[name]

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            for host in list(self._hosts.values()):
                _beat(host)

    def _hear_other(self, what: str) -> None:
        for hello, channel in self._door.guests():
            if "host" in hello:
                self._welcome(hello, channel)
                continue
            card = self._of_fork(hello.get("card", -1))
            if card is None:
                channel.close()
            else:
                self._attach(card, channel)

    def _welcome(self, hello: Mapping[str, Any], channel: socket.socket) -> None:
        name = str(hello["host"])
        if name not in self.names or name in self._hosts or name in self._gone:
            channel.close()
            return
        host = Host(name, channel, int(hello["process"]))
        self._add_host(host)
        if self._protect:
            host.tell({"do": "protect"})
        for _ in range(5):
            _beat(host)

    def _take_in(self, host: Host, message: dict[str, Any]) -> None:
        if "beat" in message:
            host.set_clock(message["beat"], message["at"])
        elif "slots" in message:
            host.stopped = frozenset(message["stopped"])
            for rank, slot in message["slots"].items():
                if self.board is not None:
                    self.board.put(int(rank), bytes.fromhex(slot), host.ahead)
        elif "looked" in message:
            host.looked[message["looked"]] = message["text"]
        elif "devices" in message:
            records = [record_of(one) for one in message["devices"]]
            self._devices.append((host.name, message["provider"], records))
        elif "protected" in message:
            self._protected[host.name] = message["protected"]
        elif "refused" in message:
            raise CapabilityError(f"host {host.name}: {message['words']}", hint=message["hint"])

    def _look_after(self) -> list[Reply]:
        now = time.monotonic()
        silent = [host for host in self._hosts.values() if now - host.heard > self.silent_s]
        return [reply for host in silent for reply in self._lose(host, f"not heard of for {self.silent_s:g} s")]

    def _lose(self, host: Host, why: str = "gone") -> list[Reply]:
        self._selector.unregister(host.channel)
        host.close()
        host.reader.open = False
        del self._hosts[host.name]
        self._gone.add(host.name)
        self._protected.pop(host.name, None)
        cards = [card for card, process in self._processes.items() if process.host is host]
        for card in cards:
            self._drop(card)
        return [self._dead(card, f"its host {host.name} is {why}") for card in cards]


class CommandEngine(SpreadEngine):
    """Cards on hosts whose outposts are started by commands, such as one of ``srun`` for all of them."""

    name = "hosts"

    def __init__(
        self, address: str, hosts: Sequence[str], commands: Sequence[Sequence[str]], *, protect: bool = True
    ) -> None:
        super().__init__(address, hosts, protect=protect)
        self._commands = [list(command) for command in commands]
        self._launched: list[subprocess.Popen[bytes]] = []

    def _launch(self, cards: Sequence[Card]) -> None:
        if self._launched:
            return
        variables = os.environ | environment() | self._door.environment()
        with (self.folder / "cards.log").open("ab") as log:
            for command in self._commands:
                self._launched.append(
                    subprocess.Popen(  # noqa: S603
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, start_new_session=True
                    )
                )
        started = [(one.pid, linux.start_time(one.pid)) for one in self._launched]
        self._guard.tell({"do": "remember", "processes": [pair for pair in started if pair[1] is not None]})

    def _still_launching(self) -> bool:
        return any(one.poll() is None for one in self._launched)

    def _end_launch(self) -> None:
        deadline = time.monotonic() + END_S
        for one in self._launched:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(max(deadline - time.monotonic(), 0.1))
        for one in self._launched:
            if one.poll() is None:
                for process in _family(one.pid):
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                one.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def _beat(host: Host) -> None:
    with contextlib.suppress(RunError):  # who has hung up is noticed where its answers are read
        host.tell({"do": "beat", "sent": time.monotonic()})


def _hosts(names: Sequence[str]) -> str:
    return f"host {names[0]}" if len(names) == 1 else f"hosts {', '.join(names)}"
