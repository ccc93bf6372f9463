"""The packaged training rows against the laws: how many are predicted, and how far off.

Only rows whose pipelines are short are followed here, to keep the suite quick; `zhenfa validate --kind train` takes
all.
"""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

import pytest

from zhenfa.validation import rows, training
from zhenfa.validation.outcome import Outcome

LONGEST = 1500
"""Stages times micro-batches that are followed here."""


def _records() -> list[dict[str, Any]]:
    found = rows.read_rows([rows.MEASUREMENTS / "training.jsonl.gz"])
    return [dict(row.record) for row in found if isinstance(row, rows.Row)]


@cache
def _outcomes() -> tuple[Outcome, ...]:
    """Return the outcomes of every second short row."""
    chosen = []
    for record in _records():
        layout = record["parallel"]
        stages = layout.get("pp", 1) * (layout["vpp"] if isinstance(layout.get("vpp"), int) else 1)
        if stages * (layout.get("ga") or 1) <= LONGEST:
            chosen.append(record)
    return tuple(outcome for record in chosen[::2] for outcome in training.outcomes(record))


def test_packaged_rows_may_be_quoted() -> None:
    for record in _records():
        assert record["evidence"].startswith("repo-")
        assert record["source"]["where"]
        assert "InferenceX" not in str(record)


def test_nearly_every_packaged_row_is_predicted() -> None:
    gate = [outcome for outcome in _outcomes() if outcome.gate]
    assert len(gate) > 100
    assert sum(outcome.predicted is not None for outcome in gate) >= 0.97 * len(gate)
    assert all(outcome.skipped for outcome in _outcomes() if outcome.predicted is None)


@pytest.mark.parametrize(
    ("group", "middle", "ninth"),
    [
        ("train / dense / NVIDIA / tier A", 0.08, 0.22),
        ("train / MoE / tier A", 0.15, 0.45),
        ("train / Ascend", 0.15, 0.40),
    ],
)
def test_accuracy_on_packaged_rows(group: str, middle: float, ninth: float) -> None:
    sizes = sorted(abs(one.log_ratio) for one in _outcomes() if group in one.groups and one.log_ratio is not None)
    assert len(sizes) >= 15
    assert statistics.median(sizes) <= middle
    assert sizes[int(0.9 * len(sizes))] <= ninth


def test_rows_that_no_fit_has_seen() -> None:
    """Rows found after the fits: a few of each source, as far as their pipelines are short."""
    found = rows.read_rows([rows.MEASUREMENTS / "training_later.jsonl.gz"])
    records = [dict(row.record) for row in found if isinstance(row, rows.Row)]
    held = [record for record in records if record.get("split") == "held-out"]
    assert len(held) > 150
    assert {record["id"] for record in held}.isdisjoint(record["id"] for record in _records())
    short = [one for one in held if one["parallel"]["pp"] * one["parallel"]["vpp"] * one["parallel"]["ga"] <= LONGEST]
    outcomes = [training.outcomes(record)[0] for record in short[::4]]
    assert all(one.skipped is None for one in outcomes)
    errors = [abs(one.log_ratio) for one in outcomes if one.log_ratio is not None]
    assert statistics.median(errors) < 0.12


def test_unequal_cards_are_predicted_within_fifteen_percent_and_keep_their_order() -> None:
    """Every published layout over unequal cards whose step, and whose memory, can be of the layout described."""
    found = rows.read_rows([rows.MEASUREMENTS / "training_mixed.yaml"])
    outcomes = [one for row in found if isinstance(row, rows.Row) for one in training.outcomes(row.record)]
    steps = [one for one in outcomes if one.metric == "iter_s" and one.predicted is not None]
    memory = [one for one in outcomes if one.groups == ("train / memory",) and one.predicted is not None]
    assert (len(steps), len(memory)) == (4, 3)
    assert all(abs((one.predicted or 0) / (one.measured or 1) - 1) < 0.15 for one in (*steps, *memory))
    ranked = sorted(steps, key=lambda one: one.measured or 0)
    assert ranked == sorted(steps, key=lambda one: one.predicted or 0)
    skipped = {one.id: one.skipped or "" for one in outcomes if one.predicted is None}
    assert "placeholder" in skipped["sailor-mit-N3_D1"]
    assert "cannot be the peak" in skipped["sailor-mit-N2_D1"]


def test_a_pipeline_of_torchtitan_keeps_weights_and_gradients_whole() -> None:
    """Llama 3 405B on 512 H100, published with 73 to 85 GiB: half of it is gathered weights and unsummed gradients."""
    found = rows.read_rows([rows.MEASUREMENTS / "training_later.jsonl.gz"])
    records = [dict(row.record) for row in found if isinstance(row, rows.Row)]
    chosen = [record for record in records if record["id"].startswith("later-titan-405b")]
    assert len(chosen) == 6
    for record in chosen:
        _, memory = training.outcomes(record)
        assert memory.predicted == pytest.approx(memory.measured, rel=0.2)
        plan = training.read(record).plan
        assert (plan.zero, plan.reshard, plan.reduce_every) == (3, "step", "step")
    alone = next(record for record in records if record["id"] == "later-titan-8b-8-eager")
    assert training.read(alone).plan.reshard is None
