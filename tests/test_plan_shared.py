"""A micro-batch size of its own on every stage: groups of cards that share out each micro-batch of their replica."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_runner import ROOT, Call, caller
from emit_plans import TRAINERS, subject
from plan_brute import truth
from plan_pools import on_the_card, plan_of, random_setting
from zhenfa.estimate.report import summary
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import cost
from zhenfa.plan.emit.rules import one_cut
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.search import Best, Found, Tally
from zhenfa.plan.split import schedule_bound
from zhenfa.plan.weighed import Weighed
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan, Stage

SHARED = (4, 85, 132, 219)
"""Machines on which the best plan shares micro-batches out."""

OTHERS = (1, 6, 15)


def setting_of(seed: int) -> Setting:
    """A job on two pools of one to four cards, with little memory."""
    plenty = (0.6, 0.8, 1.0, 1.3, 2)
    return on_the_card(random_setting(seed, 2, layers=(2, 3), cards=(1, 2, 4), batches=(4,), plenty=plenty))


def search(setting: Setting, limits: Limits | None = None) -> tuple[list[Found], Tally]:
    best, tally = Best(5), Tally()
    search_mixed(setting, "test", setting.workload.global_batch, limits or Limits(), best, tally)
    return best.ranked(), tally


def shares(plan: Plan) -> set[int]:
    return {stage.data_parallel for pipe in plan.pipelines for stage in pipe.stages}


@pytest.mark.parametrize("seed", [*SHARED, *OTHERS])
def test_the_first_plan_equals_brute_force(seed: int) -> None:
    setting = setting_of(seed)
    expected, (found, _) = truth(setting), search(setting)
    if expected.plan is None:
        assert not found
        return
    if len(found[0].plan.pipelines) == 1:
        assert found[0].step == pytest.approx(expected.step, rel=1e-12)
    assert found[0].step <= expected.step * (1 + 1e-12)
    assert (shares(expected.plan) == {1}) == (seed in OTHERS)


@pytest.mark.parametrize("seed", SHARED)
def test_a_job_that_says_its_size_shares_nothing_out(seed: int) -> None:
    setting = setting_of(seed)
    free = search(setting)[0][0]
    for size in (1, 2, 4):
        found, _ = search(setting, Limits(micro_batch_size=size))
        assert all(shares(one.plan) == {1} for one in found)
        assert all(one.step > free.step for one in found)


@given(st.integers(0, 40), st.integers(1, 9), st.sampled_from(["none", "selective", "full"]), st.integers(0, 3))
def test_shared_out_on_every_stage_is_more_replicas(seed: int, times: int, mode: str, zero: int) -> None:
    """Two groups that share micro-batches of two on every stage do what twice the replicas do with one each."""
    setting = random_setting(seed, 1, layers=(2, 4), cards=(4,), plenty=(50,))
    layers, pool = len(setting.graph.layers), setting.formation.pools[0].name

    def plan(count: int, size: int, groups: int) -> Plan:
        stages = tuple(
            Stage(pool=pool, first=first, last=last, recompute=mode, data_parallel=groups)
            for first, last in itertools.pairwise([0, layers // 2, layers])
        )
        return plan_of(
            setting, [Pipeline(count=count, micro_batches=times, micro_batch_size=size, stages=stages)], zero
        )

    shared, apart = cost(plan(1, 2, 2), setting), cost(plan(2, 1, 1), setting)
    assert shared.step == pytest.approx(apart.step, rel=1e-12)
    assert [one.bytes for one in shared.stages] == pytest.approx([one.bytes for one in apart.stages], rel=1e-12)
    assert summary(plan(1, 2, 2)) == summary(plan(2, 1, 1))


@given(st.data())
def test_weights_give_a_bound(data: st.DataObject) -> None:
    """No split of layers over unlike pools, kinds and order as they may be, is quicker than what its stages say
    together."""
    rng = random.Random(data.draw(st.integers(0, 10**9)))
    pools, times = rng.randint(1, 4), rng.choice([1, 2, 3, 5, 8, 20])
    depth = [rng.randint(1, 3) for _ in range(pools)]
    deep = sum(depth)
    leading, many, other = rng.randint(0, 2), deep + rng.randint(0, 6), rng.randint(0, 2)
    kinds = [1] * leading + [0] * many
    for _ in range(other):
        kinds.insert(rng.randint(leading + 1, len(kinds)), 1)
    seconds = np.array([[10 ** rng.uniform(-1, 1) for _ in range(pools)] for _ in range(2)])
    stem, head = rng.choice([0.0, rng.random() * 3]), rng.choice([0.0, rng.random() * 3])
    on = [pool for pool, count in enumerate(depth) for _ in range(count)]
    found = []
    for _ in range(60):
        borders = [0, *sorted(rng.sample(range(1, len(kinds)), deep - 1)), len(kinds)]
        loads = np.array(
            [sum(seconds[kind, on[s]] for kind in kinds[a:b]) for s, (a, b) in enumerate(itertools.pairwise(borders))]
        )
        loads[0] += stem
        loads[-1] += head
        found.append(float(schedule_bound(loads, 0.0, times)))
    column = np.array(depth)[:, None]
    lines = Weighed(
        column, seconds[:1].T, np.array([times]), 1.0 * many * column, np.array([float(many)]), np.array([stem]),
        np.array([head]), np.array([[[0.0]] * pools, leading * seconds[1][:, None]]),
        np.array([[[0.0]] * pools, other * seconds[1][:, None]]), many,
    )  # fmt: skip
    assert lines.bound[0] <= min(found) * (1 + 1e-9)
    assert lines.may_be(min(found))[0]
    assert not lines.may_be(float(lines.bound[0]) * 0.999)[0]


def test_alike_stages_count_as_in_the_first_bound() -> None:
    """With all stages alike, each second of a micro-batch counts ``(m + p - 1) / p`` times."""
    depth, none = np.array([[3], [2]]), np.zeros((0, 2, 1))
    found = Weighed(
        depth, np.full((2, 1), 0.5), np.array([20]), np.full((2, 1), 99.0), np.array([99.0]), np.zeros(1), np.zeros(1),
        none, none, 40,
    )  # fmt: skip
    assert found.bound[0] == pytest.approx(40 * 0.5 * (20 + 5 - 1) / 5, rel=1e-12)


# What a person sees.


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    return caller(capsys, monkeypatch)


def with_shares(plan: Plan, stages: int) -> Plan:
    """A plan in micro-batches of two, which so many of its first stages share out."""
    entries = []
    for pipe in plan.pipelines:
        each = [
            stage.model_copy(update={"data_parallel": 2 if index < stages else 1})
            for index, stage in enumerate(pipe.stages)
        ]
        change = {"micro_batches": pipe.micro_batches // 2, "micro_batch_size": 2, "stages": tuple(each)}
        entries.append(pipe.model_copy(update=change))
    return plan.model_copy(update={"pipelines": tuple(entries)})


def write(plan: Plan, folder: Path) -> Path:
    path = folder / "plan.yaml"
    path.write_text(plan.to_yaml(), encoding="utf-8")
    return path


def test_a_micro_batch_is_shared_out_evenly() -> None:
    stage = {"pool": "a", "first": 0, "last": 4, "data_parallel": 2}
    assert Pipeline.model_validate({"micro_batches": 1, "micro_batch_size": 4, "stages": [stage]}).cards == 2
    with pytest.raises(
        ValueError, match=r"stage 0 shares micro-batches of 3 out over data_parallel 2: write a divisor"
    ):
        Pipeline.model_validate({"micro_batches": 1, "micro_batch_size": 3, "stages": [stage]})


@pytest.mark.parametrize("name", TRAINERS)
def test_frameworks_with_one_size_refuse_it(name: str) -> None:
    found = subject("deepseek-v3-pipeline")
    assert isinstance(found.plan, Plan)
    said = one_cut(name).reason(with_shares(found.plan, 1), found)
    assert said == f"stages have micro-batch sizes of their own, and {name} has one for all stages"


TWO_MAKERS = (
    "plan", ROOT / "examples/llama3-70b-train.yaml", "--on", ROOT / "examples/two-makers.yaml",
    "--set", "workload.sequence_length=4096", "--set", "workload.global_batch=256",
)  # fmt: skip


def test_a_plan_that_shares_micro_batches_out_on_the_screen(zhenfa: Call) -> None:
    outcome = zhenfa(*TWO_MAKERS)
    assert outcome.code == 0
    lines = [line.strip() for line in outcome.out.splitlines()]
    first = lines.index("1 replica: 64 micro-batches of 4 sequences, 1F1B")
    assert lines[first - 1] == "Plan 1 TP1-2 PP4 DP1-4 CP4 ZeRO-2"
    assert lines[first + 1 : first + 3] == [
        "stages 0-2: layers 0-50 on nvidia, 17 each, TP2, CP4, selective recomputation",
        "stage 3: layers 51-79 on amd, CP4, 4 groups that share each micro-batch",
    ]


def test_what_is_not_searched_is_said(tmp_path: Path, zhenfa: Call) -> None:
    plan = json.loads(zhenfa(*TWO_MAKERS, "--json").out)["plans"][0]["plan"]
    for groups, words in (
        ((2, 2), "more replicas with smaller ones do the same"),
        ((1, 2), "their bounds are looked at together"),
        ((1, 4), "it is plan 1 of the list"),
    ):
        for stage in plan["pipelines"][0]["stages"]:
            stage["data_parallel"] = groups[stage["pool"] == "amd"]
        write(Plan.from_data(plan), tmp_path)
        outcome = zhenfa(*TWO_MAKERS, "--why", tmp_path / "plan.yaml")
        assert words in " ".join(outcome.out.split())
