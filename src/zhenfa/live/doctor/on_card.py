"""What a card does in a preflight: each message and sum of the plan, through host memory as in a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.live.makers import Maker


def preflight(
    maker: Maker, device: Any, *, rank: int, world: int, address: str, port: int, generation: str,
    rounds: Sequence[int], wait: float,
    exchanges: Sequence[tuple[str, list[int], int]], labels: Sequence[str],
) -> list[list[float] | None]:  # fmt: skip
    """Return the seconds of each round of each exchange, None for those that this card takes no part in.

    Raises ``RuntimeError`` that names the exchange which failed.
    """
    timeout = timedelta(seconds=wait)
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
    dist.init_process_group(
        "gloo", store=dist.PrefixStore(generation, store), rank=rank, world_size=world, timeout=timeout
    )
    try:
        members = {tuple(ranks) for kind, ranks, _ in exchanges if kind == "sum"}
        groups = {ranks: dist.new_group(list(ranks), backend="gloo", timeout=timeout) for ranks in sorted(members)}
        found: list[list[float] | None] = []
        for (kind, ranks, size), label, count in zip(exchanges, labels, rounds, strict=True):
            try:
                dist.barrier()
                found.append(_timed(maker, device, kind, ranks, size, rank, count, groups) if rank in ranks else None)
            except RuntimeError as problem:
                words = str(problem).strip().splitlines()
                raise RuntimeError(f"{label}: {words[0] if words else 'it failed'}") from None
        return found
    finally:
        dist.destroy_process_group()


def _timed(
    maker: Maker, device: Any, kind: str, ranks: list[int], size: int, rank: int, rounds: int,
    groups: dict[tuple[int, ...], Any],
) -> list[float]:  # fmt: skip
    payload = torch.ones(max(size // 4, 1), device=device)
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        if kind == "message":
            _message(maker, payload, ranks, rank)
        else:
            _sum(maker, payload, groups[tuple(ranks)], len(ranks))
        maker.synchronize()
        passed = time.perf_counter() - begun
        seconds.append(passed / 2 if kind == "message" else passed)
    return seconds[1:]  # the first opens connections


def _message(maker: Maker, payload: Any, ranks: list[int], rank: int) -> None:
    """Send there and back."""
    first, second = ranks
    peer = second if rank == first else first
    host = torch.empty_like(payload, device="cpu")
    if rank == first:
        dist.send(maker.to_host(payload), peer)
        dist.recv(host, peer)
    else:
        dist.recv(host, peer)
        dist.send(maker.to_host(payload), peer)
    payload.copy_(host)


def _sum(maker: Maker, payload: Any, group: Any, count: int) -> None:
    """Sum over the group and see that the sum is right: a wrong one is a fault of a card or a link."""
    host = maker.to_host(payload).clone()
    dist.all_reduce(host, group=group)
    wrong = int((host != count * maker.to_host(payload)).sum())
    if wrong:
        raise RuntimeError(f"{wrong} of {host.numel()} elements of the sum are wrong")
    payload.copy_(host / count)
