"""Each machine of the catalog gives a plan, names the facts that it lacks, or is too small."""

from __future__ import annotations

import math
import re
from functools import cache

import pytest

from test_docs_laws import tool
from zhenfa import catalog
from zhenfa.cli.facts import needs_of
from zhenfa.estimate.setting import look_up
from zhenfa.plan import make_request

EVERY = tool("every_machine")
BF16 = "DeepSeek-V3, trained in BF16"
DENSE = "Llama 3 405B, trained in BF16"
FP8 = "DeepSeek-V3, trained in FP8"

STATE_BYTES = 18
"""Bytes a parameter of mixed-precision AdamW, all of it shared out: 2 of the weight, 4 of the gradient, 12 of state."""

UNEVEN = 1.05
"""How far the fullest card may hold more than the mean: experts, stages and activations do not share out evenly."""


@cache
def asked(title, machine):
    return EVERY.ask(title, machine)


@cache
def answered(title, machine):
    first = asked(title, machine)
    return EVERY.ask_until_answered(title, machine) if first.kind == "missing" else first


CASES = [(title, machine) for title in (BF16, DENSE) for machine in catalog.machine_names()]
SERVED = ("al128", "cloudmatrix384", "hgx-b200", "hgx-h100", "hgx-h20", "sd200", "tianchi256")
CASES += [(FP8, machine) for machine in ("atlas950", "gb200-nvl72", "tpu-v7-pod")]


@pytest.mark.parametrize(("title", "machine"), CASES)
def test_a_machine_gives_a_plan_or_says_why_not(title: str, machine: str) -> None:
    outcome = answered(title, machine)
    if outcome.kind == "misfit":
        check_too_small(title, outcome)
    else:
        check_plan(outcome)


@pytest.mark.parametrize("machine", SERVED)
@pytest.mark.parametrize("title", list(EVERY.SERVING))
def test_a_machine_serves_or_says_why_not(title: str, machine: str) -> None:
    outcome = answered(title, machine)
    if outcome.kind == "misfit":
        check_cannot_serve(title, outcome)
        return
    best, request = outcome.answer.best, outcome.answer.request
    figures = best.estimate.figures
    assert 0 < best.plan.cards <= request.formation.cards
    assert figures.ttft_s.value <= request.serving.ttft_target
    assert figures.tpot_s.value <= request.serving.tpot_target
    assert figures.requests_per_s.value >= (request.serving.request_rate or 0) * (1 - 1e-9)
    for ranked in outcome.answer.plans:
        held, whole = ranked.estimate.fullest
        assert 0 < held <= whole, ranked.plan


def check_cannot_serve(title: str, outcome) -> None:
    """Check that too little memory is too little: the weights alone, in the format they are stored in."""
    needed = re.search(r"are (\S+) GB a card on .*?; (\S+) GB are usable", outcome.words)
    if needed:
        assert float(needed[1]) > float(needed[2]), outcome.words
    else:
        assert re.search(r"t(pot|ft)_target is \S+ \S+, \S+ \S+ are reached", outcome.words), outcome.words
        assert "would do" in outcome.hint


def test_a_tier_without_bandwidth_is_named_when_serving_needs_it() -> None:
    for machine in ("tianchi256", "sd200"):
        first = EVERY.ask_until_answered("DeepSeek-V3, served", machine)
        assert any(name.endswith("tiers.supernode.bandwidth") for name in first.given)


def check_plan(outcome) -> None:
    best = outcome.answer.best
    formation = outcome.answer.request.formation
    figures = best.estimate.figures
    assert 0 < figures.mfu.value < 0.85
    assert math.isfinite(figures.step_time_s.value)
    assert best.plan.global_batch == outcome.answer.request.job.workload.global_batch
    used = best.plan.cards_by_pool()
    for pool in formation.pools:
        assert used.get(pool.name, 0) <= pool.count
    assert all(stage.memory_bytes <= stage.capacity_bytes for stage in best.estimate.stages)
    for entry in best.plan.pipelines:
        for stage in entry.stages:
            inner = formation.pool(stage.pool).tiers[0]
            assert stage.tensor_parallel <= inner.size, "tensor parallelism leaves the innermost tier"
    expected = "assumed" if outcome.given else None
    assert expected in (None, figures.step_time_s.tag)


def check_too_small(title: str, outcome) -> None:
    request = make_request(EVERY.job_of(title), on=outcome.machine, assume=dict(outcome.given))
    setting = look_up(request.graph, request.job.workload, request.formation)
    usable = sum(setting.chips[pool.name].usable * pool.count for pool in request.formation.pools)
    assert usable < STATE_BYTES * UNEVEN * request.graph.parameters, outcome.words
    assert outcome.words.startswith(f"no layout of {request.model.name} fits {outcome.machine}")


@pytest.mark.parametrize("title", [BF16, DENSE])
def test_what_show_says_a_plan_needs_is_what_planning_asks_for(title: str) -> None:
    for name in catalog.machine_names():
        formation = catalog.resolve(catalog.machine(name))
        if formation.emulated:
            continue
        outcome, needs = answered(title, name), {need.name for need in needs_of(formation)}
        assert set(outcome.given) <= needs, name
        if set(outcome.given) < needs:  # the plan stays within what is known, and leaves cards idle
            assert all(".tiers." in one for one in needs - set(outcome.given)), name
            assert outcome.answer.best.plan.cards < formation.cards, name


@pytest.mark.parametrize("machine", catalog.machine_names())
def test_a_missing_fact_comes_with_the_option_that_supplies_it(machine: str) -> None:
    outcome = asked(BF16, machine)
    if outcome.kind == "missing":
        assert outcome.missing
        for name in outcome.missing:
            assert name in outcome.words
            assert f'--assume {name}="' in outcome.hint


def test_a_card_without_a_precision_is_said_to_have_others() -> None:
    outcome = EVERY.ask(FP8, "cloudmatrix384")
    assert outcome.kind == "missing"
    assert "no native FP8" in outcome.words
    assert outcome.hint.endswith("Or allow one that it has beside it: workload.precision: [fp8, bf16].")


def test_the_page_is_of_these_jobs_and_machines() -> None:
    text = EVERY.PAGE.read_text(encoding="utf-8")
    assert EVERY.MARK in text
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    assert parts[1::2] == list(EVERY.JOBS)
    for title, part in zip(parts[1::2], parts[2::2], strict=True):
        tables = part.split("With a value supplied")
        heads = [line for line in part.splitlines() if line.startswith("| machine |")]
        names = [EVERY.columns(title, given=number > 0) for number in range(len(tables))]
        assert heads == [f"| {' | '.join(one)} |" for one in names]
        first, given = rows_of(tables[0]), [row for table in tables[1:] for row in rows_of(table)]
        assert [row[0] for row in first] == EVERY.machines_for(title)
        lacking = [row[0] for row in first if row[2].startswith("undisclosed")]
        assert [row[0] for row in given] == [name for name in lacking if not name.startswith("emulated")]
        assert not any("undisclosed" in " ".join(row) for row in given)


def rows_of(table: str) -> list[list[str]]:
    lines = [
        line for line in table.splitlines() if line.startswith("| ") and line[2:9] != "machine" and line[2:5] != "---"
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
