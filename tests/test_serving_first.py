"""Waiting for the first token: the laws against replays of queues and of an engine's scheduler."""

from __future__ import annotations

import heapq
import random
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_serving_state import service_of, workload
from zhenfa.estimate import serving, serving_curves
from zhenfa.estimate.serving import Service, decode_seconds, prompt_seconds
from zhenfa.estimate.serving_curves import Cut
from zhenfa.estimate.serving_first import Supply
from zhenfa.estimate.serving_step import Layout
from zhenfa.laws import queueing
from zhenfa.spec.serving import ServingWorkload


def loop(requests: int, away: float, service: float, rounds: int, seed: int) -> float:
    """Return the mean wait in a closed loop with one server and random times, replayed."""
    draw = random.Random(seed)
    arrivals = [draw.expovariate(1 / away) for _ in range(requests)]
    heapq.heapify(arrivals)
    free, waited = 0.0, 0.0
    for _ in range(rounds):
        arrival = heapq.heappop(arrivals)
        begin = max(arrival, free)
        waited += begin - arrival
        free = begin + draw.expovariate(1 / service)
        heapq.heappush(arrivals, free + draw.expovariate(1 / away))
    return waited / rounds


@pytest.mark.parametrize(("requests", "away"), [(4, 1.0), (16, 4.0), (16, 0.5), (64, 30.0), (64, 2.0)])
def test_a_closed_loop_waits_as_its_replay_does(requests: int, away: float) -> None:
    replayed = loop(requests, away, 0.1, 100_000, seed=requests)
    assert queueing.closed_wait(requests, away, 0.1) == pytest.approx(replayed, rel=0.25, abs=0.005)


@settings(max_examples=60, deadline=None)
@given(requests=st.floats(1, 1e4), away=st.floats(1e-3, 1e3), service=st.floats(1e-4, 10), servers=st.integers(1, 16))
def test_a_closed_loop_obeys_its_bounds(requests: float, away: float, service: float, servers: int) -> None:
    wait = float(queueing.closed_wait(requests, away, service, servers=servers))
    assert 0.0 <= wait <= (requests - 1.0) * service / servers + 1e-9
    assert requests / (away + service + wait) <= servers / service * (1 + 1e-9)  # no more than the servers can do


@given(rate=st.floats(0.01, 9.9), service=st.just(0.1))
def test_one_server_waits_as_pollaczek_and_khinchine_say(rate: float, service: float) -> None:
    busy = rate * service
    assert queueing.open_wait(rate, service) == pytest.approx(busy * service / (2 * (1 - busy)), rel=1e-9)
    twice = queueing.open_wait(rate, service, variation=1.0)
    assert twice == pytest.approx(2 * float(queueing.open_wait(rate, service)))
    assert queueing.open_wait(10.1, service) == np.inf


def together(rate: float, servers: int, slots: int, steps: int, full: float, prompts: int = 12_000) -> float:
    """Return the mean seconds of prompts in line and in service, replayed: a step takes 1 with one prompt, ``full``
    with all slots taken, and whatever comes meanwhile waits for its end."""
    arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / rate, prompts)).tolist()
    held: list[list[list[int]]] = [[] for _ in range(servers)]
    line, idle, ends, done = deque[int](), set(range(servers)), list[tuple[float, int]](), np.zeros(prompts)

    def begin(server: int, now: float) -> None:
        while line and len(held[server]) < slots:
            held[server].append([line.popleft(), steps])
        idle.add(server)
        if held[server]:
            idle.discard(server)
            heapq.heappush(ends, (now + 1 + (full - 1) * (len(held[server]) - 1) / max(slots - 1, 1), server))

    come = 0
    while come < prompts or ends:
        if come < prompts and (not ends or arrivals[come] <= ends[0][0]):
            line.append(come)
            if idle:
                begin(min(idle), arrivals[come])
            come += 1
            continue
        now, server = heapq.heappop(ends)
        for one in held[server]:
            one[1] -= 1
            done[one[0]] = now
        held[server] = [one for one in held[server] if one[1]]
        begin(server, now)
    part = slice(prompts // 10, -(prompts // 10))
    return float(np.mean((done - arrivals)[part]))


def supplied(servers: int, slots: int, steps: int, full: float) -> Supply:
    return Supply(Cut(Layout(), float(servers), 2048.0, 1024.0), float(slots), 1.0, full, float(steps))


@pytest.mark.parametrize(
    ("servers", "slots", "steps", "full"),
    [(1, 1, 1, 1.0), (1, 2, 1, 1.5), (1, 4, 1, 1.0), (1, 8, 1, 4.0), (1, 8, 4, 2.0), (1, 8, 4, 6.0), (1, 16, 1, 1.2),
     (4, 4, 1, 2.0), (4, 8, 4, 4.0), (16, 2, 1, 1.5)],
)  # fmt: skip
def test_prompts_that_step_together_take_as_long_as_their_replay(
    servers: int, slots: int, steps: int, full: float
) -> None:
    law = supplied(servers, slots, steps, full)
    for load in (0.2, 0.5, 0.8):
        rate = load * servers * float(law.rate)
        own = float(law.seconds) + sum(float(one) for one in law.beside(rate, requests=None, away=1.0))
        assert own == pytest.approx(together(rate, servers, slots, steps, full), rel=0.2)


@settings(max_examples=80, deadline=None)
@given(
    servers=st.integers(1, 64), slots=st.integers(1, 64), steps=st.integers(1, 16), share=st.floats(0, 1),
    load=st.floats(0.01, 0.97), requests=st.none() | st.floats(1, 1e4),
)  # fmt: skip
def test_others_only_delay_a_prompt_and_more_servers_delay_it_less(
    servers: int, slots: int, steps: int, share: float, load: float, requests: float | None
) -> None:
    full = 1.0 + share * (slots - 1)  # of one step with every slot taken: never more than one after the other
    law, more = supplied(servers, slots, steps, full), supplied(servers + 1, slots, steps, full)
    rate = load * servers * float(law.rate)
    longer, wait = law.beside(rate, requests=requests, away=1.0)
    assert 0.0 <= longer <= steps * (full - 1.0) * (1 + 1e-9)
    assert wait >= 0.0
    again = law.beside(rate * 1.01, requests=requests, away=1.0)
    assert longer <= again[0] + 1e-12
    if requests is None:
        assert wait <= again[1] + 1e-12
        assert sum(more.beside(rate / servers * (servers + 1), requests=None, away=1.0)) <= longer + wait + 1e-9
    elif requests == 1.0:
        assert wait == pytest.approx(0.0, abs=1e-9)


def test_data_parallel_prefill_makes_no_prompt_quicker() -> None:
    """Ranks of one instance with experts step together: each prompt takes a whole step, longer with every other."""
    asked = workload(1.0, 4000, 100)
    groups = [service_of(apart=True, model="qwen3-30b-a3b", data=data).prefill for data in (1, 4)]
    alone, beside = (serving_curves.supply(group, serving_curves.prompts(group, asked)) for group in groups)
    assert beside.slots == 4 * alone.slots
    assert beside.full > beside.one
    at_half = beside.beside(0.5 * beside.cut.count * beside.rate, requests=None, away=1.0)
    assert min(float(part) for part in at_half) > 0.0


@settings(max_examples=40, deadline=None)
@given(
    level=st.floats(0.01, 0.99), wave=st.floats(0.01, 100), share=st.floats(0, 1), wait=st.floats(1e-3, 10),
)  # fmt: skip
def test_a_quantile_is_where_the_distribution_reaches_its_level(
    level: float, wave: float, share: float, wait: float
) -> None:
    at = float(queueing.wait_quantile(level, wave, share, wait))
    reached = share * min(at / wave, 1.0) + (1 - share) * (1 - np.exp(-at / wait))
    assert reached == pytest.approx(level, abs=1e-6)


def replay(service: Service, asked: ServingWorkload, seed: int) -> np.ndarray:
    """Return the times to the first token of a run, replayed step by step: an engine that mixes prompts into steps."""
    lines = serving.curves(service, asked)
    draw = np.random.default_rng(seed)
    total, most = int(asked.total or 0), int(asked.concurrency or 0)
    outputs = np.maximum(np.round(asked.output_length * draw.uniform(asked.shortest, 1.0, total)), 2).astype(int)
    batch = np.arange(most + 1)
    steps = np.interp(batch, lines.running, decode_seconds(service, lines))
    prompts = np.interp(batch, lines.running, prompt_seconds(service, lines))
    one = float(service.engine.time(lines.prompts.one, 1.0, captured=False))
    full = float(service.engine.time(lines.prompts.full, lines.prompts.most, captured=False))
    per_step = lines.prompts.most / lines.prompts.chunks
    queue, ends, firsts = deque([0.0] * most), list[int](), list[float]()
    sent, now, index, work = most, 0.0, 0, 0.0
    while len(firsts) < total or ends:
        running = len(ends)
        taken = min(len(queue) - work, per_step)
        alone = (
            (one + (full - one) * max(taken - 1, 0) / max(lines.prompts.most - 1, 1))
            * max(1.0, taken)
            / max(taken, 1.0)
        )
        now += steps[running] + taken * prompts[running] if running else alone * min(taken * lines.prompts.chunks, 1.0)
        index += 1
        work += taken
        while ends and ends[0] <= index:
            heapq.heappop(ends)
            if sent < total:
                queue.append(now)
                sent += 1
        while work >= 1 - 1e-9 and queue:
            work -= 1
            heapq.heappush(ends, index + int(outputs[len(firsts)]) - 1)
            firsts.append(now - queue.popleft())
    return np.array(firsts)


@pytest.mark.parametrize(
    ("concurrency", "first", "last"),
    [(4, 1000, 300), (32, 1000, 300), (64, 4000, 500), (128, 500, 200), (16, 8000, 100)],
)  # fmt: skip
def test_a_run_waits_as_its_replay_does(concurrency: int, first: float, last: float) -> None:
    service = service_of()
    run = ServingWorkload(
        input_length=first, output_length=last, shortest=0.8, concurrency=concurrency, total=10.0 * concurrency
    )
    told = serving.serve(service, run)
    seen = replay(service, run, seed=concurrency) + service.engine.entry
    assert told.ttft == pytest.approx(seen.mean(), rel=0.35)
    assert told.first_within(0.5) == pytest.approx(np.median(seen), rel=0.5)
    assert told.first_within(0.99) == pytest.approx(np.quantile(seen, 0.99), rel=0.35)


def test_a_run_begins_with_a_wave_that_the_steady_state_does_not_know() -> None:
    service = service_of()
    steady = serving.serve(service, workload(64.0))
    short, long = (serving.serve(service, workload(64.0).model_copy(update={"total": 64.0 * n})) for n in (2, 50))
    assert short.ttft > long.ttft > steady.ttft
    assert short.tpot == pytest.approx(steady.tpot)
    assert short.first_within(0.99) > 5 * steady.ttft
    once = serving.serve(service, workload(64.0).model_copy(update={"total": 64.0}))
    assert once.first is not None
    assert once.first.share == 1.0


def test_random_arrivals_wait_longer_the_more_there_are() -> None:
    def at(rate: float) -> float:
        asked = ServingWorkload(input_length=4000, output_length=50, request_rate=rate)
        return serving.serve(service_of(apart=True), asked).ttft

    waits = [at(rate) for rate in (0.5, 5.0, 10.0, 15.0)]
    assert waits == sorted(waits)
