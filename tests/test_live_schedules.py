"""Every schedule of the planner trains the same model, in the planner's own order and in its time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.operations import operations
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Run

pytestmark = pytest.mark.live

QUARTET = formation(pool("a", 1), pool("b", 1), pool("c", 2))
EXECUTION = Execution(steps=3, learning_rate=1e-3, seed=7)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


def virtual(split: list[int], pools: str, micro_batches: int, schedule: str, stages: int = 2, **more: object) -> Plan:
    one = pipeline(split, pools, micro_batches, **more)
    return plan(one.model_copy(update={"virtual_stages": stages}), schedule=schedule)


PLANS = {
    "interleaved, two stages to a card": virtual([1, 1, 1, 1, 2, 1, 1, 0], "abccabcc", 8, "interleaved"),
    "interleaved, four stages to a card": virtual([2, 1, 1, 0, 2, 1, 1, 0], "abababab", 3, "interleaved", 4),
    "interleaved, an odd number of micro-batches": virtual([2, 1, 2, 1, 1, 1], "abcabc", 7, "interleaved", size=2),
    "zero bubble": plan(pipeline([4, 2, 1, 1], "abcc", 6), schedule="zero-bubble"),
    "zero bubble, recomputing": plan(pipeline([4, 2, 1, 1], "abcc", 5, recompute="full"), schedule="zero-bubble"),
    "zero bubble, like the letter V": virtual([1, 1, 1, 1, 1, 1, 1, 1], "abcccccba"[:4] + "ccba", 9, "zero-bubble-v"),
    "DualPipe": plan(pipeline([3, 2, 2, 1], "abcc", 8), schedule="dualpipe"),
    "1F1B with fewer micro-batches than stages": plan(pipeline([4, 2, 1, 1], "abcc", 2)),
}


@pytest.mark.parametrize("name", PLANS)
def test_losses_equal_one_process(engine: LocalEngine, name: str) -> None:
    chosen = PLANS[name]
    run = run_plan(chosen, QUARTET, TINY, EXECUTION, engine=engine)
    expected = reference_losses(TINY, EXECUTION, steps=3, global_batch=chosen.global_batch)
    assert run.losses == pytest.approx(expected, rel=1e-5)
    check_order(run)


def test_tied_embeddings_meet_on_one_card(engine: LocalEngine) -> None:
    sizes = replace(TINY, tied=True)
    chosen = virtual([1, 2, 1, 1, 1, 2], "abccba", 6, "zero-bubble-v")
    run = run_plan(chosen, QUARTET, sizes, EXECUTION, engine=engine)
    assert run.losses == pytest.approx(reference_losses(sizes, EXECUTION, steps=3, global_batch=6), rel=1e-5)


def test_replicas_run_a_schedule_each(engine: LocalEngine) -> None:
    one = pipeline([2, 2, 2, 2], "abab", 4).model_copy(update={"virtual_stages": 2})
    other = pipeline([1, 3, 3, 1], "cccc", 3).model_copy(update={"virtual_stages": 2})
    chosen = plan(one, other, schedule="interleaved")
    run = run_plan(chosen, QUARTET, TINY, EXECUTION, engine=engine)
    assert run.losses == pytest.approx(reference_losses(TINY, EXECUTION, steps=3, global_batch=7), rel=1e-5)
    assert [(stage.card, stage.stage, stage.layers) for stage in run.stages][:4] == [
        (0, 0, (0, 2)), (0, 2, (4, 6)), (1, 1, (2, 4)), (1, 3, (6, 8)),
    ]  # fmt: skip


def check_order(run: Run) -> None:
    """Every card did what the planner's order says, in that order, and one thing at a time."""
    one = run.plan.pipelines[0]
    rows = operations(run.plan.schedule, one.places, one.virtual_stages, one.micro_batches)
    for card, row in enumerate(rows):
        done = [event for event in run.events if event.card == card and event.stage is not None]
        assert [(event.kind, event.stage, event.micro_batch) for event in done] == [
            operation for moment in row for operation in moment
        ]
        assert all(first.end_s <= second.start_s for first, second in itertools.pairwise(done))
