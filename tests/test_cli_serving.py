"""``zhenfa plan`` on jobs that serve: the page, the document, the plan that is written, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cli_runner import ROOT, Call, caller
from zhenfa.cli import schemas
from zhenfa.plan.documents import Plans
from zhenfa.plan.request import read_request
from zhenfa.plan.serving import estimate_serving, find_serving
from zhenfa.spec.serving import ServingPlan

JOB = "qwen3-235b-serve.yaml"
MIXED = """\
schema: zhenfa.machine/1
name: two-makers
pools:
- {name: wide, system: nvidia-hgx-h100-8}
- {name: deep, system: nvidia-hgx-h20-8}
network: {bandwidth: 50 GB/s, host_staged: false}
"""


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    for name in (JOB, "deepseek-v3-serve.yaml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    (tmp_path / "two.yaml").write_text(MIXED, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


def changed(name: str, old: str, new: str) -> str:
    """Write an example with a change, and return its path."""
    text = Path(name).read_text(encoding="utf-8")
    assert old in text
    Path("changed.yaml").write_text(text.replace(old, new), encoding="utf-8")
    return "changed.yaml"


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_the_page_fits_and_says_what_matters(zhenfa: Call, columns: int) -> None:
    shown = zhenfa("plan", JOB, "--detail", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    text = " ".join(shown.out.split())
    for words in (
        "2,048 tokens in, 512 out; 1 requests/s with a mean TTFT of 3 s and a mean TPOT of 100 ms at most",
        "prefill and decode: 1 instance of", "Four walls of plan 1", "Where TTFT goes", "What can be had", "Rests on",
    ):  # fmt: skip
        assert words in text


def test_the_document_keeps_to_its_schema_and_has_a_front(zhenfa: Call) -> None:
    shown = zhenfa("plan", JOB, "--json", "--top", "2")
    found: dict[str, Any] = json.loads(shown.out)
    assert not list(Draft202012Validator(schemas.schema(Plans, strict=True)).iter_errors(found))
    assert found["task"] == "serve"
    assert len(found["plans"]) <= 2
    users = [one["tokens_per_s_per_user"] for one in found["front"]]
    cards = [one["tokens_per_s_per_card"] for one in found["front"]]
    assert users == sorted(users, reverse=True)
    assert cards == sorted(cards)
    first = found["plans"][0]["estimate"]
    assert first["ttft_s"]["p10"] < first["ttft_s"]["value"] < first["ttft_s"]["p90"]
    assert first["tpot_s"]["value"] <= 0.1


def test_the_plan_that_is_written_is_estimated_as_it_was_found(zhenfa: Call) -> None:
    assert zhenfa("plan", JOB, "--out", "plan.yaml").code == 0
    request = read_request(JOB)
    plan = ServingPlan.from_file("plan.yaml")
    best = find_serving(request).best
    assert plan == best.plan
    assert estimate_serving(request, plan).figures == best.estimate.figures


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_why_lays_two_plans_side_by_side(zhenfa: Call, columns: int) -> None:
    job = changed(JOB, "request_rate: 1", "request_rate: 0.4")
    shown = zhenfa("plan", job, "--on", "mi300x-8", "--why", "2", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    text = " ".join(shown.out.split())
    for words in ("plan 2", "Card-seconds of", "One change at a time", "it is plan 2 of the list", "Side by side"):
        assert words in text
    assert zhenfa("plan", job, "--why", "90").code == 2


def test_why_takes_a_plan_of_ones_own(zhenfa: Call) -> None:
    assert zhenfa("plan", JOB, "--out", "mine.yaml").code == 0
    plan = ServingPlan.from_file("mine.yaml")
    whole = plan.decode.model_copy(update={
        "tensor_parallel": 8, "data_parallel": 1, "pipeline_parallel": 1, "expert_parallel": 1, "count": 1,
        "max_batch": 64,
    })  # fmt: skip
    Path("mine.yaml").write_text(plan.model_copy(update={"decode": whole}).to_yaml(), encoding="utf-8")
    found: dict[str, Any] = json.loads(zhenfa("plan", JOB, "--why", "mine.yaml", "--json").out)
    assert not list(Draft202012Validator(schemas.schema(Plans, strict=True)).iter_errors(found))
    why = found["why"]
    assert why["name"] == "mine.yaml"
    assert why["plan"]["decode"]["tensor_parallel"] == 8
    gap = sum(one["difference"] for one in why["parts_s"])
    first, mine = (sum(one[side] for one in why["parts_s"]) for side in ("first", "other"))
    assert gap == pytest.approx(mine - first)
    assert why["changes"]
    assert all(one["barred"] or one["behind_first"] is not None for one in why["changes"])
    big = whole.model_copy(update={"tensor_parallel": 16})
    Path("mine.yaml").write_text(plan.model_copy(update={"decode": big}).to_yaml(), encoding="utf-8")
    shown = zhenfa("plan", JOB, "--why", "mine.yaml")
    assert "Why mine.yaml cannot run" in shown.out
    assert "takes 16 cards of nvidia, which has 8" in shown.out
    Path("mine.yaml").write_text(plan.model_copy(update={"model": "llama3-8b"}).to_yaml(), encoding="utf-8")
    assert zhenfa("plan", JOB, "--why", "mine.yaml").code == 2


def test_every_operator_of_both_steps_is_in_the_detail(zhenfa: Call) -> None:
    shown = zhenfa("plan", JOB, "--json", "--detail", "--top", "1")
    found: dict[str, Any] = json.loads(shown.out)
    assert not list(Draft202012Validator(schemas.schema(Plans, strict=True)).iter_errors(found))
    plan = found["plans"][0]
    steps = plan["serving_detail"]["steps"]
    assert [one["role"] for one in steps] == ["decode", "prefill"]
    for one in steps:
        summed = sum(each["step_s"] for each in one["operators"]) + one["rest_s"] + one["engine_s"]
        assert summed == pytest.approx(one["seconds"])
        assert all(each["light_share"] is None or 0 < each["light_share"] < 1.05 for each in one["operators"])
    assert steps[0]["seconds"] == pytest.approx(sum(plan["parts_s"].values()))


def test_what_moves_the_answer_is_told(zhenfa: Call) -> None:
    job = changed(JOB, "request_rate: 1", "request_rate: 0.4")
    shown = zhenfa("plan", job, "--sensitivity", "--json", "--top", "1")
    found: dict[str, Any] = json.loads(shown.out)["sensitivity"]
    names = {one["name"]: one for one in found["inputs"]}
    assert names["nvidia.memory.bandwidth"]["elasticity"] < 0
    assert names["input_length"]["elasticity"] > 0
    spans = [one["span"] for one in found["inputs"]]
    assert spans == sorted(spans, reverse=True)
    page = zhenfa("plan", job, "--sensitivity", columns=80)
    assert page.widest <= 80
    assert "What moves the answer most" in page.out


def test_a_load_that_is_too_large_is_refused_with_a_way_out_that_works(zhenfa: Call) -> None:
    shown = zhenfa("plan", changed(JOB, "request_rate: 1", "request_rate: 300"))
    assert (shown.code, shown.out) == (3, "")
    assert "no plan takes 300 requests/s within the targets" in shown.err
    rate = shown.err.partition("hint: request_rate: ")[2].split(";")[0]
    assert zhenfa("plan", changed(JOB, "request_rate: 1", f"request_rate: {rate}")).code == 0


def test_targets_that_nothing_meets_name_what_binds_and_targets_that_do(zhenfa: Call) -> None:
    shown = zhenfa("plan", changed(JOB, "tpot_target: 100 ms", "tpot_target: 1 ms"))
    assert shown.code == 3
    assert "tpot_target binds" in shown.err
    target = shown.err.partition("hint: tpot_target: ")[2].partition(" would do")[0]
    job = changed(JOB, "request_rate: 1\n  ttft_target: 3 s\n  tpot_target: 100 ms", f"tpot_target: {target}")
    assert zhenfa("plan", job).code == 0


def test_weights_that_do_not_fit_name_cards_that_would_hold_them(zhenfa: Call) -> None:
    shown = zhenfa("plan", "deepseek-v3-serve.yaml", "--on", "hgx-h100")
    assert shown.code == 3
    assert "671 GB of weights in fp8 are 83.9 GB a card on 8 of 8 cards" in shown.err
    assert "16 cards like these" in shown.err
    missing = zhenfa("plan", "deepseek-v3-serve.yaml", "--on", "tianchi256")
    assert missing.code == 2
    assert "--assume kunlun.tiers.supernode.bandwidth=" in missing.err


def test_a_narrower_format_is_said_and_drafts_are_used_where_they_pay(zhenfa: Call) -> None:
    request = read_request(changed(JOB, "request_rate: 1", "weights: [fp8]\n  cache: [fp8]"))
    best = find_serving(request).best
    assert best.quality == (
        "weights in fp8, stored in bf16 by the model's own checkpoint", "keys and values in fp8, not 16 bits",
    )  # fmt: skip
    plain = read_request("deepseek-v3-serve.yaml", on="hgx-b200")
    drafting = read_request(changed("deepseek-v3-serve.yaml", "task: serve", "task: serve\n  speculation: true"),
                            on="hgx-b200")  # fmt: skip
    without, drafted = find_serving(plain).best, find_serving(drafting).best
    assert without.plan.speculation is None
    assert drafted.plan.speculation is not None
    rates = [one.estimate.figures.requests_per_s.value or 0.0 for one in (without, drafted)]
    assert rates[1] > rates[0]


def test_two_makers_serve_behind_one_door(zhenfa: Call) -> None:
    job = changed(JOB, "  request_rate: 1\n", "")
    request = read_request(job, on="two.yaml")
    answer = find_serving(request)
    best = answer.best
    assert sum(part.share for part in best.plan.parts) == pytest.approx(1)
    assert set(best.plan.cards_by_pool()) == {"wide", "deep"}
    alone = [find_serving(read_request(job, on=name)).best for name in ("hgx-h100", "hgx-h20")]
    rates = [one.estimate.figures.requests_per_s.value or 0.0 for one in (best, *alone)]
    assert rates[0] >= (rates[1] + rates[2]) * (1 - 1e-4)


def test_a_job_that_serves_is_not_run(zhenfa: Call) -> None:
    shown = zhenfa("run", JOB)
    assert shown.code == 1
    assert "executes training only" in shown.err
    flood = zhenfa("plan", changed(JOB, "request_rate: 1", "requests: 100"))
    assert flood.code == 1
    assert "write concurrency for a closed loop" in flood.err


def test_objective_and_limits_are_kept_to_or_refused(zhenfa: Call) -> None:
    job = changed("deepseek-v3-serve.yaml", "workload:", "objective: energy\nworkload:")
    ranked = find_serving(read_request(job)).plans
    drawn = [one.estimate.figures.energy_j_per_token.value or 0.0 for one in ranked]
    assert drawn == sorted(drawn)
    assert "energy of a token" in ranked[1].lost_by
    plain = find_serving(read_request("deepseek-v3-serve.yaml")).best
    assert drawn[0] <= (plain.estimate.figures.energy_j_per_token.value or 0.0)
    costly = zhenfa("plan", changed("deepseek-v3-serve.yaml", "workload:", "objective: cost\nworkload:"))
    assert costly.code == 2
    assert "ascend.price" in costly.err
    fewer = changed(JOB, "workload:", "limits: {max_cards: 4}\nworkload:")
    assert find_serving(read_request(fewer, on="mi300x-8")).best.plan.cards <= 4
    one_maker = changed(JOB, "  request_rate: 1\n", "")
    Path(one_maker).write_text(Path(one_maker).read_text() + "limits: {refuse: [deep]}\n")
    assert set(find_serving(read_request(one_maker, on="two.yaml")).best.plan.cards_by_pool()) == {"wide"}
    late = zhenfa("plan", changed(JOB, "workload:", "limits: {deadline: 3 h}\nworkload:"))
    assert late.code == 1
    assert "limits.deadline is not kept to" in late.err
