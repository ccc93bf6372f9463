"""What holds for every test: no colour, no network beyond this host, no time limit on a single property."""

from __future__ import annotations

import os

import pytest
import pytest_socket
from hypothesis import settings

os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)

settings.register_profile("zhenfa", deadline=None, print_blob=True)
settings.load_profile("zhenfa")

LOOPBACK = ["127.0.0.1", "::1", "localhost"]


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup() -> None:
    """Let a test reach loopback and unix sockets, and nothing else."""
    pytest_socket.socket_allow_hosts(LOOPBACK, allow_unix_socket=True)
