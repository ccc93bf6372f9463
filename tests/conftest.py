"""What holds for every test: no colour, no network beyond this host, no time limit on a single property."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)

settings.register_profile("zhenfa", deadline=None, print_blob=True)
settings.load_profile("zhenfa")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let tests reach loopback and unix sockets, and nothing else, unless the command line says otherwise."""
    config.option.allow_hosts = config.option.allow_hosts or "127.0.0.1,::1,localhost"
    config.option.allow_unix_socket = True
