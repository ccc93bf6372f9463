"""Pairs of types in the order of a bound: only as many are put in order, and looked at closely, as are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

FIRST_LOOK: Final = 512
"""Pairs that are put in order at first; eight times as many each time that was not enough."""


def blocks_of(flat: Any) -> Iterator[Any]:
    """Yield the places of values from the highest down, some at a time: only as many as are asked for are put in
    order."""
    done, many = 0, FIRST_LOOK
    while done < len(flat):
        many = min(many, len(flat))
        top = np.argpartition(-flat, many - 1)[:many] if many < len(flat) else np.arange(len(flat))
        yield top[np.argsort(-flat[top], kind="stable")][done:]
        done, many = many, many * 8


def descending(bound: Any) -> Iterator[tuple[int, int]]:
    """Yield the places of a table from the highest value down."""
    for some in blocks_of(np.ravel(bound)):
        for place in some:
            yield divmod(int(place), bound.shape[1])


@dataclass(frozen=True)
class Table:
    """Pairs of types that may be worth a look, in the order of a bound: rows of prefill types, columns of decode's."""

    rows: Any
    columns: Any
    bound: Any

    def descending(self) -> Iterator[tuple[float, tuple[int, int]]]:
        """Yield bounds and pairs, from the highest bound down."""
        for at, to in descending(self.bound):
            yield float(self.bound[at, to]), (int(self.rows[at]), int(self.columns[to]))

    def above(
        self, floor: Callable[[], float], closer: Callable[[Any, Any], Any]
    ) -> Iterator[tuple[float, tuple[int, int]]]:
        """Yield the pairs whose bound is above what ``floor`` returns, and a ``closer`` bound of types too, with that.

        Some at a time, in the order of the bound; of those, in the order of the closer one.
        """
        flat = np.ravel(self.bound)
        for some in blocks_of(flat):
            if not flat[some[0]] > floor():
                return
            row, column = divmod(some, self.bound.shape[1])
            at, to = self.rows[row], self.columns[column]
            near = np.minimum(closer(at, to), flat[some])
            for one in np.argsort(-near, kind="stable"):
                if not near[one] > floor():
                    break
                yield float(near[one]), (int(at[one]), int(to[one]))


def table(need: Any, use: Any, bound: Any, least: float) -> Table:
    """Return the pairs whose bound is above ``least``.

    ``bound`` of a ``need`` (a column) and a ``use`` (a row) falls with both, so that a type whose bound with the best
    of the other side is no better than ``least`` is in no such pair.
    """
    rows, columns = (np.flatnonzero(np.isfinite(one)) for one in (need, use))
    if not (len(rows) and len(columns)):
        return Table(rows[:0], columns[:0], np.zeros((0, 0)))
    lowest = np.min(need[rows]), np.min(use[columns])
    rows = rows[np.ravel(bound(need[rows][:, None], np.array([[lowest[1]]]))) > least]
    columns = columns[np.ravel(bound(np.array([[lowest[0]]]), use[columns][None, :])) > least]
    return Table(rows, columns, bound(need[rows][:, None], use[columns][None, :]))
