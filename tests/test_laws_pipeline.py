"""Pipelines: the array form against event by event, closed forms, bounds, and torch's own schedules."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zhenfa.errors import InputError
from zhenfa.laws import pipeline

SCHEDULES = ("gpipe", "1f1b")
seconds = st.floats(0.001, 100.0)


@st.composite
def unequal(draw: st.DrawFn) -> tuple[Any, Any, Any, Any]:
    stages = draw(st.integers(1, 7))
    numbers = st.floats(0.01, 10.0) if draw(st.booleans()) else st.integers(1, 4).map(float)
    forward = draw(arrays(float, stages, elements=numbers))
    backward = draw(arrays(float, stages, elements=numbers))
    transfer = draw(arrays(float, stages - 1, elements=st.floats(0.0, 3.0) if draw(st.booleans()) else st.just(0.0)))
    latency = draw(arrays(float, stages - 1, elements=st.floats(0.0, 3.0) if draw(st.booleans()) else st.just(0.0)))
    return forward, backward, transfer, latency


@given(unequal(), st.integers(1, 60), st.sampled_from(SCHEDULES))
@settings(max_examples=300, deadline=None)
def test_array_form_equals_event_by_event(parts: Any, micro_batches: int, schedule: str) -> None:
    forward, backward, transfer, latency = parts
    events = pipeline.pipeline_events(forward, backward, transfer, micro_batches, schedule, latency=latency)
    assert len(events) == 2 * len(forward) * micro_batches
    last = max(event.end for event in events)
    total = pipeline.pipeline_time(forward, backward, transfer, micro_batches, schedule, latency=latency)
    assert total == pytest.approx(last, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_jump_equals_full_recurrence_for_many_micro_batches(seed: int) -> None:
    random = np.random.default_rng(seed)
    stages, micro_batches = 6, 700
    forward = 1 + random.choice([0.0, 1e-3, 0.3], (40, stages)) * random.random((40, stages))
    backward = 2 * forward
    transfer = random.choice([0.0, 0.01, 0.7], (40, 1)) * random.random((40, stages - 1))
    totals = pipeline.pipeline_time(forward, backward, transfer, micro_batches)
    assert isinstance(totals, np.ndarray)
    rows = [forward.T, backward.T, transfer.T, np.zeros_like(transfer.T)]
    full = pipeline._Rounds(rows, [np.zeros(40) for _ in range(3 * stages - 2)], np.maximum)
    for number in range(-stages, micro_batches):
        full.step(number, micro_batches)
    np.testing.assert_allclose(totals, full.free, rtol=1e-10)
    alone = [pipeline.pipeline_time(forward[i], backward[i], transfer[i], micro_batches) for i in range(40)]
    np.testing.assert_allclose(alone, totals, rtol=1e-10)


@given(seconds, seconds, st.integers(1, 8), st.integers(1, 40), st.sampled_from(SCHEDULES))
@settings(deadline=None)
def test_equal_stages_reproduce_the_closed_form(
    forward: float, backward: float, stages: int, micro_batches: int, schedule: str
) -> None:
    exact = pipeline.pipeline_time(np.full(stages, forward), np.full(stages, backward), 0.0, micro_batches, schedule)
    assert exact == pytest.approx((micro_batches + stages - 1) * (forward + backward))
    assert exact == pytest.approx(pipeline.uniform_pipeline_time(forward, backward, stages, micro_batches, 0.0))


@given(seconds, seconds, st.integers(1, 8), st.integers(1, 40), st.floats(0, 1))
def test_gpipe_hides_short_transfers(
    forward: float, backward: float, stages: int, micro_batches: int, share: float
) -> None:
    transfer = share * min(forward, backward)
    exact = pipeline.pipeline_time(
        np.full(stages, forward), np.full(stages, backward), transfer, micro_batches, "gpipe"
    )
    closed = pipeline.uniform_pipeline_time(forward, backward, stages, micro_batches, transfer)
    assert exact == pytest.approx(closed)


@given(unequal(), st.integers(1, 40), st.sampled_from(SCHEDULES))
@settings(deadline=None)
def test_bound_below_exact_below_one_after_the_other(parts: Any, micro_batches: int, schedule: str) -> None:
    forward, backward, transfer, _ = parts
    exact = pipeline.pipeline_time(forward, backward, transfer, micro_batches, schedule)
    bound = pipeline.pipeline_bound(forward, backward, micro_batches, transfer)
    serial = micro_batches * (np.sum(forward + backward) + 2 * np.sum(transfer))
    assert pipeline.pipeline_bound(forward, backward, micro_batches) <= bound * (1 + 1e-12)
    assert bound <= exact * (1 + 1e-9)
    assert exact <= serial * (1 + 1e-9)


@given(unequal(), st.integers(1, 30), st.sampled_from(SCHEDULES))
@settings(deadline=None)
def test_events_keep_the_rules(parts: Any, micro_batches: int, schedule: str) -> None:
    forward, backward, transfer, latency = parts
    events = pipeline.pipeline_events(forward, backward, transfer, micro_batches, schedule, latency=latency)
    at = {(event.kind, event.stage, event.micro_batch): event for event in events}
    for stage in range(len(forward)):
        mine = [event for event in events if event.stage == stage]
        order = pipeline.schedule_order(stage, len(forward), micro_batches, schedule)
        assert [(event.kind, event.micro_batch) for event in mine] == order
        assert all(one.end <= two.start + 1e-9 for one, two in pairwise(mine))
    for event in events:
        before = event.stage + (-1 if event.kind == "forward" else 1)
        if 0 <= before < len(forward):
            hop = min(before, event.stage)
            earliest = at[event.kind, before, event.micro_batch].end + transfer[hop] + latency[hop]
            assert event.start >= earliest - 1e-9


def test_candidates_as_arrays_equal_each_alone() -> None:
    random = np.random.default_rng(7)
    forward, backward = random.random((5, 3, 4)), random.random((5, 3, 4))
    transfer, micro_batches = random.random((5, 1, 3)), np.array([1, 4, 33])
    for schedule in SCHEDULES:
        totals = pipeline.pipeline_time(forward, backward, transfer, micro_batches, schedule)
        assert isinstance(totals, np.ndarray)
        assert totals.shape == (5, 3)
        for row, column in np.ndindex(5, 3):
            alone = pipeline.pipeline_time(
                forward[row, column], backward[row, column], transfer[row, 0], int(micro_batches[column]), schedule
            )
            assert totals[row, column] == pytest.approx(alone, rel=1e-12)
    bound = pipeline.pipeline_bound(forward, backward, micro_batches, transfer)
    assert np.shape(bound) == (5, 3)


def test_transfers_slow_1f1b_more_than_gpipe() -> None:
    """With few micro-batches under way, each round trip over the hops is paid again."""
    forward, backward, transfer = np.ones(4), np.ones(4), np.full(3, 0.5)
    gpipe = pipeline.pipeline_time(forward, backward, transfer, 64, "gpipe")
    assert pipeline.pipeline_time(forward, backward, transfer, 64) > 1.2 * gpipe


def test_unknown_schedule_is_named() -> None:
    with pytest.raises(InputError, match="'zigzag'"):
        pipeline.pipeline_time(np.ones(2), np.ones(2), 0.0, 4, "zigzag")


def _torch_order(schedule: str, stage: int, stages: int, micro_batches: int) -> list[tuple[str, int]]:
    """Run torch's own schedule over a stage that only writes down what it is asked to do."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    done: list[tuple[str, int]] = []

    class Recorder:
        stage_index = stage
        is_first = stage == 0
        is_last = stage == stages - 1

        def forward_one_chunk(self, index: int, *_: Any, **__: Any) -> None:
            done.append(("forward", index))

        def backward_one_chunk(self, index: int, **_: Any) -> None:
            done.append(("backward", index))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: []

    chunks = [()] * micro_batches
    runner = SimpleNamespace(
        _stage=Recorder(),
        _num_stages=stages,
        _n_microbatches=micro_batches,
        scale_grads=False,
        _check_inputs=lambda *_: (chunks, [{}] * micro_batches),
        _initialize_stage=lambda *_: None,
        _maybe_compute_loss=lambda *_: None,
        _maybe_get_loss=lambda *_: None,
        _update_losses=lambda *_: None,
    )
    kind = {"gpipe": schedules.ScheduleGPipe, "1f1b": schedules.Schedule1F1B}[schedule]
    kind._step_microbatches(runner)
    return done


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 2), (4, 4), (4, 9), (5, 16)])
def test_order_is_torchs(schedule: str, stages: int, micro_batches: int) -> None:
    for stage in range(stages):
        ours = pipeline.schedule_order(stage, stages, micro_batches, schedule)
        assert ours == _torch_order(schedule, stage, stages, micro_batches)
