"""What the laws take and return."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = float | npt.NDArray[Any]
"""A number, or an array of numbers that broadcasts with the other arguments."""

Flag: TypeAlias = bool | npt.NDArray[Any]
"""A yes or a no, or an array of them."""

Choice: TypeAlias = str | npt.NDArray[Any]
"""One of a few names, or an array of such names."""


def plain(value: Any) -> Array:
    """Return an array as it is and anything without a shape as a float.

    >>> plain(np.float64(2.5))
    2.5
    """
    return value if isinstance(value, np.ndarray) and value.ndim else float(value)


def values_of(whole: npt.NDArray[np.int64]) -> list[int]:
    """Return the values of an array of whole numbers from 0, ascending, each once.

    Quicker than ``np.unique``, which also brings in the whole of masked arrays.

    >>> values_of(np.array([4, 0, 4, 1]))
    [0, 1, 4]
    """
    values: list[int] = np.flatnonzero(np.bincount(whole)).tolist()
    return values


def ceil_ratio(whole: Array, part: Array) -> Any:
    """Return how many parts cover the whole, forgiving the last few bits of a quotient.

    >>> float(ceil_ratio(129, 128))
    2.0
    """
    ratio = np.true_divide(whole, part)
    return np.ceil(ratio * (1 - 1e-12))
