"""Failures and checkpoints against published vectors and against chance; energy and price."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.laws import energy, price, reliability

MU = np.array([3849609, 1924805, 962402, 481201, 240601, 120300, 60150, 30075, 15038, 7519], float)
AUPY_TABLE_2 = {
    "young": [68567, 48660, 34584, 24630, 17592, 12615, 9096, 6608, 4848, 3604],
    "daly": [68573, 48668, 34595, 24646, 17615, 12648, 9142, 6673, 4940, 3733],
    "first order": [67961, 48052, 33972, 24014, 16968, 11982, 8449, 5941, 4154, 2869],
    "optimal": [68240, 48320, 34189, 24231, 17194, 12218, 8701, 6214, 4458, 3218],
}
C, D, R = 600.0, 60.0, 600.0


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("young", reliability.young_interval(MU, C)),
        ("daly", reliability.daly_interval(MU, C, down=D, restart=R)),
        ("first order", reliability.first_order_interval(MU, C, down=D, restart=R)),
        ("optimal", reliability.optimal_interval(MU, C)),
    ],
)
def test_intervals_of_aupy_table_2(name: str, ours: np.ndarray) -> None:
    """Aupy et al., table 2: C = 600 s, D = 60 s, R = 600 s."""
    np.testing.assert_allclose(ours, AUPY_TABLE_2[name], rtol=0.002)


@given(st.floats(1, 1e7), st.floats(1e-6, 5.0), st.floats(0.2, 5.0))
def test_no_interval_beats_the_optimum(mtbf: float, share: float, factor: float) -> None:
    checkpoint = share * mtbf
    best = reliability.optimal_interval(mtbf, checkpoint)
    assert best > checkpoint
    at_best, elsewhere = reliability.ettr(np.array([best, factor * best]), mtbf=mtbf, checkpoint=checkpoint)
    assert elsewhere <= at_best * (1 + 1e-9)


def test_higher_order_is_near_the_optimum() -> None:
    for share in (1e-4, 0.01, 0.1, 0.5):
        exact = reliability.optimal_interval(1.0, share)
        assert reliability.daly_higher_interval(1.0, share) == pytest.approx(exact, rel=0.005)
    assert reliability.daly_higher_interval(1.0, 3.0) == 4.0


def test_exact_efficiency_equals_chance() -> None:
    """Monte Carlo of 200,000 periods: failures strike work, checkpoint and restart, not the downtime."""
    random = np.random.default_rng(3)
    mtbf, period, checkpoint, down, restart = 4000.0, 1500.0, 100.0, 120.0, 400.0
    periods = 200_000

    def until(length: float, events: int) -> tuple[float, int]:
        """Return the time lost to failures before ``events`` stretches of ``length`` go through, and the failures."""
        failures = int(random.negative_binomial(events, np.exp(-length / mtbf)))
        lost = -mtbf * np.log1p(random.random(failures) * np.expm1(-length / mtbf))
        return float(lost.sum()), failures

    lost_work, failures = until(period, periods)
    lost_restarts, more = until(restart, failures)
    wall = periods * period + lost_work + lost_restarts + failures * restart + (failures + more) * down
    exact = reliability.ettr(period, mtbf=mtbf, checkpoint=checkpoint, down=down, restart=restart)
    assert exact == pytest.approx(periods * (period - checkpoint) / wall, rel=0.005)


POLICIES = {
    (60, 900, 600): [0.8898, 0.7785, 0.5078, 0.2158],
    (20, 180, 180): [0.9513, 0.9073, 0.7876, 0.5909],
    (1, 90, 60): [0.9866, 0.9721, 0.9264, 0.8341],
    (0.1, 30, 15): [0.9958, 0.9913, 0.9768, 0.9458],
}


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_at_their_optimum(policy: tuple[float, float, float]) -> None:
    """Computed independently: 10,240 and 100,000 cards of 8 a node at 2.34 and 6.5 failures per 1,000 node-days."""
    checkpoint, down, restart = policy
    mtbf = reliability.node_mtbf(np.array([1280, 1280, 12500, 12500]), np.array([2.34, 6.5, 2.34, 6.5]))
    best = reliability.optimal_interval(mtbf, checkpoint)
    ours = reliability.ettr(best, mtbf=mtbf, checkpoint=checkpoint, down=down, restart=restart)
    np.testing.assert_allclose(ours, POLICIES[policy], atol=5e-4)


def test_kokolis_expected_ettr() -> None:
    """Kokolis et al. 2024, small-loss form at 6.5 failures per 1,000 node-days, hourly checkpoints of 5 minutes."""
    ours = reliability.kokolis_ettr(
        np.array([256, 1536, 2048]), node_failure_rate=6.5e-3 / 86400, restart=300, interval=3600, checkpoint=300
    )
    np.testing.assert_allclose(ours, [0.8857, 0.6991, 0.6244], atol=2e-4)


def test_first_order_agrees_while_failures_are_rare() -> None:
    waste = reliability.first_order_waste(3600, mtbf=1e6, checkpoint=30, down=60, restart=120)
    exact = reliability.ettr(3600, mtbf=1e6, checkpoint=30, down=60, restart=120)
    assert 1 - waste == pytest.approx(exact, abs=1e-4)


def test_without_failures_only_checkpoints_cost() -> None:
    assert reliability.ettr(1000, mtbf=np.inf, checkpoint=10) == pytest.approx(0.99)
    assert reliability.ettr(1000, mtbf=1e15, checkpoint=10, down=60, restart=60) == pytest.approx(0.99)
    assert reliability.ettr(10, mtbf=1e4, checkpoint=20) == 0
    assert reliability.job_mtbf(8, 1, **dict.fromkeys(RATES, 0.0)) == np.inf


RATES = ("card_rate", "host_rate", "network_rate", "maintenance_rate", "software_rate")


def test_rates_reproduce_llama_3() -> None:
    """419 unexpected interruptions in 54 days on 16,384 cards; the rates leave out 7 watchdog timeouts."""
    per_run = 54 * 86400 / reliability.job_mtbf(16384, 2048)
    assert per_run == pytest.approx(412)
    assert pytest.approx(3.03e-4, rel=0.002) == reliability.CARD_RATE * 86400


def test_kokolis_mtbf() -> None:
    """Kokolis et al. 2024: 16,384 cards fail every 1.8 h at 6.5 per 1,000 node-days."""
    assert reliability.node_mtbf(2048, 6.5) / 3600 == pytest.approx(1.803, rel=0.001)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(10, 200), st.floats(200, 2000), st.floats(0.2, 3))
def test_power_stays_between_idle_and_maximum(
    one: float, other: float, idle: float, maximum: float, exponent: float
) -> None:
    low, high = energy.card_power(np.sort([one, other]), idle=idle, maximum=maximum, exponent=exponent)
    assert idle * (1 - 1e-12) <= low <= high * (1 + 1e-12) <= maximum * (1 + 1e-9)


def test_facility_of_sixteen_racks() -> None:
    """16 racks of 860 kW at a PUE of 1.04, 1.1 and 1.54."""
    ours = energy.facility_power(16 * 860e3, np.array([1.04, 1.1, 1.54]))
    np.testing.assert_allclose(ours, [14.31e6, 15.14e6, 21.19e6], rtol=0.002)


def test_lost_work_burns_power() -> None:
    step = energy.step_energy(1024, 500, 10, pue=1.2, host_power=100)
    assert step == pytest.approx(1024 * 600 * 10 * 1.2)
    assert energy.energy_per_token(step, 4e6, ettr=0.5) == pytest.approx(2 * energy.energy_per_token(step, 4e6))
    assert energy.energy_per_token(step, 4e6, ettr=0.0) == np.inf


def test_token_cost_agrees_with_the_bill() -> None:
    bill = price.run_cost(64, 7200, price=18 / 3600)
    assert price.token_cost(64, 1e5, price=18 / 3600, ettr=0.9) == pytest.approx(bill / (7200 * 1e5 * 0.9))
    assert np.isnan(price.run_cost(64, 7200, price=np.nan))
