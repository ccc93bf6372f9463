"""Bands: an interval holds what it promises of rows that it never saw, and every estimate has one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_docs_laws import tool
from zhenfa import catalog
from zhenfa.estimate import bands
from zhenfa.spec.machine import Accelerator
from zhenfa.spec.result import Figure, Figures
from zhenfa.validation.banding import banded, class_names, is_rate, residual
from zhenfa.validation.outcome import Outcome

FIT = tool("fit_bands")
ROW = Outcome(
    id="r", kind="train", groups=("train / dense / NVIDIA / tier A",), metric="iter_s", unit="s", measured=3.0,
    predicted=2.0,
)  # fmt: skip


@pytest.mark.parametrize(("n", "level"), [(40, 0.8), (200, 0.8), (60, 0.9)])
def test_an_interval_holds_what_it_promises(n: int, level: float) -> None:
    random = np.random.default_rng(3)
    held = []
    for _ in range(400):
        low, high = FIT.interval(random.standard_t(3, n), level)
        held.append(np.mean((low <= (fresh := random.standard_t(3, 200))) & (fresh <= high)))
    assert level - 0.01 <= np.mean(held) <= level + 2.5 / n


def test_rows_that_are_off_together_widen_the_band() -> None:
    random = np.random.default_rng(5)
    shifts = np.repeat(random.normal(0, 0.3, 30), 20)
    values = shifts + random.normal(0, 0.02, 600)
    apart = FIT.Residuals(values, np.array([f"c{at // 20}" for at in range(600)]))
    plain = FIT.interval(values, 0.8)
    found = FIT.fit(apart)
    assert math.log(found["low"]) <= plain[0] + 0.01
    assert math.log(found["high"]) >= plain[1] - 0.01
    assert found["clusters"] == 30
    inside = np.mean((np.log(found["low"]) <= values + 1e-3) & (values - 1e-3 <= np.log(found["high"])))
    assert 0.79 <= inside <= 0.85


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=60), st.floats(0.05, 0.98))
def test_an_interval_is_made_of_the_values(values: list[float], level: float) -> None:
    low, high = FIT.interval(np.array(values), level)
    assert low in values
    assert high in values
    assert low <= high


@given(st.floats(0.3, 1.0), st.floats(1.0, 3.0), st.floats(1e-6, 1e6))
def test_a_rate_has_the_band_of_its_time(low: float, high: float, value: float) -> None:
    band = bands.Band("x", low, high, 50, 0.8)
    slow, fast = band.around(value, rate=True)
    short, long = band.around(1 / value)
    assert slow == pytest.approx(1 / long)
    assert fast == pytest.approx(1 / short)
    assert slow <= value * (1 + 1e-12)
    assert value <= fast * (1 + 1e-12)


@given(st.floats(0.3, 0.99), st.floats(1.01, 3.0), st.floats(0.3, 0.99), st.floats(1.01, 3.0))
def test_a_product_is_wider_than_its_factors(a: float, b: float, c: float, d: float) -> None:
    one, two = bands.Band("one", a, b, 50, 0.8), bands.Band("two", c, d, 50, 0.8)
    found = bands.joined(one, two)
    assert found is not None
    width = math.log(found.high / found.low)
    assert max(math.log(b / a), math.log(d / c)) <= width + 1e-12
    assert width <= math.log(b / a) + math.log(d / c) + 1e-12
    assert bands.joined(one, None) is not None
    assert bands.joined(one, None).low == pytest.approx(a)  # type: ignore[union-attr]
    assert bands.joined(None, None) is None


def test_the_residual_is_of_the_time() -> None:
    assert residual(ROW) == pytest.approx(math.log(1.5))
    rate = replace(ROW, metric="tok_s_dev", unit="tok/s", measured=2.0, predicted=3.0)
    assert is_rate(rate)
    assert residual(rate) == pytest.approx(math.log(1.5))
    assert is_rate(replace(ROW, metric="mfu_pct", unit="%"))
    assert is_rate(replace(ROW, metric="bw", unit="GB/s"))
    assert not is_rate(replace(ROW, metric="J_per_tok", unit="J"))
    assert residual(replace(ROW, skipped="why")) is None


def test_points_of_a_curve_and_exact_results_are_classes_of_their_own() -> None:
    power = replace(ROW, kind="energy", groups=("energy",), metric="power", unit="W", tag="fitted")
    assert class_names(power)[1] == "energy & law"
    assert class_names(replace(power, note="7 other points of its curve"))[1] == "energy & curve"
    assert class_names(replace(power, note="1 other points of its curve"))[1] == "energy & law"
    assert class_names(replace(power, tag="derived"))[1] == "energy & exact"


def test_an_outcome_gets_the_narrowest_band_that_was_fitted() -> None:
    found = banded(ROW)
    band = bands.band(*class_names(ROW))
    assert band is not None
    assert (found.p10, found.p90) == (2.0 * band.low, 2.0 * band.high)
    own = ROW.within(1.0, 9.0)
    assert banded(own) is own
    assert banded(replace(ROW, kind="op", groups=("nothing of the sort",))).p10 == banded(
        replace(ROW, kind="op", groups=("op",))
    ).p10  # fmt: skip


def test_every_band_was_validated_on_rows_left_out() -> None:
    assert len(bands.bands()) >= 5
    for band in bands.bands().values():
        assert 0 < band.low < band.high, band
        assert 0 <= band.coverage <= 1
        assert band.n >= 10, band


@pytest.mark.parametrize("mixture", [True, False])
@pytest.mark.parametrize("makers", [["NVIDIA"], ["Huawei Ascend"], ["NVIDIA", "AMD"], ["a maker to come"]])
def test_every_plan_has_a_band(makers: list[str], mixture: bool) -> None:
    figures = Figures(
        step_time_s=Figure(value=2.0, unit="s"), tokens_per_s=Figure(value=1e6, unit="tokens/s"),
        mfu=Figure(value=0.9),
    )  # fmt: skip
    cards = [Accelerator(id=f"card-{place}", maker=maker, name=maker) for place, maker in enumerate(makers)]
    found = bands.training(figures, cards, mixture=mixture)
    assert found.step_time_s.p10 is not None
    assert found.tokens_per_s.p10 is not None
    assert found.step_time_s.p90 is not None
    assert found.step_time_s.p90 * found.tokens_per_s.p10 == pytest.approx(2e6)
    assert found.mfu.p90 is not None
    assert found.mfu.p90 <= 1.0
    assert found.energy_j_per_token.p10 is None


def test_an_engine_that_nobody_measured_has_the_widest_band() -> None:
    """On the same cards, a mode whose costs are a prior has a wider band than one that was fitted."""
    figures = Figures(tpot_s=Figure(value=0.05, unit="s", tag="assumed"))
    card = catalog.accelerator("ascend-910c")
    known, prior = (bands.serving(figures, engine, [card]).tpot_s for engine in ("vllm-ascend", "vllm-ascend-full"))
    assert known.p10 is not None and known.p90 is not None and prior.p10 is not None and prior.p90 is not None  # noqa: PT018
    assert prior.p90 - prior.p10 > 1.5 * (known.p90 - known.p10)


def step_band(card: str, *, mixture: bool) -> bands.Band:
    found = bands.training_band([catalog.accelerator(card)], mixture=mixture)
    assert found is not None
    return found


def wide(found: bands.Band) -> float:
    return math.log(found.high / found.low)


def test_bands_widen_with_less_evidence() -> None:
    """Of a chip with rows, a sibling without, a sort of model with a few rows, a generation that nobody measured."""
    measured, sibling = step_band("ascend-910b2", mixture=False), step_band("ascend-910c", mixture=False)
    assert wide(measured) < wide(sibling)
    few = step_band("ascend-910b2", mixture=True)
    assert wide(few) > max(wide(measured), wide(step_band("nvidia-h100-sxm", mixture=True)))
    assert wide(step_band("ascend-910c", mixture=True)) > wide(few)
    for mixture in (False, True):
        unknown = step_band("intel-gaudi3", mixture=mixture)
        assert wide(unknown) > wide(step_band("google-tpu7x", mixture=mixture))
        assert unknown.low <= 0.73
        assert unknown.high >= 1.4


def test_generations_left_out_count_alike_whatever_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two generations that are off to either side by a third make a band as wide, though one has ten times the rows."""
    rows = {"many": [({"off": 0.3 + 0.001 * at}, f"a{at % 2}") for at in range(100)]}
    rows |= {"few": [({"off": -0.3 - 0.001 * at}, f"b{at % 2}") for at in range(10)]}
    monkeypatch.setattr(FIT, "by_generation", lambda _: rows)
    monkeypatch.setattr(FIT, "steps", lambda record: [record["off"]])
    found = FIT.left_out([])
    assert math.log(found[FIT.LEFT_OUT]["low"]) < -0.29
    assert math.log(found[FIT.LEFT_OUT]["high"]) > 0.29
    assert found[FIT.LEFT_OUT]["n"] == 110
    assert found[FIT.CHIP_LEFT_OUT]["chips"] == ["a0", "a1", "b0", "b1"]
    assert found[FIT.CHIP_LEFT_OUT]["high"] < 1.01
