"""The one process of a run that speaks with Ray: it starts Ray or joins one, reserves room, and has outposts started.

A process that has joined Ray is ended by it when Ray's head is gone for good; the driver, which must outlive that,
is therefore not it. Ray decides on which node each card has room (a bundle of a placement group) and starts one actor
on each such node, which starts the outpost there and ties it to its own life: what Ray ends, ends.

Run as ``python -m zhenfa.live.ray_keeper FD``, where FD is the driver's socket.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections import Counter
from typing import Any, Final

import psutil

from zhenfa.live import linux, wire

PLACE_S: Final = 60.0
OBJECT_STORE_BYTES: Final = 100_000_000
LEAST: Final = {"CPU": 0.001}
"""What a card takes of a node that the machine's file names: the file has reserved it already."""


class RefusedError(Exception):
    """Ray cannot do what was asked for. ``hint`` says what would help."""

    def __init__(self, words: str, hint: str = "") -> None:
        super().__init__(words)
        self.hint = hint


class Keeper:
    """Answers the driver's orders, one after the other."""

    def __init__(self) -> None:
        self._groups: list[Any] = []
        self._actors: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._address = ""

    def begin(self, address: str | None, resources: dict[str, float], folder: str) -> dict[str, Any]:
        """Join the Ray at ``address``, or start one of this host alone with these resources (None)."""
        if address is None or address.startswith("127."):
            _alone()
        import ray

        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            ray.init(
                address="local", num_cpus=os.cpu_count(), num_gpus=0, resources=resources, include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES, _node_ip_address="127.0.0.1", _temp_dir=f"{folder}/ray",
                **quiet,
            )  # fmt: skip
        else:
            ray.init(address=address, namespace=os.path.basename(folder), **quiet)
        self._address = address or "127.0.0.1"
        return {"nodes": [{"name": name, "address": node["NodeManagerAddress"]} for name, node in self._nodes()]}

    def place(self, cards: list[tuple[str, int]], hosts: dict[str, list[str]]) -> dict[str, Any]:
        """Reserve room for cards and return the node of each; ``hosts``: of each card of the pools that name them."""
        from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

        where, counts = dict(self._nodes()), Counter(pool for pool, _ in cards)
        self._check(counts, hosts, where)
        bundles: list[dict[str, float]] = []
        labels: list[dict[str, str]] = []
        for pool, index in cards:
            row = hosts.get(pool)
            bundles.append({f"zhenfa-{pool}": 1.0} if not row else dict(LEAST))
            name = row[index] if row else None
            labels.append({"ray.io/node-id": where[name]["NodeID"]} if name is not None else {})
        group = placement_group(bundles, strategy="PACK", bundle_label_selector=labels if any(labels) else None)
        if not group.wait(PLACE_S):
            remove_placement_group(group)
            raise RefusedError(
                f"Ray did not find room for {len(cards)} cards within {PLACE_S:g} s.",
                "`ray status` says who holds the room.",
            )
        self._groups.append(group)
        found = placement_group_table(group)["bundles_to_node_id"]
        names = {node["NodeID"]: name for name, node in where.items()}
        return {"placed": [[*card, names[found[number]]] for number, card in enumerate(cards)]}

    def start(self, host: str, variables: dict[str, str]) -> dict[str, Any]:
        """Have an actor on a node start an outpost there."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = dict(self._nodes())[host]
        actor = ray.remote(Starter)
        self._actors[host] = actor.options(
            num_cpus=0, num_gpus=0, max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(variables | {"ZHENFA_HOST": host})  # fmt: skip
        return {}

    def processes(self) -> dict[str, Any]:
        """Return the processes that were started here, by id and start time."""
        found = [process.pid for process in psutil.Process().children(recursive=True)]
        pairs = [(pid, linux.start_time(pid)) for pid in found]
        return {"processes": [pair for pair in pairs if pair[1] is not None]}

    def _nodes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the living nodes, each by a name that no other has."""
        import ray

        nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))
        count = Counter(str(node["NodeName"]) for node in nodes)
        for node in nodes:
            name, key = str(node["NodeName"]), str(node["NodeID"])
            self._names.setdefault(key, name if count[name] == 1 else f"{name}-{key[:6]}")
        return [(self._names[str(node["NodeID"])], node) for node in nodes]

    def _check(self, counts: Counter[str], hosts: dict[str, list[str]], nodes: dict[str, dict[str, Any]]) -> None:
        """Refuse at once what Ray would wait for without end."""
        import ray

        for pool, count in counts.items():
            row = hosts.get(pool)
            missing = [name for name in row or () if name not in nodes]
            if missing:
                raise RefusedError(
                    f"pool {pool!r} is on host {missing[0]!r}, which Ray does not have.",
                    f"its nodes: {', '.join(sorted(nodes))}; `ray start --node-name {missing[0]}` names one.",
                )
            there = ray.cluster_resources().get(f"zhenfa-{pool}", 0.0)
            if not row and there < count:
                wanted = json.dumps({f"zhenfa-{pool}": count})
                raise RefusedError(
                    f"Ray has room for {there:g} cards of pool {pool!r}; the plan needs {count}.",
                    f"start the nodes that carry them with `ray start --address={self._address} "
                    f"--resources='{wanted}'`, or name the pool's `hosts` in the machine file.",
                )


class Starter:
    """The actor on a node: starts the outpost, whose standard input ends when this process does.

    Ray kills the children of a process that ends: the outpost, which then has to clean up, is none.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zhenfa.live.outpost", "--while-open", "--apart"], stdin=subprocess.PIPE,
            env=os.environ | variables, start_new_session=True,
        )  # fmt: skip
        self._process.wait()


def _alone() -> None:
    """Have Ray bind to the loopback interface: the switch is read when Ray is imported."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def answer(keeper: Keeper, message: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one order."""
    try:
        found: dict[str, Any] = getattr(keeper, message.pop("do"))(**message)
    except RefusedError as problem:
        return {"failed": str(problem), "hint": problem.hint}
    except Exception as problem:
        words = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        return {"failed": f"Ray failed: {words}", "hint": ""}
    return found


def main() -> None:
    """Serve the driver until it hangs up, then leave Ray."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    reader, keeper = wire.Reader(channel), Keeper()
    while reader.open:
        for message in reader.read(wait=True):
            wire.send(channel, answer(keeper, message))
    import ray

    ray.shutdown()


if __name__ == "__main__":
    main()
