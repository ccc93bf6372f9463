"""The split of layers over stages: exact against trying every split."""

from __future__ import annotations

from itertools import combinations, combinations_with_replacement, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zhenfa.laws.partition import alike_partition, partition


def _judge(boundaries: list[int], problem: dict[str, Any]) -> tuple[float, float] | None:
    """Return (largest, sum) of the stage costs, or nothing when a stage does not fit."""
    costs = []
    for stage, (start, end) in enumerate(pairwise(boundaries)):
        if (
            problem["layer_memory"][stage, start:end].sum() + problem["memory_extra"][stage]
            > problem["capacity"][stage]
        ):
            return None
        cost = problem["layer_cost"][stage, start:end].sum()
        cost += problem["first_extra"][stage] if stage == 0 else 0
        cost += problem["last_extra"][stage] if stage == len(boundaries) - 2 else 0
        costs.append(float(cost))
    return max(costs), sum(costs)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    stages, layers = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    whole = st.integers(0, 6).map(float)
    return {
        "layer_cost": draw(arrays(float, (stages, layers), elements=whole)),
        "first_extra": draw(arrays(float, stages, elements=whole)),
        "last_extra": draw(arrays(float, stages, elements=whole)),
        "layer_memory": draw(arrays(float, (stages, layers), elements=st.integers(0, 3).map(float))),
        "memory_extra": draw(arrays(float, stages, elements=st.integers(0, 2).map(float))),
        "capacity": draw(arrays(float, stages, elements=st.integers(2, 20).map(float))),
    }


@given(problems(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_equals_trying_every_split(problem: dict[str, Any], allow_empty: bool) -> None:
    stages, layers = problem["layer_cost"].shape
    cuts = (
        combinations_with_replacement(range(layers + 1), stages - 1)
        if allow_empty
        else combinations(range(1, layers), stages - 1)
    )
    tried = [_judge([0, *cut, layers], problem) for cut in cuts]
    possible = [outcome for outcome in tried if outcome is not None]
    found = partition(**problem, allow_empty=allow_empty)
    if not possible:
        assert found is None
    else:
        assert found is not None
        assert _judge(found, problem) == pytest.approx(min(possible))


def test_a_card_twice_as_fast_gets_twice_the_layers() -> None:
    cost = np.array([[1.0], [2.0]]) * np.ones((2, 30))
    found = partition(cost, 0, 0, layer_memory=np.ones((2, 30)), memory_extra=0, capacity=[100, 100])
    assert found == [0, 20, 30]


def test_memory_moves_the_boundary() -> None:
    cost = np.array([[1.0], [2.0]]) * np.ones((2, 30))
    found = partition(cost, 0, 0, layer_memory=np.ones((2, 30)), memory_extra=[2, 0], capacity=[14, 100])
    assert found == [0, 12, 30]


def test_more_stages_than_layers_need_leave() -> None:
    cost = np.ones((3, 2))
    limits = {"layer_memory": cost, "memory_extra": 0, "capacity": 10}
    assert partition(cost, 0, 0, **limits) is None
    assert partition(cost, 0, 0, **limits, allow_empty=True) is not None


def test_undisclosed_capacity_holds_nothing() -> None:
    assert partition([[1.0]], 0, 0, layer_memory=[[1.0]], memory_extra=0, capacity=np.nan) is None


@given(st.lists(st.floats(0, 9), min_size=1, max_size=9), st.integers(1, 5), st.floats(0, 9), st.floats(0, 9))
@settings(max_examples=300, deadline=None)
def test_equal_stages_are_split_as_by_trying_every_split(
    layers: list[float], stages: int, first: float, last: float
) -> None:
    found = alike_partition(layers, stages, first, last)
    if stages > len(layers):
        assert found is None
        return
    assert found is not None

    def longest(borders: list[int]) -> float:
        loads = [sum(layers[start:end]) for start, end in pairwise(borders)]
        loads[0] += first
        loads[-1] += last
        return max(loads)

    assert (found[0], found[-1]) == (0, len(layers))
    assert all(start < end for start, end in pairwise(found))
    tried = [longest([0, *cut, len(layers)]) for cut in combinations(range(1, len(layers)), stages - 1)]
    assert longest(found) == pytest.approx(min(tried), rel=1e-9)
