"""Time that adds up, elastic replicas, spares, units that may be missing, and how failures come: against chance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.errors import InternalError
from zhenfa.laws import account, failure, recovery, redundancy, reliability

TIMES = {
    "interval": st.floats(30, 1e5),
    "mtbf": st.floats(300, 1e9),
    "checkpoint": st.floats(0, 25),
    "down": st.floats(0, 3000),
    "restart": st.floats(0, 3000),
    "lag": st.floats(0, 3000),
}


@given(**TIMES)
def test_time_is_conserved_and_work_is_the_efficiency(**times: float) -> None:
    shares = recovery.time_account(**times)
    assert sum(shares.values()) == pytest.approx(1.0, rel=1e-9)
    assert all(share >= -1e-12 for share in shares.values())
    assert shares["work"] == pytest.approx(reliability.ettr(**times), rel=1e-9)


@given(factor=st.floats(1.01, 50), **TIMES)
def test_more_failures_leave_less(factor: float, **times: float) -> None:
    rarer = {**times, "mtbf": times["mtbf"] * factor}
    assert 0 < reliability.ettr(**times) <= 1
    assert reliability.ettr(**times) <= reliability.ettr(**rarer) * (1 + 1e-12)


def test_an_account_that_does_not_close_is_our_mistake() -> None:
    with pytest.raises(InternalError, match="not conserved") as caught:
        account.closed("time", {"work": 0.5, "down": 0.4999}, 1.0)
    assert "mistake in Zhenfa" in (caught.value.hint or "")
    with pytest.raises(InternalError, match="negative"):
        account.closed("energy", {"a": np.array([1.0, 3.0]), "b": np.array([0.0, -1.0])}, np.array([1.0, 2.0]))


def simulate(
    runs: int,
    length: float,
    *,
    mtbf: float,
    interval: float,
    checkpoint: float,
    down: float,
    restart: float,
    lag: float,
) -> dict[str, float]:
    """Play jobs event by event, all at once: the time that each spends in each state until ``length`` is over."""
    random = np.random.default_rng(11)
    states = ("work", "checkpoint", "rework", "down", "restart")
    spent = {name: np.zeros(runs) for name in states}
    clock, loading = np.zeros(runs), np.zeros(runs, bool)
    for _ in range(100_000):
        open_ = clock < length
        if not open_.any():
            break
        strike = random.exponential(mtbf, runs)
        span = np.where(loading, restart + lag, interval)
        failed = strike < span
        took = np.where(failed, strike, span)
        spent["restart"] += np.where(open_ & loading, np.minimum(took, restart), 0.0)
        spent["rework"] += np.where(open_ & loading, np.maximum(took - restart, 0.0), 0.0)
        spent["rework"] += np.where(open_ & ~loading & failed, took, 0.0)
        spent["work"] += np.where(open_ & ~loading & ~failed, interval - checkpoint, 0.0)
        spent["checkpoint"] += np.where(open_ & ~loading & ~failed, checkpoint, 0.0)
        spent["down"] += np.where(open_ & failed, down, 0.0)
        clock += np.where(open_, took + np.where(failed, down, 0.0), 0.0)
        loading = failed
    total = float(clock.sum())
    return {name: float(value.sum()) / total for name, value in spent.items()}


@pytest.mark.parametrize(("mtbf", "interval"), [(11000.0, 700.0), (2000.0, 900.0)])
def test_every_part_of_the_account_equals_chance(mtbf: float, interval: float) -> None:
    """400 jobs of 100 mean times between failures each."""
    policy = {"mtbf": mtbf, "interval": interval, "checkpoint": 20.0, "down": 180.0, "restart": 300.0, "lag": 150.0}
    seen = simulate(400, 100 * mtbf, **policy)
    exact = recovery.time_account(**policy)
    for name, share in exact.items():
        assert seen[name] == pytest.approx(share, rel=0.02, abs=0.002), name
    assert seen["work"] == pytest.approx(exact["work"], rel=0.01)


def test_higher_order_interval_costs_next_to_nothing() -> None:
    """Daly's higher order against the exact optimum, in the efficiency that is lost by using it."""
    mtbf = np.geomspace(100, 1e7, 40)
    best = reliability.ettr(reliability.optimal_interval(mtbf, 60.0), mtbf=mtbf, checkpoint=60.0)
    daly = reliability.ettr(reliability.daly_higher_interval(mtbf, 60.0), mtbf=mtbf, checkpoint=60.0)
    young = reliability.ettr(reliability.young_interval(mtbf, 60.0), mtbf=mtbf, checkpoint=60.0)
    assert np.all(daly / best > 0.9999)
    assert np.all(young / best > 0.93)
    assert np.all((young / best)[mtbf > 1200] > 0.997)


def test_elastic_replicas_of_the_paper() -> None:
    """FT-HSDP: a failure every 18 min, 3 min of stall, 7 min degraded, 12 replicas: 80 %, against 44 % in step."""
    assert recovery.elastic_ettr(mtbf=18, stall=3, degraded=7, replicas=12) == pytest.approx(0.80, abs=0.003)
    assert recovery.linear_efficiency(18, 10) == pytest.approx(0.44, abs=0.006)


@given(
    mtbf=st.floats(60, 1e7), stall=st.floats(0, 600), degraded=st.floats(0, 3000), replicas=st.integers(1, 64),
    interval=st.floats(60, 1e5), checkpoint=st.floats(0, 50), down=st.floats(0, 600), restart=st.floats(0, 3000),
    full_restart=st.floats(0, 1),
)  # fmt: skip
def test_elastic_time_is_conserved_and_work_is_the_efficiency(**policy: float) -> None:
    shares = recovery.elastic_account(**policy)
    assert sum(shares.values()) == pytest.approx(1.0, rel=1e-9)
    assert all(share >= 0 for share in shares.values())
    assert shares["work"] == pytest.approx(recovery.elastic_ettr(**policy), abs=1e-12)
    assert recovery.elastic_account(**policy, lag=100.0)["work"] <= shares["work"]


@given(st.floats(60, 1e5), st.floats(0, 50), st.floats(0, 600), st.integers(2, 64))
def test_one_replica_less_is_better_than_none(mtbf: float, stall: float, degraded: float, replicas: int) -> None:
    elastic = recovery.elastic_ettr(mtbf=mtbf, stall=stall, degraded=degraded, replicas=replicas)
    assert elastic >= recovery.linear_efficiency(mtbf, stall + degraded) - 1e-12
    assert recovery.elastic_ettr(mtbf=np.inf, stall=stall, degraded=degraded, replicas=replicas) == 1.0


def test_spares_of_published_pools() -> None:
    """One day to refill, 99 %: sizes computed independently; ByteRobust keeps 4 for 1,024 machines."""
    nodes = np.array([1280, 1280, 1280, 12500, 12500, 12500])
    rate = np.array([2.34, 3.79, 6.5] * 2) / 1000 / 86400
    np.testing.assert_array_equal(redundancy.standby_nodes(nodes, rate, 86400), [8, 11, 16, 43, 64, 103])
    low, high = redundancy.standby_rate(1024, 3), redundancy.standby_rate(1024, 4)
    assert redundancy.standby_nodes(1024, 1.01 * low, 1.0) == 4 == redundancy.standby_nodes(1024, 0.99 * high, 1.0)


@given(st.floats(0, 3000), st.floats(0.01, 0.999))
def test_a_quantile_is_the_least_that_suffices(mean: float, quantile: float) -> None:
    count = redundancy.poisson_quantile(mean, quantile)
    terms = [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) if mean else float(k == 0) for k in range(4000)]
    assert sum(terms[: int(count) + 1]) >= quantile - 1e-9
    assert count == 0 or sum(terms[: int(count)]) < quantile + 1e-9


def test_standbys_suffice_as_often_as_asked() -> None:
    random = np.random.default_rng(5)
    spares = redundancy.standby_nodes(1280, 6.5e-3 / 86400, 86400)
    broken = random.binomial(1280, 6.5e-3, 200_000)
    assert np.mean(broken <= spares) >= 0.99
    assert np.mean(broken <= spares - 1) < 0.99
    assert redundancy.binomial_quantile(1280, 6.5e-3, 0.99) == spares


@pytest.mark.parametrize(("units", "needed"), [(1, 1), (3, 2), (6, 4), (8, 8), (9, 1)])
def test_enough_units_up_against_every_case(units: int, needed: int) -> None:
    chance = 0.13
    brute = sum(
        math.prod(1 - chance if up else chance for up in case)
        for case in itertools.product((True, False), repeat=units)
        if sum(case) >= needed
    )
    assert redundancy.usable_probability(units, needed, chance) == pytest.approx(brute, rel=1e-12)


def test_racks_of_eighteen_trays() -> None:
    """16 of 18 trays, and all of them, at 0.5, 1, 2 and 5 % unavailability: computed independently."""
    down = np.array([0.005, 0.01, 0.02, 0.05])
    np.testing.assert_allclose(
        redundancy.usable_probability(18, 16, down), [0.999904, 0.999271, 0.994788, 0.941871], atol=1e-6
    )
    np.testing.assert_allclose(redundancy.usable_probability(18, 18, down), [0.9137, 0.8345, 0.6951, 0.3972], atol=1e-4)


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0, 1))
def test_needing_less_is_never_worse(units: int, needed: int, chance: float) -> None:
    one = redundancy.usable_probability(units, needed, chance)
    assert 0 <= redundancy.usable_probability(units, needed + 1, chance) <= one <= 1


def test_frail_nodes_live_as_a_gamma_mixture() -> None:
    random = np.random.default_rng(7)
    rates = random.gamma(1 / 2.0, 2.0, 400_000)  # mean 1, variance 2
    for seconds in (0.3, 1.0, 4.0):
        assert failure.frail_survival(seconds, 1.0, 2.0) == pytest.approx(np.exp(-rates * seconds).mean(), rel=0.005)


def test_ageing_and_repair_against_chance() -> None:
    random = np.random.default_rng(9)
    assert failure.weibull_mean(10.0, 0.7) == pytest.approx(10 * random.weibull(0.7, 1_000_000).mean(), rel=0.01)
    assert failure.lognormal_mean(60, 1.2) == pytest.approx(60 * random.lognormal(0, 1.2, 1_000_000).mean(), rel=0.01)
    hazard = failure.weibull_hazard(np.array([1.0, 10.0]), 10.0, 0.7)
    assert hazard[0] > hazard[1], "infant mortality"


def test_series_of_parts() -> None:
    assert failure.combined_mtbf(np.array([0.1, 0.0]), 0.1) == pytest.approx([5.0, 10.0])
    assert failure.combined_mtbf(0.0) == np.inf


def test_slow_nodes_cost_everybody() -> None:
    random = np.random.default_rng(3)
    slowest = 1 + 0.1 * (random.random((20_000, 300)) < 0.005).any(axis=1)
    assert recovery.straggler_slowdown(300, 0.005, 0.1) == pytest.approx(slowest.mean(), rel=0.002)


def test_a_blast_radius_is_a_sum_of_what_is_broken_and_what_waits() -> None:
    lost = recovery.lost_card_seconds(domains=16, rate=1e-6, cards=64, repair=1e4, gang=1024, detection=30, down=70)
    assert lost == pytest.approx(16e-6 * (64e4 + 1024 * 100))
    elastic = recovery.lost_card_seconds(domains=16, rate=1e-6, cards=64, repair=1e4, gang=64, detection=30, down=70)
    assert elastic < lost
