"""Prefill and decode apart on few cards: every pair of types at once, and no more work than that takes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zhenfa
from test_serving_search import small
from zhenfa.errors import InfeasibleError
from zhenfa.estimate import rows
from zhenfa.plan.request import Request
from zhenfa.plan.serving import closed, givers, parts, search, tabled
from zhenfa.plan.serving.best import Best

JOB = {
    "name": "j", "model": "minimax-m2",
    "workload": {
        "task": "serve", "input_length": 32768, "output_length": 8192, "ttft_target": "5 s", "tpot_target": "50 ms",
        "request_rate": 10,
    },
}  # fmt: skip
POOLS = [{"name": f"p{index}", "system": "google-tpu7x-pod", "count": count} for index, count in enumerate((8, 7))]
MACHINE = {"name": "m", "title": "t", "pools": POOLS, "network": {"name": "RoCE", "link": "roce-400g"}}


def test_a_fleet_that_cannot_be_is_refused_after_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prefill type with every number of instances once for each bridge, and no pair of types on its own."""
    asked = Counter[str]()
    in_time, of_pair = givers.Givers._in_time, search.best_of_pair

    def counted(self: givers.Givers, index: Any, *rest: Any) -> Any:
        asked["evaluated"] += len(index)
        asked["calls"] += 1
        return in_time(self, index, *rest)

    def paired(*arguments: Any, **named: Any) -> Any:
        asked["pairs"] += 1
        return of_pair(*arguments, **named)

    monkeypatch.setattr(givers.Givers, "_in_time", counted)
    monkeypatch.setattr(search, "best_of_pair", paired)
    with pytest.raises(InfeasibleError, match=r"takes 10 requests/s within the targets. The nearest miss: 15 cards"):
        zhenfa.plan(JOB, MACHINE)
    assert asked["pairs"] == 0
    assert asked["calls"] < 40
    assert asked["evaluated"] < 20_000  # 405 prefill types, 8 instances of each at most


@pytest.mark.parametrize("seed", range(0, 24, 2))
def test_a_table_holds_what_pairs_hold_one_by_one(seed: int) -> None:
    request = small(seed)
    space = search.open_space(request)
    for pair in space.pairs:
        first, other, _ = pair
        rooms = {one.name: space.cards[one.name] for one in (first, other)}
        table = tabled.table_of(space, pair, rooms)
        rows = range(0, len(first.prefill), 5)
        for to in range(0, len(other.decode), 3):
            mine = table.rates[:, table.to == to]
            for at in rows:
                found = search.best_of_pair(space, pair, (at, to), (rooms[first.name], rooms[other.name]))
                if found is not None:
                    assert found.rate <= mine.max() * (1 + 1e-9)
        for rate, part in table.best(table.rates):
            left = part.count
            taken = search.pair_rates(
                *pair, (part.prefill_at, part.at), np.array([part.prefill_count]), np.array([left])
            )
            assert rate == part.rate
            assert min(float(one[0]) for one in taken) == pytest.approx(rate, rel=1e-9)
            assert all(count <= rooms[name] for name, count in part.cards_by_pool().items())


def test_a_bound_on_what_one_instance_gives_holds_for_any_number() -> None:
    space = search.open_space(small(9))
    for pool in space.pools:
        for at in range(0, len(pool.prefill), 7):
            most = space.cards[pool.name] // int(pool.prefill.cards[at])
            if most:
                counts, decode = np.arange(1, most + 1), parts.one_of(pool.decode, 0)
                given = pool.givers.limit(at, counts, decode, None, counts)
                assert np.all(given <= counts * pool.givers.most[at] * (1 + 1e-9))
                assert np.all(np.diff(given / counts) >= -1e-9 * given[-1])


def test_a_search_with_tables_finds_what_one_without_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(0, 12, 2):
        request: Request = small(seed)
        found = []
        for few in (64, 0):
            monkeypatch.setattr(tabled, "TABLED", few)
            space = search.open_space(request)
            best = Best(5, space.allows)
            search.most(space, space.cards, best)
            found.append([score[0] for score, _ in best.ranked()])
        assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_closed_loop_too_long_for_its_targets_costs_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Little's law a thousand requests within 1.8 s each need 555 a second, which these cards do not give."""
    evaluated = Counter[str]()
    state = closed.pair_state

    def counted(*arguments: Any) -> Any:
        evaluated["states"] += 1
        return state(*arguments)

    monkeypatch.setattr(closed, "pair_state", counted)
    load = {"input_length": 8192, "output_length": 16, "ttft_target": "1 s", "concurrency": 1000}
    workload = {**{key: value for key, value in JOB["workload"].items() if key != "request_rate"}, **load}
    with pytest.raises(InfeasibleError):
        zhenfa.plan({**JOB, "workload": workload}, MACHINE)
    assert evaluated["states"] == 0


def test_a_change_that_crosses_an_unknown_link_is_barred_with_the_reason() -> None:
    job = {
        "name": "j", "model": "gpt-oss-120b", "objective": "cards",
        "workload": {"task": "serve", "input_length": 4096, "output_length": 16, "ttft_target": "5 s",
                     "tpot_target": "100 ms"},
    }  # fmt: skip
    pools = [{"name": "p", "system": "nvidia-nvl576-kyber", "count": 3}]
    known = {"nvidia-rubin-ultra.peak.bf16": "989 TFLOPS", "nvidia-rubin-ultra.memory.bandwidth": "8 TB/s"}
    found = zhenfa.plan(job, {"name": "m", "title": "t", "pools": pools}, assume=known, top=3)
    for rank in range(1, len(found.plans) + 1):
        why = found.why(rank)
        for change in why.changes:
            assert change.cost is None or np.isfinite(change.cost.rate)
            assert change.score is None or np.isfinite(change.score)
        barred = [one.barred for one in why.changes if one.what.endswith("tensor parallel") and one.after == "2"]
        assert any("crosses a tier whose bandwidth is undisclosed" in words for words in barred)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.2, 300.0), limit=st.floats(0.2, 12.0))
def test_what_a_batch_yields_at_most_is_what_fine_steps_find(seed: int, share: float, limit: float) -> None:
    draw = np.random.default_rng(seed)
    running = np.cumsum(draw.uniform(0.1, 20.0, (3, 12)), axis=-1)
    tpot, own = draw.uniform(0.1, 5.0, (3, 12)), np.cumsum(draw.uniform(0.0, 2.0, (3, 12)), axis=-1)
    fine = [rows.finer(one, 11 * 2000 + 1) for one in (running, tpot, own)]
    rate = fine[0] / (100.0 * fine[1])
    allowed = (fine[1] <= limit / 2) & (fine[2] <= limit)
    within = parts.most_within(running, tpot, 100.0, (tpot, limit / 2), (own, limit))
    assert within == pytest.approx(np.max(np.where(allowed, rate, 0.0), axis=-1), rel=5e-2, abs=1e-9)
    assert np.all(within >= np.max(np.where(allowed, rate, 0.0), axis=-1) * (1 - 1e-9))
    here = np.minimum(share, running[:, -1:])
    bound = closed.most_with(np.full((3, 1), share), running, tpot, 100.0)
    least = here / (100.0 * rows.along(here, running, tpot))
    found = np.max(np.where(fine[0] <= here, rate, 0.0), axis=-1, keepdims=True)
    assert bound == pytest.approx(np.maximum(found, least), rel=5e-2)
    assert np.all(bound >= np.maximum(found, least) * (1 - 1e-9))
