"""What a set of outcomes says: medians by hand, gate rows by row, skips by reason, targets met or not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.validation.outcome import Outcome
from zhenfa.validation.summary import FEW, Summary, Target, spread, summarise, targets, worst

GROUP = "train / dense / NVIDIA / tier A"


def outcome(ratio: float, name: str = "row", **more: object) -> Outcome:
    base = Outcome(
        id=name, kind="train", groups=(GROUP, "train / other"), metric="iter_s", unit="s", measured=2.0,
        predicted=2.0 * ratio, gate=True,
    )  # fmt: skip
    return replace(base, **more)  # type: ignore[arg-type]


def test_a_group_is_summed_up_by_hand() -> None:
    ratios = [math.exp(log) for log in (-0.10, -0.05, 0.0, 0.02, 0.30)]
    rows = [outcome(ratio, f"r{at}").within(1.9 * ratio, 2.2 * ratio) for at, ratio in enumerate(ratios)]
    rows += [outcome(1.0, "none", skipped="no memory figure", predicted=None)] * 2
    found = summarise(rows)
    assert list(found) == [GROUP, "train / other"]
    one = found[GROUP]
    assert (one.n, one.skipped, one.reasons) == (5, 2, {"no memory figure": 2})
    assert one.median == pytest.approx(0.05)
    assert one.p90 == pytest.approx(0.22)
    assert one.bias == pytest.approx(0.0)
    assert one.coverage == pytest.approx(3 / 5)
    assert (one.gate, one.gate_predicted) == (6, 5)
    assert one.target == targets()[GROUP]
    assert one.met is None  # too few
    assert replace(one, n=FEW).met is False  # 83 % of the gate rows


def test_a_row_with_one_predicted_metric_is_predicted() -> None:
    rows = [outcome(1.0), outcome(1.0, skipped="no peak", metric="memory_bytes")]
    one = summarise(rows)[GROUP]
    assert (one.gate, one.gate_predicted, one.predicted_share) == (1, 1, 1.0)
    assert replace(one, n=FEW).met is True


@pytest.mark.parametrize(
    ("median", "p90", "predicted", "met"),
    [(0.08, 0.22, 17, True), (0.081, 0.22, 20, False), (0.08, 0.221, 20, False), (0.0, 0.0, 16, False)],
)
def test_a_target_is_met_by_median_tail_and_rows_together(median: float, p90: float, predicted: int, met: bool) -> None:
    aim = Target("training", 0.08, 0.22, 0.85)
    one = Summary(GROUP, "train", 20, 0, median=median, p90=p90, gate=20, gate_predicted=predicted, target=aim)
    assert one.met is met
    assert replace(one, target=None).met is None
    assert replace(one, median=None).met is None


def test_nothing_predicted_says_nothing() -> None:
    one = summarise([outcome(1.0, skipped="unknown model", predicted=None)])[GROUP]
    assert (one.n, one.median, one.p90, one.bias, one.coverage, one.met) == (0, None, None, None, None, None)
    assert summarise([]) == {}


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=50))
def test_the_spread_is_of_sizes_and_ordered(logs: list[float]) -> None:
    middle, tail = spread(logs)
    assert middle is not None
    assert tail is not None
    assert 0 <= middle <= tail + 1e-12
    assert tail <= max(map(abs, logs)) + 1e-12
    assert spread([-one for one in logs]) == (middle, tail)


def test_the_worst_come_first() -> None:
    rows = [outcome(ratio, name) for ratio, name in ((1.0, "hit"), (1.1, "near"), (0.2, "low"), (3.0, "high"))]
    assert [one.id for one in worst([*rows, outcome(9.0, "no", skipped="why")], 2)] == ["low", "high"]
    assert [one.id for one in worst(rows, 9)] == ["low", "high", "near", "hit"]


def test_every_target_names_a_sensible_aim() -> None:
    assert len(targets()) >= 7
    for aim in targets().values():
        assert 0 < aim.median < aim.p90 < 1
        assert 0 <= aim.predicted <= 1
        assert aim.what
