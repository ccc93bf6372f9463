"""On mixed pools of the catalog the planner is never worse than simpler policies."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def policies() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "mixed_pools.py"
    spec = importlib.util.spec_from_file_location("mixed_pools", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_no_policy_beats_the_planner(policies: ModuleType, seed: int) -> None:
    found = policies.contest(policies.draw(seed))
    assert found is not None
    step, others = found
    assert set(others) == set(policies.POLICIES)
    assert math.isfinite(others["one maker"])
    assert all(other >= step * (1 - 1e-9) for other in others.values())
    assert others["even"] > 1.05 * step


def test_layers_follow_the_weights(policies: ModuleType) -> None:
    assert policies.parts([1.0, 1.0, 1.0], 10) == [4, 3, 3]
    assert policies.parts([3.0, 1.0], 10) == [7, 3]
