"""Why a plan lost: parts, constraints, single changes and the searched space, of plans listed and brought."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import zhenfa
from cli_runner import Call, caller, fill
from zhenfa.errors import DocumentError, InputError, UnknownNameError
from zhenfa.estimate.training import cost
from zhenfa.plan.change import Form, changes
from zhenfa.plan.explain import Why, explain
from zhenfa.plan.given import read_plan
from zhenfa.spec.job import Limits
from zhenfa.spec.plan import Pipeline, Plan

JOB = {
    "name": "small",
    "model": "llama3-8b",
    "machine": "hgx-h100",
    "workload": {"task": "train", "sequence_length": 4096, "global_batch": 64},
}
SCHEMA = json.loads((Path(__file__).parent.parent / "docs/schemas/zhenfa.plans.1.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answer() -> zhenfa.Answer:
    return zhenfa.plan(JOB, top=5)


@pytest.fixture(scope="module")
def mixed() -> zhenfa.Answer:
    return zhenfa.plan(Path(__file__).parent.parent / "examples/mixed-pretrain.yaml")


def stage(last: int = 32, **more: object) -> dict[str, object]:
    return {"pool": "nvidia", "first": 0, "last": last, **more}


def own(answer: zhenfa.Answer, **changed: object) -> Plan:
    """Return a plan with one pipeline: whole replicas on one card each, unless said otherwise."""
    data = answer.best.plan.to_data()
    pipe = {"count": 8, "micro_batches": 8, "micro_batch_size": 1, "stages": [stage()]}
    given = {"pipelines": [pipe], "zero": 2, **changed}
    return Plan.from_data({**data, **given})


def pipes(*stages: dict[str, object], **more: object) -> list[dict[str, object]]:
    return [{"count": 8, "micro_batches": 8, "stages": list(stages), **more}]


def check(why: Why) -> None:
    """Compare what must hold of every answer."""
    if why.step is not None and why.parts and why.step < float("inf"):
        assert sum(one.gap for one in why.parts) == pytest.approx(why.step - why.first_step, abs=1e-9)
    assert why.searched.words
    for one in why.changes:
        assert one.barred or one.score is not None
        if not one.barred:
            assert one.cost is not None
            assert not one.cost.problem
    scores = [one.score for one in why.possible]
    assert scores == sorted(scores)  # type: ignore[type-var]


def test_every_plan_of_the_list_is_explained(answer: zhenfa.Answer) -> None:
    for one in answer.plans:
        why = explain(answer, one.rank)
        check(why)
        assert not why.problems
        assert why.searched.contained
        assert why.searched.words[-1] == f"it is plan {one.rank} of the list"
        assert why.step == one.cost.step
    assert not explain(answer, 1).differences
    assert {one.what for one in explain(answer, 3).differences} & {"TP", "PP", "DP", "micro-batch size"}


def test_no_single_change_beats_the_first_plan(answer: zhenfa.Answer, mixed: zhenfa.Answer) -> None:
    for found in (answer, mixed):
        first = explain(found, 1)
        best = first.nearest
        assert best is None or best.step == pytest.approx(first.first_step, rel=0.02), best


def test_a_change_is_costed_for_real(answer: zhenfa.Answer) -> None:
    plan = own(answer, pipelines=pipes(stage(recompute="full")))
    why = explain(answer, plan)
    check(why)
    by_words = {one.words: one for one in why.changes}
    change = by_words["recomputation: none instead of full"]
    assert change.plan is not None
    again = cost(change.plan, answer.setting)
    assert (again.step, bool(again.problem)) == (change.step, bool(change.barred))
    form = Form.of(change.plan)
    assert form is not None
    assert form.recompute == 0
    assert why.nearest is not None
    assert why.nearest.step is not None
    assert why.step is not None
    assert why.nearest.step < why.step


def test_a_plan_that_does_not_fit_says_by_how_much_and_which_part(answer: zhenfa.Answer) -> None:
    why = explain(answer, own(answer, zero=0), name="mine.yaml")
    check(why)
    assert why.name == "mine.yaml"
    (problem,) = why.problems
    assert problem.startswith("stage 0: ")
    assert "GB too much on each nvidia card: " in problem
    assert " of 81.2 GB usable (optimizer " in problem
    assert why.estimate is None
    assert any("does not fit in memory" in words for words in why.searched.words)
    assert why.nearest is not None
    assert not why.nearest.barred


def test_what_bars_a_quicker_change_is_what_bound_it(answer: zhenfa.Answer) -> None:
    found = [explain(answer, own(answer, pipelines=pipes(stage(recompute=mode)))) for mode in ("selective", "full")]
    kinds = {one.kind for why in found for one in why.constraints}
    assert "memory" in kinds
    for why in found:
        assert why.step is not None
        for one in why.constraints:
            assert one.seconds is None or one.seconds > 0
            if "off the step, but" in one.words:
                assert one.seconds is not None
                assert one.seconds < why.step
        known = [one.seconds for one in why.constraints if one.seconds is not None]
        assert known == sorted(known, reverse=True)


def test_limits_of_the_job_bind(answer: zhenfa.Answer) -> None:
    job = {**JOB, "limits": {"max_cards": 4, "max_tensor_parallel": 2, "micro_batch_size": 1}}
    limited = zhenfa.plan(job, top=2)
    tried = changes(limited.best.plan, limited.setting, Limits(**job["limits"]))  # type: ignore[arg-type]
    barred = {one.barred for one in tried if one.by == "limits"}
    assert barred >= {"limits.max_cards is 4", "limits.micro_batch_size is 1"}
    why = explain(limited, answer.best.plan)
    assert why.problems[0] == "takes 8 cards, and limits.max_cards is 4"
    assert any(one.kind == "cards" and one.words.startswith("idle: ") for one in explain(limited, 1).constraints)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"offload": "activations"}, "offload activations: searched are none, optimizer"),
        ({"shard_group": 4}, "shard_group 4: the search leaves it as it is usual"),
        ({"pipelines": pipes(stage(recompute="selective", recompute_layers=4))}, "of some layers of a stage"),
        (
            {"pipelines": pipes(stage(tensor_parallel=1), count=8, micro_batches=1, micro_batch_size=8)}
            | {"zero": 3}, "",
        ),
    ],
)  # fmt: skip
def test_what_is_never_searched_is_named(answer: zhenfa.Answer, changed: dict[str, object], words: str) -> None:
    why = explain(answer, own(answer, **changed))
    check(why)
    assert why.searched.contained is (not words)
    assert any(words in one for one in why.searched.words)


def test_a_schedule_that_the_job_leaves_out_is_not_searched() -> None:
    narrow = zhenfa.plan({**JOB, "limits": {"schedules": ["interleaved"]}}, top=2)
    deep = [{**stage(16), "first": 0}, {**stage(32), "first": 16}]
    why = explain(narrow, own(narrow, zero=1, pipelines=pipes(*deep, count=4, micro_batches=16)))
    check(why)
    assert why.searched.contained is False
    assert "schedule 1f1b: searched are interleaved" in why.searched.words
    assert explain(narrow, own(narrow)).searched.contained is True


def test_a_degree_that_straddles_a_tier_is_not_searched() -> None:
    machine = {
        "name": "odd",
        "pools": [{"name": "p", "accelerator": "nvidia-h100-sxm", "count": 12, "tiers": [
            {"name": "node", "size": 6, "bandwidth": "450 GB/s", "latency": "1 us"},
            {"name": "net", "size": 12, "bandwidth": "50 GB/s", "latency": "5 us"}]}],
    }  # fmt: skip
    found = zhenfa.plan({**JOB, "machine": machine}, top=1)
    plan = Plan.from_data({
        **found.best.plan.to_data(),
        "zero": 1,
        "pipelines": [{"count": 2, "micro_batches": 32, "stages": [{"pool": "p", "first": 0, "last": 32,
                                                                    "tensor_parallel": 4}]}],
    })  # fmt: skip
    why = explain(found, plan)
    assert why.searched.contained is False
    assert why.searched.words[0].startswith("tensor parallelism of 4, which straddles the innermost tier: searched are")


def test_a_plan_left_out_says_by_which_bound(answer: zhenfa.Answer) -> None:
    plan = own(answer, zero=3, pipelines=pipes(stage(tensor_parallel=8), count=1, micro_batches=64))
    why = explain(answer, plan.model_copy(update={"zero": 0}))
    if not why.problems:
        assert why.searched.contained
        assert "left out by its bound: no split of its layers takes less than " in why.searched.words[-1]


def test_plans_over_several_pools(mixed: zhenfa.Answer) -> None:
    for one in mixed.plans:
        why = explain(mixed, one.rank)
        check(why)
        assert why.searched.contained in (True, None)
        assert not why.problems
    several = next(one for one in mixed.plans if len(one.plan.cards_by_pool()) > 1)
    words = {change.what for change in explain(mixed, several.rank).changes}
    assert any(one.startswith("recomputation on ") for one in words)
    first = several.plan.pipelines[0]
    back = Pipeline.model_validate({**first.model_dump(), "stages": [one.model_dump() for one in first.stages]})
    assert back == first


def test_a_plan_for_something_else_is_refused_with_a_hint(answer: zhenfa.Answer, tmp_path: Path) -> None:
    data = answer.best.plan.to_data()
    wrong = {
        "model": ("llama3-70b", InputError, "model is 'llama3-70b', but the job's is 'llama3-8b'"),
        "machine": ("hgx-b200", InputError, "--on hgx-b200"),
        "sequence_length": (8192, InputError, "sequence_length is 8192"),
        "precision": ("fp8", InputError, "precision is 'fp8'"),
        "pipelines": (pipes(stage(), count=4), InputError, "sequences of a step is 32, but the job's is 64"),
        "schedule": ("1f1bb", DocumentError, "1f1b"),
    }  # fmt: skip
    for key, (value, error, words) in wrong.items():
        path = tmp_path / f"{key}.yaml"
        path.write_text(json.dumps({**data, key: value}), encoding="utf-8")
        with pytest.raises(error) as caught:
            read_plan(path, answer.request)
        assert words in str(caught.value), key
        assert isinstance(caught.value, zhenfa.ZhenfaError)
        assert caught.value.hint
    elsewhere = {**data, "pipelines": pipes({**stage(), "pool": "nvidiaa"})}
    with pytest.raises(UnknownNameError, match="nvidia"):
        explain(answer, Plan.from_data(elsewhere))


def test_a_plan_that_no_schedule_runs(answer: zhenfa.Answer) -> None:
    bounds = [0, 11, 22, 32]
    stages = [{"pool": "nvidia", "first": one, "last": bounds[at + 1]} for at, one in enumerate(bounds[:-1])]
    entry = {"count": 1, "micro_batches": 64, "micro_batch_size": 1, "stages": stages}
    found = answer
    data = {**found.best.plan.to_data(), "schedule": "dualpipe", "zero": 0, "pipelines": [entry]}
    why = explain(found, Plan.from_data(data))
    check(why)
    assert why.problems
    assert why.step is None
    crowded = explain(answer, own(answer, pipelines=pipes(stage(tensor_parallel=2), count=8)))
    assert crowded.problems[0] == "takes 16 cards of nvidia, which has 8"


def test_another_objective_decides(answer: zhenfa.Answer) -> None:
    priced = {**JOB, "objective": "cards", "limits": {"tokens_per_s": "10000 tokens/s"}}
    found = zhenfa.plan(priced, top=3)
    why = explain(found, answer.best.plan)
    check(why)
    assert why.longer is not None
    assert why.longer < 0
    assert why.behind is not None
    assert why.behind > 0


# On the screen.


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_plan_of_ones_own_on_the_screen(command: Call, answer: zhenfa.Answer, tmp_path: Path, columns: int) -> None:
    (tmp_path / "mine.yaml").write_text(own(answer, zero=0).to_yaml(), encoding="utf-8")
    shown = command("plan", "small.yaml", "--why", "mine.yaml", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    heads = ["Why mine.yaml cannot run (TP1 PP1 DP8)", "What differs in the layout", "What bound it",
             "One change at a time", "Searched (yes)"]  # fmt: skip
    places = [shown.out.index(f"\n{head}") for head in heads]
    assert places == sorted(places)
    assert "GB too much on each nvidia" in shown.out.replace("\n    ", " ")
    assert "\n  ZeRO stage" in shown.out


@pytest.mark.parametrize("columns", [80, 120])
def test_a_slower_plan_on_the_screen(command: Call, answer: zhenfa.Answer, tmp_path: Path, columns: int) -> None:
    (tmp_path / "mine.yaml").write_text(own(answer, pipelines=pipes(stage(recompute="full"))).to_yaml(), "utf-8")
    shown = command("plan", "small.yaml", "--why", "mine.yaml", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    block = shown.out.partition("\nWhy mine.yaml lost (")[2].partition("\n\n")[0].splitlines()
    assert block[1].split() == ["part", "of", "the", "step", "plan", "1", "yours", "difference", "share"]
    assert block[2].split()[0] == "recomputation"
    assert block[-1].split()[0] == "step"
    assert " brings it nearest to plan 1: " in " ".join(shown.out.split())
    assert "\n  MFU " in shown.out
    assert "\n  communication wall " in shown.out
    assert "\n  memory: weights " in shown.out


def test_why_in_json(command: Call, answer: zhenfa.Answer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(own(answer, zero=0).to_yaml(), encoding="utf-8")
    for plan in ("mine.yaml", "2"):
        shown = json.loads(command("plan", "small.yaml", "--why", plan, "--json").out)
        jsonschema.validate(shown, SCHEMA)
        assert shown["why"]["changes"]
        assert bool(shown["why"]["problems"]) == (plan == "mine.yaml")
    assert json.loads(command("plan", "small.yaml", "--json").out)["why"] is None


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        ("nothere.yaml", "there is no file 'nothere.yaml'"),
        ("small.yaml", "zhenfa.plan/1"),
        ("1", "1 is not between 2 and 100"),
        ("best", "'best' is not a whole number"),
    ],
)
def test_what_is_no_plan_is_said(command: Call, plan: str, error: str) -> None:
    shown = command("plan", "small.yaml", "--why", plan)
    assert (shown.code, shown.out) == (2, "")
    assert error in shown.err
