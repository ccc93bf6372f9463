"""A mixed run computes what one process computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from zhenfa.errors import CapabilityError
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.overheads import measure_overheads
from zhenfa.live.pace import BESIDE
from zhenfa.live.run import even_split, run_plan
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Plan

pytestmark = pytest.mark.live

QUARTET = formation(pool("a", 1), pool("b", 1), pool("c", 2))
EXECUTION = Execution(steps=3, learning_rate=1e-3, seed=7)
UNEVEN = plan(pipeline([4, 2, 1, 1], "abcc", 6))


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


PLANS = {
    "uneven, 1f1b": UNEVEN,
    "even, 1f1b": even_split(UNEVEN),
    "uneven, gpipe": plan(pipeline([4, 2, 1, 1], "abcc", 6), schedule="gpipe"),
    "slow card first, recomputing": plan(pipeline([1, 1, 2, 4], "ccba", 6, recompute="full")),
    "more than one sequence in a micro-batch": plan(pipeline([3, 3, 1, 1], "abcc", 4, size=3)),
    "two replicas, other splits, unequal shares": plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2)),
    "replicas of one stage and of three": plan(pipeline([8], "a", 5, size=1), pipeline([4, 2, 2], "bcc", 3)),
}


@pytest.mark.parametrize("name", PLANS)
def test_losses_equal_one_process(engine: LocalEngine, name: str) -> None:
    chosen: Plan = PLANS[name]
    run = run_plan(chosen, QUARTET, TINY, EXECUTION, engine=engine)
    expected = reference_losses(TINY, EXECUTION, steps=3, global_batch=chosen.global_batch)
    assert run.losses == pytest.approx(expected, rel=1e-5)
    assert run.losses[2] < run.losses[0]


@pytest.mark.parametrize(
    "sizes",
    [replace(TINY, tied=True), replace(TINY, gated=False, kv_heads=4)],
    ids=["tied embedding on first and last stage", "ungated, multi-head"],
)
def test_other_models_equal_one_process(engine: LocalEngine, sizes: object) -> None:
    chosen = plan(pipeline([5, 3], "ac", 4), pipeline([2, 6], "bc", 2))
    run = run_plan(chosen, QUARTET, sizes, EXECUTION, engine=engine)
    expected = reference_losses(sizes, EXECUTION, steps=3, global_batch=chosen.global_batch)
    assert run.losses == pytest.approx(expected, rel=1e-5)


def test_run_reports_what_happened(engine: LocalEngine) -> None:
    seen: list[tuple[int, int, float, float]] = []
    ports: set[str] = set()

    def look(*row: int | float) -> None:
        seen.append(row)
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            ports.update(item.laddr.ip for item in process.net_connections("inet"))

    run = run_plan(UNEVEN, QUARTET, TINY, EXECUTION, engine=engine, on_progress=look)
    assert ports <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert not [item for item in psutil.Process().net_connections("inet") if item.status == psutil.CONN_LISTEN]
    assert [row[:2] for row in seen] == [(1, 3), (2, 3), (3, 3)]
    assert tuple(row[2] for row in seen) == run.losses
    assert run.figures.step_time_s.value == pytest.approx(sum(run.step_times_s[1:]) / 2)
    assert run.figures.tokens_per_s.value == pytest.approx(6 * 16 / run.figures.step_time_s.value)
    assert not run.emulated
    assert run.share_of_sum_of_speeds is None
    assert [stage.layers for stage in run.stages] == [(0, 4), (4, 6), (6, 7), (7, 8)]
    assert all(stage.forward_s > 0 and stage.backward_s > 0 for stage in run.stages)
    layer = TINY.layer_parameters * 4
    assert run.stages[1].memory_parts["parameters"] == 2 * layer
    assert run.stages[1].memory_parts["optimizer"] == 4 * layer
    assert run.stages[0].memory_parts["activations"] > 3 * run.stages[2].memory_parts["activations"]


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_events_are_consistent(engine: LocalEngine, schedule: str) -> None:
    chosen = plan(pipeline([4, 2, 1, 1], "abcc", 6), schedule=schedule)
    run = run_plan(chosen, QUARTET, TINY, EXECUTION, steps=2, engine=engine)
    by_card = [[event for event in run.events if event.card == card and event.kind not in BESIDE] for card in range(4)]
    for events in by_card:
        assert all(one.end_s <= two.start_s for one, two in itertools.pairwise(events))
        assert all(0 <= event.start_s <= event.end_s <= run.step_times_s[-1] for event in events)
    ends = {(event.kind, event.card, event.micro_batch): event for event in run.events}
    for batch in range(6):
        for card in range(3):
            assert ends["forward", card, batch].end_s <= ends["forward", card + 1, batch].start_s
            assert ends["backward", card + 1, batch].end_s <= ends["backward", card, batch].start_s
        assert ends["forward", 3, batch].end_s <= ends["backward", 3, batch].start_s
    most = {"1f1b": [4, 3, 2, 1], "gpipe": [6, 6, 6, 6]}[schedule]
    assert [_most_in_flight(events) for events in by_card] == most


def test_started_cards_are_used_again_but_do_not_change(engine: LocalEngine) -> None:
    pair = plan(pipeline([5, 3], "ab", 2))
    run = run_plan(pair, QUARTET, TINY, EXECUTION, steps=1, engine=engine)
    assert len(run.stages) == 2
    assert run.stages[0].forward_s > 0, "a single step is measured too"
    emulated = formation(pool("c", 1), pool("b", 1, speed=1e9))
    with pytest.raises(
        CapabilityError, match=r"card 0 of pool b has started as a card of cpu and cannot become one of emulated"
    ):
        run_plan(plan(pipeline([5, 3], "cb", 2)), emulated, TINY, EXECUTION, engine=engine)


def test_overheads_are_measured() -> None:
    found = measure_overheads(micro_batches=8)
    assert all(0 < seconds < 0.5 for seconds in (found.forward_s, found.backward_s, found.message_s))


def _most_in_flight(events: list[object]) -> int:
    held = highest = 0
    for event in events:
        held += {"forward": 1, "backward": -1}.get(event.kind, 0)
        highest = max(highest, held)
    return highest
