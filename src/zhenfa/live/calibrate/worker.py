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
from zhenfa.live.calibrate.trial import Trial, trial_of
from zhenfa.live.calibrate.work import call_of, seconds_of
from zhenfa.live.quiet import Watch

LEAST_ROUNDS: Final = 2
MOST_ROUNDS: Final = 40
TURN_S: Final = 0.02
"""Seconds that a task takes of one round at most, unless a single call is longer."""
MOST_CALLS: Final = 8
PIECES: Final = 16
"""Tensors that a timed sum is made of."""


class Bench:
    """Tasks and whole models that take turns on one device, round after round, for as long as it is told.

    A task that the device cannot do has no seconds and says why under ``refused``.
    """

    def __init__(self, tasks: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], device: Any) -> None:
        self._clock = clock_of(device)
        if isinstance(self._clock, EventClock):
            self._clock.heat()
        self._calls, self.refused = _prepared([Task.from_data(data) for data in tasks], self._clock, device)
        self._seconds: list[list[float]] = [[] for _ in tasks]
        self._trials = {index: one for index, orders in enumerate(trials) if (one := self._built(orders, device))}
        self._tried: list[dict[str, list[float]]] = [{} for _ in trials]
        self._waited: list[float] = []
        self._rounds: list[float] = []

    def _built(self, orders: Mapping[str, Any], device: Any) -> Trial | None:
        """Return a trial, or None where the device cannot hold it."""
        try:
            return trial_of(orders, device)
        except RuntimeError as problem:
            name = f"{orders['kind']} {orders['precision']} {orders['batch']} x {orders['length']} tokens"
            self.refused[name] = str(problem).strip().splitlines()[0]
            return None

    def run(self, seconds: float) -> dict[str, Any]:
        """Go on for about ``seconds``; return all seconds since the beginning, and how much this process waited."""
        before, end, done = Watch.now(), time.monotonic() + seconds, 0
        while done < LEAST_ROUNDS or (done < MOST_ROUNDS and time.monotonic() < end):
            total = 0.0
            for index, (task, call, count) in self._calls.items():
                found = seconds_of(task, call, self._clock, count)
                self._seconds[index] += found
                total += sum(found)
            self._rounds.append(total)
            for index, one in self._trials.items():
                for what, seconds_ in one.round().items():
                    self._tried[index].setdefault(what, []).extend(seconds_)
            done += 1
        self._waited.append(before.share(Watch.now()))
        return {
            "seconds": self._seconds, "tried": self._tried, "refused": self.refused,
            "waited": sum(self._waited) / len(self._waited), "rounds": self._rounds,
            "threads": torch.get_num_threads(), "torch": torch.__version__,
        }  # fmt: skip


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
        few = task.kind in {"launch", "host"} or (task.kind.startswith("eager") and device.type != "cpu")
        calls[index] = (task, call, 1 if few else min(max(int(TURN_S / once), 1), MOST_CALLS))
    return calls, refused


def measure_wires(
    rank: int, world: int, address: str, port: int, generation: str, sizes: Sequence[int], rounds: int
) -> dict[str, list[list[float]]]:
    """Time messages to the next card and back, and sums over all cards, of ``sizes`` bytes, as a run does: over gloo,
    a sum of :data:`PIECES` tensors that are laid out in one and copied back.

    Returns, per size, the seconds of each message (half of there and back) and of each sum.
    """
    timeout = timedelta(seconds=60)
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
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
    pieces = [part.clone() for part in payload.chunk(PIECES)]
    dist.barrier()
    begun = time.perf_counter()
    flat = torch.cat(pieces)
    dist.all_reduce(flat)
    for piece, part in zip(pieces, flat.split([one.numel() for one in pieces]), strict=True):
        piece.copy_(part)
    return time.perf_counter() - begun
