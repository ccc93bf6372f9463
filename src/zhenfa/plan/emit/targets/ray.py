"""Ray: a script that asks for one placement group a pool and starts every host's command in it."""

from __future__ import annotations

import json
from typing import Final

from zhenfa import __version__
from zhenfa.plan.emit.launch import maker_facts
from zhenfa.plan.emit.parts import SETTINGS, Part, Parts, parts_of
from zhenfa.plan.emit.shell import comments
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File, Target, Written

BODY: Final = '''
import json
import os
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PARTS = json.loads("""
{parts}
""")
WORLD = {{"NNODES": "{hosts}", "WORLD_SIZE": "{world}"}}
TRAINING = {training}
MASTER_PORT = os.environ.get("MASTER_PORT", "29500")


@ray.remote(num_cpus=1, max_retries=0)
def address():
    return ray.util.get_node_ip_address()


@ray.remote(num_cpus=1, max_retries=0)
def start(command, variables):
    if variables["NODE_RANK"] == "0":
        with socket.socket() as probe:  # the rendezvous must be able to listen here
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", int(variables["MASTER_PORT"])))
    return subprocess.run([command], env={{**os.environ, **variables}}, check=False).returncode


def groups():
    """Return one placement group for each instance: a bundle for each of its hosts, all on hosts of their own."""
    found = []
    for part in PARTS:
        for number in range(part["instances"]):
            bundle = {{part["resource"]: part["devices"], "CPU": 1}}
            strategy = "STRICT_SPREAD" if part["hosts"] > 1 else "PACK"
            found.append((part, number, placement_group([bundle] * part["hosts"], strategy=strategy)))
    return found


def main():
    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"))
    placed = groups()
    ray.get([group.ready() for _, _, group in placed])
    running, master = [], None
    for part, number, group in placed:
        for host in range(part["hosts"]):
            here = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=host)
            cards = {{part["resource"]: part["devices"]}}
            cards = {{"num_gpus": cards["GPU"]}} if "GPU" in cards else {{"resources": cards}}
            if host == 0 and not (TRAINING and master):
                master = ray.get(address.options(scheduling_strategy=here).remote())
            rank = part["first_host"] + host if TRAINING else host
            variables = {{
                **(WORLD if TRAINING else {{"NNODES": str(part["hosts"])}}), "NODE_RANK": str(rank),
                "DEVICES_PER_NODE": str(part["devices"]), "MASTER_ADDR": master, "POOL": part["pool"],
                "MASTER_PORT": str(int(MASTER_PORT) + (0 if TRAINING else len(running))),
                "BACKEND": part["backend"], "PORT": str(int(os.environ.get("PORT", "8000")) + number),
                **({{"PRECISION": part["precision"]}} if TRAINING else {{}}),
            }}
            command = part["command"]
            if os.sep in command:
                command = os.path.abspath(os.path.join(os.path.dirname(__file__), command))
            running.append(start.options(scheduling_strategy=here, **cards).remote(command, variables))
    return max(ray.get(running))


if __name__ == "__main__":
    sys.exit(main())
'''


def write(subject: Subject) -> Written:
    """Return the script, and the scripts that it starts where they are written too."""
    parts = parts_of(subject)
    notes = list(parts.notes)
    for part in parts.parts:
        if _own_resource(subject, part) is None:
            notes.append(f"Ray does not count cards of {part.pool.maker} by itself: start its hosts with `ray start "
                         f"--resources='{{\"{part.pool.name}\": {part.host_devices}}}'`")  # fmt: skip
    return Written((File("job.py", _script(subject, parts), executable=True), *parts.files), tuple(notes))


def _own_resource(subject: Subject, part: Part) -> str | None:
    return subject.setting("resource", part.pool.name) or maker_facts(part.pool).get("ray")


def _script(subject: Subject, parts: Parts) -> str:
    rows = [
        {
            "name": part.name, "pool": part.pool.name, "instances": part.instances, "hosts": part.hosts,
            "devices": part.devices, "resource": _own_resource(subject, part) or part.pool.name,
            "first_host": part.first_host, "command": part.command, "backend": part.backend,
            **({"precision": part.precision} if part.precision else {}),
        }
        for part in parts.parts
    ]  # fmt: skip
    shown = "[\n" + ",\n".join(" " + json.dumps(row) for row in rows) + "\n]"
    head = [
        f"Written by zhenfa {__version__}: {subject.plan.model} on {subject.formation.name}, {parts.hosts:,} hosts.",
        "Run it where a Ray cluster is reached: RAY_ADDRESS, else the one that this host belongs to.",
    ]
    body = BODY.format(parts=shown, hosts=parts.hosts, world=parts.world, training=parts.training)
    return "#!/usr/bin/env python3\n" + comments(head) + body


TARGET: Final = Target(
    name="ray", title="Ray", tasks=("train", "serve"), version="2.60", write=write,
    source="ray 2.60: ray/_private/accelerators, ray.util.placement_group",
    settings={**SETTINGS, "resource": "what Ray calls the cards"},
)  # fmt: skip
