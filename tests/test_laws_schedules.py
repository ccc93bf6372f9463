"""Schedules with several stages to a place: timelines against a simulation of another kind, closed forms, memory."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa.errors import InputError
from zhenfa.laws import pipeline, schedules
from zhenfa.laws.orders import Operation, orders
from zhenfa.laws.schedules import Durations, held_micro_batches, schedule_ends, schedule_events


def equal(stages: int, forward: float, backward: float, weight: float, transfer: float = 0.0) -> Durations:
    return Durations([forward] * stages, [backward] * stages, [weight] * stages, [transfer] * (stages - 1))


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, int, int, int, Durations]:
    schedule = draw(st.sampled_from(["interleaved", "zero-bubble", "zero-bubble-v", "dualpipe"]))
    places = draw(st.sampled_from([2, 4]) if schedule == "dualpipe" else st.integers(1, 4))
    virtual = {"interleaved": draw(st.integers(1, 3)), "zero-bubble-v": 2}.get(schedule, 1)
    times = 2 * draw(st.integers(places, places + 3)) if schedule == "dualpipe" else draw(st.integers(1, 9))
    stages = places * virtual
    seconds = st.integers(1, 6).map(float) if draw(st.booleans()) else st.floats(0.1, 5.0)
    forward, weight, rest = (draw(st.lists(seconds, min_size=stages, max_size=stages)) for _ in range(3))
    hops = draw(st.lists(st.floats(0.0, 2.0), min_size=stages - 1, max_size=stages - 1))
    backward = [one + two for one, two in zip(weight, rest, strict=True)]
    paired = [0.2 * min(one) for one in zip(forward, backward, strict=True)] if schedule == "dualpipe" else []
    return schedule, places, virtual, times, Durations(forward, backward, weight, hops, paired)


def home(schedule: str, places: int, stage: int, micro_batch: int, times: int) -> int:
    """Where a stage of a micro-batch is worked on, from the papers' figures."""
    if schedule == "dualpipe":
        return stage if micro_batch < times // 2 else places - 1 - stage
    turn, place = divmod(stage, places)
    return places - 1 - place if schedule == "zero-bubble-v" and turn % 2 else place


def tick(schedule: str, places: int, virtual: int, times: int, durations: Durations) -> list[float]:
    """Follow the orders by moving a clock from event to event, as a machine would; return when each place ends."""
    todo = [list(row) for row in orders(schedule, places, virtual, times)]
    last = places * virtual - 1
    inputs = [whole - weight for whole, weight in zip(durations.backward, durations.weight, strict=True)]
    table = {
        "forward": durations.forward, "backward": durations.backward, "weight": durations.weight, "input": inputs,
    }  # fmt: skip
    here: set[tuple[str, int, int]] = set()
    flying: list[tuple[float, tuple[str, int, int]]] = []
    running: list[tuple[float, tuple[Operation, ...]] | None] = [None] * places
    busy_wire: dict[tuple[int, int], float] = {}
    now, ends = 0.0, [0.0] * places

    def start() -> None:
        for place in range(places):
            if running[place] is None and todo[place]:
                needs = [
                    ("down", stage, micro) if kind == "forward" else ("up", stage, micro)
                    for kind, stage, micro in todo[place][0]
                    if (kind == "forward" and stage > 0) or (kind in ("backward", "input") and stage < last)
                ]
                if all(one in here for one in needs):
                    together = todo[place].pop(0)
                    seconds = sum(table[kind][stage] for kind, stage, _ in together)
                    if len(together) > 1 and durations.paired:
                        seconds -= sum(durations.paired[stage] for _, stage, _ in together) / 2
                    running[place] = (now + seconds, together)

    start()
    while any(running) or flying:
        now = min([one[0] for one in running if one] + [at for at, _ in flying])
        for at, message in list(flying):
            if at <= now:
                flying.remove((at, message))
                here.add(message)
        for place in range(places):
            one = running[place]
            if one is None or one[0] > now:
                continue
            running[place], ends[place] = None, now
            for kind, stage, micro in one[1]:
                step = 1 if kind == "forward" else -1 if kind in ("backward", "input") else 0
                target = stage + step
                if not step or not 0 <= target <= last:
                    continue
                wire = (place, home(schedule, places, target, micro, times))
                assert home(schedule, places, stage, micro, times) == place
                begins = max(now, busy_wire.get(wire, 0.0))
                busy_wire[wire] = begins + durations.transfer[min(stage, target)]
                flying.append((busy_wire[wire], ("down" if step > 0 else "up", target, micro)))
        arrived = [item for item in flying if item[0] <= now]
        for item in arrived:
            flying.remove(item)
            here.add(item[1])
        start()
    assert not any(todo)
    return ends


@given(cases())
@settings(max_examples=150, deadline=None)
def test_ends_equal_those_of_a_ticking_clock(case: Any) -> None:
    schedule, places, virtual, times, durations = case
    found = schedule_ends(durations, times, schedule, virtual_stages=virtual)
    assert found.tolist() == pytest.approx(tick(schedule, places, virtual, times, durations), rel=1e-9)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_every_operation_once_one_at_a_time_and_after_what_it_needs(case: Any) -> None:
    schedule, places, virtual, times, durations = case
    rows = schedule_events(durations, times, schedule, virtual_stages=virtual)
    todo = [one for row in orders(schedule, places, virtual, times) for together in row for one in together]
    assert len(set(todo)) == len(todo)
    work = {("forward", stage, micro) for stage in range(places * virtual) for micro in range(times)}
    assert {one for one in todo if one[0] == "forward"} == work
    whole = {(stage, micro) for kind, stage, micro in todo if kind == "backward"}
    apart = {(stage, micro) for kind, stage, micro in todo if kind == "input"}
    assert apart == {(stage, micro) for kind, stage, micro in todo if kind == "weight"}
    assert not whole & apart
    assert whole | apart == {(stage, micro) for _, stage, micro in work}
    for place in range(places):
        own = [event for where, event in rows if where == place]
        assert all(one.end <= two.start + 1e-9 for one, two in itertools.pairwise(own))


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 3), st.floats(0.1, 3))
@settings(deadline=None, max_examples=60)
def test_interleaved_bubble_shrinks_by_the_stages_of_a_place(
    places: int, virtual: int, groups: int, forward: float, backward: float
) -> None:
    times = groups * places
    ends = schedule_ends(
        equal(places * virtual, forward / virtual, backward / virtual, 0.0), times, "interleaved",
        virtual_stages=virtual,
    )  # fmt: skip
    ideal = times * (forward + backward)
    assert ends.max() - ideal == pytest.approx((places - 1) * (forward + backward) / virtual, rel=1e-6, abs=1e-9)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_one_stage_to_a_place_is_1f1b(case: Any) -> None:
    _, places, _, times, durations = case
    parts = [np.array(row[:places]) for row in (durations.forward, durations.backward)]
    hops = durations.transfer[: places - 1]
    one = Durations(parts[0].tolist(), parts[1].tolist(), [0.0] * places, hops)
    plain = pipeline.stage_ends(parts[0], parts[1], np.array(hops), times, "1f1b")
    np.testing.assert_allclose(schedule_ends(one, times, "interleaved"), plain, rtol=1e-9)


@pytest.mark.parametrize(("places", "virtual", "groups"), [(2, 2, 40), (4, 3, 30), (3, 1, 50)])
@pytest.mark.parametrize("seed", range(3))
def test_jump_equals_following_every_operation(places: int, virtual: int, groups: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    stages = places * virtual
    forward = 1 + random.choice([0.0, 0.3]) * random.random(stages)
    hops = random.choice([0.0, 0.4]) * random.random(stages - 1)
    durations = Durations(forward.tolist(), (2 * forward).tolist(), forward.tolist(), hops.tolist())
    jumped = schedule_ends(durations, groups * places, "interleaved", virtual_stages=virtual)
    full = schedules._starts(durations, groups * places, "interleaved", virtual).ends
    np.testing.assert_allclose(jumped, full, rtol=1e-9)


@pytest.mark.parametrize("places", [2, 4, 8])
@pytest.mark.parametrize("parts", [(1.0, 2.0, 1.0), (1.0, 2.2, 0.9), (1.0, 2.0, 0.7)])
def test_half_bubble(places: int, parts: tuple[float, float, float]) -> None:
    """Table 2 of Qi et al.: the bubble of ZB-H1 is (p - 1)(F + B - W), with B the input's part."""
    forward, backward, weight = parts
    times = 3 * places
    ends = schedule_ends(equal(places, *parts), times, "zero-bubble")
    bubble = (places - 1) * (forward + backward - 2 * weight)
    assert ends.max() == pytest.approx(times * (forward + backward) + bubble)
    one = pipeline.uniform_pipeline_time(forward, backward, places, times)
    assert ends.max() < one


@pytest.mark.parametrize(("places", "times"), [(2, 4), (4, 8), (4, 20), (8, 20), (8, 40), (16, 64)])
def test_dualpipe_bubble_and_memory(places: int, times: int) -> None:
    """Table 2 of the DeepSeek-V3 report: bubble (p/2 - 1)(F&B + B - 3 W), activations of p + 1 micro-batches."""
    forward, backward, weight = 1.0, 2.0, 1.0
    ends = schedule_ends(equal(places, forward, backward, weight), times, "dualpipe")
    bubble = (places / 2 - 1) * ((forward + backward) + backward - 3 * weight)
    assert ends.max() == pytest.approx(times * (forward + backward) + bubble)
    kept = held_micro_batches(places, times, "dualpipe")
    assert {float(moments.sum(axis=1).max()) for moments in kept} == {places + 1.0}


def test_dualpipe_hides_the_communication_of_paired_passes() -> None:
    slow = equal(4, 1.5, 3.0, 1.0)
    hidden = slow._replace(paired=[1.5] * 4)
    assert schedule_ends(hidden, 40, "dualpipe").max() < 0.72 * schedule_ends(slow, 40, "dualpipe").max()


@pytest.mark.parametrize(("places", "virtual"), [(2, 1), (4, 2), (4, 5), (8, 3)])
def test_interleaved_keeps_what_its_warm_up_starts(places: int, virtual: int) -> None:
    kept = held_micro_batches(places, 4 * places, "interleaved", virtual_stages=virtual)
    most = [float(moments.sum(axis=1).max()) for moments in kept]
    ahead = [2 * (places - place - 1) + (virtual - 1) * places + 1 for place in range(places)]
    assert most == (ahead if virtual > 1 else [float(places - place) for place in range(places)])


def test_zero_bubble_keeps_as_much_as_1f1b_does_at_most() -> None:
    for schedule, virtual in (("zero-bubble", 1), ("zero-bubble-v", 2)):
        for moments in held_micro_batches(4, 16, schedule, virtual_stages=virtual):
            assert moments.sum(axis=1).max() <= 4 * virtual


@pytest.mark.parametrize("places", range(1, 9))
def test_v_waits_only_while_it_fills(places: int) -> None:
    """Section 6 of Qi et al.: where all passes take the same, more micro-batches add work and no bubble."""
    beyond = set()
    for more in (0, 1, 5, 40):
        times = 2 * places + more
        ends = schedule_ends(equal(2 * places, 1.0, 2.0, 1.0), times, "zero-bubble-v", virtual_stages=2)
        beyond.add(float(ends.max()) - 6.0 * times)
    assert len(beyond) == 1
    assert places - 1 <= beyond.pop() <= places + 1


def test_v_is_quicker_than_half_bubble_with_the_same_memory() -> None:
    halves = schedule_ends(equal(8, 0.5, 1.0, 0.5), 16, "zero-bubble-v", virtual_stages=2).max()
    assert halves < schedule_ends(equal(4, 1.0, 2.0, 1.0), 16, "zero-bubble").max()


def test_what_cannot_run_is_named() -> None:
    with pytest.raises(InputError, match="'zigzag'"):
        schedule_ends(equal(2, 1, 2, 1), 4, "zigzag")
    with pytest.raises(InputError, match="even number of micro-batches, 8 or more"):
        schedule_ends(equal(4, 1, 2, 1), 6, "dualpipe")
    with pytest.raises(InputError, match="cannot stand 2 to a place"):
        schedule_ends(equal(3, 1, 2, 1), 4, "interleaved", virtual_stages=2)
