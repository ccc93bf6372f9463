"""``--set KEY=VALUE``: another value for a key of the job, on every command that plans one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_runner import Call, caller, fill
from zhenfa.errors import InputError
from zhenfa.plan.asked import with_limits, with_settings
from zhenfa.spec.job import Job, Workload
from zhenfa.spec.serving import ServingWorkload

ROOT = Path(__file__).parents[1]
TRAIN = Job.from_file(ROOT / "examples/llama3-70b-train.yaml")
SERVE = Job.from_file(ROOT / "examples/deepseek-v3-serve.yaml")


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


def test_a_key_takes_another_value_and_all_others_stay() -> None:
    changed = with_settings(TRAIN, ["workload.global_batch=512", "workload.precision=[fp8, bf16]", "model=llama3-8b"])
    workload = changed.workload
    assert isinstance(workload, Workload)
    assert (workload.global_batch, workload.precision, changed.model) == (512, ("fp8", "bf16"), "llama3-8b")
    assert isinstance(TRAIN.workload, Workload)
    back = with_settings(
        changed, [f"workload.global_batch={TRAIN.workload.global_batch}", "workload.precision=bf16", "model=llama3-70b"]
    )
    assert back == TRAIN


def test_names_of_cards_may_hold_dots_and_a_null_takes_a_value_away() -> None:
    changed = with_settings(TRAIN, ["limits.supply.gpu.v1.5=64", 'limits.power="20 MW"'])
    assert changed.limits.supply == {"gpu.v1.5": 64}
    assert changed.limits.power.value == 20e6
    served = with_settings(SERVE, ["workload.ttft_target=null", 'workload.tpot_target="20 ms"']).workload
    assert isinstance(served, ServingWorkload)
    assert (served.ttft_target, served.tpot_target) == (None, 0.02)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("workload", "--set 'workload' is not NAME=VALUE.",
         'write --set workload.global_batch=512 or limits.power="20 MW".'),
        ("workload.batch=4", "--set: 'workload.batch' is not a key here. Did you mean 'global_batch'?",
         "known here: global_batch, optimizer, precision, sequence_length, task, tokens."),
        ("workload.global_batch=many", "--set: workload.global_batch is 'many': a whole number is wanted.", None),
        ("model.name=x", "--set model.name: model is no mapping.", "write --set model=VALUE."),
        ("assume.card.price=3 CNY/h",
         "--set assume.card.price: what makers have not published has an option of its own.",
         "write --assume card.price=3 CNY/h."),
        ("name=a\nmodel: b", "--set name: more than one value is given.", "write --set name=VALUE."),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_said(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(InputError) as refused:
        with_settings(TRAIN, [text])
    assert (refused.value.message, refused.value.hint) == (message, hint)


def test_a_target_among_the_limits_is_told_where_it_stands() -> None:
    with pytest.raises(InputError) as refused:
        with_limits(SERVE, ["tpot=50 ms"])
    assert refused.value.message == "--limit tpot: what requests must keep to is a target of the workload."
    assert refused.value.hint == 'write --set workload.tpot_target="50 ms".'


def test_a_supply_below_nothing_is_refused_by_its_number(zhenfa: Call) -> None:
    shown = zhenfa("plan", "examples/llama3-70b-train.yaml", "--limit", "supply.nvidia=-5")
    assert (shown.code, shown.out) == (2, "")
    assert shown.err == "error: --limit: limits.supply.nvidia is -5: it must be at least 0.\n"


def test_plan_compare_swap_and_what_to_do_next_take_it(zhenfa: Call) -> None:
    given = ("--set", "workload.global_batch=256")
    shown = zhenfa("plan", "examples/llama3-70b-train.yaml", *given)
    assert shown.code == 0
    assert "256 sequences x 8,192 tokens a step" in shown.out
    assert "  zhenfa plan examples/llama3-70b-train.yaml --set workload.global_batch=256 --detail" in shown.err
    contest = zhenfa("compare", "examples/llama3-70b-train.yaml", "--on", "dgx-superpod-h100,gb200-nvl72", *given)
    assert "256 sequences x 8,192 tokens a step" in contest.out
    assert (
        "zhenfa plan examples/llama3-70b-train.yaml --on dgx-superpod-h100 --set workload.global_batch=256"
        in contest.err
    )
    swapped = zhenfa(
        "swap", "examples/llama3-70b-train.yaml", "--from", "dgx-superpod-h100", "--cards", "64", "--to",
        "ascend-910c", *given, "--json",
    )  # fmt: skip
    assert swapped.code == 0, swapped.err
    assert json.loads(swapped.out)["schema"] == "zhenfa.swap/1"
    assert zhenfa("run", "examples/mixed-pretrain.yaml", "--set", "name=").code == 2
