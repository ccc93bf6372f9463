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

from zhenfa.validation import serving, serving_rows, serving_words
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


BY_HAND: dict[str, Any] = {
    "id": "by hand", "kind": "online serving", "model": "Llama-3.1-8B-Instruct", "framework": "vLLM 0.11",
    "hardware": "2x H100 SXM", "precision": "fp8", "parallelism": "tp2", "isl": "1k", "osl": 128, "concurrency": 16,
    "metrics": {"Mean TTFT (ms)": 100, "tpot_s": 0.01, "tokens/s/GPU": "1,000 tok/s", "mean_e2el_ms": 1500},
}  # fmt: skip


def test_a_row_written_by_hand_is_read() -> None:
    found = {one.metric: one for one in serving.outcomes(BY_HAND)}
    assert serving.accepts(BY_HAND)
    assert {name: one.measured for name, one in found.items()} == {
        "tpot_ms": 10.0, "ttft_mean_ms": 100, "output_tok_s_per_acc": 1000.0, "e2e_mean_s": 1.5,
    }  # fmt: skip
    assert not [one.skipped for one in found.values() if one.skipped]
    assert "serve / vllm" in found["tpot_ms"].groups


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware": {"gpu": "H100 SXM", "num_gpus": 2}}, {"hardware": "H100 SXM x2"}, {"parallelism": {"tp": 2}},
        {"parallelism": {"tensor_parallel_size": "2"}}, {"parallelism": None}, {"concurrency": None, "batch": "bs=16"},
        {"concurrency": None, "batch": "16 users"}, {"concurrency": None, "batch": {"concurrency": 16}},
        {"isl": 1024, "osl": "128 tokens"}, {"precision": {"weights": "FP8"}}, {"kind": "serve"},
    ],
)  # fmt: skip
def test_other_spellings_of_the_same_row_are_predicted_alike(changes: dict[str, Any]) -> None:
    other = {key: value for key, value in {**BY_HAND, **changes}.items() if value is not None}
    here, there = serving.outcomes(BY_HAND), serving.outcomes(other)
    assert [one.predicted for one in there] == pytest.approx([one.predicted for one in here])


@pytest.mark.parametrize("name", ["LMDeploy 0.9", "MindIE 2.0", "TGI 3.1", "xLLM", None])
def test_an_unknown_engine_is_predicted_by_the_prior_and_says_so(name: str | None) -> None:
    found = serving.outcomes({**BY_HAND, "framework": name})
    assert all(one.predicted for one in found)
    assert found[0].note is not None
    assert "prior over engines" in found[0].note


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metrics": {"goodput_req_s": 3}}, "no metric"), ({"concurrency": None}, "how many requests run at once"),
        ({"isl": None}, "no length of its input"), ({"model": "Foo-7B"}, "no model 'Foo-7B'"),
        ({"hardware": "2x Foo 9000"}, "no accelerator"),
    ],
)  # fmt: skip
def test_what_a_row_by_hand_lacks_is_named(changes: dict[str, Any], reason: str) -> None:
    asked = {key: value for key, value in {**BY_HAND, **changes}.items() if value is not None}
    found = serving.outcomes(asked)
    assert reason in str(found[0].skipped)


def test_what_a_command_sets_is_heeded() -> None:
    def case(notes: str, **changes: Any) -> serving.Case:
        return serving.case(row(notes=notes, **changes))

    assert case("--gpu-memory-utilization 0.8").service.engine.memory == 0.8
    assert case("--mem-fraction-static=0.7 --max-running-requests=64").service.decode.instance.max_batch == 64
    assert case("--scheduler-recv-interval 10").service.engine.polls == 10
    slow = case("cmd: vllm serve Qwen/Qwen3-32B", engine="vLLM v0.9.1")
    assert slow.service.engine.front > 2 * case("", engine="vLLM v0.9.1").service.engine.front
    assert case("--num-prompts 300", batch=8).workload.total == 300
    assert case("lengths as InferenceX", batch=8).workload.total == 80


@pytest.mark.parametrize(
    ("card", "chunk", "batch"),
    [("A100 SXM 80GB", 2048, 256), ("H100 SXM", 8192, 1024), ("L40S", 2048, 256), ("MI300X", 8192, 1024)],
)
def test_vllm_has_smaller_defaults_on_smaller_cards(card: str, chunk: int, batch: int) -> None:
    found = serving.case(serving_words.row_of({**BY_HAND, "hardware": f"2x {card}"})).service.engine
    assert (found.chunk, found.max_batch) == (chunk, batch) or found.id == "atom"


def test_decoding_as_published_of_a_cloudmatrix() -> None:
    """1,943 tokens a second and card under 50 ms: 160 cards of two dies, 96 requests a card, one drafted token."""
    row = {
        "id": "published", "kind": "decode", "model": "DeepSeek-R1", "engine": "CloudMatrix-Infer",
        "precision": {"weights": "int8", "activations": "int8", "kv": "bf16"},
        "hardware": {"accelerator": "Ascend 910C (2 dies; per-NPU = both dies)", "count": 160, "interconnect": "UB"},
        "parallelism": {"mode": "decode", "decode": {"DP": 320, "EP": 320, "TP": 1, "dies": 320}},
        "batch": "48/die", "kv_len": 4096, "spec_decode": {"method": "MTP", "k": 1, "accept": 0.7},
        "metrics": {"tpot_ms": 49.4, "decode_tok_s_per_acc": 1943}, "acc_id": "ascend_910c", "vendor": "Huawei",
    }  # fmt: skip
    found = {one.metric: one.predicted for one in serving.outcomes(row)}
    assert found["decode_tok_s_per_acc"] == pytest.approx(1943, rel=0.15)
    assert found["tpot_ms"] == pytest.approx(49.4, rel=0.15)
