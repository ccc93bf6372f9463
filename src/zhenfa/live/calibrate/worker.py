"""What a card does when it is calibrated: every task by turns, round after round, until its time is over."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from zhenfa.live.calibrate.clock import Clock, EventClock, clock_of
from zhenfa.live.calibrate.samples import Task
from zhenfa.live.calibrate.work import call_of, seconds_of
from zhenfa.live.quiet import Watch

LEAST_ROUNDS: Final = 3
MOST_ROUNDS: Final = 40
TURN_S: Final = 0.02
"""Seconds that a task takes of one round at most, unless a single call is longer."""
MOST_CALLS: Final = 8


def measure(tasks: Sequence[Mapping[str, Any]], seconds: float, device: Any) -> dict[str, Any]:
    """Time every task in rounds for about ``seconds``; return its calls' seconds, and how much this process waited.

    A task that the device cannot do has no seconds and says why under ``refused``.
    """
    clock = clock_of(device)
    if isinstance(clock, EventClock):
        clock.heat()
    calls, refused = _prepared([Task.from_data(data) for data in tasks], clock, device)
    found: dict[int, list[float]] = {index: [] for index in calls}
    before, end, done = Watch.now(), time.monotonic() + seconds, 0
    while done < LEAST_ROUNDS or (done < MOST_ROUNDS and time.monotonic() < end):
        for index, (task, call, count) in calls.items():
            found[index] += seconds_of(task, call, clock, count)
        done += 1
    return {
        "seconds": [found.get(index, []) for index in range(len(tasks))],
        "refused": refused,
        "waited": before.share(Watch.now()),
        "rounds": done,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _prepared(
    tasks: Sequence[Task], clock: Clock, device: Any
) -> tuple[dict[int, tuple[Task, Any, int]], dict[str, str]]:
    """Make the tensors of every task and run it once to warm up; return calls a round by its index."""
    calls: dict[int, tuple[Task, Any, int]] = {}
    refused: dict[str, str] = {}
    for index, task in enumerate(tasks):
        try:
            call = call_of(task, device)
            seconds_of(task, call, clock, 1)
            once = max(seconds_of(task, call, clock, 1)[0], 1e-7)
        except (RuntimeError, TypeError) as problem:
            refused[str(task)] = str(problem).strip().splitlines()[0]
            continue
        few = task.kind in {"launch", "host"}
        calls[index] = (task, call, 1 if few else min(max(int(TURN_S / once), 1), MOST_CALLS))
    return calls, refused


def measure_wires(
    rank: int, world: int, port: int, generation: str, sizes: Sequence[int], rounds: int
) -> dict[str, list[list[float]]]:
    """Time messages to the next card and back, and sums over all cards, of ``sizes`` bytes, as a run does: over gloo.

    Returns, per size, the seconds of each message (half of there and back) and of each sum.
    """
    timeout = timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    dist.init_process_group(
        "gloo", store=dist.PrefixStore(generation, store), rank=rank, world_size=world, timeout=timeout
    )
    try:
        messages: list[list[float]] = [[] for _ in sizes]
        sums: list[list[float]] = [[] for _ in sizes]
        for _ in range(rounds + 1):  # the first round warms up
            for index, size in enumerate(sizes):
                payload = torch.ones(max(size // 4, 1))
                messages[index].append(_there_and_back(rank, world, payload) / 2)
                sums[index].append(_timed_sum(payload))
        return {"messages": [row[1:] for row in messages], "sums": [row[1:] for row in sums]}
    finally:
        dist.destroy_process_group()


def _there_and_back(rank: int, world: int, payload: Any) -> float:
    """Send to the neighbour and back, cards 0 and 1, 2 and 3 and so on at once; a last one alone looks on."""
    dist.barrier()
    peer = rank ^ 1
    if peer >= world:
        return float("nan")
    begun = time.perf_counter()
    if rank < peer:
        dist.send(payload, peer)
        dist.recv(payload, peer)
    else:
        dist.recv(payload, peer)
        dist.send(payload, peer)
    return time.perf_counter() - begun


def _timed_sum(payload: Any) -> float:
    dist.barrier()
    begun = time.perf_counter()
    dist.all_reduce(payload)
    return time.perf_counter() - begun
