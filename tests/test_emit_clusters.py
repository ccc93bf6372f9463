"""Serving commands, Slurm scripts, Kubernetes manifests and Ray scripts of plans."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emit_plans import CLUSTERS, PLANS, TRAINERS, emitted, file_of, handed, options, subject
from zhenfa.errors import CapabilityError, InputError
from zhenfa.plan.emit import Subject, emit, targets
from zhenfa.plan.emit.parts import parts_of
from zhenfa.plan.emit.recorded import makers, recorded
from zhenfa.spec import yaml
from zhenfa.spec.plan import Plan
from zhenfa.spec.serving import Instance

ALL = sorted(path.stem for path in PLANS.glob("*.yaml"))
SCALEX = "cards-per-node.scalex=8"


def settings(plan: str) -> tuple[str, ...]:
    return (SCALEX,) if plan in ("deepseek-v3-mixed-demo", "deepseek-v3-apart") else ()


@pytest.mark.parametrize("to", CLUSTERS)
@pytest.mark.parametrize("plan", ALL)
def test_clusters_take_every_plan_and_its_scripts_parse(plan: str, to: str, tmp_path: Path) -> None:
    found = emitted(plan, to, *settings(plan))
    assert not found.changes
    for one in found.files:
        (tmp_path / one.name).write_text(one.text, encoding="utf-8")
        if one.name.endswith((".sh", ".sbatch")):
            subprocess.run(["bash", "-n", str(tmp_path / one.name)], check=True)
        elif one.name.endswith(".py"):
            compile(one.text, one.name, "exec")


@pytest.mark.parametrize("plan", ALL)
def test_parts_hold_all_cards_of_the_plan(plan: str) -> None:
    there = subject(plan, *settings(plan))
    parts = parts_of(there)
    assert parts.world == sum(
        cards * there.formation.pool(name).accelerator.devices for name, cards in there.cards_by_pool().items()
    )
    assert all(part.host_cards <= 64 for part in parts.parts)


# Serving.


@pytest.mark.parametrize(("engine", "program"), [("vllm", "vllm"), ("sglang", "python3")])
def test_serve_commands_hold_options_that_exist(engine: str, program: str, tmp_path: Path) -> None:
    found = emitted("qwen3-235b-serve", engine)
    for name in ("prefill.sh", "decode.sh"):
        words = handed(found, name, program, tmp_path, NODE_RANK="0")
        start = next(index for index, word in enumerate(words) if word.startswith("--"))
        assert recorded(engine).problems(words[start:]) == []
    router = "vllm-router" if engine == "vllm" else "python3"
    words = handed(found, "router.sh", router, tmp_path, PREFILL="http://a:1 http://b:1", DECODE="http://c:1")
    start = next(index for index, word in enumerate(words) if word.startswith("--"))
    assert recorded(f"{engine}_router").problems(words[start:]) == []
    assert words.count("--prefill") == 2


def test_prefill_and_decode_of_two_makers_meet_in_host_memory(tmp_path: Path) -> None:
    found = emitted("deepseek-v3-apart", "vllm", SCALEX)
    prefill = options(handed(found, "prefill.sh", "vllm", tmp_path, NODE_RANK="1", MASTER_ADDR="host0"))
    decode = options(handed(found, "decode.sh", "vllm", tmp_path, NODE_RANK="3", MASTER_ADDR="host0"))
    assert json.loads(prefill["--kv-transfer-config"][0]) == {
        "kv_connector": "NixlConnector", "kv_role": "kv_producer", "kv_buffer_device": "cpu"
    }  # fmt: skip
    assert json.loads(decode["--speculative-config"][0]) == {"method": "mtp", "num_speculative_tokens": 1}
    assert decode["--max-num-seqs"] == ["256"], "4,096 requests over 16 data-parallel groups"
    assert (decode["--data-parallel-size-local"], decode["--data-parallel-start-rank"]) == (["4"], ["12"])
    assert "--headless" in decode
    assert "--quantization" not in prefill, "the checkpoint is FP8 as published"
    with pytest.raises(CapabilityError, match="names no transfer of a cache between NVIDIA and Hygon/Sugon"):
        emit(subject("deepseek-v3-apart", SCALEX), "sglang")


def apart(prefill: str, decode: str, *given: str) -> Subject:
    there = subject("deepseek-v3-apart", *given)
    first = Instance(pool=prefill, tensor_parallel=8)
    second = Instance(pool=decode, data_parallel=32, expert_parallel=32, count=2)
    return there.with_plan(there.serving.model_copy(update={"prefill": first, "decode": second}))


def test_ascend_has_a_connector_of_its_own(tmp_path: Path) -> None:
    found = emit(apart("ascend", "ascend"), "vllm")
    decode = options(handed(found, "decode.sh", "vllm", tmp_path, NODE_RANK="0"))
    assert decode["--tensor-parallel-size"] == ["2"], "a card of two dies is two devices"
    assert json.loads(decode["--kv-transfer-config"][0]) == {
        "kv_connector": "MooncakeConnectorV1", "kv_role": "kv_consumer", "kv_port": "30100",
        "kv_connector_extra_config": {
            "prefill": {"dp_size": 1, "tp_size": 16}, "decode": {"dp_size": 32, "tp_size": 2}
        },
    }  # fmt: skip
    assert "NIXL" not in file_of(found, "decode.sh")
    assert json.loads(decode["--compilation-config"][0]) == {"cudagraph_mode": "FULL_DECODE_ONLY"}
    assert "--compilation-config" not in file_of(found, "prefill.sh")


def test_a_cache_that_no_connector_moves_is_refused() -> None:
    with pytest.raises(CapabilityError, match="between torch devices cuda and npu") as problem:
        emit(apart("h20", "ascend"), "vllm")
    assert "--set kv-connector=NAME" in str(problem.value.hint)
    found = emit(apart("h20", "ascend", "kv-connector=OursConnector"), "vllm")
    assert '"kv_connector": "OursConnector"' in file_of(found, "prefill.sh")


def test_experts_over_some_cards_are_refused() -> None:
    there = subject("deepseek-v3-apart", SCALEX)
    prefill = there.serving.prefill
    assert prefill is not None
    some = there.serving.model_copy(update={"prefill": prefill.model_copy(update={"expert_parallel": 4})})
    with pytest.raises(CapabilityError, match="over all 16 cards of a stage or over none, not over 4"):
        emit(there.with_plan(some), "vllm")


def test_a_checkpoint_that_nobody_published_is_asked_for() -> None:
    there = subject("qwen3-235b-serve")
    four = there.with_plan(there.serving.model_copy(update={"weights": "int4"}))
    assert any("name one that fits with --set model=" in note for note in emit(four, "vllm").notes)


# Slurm.


def test_slurm_asks_for_each_makers_hosts() -> None:
    text = file_of(emitted("deepseek-v3-mixed-demo", "slurm", SCALEX), "job.sbatch")
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    components = " ".join(asked).split("hetjob")
    assert [part.split("--nodes=")[1].split()[0] for part in components] == ["48", "80", "32"]
    assert [part.split("--gres=")[1].split()[0] for part in components] == ["gpu:16", "gpu:8", "gpu:8"]
    assert "NNODES=160 WORLD_SIZE=1664" in text
    assert 'POOL=h20 BACKEND=nccl PRECISION=bf16 run 2 32 128 "./train.sh" 8' in text


def test_slurm_takes_the_clusters_own_names() -> None:
    given = ("partition=big", "gres.nvidia=h100", "time=2-00:00:00", "run=torchrun-all")
    found = emit(subject("deepseek-v3-superpod", *given), "slurm")
    text = file_of(found, "job.sbatch")
    assert "--partition=big" in text
    assert "--gres=h100:8" in text
    assert "hetjob" not in text
    assert '"torchrun-all"' in text
    assert found.notes == ()


def test_scripts_of_another_target_come_along() -> None:
    found = emit(subject("llama3-8b-interleaved", "run=megatron"), "slurm")
    assert [one.name for one in found.files] == ["job.sbatch", "megatron.sh"]
    assert '"./megatron.sh"' in found.files[0].text
    with pytest.raises(CapabilityError, match="gives every replica the same"):
        emit(subject("deepseek-v3-superpod", "run=megatron"), "slurm")


def test_hosts_of_unknown_size_are_asked_for() -> None:
    for to in CLUSTERS:
        with pytest.raises(InputError, match="how many cards of pool 'scalex'") as problem:
            emit(subject("deepseek-v3-mixed-demo"), to)
        assert "--set cards-per-node.scalex=8" in str(problem.value.hint)


# Kubernetes.


def manifests(plan: str, *given: str) -> list[dict[str, Any]]:
    found = emitted(plan, "k8s", *given)
    return [yaml.read(part, one.name)[0] for one in found.files for part in one.text.split("\n---\n")]


def test_kubernetes_jobs_hold_all_hosts_and_name_each_makers_cards() -> None:
    jobs = [one for one in manifests("deepseek-v3-mixed-demo", SCALEX) if one["kind"] == "Job"]
    limits = [job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for job in jobs]
    assert limits == [{"huawei.com/Ascend910": "16"}, {"hygon.com/dcu": "8"}, {"nvidia.com/gpu": "8"}]
    assert [job["spec"]["completions"] for job in jobs] == [48, 80, 32]
    firsts = [
        next(one["value"] for one in job["spec"]["template"]["spec"]["containers"][0]["env"] if one["name"] == "FIRST")
        for job in jobs
    ]
    assert firsts == ["0", "48", "128"]
    service = next(one for one in manifests("deepseek-v3-mixed-demo", SCALEX) if one["kind"] == "Service")
    assert service["metadata"]["name"] == jobs[0]["spec"]["template"]["spec"]["subdomain"]


def test_kubernetes_serves_with_sets_of_hosts_and_finds_them() -> None:
    kinds = manifests("deepseek-v3-apart", SCALEX)
    sets = [one for one in kinds if one["kind"] == "StatefulSet"]
    assert [one["spec"]["replicas"] for one in sets] == [2] * 4 + [4] * 2
    services = {one["metadata"]["name"]: one["spec"] for one in kinds if one["kind"] == "Service"}
    for one in sets:
        assert one["spec"]["selector"]["matchLabels"].items() <= one["spec"]["template"]["metadata"]["labels"].items()
        assert services[one["spec"]["serviceName"]]["selector"] == one["spec"]["selector"]["matchLabels"]
    router = next(one for one in kinds if one["metadata"]["name"].endswith("-router") and one["kind"] == "Deployment")
    variables = {one["name"]: one["value"] for one in router["spec"]["template"]["spec"]["containers"][0]["env"]}
    for address in variables["PREFILL"].split():
        host, _, service = address.removeprefix("http://").partition(":")[0].partition(".")
        assert service in services
        assert host == f"{service}-0"
    scripts = next(one for one in kinds if one["kind"] == "ConfigMap")
    assert scripts["data"]["decode.sh"] == file_of(emitted("deepseek-v3-apart", "vllm", SCALEX), "decode.sh")


def test_an_unknown_resource_and_image_are_said() -> None:
    there = subject("llama3-8b-interleaved")
    pool = there.formation.pools[0]
    card = pool.accelerator.model_copy(update={"maker": "nobody"})
    from dataclasses import replace

    formation = replace(there.formation, pools=(replace(pool, accelerator=card),))
    found = emit(replace(there, formation=formation), "k8s")
    assert any("under which resource Kubernetes counts cards of nobody" in note for note in found.notes)
    assert any("--set image.nvidia=REGISTRY/IMAGE" in note for note in found.notes)
    assert "limits" not in file_of(found, "nvidia.yaml")


# Ray.


def test_ray_names_what_it_does_not_count_by_itself() -> None:
    found = emitted("deepseek-v3-mixed-demo", "ray", SCALEX)
    rows = json.loads(file_of(found, "job.py").split('"""')[1])
    assert [(row["resource"], row["devices"], row["hosts"]) for row in rows] == [
        ("NPU", 16, 48), ("scalex", 8, 80), ("GPU", 8, 32)
    ]  # fmt: skip
    assert any("ray start --resources='{\"scalex\": 8}'" in note for note in found.notes)


# What is recorded.


def test_every_target_is_known_and_has_its_task() -> None:
    assert targets() == sorted([*CLUSTERS, *TRAINERS, "sglang", "vllm"])
    with pytest.raises(CapabilityError, match="the plan serves, and this target trains"):
        emit(subject("qwen3-235b-serve"), "megatron")
    with pytest.raises(CapabilityError, match="the plan trains, and this target serves"):
        emit(subject("llama3-8b-interleaved"), "vllm")


def test_recorded_options_find_what_is_wrong() -> None:
    known = recorded("megatron")
    assert known.problems(["--num-layers", "3", "--bf16"]) == []
    assert known.problems(["--num-layer", "3"]) == [f"--num-layer is no option of megatron {known.version}"]
    assert known.problems(["--num-layers", "many"]) == ["--num-layers takes a number, not 'many'"]
    assert known.problems(["--bf16", "yes"]) == ["--bf16 takes no value, and 'yes' is given"]
    assert "takes one of" in known.problems(["--normalization", "Batch"])[0]
    assert all(known.source and known.version for known in map(recorded, ("megatron", "mindspeed", "vllm", "sglang")))


def test_makers_of_the_catalog_are_spelled_as_there() -> None:
    from zhenfa import catalog

    real = {catalog.accelerator(name).maker for name in catalog.accelerators()}
    assert makers().keys() <= real
    assert all("/" in facts["kubernetes"] for facts in makers().values())


def test_a_training_plan_is_not_changed_by_writing_it() -> None:
    there = subject("deepseek-v3-mixed-demo", SCALEX)
    assert isinstance(there.plan, Plan)
    assert emitted("deepseek-v3-mixed-demo", "slurm", SCALEX).plan == there.plan


def test_variables_that_show_cards_name_their_source() -> None:
    page = (PLANS.parent.parent / "docs/guide/emit.md").read_text(encoding="utf-8")
    for maker, facts in makers().items():
        how, said = facts["visible_devices_confidence"], facts["visible_devices_source"]
        assert how in {"high", "medium", "low"}
        assert f"| {maker} | `{facts['visible_devices']}` | {how} | {said} |" in page


def test_variables_that_show_cards_are_those_of_ray() -> None:
    accelerators = pytest.importorskip("ray._private.accelerators")
    for maker, facts in makers().items():
        if "ray" in facts and "ray/" in facts["visible_devices_source"]:
            found = {
                manager.get_visible_accelerator_ids_env_var()
                for manager in accelerators.get_all_accelerator_managers()
                if manager.get_resource_name() == facts["ray"]
            }
            assert facts["visible_devices"] in found, maker
