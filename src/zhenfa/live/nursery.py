"""The process that forks the cards, and cleans up after a driver that can no longer do so.

The driver starts it once. It imports torch once and forks a process for every card, so that a card costs
milliseconds instead of seconds. It outlives the driver by as long as it takes to kill the cards, end the other
processes it was told of, and remove the temporary folder, the control group and unfinished checkpoints: whatever
ends the driver, a signal 9 included, nothing is left behind. When the nursery itself dies, the kernel kills the cards.

Run as ``python -m zhenfa.live.nursery FD``, where FD is the driver's socket.
"""

from __future__ import annotations

import importlib
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from zhenfa.live import cgroup, linux, wire

PRELOAD: Final = (
    "torch",
    "torch.distributed",
    "torch.distributed.pipelining",
    "torch.distributed.checkpoint.state_dict",
    "zhenfa.live.worker",
)
CLEAN_UP_S: Final = 20.0
GRACE_S: Final = 5.0
"""Seconds that the other processes have to end, and clean up, by themselves."""
TEMPORARY: Final = ("zhenfa-", ".partial")
"""What a folder's name starts or ends with if it is the nursery's to remove."""


class Nursery:
    """Forks cards on request and remembers what to clean up."""

    def __init__(self, driver: socket.socket) -> None:
        self.driver = driver
        self.reader = wire.Reader(driver)
        self.children: set[int] = set()
        self.others: dict[int, int] = {}
        self.folders: set[str] = set()
        self.groups: set[str] = set()
        self.board: str | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Work until the driver closes its socket, then clean up."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        while self.reader.open and not self._over():
            ready = select.select([self.driver.fileno(), self._wake_read], [], [], self._look_every())[0]
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                self._report_ended()
            if self.driver.fileno() in ready:
                for message in self.reader.read():
                    self._obey(message)
        self._clean_up()

    def _over(self) -> bool:
        """Return whether to end though the driver's socket is open; looks after whatever else there is to do."""
        return False

    def _look_every(self) -> float | None:
        """Return the seconds after which :meth:`_over` is to be asked again though nothing came."""
        return None

    def _obey(self, message: dict[str, Any]) -> None:
        if message["do"] == "fork":
            self._fork(message["number"], message["environment"])
        elif message["do"] == "board":
            self.board = message["path"]
        elif message["do"] == "remember":
            self.folders |= set(message.get("folders", ()))
            self.groups |= set(message.get("groups", ()))
            self.others |= {int(pid): start for pid, start in message.get("processes", ())}
        elif message["do"] == "forget":
            self.folders -= set(message["folders"])
        elif message["do"] == "signal" and message["process"] in self.children:
            os.kill(message["process"], message["number"])

    def _fork(self, number: int, environment: dict[str, str]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._in_child(parent, partial(self._be_card, number, environment))
        self._forked()
        self.children.add(pid)
        for group in self.groups:
            cgroup.join(Path(group), pid)
        self._tell({"forked": pid, "number": number})

    def _forked(self) -> None:
        """Let go of what only the card needs."""
        os.close(self.reader.files.pop(0))

    def _channel(self, number: int) -> socket.socket:
        """Return, in the card's process, its socket to the driver."""
        del number
        return socket.socket(fileno=self.reader.files.pop(0))

    def _in_child(self, parent: int, work: Callable[[], None]) -> NoReturn:
        """Do what a forked process is there for, and end it: it dies with its ``parent``."""
        code = 1
        try:
            linux.die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.driver.close()
            work()
            code = 0
        finally:
            os._exit(code)

    def _be_card(self, number: int, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        channel = self._channel(number)
        worker = importlib.import_module("zhenfa.live.worker")
        worker.serve(channel, self.board)

    def _report_ended(self) -> None:
        for pid, status in self._reap():
            self._ended(pid, os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, code: int) -> None:
        self._tell({"ended": pid, "code": code})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            wire.send(self.driver, message)
        except OSError:
            self.reader.open = False

    def _reap(self) -> list[tuple[int, int]]:
        ended = []
        for pid in list(self.children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.children.discard(pid)
                ended.append((pid, status))
        return ended

    def _clean_up(self) -> None:
        """Kill what is left, wait for it, remove folders and groups."""
        begun = time.monotonic()
        while (self.children or self._others_left()) and time.monotonic() < begun + CLEAN_UP_S:
            late = time.monotonic() > begun + GRACE_S
            for pid in [*self.children, *(self._others_left() if late else ())]:
                _kill(pid)
            self._reap()
            time.sleep(0.01)
        for folder in self.folders:
            if Path(folder).name.startswith(TEMPORARY[0]) or folder.endswith(TEMPORARY[1]):
                shutil.rmtree(folder, ignore_errors=True)
        for group in self.groups:
            cgroup.remove(Path(group))

    def _others_left(self) -> list[int]:
        return [pid for pid, start in self.others.items() if linux.start_time(pid) == start and _alive(pid)]


def _alive(pid: int) -> bool:
    return linux.state_of(pid) not in {None, "Z"}


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> None:
    """Serve the driver whose socket is the file number given; import torch first if cards will be forked."""
    driver = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if "--preload" in sys.argv:
        preload()
    Nursery(driver).serve()


def preload() -> None:
    """Import what every card needs, once for all of them."""
    for name in PRELOAD:
        importlib.import_module(name)


if __name__ == "__main__":
    main()
