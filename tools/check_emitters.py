"""Check what ``zhenfa emit`` writes against the systems that it is written for.

Each check uses the real thing, as released: vLLM's and SGLang's option definitions and their routers' parsers,
torchtitan's configuration manager, Megatron-Core's configuration and pipeline layout, Kubernetes' schemas, a running
``slurmctld``, a Ray cluster on this host. What is not there is skipped, and it is said how to get it::

    python tools/check_emitters.py --sources FOLDER            # all
    python tools/check_emitters.py --sources FOLDER --only slurm
    python tools/check_emitters.py --sources FOLDER --record   # write the recorded options anew

``FOLDER`` holds the unpacked releases: ``vllm-VERSION`` (source archive), and the wheels ``sglang``,
``vllm_router``, ``sglang_router``, ``torchtitan``, ``megatron_core`` and ``kubernetes_validate``, each in a folder of
that name. Debian's
packages slurmctld, slurm-client and munge make up the check of Slurm. ``--python`` names an interpreter that can import
torchtitan's dependencies beside torch. Exit 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import emitter_sources as sources

from zhenfa.errors import ZhenfaError
from zhenfa.plan.emit import Emission, emit, read_subject, targets
from zhenfa.plan.emit.recorded import PLACE, recorded
from zhenfa.spec import yaml

ROOT = Path(__file__).parent.parent
PLANS = sorted((ROOT / "examples" / "plans").glob("*.yaml"))
SCALEX = ("cards-per-node.scalex=8",)
SETTINGS = {"deepseek-v3-mixed-demo": SCALEX, "deepseek-v3-apart": SCALEX}
ASSUME = ("scalex-card.memory.capacity=64 GB",)


class Missing(Exception):  # noqa: N818
    """What a check needs is not here."""


def emissions(target: str) -> Iterator[tuple[str, Emission]]:
    """Yield what a target writes of every plan that it takes, the nearest where it takes no other."""
    for path in PLANS:
        whole = target in ("slurm", "k8s", "ray", "vllm", "sglang") and path.stem in SETTINGS
        subject = read_subject(str(path), assume=ASSUME, settings=SETTINGS[path.stem] if whole else ())
        try:
            yield path.stem, emit(subject, target, nearest=True)
        except ZhenfaError as problem:
            print(f"  {path.stem}: not for {target} ({problem.message[:100]})")


def save(found: Emission, folder: Path) -> Path:
    """Write the files of an emission into a folder."""
    for one in found.files:
        (folder / one.name).write_text(one.text, encoding="utf-8")
        (folder / one.name).chmod(0o755 if one.executable else 0o644)
    return folder


def arguments_of(folder: Path, script: str, program: str, **variables: str) -> list[str]:
    """Run a script with a stand-in for its launcher that says what it was given."""
    stand_in = folder / "bin" / program
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(folder / script)], env={**os.environ, **variables, "PATH": path}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


# Options.

OPTIONS: dict[str, Callable[[Path], dict[str, sources.Option]]] = {
    "vllm": lambda place: sources.vllm_options(one_of(place, "vllm-*") / "vllm"),
    "sglang": lambda place: sources.sglang_options(one_of(place, "sglang") / "sglang"),
    "vllm_router": lambda place: sources.router_options(one_of(place, "vllm_router/vllm_router/router_args.py")),
    "sglang_router": lambda place: sources.router_options(one_of(place, "sglang_router/sglang_router/router_args.py")),
}


def one_of(place: Path, pattern: str) -> Path:
    """Return the one path of that form."""
    found = sorted(place.glob(pattern))
    if not found:
        raise Missing(f"{place}/{pattern} is not there")
    return found[-1]


def check_options(place: Path, *, record: bool = False) -> Iterator[str]:
    """Read the options from the real definitions and compare them with the recorded ones."""
    for name, read in OPTIONS.items():
        known, real = recorded(name), read(place)
        gone = [option for option in known.options if option not in real]
        assert not gone, f"{name}: {gone} are gone"
        differs = {option: real[option] for option, says in known.options.items() if real[option] != says}
        if record and differs:
            data = json.loads((PLACE / f"{name}.json").read_text(encoding="utf-8"))
            data["options"].update(differs)
            (PLACE / f"{name}.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
        assert record or not differs, f"{name}: {differs}"
        yield f"{name} {known.version}: {len(known.options)} recorded options are those of the release ({len(real)})"


def check_serving(place: Path) -> Iterator[str]:
    """Check every command line of the serving engines, and the names inside its JSON."""
    connectors = one_of(place, "vllm-*/vllm/distributed/kv_transfer/kv_connector/factory.py").read_text("utf-8")
    methods = one_of(place, "vllm-*/vllm/config/speculative.py").read_text(encoding="utf-8")
    roles = one_of(place, "vllm-*/vllm/config/kv_transfer.py").read_text(encoding="utf-8")
    for engine, program in (("vllm", "vllm"), ("sglang", "python3")):
        count = 0
        for name, found in emissions(engine):
            with tempfile.TemporaryDirectory() as folder:
                save(found, Path(folder))
                for one in found.files:
                    router = one.name == "router.sh"
                    called = "vllm-router" if router and engine == "vllm" else program
                    given = {"PREFILL": "http://a:1 http://b:2", "DECODE": "http://c:3"} if router else {}
                    words = arguments_of(Path(folder), one.name, called, NODE_RANK="1", **given)
                    words = words[next(index for index, word in enumerate(words) if word.startswith("--")) :]
                    problems = recorded(f"{engine}_router" if router else engine).problems(words)
                    assert not problems, f"{name} {one.name}: {problems}"
                    count += 1
                    for option, text in pairwise(words):
                        if option == "--kv-transfer-config":
                            said = json.loads(text)
                            assert f'"{said["kv_connector"]}"' in connectors
                            assert f'"{said["kv_role"]}"' in roles
                        if option == "--speculative-config":
                            assert f'"{json.loads(text)["method"]}"' in methods
        assert count
        yield f"{engine} {recorded(engine).version}: {count} command lines"


# Training.


def check_megatron(place: Path) -> Iterator[str]:
    """Let Megatron-Core parse the pipeline layout and check the configuration that the arguments make."""
    package = one_of(place, "megatron_core")
    sys.path.insert(0, str(package))
    count = 0
    for name, found in emissions("megatron"):
        with tempfile.TemporaryDirectory() as folder:
            save(found, Path(folder))
            words = arguments_of(Path(folder), "megatron.sh", "torchrun", MEGATRON="/m", DEVICES_PER_NODE="8")
        words = words[words.index("/m/pretrain_gpt.py") + 1 :]
        problems = recorded("megatron").problems(words)
        assert not problems, f"{name}: {problems}"
        megatron_config(parsed(words))
        count += 1
    from megatron.core.package_info import __version__ as version

    yield f"megatron-core {version}: {count} configurations"
    mindspeed = 0
    for name, found in emissions("mindspeed"):
        with tempfile.TemporaryDirectory() as folder:
            save(found, Path(folder))
            words = arguments_of(Path(folder), "mindspeed.sh", "torchrun", MINDSPEED_LLM="/m", DEVICES_PER_NODE="8")
        problems = recorded("mindspeed").problems(words[words.index("/m/pretrain_gpt.py") + 1 :])
        assert not problems, f"{name}: {problems}"
        mindspeed += 1
    yield f"{recorded('mindspeed').version}: {mindspeed} command lines against recorded options"


def parsed(words: list[str]) -> dict[str, object]:
    """Return options as a mapping, numbers read."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            found[name] = []
        else:
            found[name].append(word)

    def read(text: str) -> object:
        try:
            return int(text)
        except ValueError:
            return text

    return {name: True if not values else read(values[0]) if len(values) == 1 else values
            for name, values in found.items()}  # fmt: skip


def megatron_config(given: dict[str, object]) -> None:
    """Build Megatron-Core's configuration as ``core_transformer_config_from_args`` does; it refuses what it cannot."""
    import dataclasses

    import torch
    from megatron.core.transformer import MLATransformerConfig, TransformerConfig
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    kind = MLATransformerConfig if given.get("multi_latent_attention") else TransformerConfig
    names = {field.name for field in dataclasses.fields(kind)}
    words = {name: value for name, value in given.items() if name in names}
    words |= {
        "num_moe_experts": given.get("num_experts"), "add_bias_linear": not given.get("disable_bias_linear"),
        "gated_linear_unit": bool(given.get("swiglu")), "bf16": bool(given.get("bf16")),
        "pipeline_dtype": torch.bfloat16, "params_dtype": torch.bfloat16, "normalization": given["normalization"],
    }  # fmt: skip
    modules = given.get("recompute_modules")
    if modules:
        words["recompute_modules"] = modules if isinstance(modules, list) else [modules]
    frequency = given.get("moe_layer_freq")
    if isinstance(frequency, str):
        words["moe_layer_freq"] = [
            int(kind) for kind, times in (part.split("*") for part in frequency.strip("()").split("+"))
            for kind in [kind.strip("[]")] * int(times)
        ]  # fmt: skip
    stages = int(str(given["pipeline_model_parallel_size"]))
    layout = given.get("pipeline_model_parallel_layout")
    if isinstance(layout, str):
        PipelineParallelLayerLayout(layout, stages).validate_layer_layout(int(str(given["num_layers"])), 0)
        virtual = PipelineParallelLayerLayout.get_num_stages_from_str(layout) // stages
        words["virtual_pipeline_model_parallel_size"] = virtual if virtual > 1 else None
    words["moe_grouped_gemm"] = bool(given.get("moe_grouped_gemm"))
    if words.get("num_moe_experts") is None:
        words["moe_grouped_gemm"] = False
    kind(**words)


TITAN = """
import dataclasses, json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from torchtitan.config.manager import ConfigManager
from torchtitan.distributed.parallel_dims import ParallelDims
from torch.distributed.pipelining.schedules import get_schedule_class
config = ConfigManager().parse_args(["--module", "zhenfa_job", "--config", "job"])
p = config.parallelism
dims = ParallelDims.from_config(p, int(sys.argv[3]))
dims._validate() if hasattr(dims, "_validate") else None
layers = len(config.model_spec.model.layers)
parts = p.module_fqns_per_model_part
if parts is not None:
    get_schedule_class(p.pipeline_parallel_schedule)
    flat = [name for part in parts for name in part]
    assert flat == ["tok_embeddings", *(f"layers.{i}" for i in range(layers)), "norm", "lm_head"], flat
replicas = dims.dp_replicate * dims.dp_shard
assert config.training.global_batch_size % (config.training.local_batch_size * replicas) == 0
print(json.dumps({"layers": layers, "width": config.model_spec.model.dim,
                  "vocabulary": config.model_spec.model.vocab_size}))
"""


def check_torchtitan(place: Path, python: str) -> Iterator[str]:
    """Let torchtitan's configuration manager read the modules, and hold its model against the plan's."""
    package = one_of(place, "torchtitan")
    count = 0
    for name, found in emissions("torchtitan"):
        world = next(line for line in found.files[1].text.splitlines() if line.startswith("WORLD_SIZE="))
        with tempfile.TemporaryDirectory() as folder:
            save(found, Path(folder))
            done = subprocess.run(
                [python, "-c", TITAN, str(package), folder, world.partition("=")[2]], capture_output=True, text=True,
                check=False,
            )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        says = json.loads(done.stdout.splitlines()[-1])
        path = next(path for path in PLANS if path.stem == name)
        model = read_subject(str(path)).model
        assert says["layers"] == model.layer_count, says
        assert says["width"] == model.hidden_size, says
        count += 1
    assert count
    yield f"{next(package.glob('*.dist-info')).name.removesuffix('.dist-info')}: {count} configurations read"


# Clusters.


def check_kubernetes(place: Path) -> Iterator[str]:
    """Validate every manifest strictly against Kubernetes' own schemas."""
    sys.path.insert(0, str(one_of(place, "kubernetes_validate")))
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    count = 0
    for _, found in emissions("k8s"):
        for one in found.files:
            for part in one.text.split("\n---\n"):
                data, _ = yaml.read(part, one.name)
                kubernetes_validate.validate(data, version, strict=True)
                count += 1
    assert count
    yield f"kubernetes-validate, strict, Kubernetes {version}: {count} manifests"


SLURM = """\
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SelectType=select/cons_tres
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=600
NodeName=host[0-399] CPUs=64 RealMemory=100000 Gres=gpu:16 State=CLOUD
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Run a ``slurmctld`` with 400 hosts that nobody has started, and yield the variables that reach it."""
    for program in ("slurmctld", "sbatch", "munged"):
        if not (shutil.which(program) or shutil.which(f"/usr/sbin/{program}")):
            raise Missing(f"{program} is not installed (apt-get install slurmctld slurm-client munge)")
    running: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        (folder / "state").mkdir()
        host = os.uname().nodename
        (folder / "slurm.conf").write_text(SLURM.format(folder=name, host=host, port=46817), encoding="utf-8")
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        files = [f"--{one}-file={name}/munge.{one}" for one in ("key", "pid", "log", "seed")]
        munge = ["munged", "--foreground", "--force", f"--socket={name}/munge.socket", *files]
        try:
            quiet = subprocess.DEVNULL
            running.append(subprocess.Popen(munge, stdout=quiet, stderr=quiet))
            wait_for((folder / "munge.socket").exists)
            running.append(subprocess.Popen(["slurmctld", "-D"], env=environment, stdout=quiet, stderr=quiet))
            wait_for(lambda: answers(environment))
            yield environment
        finally:
            for one in reversed(running):
                one.terminate()
                one.wait(20)


def answers(environment: dict[str, str]) -> bool:
    """Return whether the controller answers."""
    asked = subprocess.run(["scontrol", "ping"], env=environment, capture_output=True, check=False)
    return b"is UP" in asked.stdout


def wait_for(ready: Callable[[], bool], seconds: float = 30) -> None:
    """Return when it is ready."""
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it did not start"
        time.sleep(0.2)


def check_slurm() -> Iterator[str]:
    """Ask a running Slurm when each job would start."""
    count = 0
    with slurm() as environment:
        asked = subprocess.run(["sbatch", "--version"], env=environment, capture_output=True, text=True, check=True)
        version = asked.stdout.strip()
        for name, found in emissions("slurm"):
            with tempfile.TemporaryDirectory() as folder:
                save(found, Path(folder))
                done = subprocess.run(
                    ["sbatch", "--test-only", "job.sbatch"], cwd=folder, env=environment, capture_output=True,
                    text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, f"{name}: {done.stderr}"
                print(f"  {name}: {done.stderr.strip().splitlines()[-1]}")
                count += 1
    yield f"{version}: sbatch --test-only accepted {count} jobs"


def check_ray() -> Iterator[str]:
    """Run the script on a Ray cluster of this host, with cards that are only counted."""
    import ray
    from ray.cluster_utils import Cluster

    subject = read_subject(str(ROOT / "examples/plans/llama3-8b-interleaved.yaml"))
    found = emit(subject, "ray")
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=4, num_gpus=8)
        with tempfile.TemporaryDirectory() as name:
            folder = save(found, Path(name))
            (folder / "train.sh").write_text('#!/usr/bin/env bash\nenv > "$(dirname "$0")/env.$NODE_RANK"\n', "utf-8")
            (folder / "train.sh").chmod(0o755)
            done = subprocess.run(
                [sys.executable, "job.py"], cwd=name, env={**os.environ, "RAY_ADDRESS": cluster.address},
                capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-2000:]
            seen = dict(
                line.split("=", 1) for line in (folder / "env.0").read_text("utf-8").splitlines() if "=" in line
            )
    finally:
        cluster.shutdown()
    assert seen["WORLD_SIZE"] == "8"
    assert seen["DEVICES_PER_NODE"] == "8"
    assert len(seen["CUDA_VISIBLE_DEVICES"].split(",")) == 8
    yield f"ray {ray.__version__}: a job of {subject.plan.cards} counted cards ran"


def main() -> int:
    """Run the checks."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--sources", type=Path, default=Path("releases"))
    reader.add_argument("--python", default=sys.executable)
    reader.add_argument("--only", action="append")
    reader.add_argument("--record", action="store_true")
    given = reader.parse_args()
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "options": lambda: check_options(given.sources, record=given.record),
        "serving": lambda: check_serving(given.sources), "megatron": lambda: check_megatron(given.sources),
        "torchtitan": lambda: check_torchtitan(given.sources, given.python),
        "kubernetes": lambda: check_kubernetes(given.sources), "slurm": check_slurm, "ray": check_ray,
    }  # fmt: skip
    failed = 0
    print(f"targets: {', '.join(targets())}")
    for name in given.only or checks:
        try:
            for line in checks[name]():
                print(f"passed  {name}: {line}")
        except Missing as problem:
            print(f"skipped {name}: {problem}")
        except AssertionError as problem:
            failed += 1
            print(f"FAILED  {name}: {problem}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
