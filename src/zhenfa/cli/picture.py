"""What pictures share: matplotlib imported late, and a file written or a reason given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zhenfa.errors import CapabilityError, InputError


@contextmanager
def figure(option: str) -> Iterator[Any]:
    """Yield matplotlib's pyplot and close what was drawn. Raises :class:`CapabilityError` if it is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise CapabilityError(
            f"matplotlib is not installed, and {option} draws with it.", hint="pip install 'zhenfa[plot]'."
        ) from None
    try:
        yield pyplot
    finally:
        pyplot.close("all")


def save(drawn: Any, path: Path, option: str) -> None:
    """Write a figure to a PNG file. Raises :class:`InputError` if that place cannot be written."""
    try:
        drawn.savefig(path, format="png")
    except OSError as problem:
        raise InputError(
            f"{str(path)!r} cannot be written: {os.strerror(problem.errno or 0)}.",
            hint=f"name a file in a folder that exists with {option}.",
        ) from None
