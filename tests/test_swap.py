"""``zhenfa swap``: how many cards replace others, there and back, on the screen, as a document, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cli_runner import Call, Outcome, caller, fill
from zhenfa import catalog
from zhenfa.cli import schemas
from zhenfa.errors import InfeasibleError, InputError, MissingFactError, UnknownNameError
from zhenfa.plan import find_plans, make_request
from zhenfa.plan.compare import sized
from zhenfa.plan.contest_documents import SwapDocument
from zhenfa.plan.counting import rate_of
from zhenfa.plan.shape import find_shape
from zhenfa.plan.swap import Asked, Swap, card_seconds, cards_of, swap
from zhenfa.spec.job import Job, Limits, Workload
from zhenfa.spec.serving import ServingWorkload

JOB = Job(name="small", model="llama3-8b", workload=Workload(sequence_length=4096, global_batch=240))


def asked(machine: str, to: str, cards: int | None = None, job: Job = JOB, **more: Any) -> Asked:
    return Asked(job, catalog.machine(machine), to, cards, **more)


@pytest.fixture(scope="module")
def away() -> Swap:
    return swap(asked("hgx-h100", "ascend-910b3", 16))


# The answer.


@pytest.mark.parametrize(
    ("machine", "to", "cards"),
    [
        ("hgx-h100", "nvidia-h100-sxm", 16), ("hgx-h100", "hgx-h100", 24), ("hgx-h20", "nvidia-h20-sxm", None),
        ("cloudmatrix384", "ascend-910c", 40), ("gb200-nvl72", "nvidia-gb200", 12),
    ],
)  # fmt: skip
def test_a_machine_is_replaced_by_as_many_of_its_own(machine: str, to: str, cards: int | None) -> None:
    found = swap(asked(machine, to, cards))
    assert found.cards == cards_of(found.old) == (cards or 8)
    assert found.ratio == 1.0
    assert (found.lower, found.upper) == (found.cards, found.cards)
    assert found.trust == (1.0, 1.0), "the same errors stand on both sides"
    assert rate_of(found.new) == pytest.approx(rate_of(found.old))


def test_the_count_is_the_least_that_reaches_it(away: Swap) -> None:
    target, shape = rate_of(away.old), catalog.machine("atlas800t-a2")

    def rate(cards: int) -> float:
        best = find_plans(make_request(JOB.model_copy(update={"machine": sized(shape, cards)})), top=1).best
        return best.estimate.figures.tokens_per_s.value or 0.0

    reach = [cards for cards in range(8, away.cards + 8, 8) if rate(cards) >= target]
    assert reach == [away.cards]


def test_the_band_joins_both_sides(away: Swap) -> None:
    assert away.trust is not None
    low, high = away.trust
    assert low < 1 < high
    sides = [one.best.figures.tokens_per_s for one in (away.old, away.new) if one.best]
    for figure in sides:
        assert low < (figure.p10 or 0) / (figure.value or 1) or low < (figure.value or 1) / (figure.p90 or 1)
    assert away.lower is not None
    assert away.upper is not None
    assert away.lower <= away.cards <= away.upper
    step, target = away.counts.step, rate_of(away.old)
    assert away.counts.rate(away.lower // step) >= target / high * (1 - 1e-9)
    assert away.counts.rate(away.upper // step) >= target / low * (1 - 1e-9)


def test_there_and_back_again(away: Swap) -> None:
    back = swap(asked("atlas800t-a2", "nvidia-h100-sxm", away.cards, shape="nvidia-hgx-h100-8"))
    assert back.cards >= 16
    assert rate_of(back.new) >= rate_of(away.old) * (1 - 1e-9)
    assert back.ratio * away.ratio >= 1 - 1e-9, "each count is rounded up"
    assert back.trust is not None
    assert away.trust is not None
    assert back.trust[0] == pytest.approx(1 / away.trust[1])


def test_where_the_difference_lies(away: Swap) -> None:
    for entry, side in ((away.old, 0), (away.new, 1)):
        estimate = entry.best
        assert estimate is not None
        useful = estimate.figures.tokens_per_s.value * estimate.figures.ettr.value  # type: ignore[operator]
        whole = 1e6 * estimate.plan.cards / useful
        assert sum(card_seconds(entry).values()) == pytest.approx(whole)
        assert sum(both[side] for both in away.walls.values()) == pytest.approx(whole)
    wall, part = away.decided_by
    gaps = {name: abs(new - old) for name, (old, new) in away.walls.items()}
    assert wall == max(gaps, key=lambda name: gaps[name])
    assert part in away.parts_of(wall)


def test_whole_systems_reach_it_too() -> None:
    found = swap(asked("hgx-h100", "nvidia-gb200", 24))
    assert found.shape.step == 4
    assert found.cards % 4 == 0
    assert found.cards < 72
    assert found.systems == (1, 72)
    assert found.whole is not None
    assert rate_of(found.whole) >= rate_of(found.old)


def test_idle_old_cards_do_not_count() -> None:
    job = JOB.model_copy(update={"limits": Limits(max_cards=8)})
    found = swap(asked("hgx-h100", "nvidia-h100-sxm", 16, job))
    assert (cards_of(found.old), found.replaced, found.cards, found.ratio) == (16, 8, 8, 1.0)


def test_limits_of_which_cards_are_those_of_the_old_side(away: Swap) -> None:
    limits = Limits(max_cards=16, makers=("NVIDIA",), spares=0.1, tokens_per_s="1 tokens/s")
    found = swap(
        asked("hgx-h100", "ascend-910b3", 16, JOB.model_copy(update={"limits": limits, "objective": "energy"}))
    )
    assert (found.cards, found.replaced) == (away.cards, 16)


# The shape.


def test_a_card_comes_in_the_system_that_carries_it() -> None:
    shape = find_shape("ascend-910c")
    assert (shape.name, shape.step, shape.whole, shape.most) == ("huawei-cloudmatrix384", 8, 384, 165888)
    assert find_shape("910c").name == shape.name
    assert find_shape("cloudmatrix384").machine.name == "cloudmatrix384"
    assert find_shape("nvidia-h100-sxm", shape="nvidia-dgx-superpod-h100").whole == 256
    assert find_shape("nvidia-h100-sxm", like="nvidia-hgx-h100-8").name == "nvidia-hgx-h100-8"
    assert find_shape("ascend-910c", step=16).step == 16
    assert shape.systems(385) == 2


@pytest.mark.parametrize(
    ("name", "shape", "error", "words"),
    [
        ("nvidia-h100-sxm", None, InputError, "comes in several systems: nvidia-hgx-h100-8, nvidia-dgx-superpod-h100"),
        ("nvidia-h100-sxm", "cloudmatrix384", InputError, "huawei-cloudmatrix384 does not carry nvidia-h100-sxm"),
        ("cloudmatrix384", "nvidia-hgx-h100-8", InputError, "is a machine and has a shape"),
        ("mixed-demo", None, InputError, "has several pools"),
        ("nvidia-a100-sxm-80g", None, InputError, "no system of the catalog carries"),
        ("ascend-910x", None, UnknownNameError, "Did you mean 'ascend-910c'"),
        ("nvidia-h100-sxm", "no-such", UnknownNameError, "no system is called 'no-such'"),
    ],
)
def test_a_shape_that_is_not_clear(name: str, shape: str | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        find_shape(name, shape=shape)


# Out of reach.


RACK = """\
schema: zhenfa.machine/1
name: rack
pools:
- name: cards
  accelerator: nvidia-h20-sxm
  count: 8
  tiers: [{{name: node, size: 8, bandwidth: 400 GB/s, latency: 1 us}}, {{name: row, size: {size}, bandwidth: 50 GB/s}}]
"""


def rack(folder: Path, size: int) -> str:
    (folder / "rack.yaml").write_text(RACK.format(size=size), encoding="utf-8")
    return str(folder / "rack.yaml")


def test_a_batch_that_feeds_no_more_cards(tmp_path: Path) -> None:
    job = JOB.model_copy(update={"workload": Workload(sequence_length=512, global_batch=2)})
    with pytest.raises(InfeasibleError) as caught:
        swap(asked("hgx-b200", rack(tmp_path, 128), job=job))
    assert "no number of rack cards was found that does: the most is " in caught.value.message
    assert "a global batch of 2 sequences over " in caught.value.message
    assert "a larger global batch" in (caught.value.hint or "")


def test_a_tier_that_joins_no_more_cards(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"on 16 cards, up to 16 planned.*its outermost tier joins 16 cards"):
        swap(asked("hgx-h100", rack(tmp_path, 16)))


def test_a_missing_fact_is_named() -> None:
    with pytest.raises(MissingFactError, match=r"peak\.bf16 is undisclosed"):
        swap(asked("hgx-h100", "inspur-sd200"))
    with pytest.raises(MissingFactError, match=r"peak\.bf16 is undisclosed"):
        swap(asked("sd200", "ascend-910c"))


def test_a_job_that_does_not_fit_the_machine() -> None:
    huge = JOB.model_copy(update={"model": "llama3-405b"})
    with pytest.raises(InfeasibleError, match="fits hgx-h20"):
        swap(asked("hgx-h20", "ascend-910c", job=huge))


# Serving.

SERVE = JOB.model_copy(update={"workload": ServingWorkload(
    input_length=1024, output_length=256, ttft_target=2.0, tpot_target=0.05)})  # fmt: skip


def test_cards_that_serve_are_replaced_under_the_same_targets() -> None:
    found = swap(asked("hgx-h100", "nvidia-h20-sxm", job=SERVE))
    for entry in (found.old, found.new):
        figures = entry.best.figures  # type: ignore[union-attr]
        assert figures.ttft_s.value <= 2.0  # type: ignore[operator]
        assert figures.tpot_s.value <= 0.05  # type: ignore[operator]
    assert rate_of(found.new) >= rate_of(found.old)
    assert found.ratio > 1
    assert found.walls.keys() == {"compute", "communication"}
    for entry, side in ((found.old, 0), (found.new, 1)):
        spent = sum(both[side] for both in found.spent.values())
        assert spent == pytest.approx(1e6 * entry.best.plan.cards / rate_of(entry))  # type: ignore[union-attr]


def test_a_load_that_is_given_is_taken_by_the_new_cards() -> None:
    workload = SERVE.workload.model_copy(update={"request_rate": 40.0})
    found = swap(asked("hgx-h100", "nvidia-h100-sxm", job=SERVE.model_copy(update={"workload": workload}), step=1))
    assert rate_of(found.old) == pytest.approx(40 * 256, rel=1e-3)
    assert rate_of(found.new) >= rate_of(found.old) * (1 - 1e-9)
    assert found.cards <= found.replaced, "on as many cards as the old plan uses, or fewer"


# On the screen.


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_the_screen(zhenfa: Call, columns: int) -> None:
    shown = zhenfa("swap", "small.yaml", "--from", "hgx-h100", "--to", "ascend-910b3", "--cite", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    assert not any(line != line.rstrip() for line in shown.out.splitlines())
    head = re.search(
        r"\n\n(\d+) ascend-910b3 replace 8 nvidia-h100-sxm \(estimated, at", " ".join(shown.out.split(" "))
    )
    assert head
    count = int(head[1])
    assert re.search(rf"\n  ratio +{count / 8:.3g} new cards for each old one", shown.out)
    assert f"\n  systems  {count // 8} huawei-atlas800t-a2 of 8" in shown.out
    for title in ("Both sides (estimated)", "What made the difference (the ", "How the count was found", "Sources ("):
        assert f"\n\n{title}" in shown.out
    assert re.search(rf"\ncards +8 .*{count}", shown.out)
    for name in ("peak, bf16", "memory bandwidth", "tokens/s", "per kW", "MFU", "ETTR", "power", "binds"):
        assert f"\n{name} " in shown.out
    for wall in ("compute wall", "communication wall", "reliability wall"):
        assert shown.out.count(f"\n{wall} ") == 2


def test_the_next_command_can_be_typed(zhenfa: Call) -> None:
    shown = zhenfa("swap", "small.yaml", "--from", "hgx-h100", "--to", "nvidia-h20-sxm", "--assume",
                   "nvidia-h20-sxm.price=8 CNY/h", "--assume", "hgx-h100.pue=1.2")  # fmt: skip
    assert "\nrent, CNY/h  " in shown.out
    assert "  - nvidia-h20-sxm.price = 8 CNY/h (yours)\n" in shown.out
    commands = re.findall(r"^  zhenfa (.*)", shown.err, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["swap", "compare"]
    import shlex

    for command in commands:
        again = zhenfa(*shlex.split(command))
        assert again.code == 0, again.err
    assert "\nRests on, hgx-h100\n" in zhenfa(*shlex.split(commands[0])).out


def test_the_same_card_says_that_errors_cancel(zhenfa: Call) -> None:
    shown = zhenfa("swap", "small.yaml", "--from", "hgx-h100", "--to", "nvidia-h100-sxm")
    assert "8 nvidia-h100-sxm replace 8 nvidia-h100-sxm" in shown.out
    assert "none: the same cards stand on both sides" in shown.out


def document(shown: Outcome) -> dict[str, Any]:
    assert shown.code == 0, shown.err
    found: dict[str, Any] = json.loads(shown.out)
    schema = schemas.schema(SwapDocument, strict=True)
    faults = [f"{fault.json_path}: {fault.message}" for fault in Draft202012Validator(schema).iter_errors(found)]
    assert not faults
    return found


def test_the_document(zhenfa: Call) -> None:
    found = document(zhenfa("swap", "small.yaml", "--from", "hgx-h100", "--to", "ascend-910b3", "--json"))
    assert found["schema"] == "zhenfa.swap/1"
    assert found["cards"] == found["new"]["cards"][0]["count"] == found["system_cards"]
    assert found["ratio"] == found["cards"] / 8
    counts = {one["cards"]: one["tokens_per_s"] for one in found["counts"]}
    target = found["old"]["figures"]["tokens_per_s"]["value"]
    assert counts[found["cards"]] >= target * (1 - 1e-9)
    assert all((rate or 0) < target for cards, rate in counts.items() if cards < found["cards"])
    for name in ("spent_by_wall", "spent_by_part"):
        old = sum(both["old"] for both in found[name].values())
        rate = target * found["old"]["figures"]["ettr"]["value"]
        assert old == pytest.approx(1e6 * found["old"]["cards_used"] / rate)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("small.yaml", "--to", "ascend-910c"), 2, "--from"),
        (("small.yaml", "--from", "hgx-h10", "--to", "ascend-910c"), 2, "Did you mean 'hgx-h100'"),
        (("small.yaml", "--from", "hgx-h100", "--to", "ascend-910"), 2, "no machine, system or accelerator is called"),
        (("small.yaml", "--from", "hgx-h20", "--to", "nvidia-h100-sxm"), 2, "such as --shape nvidia-hgx-h100-8"),
        (("small.yaml", "--from", "mixed-demo", "--to", "ascend-910c", "--cards", "8"), 2, "several pools"),
        (("small.yaml", "--from", "hgx-h100", "--to", "ascend-910c", "--assume", "nobody.pue=1.1"), 2, "'nobody'"),
        (("small.yaml", "--from", "hgx-h100", "--to", "inspur-sd200"), 2, "undisclosed"),
    ],
)
def test_what_is_refused(zhenfa: Call, arguments: tuple[str, ...], code: int, words: str) -> None:
    shown = zhenfa("swap", *arguments)
    assert shown.code == code
    assert words in shown.err
    assert not shown.out
