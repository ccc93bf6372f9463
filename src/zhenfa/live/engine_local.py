"""Cards as processes on this host, forked from a nursery that has torch loaded."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zhenfa
from zhenfa.errors import RunError
from zhenfa.live import cgroup, linux, wire
from zhenfa.live.engine import Engine, Reply
from zhenfa.live.makers import maker
from zhenfa.live.placement import Card, CardPlace

START_S: Final = 120.0
END_S: Final = 15.0
KEEP_MEMORY: Final = {
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(16 * 2**20),
}  # fmt: skip
"""Has the C library keep freed memory, as allocators of accelerators do: otherwise every large tensor is new pages, and
filling them takes several times as long as an element-wise operator. Other C libraries ignore it."""


class Nursed:
    """The driver's end of a nursery: starts it, talks to it, and ends it."""

    def __init__(self, folder: Path, *, preload: bool) -> None:
        self.channel, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": _search_path(), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "GLOO_SOCKET_IFNAME": "lo"} | KEEP_MEMORY
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # importing torch creates it
        command = [sys.executable, "-m", "zhenfa.live.nursery", str(theirs.fileno())]
        with (folder / "cards.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                command + (["--preload"] if preload else []), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
        theirs.close()
        self.reader = wire.Reader(self.channel)
        self.tell({"do": "remember", "folders": [str(folder)]})

    def tell(self, message: dict[str, Any], files: list[int] | None = None) -> None:
        """Send an order to the nursery; a nursery that is gone is noticed elsewhere."""
        try:
            wire.send(self.channel, message, files)
        except OSError as problem:
            raise RunError(f"the process that starts the cards is gone: {problem}.") from None

    def close(self) -> None:
        """Let the nursery clean up and wait for it."""
        self.channel.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class _Process:
    """A card's process: the socket to it, and its id once the nursery has told."""

    reader: wire.Reader
    pid: int | None = None


class LocalEngine(Engine):
    """Cards on this host. ``protect`` asks for a private control group, which is taken where it is allowed."""

    name = "local"

    def __init__(self, *, protect: bool = True) -> None:
        super().__init__()
        self._nursery = Nursed(self.folder, preload=True)
        self._protect, self._group = protect, None if not protect else cgroup.create(self.folder.name)
        if self._group is not None:
            self._nursery.tell({"do": "remember", "groups": [str(self._group)]})
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._nursery.channel, selectors.EVENT_READ, None)
        self._processes: dict[Card, _Process] = {}
        self._forks: dict[int, Card] = {}
        self._endings: dict[int, int] = {}

    @property
    def protection(self) -> str:
        """Return ``cgroup`` if the cards have one of their own."""
        return "none" if self._group is None else "cgroup"

    def start(self) -> None:
        """Fork a process for every card that has none."""
        for place in self.places:
            if place.card not in self._processes:
                self._fork(place)
        deadline = time.monotonic() + START_S
        while any(self._processes[place.card].pid is None for place in self.places if place.card in self._processes):
            if time.monotonic() > deadline or not self._nursery.reader.open:
                raise RunError(f"the cards did not start. {self._last_words()}")
            self._receive(1.0)

    def _fork(self, place: CardPlace) -> None:
        ours, theirs = socket.socketpair()
        number = len(self._forks)
        self._forks[number] = place.card
        environment = maker(place.provider).environment(place.index)
        self._nursery.tell({"do": "fork", "number": number, "environment": environment}, [theirs.fileno()])
        theirs.close()
        self._processes[place.card] = _Process(wire.Reader(ours))
        self._selector.register(ours, selectors.EVENT_READ, place.card)

    def _has(self, card: Card) -> bool:
        return card in self._processes

    def _send(self, card: Card, order: int, method: str, arguments: dict[str, Any]) -> None:
        try:
            wire.send(self._processes[card].reader.channel, {"id": order, "method": method, "arguments": arguments})
        except OSError:
            return  # the card is gone; its death is told of when its socket is read

    def _receive(self, seconds: float) -> list[Reply]:
        replies: list[Reply] = []
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._hear_nursery()
            elif key.data in self._processes:
                replies += self._hear_card(key.data)
        if not self._nursery.reader.open and not replies and self._processes:
            raise RunError(f"the process that starts the cards has ended. {self._last_words()}")
        return replies

    def kill(self, rank: int) -> None:
        """Kill one card."""
        process = self._processes.get(self.places[rank].card)
        if process is not None and process.pid is not None:
            _signal(process.pid)

    def _end(self, card: Card) -> None:
        process = self._processes.pop(card, None)
        if process is None:
            return
        if process.pid is not None:
            _signal(process.pid)
        self._selector.unregister(process.reader.channel)
        process.reader.channel.close()

    def _interrupt(self, card: Card) -> None:
        process = self._processes.get(card)
        if process is not None and process.pid is not None:
            _signal(process.pid, linux.ABANDON)

    def process(self, rank: int) -> int | None:
        """Return the card's process id."""
        process = self._processes.get(self.places[rank].card)
        return None if process is None else process.pid

    def remember(self, folder: Path) -> None:
        """Have the nursery remove a folder should the driver die."""
        self._nursery.tell({"do": "remember", "folders": [str(folder)]})

    def forget(self, folder: Path) -> None:
        """Take it back."""
        self._nursery.tell({"do": "forget", "folders": [str(folder)]})

    def close(self) -> None:
        """End the cards and the nursery, and remove the folder."""
        for card in list(self._processes):
            self._end(card)
        if self._selector.get_map() is not None:
            self._selector.close()
        self._nursery.close()
        if self.board is not None:
            self.board.close()
            self.board = None
        if self._group is not None:
            cgroup.remove(self._group)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _hear_nursery(self) -> None:
        for message in self._nursery.reader.read():
            if "forked" in message:
                process = self._processes.get(self._forks[message["number"]])
                if process is not None:
                    process.pid = message["forked"]
            else:
                self._endings[message["ended"]] = message["code"]
        if not self._nursery.reader.open and self._nursery.channel in self._selector.get_map():
            self._selector.unregister(self._nursery.channel)

    def _hear_card(self, card: Card) -> list[Reply]:
        process, rank = self._processes[card], self._ranks.get(card, -1)
        fields = ("value", "error", "hint", "trace")
        replies = [
            Reply(rank, message["id"], **{key: message.get(key) for key in fields}) for message in process.reader.read()
        ]
        for reply in replies:
            if reply.trace:
                with (self.folder / "cards.log").open("a") as log:
                    log.write(f"card {rank}:\n{reply.trace}\n")
        if not process.reader.open:
            self._selector.unregister(process.reader.channel)
            process.reader.channel.close()
            del self._processes[card]
            self._open = {order: one for order, one in self._open.items() if one != card}
            replies.append(Reply(rank, death=self._ending(process.pid)))
        return replies

    def _ending(self, pid: int | None) -> str:
        """Return how a card ended, once the nursery has told."""
        deadline = time.monotonic() + 1.0
        while pid not in self._endings and self._nursery.reader.open and time.monotonic() < deadline:
            ready = selectors.DefaultSelector()
            ready.register(self._nursery.channel, selectors.EVENT_READ)
            if ready.select(0.1):
                self._hear_nursery()
            ready.close()
        code = None if pid is None else self._endings.pop(pid, None)
        if code is None:
            return "its process ended"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        lines = (self.folder / "cards.log").read_text(errors="replace").strip().splitlines()
        return f"It said last: {lines[-1]}" if lines else "It said nothing."


def _signal(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _search_path() -> str:
    """Return a PYTHONPATH on which the child finds this very package."""
    here = str(Path(zhenfa.__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([here, given] if given else [here])
