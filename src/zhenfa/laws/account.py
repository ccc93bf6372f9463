"""Accounts that must close: parts of a whole, checked where they are made and not only in tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from zhenfa.errors import InternalError
from zhenfa.laws.arrays import Array

CLOSES: Final = 1e-9
"""Relative difference up to which the sum of the parts is the whole."""


def closed(what: str, parts: Mapping[str, Array], whole: Array) -> dict[str, Array]:
    """Return the parts of an account whose sum is the whole.

    Arguments: ``what`` is counted, for the message; ``parts`` by name and ``whole``, all of one unit; any shapes that
    broadcast.
    Returns: the parts, as given.
    Raises :class:`zhenfa.errors.InternalError` where the sum is off by more than 1e-9 of the whole or a part is
    negative beyond that; not-a-number is passed on.
    Counts rounding only: whoever divides a whole into parts computes the whole apart from them.

    >>> closed("time", {"work": 0.9, "checkpoint": 0.1}, 1.0)["work"]
    0.9

    Source: counted.
    """
    total = sum((np.asarray(part, float) for part in parts.values()), np.asarray(0.0))
    room = CLOSES * np.abs(np.asarray(whole, float))
    off = np.asarray(np.abs(total - whole) > room)
    if off.any():
        at = np.broadcast_to(np.asarray(whole, float), off.shape)[off].flat[0]
        raise InternalError(f"{what} is not conserved: the parts {', '.join(parts)} do not sum to {at:g}.")
    for name, part in parts.items():
        if np.asarray(np.asarray(part) < -room).any():
            raise InternalError(f"{what} is not conserved: the part {name!r} is negative.")
    return dict(parts)
