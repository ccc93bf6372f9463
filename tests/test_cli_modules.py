"""A model of one's own on the command line: whose code runs, what is planned for it, and one real run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_runner import Call, caller
from foreign_modules import HAND_WRITTEN, configured, written
from zhenfa.errors import CapabilityError
from zhenfa.estimate.traits import own_runtime
from zhenfa.live.calibrate.probe import plans_of
from zhenfa.live.foreign.subject import Subject, subject_of
from zhenfa.plan import find_plans, make_request
from zhenfa.spec.job import Job

ROOT = Path(__file__).parent.parent
JOB = """\
schema: zhenfa.job/1
name: mine
model: {model}
machine: emulated-quartet
workload: {{task: train, sequence_length: 16, global_batch: 8, precision: fp32}}
limits: {{micro_batch_size: 2}}
execution: {{steps: 2}}
"""


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    (tmp_path / "job.yaml").write_text(JOB.format(model="own_model.py:build"), encoding="utf-8")
    written(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + HAND_WRITTEN)
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "code", "words", "hint"),
    [
        (["run", "job.yaml"], 2, "has 'own_model.py' build its model, which is Python code", "--code own_model.py"),
        (["run", "job.yaml", "--code", "other.py"], 2, "--code other.py is not the file that job 'mine' names", ""),
        (["run", "job.yaml", "--set", "model=own_model.py:build"], 2, "has 'own_model.py' build its model", "--code"),
        (["run", "job.yaml", "--set", "model=../own_model.py:build", "--code", "own_model.py"], 2, "leaves", "refused"),
        (["run", "job.yaml", "--set", "model=none.py:build", "--code", "none.py"], 2, "is not there", "looked for in"),
        (
            ["run", "job.yaml", "--set", "model=tiny-byte-gpt", "--code", "own_model.py"],
            2,
            "no function",
            "leave --code",
        ),
        (["plan", "job.yaml"], 1, "no code is run to plan", "zhenfa run JOB --code own_model.py"),
        (["doctor", "job.yaml"], 2, "has 'own_model.py' build its model", "--code"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_code_runs_that_the_command_line_does_not_name(
    zhenfa: Call, tmp_path: Path, arguments: list[str], code: int, words: str, hint: str
) -> None:
    shown = zhenfa(*arguments, columns=400)
    assert shown.code == code
    assert words in shown.err
    assert hint in shown.err.partition("hint:")[2]
    assert "Traceback" not in shown.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.live
def test_a_module_of_ones_own_is_counted_planned_and_trained(zhenfa: Call, tmp_path: Path) -> None:
    done = zhenfa("run", "job.yaml", "--code", "own_model.py", "--out", "out", "--json")
    assert done.code == 0, done.err
    assert (tmp_path / "ran").exists()
    run = json.loads(done.out)
    assert len(run["losses"]) == 2
    notes = " ".join(run["notes"])
    assert "the model is Model of own_model.py:build" in notes
    assert "dropout is off" in notes
    assert "a document counted from the module" in notes
    assert run["files"]["model"] == "out/model.yaml"
    planned = zhenfa("plan", "job.yaml", "--set", "model=out/model.yaml", "--json")
    assert planned.code == 0, planned.err
    shown = zhenfa("show", "out/model.yaml", columns=400)
    assert "counted from own_model.py:build" in shown.out
    again = zhenfa("run", "job.yaml", "--code", "own_model.py", "--resume", "out", "--steps", "3", "--quiet", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["steps"] == 3


def asked(folder: Path, model: str, **execution: Any) -> Job:
    job = Job.from_data({
        "name": "mine", "model": model, "machine": "emulated-quartet", "execution": execution,
        "workload": {"task": "train", "sequence_length": 16, "global_batch": 8, "precision": "fp32"},
    })  # fmt: skip
    return job


def test_plans_for_a_module_leave_its_matrices_and_backward_passes_whole(tmp_path: Path) -> None:
    configured(tmp_path / "gpt2", "gpt2")
    job = asked(tmp_path, "gpt2/config.json")
    subject = subject_of(job, tmp_path)
    assert subject.whole
    request = make_request(job, folder=tmp_path, model=subject.model)
    every = find_plans(replace(request, traits=own_runtime(job.execution, request.formation)), top=60)
    ours = find_plans(replace(request, traits=own_runtime(job.execution, request.formation, whole=True)), top=60)
    assert any(degree(one.plan) > 1 for one in every.plans)
    assert {one.plan.schedule for one in every.plans} - {"gpipe", "1f1b", "interleaved"}
    assert ours.plans
    assert {degree(one.plan) for one in ours.plans} == {1}
    assert {one.plan.schedule for one in ours.plans} <= {"gpipe", "1f1b", "interleaved"}


def test_a_machine_is_measured_with_the_module_itself(tmp_path: Path) -> None:
    configured(tmp_path / "gpt2", "gpt2")
    subject = subject_of(asked(tmp_path, "./gpt2"), tmp_path)
    request = make_request(asked(tmp_path, "./gpt2"), folder=tmp_path, model=subject.model)
    assert set(dict(plans_of(request, subject.sizes))) == {"replicas on all cards", "a pipeline through all cards"}
    assert not dict(plans_of(request)), "the runtime's own decoder cannot stand in for it"


def degree(plan: Any) -> int:
    return max(stage.tensor_parallel * stage.expert_parallel for entry in plan.pipelines for stage in entry.stages)


def test_a_schedule_with_split_backward_passes_is_refused_before_planning(zhenfa: Call, tmp_path: Path) -> None:
    configured(tmp_path / "gpt2", "gpt2")
    shown = zhenfa("run", "job.yaml", "--set", "model=gpt2/config.json", "--set", "limits.schedules=[zero-bubble]")
    assert shown.code == 2
    assert "zero-bubble, which `zhenfa run` does not run" in shown.err
    assert "write gpipe or 1f1b or interleaved" in shown.err


def test_who_builds_a_configuration(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    configured(tmp_path / "llama", "llama", **small, num_key_value_heads=2)
    configured(tmp_path / "gpt2", "gpt2")

    def by(model: str, **execution: Any) -> Subject:
        return subject_of(asked(tmp_path, model, **execution), tmp_path)

    assert not by("llama/config.json").whole
    assert by("./llama", module="transformers").whole
    assert by("./llama", module="transformers").sizes.parameters == by("./llama").sizes.parameters
    assert by("./gpt2").whole
    assert not by("./gpt2").counted, "its document is the import of config.json"
    with pytest.raises(CapabilityError, match="gpt2 has layer norms, which this version cannot run") as refused:
        by("./gpt2", module="zhenfa")
    assert "execution.module: auto has transformers build" in (refused.value.hint or "")


def test_a_type_that_the_import_does_not_know_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(tmp_path / "gpt2", "gpt2")
    published = subject_of(asked(tmp_path, "./gpt2"), tmp_path)
    monkeypatch.setattr("zhenfa.live.foreign.subject.known_types", lambda: ["llama"])
    counted = subject_of(asked(tmp_path, "./gpt2"), tmp_path)
    assert counted.counted
    assert counted.sizes == published.sizes
    assert counted.model.graph().parameters == published.model.graph().parameters
    assert any("not a published one" in note for note in counted.notes)


def test_examples_are_what_the_guide_says(tmp_path: Path) -> None:
    job = Job.from_file(ROOT / "examples/own-module.yaml")
    own = subject_of(job, ROOT / "examples", str(ROOT / "examples/byte_gpt.py"))
    assert (own.sizes.layers, own.sizes.hidden, own.counted) == (8, 128, True)
    gpt2 = subject_of(Job.from_file(ROOT / "examples/gpt2-pretrain.yaml"), ROOT / "examples")
    assert (gpt2.sizes.layers, gpt2.sizes.hidden, gpt2.counted) == (8, 128, False)
    assert gpt2.sizes.parameters == gpt2.model.graph().parameters
