"""``zhenfa run --plan``, and what is planned where nothing fits while every card keeps all weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cli_runner import QUICK, Call, caller
from live_pools import formation, pipeline, pool, reference_losses
from zhenfa import catalog
from zhenfa.errors import InfeasibleError
from zhenfa.estimate.traits import own_runtime
from zhenfa.live.model import sizes_of
from zhenfa.live.placement import place
from zhenfa.live.planned import best_plans
from zhenfa.plan import find_plans
from zhenfa.plan.request import Request
from zhenfa.spec.job import Execution, Job, Limits, Workload
from zhenfa.spec.machine import Tier
from zhenfa.spec.plan import Plan

OWN = Plan(
    job="quick", model="tiny-byte-gpt", machine="emulated-quartet", sequence_length=32, precision="fp32", zero=3,
    pipelines=(pipeline([8], ["ascend"], 5), pipeline([5, 3], ["hygon", "cambricon"], 3)),
)  # fmt: skip


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    (tmp_path / "quick.yaml").write_text(QUICK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


@pytest.mark.live
def test_a_plan_of_one_s_own_is_run_as_it_stands(zhenfa: Call, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN.to_yaml(), encoding="utf-8")
    shown = zhenfa("run", "quick.yaml", "--plan", "own.yaml", "--steps", "2", "--json")
    assert shown.code == 0, shown.err
    run = json.loads(shown.out)
    assert Plan.from_data(run["plan"]) == OWN
    assert run["estimate"]["figures"]["step_time_s"]["value"] > 0
    first = shown.err.splitlines()[0]
    assert first.startswith("plan: ")
    assert first.endswith(" ZeRO-3 on emulated-quartet [EMULATED cards], as own.yaml has it")
    expected = reference_losses(
        sizes_of(catalog.model("tiny-byte-gpt")), Execution(), steps=2, global_batch=8, length=32
    )
    assert run["losses"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "tiny-byte-moe"}, 2, "own.yaml: model is 'tiny-byte-moe', but the job's is 'tiny-byte-gpt'"),
        ({"sequence_length": 64}, 2, "own.yaml: sequence_length is 64, but the job's is 32"),
        ({"pipelines": (pipeline([5, 3], ["ascend", "ascend"], 8),)}, 3, "takes 2 cards of ascend, which has 1"),
        ({"offload": "optimizer"}, 1, "the plan asks for offload of optimizer"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(
    zhenfa: Call, tmp_path: Path, change: dict[str, object], code: int, words: str
) -> None:
    (tmp_path / "own.yaml").write_text(OWN.model_copy(update=change).to_yaml(), encoding="utf-8")
    shown = zhenfa("run", "quick.yaml", "--plan", "own.yaml")
    assert (shown.code, shown.out) == (code, "")
    assert words in " ".join(shown.err.split())
    assert "hint:" in shown.err
    assert not (tmp_path / "runs").exists()


def asked(capacity: str) -> Request:
    """Data parallelism alone on four cards of one maker."""
    board = Tier(name="board", size=4, bandwidth="1 GB/s", latency="1 ms")
    machine = formation(pool("a", 4, 2e9, [board], capacity=capacity))
    workload = Workload(sequence_length=16, global_batch=4, precision="fp32")
    limits = Limits(max_tensor_parallel=1, max_pipeline_parallel=1)
    job = Job(name="quick", model="tiny-byte-gpt", machine="test-machine", workload=workload, limits=limits)
    model = catalog.model("tiny-byte-gpt")
    return Request(job, model, model.graph(), machine, traits=own_runtime(Execution(), machine))


def test_weights_are_shared_out_where_nothing_fits_otherwise() -> None:
    """1.64 M weights in 32 bits: 26 MB with gradients and moments on one card, 16 MB under ZeRO-1 over four."""
    assert best_plans(asked("100 MB")).best.plan.zero < 2
    tight = asked("15 MB")
    with pytest.raises(InfeasibleError):
        find_plans(tight)
    plan = best_plans(tight).best.plan
    assert (plan.zero >= 2, plan.replicas) == (True, 4)
    place(plan, tight.formation, sizes_of(tight.model))
    with pytest.raises(InfeasibleError) as nothing:
        best_plans(asked("2 MB"))
    assert nothing.value.exit_code == 3
    with pytest.raises(InfeasibleError):
        best_plans(replace(tight, traits=own_runtime(Execution(), tight.formation, whole=True)))
