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


def ceil_ratio(whole: Array, part: Array) -> Any:
    """Return how many parts cover the whole, forgiving the last few bits of a quotient.

    >>> float(ceil_ratio(129, 128))
    2.0
    """
    ratio = np.true_divide(whole, part)
    return np.ceil(ratio * (1 - 1e-12))
