"""Every pool computes in one of the precisions that the recipe allows: in the search, in the cost, on the page."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest

from plan_brute import Truth, truth
from plan_pools import dense, machine, model, pool, random_setting
from zhenfa.errors import DocumentError, MissingFactError
from zhenfa.estimate.report import model_flops, precisions, report, speed_of_light
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import cost
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.precision import assignments, by_format, no_format
from zhenfa.plan.search import Best, Found, Tally
from zhenfa.spec.job import Job, Limits, Workload
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Precision, Tier
from zhenfa.spec.plan import Pipeline, Plan, Stage


def with_peaks(held: CardPool, **peaks: float) -> CardPool:
    """A pool whose cards reach other peaks, 0.7 of each."""
    card = held.accelerator
    reached = card.achievable.model_copy(update={"matmul": dict.fromkeys(peaks, card.achievable.matmul["bf16"])})
    data = card.model_dump() | {"peak": peaks, "achievable": reached.model_dump()}
    return replace(held, accelerator=Accelerator.model_validate(data))


def choosing(setting: Setting, allowed: tuple[Precision, ...], *faster: float) -> Setting:
    """The setting with a choice of precision; the cards of each pool reach so many times as much in fp8 (0: none)."""
    pools = []
    for held, times in zip(setting.formation.pools, faster, strict=True):
        peak = held.accelerator.peak["bf16"].value
        assert peak is not None
        pools.append(with_peaks(held, bf16=peak, **({"fp8": times * peak} if times else {})))
    workload = setting.workload.model_copy(update={"precision": allowed})
    return look_up(setting.graph, workload, replace(setting.formation, pools=tuple(pools)))


def search(setting: Setting) -> tuple[list[Found], Tally]:
    best, tally = Best(5), Tally()
    search_mixed(setting, "test", setting.workload.global_batch, Limits(), best, tally)
    return best.ranked(), tally


FASTER = [(2.0,), (1.02,), (0.9,), (2.0, 0.0), (0.0, 1.5), (2.0, 1.1), (1.0, 2.0), (1.3, 0.8)]
CASES = [(seed, faster) for seed in range(3) for faster in FASTER]


@cache
def known(seed: int, faster: tuple[float, ...]) -> tuple[Setting, list[Truth], list[Found]]:
    if len(faster) == 1:
        plain = random_setting(seed, 1, layers=(2, 4), cards=(2, 3))
    else:
        plain = random_setting(10 + seed, 2, layers=(2, 3), cards=(1, 2), batches=(2, 3), plenty=(1.3, 2, 20))
    setting = choosing(plain, ("fp8", "bf16"), *faster)
    return setting, [truth(one) for one in assignments(setting)], search(setting)[0]


@pytest.mark.parametrize(("seed", "faster"), CASES)
def test_the_best_choice_of_precisions_equals_brute_force(seed: int, faster: tuple[float, ...]) -> None:
    setting, truths, found = known(seed, faster)
    assert len(truths) == 2 ** sum(times > 0 for times in faster)
    plans = [one for one in truths if one.plan is not None]
    if not plans:
        assert not found
        return
    best = min(one.step for one in plans)
    alike = len({entry.stages for entry in found[0].plan.pipelines}) == 1
    assert found[0].step == pytest.approx(best, rel=1e-12) if alike else found[0].step < best
    assert cost(found[0].plan, setting).step == found[0].step


def test_each_precision_is_the_best_somewhere() -> None:
    kinds = {tuple(known(*case)[2][0].plan.precision_by_pool().values()) for case in CASES if known(*case)[2]}
    assert {("fp8",), ("bf16",)} <= kinds
    assert kinds & {("fp8", "bf16"), ("bf16", "fp8")}


def two_makers(**fp8: float) -> Formation:
    """Eight fast cards and eight slow ones; those named have fp8 as well, so many times as fast as bf16."""
    tiers = [Tier(name="node", size=8, bandwidth="400 GB/s", latency="2 us")]
    pools = []
    for name, peak in (("fast", 800e12), ("slow", 300e12)):
        held = pool(name, 8, tiers, peak=peak, capacity=80e9, bandwidth=2e12, matmul=0.7)
        pools.append(with_peaks(held, bf16=peak, **({"fp8": fp8[name] * peak} if name in fp8 else {})))
    return machine(*pools)


def looked_up(formation: Formation, precision: Precision | tuple[Precision, ...]) -> Setting:
    graph = model(4096, 32000, [dense(4096, 8, 8, 16384)], [0] * 8)
    return look_up(graph, Workload(sequence_length=2048, global_batch=32, precision=precision), formation)


def over_both(first: Precision, second: Precision | None) -> Plan:
    """A pipeline over both pools."""
    stages = (
        Stage(pool="fast", first=0, last=6),
        Stage(pool="slow", first=6, last=8, precision=second),
    )
    one = Pipeline(micro_batches=32, stages=stages)
    return Plan(job="j", model="small", machine="test-machine", sequence_length=2048, precision=first, pipelines=(one,))


def test_a_stage_costs_what_its_own_precision_costs() -> None:
    """In a mixed plan each stage takes the seconds and holds the bytes that a plan in its precision alone gives it."""
    formation = two_makers(fast=2.0, slow=2.0)
    setting = looked_up(formation, ("fp8", "bf16"))
    apart = {one: cost(over_both(one, None), looked_up(formation, one)).stages for one in ("fp8", "bf16")}
    for first, second in itertools.product(("fp8", "bf16"), repeat=2):
        here, there = cost(over_both(first, second), setting).stages
        for mine, alone in ((here, apart[first][0]), (there, apart[second][1])):
            assert (mine.forward, mine.backward, mine.transfer) == (alone.forward, alone.backward, alone.transfer)
            assert (mine.reduce, mine.optimizer, mine.memory) == (alone.reduce, alone.optimizer, alone.memory)
    assert apart["fp8"][0].forward < apart["bf16"][0].forward
    # activations cross the bridge in bf16 whatever the two ends multiply in; state is kept alike
    assert apart["fp8"][0].transfer == apart["bf16"][0].transfer
    assert apart["fp8"][0].memory["optimizer"] == apart["bf16"][0].memory["optimizer"]


def test_what_is_said_of_a_plan_counts_each_pool_in_its_own_precision() -> None:
    setting = looked_up(two_makers(fast=2.0), ("fp8", "bf16"))
    plan = over_both("fp8", "bf16")
    found = cost(plan, setting)
    assert speed_of_light(plan, setting) == pytest.approx(1600e12 + 300e12)
    # the model's FLOPs are the same in any precision
    alone = looked_up(two_makers(), "bf16")
    same = over_both("bf16", None)
    assert model_flops(plan, setting, found) == pytest.approx(model_flops(same, alone, cost(same, alone)))
    said = report(plan, setting, found)
    assert precisions(plan) == "fp8 on fast, bf16 on slow"
    assert [one.precision for one in said.stages] == ["fp8", "bf16"]
    assert (said.figures.mfu.note or "").endswith("(fp8 on fast, bf16 on slow)")


def test_a_card_without_an_allowed_precision_names_the_way_out() -> None:
    with pytest.raises(MissingFactError) as caught:
        looked_up(two_makers(fast=2.0), "fp8")
    assert "slow-card has no fp8 to compute in" in caught.value.message
    assert (caught.value.hint or "").endswith("Or allow one that it has beside it: workload.precision: [fp8, bf16].")
    setting = looked_up(two_makers(fast=2.0), ("fp8", "bf16"))
    assert {name: setting.precisions(name) for name in setting.chips} == {"fast": ("fp8", "bf16"), "slow": ("bf16",)}
    both, _ = search(setting)
    assert {"fast": "fp8", "slow": "bf16"} in [one.plan.precision_by_pool() for one in both]


def test_pools_without_a_format_in_common_are_planned_apart() -> None:
    formation = two_makers()
    fast, slow = formation.pools
    formation = replace(formation, pools=(fast, with_peaks(slow, fp32=300e12)))
    setting = looked_up(formation, ("bf16", "fp32"))
    assert [[pool.name for pool in one.formation.pools] for one in by_format(setting)] == [["fast"], ["slow"]]
    found, tally = search(setting)
    assert found
    assert all(len(one.plan.cards_by_pool()) == 1 for one in found)
    words = "fast in bf16 and slow in fp32: no number format in common between stages"
    assert no_format(setting) == {words: 1}
    assert tally.rejected[words] == 1


def test_a_document_keeps_precisions_and_refuses_those_that_cannot_meet() -> None:
    plan = over_both("bf16", "fp8")
    assert Plan.from_data(plan.to_data()) == plan
    assert "precision" not in plan.to_data()["pipelines"][0]["stages"][0]
    with pytest.raises(DocumentError, match="no number format in common for what crosses between stages"):
        Plan.from_data(over_both("bf16", None).to_data() | {"precision": "fp16"} | {
            "pipelines": [over_both("bf16", "bf16").to_data()["pipelines"][0]]
        })  # fmt: skip
    data = plan.to_data()
    data["pipelines"][0]["stages"][0]["pool"] = "slow"
    with pytest.raises(DocumentError, match="stages on slow compute in bf16 and in fp8"):
        Plan.from_data(data)


JOB = {"name": "j", "model": "llama-3-8b"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("auto", "precision changes what training computes, so the recipe says what it allows"),
        (["fp8", "auto"], r"write one such as bf16, or a list such as \[fp8, bf16\]"),
        (["fp8", "fp8"], "precision names one twice: fp8, fp8"),
    ],
)
def test_a_job_says_what_its_recipe_allows(said: object, words: str) -> None:
    workload = {"sequence_length": 8, "global_batch": 8, "precision": said}
    with pytest.raises(DocumentError, match=words):
        Job.from_data(JOB | {"workload": workload})


def test_a_job_reads_back_with_its_list() -> None:
    workload = {"sequence_length": 8, "global_batch": 8, "precision": ["fp8", "bf16"]}
    job = Job.from_data(JOB | {"workload": workload})
    assert Job.from_data(job.to_data()) == job
    assert isinstance(job.workload, Workload)
    assert job.workload.precisions == ("fp8", "bf16")
