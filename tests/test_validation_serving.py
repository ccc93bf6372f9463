"""Serving rows: every way of writing a row is read or refused with a reason, and the packaged rows are predicted."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa.validation import serving, serving_rows
from zhenfa.validation.outcome import Outcome
from zhenfa.validation.rows import MEASUREMENTS


@cache
def packaged() -> tuple[dict[str, Any], ...]:
    text = (MEASUREMENTS / "serving.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


@cache
def gates() -> tuple[Outcome, ...]:
    return tuple(serving.outcomes(row)[0] for row in packaged() if row["use"] == "gate")


def row(**changes: Any) -> dict[str, Any]:
    found = copy.deepcopy(next(one for one in packaged() if one["id"] == "va_qwen32b_a2_humaneval_c1_base"))
    return {**found, **changes}


def test_rows_of_unclear_licence_are_not_packaged() -> None:
    assert len(packaged()) > 250
    assert not [one["id"] for one in packaged() if "public run" in one["source"]]


def test_gate_rows_are_predicted_within_the_bounds() -> None:
    plain = [one for one in gates() if "serve / gate / no speculation" in one.groups]
    predicted = [one for one in plain if one.log_ratio is not None]
    assert len(predicted) >= 0.85 * len(plain)
    errors = np.abs([one.log_ratio for one in predicted if one.log_ratio is not None])
    assert np.median(errors) <= 0.12
    assert np.quantile(errors, 0.9) <= 0.36


def test_every_skip_has_its_reason_and_every_outcome_its_group() -> None:
    for one in gates():
        assert (one.skipped is None) == (one.predicted is not None)
        assert one.gate
        assert one.groups[-1].startswith("serve / ")


def test_the_primary_metric_comes_first_and_others_stand_apart() -> None:
    first, *others = serving.outcomes(row())
    assert first.metric == "tpot_ms"
    assert first.groups == ("serve / Ascend and AMD", "serve / gate / no speculation", "serve / vllm-ascend")
    assert {one.groups for one in others} == {(serving.OTHER,)}
    spec = serving.outcomes(row(spec_decode={"method": "suffix", "k": 3, "accept_rate": 0.3}))[0]
    assert "serve / speculation" in spec.groups
    assert spec.predicted is not None
    assert first.predicted is not None
    assert spec.predicted < first.predicted


def test_the_command_says_which_model_ran() -> None:
    named = row(model="Qwen/Qwen3-30B-A3B", notes="cmd: vllm serve Qwen/Qwen3-8B | label: x")
    assert serving_rows.model_name(named) == "Qwen/Qwen3-8B"
    assert serving_rows.model_name(row(model="- Qwen/Qwen3-8B ")) == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("part", "cards", "tensor", "data", "expert"),
    [
        ({"TP": 8}, 8, 8, 1, 1), ({"TP": 8, "EP": 8}, 8, 8, 1, 8), ({"DP": 8, "EP": 8}, 8, 1, 8, 8),
        ({"TP": 8, "EP": 8, "dp_attention": True, "GPUs": 16, "instances": 2}, 16, 1, 8, 8),
        ({"TP": 1, "EP": 8, "GPUs": 8, "dp_attention": False}, 8, 1, 8, 8), ({"EP": 72, "DP": 72}, 72, 1, 72, 72),
        ({"TP": 8, "DP": 8}, 8, 1, 8, 1), ({"TP": 4, "EP": "on"}, 4, 4, 1, 4), ({"layout": "TP2"}, 2, 2, 1, 1),
        ({"TP": 1, "PP": 4}, 4, 1, 1, 1),
    ],
)  # fmt: skip
def test_layouts_are_read_as_engines_write_them(
    part: dict[str, Any], cards: int, tensor: int, data: int, expert: int
) -> None:
    one = serving_rows.instance(part, 8)
    assert (one.count * one.cards, one.tensor_parallel, one.data_parallel, one.expert_parallel) == (
        cards, tensor, data, expert,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "field", "value"),
    [
        (16, "concurrency", 16.0), ("max_concurrency 4", "concurrency", 4.0), ("256/GPU", "running", 256.0 * 4),
        ("1000 requests, rate inf (flood)", "requests", 1000.0), ("300 req @10 req/s", "rate", 10.0),
        ("2 req/rank", "running", 8.0), ("max (scheduler-filled)", "filled", True),
        ("client concurrency 700, 512 prompts, rate 11.2", "concurrency", 512.0),
    ],
)  # fmt: skip
def test_loads_are_read_as_people_write_them(batch: Any, field: str, value: Any) -> None:
    asked = row(batch=batch)
    assert getattr(serving_rows.load(asked, serving_rows.deployment(asked)), field) == value


def test_a_row_that_contradicts_itself_is_refused() -> None:
    asked = row(batch=4000, metrics={"ttft_mean_ms": 100.0, "tpot_mean_ms": 5.0}, input_len=8000, output_len=100)
    found = serving.outcomes(asked)[0]
    assert found.skipped is not None
    assert "times the peak of its 4 cards" in found.skipped or "sustain on its 4 cards" in found.skipped


KEYS = ("model", "precision", "hardware", "parallelism", "input_len", "output_len", "batch", "metrics", "notes",
        "spec_decode", "kv_len", "acc_id", "engine", "kind")  # fmt: skip
JUNK = st.one_of(
    st.none(), st.just(""), st.just("?"), st.just(-1), st.just(0), st.just(float("nan")), st.just(1e30), st.just(True),
    st.just([]), st.just({}), st.just({"TP": "x"}), st.just({"decode": {"TP": -3}, "prefill": 7}), st.just("1e9 req"),
    st.just({"tpot_ms": "fast"}), st.just({"weights": 3}), st.text(max_size=5),
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), JUNK, min_size=1, max_size=3))
def test_hostile_rows_are_skipped_with_a_reason(changes: dict[str, Any]) -> None:
    asked = row(**changes)
    if serving.accepts(asked):
        for one in serving.outcomes(asked):
            assert isinstance(one, Outcome)
            assert one.skipped is not None or one.predicted is not None
