"""``zhenfa compare``: the contest itself, its screens, its document, its picture, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from jsonschema import Draft202012Validator

from cli_runner import SMALL, Call, Outcome, caller, fill
from zhenfa import catalog
from zhenfa.cli import schemas
from zhenfa.errors import InputError, UnknownNameError
from zhenfa.plan import find_plans, make_request, merit
from zhenfa.plan.best_plan import LOST, of_training
from zhenfa.plan.compare import Comparison, Entry, compare, enter, plan_one
from zhenfa.plan.contest_documents import ComparisonDocument
from zhenfa.spec.job import Job, Workload
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.result import Estimate, Figure, Figures, Walls

FOUR = ("hgx-h100", "hgx-h20", "hgx-b200", "sd200")
JOB = Job(name="small", model="llama3-8b", workload=Workload(sequence_length=4096, global_batch=64))

PLAN = Plan(
    job="j", model="m", machine="x", sequence_length=1, precision="bf16",
    pipelines=(Pipeline(micro_batches=1, stages=(Stage(pool="nvidia", first=0, last=1),)),),
)  # fmt: skip
FORMATION = catalog.resolve(catalog.machine("hgx-h100"))

NODE = """\
schema: zhenfa.machine/1
name: {name}
pools:
- name: {pool}
  accelerator:
    id: {pool}-card
    maker: somebody
    name: a card
    peak: {{bf16: 500 TFLOPS}}
    memory: {{capacity: {memory}, bandwidth: 2 TB/s}}
    tdp: 500 W
    {price}
  count: 8
  tiers: [{{name: node, size: 8, bandwidth: 300 GB/s, latency: 2 us}}]
"""


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    for name, memory, price in (("ours", "96 GB", "price: 18 CNY/h"), ("tiny", "1 GB", "")):
        text = NODE.format(name=name, pool=name, memory=memory, price=price)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "serving.yaml").write_text(
        SMALL.partition("workload")[0] + "workload: {task: serve, input_length: 100, output_length: 10, "
        "tpot_target: 50 ms}\n", encoding="utf-8",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


@pytest.fixture(scope="module")
def contest() -> Comparison:
    return compare(JOB, enter(JOB, FOUR), processes=1)


# The contest.


def test_each_machine_has_its_own_best_plan(contest: Comparison) -> None:
    assert [entry.name for entry in contest.entries] == ["hgx-b200", "hgx-h100", "hgx-h20", "sd200"]
    for entry in contest.planned:
        best = find_plans(make_request(JOB, on=entry.name), top=1).best
        assert entry.best is not None
        assert entry.best.plan == best.plan
        assert entry.best.figures == best.estimate.figures


def test_a_machine_without_a_plan_stays_in_with_its_reason(contest: Comparison) -> None:
    last = contest.entries[-1]
    assert last.best is None
    assert last.problem is not None
    assert last.problem.kind == "missing fact"
    assert "inspur-sd200-card.peak.bf16 is undisclosed" in last.problem.message
    assert "--assume inspur-sd200-card.peak.bf16=" in (last.problem.hint or "")
    assert contest.rank(last) is None


def test_several_processes_give_the_same_answer(contest: Comparison) -> None:
    def plain(found: Comparison) -> list[Any]:
        return [replace(entry, seconds=0.0) for entry in found.entries]

    assert plain(compare(JOB, enter(JOB, FOUR), processes=2)) == plain(contest)


@pytest.mark.parametrize("by", ["throughput", "card", "power", "cost"])
def test_ranked_by_what_was_asked(by: Any) -> None:
    assume = {"nvidia-h100-sxm.price": "30 CNY/h", "nvidia-h20-sxm.price": "2 CNY/h"}
    found = compare(JOB, enter(JOB, FOUR, assume=assume), by=by, processes=1)
    values = [entry.measure(by).value for entry in found.ranked]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    names = [entry.name for entry in found.entries]
    assert names[-1] == "sd200"
    if by == "cost":
        assert names[:2] == ["hgx-h20", "hgx-h100"]
        assert names[2] == "hgx-b200", "a machine without a price comes after those with one"
        assert len(found.ranked) == 2
        assert found.unpriced == ("nvidia-b200-sxm",)


def test_what_a_plan_is_worth_is_counted_from_its_figures(contest: Comparison) -> None:
    entry = compare(JOB, enter(JOB, FOUR[:2], assume={"nvidia-h100-sxm.price": "36 CNY/h"}), processes=1).entries[0]
    assert entry.best is not None
    figures, power = entry.best.figures, entry.best.operating.facility_power_w.value
    assert entry.per_kilowatt.value == pytest.approx(figures.tokens_per_s.value / (power / 1000))  # type: ignore[operator]
    lasting = figures.ettr.value
    assert entry.per_money.value == pytest.approx(figures.tokens_per_s.value * lasting * 3600 / (8 * 36))  # type: ignore[operator]
    assert entry.per_money.tag == "assumed"
    for one in (entry.per_kilowatt, entry.per_money):
        assert one.p10 < one.value < one.p90  # type: ignore[operator]


def test_equal_size_is_the_smallest_plan(contest: Comparison) -> None:
    found = compare(JOB, enter(JOB, ("hgx-h100", "gb200-nvl72")), processes=1)
    assert found.equal_cards == 8
    for entry in found.planned:
        each = entry.best.figures.tokens_per_s_per_card.value  # type: ignore[union-attr]
        assert found.at_equal_cards(entry).value == pytest.approx(8 * each)  # type: ignore[operator]
    least = min(found.planned, key=lambda entry: entry.best.operating.facility_power_w.value)  # type: ignore
    assert found.at_equal_power(least).value == pytest.approx(least.best.figures.tokens_per_s.value)  # type: ignore


def test_bands_that_overlap_cannot_be_told_apart(contest: Comparison) -> None:
    for one in contest.ranked:
        level = contest.level_with(one)
        for other in contest.ranked:
            mine, others = one.measure("throughput"), other.measure("throughput")
            apart = mine.p10 > others.p90 or others.p10 > mine.p90  # type: ignore[operator]
            assert (other in level) == (one is not other and not apart)
    pairs = {frozenset({one.name, other.name}) for group in contest.level for one in group for other in group}
    assert {pair for pair in pairs if len(pair) == 2} == {
        frozenset({one.name, other.name}) for one in contest.ranked for other in contest.level_with(one)
    }
    assert not merit.overlap(Figure(value=1.0), Figure(value=1.0, p10=0.5, p90=2.0)), "no band, no word"


@given(some.lists(some.tuples(some.floats(0, 100), some.floats(0, 50)), min_size=1, max_size=7))
def test_groups_hold_exactly_the_pairs_that_overlap(bands: list[tuple[float, float]]) -> None:
    entries = []
    for number, (low, wide) in enumerate(bands):
        rate = Figure(value=low + wide / 2, unit="tokens/s", p10=low, p90=low + wide)
        best = of_training(Estimate(plan=PLAN, figures=Figures(tokens_per_s=rate), walls=Walls()))
        entries.append(Entry(str(number), "", FORMATION, best))
    found = Comparison(JOB, "throughput", tuple(entries), None, 0.0)
    pairs = {(one.name, other.name) for group in found.level for one in group for other in group if one is not other}
    assert pairs == {(one.name, other.name) for one in entries for other in found.level_with(one)}
    members = [{one.name for one in group} for group in found.level]
    assert not any(one < other for one in members for other in members)


def test_the_parts_of_the_bar_add_up(contest: Comparison) -> None:
    for entry in contest.planned:
        shares = contest.shares(entry)
        assert sum(shares.values()) == pytest.approx(1.0)
        assert shares[LOST] == pytest.approx(1 - entry.best.figures.ettr.value)  # type: ignore


def test_cards_of_each(contest: Comparison) -> None:
    found = compare(JOB, enter(JOB, ("hgx-h100", "gb200-nvl72", "baidu-kunlun-64"), cards=80), processes=1)
    counts = {entry.name: entry.formation.cards for entry in found.planned if entry.formation}
    assert counts == {"hgx-h100": 80, "gb200-nvl72": 80}
    small = found.entries[-1]
    assert small.problem is not None
    assert small.problem.kind == "too small"
    assert "joins 64" in small.problem.message
    with pytest.raises(InputError, match="several pools"):
        enter(JOB, ("hgx-h100", "mixed-demo"), cards=80)


# Who may enter.


def test_machines_are_named_once() -> None:
    with pytest.raises(InputError, match="no machine is given"):
        enter(JOB, ())
    with pytest.raises(InputError, match="one machine alone is no contest"):
        enter(JOB, ("hgx-h100",))
    with pytest.raises(InputError, match="'hgx-h100' is given twice"):
        enter(JOB, ("hgx-h100", "hgx-h20", "hgx-h100"))
    with pytest.raises(InputError, match="'cloudmatrix384' and 'cm384' are the same machine"):
        enter(JOB, ("cloudmatrix384", "cm384"))
    with pytest.raises(UnknownNameError, match="Did you mean 'hgx-h100'"):
        enter(JOB, ("hgx-h10", "hgx-h20"))


def test_an_assumption_goes_to_the_machines_that_know_it(zhenfa: Call) -> None:
    shown = zhenfa("compare", "small.yaml", "--on", "ours.yaml,hgx-h100", "--assume", "ours.price=2 CNY/h", "--json")
    assert shown.code == 0, shown.err
    by_name = {one["machine"]: one for one in json.loads(shown.out)["machines"]}
    assert by_name["ours"]["per_cny"]["value"] > 0
    assert by_name["hgx-h100"]["per_cny"]["value"] is None
    shown = zhenfa("compare", "small.yaml", "--on", "ours.yaml,hgx-h100", "--assume", "yours.price=2 CNY/h")
    assert shown.code == 2
    assert "'yours'" in shown.err


# On the screen.


def rows_of(shown: Outcome, head: str) -> list[str]:
    lines = shown.out.partition(f"\n{head}")[2].splitlines()
    return lines[1 : lines.index("", 1)] if "" in lines[1:] else lines[1:]


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_the_screen(zhenfa: Call, columns: int) -> None:
    shown = zhenfa("compare", "small.yaml", "--on", ",".join(FOUR), "--on", "tiny.yaml", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    assert not any(line != line.rstrip() for line in shown.out.splitlines())
    heads = ["Contest", "At equal size", "Four walls", "Best plans", "No plan"]
    places = [shown.out.index(f"\n\n{head}") for head in heads]
    assert places == sorted(places)
    rows = rows_of(shown, "Contest")
    assert rows[0].split()[:2] == ["#", "machine"]
    assert [line.split()[:2] for line in rows[1:]] == [
        ["1", "hgx-b200"], ["2", "hgx-h100"], ["3", "hgx-h20"], ["-", "sd200"], ["-", "tiny"]
    ]  # fmt: skip
    assert all(" no plan " in f"{line} " for line in rows[4:])
    for title in ("tokens/s", "per card", "per kW"):
        assert title in rows[0]
    if columns >= 120:
        for title in ("cards", "step", "MFU", "binds", "p10-p90"):
            assert title in rows[0]
    walls = rows_of(shown, "Four walls")
    assert sum(line.count("> ") for line in walls if re.match(r"\S", line)) == 3
    flat = " ".join(shown.out.split())
    assert "tiny (does not fit): no layout of llama3-8b fits tiny (8 cards)." in flat
    assert "sd200 (missing fact): inspur-sd200-card.peak.bf16 is undisclosed" in flat
    assert "--assume tiny-card.memory.capacity=" in flat, "named by the card, not by the pool"
    assert "PUE undisclosed" in flat


def test_machines_that_cannot_be_told_apart_are_named(zhenfa: Call) -> None:
    shown = zhenfa("compare", "small.yaml", "--on", "hgx-h100,hgx-h800,hgx-h20")
    assert "Cannot be told apart: hgx-h100 and hgx-h800: their bands of tokens/s overlap." in shown.out
    assert "hgx-h20 and" not in shown.out


def test_prices_that_are_known_are_used_and_tagged(zhenfa: Call) -> None:
    shown = zhenfa("compare", "small.yaml", "--on", "hgx-h100,ours.yaml", "--by", "cost")
    rows = rows_of(shown, "Contest (estimated, most tokens per CNY first)")
    assert "per CNY" in rows[0]
    assert re.match(r"1  ours .* [\d,]+\? ", rows[1])
    assert rows[2].startswith("-  hgx-h100 ")
    assert 'no price of nvidia-h100-sxm: supply --assume nvidia-h100-sxm.price="18 CNY/h"' in " ".join(
        shown.out.split()
    )


def test_emulated_cards_are_labelled(zhenfa: Call) -> None:
    shown = zhenfa("compare", "mixed-pretrain.yaml", "--on", "emulated-quartet,hgx-h100")
    assert shown.code == 0, shown.err
    assert "emulated-quartet [EMULATED]" in shown.out
    assert "hgx-h100 [EMULATED]" not in shown.out


def test_detail_lists_what_each_rests_on(zhenfa: Call) -> None:
    shown = zhenfa("compare", "small.yaml", "--on", "hgx-h100,hgx-h20", "--detail", "--cite")
    assert "\nRests on, hgx-h100\n  - " in shown.out
    assert "\nRests on, hgx-h20\n  - " in shown.out
    assert "\nSources (" in shown.out


def test_the_next_command_can_be_typed(zhenfa: Call) -> None:
    shown = zhenfa("compare", "small.yaml", "--on", "hgx-h100,hgx-h20")
    commands = [line.split()[1:] for line in shown.err.splitlines() if line.startswith("  zhenfa ")]
    assert [command[0] for command in commands] == ["plan", "compare"]
    for command in commands:
        assert zhenfa(*command).code == 0


# Serving.


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_the_screen_of_a_job_that_serves(zhenfa: Call, columns: int) -> None:
    shown = zhenfa("compare", "serving.yaml", "--on", "hgx-h100,hgx-h20,sd200", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    rows = rows_of(shown, "Contest (estimated, most tokens/s first)")
    assert [line.split()[:2] for line in rows[1:]] == [["1", "hgx-h100"], ["2", "hgx-h20"], ["-", "sd200"]]
    assert "MFU" not in rows[0]
    if columns >= 120:
        for title in ("requests/s", "TTFT", "TPOT", "p10-p90"):
            assert title in rows[0]
    assert "sd200 (missing fact): " in shown.out


def test_a_load_that_is_given_is_ranked_by_card(zhenfa: Call) -> None:
    job = Path("serving.yaml").read_text(encoding="utf-8").replace("tpot_target", "request_rate: 2, tpot_target")
    Path("load.yaml").write_text(job, encoding="utf-8")
    shown = zhenfa("compare", "load.yaml", "--on", "hgx-h100,hgx-h20", "--json")
    found = document(shown)
    assert (found["task"], found["by"]) == ("serve", "card")
    for one in found["machines"]:
        assert one["figures"]["requests_per_s"]["value"] == pytest.approx(2.0, rel=1e-3)
        assert one["front"], "what else can be had"
        power = one["figures"]["energy_j_per_token"]["value"] * one["figures"]["tokens_per_s"]["value"]
        assert one["operating"]["facility_power_w"]["value"] == pytest.approx(power)


def test_the_picture_of_a_job_that_serves(zhenfa: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = zhenfa("compare", "serving.yaml", "--on", "hgx-h100,hgx-h20", "--picture", "front.png")
    assert shown.code == 0, shown.err
    assert (tmp_path / "front.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# As a document.


def document(shown: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown.out)
    schema = schemas.schema(ComparisonDocument, strict=True)
    faults = [f"{fault.json_path}: {fault.message}" for fault in Draft202012Validator(schema).iter_errors(found)]
    assert not faults
    return found


def test_the_document(zhenfa: Call) -> None:
    shown = zhenfa("compare", "small.yaml", "--on", ",".join(FOUR), "--json")
    assert shown.code == 0
    found = document(shown)
    assert found["schema"] == "zhenfa.comparison/1"
    assert [one["rank"] for one in found["machines"]] == [1, 2, 3, None]
    assert found["machines"][3]["no_plan"]["kind"] == "missing fact"
    assert found["machines"][3]["plan"] is None
    first = found["machines"][0]
    assert first["cards"] == [{"pool": "nvidia", "accelerator": "nvidia-b200-sxm", "maker": "NVIDIA", "count": 8}]
    assert first["plan"]["schema"] == "zhenfa.plan/1"
    assert first["walls"]["binding"] in ("compute", "communication", "energy", "reliability")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_nobody_has_a_plan(zhenfa: Call, more: tuple[str, ...]) -> None:
    shown = zhenfa("compare", "small.yaml", "--on", "sd200,tiny.yaml", *more)
    assert shown.code == 3
    assert "error: none of the 2 machines has a plan for small." in shown.err
    if more:
        found = document(shown)
        assert [one["no_plan"] is None for one in found["machines"]] == [False, False]
        assert found["equal_cards"] is None
    else:
        assert "\nNo plan\n" in shown.out
        assert "Contest" not in shown.out


# As a picture.


def test_the_picture(zhenfa: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = zhenfa("compare", "small.yaml", "--on", ",".join(FOUR), "--picture", "out.png", "--by", "cost")
    assert shown.code == 0, shown.err
    assert "picture written to out.png" in shown.err
    assert (tmp_path / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    shown = zhenfa("compare", "small.yaml", "--on", "hgx-h100,hgx-h20", "--picture", "none/out.png")
    assert shown.code == 2
    assert "cannot be written" in shown.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("small.yaml",), "no machine is given"),
        (("small.yaml", "--on", "hgx-h100"), "one machine alone"),
        (("small.yaml", "--on", "hgx-h100,hgx-h100"), "given twice"),
        (("small.yaml", "--on", "hgx-h100,hgx-h21"), "Did you mean 'hgx-h20'"),
        (("small.yaml", "--on", "hgx-h100,hgx-h20", "--by", "speed"), "'speed'"),
        (("small.yaml", "--on", "hgx-h100,hgx-h20", "--cards", "0"), "not between"),
        (("typo.yaml", "--on", "hgx-h100,hgx-h20"), "machin"),
        (("no-such.yaml", "--on", "hgx-h100,hgx-h20"), "no-such.yaml"),
    ],
)
def test_what_is_refused(zhenfa: Call, arguments: tuple[str, ...], words: str) -> None:
    shown = zhenfa("compare", *arguments)
    assert shown.code == 2
    assert words in shown.err
    assert not shown.out


def test_an_entry_passes_from_process_to_process() -> None:
    import pickle

    contender = enter(JOB, FOUR)[0]
    entry = plan_one(contender)
    assert pickle.loads(pickle.dumps(entry)) == entry  # noqa: S301
    for error in (UnknownNameError("model", "x1", ["x2"]), InputError("no.", hint="yes.")):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(again), str(again), again.hint) == (type(error), str(error), error.hint)
