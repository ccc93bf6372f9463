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
from pathlib import Path
from typing import Any, Final

import zhenfa
from zhenfa.errors import RunError
from zhenfa.live import cgroup, wire
from zhenfa.live.engine import Engine, Reply
from zhenfa.live.providers import PROVIDERS

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
        self._channels: dict[int, wire.Reader] = {}
        self._pids: dict[int, int] = {}
        self._endings: dict[int, int] = {}
        self._orders = 0

    @property
    def protection(self) -> str:
        """Return ``cgroup`` if the cards have one of their own."""
        return "none" if self._group is None else "cgroup"

    def start(self) -> None:
        """Fork a process for every card that has none."""
        for place in self.places:
            if place.rank in self._channels:
                continue
            ours, theirs = socket.socketpair()
            environment = PROVIDERS[place.provider].environment(place.index)
            self._nursery.tell({"do": "fork", "rank": place.rank, "environment": environment}, [theirs.fileno()])
            theirs.close()
            self._channels[place.rank] = wire.Reader(ours)
            self._selector.register(ours, selectors.EVENT_READ, place.rank)
        deadline = time.monotonic() + START_S
        while len(self._pids) < len(self.places):
            if time.monotonic() > deadline or not self._nursery.reader.open:
                raise RunError(f"the cards did not start. {self._last_words()}")
            self._collect(1.0)

    def post(self, rank: int, method: str, arguments: dict[str, Any]) -> None:
        """Give card ``rank`` an order."""
        self._orders += 1
        message = {"id": self._orders, "method": method, "arguments": arguments}
        try:
            wire.send(self._channels[rank].channel, message)
        except OSError:
            return  # the card is gone; poll tells of its death

    def poll(self, seconds: float) -> list[Reply]:
        """Return what has come in."""
        return self._collect(seconds)

    def kill(self, rank: int) -> None:
        """Kill one card."""
        if rank in self._pids and rank in self._channels:
            _signal(self._pids[rank])

    def process(self, rank: int) -> int | None:
        """Return the card's process id."""
        return self._pids.get(rank)

    def remember(self, folder: Path) -> None:
        """Have the nursery remove a folder should the driver die."""
        self._nursery.tell({"do": "remember", "folders": [str(folder)]})

    def forget(self, folder: Path) -> None:
        """Take it back."""
        self._nursery.tell({"do": "forget", "folders": [str(folder)]})

    def close(self) -> None:
        """End the cards and the nursery, and remove the folder."""
        if self._selector.get_map() is not None:
            self._selector.close()
        for rank, reader in self._channels.items():
            self.kill(rank)
            reader.channel.close()
        self._channels.clear()
        self._nursery.close()
        if self.board is not None:
            self.board.close()
            self.board = None
        if self._group is not None:
            cgroup.remove(self._group)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _collect(self, seconds: float) -> list[Reply]:
        replies: list[Reply] = []
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._hear_nursery()
            else:
                replies += self._hear_card(int(key.data))
        if not self._nursery.reader.open and not replies and self._channels:
            raise RunError(f"the process that starts the cards has ended. {self._last_words()}")
        return replies

    def _hear_nursery(self) -> None:
        for message in self._nursery.reader.read():
            if "forked" in message:
                self._pids[message["rank"]] = message["forked"]
            else:
                self._endings[message["ended"]] = message["code"]
        if not self._nursery.reader.open and self._nursery.channel in self._selector.get_map():
            self._selector.unregister(self._nursery.channel)

    def _hear_card(self, rank: int) -> list[Reply]:
        reader = self._channels[rank]
        fields = ("value", "error", "hint", "trace")
        replies = [Reply(rank, **{key: message.get(key) for key in fields}) for message in reader.read()]
        for reply in replies:
            if reply.trace:
                with (self.folder / "cards.log").open("a") as log:
                    log.write(f"card {rank}:\n{reply.trace}\n")
        if not reader.open:
            self._selector.unregister(reader.channel)
            reader.channel.close()
            del self._channels[rank]
            replies.append(Reply(rank, death=self._ending(rank)))
        return replies

    def _ending(self, rank: int) -> str:
        """Return how a card ended, once the nursery has told."""
        pid = self._pids.get(rank, -1)
        deadline = time.monotonic() + 1.0
        while pid not in self._endings and self._nursery.reader.open and time.monotonic() < deadline:
            ready = selectors.DefaultSelector()
            ready.register(self._nursery.channel, selectors.EVENT_READ)
            if ready.select(0.1):
                self._hear_nursery()
            ready.close()
        code = self._endings.get(pid)
        if code is None:
            return "its process ended"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        lines = (self.folder / "cards.log").read_text(errors="replace").strip().splitlines()
        return f"It said last: {lines[-1]}" if lines else "It said nothing."


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _search_path() -> str:
    """Return a PYTHONPATH on which the child finds this very package."""
    here = str(Path(zhenfa.__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([here, given] if given else [here])
