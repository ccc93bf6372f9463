"""What a process does in the tests of sums over the bridge: one card of several, joined by gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from live_pools import TINY, formation, pipeline, plan, pool
from zhenfa.live.collective import HOST, Collective, Opener, Way
from zhenfa.live.crew import crew_of
from zhenfa.live.placement import links_of, place
from zhenfa.live.sums import Exchange

ROUNDS = 6
COUNT = 1000
MAKERS = "aabcc"
MACHINE = formation(pool("a", 2), pool("b", 1), pool("c", 2))
PLACES = place(plan(*(pipeline([8], [name], 1) for name in MAKERS)), MACHINE, TINY)
TIMEOUT = timedelta(seconds=60)
ALONE = tuple(pipeline([8], [name], 1) for name in "bcc")
SPLIT = pipeline([8], ["a"], 1)
CREW = place(
    plan(SPLIT.model_copy(update={"stages": (SPLIT.stages[0].model_copy(update={"tensor_parallel": 2}),)}), *ALONE),
    MACHINE, TINY,
)  # fmt: skip
"""Two cards that split matrices, and three others."""


def together(work: Callable[..., Any], folder: Path, *given: Any) -> list[Any]:
    """Return what ``work(rank, *given)`` returns on each of five cards of three makers that work at once."""
    cards = len(PLACES)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cards, mp_context=context) as pool_of_cards:
        jobs = [pool_of_cards.submit(_card, work, rank, str(folder / "store"), given) for rank in range(cards)]
        return [job.result(timeout=120) for job in jobs]


def _card(work: Callable[..., Any], rank: int, store: str, given: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(PLACES), timeout=TIMEOUT)
    try:
        return work(rank, *given)
    finally:
        dist.destroy_process_group()


def vector(rank: int, step: int) -> torch.Tensor:
    """The gradients of one card in one step."""
    drawn = torch.randn(COUNT, generator=torch.Generator().manual_seed(100 * step + rank))
    return drawn * torch.logspace(-6, 0, COUNT)


def sums(rank: int, kinds: list[str]) -> dict[str, dict[str, Any]]:
    """Return a card's sums in every format: whole, of its own part, with a poisoned step, and over many steps."""
    found: dict[str, dict[str, Any]] = {}
    opener = Opener(PLACES, rank, TIMEOUT)
    ranks = tuple(range(len(PLACES)))
    for kind in kinds:
        exchange = Exchange.open(opener, ranks, links_of(PLACES, MACHINE), kind)  # type: ignore[arg-type]
        assert exchange is not None
        rows = []
        for step in range(ROUNDS):
            exchange.forget()
            rows.append(exchange.sum(vector(rank, step), ("w",)).numpy())
            exchange.keep()
        kept = {names: flat.clone() for names, flat in exchange.kept.items()}
        poisoned = vector(rank, 99)
        poisoned[7] = float("nan") if rank == 3 else 0.0
        bad = exchange.sum(poisoned, ("w",)).numpy()
        exchange.forget()  # the step was not used
        again = exchange.sum(vector(rank, ROUNDS), ("w",)).numpy()
        parts = [exchange.sum_on(vector(rank, owner), (f"part {owner}",), owner).numpy() for owner in ranks]
        found[kind] = {
            "rows": rows, "bad": bad, "again": again, "part": parts[rank], "packs": exchange.packs,
            "kept": {name: flat.numpy() for (name,), flat in kept.items()},
            "volume": (exchange.volume(COUNT, COUNT).raw, exchange.volume(COUNT, COUNT).sent),
        }  # fmt: skip
    return found


def ways(rank: int) -> dict[str, Any]:
    """Return what collectives give where cards hand them their tensors and where they go through the host."""
    opener, found = Opener(PLACES, rank, TIMEOUT), {}  # type: Opener, dict[str, Any]
    inside = [opener.open([0, 1]), opener.open([3, 4])]
    mixed = opener.open(range(5), host=True)
    own = next((one for one in inside if one is not None), None)
    assert mixed is not None
    assert opener.open(range(5), host=True) is mixed, "opened once"
    for name, one in (("own", own), ("mixed", mixed)):
        if one is not None:
            found[name] = (one.way.backend, one.way.staged, *_used(one, rank))
            staged = Collective(one.ranks, Way(HOST, staged=True), one.group)
            assert _used(staged, rank) == _used(one, rank)
    return found


def _used(one: Collective, rank: int) -> tuple[Any, ...]:
    own, first = torch.arange(4.0) + rank, one.ranks[0]
    total = one.all_reduce(own.clone()).tolist()
    reduced = one.reduce(own.clone(), first).tolist() if rank == first else one.reduce(own.clone(), first) * 0
    given = one.broadcast(own.clone(), one.ranks[-1]).tolist()
    rows = [row.tolist() for row in one.all_gather(own)]
    if rank == first:
        one.send(own, one.ranks[1])
    sent = one.receive(own, first).tolist() if rank == one.ranks[1] else None
    return total, reduced if rank == first else None, given, rows, sent, one.latest(float(rank))


def beside(rank: int) -> set[tuple[float, float]]:
    """Sum over a crew for its matrices while the same cards sum gradients beside: one card begins with the one, the
    other with the other."""
    opener = Opener(CREW, rank, TIMEOUT)
    crew, exchange = crew_of(opener, {}), Exchange.open(opener, (0, 1), {}, "none")
    found = set()
    with ThreadPoolExecutor(1) as thread:
        for _ in range(100 if exchange is not None else 0):
            begun = thread.submit(exchange.sum, torch.ones(COUNT), ("w",)) if rank == 0 else None
            reduced = crew.reduce(torch.ones(8))
            summed = begun or thread.submit(exchange.sum, torch.ones(COUNT), ("w",))
            found.add((float(summed.result().sum()), float(reduced.sum())))
    return found
