"""What a user reads of an estimate adds up, and reacts to the inputs as physics does."""

from __future__ import annotations

import functools

import pytest

from zhenfa.errors import InfeasibleError, MissingFactError
from zhenfa.estimate.report import step_parts
from zhenfa.plan import Answer, find_plans, make_request
from zhenfa.spec.fact import WEAKNESS
from zhenfa.spec.job import Job, Workload

ASSUMED = {"scalex-card.memory.capacity": "64 GB"}
CASES = {
    "deepseek-v3 on cloudmatrix384": ("deepseek-v3", "cloudmatrix384", 4096, 3840),
    "llama3-70b on hgx racks": ("llama3-70b", "dgx-superpod-h100", 8192, 512),
    "qwen3-32b on scalex640": ("qwen3-32b", "scalex640", 4096, 1280),
    "tiny on emulated cards": ("tiny-byte-gpt", "emulated-quartet", 128, 64),
}


@functools.cache
def answer(model: str, machine: str, length: int, batch: int, **assume: str) -> Answer:
    precision = "fp32" if machine.startswith("emulated") else "bf16"
    job = Job(
        name="case",
        model=model,
        workload=Workload(sequence_length=length, global_batch=batch, precision=precision, tokens=1e12),
    )
    return find_plans(
        make_request(job, on=machine, assume={**ASSUMED, **{k.replace("__", "."): v for k, v in assume.items()}})
    )


@pytest.fixture(params=CASES, ids=list(CASES))
def found(request: pytest.FixtureRequest) -> Answer:
    return answer(*CASES[request.param])


def test_every_plan_adds_up(found: Answer) -> None:
    for one in found.plans:
        figures, walls = one.estimate.figures, one.estimate.walls
        assert sum(step_parts(one.cost.worst).values()) == pytest.approx(one.cost.step, rel=1e-9)
        shares = [walls.compute.share, walls.communication.share, walls.reliability.share]
        assert None not in shares
        assert sum(share for share in shares if share is not None) == pytest.approx(1.0, rel=1e-9)
        tokens = one.plan.global_batch * one.plan.sequence_length
        assert figures.tokens_per_s.value == pytest.approx(tokens / one.cost.step)
        assert figures.tokens_per_s_per_card.value == pytest.approx(tokens / one.cost.step / one.plan.cards)
        assert 0 < (figures.mfu.value or 0) < 1
        for stage in one.estimate.stages:
            assert sum(stage.memory_parts.values()) == pytest.approx(stage.memory_bytes)
            assert stage.memory_bytes <= (stage.capacity_bytes or 0) * (1 + 1e-9)


def test_plans_are_ranked_and_hold_the_whole_job(found: Answer) -> None:
    steps = [one.cost.step for one in found.plans]
    assert steps == sorted(steps)
    assert found.plans[0].lost_by == ""
    assert all(one.lost_by for one in found.plans[1:])
    for one in found.plans:
        assert one.plan.global_batch == found.request.job.workload.global_batch
        assert one.plan.layers == len(found.request.graph.layers)
        held = one.plan.cards_by_pool()
        assert all(count <= found.request.formation.pool(pool).count for pool, count in held.items())


def test_each_figure_is_tagged_and_rests_on_named_sources(found: Answer) -> None:
    estimate = found.best.estimate
    for figure in (estimate.figures.step_time_s, estimate.figures.mfu, estimate.figures.tokens_per_s):
        assert WEAKNESS[figure.tag] >= WEAKNESS["fitted"]
        if found.request.formation.emulated:  # declared speeds, not estimated ones
            assert figure.p10 is None
        else:
            assert figure.p10 is not None
            assert figure.p90 is not None
            assert 0 < figure.p10 < figure.p90
            ettr = estimate.figures.ettr
            assert ettr.p10 is not None
            assert ettr.value is not None
            assert ettr.p90 is not None
            assert 0 < ettr.p10 < ettr.value < ettr.p90 < 1
    assert estimate.sources
    if found.request.formation.emulated:
        assert estimate.figures.energy_j_per_token.value is None
        assert "emulated" in (estimate.figures.step_time_s.note or "")
    else:
        assert estimate.assumptions


def test_an_assumption_is_listed_and_weakens_the_tag() -> None:
    found = answer(*CASES["qwen3-32b on scalex640"])
    assert any("scalex-card.memory.capacity" in line for line in found.best.estimate.assumptions)
    assert found.best.estimate.figures.step_time_s.tag == "assumed"


def test_faster_hardware_is_never_slower() -> None:
    case = CASES["llama3-70b on hgx racks"]
    plain = answer(*case).best.cost.step
    assert answer(*case, **{"nvidia-h100-sxm__peak__bf16": "2000 TFLOPS"}).best.cost.step < plain
    assert answer(*case, **{"nvidia-h100-sxm__memory__bandwidth": "10 TB/s"}).best.cost.step < plain
    assert answer(*case, **{"nvidia-h100-sxm__memory__capacity": "160 GB"}).best.cost.step <= plain
    assert answer(*case, **{"nvidia-h100-sxm__memory__capacity": "60 GB"}).best.cost.step >= plain


def test_a_price_gives_a_cost() -> None:
    case = CASES["llama3-70b on hgx racks"]
    assert answer(*case).best.estimate.figures.cost.value is None
    priced = answer(*case, **{"nvidia-h100-sxm__price": "18 CNY/h"}).best
    seconds = 1e12 / (512 * 8192) * priced.cost.step / (priced.estimate.figures.ettr.value or 1)
    assert priced.estimate.figures.cost.value == pytest.approx(seconds / 3600 * 18 * priced.plan.cards)


def test_what_is_undisclosed_is_asked_for_by_name() -> None:
    job = Job(name="case", model="qwen3-8b", workload=Workload(sequence_length=4096, global_batch=64))
    with pytest.raises(MissingFactError, match=r"sugon-scalex-card\.memory\.capacity is undisclosed") as caught:
        find_plans(make_request(job, on="scalex640"))
    assert caught.value.exit_code == 2
    assert '--assume sugon-scalex-card.memory.capacity="' in (caught.value.hint or "")


def test_what_cannot_fit_names_the_nearest_miss() -> None:
    job = Job(name="case", model="deepseek-v3", workload=Workload(sequence_length=4096, global_batch=64))
    with pytest.raises(InfeasibleError, match="nearest miss") as caught:
        find_plans(make_request(job, on="hgx-h100"))
    assert "optimizer " in str(caught.value)  # what fills the card, the largest part first
    assert caught.value.exit_code == 3
    assert caught.value.hint
