"""Orders and answers between the driver and its processes: JSON with its length before it, over a socket."""

from __future__ import annotations

import json
import select
import socket
import struct
from typing import Any, Final

HEAD: Final = struct.Struct("<I")
MOST: Final = 256 * 1024 * 1024


def pack(message: dict[str, Any]) -> bytes:
    """Return a message as bytes."""
    body = json.dumps(message, allow_nan=True).encode()
    return HEAD.pack(len(body)) + body


def send(channel: socket.socket, message: dict[str, Any], files: list[int] | None = None) -> None:
    """Send one message, and open files with it."""
    data = pack(message)
    if files:
        sent = socket.send_fds(channel, [data], files)
        data = data[sent:]
    channel.sendall(data)


def receive_one(channel: socket.socket) -> dict[str, Any]:
    """Return one message, and take nothing of what follows it. Raises :class:`OSError` if the channel ends."""
    (size,) = HEAD.unpack(exactly(channel, HEAD.size))
    if size > MOST:
        raise ValueError(f"a message of {size} bytes is longer than {MOST}")
    message: dict[str, Any] = json.loads(exactly(channel, size))
    return message


def exactly(channel: socket.socket, size: int) -> bytes:
    """Return so many bytes. Raises :class:`OSError` if the channel ends before."""
    data = bytearray()
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the channel ended in the middle of a message")
        data += more
    return bytes(data)


class Reader:
    """Put messages together from what arrives on a socket, in whatever pieces."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.files: list[int] = []
        self.open = True
        self._buffer = bytearray()

    def read(self, *, wait: bool = False) -> list[dict[str, Any]]:
        """Take what has arrived and return the messages that are whole; with ``wait``, wait for something to arrive.

        Nothing may have: what a selector has told of may have been taken since.
        """
        if not wait and not self._arrived():
            return []
        try:
            data, files, _, _ = socket.recv_fds(self.channel, 1 << 16, 4)
        except BlockingIOError:
            return []
        except OSError:
            data, files = b"", []
        self.files += files
        if not data:
            self.open = False
        self._buffer += data
        return list(self._whole())

    def _arrived(self) -> bool:
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return bool(poll.poll(0))

    def _whole(self) -> list[dict[str, Any]]:
        found = []
        while len(self._buffer) >= HEAD.size:
            (size,) = HEAD.unpack_from(self._buffer)
            if size > MOST:
                raise ValueError(f"a message of {size} bytes is longer than {MOST}")
            if len(self._buffer) < HEAD.size + size:
                break
            found.append(json.loads(bytes(self._buffer[HEAD.size : HEAD.size + size])))
            del self._buffer[: HEAD.size + size]
        return found
