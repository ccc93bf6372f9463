"""Selections of candidates hold what the same selection of plain arrays holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plan_pools import random_setting
from zhenfa.plan import bounds
from zhenfa.plan.columns import alike, largest
from zhenfa.plan.space import Candidates

NUMBERS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def some(numbers: list[int]) -> Candidates:
    tensor = np.array(numbers)
    return Candidates.of(
        tensor, pipeline=tensor % 5 + 1, data=tensor % 7 + 1, expert=tensor % 3 + 1, size=tensor % 2 + 1,
        total=3 * tensor, zero=tensor % 4, recompute=tensor % 3,
    )  # fmt: skip


@given(NUMBERS, st.data())
def test_selections_of_selections_hold_what_plain_arrays_do(numbers: list[int], data: st.DataObject) -> None:
    found, plain = some(numbers), {name: getattr(some(numbers), name) for name in Candidates.NAMES}
    for _ in range(3):
        rows = np.array(data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=30)))
        found, plain = found.where(rows), {name: one[rows] for name, one in plain.items()}
        if data.draw(st.booleans()):
            plain["data"] = plain["data"] + 1
            found = found.but(data=found.data + 1)
        if data.draw(st.booleans()):
            found = Candidates.together([found, found.where(rows[:0]), found])
            plain = {name: np.concatenate([one, one]) for name, one in plain.items()}
        assert {name: getattr(found, name).tolist() for name in found.NAMES} == {
            k: v.tolist() for k, v in plain.items()
        }
        fresh = Candidates(**plain)
        assert found.micro_batches.tolist() == fresh.micro_batches.tolist()
        assert found.step.tolist() == fresh.step.tolist()


@given(NUMBERS, NUMBERS, st.integers(1, 50))
def test_kinds_and_the_largest_are_those_of_a_sort(one: list[int], other: list[int], count: int) -> None:
    size = min(len(one), len(other))
    pair = np.array([one[:size], [1000 * number for number in other[:size]]])
    first, back = alike(list(pair))
    _, wanted, place = np.unique(pair, axis=1, return_index=True, return_inverse=True)
    assert first.tolist() == wanted.tolist()
    assert back.tolist() == place.ravel().tolist()
    assert largest(pair[0], count).tolist() == np.argsort(-pair[0], kind="stable")[:count].tolist()


def test_no_layouts_take_no_work() -> None:
    setting = random_setting(0, 1)
    none = some([1]).where(np.zeros(0, dtype=np.int64))
    assert len(bounds.work_per_micro_batch(setting, "p0", none)) == 0
