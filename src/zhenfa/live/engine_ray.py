"""Cards on the nodes of a Ray: Ray says where each card has room, and starts an outpost on each of those nodes.

Where the variable ``RAY_ADDRESS`` names a Ray, that one is joined; otherwise one of this host alone is started, on the
loopback interface, without dashboard and usage statistics, and stopped again at the end. A card takes one of the
resource ``zhenfa-POOL`` of a node, or its place on the ``hosts`` that the machine's file names for its pool. Ray's own
detection of accelerators is left out: it knows one kind per node. When Ray's head is gone, the cards at work go on
for as long as Ray's nodes let them; no others are to be had.
"""

from __future__ import annotations

import importlib.util
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from zhenfa.errors import CapabilityError, RunError
from zhenfa.live import linux, wire
from zhenfa.live.engine_spread import SpreadEngine
from zhenfa.live.hosts import END_S, deal, environment, own_address
from zhenfa.live.placement import Card

ANSWER_S: Final = 120.0
PROBE_S: Final = 5.0
"""Seconds in which what answers at an address must have said that it speaks HTTP/2, as Ray's head does (gRPC)."""
GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client begins, with settings of its own (RFC 9113, section 3.4); the other end answers with its settings."""
SETTINGS_FRAME: Final = 4
WAY_OUT: Final = "is its head up? `ray start --head` prints its address, whose port is 6379 unless --port says another."
ENVIRONMENT: Final = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayEngine(SpreadEngine):
    """Cards on the nodes of a Ray. ``ray``: the address of one to join (None: what ``RAY_ADDRESS`` says)."""

    name = "ray"

    def __init__(self, *, ray: str | None = None, protect: bool = True) -> None:
        if importlib.util.find_spec("ray") is None:
            raise CapabilityError("Ray is not installed.", hint="pip install 'zhenfa[ray]', or run with engine: local.")
        self._joined = ray or os.environ.get("RAY_ADDRESS") or None
        if self._joined is not None and self._joined.startswith("ray://"):
            raise CapabilityError(
                f"{self._joined} is the address of a Ray client's server, through which cards cannot be reached.",
                hint="run on a node of the cluster with RAY_ADDRESS=auto, or submit the command as a Ray job.",
            )
        if self._joined is not None:
            _probe(self._joined)
        self._placed: dict[Card, str] = {}
        self._begun = False
        self._keeper, self._channel = _keeper()
        self._answers = wire.Reader(self._channel)
        super().__init__("127.0.0.1" if self._joined is None else self._join(), (), protect=protect)
        self._guard.tell({"do": "remember", "processes": [(self._keeper.pid, linux.start_time(self._keeper.pid))]})

    @property
    def one_host(self) -> bool:
        """Return whether Ray was started here, for this host alone."""
        return self._joined is None

    def _join(self) -> str:
        """Join the Ray that is there; return the address by which its nodes reach this host."""
        self._begun = True
        try:
            nodes = self._ask("begin", address=self._joined, resources={}, folder=f"/zhenfa-{os.getpid()}")["nodes"]
            return own_address([node["address"] for node in nodes])
        except BaseException as problem:
            self._end_launch()
            if isinstance(problem, RunError):
                raise CapabilityError(f"no Ray answers at {self._joined}.", hint=WAY_OUT) from None
            raise

    def _launch(self, cards: Sequence[Card]) -> None:
        if not self._begun:
            self._begun = True
            resources = {f"zhenfa-{pool}": float(count) for pool, count in self.pools.items()}
            self._ask("begin", address=None, resources=resources, folder=str(self.folder))
            self._remember_processes()
        new = [card for card in cards if card not in self._placed]
        if not new:
            return
        hosts = {
            pool: list(deal({pool: self.pools[pool]}, row, {}).values())
            for pool, row in self.hosts_of.items()
            if row and self._joined is not None
        }
        for pool, index, name in self._ask("place", cards=new, hosts=hosts)["placed"]:
            self._placed[pool, index] = name
            if name not in self.names:
                self.names = (*self.names, name)
                self._ask("start", host=name, variables=environment() | self._door.environment())
        if self._joined is None:
            self._remember_processes()

    def _still_launching(self) -> bool:
        return self._keeper.poll() is None

    def _dealt(self) -> dict[Card, str]:
        return self._placed

    def _end_launch(self) -> None:
        self._channel.close()
        try:
            self._keeper.wait(END_S)
        except subprocess.TimeoutExpired:  # Ray's head is gone, and Ray waits for it
            self._keeper.kill()
            self._keeper.wait()

    def _remember_processes(self) -> None:
        """Have the guard end what Ray has started, should the driver die."""
        self._guard.tell({"do": "remember", "processes": self._ask("processes")["processes"]})

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have the keeper do something. Raises :class:`CapabilityError` if Ray cannot, :class:`RunError` if gone."""
        try:
            wire.send(self._channel, {"do": do, **arguments})
        except OSError:
            raise RunError("Ray is gone: no more cards are to be had.", hint="is its head up?") from None
        deadline = time.monotonic() + ANSWER_S
        while (left := deadline - time.monotonic()) > 0 and self._answers.open:
            if not select.select([self._channel], [], [], left)[0]:
                continue
            for found in self._answers.read():
                if "failed" in found:
                    raise CapabilityError(found["failed"], hint=found["hint"] or None)
                return found
        raise RunError("Ray is gone: no more cards are to be had.", hint="is its head up?")


def _probe(ray: str) -> None:
    """Raise :class:`CapabilityError` if no Ray is at an address: Ray itself would wait for one for minutes.

    An address without a port (``auto``) is left to Ray; where connections are encrypted, none is spoken on.
    """
    host, _, port = ray.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S) as channel:
            if os.environ.get("RAY_USE_TLS", "0").casefold() not in {"1", "true"} and not _speaks_http2(channel):
                raise CapabilityError(f"what answers at {ray} is no Ray.", hint=WAY_OUT)
    except (OSError, OverflowError) as problem:
        words = (
            "nothing answered" if isinstance(problem, TimeoutError) else getattr(problem, "strerror", None) or problem
        )
        raise CapabilityError(f"no Ray answers at {ray}: {words}.", hint=WAY_OUT) from None


def _speaks_http2(channel: socket.socket) -> bool:
    """Return whether the other end answers the greeting with the settings that HTTP/2 begins with."""
    found = b""
    deadline = time.monotonic() + PROBE_S
    try:
        channel.sendall(GREETING)
        while len(found) < 4 and (left := deadline - time.monotonic()) > 0:
            channel.settimeout(left)
            more = channel.recv(64)
            if not more:
                break
            found += more
    except OSError:
        return False
    return found[3:4] == bytes((SETTINGS_FRAME,))


def _keeper() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the process that speaks with Ray; return it and the socket to it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "zhenfa.live.ray_keeper", str(theirs.fileno())]
    process = subprocess.Popen(  # noqa: S603
        command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=os.environ | environment() | ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    theirs.close()
    return process, ours
