"""Measured collectives, transfers, dispatches and combines: predicted, close, and skipped only for a stated reason."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa.catalog import files
from zhenfa.validation import fabric, fabric_network, fabric_words
from zhenfa.validation.outcome import Outcome

ROWS = [json.loads(line) for line in (files.ROOT / "measurements" / "fabric.jsonl").read_text("utf-8").splitlines()]
BY_ID = {row["id"]: row for row in ROWS}
KNOWN = {row["id"]: fabric.outcomes(row) for row in ROWS}


def logs(group: str, section: str | None = None) -> Any:
    found = [
        one.log_ratio
        for row in ROWS
        for one in KNOWN[row["id"]]
        if group in one.groups and one.skipped is None and section in {None, row["section"]}
    ]
    assert all(value is not None for value in found)
    return np.array(found, float)


@pytest.mark.parametrize(
    ("group", "count", "median", "p90"),
    [
        ("collectives >= 1 MB", 750, 0.12, 0.35),
        ("collectives < 1 MB", 800, 0.12, 0.35),
        ("point to point", 28, 0.12, 0.35),
        ("expert dispatch and combine", 300, 0.20, 0.50),
    ],
)
def test_laws_agree_with_what_was_measured(group: str, count: int, median: float, p90: float) -> None:
    sizes = np.abs(logs(group))
    assert len(sizes) >= count
    assert np.median(sizes) <= median
    assert np.quantile(sizes, 0.9) <= p90


def test_four_of_five_lie_in_their_band() -> None:
    for group in ("collectives >= 1 MB", "collectives < 1 MB", "expert dispatch and combine"):
        inside = [one.covered for many in KNOWN.values() for one in many if group in one.groups and not one.skipped]
        assert 0.7 <= np.mean(inside) <= 0.9, group


def test_nearly_all_measured_rows_are_predicted() -> None:
    measured = [row for row in ROWS if row["confidence"] in fabric.MEASURED]
    predicted = [row for row in measured if any(one.skipped is None for one in KNOWN[row["id"]])]
    assert len(predicted) >= 0.95 * len(measured)
    for many in KNOWN.values():
        for one in many:
            assert (one.skipped is None) == (one.predicted is not None)
            assert one.skipped is None or len(one.skipped) > 20
            assert one.gate == (
                BY_ID[one.id.rpartition("-")[0] if one.id not in BY_ID else one.id]["confidence"] in fabric.MEASURED
            )


def test_a_curve_has_one_outcome_for_every_size() -> None:
    curve = BY_ID["nccl-nvidia-h100-sxm-all_reduce-8"]
    many = fabric.outcomes(curve)
    assert len(many) == len(curve["bytes"])
    assert [one.group for one in many].count("collectives >= 1 MB") == sum(size >= 1e6 for size in curve["bytes"])
    assert len({one.id for one in many}) == len(many)


def test_a_rank_of_two_dies_is_a_die() -> None:
    """CloudMatrix384's rows are per die: 196 GB/s and sixteen ranks to a node; the catalog counts packages of 392."""
    tiers = fabric_network.tiers(BY_ID["cm384-ub-npu-npu-read-intra-node"])
    assert (tiers[0].size, tiers[0].bandwidth) == (16, 196e9)
    unstated = {key: value for key, value in BY_ID["hixl-a3-same-node-read-8M"].items() if key != "peak_GBps_per_dir"}
    assert fabric_network.tiers(unstated)[0].bandwidth == 196e9


def test_a_pair_of_a_full_mesh_has_one_link() -> None:
    (one,) = fabric.outcomes(BY_ID["hixl-a2-hccs-d2d"])
    assert one.predicted is not None
    assert one.predicted < 28


def test_switch_reduction_is_seen_and_can_be_off() -> None:
    nvls, ring = (fabric.outcomes(BY_ID[name])[0].predicted for name in ("stas-h200-nvls", "stas-h200-ring"))
    assert nvls is not None
    assert ring is not None
    assert 1.1 * ring < nvls
    assert ring < 450


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"system": "an abacus"}, "catalog knows no system"),
        ({"ranks": None, "conditions": None}, "ranks is not stated"),
        ({"ranks": 64, "system": "nvidia-a100-sxm-80g"}, "reach over nodes"),
        ({"confidence": "low"}, "not to be relied on"),
        ({"busbw_GBps": None}, "holds no number"),
        ({"system": "iluvatar-bi-v150"}, "not published"),
    ],
)
def test_a_row_is_skipped_for_a_reason_that_names_it(change: dict[str, Any], reason: str) -> None:
    row = {**BY_ID["azure-nvidia-h100-sxm-ar8-8G"], **change}
    (one,) = fabric.outcomes(row)
    assert one.skipped is not None
    assert reason in one.skipped


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["id", "op", "system", "fabric", "ranks", "bytes", "latency_us", "busbw_GBps", "message", "ep",
                         "conditions", "peak_GBps_per_dir", "tokens_per_rank", "dispatch_us", "config", "confidence"]),
        st.one_of(st.none(), st.booleans(), st.integers(-5, 10**6), st.floats(), st.text(max_size=12),
                  st.sampled_from(["nvidia-h100-sxm", "all_reduce", "moe-dispatch", "p2p", "8 GiB", "IB NDR"]),
                  st.lists(st.one_of(st.floats(), st.text(max_size=3)), max_size=3)),
    )
)  # fmt: skip
def test_no_record_breaks_it(record: dict[str, Any]) -> None:
    for one in fabric.outcomes({"section": "measurements", **record}):
        assert isinstance(one, Outcome)
        assert (one.skipped is None) == (one.predicted is not None and math.isfinite(one.predicted))


@pytest.mark.parametrize(
    ("system", "card"),
    [
        ("8 nodes HGX H100", "nvidia-h100-sxm"),
        ("SM90 (H100/H800) + CX-7", "nvidia-h100-sxm"),
        ("SM100 (B200)", "nvidia-b200-sxm"),
        ("2 x 8 A100 40GB", "nvidia-a100-sxm-80g"),
        ("H800 x 16", "nvidia-h800-sxm"),
    ],
)
def test_systems_are_found_in_words(system: str, card: str) -> None:
    found = fabric_network.find_system(system)[1]
    assert found is not None
    assert found.id == card


@pytest.mark.parametrize(
    ("change", "family"),
    [
        ({"system": "nvidia-l40s"}, "pcie4"),
        ({"system": "nvidia-rtx-pro-6000"}, "pcie5"),
        ({"system": "a card of tomorrow", "fabric": "NVLink4"}, "nvlink4"),
        ({"system": "a card of tomorrow", "fabric": None, "peak_GBps_per_dir": 300}, "other"),
    ],
)
def test_cards_out_of_the_catalog_are_told_by_their_links(change: dict[str, Any], family: str) -> None:
    row = {**BY_ID["nccl-nvidia-h100-sxm-all_gather-8"], **change}
    assert fabric_network.tiers(row)[0].family.id == family
    assert all(one.skipped is None for one in fabric.outcomes(row))


def test_words_of_records() -> None:
    assert fabric_words.size("8 GiB") == 8 * 2**30
    assert fabric_words.size("1 MB in one go") == 1e6
    assert fabric_words.size("196 GB/s") is None
    assert fabric_words.number("393-485") == pytest.approx(math.sqrt(393 * 485))
    assert fabric_words.number(float("nan")) is None
    assert fabric_words.ranks("8 to 24 (NVL8x3)") == (8, 24)
    assert fabric_words.network_rate("NVLink4 + IB NDR, SHARP") == 50e9
    assert fabric_words.count_before("8K tokens per batch", "tokens?") == 8192
    assert fabric_words.element_bytes("FP8 dispatch BF16 combine", "combine") == 2


def test_it_takes_its_own_records_only() -> None:
    assert all(fabric.accepts(row) for row in ROWS)
    assert not fabric.accepts({"section": "reliability", "op": "all_reduce", "system": "x", "latency_us": 1})
    assert not fabric.accepts({"id": "a", "tpot_ms": 12})


def record(**changes: Any) -> dict[str, Any]:
    return {
        "id": "r", "section": "measurements", "system": "H100 nodes", "fabric": "NVLink4 + IB 400G", "op": "all_reduce",
        "message": "8 GiB", "confidence": "bench-measured", **changes,
    }  # fmt: skip


def predicted(**changes: Any) -> float:
    (one,) = fabric.outcomes(record(**changes))
    assert one.predicted is not None, one.skipped
    return one.predicted


def test_few_cards_of_each_node_have_few_interfaces() -> None:
    four = predicted(ranks=8, busbw_GBps=190, conditions="2 nodes, 4 GPUs per node")
    one = predicted(ranks=2, busbw_GBps=48, conditions="2 nodes with one card each")
    whole = predicted(ranks=8, busbw_GBps=470, conditions="one node")
    assert one < 50 < four < 200 < whole


def test_a_wire_test_crosses_the_network() -> None:
    assert predicted(op="ib_write_bw", ranks=2, bw_GBps=49, conditions="between nodes") < 50


def test_slots_of_a_server_reach_what_servers_do() -> None:
    slots = {"system": "nvidia-rtx-pro-6000-server", "fabric": "PCIe 5.0 x16", "busbw_GBps": 40, "conditions": ""}
    assert 25 < predicted(ranks=8, **slots) < predicted(ranks=2, **slots) < 63


def test_dispatch_and_combine_may_be_timed_together() -> None:
    shape = {"op": "moe-dispatch+combine", "ep": 8, "conditions": "low latency, 128 tokens, hidden 7168, top-8"}
    (both,) = fabric.outcomes(record(latency_us=222, **shape))
    parts = fabric.outcomes(record(dispatch_us=77, combine_us=114, **shape))
    assert both.predicted == pytest.approx(sum(one.predicted or 0 for one in parts))
