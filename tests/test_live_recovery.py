"""Cards die, hang, turn slow or compute nonsense, and the run comes to the losses that it would have come to."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from zhenfa.errors import InfeasibleError, RunError
from zhenfa.live import checkpoint, stragglers
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.run import run_plan
from zhenfa.live.snapshots import SHARED_MEMORY
from zhenfa.spec.job import Execution, Fault
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Run

pytestmark = pytest.mark.live

STEPS = 7
PAIR = formation(pool("a", 1), pool("b", 2))
PLAN = plan(pipeline([4, 3, 1], "abb", 4))
SEVERAL = formation(pool("c", 2), pool("d", 2))
REPLICAS = plan(pipeline([5, 3], "cd", 4), pipeline([3, 5], "cd", 2))
SETTINGS = {"steps": STEPS, "learning_rate": 1e-3, "seed": 5}


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def undisturbed() -> list[float]:
    return reference_losses(TINY, Execution(**SETTINGS), steps=STEPS, global_batch=4)


def left(machine: Formation) -> Plan:
    """The plan of the tests for what is left of the machine: two cards, or all three."""
    pools = {one.name: one.count for one in machine.pools}
    if pools == {"a": 1, "b": 2}:
        return PLAN
    if pools == {"a": 1, "b": 1}:
        return plan(pipeline([5, 3], "ab", 4))
    if pools == {"b": 2}:
        return plan(pipeline([4, 4], "bb", 4))
    raise InfeasibleError(f"no plan for {pools}")


def run(engine: LocalEngine, *faults: Fault, out: Path | None = None, machine: Formation = PAIR, **more: object) -> Run:
    execution = Execution(**(SETTINGS | more), faults=faults)
    return run_plan(PLAN, machine, TINY, execution, engine=engine, replan=left, out_dir=out)


def told(run: Run) -> list[tuple[int, str, str]]:
    return [(one.step, one.kind, one.action) for one in run.incidents]


@pytest.mark.parametrize("card", [0, 1, 2])
@pytest.mark.parametrize(
    ("kind", "what", "action"),
    [("kill", "death", "restart"), ("hang", "hang", "restart"), ("nan", "poison", "retry"),
     ("scale", "poison", "retry"), ("lose", "death", "re-form")],
)  # fmt: skip
def test_a_fault_on_any_card_changes_no_loss(
    engine: LocalEngine, undisturbed: list[float], kind: str, what: str, action: str, card: int
) -> None:
    found = run(engine, Fault(step=5, card=card, kind=kind, factor=1e4))
    assert told(found) == [(5, what, action)]
    assert found.incidents[0].card.startswith(f"card {card} (")
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)
    assert found.plan.cards == (2 if action == "re-form" else 3)


def test_one_fault_after_the_other(engine: LocalEngine, undisturbed: list[float]) -> None:
    faults = [
        Fault(step=2, card=0, kind="kill"), Fault(step=3, card=1, kind="hang"), Fault(step=4, card=2, kind="nan"),
        Fault(step=5, card=1, kind="lose", back=1), Fault(step=7, card=0, kind="kill"),
    ]  # fmt: skip
    found = run(engine, *faults)
    assert told(found) == [
        (2, "death", "restart"), (3, "hang", "restart"), (4, "poison", "retry"), (5, "death", "re-form"),
        (6, "back", "grow"), (7, "death", "restart"),
    ]  # fmt: skip
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)
    assert found.plan == PLAN
    assert 0 < (found.effective_share or 0) < 1
    assert (found.figures.ettr.tag, found.figures.ettr.value) == ("measured", found.effective_share)
    assert found.figures.ettr.note == (
        "share of this run's wall-clock time in steps that stayed, faults on purpose among it"
    )
    assert found.walls.reliability.detail.startswith("6 incidents; down ")


@pytest.mark.parametrize("every", [{}, {"checkpoint_every": STEPS}, {"snapshot_every": 0}])
def test_a_card_that_dies_after_the_last_step_is_done_without(
    engine: LocalEngine, undisturbed: list[float], tmp_path: Path, every: dict[str, int]
) -> None:
    """The run is not over before its cards have reported and its last checkpoint is written."""
    killed: list[psutil.Process] = []

    def strike(step: int, *_: object) -> None:
        if step == STEPS and not killed:
            killed.append(psutil.Process(engine.process(1)))
            killed[0].kill()
            psutil.wait_procs(killed)

    execution = Execution(**SETTINGS | every)
    found = run_plan(
        PLAN, PAIR, TINY, execution, engine=engine, replan=left, out_dir=tmp_path, on_progress=strike
    )  # fmt: skip
    assert told(found) == [(STEPS, "death", "restart")]
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)
    assert (found.steps, found.checkpoint) == (STEPS, str(tmp_path / f"checkpoint-{STEPS:06d}"))
    assert checkpoint.verify(Path(str(found.checkpoint)))["step"] == STEPS


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_step_that_failed_holds_nothing(engine: LocalEngine, zero: int) -> None:
    """Cards that waited for one that hangs, or for each other, go on with as many descriptors and threads as before."""
    held: list[list[tuple[int, int]]] = []

    def look(*_: object) -> None:
        cards = [psutil.Process(engine.process(rank)) for rank in (0, 1, 2)]
        held.append([(card.num_fds(), card.num_threads()) for card in cards])

    shared = plan(pipeline([5, 3], "cd", 4), pipeline([3, 5], "cd", 2), zero=zero)
    execution = Execution(**SETTINGS, faults=(Fault(step=2, card=3, kind="hang"), Fault(step=5, card=3, kind="hang")))
    found = run_plan(shared, SEVERAL, TINY, execution, engine=engine, on_progress=look)
    assert [one.kind for one in found.incidents] == ["hang", "hang"]
    assert held[-1] == held[0]


def test_a_death_told_to_somebody_else_is_not_lost(engine: LocalEngine, undisturbed: list[float]) -> None:
    """Two cards die before the same step: the word of the first comes while the second is being dealt with."""
    faults = [Fault(step=3, card=0, kind="kill"), Fault(step=3, card=1, kind="slow", factor=1.0)]
    found = run(engine, *faults, Fault(step=4, card=7, kind="kill"))
    assert told(found) == [(3, "death", "restart")]
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)
    assert "fault kill of step 4 did not happen: the plan has 3 cards, no card 7" in found.notes


def test_two_cards_lost_in_the_same_step(engine: LocalEngine, undisturbed: list[float]) -> None:
    machine = formation(pool("a", 1), pool("b", 4))

    def still(machine: Formation) -> Plan:
        return plan(pipeline([4, 4], "bb", 4))

    execution = Execution(**SETTINGS, faults=[Fault(step=4, card=card, kind="lose") for card in (1, 2)])
    found = run_plan(PLAN, machine, TINY, execution, engine=engine, replan=still)
    assert {one.action for one in found.incidents} == {"replace"}, "two idle cards of the pool were there"
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)
    assert found.plan == PLAN


def test_a_card_that_dies_again_and_again_is_taken_for_broken(engine: LocalEngine, undisturbed: list[float]) -> None:
    found = run(engine, *(Fault(step=step, card=2, kind="kill") for step in (2, 3, 4)))
    assert [action for _, _, action in told(found)] == ["restart", "restart", "re-form"]
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)


def test_a_run_that_cannot_go_on_keeps_what_it_has(engine: LocalEngine, tmp_path: Path) -> None:
    faults = [Fault(step=4, card=0, kind="lose"), Fault(step=5, card=0, kind="lose")]
    with pytest.raises(RunError, match=r"card 0 .* died"):
        run(engine, *faults, out=tmp_path)
    path, refused = checkpoint.newest(tmp_path)
    assert path is not None
    assert refused == []
    assert checkpoint.verify(path)["step"] >= 3


def test_training_that_diverges_is_no_card_s_fault(engine: LocalEngine, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not finite on card .* the training has diverged"):
        run(engine, learning_rate=10.0, steps=100, weight_decay=10.0, out=tmp_path)
    assert checkpoint.newest(tmp_path)[0] is not None


def test_a_slow_card_is_given_less(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stragglers, "COST_S", 0.05)
    machine = formation(pool("fast", 1, speed=4e8), pool("same", 1, speed=4e8))
    asked: list[dict[str, float]] = []

    def replan(left: Formation) -> Plan:
        asked.append({one.name: one.accelerator.peak["fp32"].value or 0.0 for one in left.pools})
        return plan(pipeline([7, 1], ("fast", "same-slow-0"), 4))

    execution = Execution(steps=14, learning_rate=1e-3, faults=(Fault(step=6, card=1, kind="slow", factor=5),))
    even = plan(pipeline([4, 4], ("fast", "same"), 4))
    found = run_plan(even, machine, TINY, execution, engine=engine, replan=replan)
    (incident,) = found.incidents
    assert (incident.kind, incident.action, incident.steps_lost) == ("slow", "re-balance", 0)
    assert asked[0]["fast"] == 4e8
    assert 4e8 / 7 < asked[0]["same-slow-0"] < 4e8 / 3
    assert [stage.pool for stage in found.stages] == ["fast", "same"], "the card is the one that it was"
    assert found.losses == pytest.approx(reference_losses(TINY, execution, steps=14, global_batch=4), rel=1e-5)


def test_replaying_steps_changes_nothing_and_finds_nothing(engine: LocalEngine, undisturbed: list[float]) -> None:
    found = run(engine, replay_every=2)
    assert found.incidents == ()
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)


def test_a_small_error_is_found_by_replay(engine: LocalEngine, undisturbed: list[float]) -> None:
    found = run(engine, Fault(step=4, card=1, kind="scale", factor=1.001), replay_every=4)
    assert told(found) == [(4, "poison", "retry")]
    assert found.incidents[0].words == "gradients: not the same twice"
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)


def test_a_plan_that_cannot_be_made_leaves_the_one_under_way(
    engine: LocalEngine, undisturbed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stragglers, "COST_S", -1e9)
    monkeypatch.setattr(stragglers, "SLOW", 0.0)  # every card is slow all the time

    def none(machine: Formation) -> Plan:
        raise InfeasibleError("nothing fits")

    said: list[str] = []
    found = run_plan(PLAN, PAIR, TINY, Execution(**SETTINGS), engine=engine, replan=none, on_phase=said.append)
    assert found.incidents == ()
    assert "no other plan: nothing fits" in said
    assert found.plan == PLAN
    assert found.losses == pytest.approx(undisturbed, rel=1e-5)


def test_a_resumed_run_is_the_same_to_the_bit(engine: LocalEngine, tmp_path: Path) -> None:
    whole = run(engine)
    first = run(engine, steps=4, out=tmp_path)
    execution = Execution(**SETTINGS)
    path = Path(first.checkpoint or "")
    second = run_plan(PLAN, PAIR, TINY, execution, engine=engine, resume=path)
    assert first.losses + second.losses == whole.losses
    other = run_plan(plan(pipeline([2, 6], "ab", 2, size=2)), PAIR, TINY, execution, engine=engine, resume=path)
    assert other.losses == pytest.approx(whole.losses[4:], rel=1e-5)


def test_a_preempted_run_ends_after_the_step_with_a_checkpoint(engine: LocalEngine, tmp_path: Path) -> None:
    seen: list[int] = []
    found = run_plan(
        PLAN, PAIR, TINY, Execution(**SETTINGS), engine=engine, out_dir=tmp_path, stop=lambda: len(seen) == 3,
        on_progress=lambda step, *_: seen.append(step),
    )  # fmt: skip
    assert found.steps == len(found.losses) == 3
    assert checkpoint.verify(Path(found.checkpoint or ""))["step"] == 3


def test_checkpoints_on_the_way_are_kept_as_many_as_asked_for(engine: LocalEngine, tmp_path: Path) -> None:
    run(engine, out=tmp_path, checkpoint_every=2, keep_checkpoints=2)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["checkpoint-000006", "checkpoint-000007"]
    assert all(checkpoint.verify(tmp_path / name) for name in kept)


def test_nothing_stays_in_shared_memory() -> None:
    seen: list[bool] = []
    with LocalEngine() as engine:
        own = SHARED_MEMORY / engine.folder.name
        run_plan(
            PLAN, PAIR, TINY, Execution(**SETTINGS, faults=(Fault(step=3, card=1, kind="kill"),)), engine=engine,
            on_progress=lambda *_: seen.append(own.exists() and own.stat().st_mode & 0o077 == 0),
        )  # fmt: skip
        assert not own.exists()
    assert seen[-1], "the copies were there, for the owner alone"


def test_no_broken_checkpoint_is_ever_chosen(engine: LocalEngine, tmp_path: Path) -> None:
    dice = random.Random(7)
    good = tmp_path / "good"
    run(engine, steps=2, out=good)
    source = good / "checkpoint-000002"
    for number in range(200):
        broken = good / f"checkpoint-{3 + number:06d}"
        shutil.copytree(source, broken)
        harm(broken, dice)
        path, refused = checkpoint.newest(good)
        assert path == source, f"number {number}"
        assert len(refused) == 1
        shutil.rmtree(broken)


def harm(folder: Path, dice: random.Random) -> None:
    """Do to a checkpoint what a crash, a full disk or a bad one does."""
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    victim = dice.choice(files)
    content = bytearray(victim.read_bytes())
    kind = dice.choice(["flip", "cut", "remove", "empty", "zeros", "no manifest", "grow"])
    if kind == "flip":
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del content[dice.randrange(len(content)) :]
    elif kind == "empty":
        content.clear()
    elif kind == "zeros":
        start = dice.randrange(len(content))
        content[start : start + 64] = b"\xff" * len(content[start : start + 64])
    elif kind == "grow":
        content += b"x"
    victim.write_bytes(content)
    if kind == "remove":
        victim.unlink()
    elif kind == "no manifest":
        (folder / checkpoint.MANIFEST).unlink()


def test_a_card_that_sums_nothing_early_meets_the_others(engine: LocalEngine) -> None:
    """A poisoned card begins its sums after its backward passes, the others beside theirs: all keep one order."""
    machine = formation(pool("x", 1, speed=5e8), pool("y", 1, speed=5e8), latency="10 us")
    halves = plan(pipeline([8], "x", 2), pipeline([8], "y", 2))
    execution = Execution(**SETTINGS | {"progress_timeout_s": 10.0}, faults=[Fault(step=3, card=1, kind="nan")])
    found = run_plan(halves, machine, TINY, execution, engine=engine)
    assert told(found) == [(3, "poison", "retry")]
    assert len([event for event in found.events if event.kind == "sum" and event.card == 0]) > 1
    expected = reference_losses(TINY, execution, steps=STEPS, global_batch=4)
    assert found.losses == pytest.approx(expected, rel=1e-5)


def heaps(process: int) -> int:
    """Count the heaps that glibc gave to threads: 64 MiB reserved at a multiple of 64 MiB, writable in part."""
    rows = [line.split()[:2] for line in Path(f"/proc/{process}/maps").read_text().splitlines()]
    found = [([int(end, 16) for end in span.split("-")], rights) for span, rights in rows]
    return sum(
        rights == "rw-p" and next_rights == "---p" and end == start and not first % 2**26 and last - first == 2**26
        for ((first, end), rights), ((start, last), next_rights) in itertools.pairwise(found)
    )


def test_cards_that_come_together_again_and_again_hold_no_more(engine: LocalEngine) -> None:
    """Threads, descriptors and heaps of a card are the same after ten plans as after two, whatever the plan before."""
    halves = plan(pipeline([8], "a", 2), pipeline([8], "b", 2))
    execution = Execution(**SETTINGS | {"steps": 1})

    def held() -> list[tuple[int, int, int]]:
        processes = [psutil.Process(engine.process(rank)) for rank in range(2)]
        return [(one.num_threads(), one.num_fds(), heaps(one.pid)) for one in processes]

    rows = []
    for one in [PLAN, halves] * 5:
        run_plan(one, PAIR, TINY, execution, engine=engine)
        if one is halves:
            rows.append(held())
    assert rows[1:] == rows[:1] * 4
    assert [number for _, _, number in rows[0]] == [0, 0]
