"""The packaged tables of failures and of power, read once."""

from __future__ import annotations

from functools import cache

from zhenfa.catalog import files
from zhenfa.spec.operation import Failures, Power


@cache
def failures() -> Failures:
    """Return what fails how often, default recovery times and timeouts."""
    files.sources()
    return Failures.model_validate(files.read(files.ROOT / "failures.yaml"))


@cache
def power() -> Power:
    """Return what cards, hosts and converters draw, and the carbon of grids."""
    files.sources()
    return Power.model_validate(files.read(files.ROOT / "power.yaml"))
