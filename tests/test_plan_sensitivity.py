"""Sensitivity: every input moves what it should, in the direction that it should, and the widest comes first."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pytest

import zhenfa
from cli_runner import Call, caller, fill
from zhenfa import catalog
from zhenfa.estimate.training import cost
from zhenfa.plan.inputs import Input, inputs
from zhenfa.plan.sensitivity import Outcome, Row, Sensitivity, outcome, sensitivity

ROOT = Path(__file__).parent.parent
JOB = {
    "name": "small",
    "model": "llama3-8b",
    "machine": "hgx-h100",
    "workload": {"task": "train", "sequence_length": 4096, "global_batch": 64},
}
SCHEMA = json.loads((ROOT / "docs/schemas/zhenfa.plans.1.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answer() -> zhenfa.Answer:
    return zhenfa.plan(JOB, top=1)


@pytest.fixture(scope="module")
def found(answer: zhenfa.Answer) -> Sensitivity:
    return sensitivity(answer, searched=2)


def rows(found: Sensitivity) -> dict[str, Row]:
    return {row.input.name: row for row in found.rows}


def test_every_number_is_moved(found: Sensitivity) -> None:
    names = {*rows(found), *found.still}
    assert names >= {
        "nvidia.peak.bf16", "nvidia.memory.bandwidth", "nvidia.memory.capacity", "nvidia.achievable.matmul.bf16",
        "nvidia.achievable.attention.bf16", "nvidia.achievable.memory", "nvidia.achievable.launch",
        "nvidia.tiers.node.bandwidth", "nvidia.tiers.node.latency", "nvidia.failures.card",
        "hgx-h100.failures.software", "workload.global_batch", "workload.sequence_length",
    }  # fmt: skip
    assert len(names) == len(found.rows) + len(found.still), "none stands twice"


def test_the_widest_comes_first_and_elasticity_is_of_the_ends(found: Sensitivity) -> None:
    keys = [row.key for row in found.rows]
    assert keys == sorted(keys, reverse=True)
    for row in found.rows:
        assert row.input.low < 1 < row.input.high
        assert row.span() >= 0
        if row.elasticity is not None:
            by = row.high.answer / row.low.answer
            assert by == pytest.approx((row.input.high / row.input.low) ** row.elasticity)
    assert found.share(found.rows[0]) == 1.0


def test_more_of_what_is_good_makes_it_quicker(found: Sensitivity) -> None:
    by_name = rows(found)
    for name in ("nvidia.peak.bf16", "nvidia.memory.bandwidth", "nvidia.achievable.matmul.bf16",
                 "nvidia.achievable.memory", "nvidia.failures.card", "hgx-h100.failures.software"):  # fmt: skip
        low, high = by_name[name].ends()
        assert low > 0 > high, name
        assert (by_name[name].elasticity or 0) < 0
    low, high = by_name["nvidia.failures.card"].ends("step")
    assert (low, high) == (0, 0), "failures do not change the step"
    low, high = by_name["nvidia.achievable.launch"].ends()
    assert low < 0 < high


def test_what_is_shown_is_what_the_laws_say(answer: zhenfa.Answer, found: Sensitivity) -> None:
    plan, setting = answer.best.plan, answer.setting
    assert found.now == outcome(plan, setting, answer.goal)
    one = next(one for one in inputs(plan, setting) if one.name == "nvidia.peak.bf16")
    moved, same = one.move(1.0)
    assert cost(same, moved).step == answer.best.cost.step
    before = cost(plan, setting).step
    faster, _ = one.move(2.0)
    assert cost(plan, faster).step < before
    assert cost(plan, setting).step == before, "nothing of what is moved stays behind"
    assumed = {"hgx-h100.peak.bf16": 2 * (one.value or 0)}
    doubled = zhenfa.plan(JOB, assume=assumed, top=1)
    assert cost(plan, doubled.setting).step == pytest.approx(cost(plan, faster).step)


def test_names_are_those_that_assume_takes(answer: zhenfa.Answer) -> None:
    machine = catalog.machine("hgx-h100")
    for one in inputs(answer.best.plan, answer.setting):
        if one.asked == "maker" and one.value is not None and not one.name.endswith(".tdp"):
            unit = {"rate": "B/s", "data": "B", "time": "s", "speed": "FLOP/s", "ratio": "", "power": "W"}[
                one.dimension
            ]
            catalog.resolve(machine, {one.name: f"{one.value} {unit}".strip()})


def test_the_search_is_run_again_for_the_widest() -> None:
    found = sensitivity(zhenfa.plan(JOB, assume={"hgx-h100.memory.capacity": "80 GB"}, top=1), searched=2)
    again = [row for row in found.rows if row.searched]
    assert found.research == len(again) == 2
    stopped = [row for row in found.rows if row.low.problem]
    assert [row.input.name for row in stopped] == ["nvidia.memory.capacity"], "with less memory it no longer fits"
    assert stopped[0].searched
    assert all(other.better > 0 for row in again for other in row.others)
    assert any(other.at < 1 for other in stopped[0].others), "another plan takes its place"


def test_what_to_ask_first_is_the_widest_that_is_not_sure(found: Sensitivity) -> None:
    first = found.ask_first
    assert first is not None
    assert first.input.tag in ("assumed", "claim")
    wider = found.rows[: found.rows.index(first)]
    assert not [row for row in wider if row.input.tag in ("assumed", "claim") and row.input.asked]
    assumed = sensitivity(zhenfa.plan(JOB, "scalex640", assume={"scalex-card.memory.capacity": "96 GB"}, top=1),
                          searched=0)  # fmt: skip
    tags = {row.input.name: row.input.tag for row in assumed.rows}
    tags |= dict.fromkeys(assumed.still, "still")
    assert tags[next(name for name in tags if name.endswith(".memory.capacity"))] in ("assumed", "still")


def test_emulated_cards_have_no_failures_and_no_energy() -> None:
    emulated = sensitivity(zhenfa.plan(ROOT / "examples/mixed-pretrain.yaml", top=1), searched=0)
    assert not [row for row in emulated.rows if "failures" in row.input.name]
    assert all(row.now.energy is None for row in emulated.rows)
    assert all(math.isfinite(row.span()) for row in emulated.rows)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


@pytest.mark.parametrize("columns", [80, 120])
def test_on_the_screen(command: Call, found: Sensitivity, columns: int) -> None:
    shown = command("plan", "small.yaml", "--sensitivity", "--top", 1, columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    block = shown.out.partition("\nWhat moves the answer most (")[2].partition("\n\n")[0]
    lines = block.splitlines()
    assert any(line.split()[:1] == ["input"] for line in lines)
    assert found.rows[0].input.name.split(".")[0] in block
    assert "██████████" in block
    assert "first: " in block
    assert ("energy" in block.split("achievable")[0].split("moved by")[1]) == (columns == 120)


def test_in_json(command: Call) -> None:
    shown = json.loads(command("plan", "small.yaml", "--sensitivity", "--json").out)
    jsonschema.validate(shown, SCHEMA)
    spans = [row["span"] for row in shown["sensitivity"]["inputs"]]
    assert spans == sorted(spans, reverse=True)
    assert shown["sensitivity"]["ask_first"]
    assert json.loads(command("plan", "small.yaml", "--json").out)["sensitivity"] is None


def test_what_keeps_a_plan_from_running_has_no_elasticity() -> None:
    runs, cannot = Outcome(2.0, 1.0, None), Outcome(float("inf"), float("inf"), None, "misses a target")
    one = Input("memory", 1.0, "data", "assumed", 0.5, 2.0, "", "maker", lambda _: None)
    assert Row(one, runs, runs, runs).elasticity == 0.0
    for low, high in ((cannot, runs), (runs, cannot), (cannot, cannot)):
        row = Row(one, runs, low, high)
        assert row.elasticity is None
        assert row.moves
