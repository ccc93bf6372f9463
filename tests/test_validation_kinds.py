"""Packaged rows: every one is of a kind; whatever is done to a row, it is predicted or skipped with a reason."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from zhenfa.validation import kinds
from zhenfa.validation.outcome import Outcome
from zhenfa.validation.rows import MEASUREMENTS, Row, packaged, read_rows

FILES = [path.relative_to(MEASUREMENTS).as_posix() for path in packaged()]
SAMPLE = 25
MUTANTS = 25
JUNK: list[Any] = [
    None, "", 0, -1, 1e308, -0.0, 3.5, True, 10**30, "text", "12", "1e9", "x" * 500, [], {}, [1, 2], [None], {"a": 1},
]  # fmt: skip


@cache
def rows(name: str) -> tuple[Row, ...]:
    return tuple(one for one in read_rows([MEASUREMENTS / name]) if isinstance(one, Row))


def some(name: str, count: int) -> list[Row]:
    found = list(rows(name))
    random.Random(11).shuffle(found)
    return found[:count]


def sound(outcome: Outcome) -> None:
    assert outcome.id
    assert outcome.groups
    assert (outcome.skipped is None) == (outcome.ratio is not None and outcome.skipped is None)
    if outcome.skipped is None:
        assert outcome.ratio is not None
        assert outcome.unit or outcome.metric
        if outcome.p10 is not None and outcome.p90 is not None:
            assert 0 < outcome.p10 < outcome.p90
    else:
        assert outcome.skipped.strip()


def test_rows_are_packaged() -> None:
    assert FILES


@pytest.mark.parametrize("name", FILES)
def test_every_packaged_row_is_of_a_kind(name: str) -> None:
    found = list(read_rows([MEASUREMENTS / name]))
    assert found
    assert all(isinstance(one, Row) for one in found)
    strange = [one.place for one in rows(name) if kinds.kind_of(one.record) is None]
    assert not strange
    text = Path(MEASUREMENTS / name).read_bytes()
    assert b"InferenceX public run" not in text
    assert not any("InferenceX public run" in str(one.record) for one in rows(name))


@pytest.mark.parametrize("name", FILES)
def test_a_row_is_predicted_or_skipped_with_a_reason(name: str) -> None:
    for row in some(name, SAMPLE):
        kind = kinds.kind_of(row.record)
        assert kind is not None
        for outcome in kinds.outcomes(row.record, kind, row.place):
            sound(outcome)
            assert outcome.kind == kind
            assert "cannot be used" not in (outcome.skipped or "")


def paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if here:
        yield here
    inner = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    for key, item in inner:
        yield from paths(item, (*here, key))


def spoilt(record: Any, chance: random.Random) -> dict[str, Any]:
    """Return the record with one to three values taken away or replaced by nonsense."""
    found: dict[str, Any] = copy.deepcopy(dict(record))
    for _ in range(chance.randint(1, 3)):
        *way, last = chance.choice(list(paths(found)) or [("id",)])
        place: Any = found
        for key in way:
            place = place[key]
        if isinstance(place, dict) and chance.random() < 0.3:
            place.pop(last, None)
        else:
            place[last] = copy.deepcopy(chance.choice(JUNK))
    return found


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_spoilt_row_is_predicted_or_skipped_with_a_reason(name: str) -> None:
    chance = random.Random(5)
    for row in some(name, MUTANTS):
        record = spoilt(row.record, chance)
        kind = kinds.kind_of(record)
        if kind is not None:
            for outcome in kinds.outcomes(record, kind, row.place):
                sound(outcome)
