"""The door through which processes on other hosts come to the driver: a port, and a secret that both sides must know.

Each side proves to the other that it has the run's token (HMAC-SHA-256 over a random challenge and its own side's
name) before anything else is read. The token goes to the other hosts in the environment of the process that is
started there, never on a command line. What follows is not encrypted, as the traffic between the cards is not: the
network between the hosts of one run is trusted.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import secrets
import socket
import threading
from typing import Any, Final

from zhenfa.live import wire

ADDRESS: Final = "ZHENFA_DRIVER"
TOKEN: Final = "ZHENFA_TOKEN"  # noqa: S105 - a variable's name
GREET_S: Final = 10.0
NONCE: Final = 32
DIGEST: Final = 32


class StrangerError(OSError):
    """Who is at the other end does not know the token."""


def proof(token: str, side: str, challenge: bytes) -> bytes:
    """Return what only somebody with the token can answer to a challenge; ``side`` keeps answers from being turned."""
    return hmac.digest(token.encode(), side.encode() + challenge, "sha256")


def enter(address: tuple[str, int], token: str, hello: dict[str, Any]) -> socket.socket:
    """Go to a driver's door, prove to know the token, have the driver prove it, and say ``hello``.

    Raises :class:`StrangerError`, or another :class:`OSError`.
    """
    channel = socket.create_connection(address, timeout=GREET_S)
    try:
        own, theirs = secrets.token_bytes(NONCE), wire.exactly(channel, NONCE)
        channel.sendall(proof(token, "guest", theirs) + own)
        try:
            shown = wire.exactly(channel, DIGEST)
        except ConnectionResetError:
            raise StrangerError("the driver hung up: the token is not its own") from None
        if not hmac.compare_digest(shown, proof(token, "driver", own)):
            raise StrangerError("whoever listens at the driver's address does not know the run's token")
        wire.send(channel, hello)
    except BaseException:
        channel.close()
        raise
    _ready(channel)
    return channel


class Door:
    """Listens on ``address`` and lets in who knows the token; :attr:`bell` becomes readable when somebody has come."""

    def __init__(self, address: str) -> None:
        self.token = secrets.token_urlsafe(32)
        self._listener = socket.create_server((address, 0), backlog=256)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.bell, self._ring = socket.socketpair()
        self._guests: queue.SimpleQueue[tuple[dict[str, Any], socket.socket]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """Return what a process needs to know to come here."""
        return {ADDRESS: f"{self.address[0]}:{self.address[1]}", TOKEN: self.token}

    def guests(self) -> list[tuple[dict[str, Any], socket.socket]]:
        """Return who has come since the last call: what each said, and the socket to it."""
        with contextlib.suppress(BlockingIOError):
            self.bell.recv(4096, socket.MSG_DONTWAIT)
        found = []
        while not self._guests.empty():
            found.append(self._guests.get())
        return found

    def close(self) -> None:
        """Close the port."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for _, channel in self.guests():
            channel.close()
        self.bell.close()
        self._ring.close()

    def _wait(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(channel,), daemon=True).start()

    def _greet(self, channel: socket.socket) -> None:
        try:
            channel.settimeout(GREET_S)
            own = secrets.token_bytes(NONCE)
            channel.sendall(own)
            answer = wire.exactly(channel, DIGEST + NONCE)
            if not hmac.compare_digest(answer[:DIGEST], proof(self.token, "guest", own)):
                raise StrangerError("a guest does not know the token")
            channel.sendall(proof(self.token, "driver", answer[DIGEST:]))
            hello = wire.receive_one(channel)
            _ready(channel)
        except (OSError, ValueError):
            channel.close()
            return
        self._guests.put((hello, channel))
        with contextlib.suppress(OSError):
            self._ring.send(b".")


def _ready(channel: socket.socket) -> None:
    """Make a channel one for orders: no time-out, small messages at once, and a dead host noticed by the kernel."""
    channel.settimeout(None)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
