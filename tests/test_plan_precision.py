"""Every pool computes in one of the precisions that the recipe allows: in the search, in the cost, on the page."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from cli_runner import ROOT, Call, caller
from emit_plans import file_of, subject
from plan_brute import Truth, truth
from plan_pools import dense, machine, model, pool, random_setting
from zhenfa.errors import DocumentError, MissingFactError
from zhenfa.estimate.report import model_flops, precisions, report, speed_of_light
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import cost
from zhenfa.plan.emit import emit, rules
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
    assert caught.value.message.startswith("slow-card.peak.fp8 is undisclosed")
    assert (caught.value.hint or "").endswith("Or allow one that it has beside it: workload.precision: [fp8, bf16].")
    with pytest.raises(MissingFactError, match="slow-card has no fp8 or fp4 to compute in") as caught:
        looked_up(two_makers(fast=2.0), ("fp8", "fp4"))
    assert (caught.value.hint or "").endswith("beside them: workload.precision: [fp8, fp4, bf16].")
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
    assert tally.refused[words] == 1


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


# On the screen, in the document, written out.


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    (tmp_path / "machine.yaml").write_text(
        (ROOT / "examples" / "our-cluster.yaml").read_text(encoding="utf-8").replace("count: 64", "count: 8"),
        encoding="utf-8",
    )
    (tmp_path / "job.yaml").write_text(
        "{name: both, model: llama3-8b, machine: machine.yaml, "
        "workload: {sequence_length: 4096, global_batch: 32, precision: [fp8, bf16]}, "
        "limits: {micro_batch_size: 1, max_context_parallel: 1, max_pipeline_parallel: 4}}",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_the_page_says_which_maker_computes_in_what(zhenfa: Call, columns: int) -> None:
    shown = zhenfa("plan", "job.yaml", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    text = " ".join(shown.out.split())
    assert "32 sequences x 4,096 tokens a step, fp8 or bf16" in text
    assert "matmuls in fp8" in text
    assert "matmuls in bf16" in text
    assert "fp8 on fast, bf16 on wide" in text or "bf16 on wide, fp8 on fast" in text
    head, first = next(
        (line, shown.out.splitlines()[at + 1])
        for at, line in enumerate(shown.out.splitlines())
        if line.startswith("#  layout")
    )
    assert (" in " in head) == (columns >= 80)
    assert ("fp8 + bf16" in first or "bf16 + fp8" in first) == (columns >= 80)


def test_the_document_says_it_of_every_stage(zhenfa: Call) -> None:
    shown = zhenfa("plan", "job.yaml", "--json")
    best = json.loads(shown.out)["plans"][0]
    said = {one["pool"]: one["precision"] for one in best["stages"]}
    assert said == {"fast": "fp8", "wide": "bf16"}
    assert best["bridge"]["activations"] == "bf16"
    assert best["bridge"]["gradients"] in {"fp32", "16 bits"}
    plan = Plan.from_data(best["plan"])
    assert plan.precision == "bf16"
    assert plan.precision_by_pool() == said


def test_why_tries_other_precisions(zhenfa: Call, tmp_path: Path) -> None:
    best = Plan.from_data(json.loads(zhenfa("plan", "job.yaml", "--json").out)["plans"][0]["plan"])
    pipelines = tuple(
        one.model_copy(update={"stages": tuple(stage.model_copy(update={"precision": None}) for stage in one.stages)})
        for one in best.pipelines
    )
    (tmp_path / "mine.yaml").write_text(best.model_copy(update={"pipelines": pipelines}).to_yaml(), encoding="utf-8")
    shown = zhenfa("plan", "job.yaml", "--why", "mine.yaml", columns=120)
    assert shown.code == 0, shown.err
    assert "precision on fast: fp8 instead of bf16" in " ".join(shown.out.split())
    assert any(line.split()[:3] == ["precision", "fp8", "on"] or "precision" in line for line in shown.out.splitlines())
    four = (tmp_path / "mine.yaml").read_text(encoding="utf-8").replace("precision: bf16", "precision: fp4")
    (tmp_path / "four.yaml").write_text(four, encoding="utf-8")
    refused = zhenfa("plan", "job.yaml", "--why", "four.yaml")
    assert refused.code == 2
    assert "four.yaml: precision is 'fp4', but the job's is one of fp8, bf16." in " ".join(refused.err.split())


def test_what_is_written_for_hosts_names_their_precision(zhenfa: Call, tmp_path: Path) -> None:
    """Clusters take both makers, each host its own; a framework of one grid takes one precision, or is refused."""
    shown = zhenfa("plan", "job.yaml", "--out", "plan.yaml")
    assert shown.code == 0, shown.err
    done = zhenfa("emit", "plan.yaml", "--to", "slurm", "--job", "job.yaml", "--out", "slurm")
    assert done.code == 0, done.err
    text = (tmp_path / "slurm" / "job.sbatch").read_text(encoding="utf-8")
    assert "POOL=fast BACKEND=nccl PRECISION=fp8" in text
    assert "POOL=wide BACKEND=hccl PRECISION=bf16" in text
    assert "every host finds its own in PRECISION" in " ".join(done.err.split())
    for target, words in (("k8s", "name: PRECISION"), ("ray", '"precision": "fp8"')):
        assert zhenfa("emit", "plan.yaml", "--to", target, "--job", "job.yaml", "--out", target).code == 0
        assert any(words in path.read_text(encoding="utf-8") for path in (tmp_path / target).iterdir())


def test_a_framework_with_one_precision_is_told_so() -> None:
    there = subject("llama3-8b-interleaved")
    plan = there.training
    (name,) = plan.cards_by_pool()
    formation = there.formation
    two = replace(there, formation=replace(formation, pools=(*formation.pools, replace(formation.pools[0], name="b"))))
    entry = plan.pipelines[0].model_copy(update={"count": 1})
    stages = tuple(stage.model_copy(update={"pool": "b", "precision": "fp8"}) for stage in entry.stages)
    mixed = plan.model_copy(update={"pipelines": (entry, entry.model_copy(update={"stages": stages}))})
    rule = rules.precisions("Megatron-LM", ("bf16", "fp8"))
    words = f"{name} computes in bf16 and b computes in fp8, and Megatron-LM has one precision for all stages"
    assert rule.reason(mixed, two) == words
    (near,) = rule.change(mixed, two)
    assert not rule.reason(near, two)
    assert set(near.precision_by_pool().values()) == {"bf16"}
    script = file_of(emit(two.with_plan(plan.model_copy(update={"precision": "fp8"})), "megatron"), "megatron.sh")
    assert "--fp8-format" in script
