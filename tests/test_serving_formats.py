"""Prefill and decode instances each with weights in the format that is best there."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

import zhenfa
from emit_plans import file_of
from serving_brute import Brute
from test_serving_search import small
from zhenfa.errors import DocumentError, InputError
from zhenfa.plan.emit import emit, read_subject
from zhenfa.plan.request import Request
from zhenfa.plan.serving import ServingAnswer, find_serving
from zhenfa.spec.serving import ServingPlan

MACHINE = {"name": "m", "title": "t", "pools": [{"name": "nvidia", "system": "nvidia-hgx-h100-8", "count": 16}]}


def job(**workload: object) -> dict[str, object]:
    return {
        "name": "j", "model": "llama3-70b",
        "workload": {"task": "serve", "input_length": 2000, "output_length": 400, "ttft_target": "2 s",
                     "tpot_target": "12 ms", "weights": ["bf16", "fp8", "int4"], **workload},
    }  # fmt: skip


@pytest.mark.parametrize("seed", [7, 9])
def test_the_best_of_all_pairs_of_formats_is_found(seed: int) -> None:
    asked = small(seed)
    forms = ("bf16", "fp8", "int4")
    workload = asked.serving.model_copy(update={"weights": forms, "request_rate": None, "concurrency": None})
    request = with_workload(asked, workload)
    best = 0.0
    for prefill, decode in itertools.product(forms, forms):
        one = with_workload(asked, workload.model_copy(update={"weights": (decode,)}))
        other = with_workload(asked, workload.model_copy(update={"weights": (prefill,)}))
        brute = Brute(one)
        brute.types |= {key: found for key, found in Brute(other).types.items() if key[1] == "prefill"}
        brute.prefill_weights = prefill
        best = max(best, brute.most_of_all())
    assert best > 0
    answer = find_serving(request)
    found = sum(part.served.requests_per_second for part in answer.best.estimate.parts)
    assert found == pytest.approx(best, rel=2e-3)


def with_workload(request: Request, workload: object) -> Request:
    return replace(request, job=request.job.model_copy(update={"workload": workload}))


def test_formats_that_differ_are_said_and_change_the_answer() -> None:
    found = zhenfa.plan(job(), MACHINE)
    assert isinstance(found, ServingAnswer)
    one = found.best
    assert one.plan.prefill is not None
    assert one.plan.prefill_weights is not None
    assert set(one.plan.formats) == {one.plan.weights, one.plan.prefill_weights}
    assert f"{one.plan.prefill_weights} -> " in one.layout
    assert any("keys and values of prompts come from other weights" in words for words in one.quality)
    for form in ("bf16", "fp8", "int4"):
        alone = zhenfa.plan(job(weights=[form]), MACHINE)
        assert isinstance(alone, ServingAnswer)
        assert alone.best.estimate.figures.requests_per_s.value < one.estimate.figures.requests_per_s.value
    again = ServingPlan.from_data(one.plan.to_data())
    assert again == one.plan
    why = found.why(again)
    assert why.searched.contained
    assert any(change.what == "prefill: weights" for change in why.changes)


def test_a_plan_without_prefill_has_no_format_for_it() -> None:
    found = zhenfa.plan(job(), MACHINE)
    data = {**found.best.plan.to_data(), "prefill": None}
    with pytest.raises(DocumentError, match="prefill_weights needs prefill instances"):
        ServingPlan.from_data(data)


def test_files_for_engines_hold_the_format_of_each_role(tmp_path: Path) -> None:
    plan = zhenfa.plan(job(weights=["bf16", "fp8"]), MACHINE).best.plan
    one = plan.model_copy(update={
        "prefill_weights": "fp8", "weights": "bf16", "machine": "hgx-h100",
        "prefill": plan.prefill.model_copy(update={"count": 1, "pool": "nvidia", "tensor_parallel": 4}),
        "decode": plan.decode.model_copy(update={"count": 1, "pool": "nvidia", "tensor_parallel": 4}),
    })  # fmt: skip
    path = tmp_path / "plan.yaml"
    path.write_text(one.to_yaml(), encoding="utf-8")
    for target in ("vllm", "sglang"):
        found = emit(read_subject(str(path), settings=["model.decode=/data/sixteen"]), target, nearest=True)
        prefill, decode = (file_of(found, f"{role}.sh") for role in ("prefill", "decode"))
        assert "--quantization" in prefill
        assert "--quantization" not in decode
        assert "/data/sixteen" in decode
        assert "/data/sixteen" not in prefill
    with pytest.raises(InputError, match="no pool is called 'prefil'"):
        emit(read_subject(str(path), settings=["model.prefil=/data"]), "vllm")
