"""What makers tell of a run's cards: failing ones are taken out before they fail, warnings are told once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from zhenfa.errors import InfeasibleError
from zhenfa.live.health import Finding, HealthWatch
from zhenfa.live.makers import DeviceRecord
from zhenfa.live.makers.emulated import FILE
from zhenfa.live.makers.maker import Heard
from zhenfa.live.makers.nvml import FATAL_XIDS, Fault
from zhenfa.live.placement import Card, CardPlace, place
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Run

PLAN = plan(pipeline([4, 3, 1], "abb", 4))
SETTINGS = {"steps": 6, "learning_rate": 1e-3, "seed": 5}


def machine(spare: int = 0) -> Formation:
    return formation(pool("a", 1, 2e9), pool("b", 2 + spare, 1e9))


def places(provider: str = "nvidia") -> list[CardPlace]:
    return [replace(one, provider=provider) for one in place(PLAN, machine(), TINY)]


def record(index: int, health: str | None, *problems: str, provider: str = "nvidia", **more: object) -> DeviceRecord:
    return DeviceRecord(provider, index, f"card {index}", "NVIDIA", "NVML", health=health, problems=problems, **more)


@dataclass
class Told:
    """A maker that says what it is told to, and a clock that stands still."""

    records: Sequence[DeviceRecord] = ()
    now: float = 0.0
    asked: list[str] = field(default_factory=list)

    def watch(self, every_s: float = 10.0) -> HealthWatch:
        told: list[tuple[str | None, str, Sequence[DeviceRecord]]] = []

        def ask(host: str | None, provider: str) -> None:
            self.asked.append(provider)
            told.append((host, provider, self.records))

        def answers() -> Sequence[tuple[str | None, str, Sequence[DeviceRecord]]]:
            answered = list(told)
            told.clear()
            return answered

        return HealthWatch(every_s, ask, answers, self.seat, lambda: self.now)

    def seat(self, card: Card) -> tuple[str | None, int]:
        """All cards of one maker on one host: those of pool b after those of pool a."""
        return None, card[1] + (card[0] == "b")


@dataclass
class Driver:
    """A driver that has heard of some Xid errors."""

    told: list[Fault] = field(default_factory=list)

    def heard(self) -> list[Heard]:
        found, self.told = self.told, []
        return [fault.heard() for fault in found]

    def close(self) -> None:
        pass


def said(found: Sequence[Finding]) -> list[tuple[int, bool, str]]:
    return [(one.place.rank, one.fatal, one.words) for one in found]


def test_makers_are_asked_no_more_often_than_said() -> None:
    told = Told()
    watch = told.watch()
    for told.now in (0.0, 9.9, 10.0, 15.0, 20.1):
        watch.findings(places())
    assert told.asked == ["nvidia"] * 3
    never = Told()
    assert never.watch(0.0).findings(places()) == []
    assert never.asked == []


def test_what_is_wrong_is_told_once_and_the_fatal_first() -> None:
    told = Told([
        record(0, "warning", "its clocks are held down by heat"), record(1, "ok"),
        record(2, "failed", "3 uncorrected memory errors since the driver was loaded", "a row is replaced at reset"),
    ])  # fmt: skip
    watch = told.watch()
    watch._ears["nvidia"] = Driver()
    assert said(watch.findings(places())) == [
        (2, True, "3 uncorrected memory errors since the driver was loaded"),
        (0, False, "its clocks are held down by heat"),
    ]
    told.now = 60.0
    assert watch.findings(places()) == []
    told.records = [record(0, "failed"), record(1, "warning", "a row is replaced when the card is reset")]
    told.now = 120.0
    assert said(watch.findings(places())) == [
        (0, True, "its maker says that it has failed"), (1, False, "a row is replaced when the card is reset"),
    ]  # fmt: skip


@pytest.mark.parametrize("xid", [13, 31, 63, 94, *sorted(FATAL_XIDS)])
def test_an_xid_error_is_of_the_card_that_has_its_uuid(xid: int) -> None:
    told = Told([record(index, "ok", uuid=f"GPU-{index}") for index in range(3)])
    watch = told.watch()
    watch._ears["nvidia"] = Driver([Fault("GPU-1", xid), Fault("GPU-9", 79), Fault(None, 79)])
    (found,) = watch.findings(places())
    assert (found.place.rank, found.fatal) == (1, xid in {46, 48, 64, 79, 95})
    assert found.words.startswith(f"Xid {xid}")


def test_telemetry_is_a_mean_over_what_was_told() -> None:
    told = Told([record(0, "ok", power_w=100.0, temperature_c=50.0), record(1, "ok", temperature_c=41.0)])
    watch = told.watch()
    watch._ears["nvidia"] = Driver()
    watch.findings(places())
    told.now, told.records = 10.0, [record(0, "ok", power_w=200.0, temperature_c=45.0)]
    watch.findings(places())
    assert [(one.pool, one.index, one.samples, one.power_w, one.hottest_c) for one in watch.telemetry()] == [
        ("a", 0, 2, 150.0, 50.0), ("b", 0, 1, None, 41.0),
    ]  # fmt: skip


def left(machine: Formation) -> Plan:
    """The plan for what is left of the machine: a card of each pool."""
    pools = {one.name: one.count for one in machine.pools}
    if pools == {"a": 1, "b": 1}:
        return plan(pipeline([5, 3], "ab", 4))
    raise InfeasibleError(f"no plan for {pools}")


def rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[int, list[tuple[str, int, str, str]]], *,
    spare: int = 0, plannable: bool = True, **more: object,
) -> Run:  # fmt: skip
    """Run while emulated cards say after some steps what is wrong with them: pool, index, health, problem."""
    file = tmp_path / "health.json"
    monkeypatch.setenv(FILE, str(file))

    def on_step(step: int, *_: object) -> None:
        if step in told:
            cards = [
                {"provider": "emulated", "index": index, "name": pool, "maker": "emulated", "maker_from": "a file",
                 "health": health, "problems": [words]}
                for pool, index, health, words in told[step]
            ]  # fmt: skip
            file.write_text(json.dumps({"schema": "zhenfa.devices/2", "devices": cards}), encoding="utf-8")

    execution = Execution(**(SETTINGS | {"health_every_s": 1e-6} | more))
    replan = left if plannable else None
    return run_plan(PLAN, machine(spare), TINY, execution, on_progress=on_step, replan=replan)


def timeline(run: Run) -> list[tuple[int, str, str, str, str, int]]:
    return [(one.step, one.kind, one.card, one.words, one.action, one.steps_lost) for one in run.incidents]


ECC = "2 uncorrected memory errors"
HOT = "its clocks are held down by heat"


@pytest.mark.live
@pytest.mark.parametrize(
    ("spare", "plannable", "action", "words", "cards"),
    [
        (1, True, "replace", f"{ECC}; taken out before it failed", 3),
        (0, True, "re-form", f"{ECC}; taken out before it failed", 2),
        (0, False, "none", f"{ECC}; nothing stands in for it", 3),
    ],
)
def test_a_card_that_is_about_to_fail_is_taken_out_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int, plannable: bool, action: str, words: str, cards: int
) -> None:
    told = {2: [("a", 0, "warning", HOT)], 4: [("a", 0, "warning", HOT), ("b", 1, "failed", ECC)]}
    run = rehearsed(tmp_path, monkeypatch, told, spare=spare, plannable=plannable)
    assert timeline(run) == [
        (2, "health", "card 0 of pool a", HOT, "none", 0),
        (4, "health", "card 1 of pool b", words, action, 0),
    ]
    assert run.losses == pytest.approx(reference_losses(TINY, Execution(**SETTINGS), steps=6, global_batch=4), rel=1e-5)
    assert run.plan.cards == cards


@pytest.mark.live
def test_without_recovery_it_is_told_and_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rehearsed(tmp_path, monkeypatch, {4: [("b", 1, "failed", ECC)]}, spare=1, recover=False)
    assert timeline(run) == [(4, "health", "card 1 of pool b", ECC, "none", 0)]
    assert run.plan == PLAN
    never = rehearsed(tmp_path, monkeypatch, {4: [("b", 1, "failed", ECC)]}, health_every_s=0)
    assert timeline(never) == []
