"""Hosts for the tests of runs over several of them: outposts on this host, apart as far as a test asks for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from zhenfa.live.engine_spread import CommandEngine

HOSTS = ("east", "north", "west")


def outpost(name: str, *before: str) -> list[str]:
    """The command that starts an outpost under a name, behind what comes ``before`` it."""
    return [*before, "env", f"ZHENFA_HOST={name}", sys.executable, "-m", "zhenfa.live.outpost"]


def engine_on(names: Sequence[str] = HOSTS) -> CommandEngine:
    """An engine with outposts on this host."""
    return CommandEngine("127.0.0.1", names, [outpost(name) for name in names], protect=False)


@contextmanager
def networks(names: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    """Network namespaces of hosts with an address each, 10.77.0.1 and on, that reach each other and nothing else.

    Gives how to run a command in each. Skips where this is not allowed.
    """
    hub, made = "zhenfa-hub", []

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        ip("netns", "add", hub)
    except (OSError, subprocess.CalledProcessError) as problem:
        pytest.skip(f"network namespaces are not to be had here: {problem}")
    made.append(hub)
    try:
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for number, name in enumerate(names, start=1):
            space = f"zhenfa-{name}"
            ip("netns", "add", space)
            made.append(space)
            ip("-n", hub, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", hub, "link", "set", f"to-{name}", "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield {name: ["ip", "netns", "exec", f"zhenfa-{name}"] for name in names}
    finally:
        for space in reversed(made):
            ip("netns", "del", space)


def own_memory(folder: Path) -> list[str]:
    """Run what follows with a memory folder and a temporary folder of its own, as another host has them."""
    folder.mkdir()
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none /dev/shm && TMPDIR={folder} exec "$@"', "sh"]


def own_clock(seconds: int) -> list[str]:
    """Run what follows with a monotonic clock that is so far ahead, as another host has one."""
    return ["unshare", "--time", "--fork", "--kill-child", "--monotonic", str(seconds)]


def can(*command: str) -> bool:
    """Whether a command works here."""
    try:
        return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
