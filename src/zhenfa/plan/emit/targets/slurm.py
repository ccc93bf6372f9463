"""Slurm: one batch script; a heterogeneous job where pools differ."""

from __future__ import annotations

from typing import Final

from zhenfa import __version__
from zhenfa.plan.emit.parts import SETTINGS, Part, Parts, parts_of, slug
from zhenfa.plan.emit.shell import comments
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File, Target, Written
from zhenfa.spec.plan import Plan

GRES: Final = "gpu"
HEAD: Final = """\
# Starts "$4" on every host of component $1, of which every instance takes $2 hosts or shares one.
# $3 is the number of hosts before it in the job, $5 the devices of an instance on a host.
run() {
  local hosts
  hosts=$(scontrol show hostnames "${!6}" | tr '\\n' ' ')
  HOSTS=$hosts SPAN=$2 FIRST=$3 DEVICES_PER_NODE=$5 VISIBLE=$7 srun ${1:+--het-group="$1"} --export=ALL \\
    --kill-on-bad-exit=1 bash -c "$START" "$4" &
}
"""
START: Final = {
    True: """\
START='export NODE_RANK=$((FIRST + SLURM_NODEID)); exec "$0"'
""",
    False: """\
START='
  read -r -a all <<<"$HOSTS"
  export NODE_RANK=$((SLURM_NODEID % SPAN)) MASTER_ADDR=${all[SLURM_NODEID / SPAN * SPAN]}
  export PORT=$((${PORT:-8000} + SLURM_LOCALID)) VLLM_NIXL_SIDE_CHANNEL_PORT=$((5600 + SLURM_LOCALID * 64))
  first=$((SLURM_LOCALID * DEVICES_PER_NODE))
  [ -z "$VISIBLE" ] || export "$VISIBLE=$(seq -s, "$first" "$((first + DEVICES_PER_NODE - 1))")"
  exec "$0"'
""",
}


def write(subject: Subject) -> Written:
    """Return the batch script, and the scripts that it starts where they are written too."""
    parts = parts_of(subject)
    files = (File("job.sbatch", _batch(subject, parts), executable=True), *parts.files)
    unnamed = [part.pool.name for part in parts.parts if subject.setting("gres", part.pool.name) is None]
    notes = [*parts.notes]
    if unnamed:
        notes.append(f"generic resources are called {GRES}:N; --set gres.{unnamed[0]}=NAME says what the cluster calls "
                     "them")  # fmt: skip
    return Written(files, tuple(notes))


def _batch(subject: Subject, parts: Parts) -> str:
    several = len(parts.parts) > 1
    name = subject.plan.job if isinstance(subject.plan, Plan) else f"{subject.plan.model}-serve"
    first = f"Written by zhenfa {__version__}: {subject.plan.model} on {subject.formation.name}, {parts.hosts:,} hosts."
    lines = [
        "#!/usr/bin/env bash",
        *_directives(subject, parts, slug(name)),
        comments([first]),
        "set -euo pipefail",
        "",
    ]
    component = "SLURM_JOB_NODELIST_HET_GROUP_0" if several else "SLURM_JOB_NODELIST"
    if parts.training:
        lines += [
            f"MASTER_ADDR=$(scontrol show hostnames \"${component}\" | head -n 1)",
            f"export MASTER_ADDR MASTER_PORT=${{MASTER_PORT:-29500}} NNODES={parts.hosts} WORLD_SIZE={parts.world}",
        ]  # fmt: skip
    lines += [START[parts.training].rstrip("\n"), HEAD.rstrip("\n"), ""]
    for number, part in enumerate(parts.parts):
        nodes = f"SLURM_JOB_NODELIST_HET_GROUP_{number}" if several else "SLURM_JOB_NODELIST"
        which = str(number) if several else "''"
        variable = part.visible or "''"
        given = f"POOL={part.pool.name} BACKEND={part.backend}"
        given += f" PRECISION={part.precision}" if part.precision else ""
        call = f'run {which} {part.hosts} {part.first_host} "{part.command}" {part.devices} {nodes} {variable}'
        lines.append(f"{given} {call}")
    lines += ["", "# Ends when all have ended, and fails with the first that fails.", "status=0",
              "for job in $(jobs -p); do wait \"$job\" || status=$?; done", "exit \"$status\""]  # fmt: skip
    return "\n".join(lines) + "\n"


def _directives(subject: Subject, parts: Parts, name: str) -> list[str]:
    """Return the requests of every component."""
    lines: list[str] = []
    for number, part in enumerate(parts.parts):
        if number:
            lines.append("#SBATCH hetjob")
        asked = [f"--job-name={name}", "--output=%x-%j.out"] if number == 0 else []
        cards = f"{subject.setting('gres', part.pool.name) or GRES}:{part.host_devices}"
        asked += [*_where(subject, part), f"--nodes={part.all_hosts}", f"--ntasks-per-node={part.per_host}"]
        asked += [f"--gres={cards}", "--exclusive"]
        lines += [f"#SBATCH {one}" for one in asked]
    return lines


def _where(subject: Subject, part: Part) -> list[str]:
    """Return where a component may run."""
    asked = (("partition", "partition"), ("constraint", "constraint"), ("time", "time"), ("account", "account"))
    given = [(option, subject.setting(name, part.pool.name)) for name, option in asked]
    return [f"--{option}={value}" for option, value in given if value]


TARGET: Final = Target(
    name="slurm", title="Slurm", tasks=("train", "serve"), version="22.05", write=write,
    source="slurm-wlm 22.05.8: sbatch(1), heterogeneous jobs",
    settings={
        **SETTINGS, "partition": "partition of the cluster", "constraint": "features that hosts must have",
        "time": "limit of the job, such as 2-00:00:00", "account": "who pays",
        "gres": f"what the cluster calls the cards (default {GRES})",
    },
)  # fmt: skip
