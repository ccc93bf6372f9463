"""The energy of a run: what was told, what is modelled from time at work and time waiting, and what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from live_pools import formation, pipeline, plan, pool
from zhenfa import catalog
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.energy import with_energy
from zhenfa.live.learn.timings import Sum, Timings
from zhenfa.live.model import sizes_of
from zhenfa.live.placement import place
from zhenfa.live.train import Measured
from zhenfa.spec.fact import read_fact
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import Formation
from zhenfa.spec.result import Figures, Run, Telemetry, Walls

MODEL = catalog.model("tiny-byte-gpt")
LAYERS = len(MODEL.graph().layers)
PLAN = plan(pipeline([LAYERS - 2, 2], "ab", 4), length=64).model_copy(update={"model": MODEL.name})
STEP_S, BUSY_S, TRAINING_S, LOSSES = 2.0, (1.5, 0.5), 10.0, (5.0, 4.0, 3.0, 2.0)


def machine(*watts: str | None, pue: float | None = None) -> Formation:
    found = formation(pool("a", 1, 2e9), pool("b", 1, 1e9))
    pools = [one if text is None else replace(one, power_per_card=read_fact(text, "power"))
             for one, text in zip(found.pools, watts, strict=True)]  # fmt: skip
    return replace(found, pools=tuple(pools), pue=read_fact(pue, "ratio") if pue else found.pue)


def energetic(there: Formation, *, told: dict[int, float] | None = None, kept: float = 1.0) -> Run:
    """The energy of a run of two cards that compute for 3/4 and 1/4 of a step of 2 s, over 10 s of training."""
    timings = Timings(steps=2)
    for rank, seconds in enumerate(BUSY_S):
        timings.work[rank, rank, "forward"] = Sum(2 * seconds - 0.5, 8)
        timings.optimizer[rank] = Sum(0.5, 2)
    measured = Measured(
        PLAN, place(PLAN, there, sizes_of(MODEL)), step_times=[3.0, STEP_S, STEP_S], losses=list(LOSSES),
        timings=timings, reports=[{"flops": {"forward": 1e9, "again": 5e8}}] * 2,
    )  # fmt: skip
    workload = Workload(sequence_length=64, global_batch=PLAN.global_batch, precision="fp32")
    setting = look_up(MODEL.graph(), workload, there, OWN_RUNTIME)
    telemetry = tuple(
        Telemetry(pool="ab"[rank], index=0, samples=7, power_w=watts) for rank, watts in (told or {}).items()
    )
    run = Run(
        plan=PLAN, figures=Figures(), walls=Walls(), steps=4, losses=LOSSES, emulated=True, effective_share=kept,
        training_s=TRAINING_S, telemetry=telemetry,
    )  # fmt: skip
    return with_energy(run, measured, setting, there)


def test_time_at_work_and_time_waiting_are_told_apart() -> None:
    run = energetic(machine("400 W", "200 W", pue=1.5), kept=0.5)
    assert run.energy is not None
    first, second = run.energy.cards
    assert [one.busy_share for one in (first, second)] == [0.75, 0.25]
    for one, rated in ((first, 400.0), (second, 200.0)):
        assert one.busy_w == pytest.approx(0.75 * rated)
        assert one.waiting_w is not None
        assert 0 < one.waiting_w < one.busy_w
        working = one.busy_share * 0.5
        assert one.mean_w == pytest.approx(one.waiting_w + (one.busy_w - one.waiting_w) * working)
        assert one.tag == "assumed"
    joules = 1.5 * TRAINING_S * (first.mean_w + second.mean_w)
    assert run.energy.energy_j.value == pytest.approx(joules)
    assert run.energy.pue == 1.5
    tokens = len(LOSSES) * PLAN.global_batch * 64
    assert run.figures.energy_j_per_token.value == pytest.approx(joules / tokens)
    assert sum(run.walls.energy.parts.values()) == pytest.approx(joules)
    assert run.walls.energy.detail.startswith("EMULATED cards with the power that their machine file gives; modelled: ")
    assert "PUE 1.5; cards computed for 50% of a step" in run.walls.energy.detail


def test_what_makers_told_comes_first() -> None:
    run = energetic(machine(None, None), told={0: 300.0, 1: 100.0})
    assert run.energy is not None
    assert run.energy.energy_j.value == pytest.approx(400.0 * TRAINING_S)
    assert run.energy.energy_j.tag == "measured"
    assert run.energy.cards[0].busy_w is None
    assert "measured: 400 W for 10 s, 4 kJ (0.00111 kWh)" in run.walls.energy.detail
    assert "PUE undisclosed, not counted" in run.walls.energy.detail


def test_a_power_that_nobody_gives_leaves_the_sum_empty_and_is_named() -> None:
    run = energetic(machine("400 W", None))
    assert run.energy is not None
    (missing,) = run.energy.missing
    assert missing == (
        "emulated cards draw none of their own; power_per_card of a pool in the machine file would model it"
    )  # fmt: skip
    assert (run.energy.energy_j.value, run.figures.energy_j_per_token.value) == (None, None)
    assert run.figures.energy_j_per_token.note == run.walls.energy.detail == missing
    assert [one.card for one in run.energy.cards] == [0]


def test_a_real_card_without_a_power_says_how_to_supply_it() -> None:
    real = formation(pool("a", 1, 2e9), pool("b", 1, 1e9))
    accelerator = real.pools[1].accelerator.model_copy(update={"emulated": False})
    there = replace(real, pools=(real.pools[0], replace(real.pools[1], accelerator=accelerator)))
    run = energetic(there)
    assert run.energy is not None
    assert 'b: power undisclosed; supply --assume b.power_per_card="700 W"' in run.energy.missing
