"""Rows on reliability and energy: every packaged row answered or skipped in words, and rows that nobody has seen."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa.catalog import files
from zhenfa.laws import energy as energy_laws
from zhenfa.laws import recovery, redundancy, reliability
from zhenfa.validation import energy, kinds, serving_power
from zhenfa.validation import reliability as rows
from zhenfa.validation.outcome import Outcome

DATA: dict[str, Any] = files.read(files.ROOT / "measurements" / "reliability_energy.yaml")
RECORDS = [{"section": section, **row} for section in DATA for row in DATA[section]]
BY_ID = {record["id"]: record for record in RECORDS}


def answered(record: dict[str, Any]) -> dict[str, Outcome]:
    kind = kinds.kind_of(record)
    assert kind is not None
    found = kinds.outcomes(record, kind, "row")
    assert all(one.kind == kind and one.groups == (kind,) for one in found)
    assert not any("fault" in (one.skipped or "") for one in found), found
    return {one.metric: one for one in found if one.skipped is None}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["id"])
def test_every_row_is_answered_or_skipped_in_words(record: dict[str, Any]) -> None:
    found = kinds.outcomes(record, kinds.kind_of(record) or "energy", "row")
    assert found
    for one in found:
        assert (one.skipped is None) == (one.predicted is not None and one.log_ratio is not None)
        assert one.skipped is None or len(one.skipped) > 10


FORMULA = [record for record in RECORDS if record["kind"] in {"formula", "derived", "projection"}]


@pytest.mark.parametrize("record", FORMULA, ids=lambda record: record["id"])
def test_published_vectors_are_met(record: dict[str, Any]) -> None:
    """As near as the row's own tolerance, or its last printed digit."""
    if record["id"] == "E013":  # medians over configurations that the row does not hold
        assert not answered(record)
        return
    found = answered(record)
    assert found
    for one in found.values():
        assert one.log_ratio is not None
        assert abs(one.log_ratio) < 0.045, one


def test_an_unknown_id_and_another_order_change_nothing() -> None:
    for record in RECORDS:
        other = copy.deepcopy(record)
        other["id"] = "never-seen"
        for part in ("expect", "inputs"):
            if isinstance(other.get(part), dict) and not any(isinstance(v, dict) for v in other[part].values()):
                other[part] = dict(reversed(other[part].items()))
        if record["section"] == "energy_llm" or "paper_prints_h" in record.get("expect", {}):
            continue  # its neighbours are other rows; a rounded copy follows what it rounds
        mine, theirs = answered(record), answered(other)
        assert set(mine) == set(theirs)
        assert all(one.predicted == pytest.approx(theirs[name].predicted) for name, one in mine.items())


def one(kind: str, inputs: dict[str, Any], expect: dict[str, Any], **more: Any) -> dict[str, Outcome]:
    return answered({"section": kind, "id": "x", "kind": "measured", "inputs": inputs, "expect": expect, **more})


def test_rows_that_nobody_has_written_yet() -> None:
    """The same laws under other keys, units and shapes."""
    elastic = {"mtbf_min": 18, "stall_min": 3, "degraded_min": 7, "replicas": 12}
    found = one("reliability", elastic, {"ettr": 0.8, "synchronous": 0.44})
    assert found["ettr"].predicted == pytest.approx(0.801, abs=1e-3)
    assert found["synchronous"].predicted == pytest.approx(0.444, abs=1e-3)
    found = one("reliability", {"mtbf_h": 3, "checkpoint_s": 20, "interval_min": 30, "down_s": 180, "restart_s": 180},
                {"goodput": 0.88})  # fmt: skip
    assert found["goodput"].predicted == pytest.approx(
        reliability.ettr(1800, mtbf=10800, checkpoint=20, down=180, restart=180)
    )
    found = one("reliability", {"gpus": 9600, "days": 30}, {"ettr_min": 0.97, "interruptions": 150})
    assert found["ettr_min"].predicted == pytest.approx(0.93, abs=0.02)
    assert found["ettr_min"].tag == "assumed"
    assert found["interruptions"].predicted == pytest.approx(147, abs=10)
    found = one("reliability", {"trays": 8, "needed": 7, "tray_unavailability": 0.02}, {"p_usable": 0.99})
    assert found["p_usable"].predicted == pytest.approx(redundancy.usable_probability(8, 7, 0.02))
    found = one("reliability", {"fit": {"mtbf_s": 100, "goodput": 0.9}, "predict": {"mtbf_s": 40}}, {"goodput": 0.75})
    assert found["goodput"].predicted == pytest.approx(recovery.linear_efficiency(40, 10))
    found = one("reliability", {"cards": 131072, "gpu_years_per_event": 404}, {"event_every_days": 1.12})
    assert found["event_every_days"].predicted == pytest.approx(1.126, abs=1e-3)
    found = one("reliability", {"mtbf_h": 3, "C_s": 20, "D_s": 180, "R_s": 180}, {"waste": 0.09, "optimal_s": 660})
    assert found["waste"].predicted == pytest.approx(0.0903, abs=1e-3)
    found = one("energy", {"cap_W": [250, 175], "latency_increase": [0.06, 0.07]}, {"energy_change": -0.23})
    assert found["energy_change"].ratio == pytest.approx(0.2545 / 0.23, abs=1e-3)
    found = one("energy", {"gpu_hours": 1082990, "power_W": 400, "factor_kg_per_kWh": 0.057}, {"tCO2eq": 24.7})
    assert found["tCO2eq"].predicted == pytest.approx(24.69, abs=0.01)
    found = one("energy", {"racks": 4, "rack_kW": 120, "pue": 1.2}, {"facility_MW": 0.576})
    assert found["facility_MW"].predicted == pytest.approx(0.576)
    found = one("energy", {"power_kW": 500, "hours": 24, "gpus": 1}, {"energy_MWh": 12})
    assert found["energy_MWh"].predicted == pytest.approx(12)


def test_a_prediction_ignores_what_the_row_measured() -> None:
    """Except where a row measures two things that a law joins; power never answers for itself."""
    for record in DATA["energy_llm"][:6]:
        other = {
            **record,
            "power_W": 3 * record["power_W"],
            "J_per_tok": 3 * record["J_per_tok"],
            "section": "energy_llm",
        }
        mine = answered({**record, "section": "energy_llm"})
        assert answered(other)["power"].predicted == pytest.approx(mine["power"].predicted)


def test_a_model_that_the_catalog_does_not_know_is_read_by_its_size() -> None:
    row = {"section": "energy_llm", "kind": "measured", "id": "x", "gpu": "H100", "gpus": 1, "tp": 1, "ep": 1,
           "avg_batch": 64.0, "tok_per_s": 2600, "power_W": 500, "J_per_tok": 0.19}  # fmt: skip
    found = answered({**row, "model": "nobody/Unknown-27b-it"})["power"].predicted
    known = answered({**row, "model": "Qwen/Qwen3-32B"})["power"].predicted
    assert found == pytest.approx(known, rel=0.1)
    sparse = answered({**row, "model": "nobody/Unknown-30B-A3B"})["power"].predicted
    assert sparse is not None
    assert found is not None
    assert sparse < found
    assert not answered({**row, "model": "nobody/unknown"})


def test_power_between_the_ends_of_a_curve() -> None:
    """Law and ends of each packaged curve against every point between them: a fit of neither."""
    series: dict[tuple[str, ...], list[serving_power.Point]] = {}
    for point in serving_power.packaged_points():
        series.setdefault(point.series, []).append(point)
    errors = []
    for points in series.values():
        points.sort(key=lambda point: point.batch)
        ends = [points[0], points[-1]]
        for point in points[1:-1]:
            found = serving_power.law_power(point.record)
            assert not isinstance(found, str)
            misses = []
            for end in ends:
                at = serving_power.law_power(end.record)
                assert not isinstance(at, str)
                misses.append((math.log2(point.batch / end.batch), math.log(end.power / at[0])))
            errors.append(abs(math.log(found[0] / point.power) + serving_power.pull(misses)))
    assert len(errors) > 15
    assert np.median(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.10


def test_the_fit_of_power_is_the_one_that_is_packaged() -> None:
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parent.parent / "tools" / "fit_operation.py"
    spec = importlib.util.spec_from_file_location("fit_operation", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    from zhenfa.catalog import operation

    for name, found in tool.activities().items():
        card = operation.power().card(name)
        assert card is not None
        assert card.activity is not None
        assert card.activity.static.require("static") == pytest.approx(found["static"], rel=0.01)
        assert card.activity.picojoules_per_flop == pytest.approx(found["flop"], rel=0.02)
        assert found["median"] < 0.10, "each model predicted with that model left out"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["cards", "mtbf_h", "rate_per_1000_node_days", "C_s", "D_s", "R_s", "interval_s", "cells", "policies_s", "fit",
     "predict", "ettr", "spares", "nodes", "days", "failures", "total_s", "kW", "dT_K", "pue", "lost_64", "counts",
     "hccl_timeout", "exec_effective_s", "cold_recovery_s", "saving_104_vs_110_MWh_per_year", "gpu", "racks"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["reliability", "energy", "energy_llm"]), st.dictionaries(KEYS, JUNK, max_size=6),
    st.dictionaries(KEYS, JUNK, max_size=6), JUNK,
)  # fmt: skip
def test_no_row_however_wrong_raises(section: str, inputs: dict[str, Any], expect: dict[str, Any], junk: Any) -> None:
    module = rows if section == "reliability" else energy
    for record in (
        {"section": section, "id": junk, "kind": junk, "inputs": inputs, "expect": expect},
        {"section": section, "inputs": junk, "expect": expect, **inputs},
        {"kind": "measured", "inputs": inputs, "expect": expect},
    ):
        module.accepts(record)
        assert module.outcomes(record)


def test_joules_per_token_are_power_over_throughput() -> None:
    record = {**DATA["energy_llm"][0], "section": "energy_llm"}
    found = answered(record)
    assert found["energy per token"].predicted == pytest.approx(
        energy_laws.token_energy(found["power"].predicted or 0.0, record["tok_per_s"])
    )
