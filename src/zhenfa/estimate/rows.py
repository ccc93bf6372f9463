"""Curves in rows: linear interpolation along the last axis, for one curve or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np

T = TypeVar("T")


def along(at: Any, places: Any, values: Any) -> Any:
    """Return ``values`` at ``at``, linear between ``places`` that rise along the last axis, constant beyond its ends.

    ``at`` has a last axis of 1 for each row, or is a number for a single one.

    >>> float(along(1.5, np.array([1.0, 2.0]), np.array([10.0, 20.0])))
    15.0
    >>> along(np.array([[0.0], [1.5]]), np.array([[1.0, 2.0]] * 2), np.array([[10.0, 20.0]] * 2)).tolist()
    [[10.0], [15.0]]
    """
    if places.ndim == 1:
        return np.interp(at, places, values)
    low = np.clip(np.sum(places <= at, axis=-1, keepdims=True) - 1, 0, places.shape[-1] - 2)
    left, right = (np.take_along_axis(places, low + one, -1) for one in (0, 1))
    values = np.broadcast_to(values, places.shape)
    below, above = (np.take_along_axis(values, low + one, -1) for one in (0, 1))
    width = np.where(right > left, right - left, 1.0)
    return below + (above - below) * np.clip((at - left) / width, 0.0, 1.0)


def finer(values: Any, points: int) -> Any:
    """Return curves at ``points`` places that are spread evenly over their own.

    >>> finer(np.array([0.0, 1.0, 4.0]), 5).tolist()
    [0.0, 0.5, 1.0, 2.5, 4.0]
    """
    place = np.linspace(0, values.shape[-1] - 1, points)
    low = np.minimum(place.astype(int), values.shape[-1] - 2)
    part = place - low
    return values[..., low] * (1 - part) + values[..., low + 1] * part


def between(values: Any, place: Any) -> Any:
    """Return curves at places along them, where 0 is their first value and 1 their second; each row has its own.

    Straight between values. ``place`` may be a number for a single curve.

    >>> between(np.array([0.0, 1.0, 4.0]), np.array([0.5, 2.0])).tolist()
    [0.5, 4.0]
    >>> between(np.array([[0.0, 1.0, 4.0], [2.0, 3.0, 5.0]]), np.array([[0.5], [2.0]])).tolist()
    [[0.5], [5.0]]
    """
    if values.ndim == 1:
        return np.interp(place, np.arange(len(values)), values)
    low = np.clip(np.asarray(place).astype(int), 0, values.shape[-1] - 2)
    part = place - low
    left, right = (np.take_along_axis(values, low + one, -1) for one in (0, 1))
    return left + (right - left) * part


def take(value: T, index: Any) -> T:
    """Return the rows of all arrays in a dataclass that has one row for each candidate; what has none stays."""
    if isinstance(value, np.ndarray):
        return value[index] if value.ndim > 1 else value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: take(getattr(value, one.name), index) for one in fields(value)})
    return value


def join(parts: Sequence[T]) -> T:
    """Return the rows of all arrays in dataclasses of one kind, one after the other; what has none stays."""
    first = parts[0]
    if isinstance(first, np.ndarray):
        every: list[Any] = list(parts)
        return cast("T", np.concatenate(every)) if first.ndim > 1 else first
    if is_dataclass(first) and not isinstance(first, type):
        names = [one.name for one in fields(first)]
        return replace(first, **{name: join([getattr(one, name) for one in parts]) for name in names})
    return first
