"""``zhenfa emit`` at the command line: streams, folders, JSON, and every wrong way to call it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from cli_runner import ROOT, SMALL, Call, caller
from emit_plans import PLANS
from zhenfa.cli.emit_documents import Emitted
from zhenfa.cli.schemas import schema

INTERLEAVED = PLANS / "llama3-8b-interleaved.yaml"
APART = PLANS / "qwen3-235b-serve.yaml"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


def test_one_file_is_written_as_it_is(call: Call) -> None:
    shown = call("emit", INTERLEAVED, "--to", "megatron")
    assert shown.code == 0
    assert shown.out.startswith("#!/usr/bin/env bash\n# llama3-8b on hgx-h100: TP2 PP2 DP2 VP2 ZeRO-1.")
    assert "note: no --job was given" in shown.err
    assert call("emit", INTERLEAVED, "--to", "megatron", "--quiet").err == ""
    cited = call("emit", INTERLEAVED, "--to", "megatron", "--cite")
    assert cited.out == shown.out
    assert "source: github.com/NVIDIA/Megatron-LM megatron/training/arguments.py" in cited.err


def test_several_files_stand_under_their_names(call: Call) -> None:
    shown = call("emit", APART, "--to", "sglang")
    heads = [line for line in shown.out.splitlines() if line.startswith("# ==> ")]
    assert heads == ["# ==> prefill.sh <==", "# ==> decode.sh <==", "# ==> router.sh <=="]


def test_a_folder_holds_files_that_can_be_run(call: Call, tmp_path: Path) -> None:
    shown = call("emit", APART, "--to", "vllm", "--out", "out")
    assert shown.out.splitlines() == ["out/prefill.sh", "out/decode.sh", "out/router.sh"]
    assert (tmp_path / "out/prefill.sh").stat().st_mode & 0o111
    again = call("emit", APART, "--to", "vllm", "--out", "out")
    assert (again.code, again.out) == (2, "")
    assert "'out/prefill.sh' is there already" in again.err
    assert "--force" in again.err
    assert call("emit", APART, "--to", "vllm", "--out", "out", "--force").code == 0
    assert "cannot be written" in call("emit", APART, "--to", "vllm", "--out", "/proc/no").err


def test_json_is_one_document_of_the_published_schema(call: Call) -> None:
    shown = call("emit", PLANS / "deepseek-v3-superpod.yaml", "--to", "megatron", "--nearest", "--json")
    found = json.loads(shown.out)
    jsonschema.validate(found, schema(Emitted, strict=True))
    assert found["schema"] == "zhenfa.emitted/1"
    assert found["plan"]["pipelines"] == [
        {**found["plan"]["pipelines"][0], "count": 1024, "micro_batches": 5, "micro_batch_size": 3}
    ]
    assert len(found["changes"]) == 2
    assert found["files"][0]["written"] is None


def test_the_nearest_plan_is_written_where_asked(call: Call) -> None:
    refused = call("emit", PLANS / "deepseek-v3-superpod.yaml", "--to", "megatron", columns=80)
    assert (refused.code, refused.out) == (1, "")
    assert "hint: the nearest plan that Megatron-LM takes is TP1 PP1 DP1024 EP8 ZeRO-3" in refused.err
    shown = call("emit", PLANS / "deepseek-v3-superpod.yaml", "--to", "megatron", "--nearest")
    assert shown.code == 0
    assert "WORLD_SIZE=1024" in shown.out
    assert "written instead: TP1 PP1 DP1024" in shown.err


def test_a_job_brings_its_run_and_files_of_ones_own(call: Call, tmp_path: Path) -> None:
    machine = "schema: zhenfa.machine/1\nname: ours\npools:\n- {name: nvidia, system: hgx-h100}\n"
    (tmp_path / "ours.yaml").write_text(machine, encoding="utf-8")
    job = SMALL.replace("machine: hgx-h100", "machine: ours.yaml").replace("}", ", tokens: 1e9}")
    (tmp_path / "job.yaml").write_text(job + "execution: {learning_rate: 2.0e-4}\n", encoding="utf-8")
    plan = INTERLEAVED.read_text(encoding="utf-8").replace("machine: hgx-h100", "machine: ours")
    (tmp_path / "plan.yaml").write_text(plan, encoding="utf-8")
    alone = call("emit", "plan.yaml", "--to", "megatron")
    assert alone.code == 2
    assert "--job JOB" in alone.err
    shown = call("emit", "plan.yaml", "--to", "megatron", "--job", "job.yaml")
    assert shown.code == 0, shown.err
    assert "--train-samples 244140 --lr 0.0002" in shown.out
    assert "on ours:" in shown.out
    other = tmp_path / "other.yaml"
    other.write_text(job.replace("name: small", "name: other"), encoding="utf-8")
    assert "the plan is of job 'small'" in call("emit", "plan.yaml", "--to", "megatron", "--job", "other.yaml").err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "megatrom"), ("no target is called 'megatrom'. Did you mean 'megatron'?", "--to takes")),
        (("--to", "megatron", "--set", "image=x"), ("megatron has no setting 'image'", "cards-per-node")),
        (("--to", "k8s", "--set", "imag.nvidia=x"), ("k8s has no setting 'imag'. Did you mean image?", "image: ")),
        (("--to", "k8s", "--set", "image.nvidai=x"), ("no pool is called 'nvidai'", "pools: nvidia")),
        (("--to", "k8s", "--set", "image"), ("--set 'image' is not NAME=VALUE", "cards-per-node=8")),
        (("--to", "k8s", "--set", "cards-per-node=none"), ("'none' is not a whole number", "")),
        (("--to", "slurm", "--set", "cards-per-node=3"), ("8 cards of pool 'nvidia' do not fill hosts of 3", "whole")),
        ((), ("missing option", "--help")),
    ],
)
def test_wrong_arguments_are_answered_with_the_way_out(
    call: Call, arguments: tuple[str, ...], words: tuple[str, str]
) -> None:
    shown = call("emit", INTERLEAVED, *arguments)
    assert shown.code in (1, 2)
    assert shown.out == ""
    for text in words:
        assert text in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("schema: zhenfa.plan/1", "schema: zhenfa.job/1", "this is no plan: its schema is 'zhenfa.job/1'"),
        ("schema: zhenfa.plan/1\n", "", "this is no plan: it has no schema"),
        ("machine: hgx-h100", "machine: hgx-h10", "hgx-h100"),
        ("model: llama3-8b", "model: llama3-8bb", "llama3-8b"),
        ("pool: nvidia", "pool: nvidai", "pool 'nvidai'"),
        ("model: llama3-8b", "model: llama3-70b", "the plan splits 32 layers; llama3-70b has 80"),
        ("count: 2", "count: 3", "uses 12 cards of pool 'nvidia', which has 8"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(call: Call, tmp_path: Path, old: str, new: str, words: str) -> None:
    text = INTERLEAVED.read_text(encoding="utf-8").replace(old, new)
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    shown = call("emit", "plan.yaml", "--to", "megatron")
    assert (shown.code, shown.out) == (2, "")
    assert words in shown.err


def test_the_help_names_every_target(call: Call) -> None:
    from zhenfa.plan.emit import targets

    text = call("emit", "--help", columns=100).out
    assert all(name in text for name in targets())
    guide = (ROOT / "docs/guide/emit.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in guide for name in targets())
