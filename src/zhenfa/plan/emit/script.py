"""The script that starts a training framework on every host of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zhenfa import __version__
from zhenfa.estimate.report import summary
from zhenfa.plan.emit import megatron_words as share
from zhenfa.plan.emit.launch import Group
from zhenfa.plan.emit.recorded import recorded
from zhenfa.plan.emit.shell import array, comments
from zhenfa.plan.emit.subject import Subject


@dataclass(frozen=True)
class Launch:
    """One framework's start: arguments by the name of their bash array, default data, and variables of its own.

    ``home`` is the variable that says where the framework lies, ``program`` the script in it.
    """

    name: str
    title: str
    home: str
    program: str
    arguments: Mapping[str, Sequence[str]]
    data: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


def launch_script(subject: Subject, group: Group, launch: Launch) -> str:
    """Return a bash script that every host of a group runs with its own NODE_RANK; the plan is in devices."""
    plan = subject.training
    given = {name: list(values) for name, values in launch.arguments.items() if values}
    head = [
        f"{subject.plan.model} on {subject.formation.name}: {summary(plan)}. Written by zhenfa {__version__} for "
        f"{launch.title} (arguments of {recorded(launch.name).version}).",
        "Run it on every host with NODE_RANK=0, 1, ... and MASTER_ADDR the address of host 0; what is added to the "
        "command line comes after these arguments. DATA_ARGS replaces the data, which is made up.",
        *share.rank_lines(subject),
    ]
    per_node = group.devices_per_node
    size = f"${{DEVICES_PER_NODE:-{per_node}}}" if per_node else "${DEVICES_PER_NODE:?devices of one host}"
    lines = [
        "#!/usr/bin/env bash", comments(head), "set -euo pipefail", "",
        *(f"export {name}=${{{name}:-{value}}}" for name, value in launch.variables.items()),
        f"{launch.home}=${{{launch.home}:?folder of {launch.title}}}",
        f"DEVICES_PER_NODE={size}", f"WORLD_SIZE={group.devices}",
        "NNODES=${NNODES:-$(((WORLD_SIZE + DEVICES_PER_NODE - 1) / DEVICES_PER_NODE))}",
        "NODE_RANK=${NODE_RANK:-0} MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-29500}", "",
        *(array(name, values) for name, values in given.items()),
        f'read -r -a DATA <<<"${{DATA_ARGS:-{" ".join(launch.data)}}}"', "",
        'exec torchrun --nproc_per_node "$DEVICES_PER_NODE" --nnodes "$NNODES" --node_rank "$NODE_RANK" \\',
        '  --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \\',
        f'  "${launch.home}/{launch.program}" "${{DATA[@]}}" \\',
        "  " + " ".join(f'"${{{name}[@]}}"' for name in given) + ' "$@"',
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
