"""What holds for every test: no colour, no network beyond this host, no time limit on a single property."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)

settings.register_profile("zhenfa", deadline=None, print_blob=True)
settings.load_profile("zhenfa")

MOST_WORKERS = 8
LONG = ("test_docs", "test_plan_exact", "test_every_machine", "test_plan_bounds", "test_serving_search")
"""Files that take longest: several workers begin with them."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let tests reach loopback and unix sockets, and nothing else, unless the command line says otherwise."""
    config.option.allow_hosts = config.option.allow_hosts or "127.0.0.1,::1,localhost"
    config.option.allow_unix_socket = True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers ``-n auto`` starts: the processors that this process may use, few on a large host."""
    return min(processors(), MOST_WORKERS)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Share tests among workers by file, and keep all that start processes of their own in one of them.

    A worker names a test by its group before hooks that order the tests can add one, and forgets how it was asked to
    share them: ``dist`` is ``no`` there.
    """
    if item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group(group(item)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the groups that take longest have the first turn where several workers share the tests."""
    if config.getoption("loadgroup", False):
        items.sort(key=turn)


def group(item: pytest.Item) -> str:
    """Return which tests a test stays with."""
    return "live" if item.get_closest_marker("live") else item.path.stem


def turn(item: pytest.Item) -> int:
    """Return when the group of a test has its turn: those that take longest first."""
    order = ("live", *LONG)
    return order.index(group(item)) if group(item) in order else len(order)


def processors() -> int:
    """Return the processors that this process may use, by its mask and by the limit of its group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return count
