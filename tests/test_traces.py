"""Laws of failure against real traces: LANL's outages, Llama 3's interruptions, and the packaged tables of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zhenfa import catalog
from zhenfa.catalog import operation
from zhenfa.laws import failure, recovery, reliability

LANL: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "lanl_system_20.json").read_text("utf-8"))


def test_failures_of_a_real_system_show_infant_mortality() -> None:
    """Schroeder and Gibson print a Weibull shape of 0.7 to 0.8 for this system's later years."""
    shape, scale = failure.weibull_fit(LANL["gaps_min"])
    assert 0.7 < shape < 0.8
    assert failure.weibull_mean(scale, shape) == pytest.approx(np.mean(LANL["gaps_min"]), rel=0.03)
    assert operation.failures().process.weibull_shape == pytest.approx(shape, abs=0.01)


def test_some_real_nodes_fail_far_more_than_others() -> None:
    counts = LANL["failures_per_node"] + [0] * (LANL["nodes"] - len(LANL["failures_per_node"]))
    variance = failure.frailty_variance(counts)
    assert operation.failures().process.frailty_variance == pytest.approx(variance, abs=0.01)
    even = np.random.default_rng(2).poisson(np.mean(counts), len(counts))
    assert failure.frailty_variance(even) < 0.05 < variance


def test_real_repairs_are_heavy_tailed() -> None:
    down = np.array(LANL["downtime_min"], float)
    assert down.mean() > 2 * np.median(down)
    spread = float(np.log(down).std())
    assert failure.lognormal_mean(float(np.median(down)), spread) > 1.5 * np.median(down)


LLAMA = {
    "card": 148 + 72 + 19 + 17 + 6 + 6,
    "host": 7 + 3 + 3 + 2 + 2 + 2 + 2,
    "network": 35,
    "maintenance": 32,
    "software": 54 + 2,
}


def test_llama_3_from_counts_to_efficiency() -> None:
    """419 unexpected interruptions in 54 days, 7 of unknown cause; more than 90 % effective training time."""
    table = operation.failures()
    assert {one.id: one.count for one in table.failures} == LLAMA
    assert sum(LLAMA.values()) + 7 == 419
    mtbf = 54 * 86400 / 419
    assert mtbf / 3600 == pytest.approx(3.09, abs=0.005)
    policy = table.recovery
    checkpoint, down, reload = (fact.require("t") for fact in (policy.checkpoint, policy.down, policy.reload))
    best = reliability.optimal_interval(mtbf, checkpoint)
    assert reliability.ettr(best, mtbf=mtbf, checkpoint=checkpoint, down=down, restart=reload) == pytest.approx(
        0.90, abs=0.03
    )


def test_the_law_and_the_table_hold_the_same_rates() -> None:
    table = operation.failures()
    assert table.rate("card") == pytest.approx(reliability.CARD_RATE)
    assert table.rate("host") == pytest.approx(reliability.HOST_RATE)
    assert table.rate("network") == pytest.approx(reliability.NETWORK_RATE)
    assert table.rate("maintenance") == pytest.approx(reliability.MAINTENANCE_RATE)
    assert table.rate("software") == pytest.approx(reliability.SOFTWARE_RATE)


def test_what_nobody_publishes_stays_empty() -> None:
    table = operation.failures()
    empty = {one.id for one in table.domains if one.rate_per_day is None}
    assert empty == {"rack", "cooling-unit", "power-shelf", "scale-up-switch"}
    assert all(one.confidence == "undisclosed" for one in table.domains if one.id in empty)


def test_every_source_of_the_tables_is_known() -> None:
    table, power, known = operation.failures(), operation.power(), catalog.sources()
    rows = (*table.failures, *table.domains, *table.clusters, *table.restart, *table.timeouts, *power.grids)
    for row in (*rows, table.process):
        assert row.source in {*known, "undisclosed"} or row.source.startswith("from memory: "), row
    for card in power.cards:
        assert catalog.accelerator(card.accelerator).id == card.accelerator
        assert card.like is None or power.card(card.like) is not None
        for fact in (card.idle, card.busy):
            assert not fact.known or fact.source in known


def test_restarts_grow_with_the_job() -> None:
    for growth in operation.failures().restart:
        times = failure.restart_time(
            np.array([16384.0, 98304.0]), base=growth.base, per_card=growth.per_card, exponent=growth.exponent
        )
        assert times[1] > 3 * times[0]


def test_detection_alone_can_take_a_seventh_of_a_cluster() -> None:
    timeout = operation.failures().timeout("hccl-exec")
    mtbf = reliability.node_mtbf(1280, 6.5)
    assert recovery.detection_loss(mtbf, timeout.default) == pytest.approx(0.150, abs=0.002)
