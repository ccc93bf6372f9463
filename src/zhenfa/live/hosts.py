"""The hosts of a run as the driver sees them: what starts the cards there, and which cards are where."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import zhenfa
from zhenfa.errors import CapabilityError, InputError, RunError
from zhenfa.live import linux, wire
from zhenfa.live.makers import maker
from zhenfa.live.placement import Card

END_S: Final = 15.0
KEEP_MEMORY: Final = {
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(16 * 2**20),
}  # fmt: skip
"""Has the C library keep freed memory, as allocators of accelerators do: otherwise every large tensor is new pages, and
filling them takes several times as long as an element-wise operator. Other C libraries ignore it."""


def environment() -> dict[str, str]:
    """Return the variables of a process that forks cards, beside those that it inherits."""
    own = {"PYTHONPATH": _search_path(), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return own | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"} | KEEP_MEMORY


class Host:
    """A host, by the socket to the process that forks the cards there: its nursery.

    ``name`` tells hosts apart. ``ahead`` is how far the driver's clock is ahead of the host's (s): half the time of a
    message there and back is the most that it can be wrong, and the quickest of them is what it rests on.
    ``nursery`` is the process there.
    """

    def __init__(self, name: str, channel: socket.socket, nursery: int) -> None:
        self.name, self.channel, self.nursery, self.reader = name, channel, nursery, wire.Reader(channel)
        self.ahead, self.heard = 0.0, time.monotonic()
        self.stopped: frozenset[int] = frozenset()
        self.looked: dict[str, str | None] = {}
        self._quickest = float("inf")
        self._lock = threading.Lock()

    def tell(self, message: dict[str, Any], files: list[int] | None = None) -> None:
        """Send an order. Raises :class:`RunError` if the nursery is gone."""
        try:
            with self._lock:
                wire.send(self.channel, message, files)
        except OSError as problem:
            raise RunError(f"the process that starts the cards on host {self.name} is gone: {problem}.") from None

    def fork(self, number: int, provider: str, seat: int) -> socket.socket | None:
        """Have a card's process forked; return the socket to it, None if it will come by itself and say ``number``.

        ``seat`` is the card's number among those of its maker's kind on the host.
        """
        self.tell({"do": "fork", "number": number, "provider": provider, "seat": seat})
        return None

    def is_stopped(self, pid: int) -> bool:
        """Return whether a card's process on this host was stopped by a signal."""
        return pid in self.stopped

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a card's process on this host."""
        self.tell({"do": "signal", "process": pid, "number": int(number)})

    def set_clock(self, sent: float, at: float) -> None:
        """Take in an answer to a beat that was ``sent`` by the driver's clock, and given ``at`` by the host's.

        A slow answer says less than a quick one did, and is passed over unless the quickest is long ago.
        """
        received = time.monotonic()
        took = received - sent
        self._quickest *= 1.05
        if took <= self._quickest:
            self._quickest, self.ahead = took, (sent + received) / 2.0 - at

    def close(self) -> None:
        """Hang up: the nursery ends its cards and itself."""
        self.channel.close()


class LocalHost(Host):
    """The driver's own host, with a nursery that the driver starts itself."""

    def __init__(self, folder: Path, *, preload: bool) -> None:
        channel, theirs = socket.socketpair()
        variables = os.environ | environment() | {"GLOO_SOCKET_IFNAME": "lo"}
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # importing torch creates it
        command = [sys.executable, "-m", "zhenfa.live.nursery", str(theirs.fileno())]
        with (folder / "cards.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                command + (["--preload"] if preload else []), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=variables, start_new_session=True,
            )  # fmt: skip
        theirs.close()
        super().__init__("localhost", channel, self.process.pid)
        self.tell({"do": "remember", "folders": [str(folder)]})

    def fork(self, number: int, provider: str, seat: int) -> socket.socket | None:
        """Have a card's process forked, with one end of a pair of sockets; return the other."""
        variables = maker(provider).environment(seat)
        ours, theirs = socket.socketpair()
        self.tell({"do": "fork", "number": number, "environment": variables}, [theirs.fileno()])
        theirs.close()
        return ours

    def is_stopped(self, pid: int) -> bool:
        """Return whether a process was stopped by a signal."""
        return linux.state_of(pid) in {"T", "t"}

    def signal(self, pid: int, number: int) -> None:
        """Send a signal at once."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Let the nursery clean up and wait for it."""
        super().close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def deal(pools: Mapping[str, int], hosts: Sequence[str], wanted: Mapping[str, Sequence[str]]) -> dict[Card, str]:
    """Return which host carries each card of a machine.

    ``pools`` are the counts of cards, ``wanted`` the hosts of a pool where the machine's file names them: each carries
    as many cards, in that order. All others are dealt out in a row over all ``hosts``, as evenly as can be.
    Raises :class:`InputError` for a host that is not there.
    """
    dealt: dict[Card, str] = {}
    free: list[Card] = []
    for pool, count in pools.items():
        row = tuple(wanted.get(pool, ()))
        missing = [name for name in row if name not in hosts]
        if missing:
            raise InputError(
                f"pool {pool!r} is on host {missing[0]!r}, which is not among the hosts of this run: "
                f"{', '.join(hosts)}.",
                hint="ask for that host, or change the pool's `hosts` in the machine file.",
            )
        if row:
            dealt |= {(pool, index): row[index * len(row) // count] for index in range(count)}
        else:
            free += [(pool, index) for index in range(count)]
    return dealt | {card: hosts[number * len(hosts) // len(free)] for number, card in enumerate(free)}


def own_address(others: Sequence[str]) -> str:
    """Return the address by which this host is reached from ``others`` (addresses or names), the loopback interface's
    where all of them are this host. Nothing is sent. Raises :class:`CapabilityError` if there is no way to one."""
    found = []
    for other in others:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((other, 9))
            except OSError as problem:
                raise CapabilityError(
                    f"there is no way from this host to host {other!r}: {problem}.",
                    hint="set ZHENFA_ADDRESS to the address of this host that the others reach.",
                ) from None
            found.append(str(probe.getsockname()[0]))
    given = os.environ.get("ZHENFA_ADDRESS")
    return given or next((address for address in found if not address.startswith("127.")), "127.0.0.1")


def _search_path() -> str:
    """Return a PYTHONPATH on which the child finds this very package."""
    here = str(Path(zhenfa.__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([here, given] if given else [here])
