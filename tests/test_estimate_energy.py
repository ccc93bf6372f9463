"""Energy and reliability of whole plans: power from curves, lost work paid for, assumptions said aloud."""

from __future__ import annotations

import pytest

from test_walls import answer
from zhenfa import catalog
from zhenfa.catalog import operation
from zhenfa.estimate.power import card_draw, host_draw
from zhenfa.estimate.survival import rate_range

H100 = ("llama3-70b", "dgx-superpod-h100", 8192, 512)
SCALEX = ("qwen3-32b", "scalex640", 4096, 1280)


def test_lost_work_costs_energy_and_both_figures_are_printed() -> None:
    one = answer(*H100).best
    figure, detail = one.estimate.figures.energy_j_per_token, one.estimate.walls.energy.detail
    ettr = one.estimate.figures.ettr.value
    assert figure.value
    assert ettr
    ideal = float((figure.note or "").split("; ")[1].split(" J")[0])
    assert ideal < figure.value < ideal / ettr * (1 + 1e-9)
    assert f"{figure.value:.3g} J/token with lost work, {ideal:.3g} without" in detail
    assert "the run:" in detail
    assert any(line.startswith("power of ") and "host" in line for line in one.estimate.assumptions)


def test_a_measured_card_draws_by_its_curve_and_not_its_rating() -> None:
    one = answer(*H100).best.estimate
    line = next(line for line in one.assumptions if line.startswith("power of "))
    assert "fitted to measured cards" in line
    watts = float(line.split("card ")[-1].split(" W")[0])
    assert 430 < watts <= 700
    assert "rated" not in line


def test_where_nothing_is_measured_rated_power_is_marked_assumed() -> None:
    one = answer(*SCALEX).best.estimate
    assert one.figures.energy_j_per_token.tag == "assumed"
    assert any("75% of 1344 W rated" in line for line in one.assumptions)
    assert any("nobody publishes their rate" in line for line in one.assumptions)


def test_a_power_that_the_user_gives_comes_first() -> None:
    pool = next(iter(answer(*H100).best.plan.cards_by_pool()))
    given = answer(*H100, **{f"{pool}__power_per_card": "2000 W"})
    line = next(line for line in given.best.estimate.assumptions if line.startswith("power of "))
    assert "75% of 2000 W rated" in line


def test_where_time_goes_adds_up() -> None:
    walls = answer(*H100).best.estimate.walls
    assert walls.reliability.share == pytest.approx(sum(walls.reliability.parts.values()), rel=1e-9)
    assert set(walls.reliability.parts) == {"checkpoint", "rework", "down", "restart"}


def test_efficiency_has_a_band_as_wide_as_clusters_differ() -> None:
    ettr = answer(*H100).best.estimate.figures.ettr
    assert ettr.p10 is not None
    assert ettr.p90 is not None
    assert ettr.value is not None
    assert 0 < ettr.p10 < ettr.value < ettr.p90 < 1
    most, least = rate_range()
    assert 1.5 < most < 2.5
    assert 0.4 < least < 0.8


def test_a_card_draws_more_the_more_it_does_and_never_more_than_its_limit() -> None:
    for name in ("h100", "h800", "b200", "a100", "mi300x", "metax-c550"):
        card = catalog.accelerator(name)
        drawn = [
            card_draw(card, flops=f, bytes_per_second=1e12, share=s) for f, s in ((0, 0.1), (3e14, 0.6), (1e16, 1))
        ]
        assert None not in drawn
        busy = [one.busy for one in drawn if one is not None]
        assert busy == sorted(busy)
        assert busy[-1] <= max(card.tdp.require("tdp"), operation.power().cards[0].busy.require("busy"))
        assert all(0 < one.waiting <= one.busy for one in drawn if one is not None)
    tags = {
        name: card_draw(catalog.accelerator(name), flops=1e14, bytes_per_second=0, share=1) for name in ("h100", "h800")
    }
    assert tags["h100"] is not None
    assert tags["h800"] is not None
    assert (tags["h100"].tag, tags["h800"].tag) == ("fitted", "assumed")


def test_nothing_known_is_nothing_said() -> None:
    card = catalog.accelerator("rubin")
    assert card.tdp.value is None
    assert card_draw(card, flops=1e15, bytes_per_second=1e12, share=1) is None


def test_hosts_draw_more_at_work() -> None:
    busy, idle = host_draw()
    assert busy > idle > 0
