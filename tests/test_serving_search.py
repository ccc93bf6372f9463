"""The search for serving plans finds what brute force finds, and what it finds keeps its word."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import zhenfa
from serving_brute import Brute
from zhenfa import catalog
from zhenfa.errors import InfeasibleError
from zhenfa.plan.request import Request
from zhenfa.plan.serving import answer, find_serving, space
from zhenfa.spec.fact import read_fact
from zhenfa.spec.job import Job, Limits
from zhenfa.spec.machine import Formation, Network

MACHINES = ("hgx-h100", "hgx-h20", "cloudmatrix384", "mi300x-8", "atlas800t-a2")
MODELS = ("llama3-8b", "qwen3-4b", "qwen3-30b-a3b")


@cache
def formation(name: str) -> Formation:
    return catalog.resolve(catalog.machine(name))


def small(seed: int) -> Request:
    """Return a random request: one pool or two of 2 to 4 cards, short or long requests, tight or loose targets."""
    draw = random.Random(seed)
    chosen = draw.sample(MACHINES, 1 if seed % 2 else 2)
    pools = tuple(
        replace(
            formation(name).pools[0],
            name=f"p{index}",
            count=draw.randint(2, 4) if len(chosen) == 1 else draw.randint(1, 2 + index),
        )
        for index, name in enumerate(chosen)
    )
    network = Network(
        bandwidth=read_fact(f"{draw.choice((1, 25, 400))} GB/s", "rate"), latency=read_fact("5 us", "time"),
        host_staged=draw.random() < 0.5,
    )  # fmt: skip
    machine = replace(
        formation(chosen[0]), name="small", pools=pools, network=network if len(pools) > 1 and seed % 8 else None
    )
    name = draw.choice(MODELS)
    workload = {
        "task": "serve", "input_length": float(draw.choice((200, 1000, 6000))),
        "output_length": float(draw.choice((20, 200, 1000))),
        "tpot_target": f"{draw.choice((15, 30, 60, 100))} ms", "ttft_target": f"{draw.choice((0.4, 1, 4))} s",
    }  # fmt: skip
    if seed % 3 == 1:
        workload["request_rate"] = draw.choice((0.5, 2.0, 8.0, 30.0))
    if seed % 12 == 5:
        workload["concurrency"] = draw.choice((4.0, 40.0, 200.0))
    job = Job.from_data({"name": "j", "model": name, "workload": workload})
    job = job.model_copy(
        update={"limits": Limits(max_tensor_parallel=2, max_pipeline_parallel=2, max_context_parallel=1)}
    )
    model = catalog.model(name)
    return Request(job, model, model.graph(), machine)


@pytest.fixture(autouse=True)
def few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "CHUNKS", (4096,))


@pytest.mark.parametrize("seed", range(60))
def test_the_search_finds_what_brute_force_finds(seed: int) -> None:
    request = small(seed)
    workload, brute = request.serving, Brute(request)
    try:
        found = find_serving(request, top=3)
    except InfeasibleError:
        found = None
    if workload.request_rate is not None:
        wanted = brute.fewest(workload.request_rate)
        assert (found.best.plan.cards if found else float("inf")) == wanted
    elif workload.concurrency is not None:
        wanted = brute.closed(workload.concurrency)
        reached = 1 / found.best.card_seconds if found else 0.0
        assert reached == pytest.approx(wanted, rel=1e-6)
    else:
        wanted = brute.most_of_all()
        _, best, _ = answer.look(request, 3)
        assert max(best.first, 0.0) == pytest.approx(wanted, rel=1e-5)
        served = found.best.estimate.figures.requests_per_s.value if found else 0.0
        assert served == pytest.approx(wanted, rel=2e-3)
    if found is None:
        return
    for one in found.plans:  # figures of the single plan, which the search did not make
        figures = one.estimate.figures
        assert figures.tpot_s.value is not None
        assert figures.ttft_s.value is not None
        assert figures.tpot_s.value <= (workload.tpot_target or 0) * 1.001
        assert figures.ttft_s.value <= (workload.ttft_target or 0) * 1.001
        used = one.plan.cards_by_pool()
        assert all(count <= request.formation.pool(name).count for name, count in used.items())


NO_LINK = {
    "schema": "zhenfa.machine/1", "name": "no-link", "title": "cards whose link is undisclosed",
    "pools": [{"name": "cards", "system": "biren-npo", "count": 8}],
}  # fmt: skip


def test_where_the_link_is_undisclosed_cards_serve_each_alone() -> None:
    asked = {
        "schema": "zhenfa.job/1", "name": "alone", "model": "dense-1b",
        "workload": {
            "task": "serve", "input_length": 128, "output_length": 1024, "ttft_target": "30 s", "tpot_target": "100 ms"
        },
    }  # fmt: skip
    assume = {"peak.bf16": "500 TFLOPS", "memory.bandwidth": "2 TB/s", "memory.capacity": "64 GB"}
    answer = zhenfa.plan(asked, NO_LINK, assume={f"biren-br166.{name}": value for name, value in assume.items()})
    assert answer.best.layout == "8 x TP1"
    assert all("TP2" not in one.layout for one in answer.plans)
    assert all(np.isfinite(one.tokens_per_s_per_card) for one in answer.front)
