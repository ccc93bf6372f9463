"""A nursery on another host: it comes to the driver's door, and its cards do.

What a nursery on the driver's host can leave to the file system it tells: what the cards are doing (the board), which
of them were stopped by a signal, how late it is on this host. It ends, with all its cards, when the driver hangs up or
is not heard of for :data:`SILENT_S`, so that a network that breaks leaves nothing behind on either side.

Run as ``python -m zhenfa.live.outpost``, with the driver's address and the run's token in the environment; with
``--while-open`` it also ends when its standard input does, which ties it to whatever started it, and with ``--apart``
it is no child of that, which a scheduler might kill before it has cleaned up.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import RunError, ZhenfaError
from zhenfa.live import cgroup, door, linux
from zhenfa.live.board import SLOT_BYTES, Board
from zhenfa.live.host import processors
from zhenfa.live.makers import maker
from zhenfa.live.nursery import TEMPORARY, Nursery, preload

MOST_RANKS: Final = 4096
"""Cards of one run over several hosts."""
LOOK_S: Final = 0.2
SILENT_S: Final = 60.0
NAME: Final = "ZHENFA_HOST"
"""Variable with the name of this host, as whoever started the outpost knows it."""
NAMES: Final = (NAME, "SLURMD_NODENAME")


class Outpost(Nursery):
    """A nursery that reaches its driver over the network."""

    def __init__(self, address: tuple[str, int], token: str, name: str, *, tied: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=TEMPORARY[0]))
        self._address, self._token, self._tied = address, token, tied
        hello = {"host": name, "folder": str(self.folder), "process": os.getpid(), "processors": processors()}
        channel = door.enter(address, token, hello)
        super().__init__(channel)
        self.folders.add(str(self.folder))
        self.board = str(self.folder / "board")
        self._slots = Board(Path(self.board), MOST_RANKS, create=True)
        self._seen = bytes(SLOT_BYTES * MOST_RANKS)
        self._stopped: list[int] = []
        self._lookers: dict[int, str] = {}
        self._heard = self._looked = time.monotonic()
        self._interface = interface_of(channel.getsockname()[0])
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "inductor")

    def _obey(self, message: dict[str, Any]) -> None:
        self._heard = time.monotonic()
        if message["do"] == "beat":
            self._tell({"beat": message["sent"], "at": time.monotonic()})
        elif message["do"] == "protect":
            group = cgroup.create(self.folder.name)
            self.groups |= set() if group is None else {str(group)}
            self._tell({"protected": group is not None})
        elif message["do"] == "look":
            self._tell({"looked": message["path"], "text": _text_of(Path(message["path"]))})
        elif message["do"] == "devices":
            self._look_at(message["provider"])
        elif message["do"] == "fork":
            self._fork_here(message)
        else:
            super()._obey(message)

    def _fork_here(self, message: dict[str, Any]) -> None:
        """Fork a card with the variables that its maker asks for on this host."""
        try:
            variables = maker(message["provider"]).environment(message["seat"])
        except ZhenfaError as problem:
            self._tell({"refused": message["number"], "words": problem.message, "hint": problem.hint})
            return
        self._fork(message["number"], variables | {"GLOO_SOCKET_IFNAME": self._interface})

    def _look_at(self, provider: str) -> None:
        """Have a process of its own ask a maker of its cards, since tools may hang; one at a time for each maker."""
        if provider in self._lookers.values():
            return
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._in_child(parent, partial(self._look, provider))
        self.children.add(pid)
        self._lookers[pid] = provider

    def _look(self, provider: str) -> None:
        self._answer(provider).write_text(json.dumps([one.to_data() for one in maker(provider).look()]))

    def _answer(self, provider: str) -> Path:
        return self.folder / f"devices-{provider}.json"

    def _ended(self, pid: int, code: int) -> None:
        provider = self._lookers.pop(pid, None)
        if provider is None:
            super()._ended(pid, code)
        elif code == 0:
            self._tell({"provider": provider, "devices": json.loads(self._answer(provider).read_text())})

    def _over(self) -> bool:
        if self._tied and select.select([0], [], [], 0)[0] and not os.read(0, 4096):
            return True
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._tell_changes()
        return now - self._heard > SILENT_S

    def _look_every(self) -> float | None:
        return LOOK_S

    def _tell_changes(self) -> None:
        """Tell what has changed on the board, and which cards are stopped."""
        stopped = [pid for pid in self.children if linux.state_of(pid) in {"T", "t"}]
        now = self._slots.raw()
        slots = {}
        if now != self._seen:
            rows = range(0, len(now), SLOT_BYTES)
            changed = [at for at in rows if now[at : at + SLOT_BYTES] != self._seen[at : at + SLOT_BYTES]]
            slots = {at // SLOT_BYTES: now[at : at + SLOT_BYTES].hex() for at in changed}
        if slots or stopped != self._stopped:
            self._tell({"slots": slots, "stopped": stopped})
        self._seen, self._stopped = now, stopped

    def _forked(self) -> None:
        """Nothing was passed on to the card: it goes to the door by itself."""

    def _channel(self, number: int) -> socket.socket:
        return door.enter(self._address, self._token, {"card": number})


def interface_of(address: str) -> str:
    """Return the network interface with this address, over which the cards of this host talk to others."""
    import psutil

    for name, rows in psutil.net_if_addrs().items():
        if any(row.address == address for row in rows):
            return str(name)
    raise RunError(f"no network interface of this host has the address {address}.")


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")[:256]
    except OSError:
        return None


def main() -> None:
    """Serve the driver that the environment names."""
    if "--apart" in sys.argv and os.fork():
        os._exit(0)
    host, _, port = os.environ.pop(door.ADDRESS).rpartition(":")
    token = os.environ.pop(door.TOKEN)
    name = next((os.environ[key] for key in NAMES if os.environ.get(key)), None) or socket.gethostname()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    preload()
    try:
        outpost = Outpost((host, int(port)), token, name, tied="--while-open" in sys.argv)
    except OSError as problem:
        print(f"zhenfa on {name}: the driver at {host}:{port} was not reached: {problem}", file=sys.stderr)
        sys.exit(1)
    outpost.serve()


if __name__ == "__main__":
    main()
