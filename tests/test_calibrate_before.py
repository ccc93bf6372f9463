"""A machine measured before a job is planned on it: what is run for that, what is kept, and what is used again."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_runner import QUICK, Call, caller, fill
from live_pools import formation, pool
from zhenfa import catalog
from zhenfa.live.calibrate import before
from zhenfa.live.calibrate.before import Wish
from zhenfa.live.calibrate.probe import _places, plans_of
from zhenfa.plan.request import make_request
from zhenfa.spec.job import Job
from zhenfa.spec.machine import Machine


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    (tmp_path / "quick.yaml").write_text(QUICK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return caller(capsys, monkeypatch)


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=4), layers=st.integers(1, 20))
def test_a_pipeline_takes_every_card_that_it_has_a_layer_for(counts: list[int], layers: int) -> None:
    pools = [pool(f"p{number}", count) for number, count in enumerate(counts)]
    places = _places(formation(*pools), layers)
    taken = Counter(places)
    assert len(places) == min(sum(counts), layers)
    assert places == sorted(places), "the cards of a pool stand next to each other"
    assert all(taken[one.name] <= one.count for one in pools)
    short = [one for one in pools if taken[one.name] < one.count]
    assert not short or max(taken.values()) - min(taken[one.name] for one in short) <= 1


def test_the_plans_that_measure_use_every_card_and_the_network() -> None:
    request = make_request(Job.from_text(QUICK))
    plans = dict(plans_of(request))
    assert list(plans) == ["replicas on all cards", "a pipeline through all cards"]
    everything = {one.name: one.count for one in request.formation.pools}
    assert all(plan.cards_by_pool() == everything for plan in plans.values())


def test_what_was_measured_counts_for_a_day(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times: list[float] = []
    quiet = True

    def timed(device: object, cards: int, wish: Wish, say: object) -> tuple[Machine, str, bool]:
        times.append(wish.within)
        return catalog.machine("emulated-quartet").model_copy(update={"note": f"measured {len(times)}"}), "", quiet

    monkeypatch.setattr(before, "_timed", timed)

    def measured(wish: Wish) -> tuple[str | None, bool]:
        found = before.measured_device(wish, lambda _: None)
        assert found.kept.is_relative_to(tmp_path)
        return found.machine.note, found.cached

    assert measured(Wish(30.0)) == ("measured 1", False)
    assert measured(Wish(40.0)) == ("measured 1", True)
    assert measured(Wish(5.0)) == ("measured 2", False), "fewer sizes are another measurement"
    assert measured(Wish(30.0, anew=True)) == ("measured 3", False)
    assert measured(Wish(30.0)) == ("measured 3", True)
    kept = before.measured_device(Wish(30.0), lambda _: None).kept
    os.utime(kept, (time.time() - 2 * before.KEPT_S,) * 2)
    assert measured(Wish(30.0)) == ("measured 4", False)
    kept.write_text("pools: [", encoding="utf-8")
    assert measured(Wish(30.0)) == ("measured 5", False), "a broken file is measured again"
    quiet = False
    assert measured(Wish(50.0, anew=True)) == ("measured 6", False)
    assert measured(Wish(30.0)) == ("measured 5", True), "what was disturbed is used, and not kept"
    assert times == [30.0, 5.0, 30.0, 30.0, 30.0, 50.0]


def test_a_pool_of_the_machine_takes_what_was_measured_and_keeps_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timed = catalog.machine("emulated-quartet")
    monkeypatch.setattr(before, "_timed", lambda *_: (timed, "undisturbed", True))
    text = """\
schema: zhenfa.machine/1
name: mine
pue: 1.3
pools:
- name: processors
  count: 2
  power_per_card: 90 W
  accelerator: {id: host, maker: this host, name: host, software: {torch_device: cpu, collective_backend: gloo}}
  tiers: [{name: host, size: 2, bandwidth: 1 GB/s, latency: 1 ms}]
"""
    mine = Machine.from_text(text)
    resolved = catalog.resolve(mine)
    assert before.by_device(resolved)
    assert not before.by_device(catalog.resolve(timed))
    found = before.measured_device(Wish(30.0), lambda _: None, machine=mine, formation=resolved).machine
    (one,) = found.pools
    assert (found.name, one.name, one.accelerator) == ("mine", "processors", timed.pools[0].accelerator)
    assert (found.pue.value, one.power_per_card.value, one.tiers) == (1.3, 90.0, timed.pools[0].tiers)


def test_a_limit_in_which_nothing_can_be_timed_is_refused(zhenfa: Call) -> None:
    for text, words in (("1 s", "nothing can be timed in that"), ("soon", "soon")):
        shown = zhenfa("run", "quick.yaml", "--calibrate-within", text, "--quiet")
        assert (shown.code, shown.out) == (2, "")
        assert words in shown.err
        assert "hint: " in shown.err


@pytest.mark.live
def test_emulated_cards_are_measured_by_running_them(zhenfa: Call, tmp_path: Path) -> None:
    first = zhenfa("run", "quick.yaml", "--calibrate-within", "20 s", "--json", "--out", "first", columns=300)
    assert first.code == 0, first.err
    assert "calibrated: emulated-quartet (EMULATED): " in first.err
    run = json.loads(first.out)
    assert run["files"]["machine"] == "first/machine.yaml"
    kept = list(tmp_path.glob("cache/zhenfa/machines/*.yaml"))
    assert bool(kept) == ("left out" not in first.err), "only what was measured whole is kept"
    if not kept:
        pytest.skip("the emulation did not hold its time: not all was measured")
    read = Machine.from_file(tmp_path / "first" / "machine.yaml")
    for one in read.pools:
        assert one.learned.compute.value == pytest.approx(1.0, rel=0.05), "as fast as declared"
        assert ", EMULATED" in one.learned.compute.source
    again = zhenfa("run", "quick.yaml", "--calibrate", "--json", "--out", "again", columns=300)
    assert again.code == 0, again.err
    assert "(EMULATED): as measured " in again.err
    assert "--calibrate-anew measures again" in again.err
