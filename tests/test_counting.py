"""The least number of cards that reaches a throughput: on throughputs made up by hand and by chance."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as some

from zhenfa.plan.best_plan import of_training
from zhenfa.plan.compare import Entry, Problem
from zhenfa.plan.counting import WITNESSES, Counts
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.result import Estimate, Figure, Figures, Walls

PLAN = Plan(
    job="j", model="m", machine="x", sequence_length=1, precision="bf16",
    pipelines=(Pipeline(micro_batches=1, stages=(Stage(pool="p", first=0, last=1),)),),
)  # fmt: skip


def entry(rate: float) -> Entry:
    """A machine that makes so many tokens/s, or on which nothing fits."""
    if rate <= 0:
        return Entry("m", "m", None, problem=Problem("does not fit", "no."))
    figures = Figures(tokens_per_s=Figure(value=rate, unit="tokens/s"))
    return Entry("m", "m", None, of_training(Estimate(plan=PLAN, figures=figures, walls=Walls())))


def counts(rate: Callable[[int], float], step: int = 1, most: int = 100_000) -> Counts:
    return Counts(lambda cards: entry(rate(cards)), step, most)


def stairs(cards: int, batch: int = 512, each: int = 4) -> float:
    """Throughput of replicas of ``each`` cards that share a batch: everybody waits for the fullest."""
    replicas = min(cards // each, batch)
    return 0.0 if replicas == 0 else batch / math.ceil(batch / replicas)


@given(
    target=some.floats(1.0, 512.0), guess=some.integers(1, 4000), step=some.sampled_from([1, 4, 8, 64]),
    batch=some.integers(1, 512), each=some.integers(1, 40),
)  # fmt: skip
def test_on_a_staircase_it_is_the_least(target: float, guess: int, step: int, batch: int, each: int) -> None:
    def rate(cards: int) -> float:
        return stairs(cards, batch, each)

    looked = counts(rate, step)
    found = looked.least(target, guess)
    if target > batch * (1 + 1e-6):
        assert found is None
        return
    if found is None:
        assert rate(2 * guess * step) < 1.01 * rate(guess), "given up only where throughput had stopped growing"
        return
    truth = next(cards for cards in range(step, 1_000_000, step) if rate(cards) >= target * (1 - 1e-9))
    assert found == truth
    assert looked.falls is None


@settings(max_examples=200)
@given(
    rates=some.lists(some.floats(0.0, 100.0), min_size=30, max_size=60), target=some.floats(1.0, 100.0),
    guess=some.integers(1, 60),
)  # fmt: skip
def test_whatever_throughput_does_what_is_said_holds(rates: list[float], target: float, guess: int) -> None:
    looked = counts(lambda cards: rates[cards - 1], most=len(rates))
    found = looked.least(target, guess)
    if found is None:
        assert all(looked.rate(steps) < target for steps in looked.points)
        return
    assert rates[found - 1] >= target * (1 - 1e-9)
    below = [cards for cards in looked.points if cards < found]
    assert all(rates[cards - 1] < target for cards in below)
    assert set(range(max(1, found - WITNESSES), found)) <= set(below)


def test_few_counts_are_planned() -> None:
    looked = counts(lambda cards: 1000.0 * cards**0.97, step=8)
    assert looked.least(1000.0 * 12_345**0.97, 1024) == 12_352
    assert len(looked.points) < 16


def test_the_smallest_count_may_do() -> None:
    looked = counts(lambda cards: 100.0 * cards, step=64)
    assert looked.least(50.0, 640) == 64
    assert looked.least(6400.0, 64) == 64, "as much is enough"
    assert looked.least(6401.0, 64) == 128


def test_the_outermost_tier_ends_the_search() -> None:
    looked = counts(float, step=8, most=100)
    assert looked.least(97.0, 8) is None
    assert max(looked.points) * looked.step == 96


def test_throughput_that_stops_growing_ends_the_search() -> None:
    looked = counts(lambda cards: min(cards, 512.0))
    assert looked.least(600.0, 8) is None
    assert max(looked.points) < 20_000


def test_counts_that_hold_nothing_are_passed_over() -> None:
    looked = counts(lambda cards: 0.0 if cards < 100 else 1.0 * cards)
    assert looked.least(10.0, 1) == 100


def test_a_fall_is_told() -> None:
    looked = counts(lambda cards: {1: 10.0, 2: 20.0, 3: 18.0}.get(cards, 0.0), most=3)
    assert looked.least(20.0, 3) == 2
    assert looked.falls == (2, 3, 0.9)
