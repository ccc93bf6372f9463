"""``zhenfa plan`` on the screen. Numbers depend on the laws and are not frozen here: structure and labels are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli_runner import Call, Outcome, caller, fill
from zhenfa.cli.console import Screen
from zhenfa.cli.walls import NAMES
from zhenfa.spec.plan import Plan

WIDTHS = (80, 120, 160)
HEADINGS = ["Plans", "Plan 1", "Four walls of plan 1", "Considered"]


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


def table_of(shown: Outcome) -> list[str]:
    """Return the lines of the table of plans, its heading first."""
    lines = shown.out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("#  layout"))
    return lines[first : lines.index("", first)]


def place(text: str, parts: list[str]) -> list[int]:
    return [text.index(f"\n{part}") for part in parts]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("job", ["small.yaml", "mixed-pretrain.yaml"])
def test_an_answer_fits_the_screen(zhenfa: Call, job: str, columns: int) -> None:
    shown = zhenfa("plan", job, "--detail", "--why", 2, "--cite", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    assert not any(line != line.rstrip() for line in shown.out.splitlines())
    places = place(shown.out, HEADINGS)
    assert places == sorted(places)
    rows = table_of(shown)
    assert len({line[:1] for line in rows}) == len(rows), "no row is broken over two lines"
    assert rows[0].split()[-1] in {"behind", "it"}


def test_columns_go_in_order_of_need(zhenfa: Call) -> None:
    heads = {columns: table_of(zhenfa("plan", "small.yaml", columns=columns))[0] for columns in (60, *WIDTHS)}
    for columns, head in heads.items():
        for title in ("#", "layout", "step", "tokens/s", "MFU", "behind"):
            assert title in head, columns
    for title in ("batches", "cards", "per card", "memory", "most of it"):
        assert title in heads[160]
    assert "most of it" not in heads[80]
    assert "left out at 80 columns: " in zhenfa("plan", "small.yaml", columns=80).err


def test_the_arithmetic_stands_in_the_cells(zhenfa: Call) -> None:
    rows = table_of(zhenfa("plan", "small.yaml", columns=160))[1:]
    assert len(rows) == 5
    for row in rows:
        replicas, micro_batches, size = (int(part) for part in re.search(r" (\d+) x (\d+) x (\d+) ", row).groups())  # type: ignore[union-attr]
        assert replicas * micro_batches * size == 64
        tensor, depth, data = (int(re.search(rf"\b{name}(\d+)", row)[1]) for name in ("TP", "PP", "DP"))  # type: ignore[index]
        cards = int(re.search(rf"{replicas} x {micro_batches} x {size} +(\d+) ", row)[1])  # type: ignore[index]
        context = int((re.search(r"\bCP(\d+)", row) or [0, 1])[1])
        assert tensor * depth * data * context == cards
        assert re.search(r" [\d.]+ of [\d.]+ GB ", row)
    assert rows[0].endswith("best")
    assert re.search(r"\+[\d.]+%  .* more ", rows[1])


def test_every_figure_says_what_it_rests_on(zhenfa: Call) -> None:
    shown = zhenfa("plan", "small.yaml")
    assert "\nPlans (estimated, quickest first)\n" in shown.out
    assert re.search(r"\n   MFU +model FLOPs", shown.out)
    assert re.search(r"\n   tags +step, tokens/s, MFU: (assumed|fitted|claim)", shown.out)
    assert "\nRests on\n  - " in shown.out
    assert re.search(r"\nPlan 2 is behind by \+[\d.]+%: ", shown.out)


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_four_walls(zhenfa: Call, columns: int) -> None:
    shown = zhenfa("plan", "small.yaml", columns=columns).out
    block = shown.partition("\nFour walls of plan 1 ")[2].partition("\n\n")[0]
    binding = re.match(r"\(estimated; (\w+) binds\)\n", block)
    assert binding
    lines = [line for line in block.splitlines() if re.match(r"[> ] \w+ +(-|[\d.]+%) ", line)]
    assert [line[1:].split()[0] for line in lines] == list(NAMES)
    assert [line[2:].split()[0] for line in lines if line.startswith(">")] == [binding[1]]
    assert all(re.search(r" ([█░]{20}|\.{20})( |$)", line) for line in lines)
    assert "\n  to move it: " in block


def test_detail_gives_every_figure_a_tag(zhenfa: Call) -> None:
    shown = zhenfa("plan", "small.yaml", "--detail").out
    block = shown.partition("\nFigures of plan 1 (estimated)\n")[2].partition("\n\n")[0]
    names = ("step time", "throughput", "throughput per card", "MFU", "memory per card", "energy per token", "ETTR")
    for name in names:
        assert re.search(
            rf"^  {name}  +\S.*  (measured|fitted|datasheet|claim|assumed|derived)", block, flags=re.MULTILINE
        )
    parts = shown.partition("\nWhere the step goes ")[2].partition("\n\n")[0].splitlines()[1:]
    assert {line[2:20].strip() for line in parts} >= {"arithmetic at peak", "bubble", "tensor", "data"}
    assert "\nStages (seconds per micro-batch, memory per card, estimated)\n" in shown


def test_why_lays_two_plans_side_by_side(zhenfa: Call) -> None:
    shown = zhenfa("plan", "small.yaml", "--why", 3).out
    block = shown.partition("\nWhy plan 3 lost (")[2].partition("\n\n")[0].splitlines()
    assert block[1].split() == ["part", "of", "the", "step", "plan", "1", "plan", "3", "difference", "share"]
    assert block[-1].split()[0] == "step"
    assert block[-1].split()[-3].startswith("+")


def test_emulated_is_labelled(zhenfa: Call) -> None:
    shown = zhenfa("plan", "mixed-pretrain.yaml").out
    assert "on emulated-quartet [EMULATED]: " in shown
    assert "\nPlans (estimated for emulated cards, quickest first)\n" in shown
    assert "EMULATED" not in zhenfa("plan", "small.yaml").out


def test_pools_are_named_where_there_are_several(zhenfa: Call) -> None:
    rows = table_of(zhenfa("plan", "mixed-pretrain.yaml", columns=160))
    assert rows[0].split()[:3] == ["#", "layout", "on"]
    assert re.search(r"\d (ascend|hygon|cambricon) \+ \d ", rows[1])
    assert " on " not in table_of(zhenfa("plan", "small.yaml", columns=160))[0]


def test_an_assumption_is_listed_as_yours(zhenfa: Call) -> None:
    shown = zhenfa("plan", "small.yaml", "--on", "scalex640", "--assume", "scalex-card.memory.capacity=64 GB")
    assert "  - scalex-card.memory.capacity = 64 GB (yours)\n" in shown.out
    assert "tokens/s, MFU: assumed" in shown.out


def test_the_next_commands_can_be_typed(zhenfa: Call) -> None:
    arguments = ["plan", "small.yaml", "--on", "hgx-h100", "--assume", "hgx-h100.pue=1.2 "]
    shown = zhenfa(*arguments)
    command = "  zhenfa plan small.yaml --on hgx-h100 --assume 'hgx-h100.pue=1.2 '"
    assert shown.err.splitlines()[:5] == [
        "", "Next:", f"{command} --detail", f"{command} --why 2", f"{command} --cite"
    ]  # fmt: skip
    assert "zhenfa run mixed-pretrain.yaml" in zhenfa("plan", "mixed-pretrain.yaml").err


def test_quiet_says_nothing_on_stderr(zhenfa: Call) -> None:
    loud, quiet = zhenfa("plan", "small.yaml", columns=80), zhenfa("plan", "small.yaml", "--quiet", columns=80)
    assert loud.err
    assert quiet.err == ""
    assert table_of(quiet) == table_of(loud)


def test_the_best_plan_is_written_and_read_back(zhenfa: Call, tmp_path: Path) -> None:
    shown = zhenfa("plan", "small.yaml", "--out", "best.yaml", "--top", 1)
    assert "plan 1 written to best.yaml" in shown.err
    plan = Plan.from_file(tmp_path / "best.yaml")
    assert (plan.job, plan.global_batch) == ("small", 64)
    assert len(table_of(shown)) == 2


def test_nothing_feasible_names_the_nearest_miss_and_the_way_out(zhenfa: Call) -> None:
    shown = zhenfa("plan", "huge.yaml")
    assert (shown.code, shown.out) == (3, "")
    error, hint = shown.err.splitlines()
    assert error.startswith("error: no layout of deepseek-v3 fits hgx-h100 (8 cards). The nearest miss, ")
    assert hint.startswith("hint: cards with ")


def test_an_undisclosed_value_comes_with_the_option_that_supplies_it(zhenfa: Call) -> None:
    shown = zhenfa("plan", "small.yaml", "--on", "scalex640")
    assert (shown.code, shown.out) == (2, "")
    error, hint = shown.err.splitlines()
    assert error == "error: sugon-scalex-card.memory.capacity is undisclosed (not public), and this plan needs it."
    option = re.search(r"--assume (\S+)=\"([^\"]+)\"", hint)
    assert option
    assert zhenfa("plan", "small.yaml", "--on", "scalex640", "--assume", f"{option[1]}={option[2]}").code == 0


def test_bars_without_block_characters(tmp_path: Path) -> None:
    with open(tmp_path / "ascii", "w", encoding="ascii") as stream:
        screen = Screen(stream)
    assert screen.bar(0.5, 8) == "####...."
    assert screen.bar(None, 8) == "........"
    with open(tmp_path / "utf-8", "w", encoding="utf-8") as stream:
        screen = Screen(stream)
    assert [screen.bar(share, 4) for share in (-1.0, 0.0, 0.5, 1.0, 7.0)] == ["░░░░", "░░░░", "██░░", "████", "████"]


def test_what_comes_next_keeps_what_was_asked(zhenfa: Call) -> None:
    shown = zhenfa("plan", "small.yaml", "--for", "cards", "--limit", "tokens_per_s=1000 tokens/s")
    assert shown.code == 0, shown.err
    again = "zhenfa plan small.yaml --for cards --limit 'tokens_per_s=1000 tokens/s'"
    assert f"  {again} --detail\n" in shown.err
    assert f"  {again} --cite\n" in shown.err
