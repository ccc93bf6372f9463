"""What holds for every test: no colour, no network beyond this host, no time limit on a single property.

Properties draw the same cases on every machine, so that a change is judged by what it changed; ``make fuzz`` draws
other ones each time.
"""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)

settings.register_profile("zhenfa", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("zhenfa")

MOST_WORKERS = 8
LONG = ("test_docs", "test_plan_exact", "test_every_machine", "test_plan_bounds", "test_serving_search")
"""Files that take longest: several workers begin with them."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let tests reach loopback and unix sockets, and nothing else, unless the command line says otherwise.

    And let processes that they start be interrupted, which a shell's background jobs are deaf to.
    """
    config.option.allow_hosts = config.option.allow_hosts or "127.0.0.1,::1,localhost"
    config.option.allow_unix_socket = True
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers ``-n auto`` starts: the processors that this process may use, few on a large host."""
    return min(processors(), MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share tests among workers by file, and keep files that start processes of their own in one of them.

    xdist 3.8 writes a test's group behind its name, where pytest 9.2 no longer looks: alone it shares single tests.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(Path(config.rootpath, nodeid.partition("::")[0]))

    return ByFile(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the files that take longest have the first turn where several workers share the tests."""
    if config.getoption("loadgroup", False):
        items.sort(key=lambda item: turn(group(item.path)))


@cache
def group(path: Path) -> str:
    """Return which files a file stays with."""
    return "live" if "pytest.mark.live" in path.read_text(encoding="utf-8") else path.stem


def turn(name: str) -> int:
    """Return when a group has its turn: those that take longest first."""
    order = ("live", *LONG)
    return order.index(name) if name in order else len(order)


def processors() -> int:
    """Return the processors that this process may use, by its mask and by the limit of its group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return count
