"""What is decided when cards fail: pure functions, without a process."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_pools import formation, pipeline, plan, pool
from zhenfa.live import linux, watchdog
from zhenfa.live.board import ACTIVITIES, Board
from zhenfa.live.guard import SUSPECT, Guard, total
from zhenfa.live.ladder import HOPELESS, RESTARTS, WINDOW, Ladder
from zhenfa.live.placement import CardPlace
from zhenfa.live.roster import Roster
from zhenfa.live.stragglers import IN_A_ROW, USUAL, Stragglers
from zhenfa.live.train import Measured
from zhenfa.live.watchdog import Watchdog

CARD = ("a", 0)


def test_the_rungs_are_climbed_in_order() -> None:
    ladder = Ladder(can_plan=True)
    assert ladder.rung(CARD, "poison", 7, spares=1) == "retry"
    assert [ladder.rung(CARD, "poison", 7, spares=1) for _ in range(RESTARTS)] == ["restart"] * RESTARTS
    assert ladder.rung(CARD, "poison", 7, spares=1) == "replace"
    assert ladder.rung(CARD, "poison", 7, spares=0) == "re-form"
    assert Ladder(can_plan=False).rung(CARD, "lost", 1, spares=0) == "stop"


def test_a_card_may_be_restarted_again_after_a_while() -> None:
    ladder = Ladder(can_plan=True)
    said = []
    for step in (1, 2, 3, WINDOW + 2, WINDOW + 3):
        said.append(ladder.rung(CARD, "death", step, spares=0))
        ladder.progressed()
    assert said == ["restart", "restart", "re-form", "restart", "restart"]


TROUBLES = st.sampled_from(["death", "hang", "error", "poison", "lost"])


@given(st.lists(st.tuples(st.integers(0, 3), TROUBLES, st.integers(0, 2)), max_size=60), st.booleans())
def test_nothing_is_tried_for_ever(events: list[tuple[int, str, int]], can_plan: bool) -> None:
    ladder = Ladder(can_plan=can_plan)
    for number, (card, trouble, spares) in enumerate(events, 1):
        rung = ladder.rung(("a", card), trouble, 5, spares=spares)
        assert rung == "stop" or number <= HOPELESS, "no step was taken all the while"
        assert rung != "restart" or trouble != "lost"
        assert rung != "retry" or trouble in ("error", "poison")
        assert rung != "replace" or spares
        assert rung != "re-form" or can_plan


NORMS = st.floats(1e-6, 1e6)


@given(st.lists(NORMS, min_size=2, max_size=6), st.integers(0, 5), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_never_used(norms: list[float], which: int, bad: float) -> None:
    rank = which % len(norms)
    norms[rank] = bad
    guard = Guard(len(norms))
    assert guard.judge(norms) == ("not finite", [rank])
    assert guard.judge(norms, [list(norms)]) == ("not finite", [rank])


@given(st.lists(NORMS, min_size=2, max_size=6), st.integers(0, 5), st.floats(1.01 * SUSPECT, 1e6))
def test_a_leap_is_suspect_until_it_is_seen_twice(norms: list[float], which: int, factor: float) -> None:
    guard = Guard(len(norms))
    leap = [*norms]
    leap[which % len(norms)] *= factor
    assert guard.judge(leap) == ("sound", []), "nothing was seen yet"
    for _ in range(3):
        guard.used(norms)
    assert guard.judge([1.5 * norm for norm in norms]) == ("sound", [])
    assert guard.judge(leap) == ("suspect", [which % len(norms)])
    assert guard.judge(leap, [leap]) == ("sound", [])
    assert guard.judge(leap, [norms])[0] == "suspect"
    assert guard.judge(norms, twice=True) == ("not the same twice", [])
    assert guard.judge(norms, [leap, norms], twice=True) == ("sound", [])
    assert guard.judge(leap, [norms], twice=True) == ("not the same twice", [which % len(norms)])


def test_what_was_usual_under_the_plan_before_holds_at_first() -> None:
    guard = Guard(2, usual=total([3.0, 4.0]))
    assert guard.judge([50.0, 4.0]) == ("sound", [])
    assert guard.judge([5.0 * SUSPECT + 1, 4.0]) == ("suspect", [0])
    assert Guard(2).judge([1e9, 4.0]) == ("sound", [])


def test_the_roster_leaves_out_and_sets_apart() -> None:
    roster = Roster(formation(pool("a", 3, speed=8e9), pool("b", 1, speed=1e9)))
    assert roster.formation() == roster.machine
    roster.lost.add(("a", 0))
    roster.slower["a", 2] = 4.0
    assert roster.cards() == {"a": [("a", 1)], "a-slow-2": [("a", 2)], "b": [("b", 0)]}
    left = {one.name: (one.count, one.accelerator.peak["fp32"].value) for one in roster.formation().pools}
    assert left == {"a": (1, 8e9), "a-slow-2": (1, 2e9), "b": (1, 1e9)}
    assert roster.spares({("a", 1)}, "a") == []
    assert roster.spares(set(), "a") == [("a", 1)]
    roster.lost |= {("a", 1), ("a", 2), ("b", 0)}
    assert roster.cards() == {}


def places() -> tuple[CardPlace, ...]:
    from live_pools import TINY
    from zhenfa.live.placement import place

    return place(plan(pipeline([4, 4], "ab", 2)), formation(pool("a", 1), pool("b", 1)), TINY)


def test_a_straggler_is_told_from_its_own_past_and_must_be_worth_it() -> None:
    def watch(seconds: list[float], left: int) -> list[tuple[tuple[str, int], float]]:
        measured, watcher = Measured(plan(pipeline([4, 4], "ab", 2)), places()), Stragglers()
        found = []
        for one in seconds:
            measured.losses.append(1.0)
            measured.spans = [[("forward", 0, 0.0, 1.0, -1, 0)], [("forward", 0, 0.0, one, -1, 1)]]
            slow = watcher.look(measured, left)
            found += [slow] if slow else []
        return found

    usual = [1.0] * (1 + USUAL)
    assert watch([*usual, *[4.0] * IN_A_ROW], 100) == [(("b", 0), 4.0)]
    assert watch([*usual, *[4.0] * (IN_A_ROW - 1), 1.0], 100) == [], "one slow step is none"
    assert watch([*usual, *[1.4] * IN_A_ROW], 100) == []
    assert watch([*usual, *[4.0] * IN_A_ROW], 0) == [], "no steps are left that could be faster"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board", 4, create=True)


def test_the_card_that_all_wait_for_is_named(board: Board) -> None:
    silent = [0, 1, 2, 3]
    for rank, peer in ((0, 1), (1, 2), (3, 2)):
        board.write(rank, "receive", peer=peer)
    board.write(2, "forward", micro_batch=1, step=4)
    found = Watchdog(board, lambda _: False, 30.0)
    assert found.guilty(silent) == ([2], None)
    board.write(2, "idle")
    assert found.guilty(silent) == ([2], None), "it waits for nobody"
    assert found.guilty([0, 1]) == ([1], None)
    for rank in silent:
        board.write(rank, "reduce")
    assert found.guilty(silent) == (silent, None)


def test_no_progress_is_seen_by_the_clock(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    found = Watchdog(board, lambda _: False, 30.0)
    board.write(1, "forward")
    now = 129.0
    assert found.held_up([0, 1]) is None
    board.write(0, "backward")
    now = 158.0
    assert found.held_up([0, 1]) is None, "card 0 has begun something since"
    now = 160.0
    assert found.held_up([0, 1]) == "no progress for 30 s"
    assert Watchdog(board, lambda _: False, None).held_up([0, 1]) is None


def test_a_stopped_process_is_seen_whatever_the_deadline(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        now = 0.0
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
        found = Watchdog(board, lambda rank: rank == 1 and linux.state_of(child.pid) == "T", 1e6)
        said = []
        for now in (1.0, 1.3, 1.9):  # noqa: B007 - read by the clock above
            said.append(found.held_up([0, 1]))
        assert said == [None, None, "no sign of life for 0.5 s"]
        assert found.guilty([0, 1]) == ([1], "Its process was stopped by a signal.")
        child.kill()


def test_every_activity_has_words() -> None:
    assert len({*ACTIVITIES}) == len(ACTIVITIES)
    for activity in ACTIVITIES:
        from zhenfa.live.board import Doing

        assert Doing(activity, 1, 2, 3, 0.0).words()
