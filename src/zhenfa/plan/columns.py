"""Tables of candidates whose columns are gathered when they are first asked for.

A search narrows hundreds of thousands of candidates down in many steps, each of which asks for a few columns. A
selection therefore keeps the table it comes from and an index into it, and a selection of a selection has one index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]
Index = npt.NDArray[np.int64] | npt.NDArray[np.bool_]


class Columns:
    """Arrays by name, the last axis of each one element a candidate. None is ever written to."""

    NAMES: ClassVar[tuple[str, ...]] = ()
    DERIVED: ClassVar[Mapping[str, frozenset[str]]] = {}
    """Cached properties that hold for a selection as well, with the columns they follow from."""

    _table: Self | None
    _index: npt.NDArray[np.int64] | None
    _own: frozenset[str]

    def __init__(self, **columns: Column) -> None:
        if set(columns) != set(self.NAMES):
            raise TypeError(f"columns {sorted(columns)}, expected {sorted(self.NAMES)}")
        self._table, self._index, self._own = None, None, frozenset(self.NAMES)
        self.__dict__.update(columns)
        self._size = int(columns[self.NAMES[0]].shape[-1])

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Any:
        if name not in self.NAMES:
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        column = self._gathered(name)
        self.__dict__[name] = column
        return column

    def _gathered(self, name: str) -> Column:
        column: Column = getattr(self._table, name)
        return column if self._index is None else column.take(self._index, axis=-1)

    def known(self, name: str) -> Any:
        """Return what a table derives from its columns for the candidates of a selection; None where to derive it anew
        takes less."""
        table = self._table
        if table is None or self._own & self.DERIVED[name]:
            return None
        return self._gathered(name) if name in table.__dict__ or len(table) <= len(self) else None

    def where(self, index: Index) -> Self:
        """Return the candidates that a mask or an index selects."""
        rows: npt.NDArray[np.int64] = np.flatnonzero(index) if index.dtype == np.bool_ else np.asarray(index, np.int64)
        table = self if self._table is None else self._table
        own = {} if self._table is None else {name: self.__dict__[name].take(rows, axis=-1) for name in self._own}
        return self._view(table, rows if self._index is None else self._index[rows], own, len(rows))

    def but(self, **columns: Column) -> Self:
        """Return the same candidates with other columns."""
        table = self if self._table is None else self._table
        own = {} if self._table is None else {name: self.__dict__[name] for name in self._own}
        return self._view(table, self._index, {**own, **columns}, len(self))

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Return the candidates of all parts in one."""
        tables = {id(part._table): part for part in parts if part._index is not None}
        if len(tables) == 1 and all(part._index is not None or not len(part) for part in parts):
            kept = [part for part in parts if part._index is not None]
            names = frozenset[str]().union(*(part._own for part in kept))
            own = {name: np.concatenate([getattr(part, name) for part in kept], axis=-1) for name in names}
            index = np.concatenate([part._index for part in kept if part._index is not None])
            return kept[0]._view(kept[0]._table, index, own, len(index))
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in cls.NAMES})

    def _view(
        self, table: Self | None, index: npt.NDArray[np.int64] | None, own: Mapping[str, Column], size: int
    ) -> Self:
        found = object.__new__(type(self))
        found._table, found._index, found._own, found._size = table, index, frozenset(own), size
        found.__dict__.update(own)
        return found


def alike(columns: Sequence[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first of each kind of candidates, in order of the columns, and which kind each candidate is of.

    Columns are whole numbers, not negative.

    >>> first, back = alike([np.array([3, 1, 3, 1]), np.array([0, 9, 0, 8])])
    >>> first.tolist(), back.tolist()
    ([3, 1, 0], [2, 1, 2, 0])
    """
    size = len(columns[0])
    key, kinds = np.zeros(size, dtype=np.int64), 1
    for column in columns:
        code, count = _coded(column)
        key, kinds = key * count + code, kinds * count
        if kinds > 4 * size:
            key, kinds = _coded(key)
    first = np.full(kinds, -1)
    first[key[::-1]] = np.arange(size - 1, -1, -1)
    there = first >= 0
    return first[there], (np.cumsum(there) - 1).take(key)


def _coded(column: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], int]:
    """Return the place of each value among those that occur, in ascending order, and how many do."""
    most = int(column.max(initial=0))
    if most > 4 * len(column):
        values, place = np.unique(column, return_inverse=True)
        return place, len(values)
    there = np.zeros(most + 1, dtype=bool)
    there[column] = True
    return (np.cumsum(there) - 1).take(column), int(there.sum())


def largest(values: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return where the ``count`` largest values are, the largest first, equal ones in their order.

    >>> largest(np.array([1, 3, 2, 3]), 3).tolist()
    [1, 3, 2]
    """
    rows = np.arange(len(values))
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        above = np.flatnonzero(values > least)
        rows = np.sort(np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]]))
    return rows[np.argsort(-values[rows], kind="stable")]
