"""A copy of the state in memory is whole or not there, and any layout takes up what any other has left."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from test_live_tensor import PLANS as SPLIT
from test_live_tensor import split
from zhenfa.errors import InputError, RunError
from zhenfa.live import checkpoint, marks, snapshots
from zhenfa.live.checkpoint import Piece
from zhenfa.live.copies import Copier, Copy
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.held import Held
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution, Fault
from zhenfa.spec.plan import Plan

MACHINE = formation(pool("a", 4), pool("b", 2))
EXECUTION = Execution(steps=6, learning_rate=1e-3, seed=7)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


def write(folder: Path, step: int, *cards: list[Held], mapped: bool = True) -> None:
    """Have each card copy its tensors."""
    folder.mkdir(exist_ok=True)
    for rank, held in enumerate(cards):
        copier = Copier(rank, len(cards))
        copier.copy(folder, step, held, {"lr": 1e-3, "betas": (0.9, 0.95)}, mapped=mapped, synchronize=lambda: None)()


def cut(whole: torch.Tensor, axis: int, at: list[int]) -> list[Held]:
    """Cut a tensor along an axis."""
    ends = [0, *sorted(at), whole.shape[axis]]
    found = []
    for first, last in pairwise(ends):
        offsets = [first if one == axis else 0 for one in range(whole.ndim)]
        found.append(
            Held("model.one", whole.narrow(axis, first, last - first), Piece(tuple(whole.shape), tuple(offsets)))
        )
    return found


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), axis=st.integers(0, 1), draw=st.data(), mapped=st.booleans(),
    kind=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
)  # fmt: skip
def test_any_piece_is_had_from_any_pieces(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], axis: int, draw: st.DataObject, mapped: bool,
    kind: torch.dtype,
) -> None:  # fmt: skip
    whole = torch.arange(shape[0] * shape[1]).reshape(shape).to(kind)
    at = draw.draw(st.lists(st.integers(0, shape[axis]), max_size=3))
    other = Held("model.two", torch.full((3,), 7, dtype=torch.uint8), Piece((3,), (0,)))
    folder = tmp_path_factory.mktemp("copy") / "one.copy"
    write(folder, 4, *([one, other] for one in cut(whole, axis, at)), mapped=mapped)
    marks.verify(folder, 4)
    kept = Copy(folder)
    firsts = [draw.draw(st.integers(0, size)) for size in shape]
    lasts = [draw.draw(st.integers(first, size)) for first, size in zip(firsts, shape, strict=True)]
    wanted = torch.zeros([last - first for first, last in zip(firsts, lasts, strict=True)], dtype=kind)
    kept.fill("model.one", wanted, Piece(shape, tuple(firsts)))
    assert torch.equal(wanted, whole[firsts[0] : lasts[0], firsts[1] : lasts[1]])
    (found,) = kept.tensors("model", {"two": torch.zeros(3, dtype=torch.uint8), "three": torch.zeros(1)}).values()
    assert found.tolist() == [7, 7, 7]
    with pytest.raises(InputError, match=r"'model\.three'"):
        kept.fill("model.three", torch.zeros(1), Piece((1,), (0,)))


def test_a_place_is_used_again_and_laid_out_anew_for_other_tensors(tmp_path: Path) -> None:
    folder, copier = tmp_path / "one.copy", Copier(0, 1)
    folder.mkdir()
    files = []
    for step, size in enumerate((4, 4, 6), start=1):
        held = [Held("model.one", torch.full((size,), float(step)), Piece((size,), (0,)))]
        left = copier.copy(folder, step, held, {}, mapped=True, synchronize=lambda: None)
        with pytest.raises(InputError, match=r"is not whole: it has no card-00000\.mark"):
            marks.verify(folder, step)
        left()
        marks.verify(folder, step)
        with pytest.raises(InputError, match="is not of step 9"):
            marks.verify(folder, 9)
        files.append((folder / "card-00000.safetensors").stat().st_ino)
        filled = torch.zeros(size)
        Copy(folder).fill("model.one", filled, Piece((size,), (0,)))
        assert filled.tolist() == [float(step)] * size
    assert files[0] == files[1] != files[2]


def test_files_have_the_form_of_safetensors(tmp_path: Path) -> None:
    torch_form = pytest.importorskip("safetensors.torch")
    held = [
        Held("model.one", torch.arange(5, dtype=torch.bfloat16), Piece((5,), (0,))),
        Held("model.two", torch.tensor(3.5), Piece((), ())),
    ]
    write(tmp_path / "one.copy", 1, held)
    found = torch_form.load_file(tmp_path / "one.copy" / "card-00000.safetensors")
    assert {name: value.tolist() for name, value in found.items()} == {"model.one": [0, 1, 2, 3, 4], "model.two": 3.5}


@pytest.mark.parametrize("mapped", [True, False])
def test_no_broken_copy_is_ever_chosen(tmp_path: Path, mapped: bool) -> None:
    dice = random.Random(7)
    source = tmp_path / "source.copy"
    whole = torch.randn(40, 30)
    write(source, 5, *([one] for one in cut(whole, 0, [11, 25])), mapped=mapped)
    marks.verify(source, 5)
    broken = tmp_path / "broken.copy"
    for _ in range(200):
        shutil.copytree(source, broken)
        harm(broken, dice)
        with pytest.raises(InputError, match=r"the copy .*broken"):
            marks.verify(broken, 5)
        shutil.rmtree(broken)


def test_a_mark_is_right_to_the_last_bit(tmp_path: Path) -> None:
    write(tmp_path / "one.copy", 1, [Held("model.one", torch.ones(2), Piece((2,), (0,)))])
    mark = tmp_path / "one.copy" / "card-00000.mark"
    content = mark.read_bytes()
    cuts = [content[:length] for length in range(len(content))]
    flips = [
        content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at in range(len(content)) for bit in range(8)
    ]  # fmt: skip
    for changed in (*cuts, *flips, content + b"\n", content + b"x", content.replace(b"\n", b"\r\n")):
        mark.write_bytes(changed)
        with pytest.raises(InputError, match="cannot be read"):
            marks.verify(tmp_path / "one.copy", 1)
    mark.write_bytes(content)
    marks.verify(tmp_path / "one.copy", 1)


def harm(folder: Path, dice: random.Random) -> None:
    """Do to a copy what a crash or bad memory does."""
    victim = dice.choice(sorted(folder.iterdir()))
    content = bytearray(victim.read_bytes())
    kind = dice.choice(["flip", "spoil", "cut", "remove", "empty", "grow", "another step"])
    at = dice.randrange(len(content))
    if kind == "flip":
        content[at] ^= 1 << dice.randrange(8)
    elif kind == "spoil":
        content[at : at + 64] = bytes(one ^ dice.randrange(1, 256) for one in content[at : at + 64])
    elif kind == "cut":
        del content[at:]
    elif kind == "empty":
        content.clear()
    elif kind == "grow":
        content += b"x"
    victim.write_bytes(content)
    if kind == "remove":
        victim.unlink()
    elif kind == "another step":
        write(folder, 6, [Held("model.one", torch.zeros(3), Piece((3,), (0,)))])


def test_a_card_that_dies_at_any_moment_leaves_a_whole_copy_or_none(tmp_path: Path) -> None:
    """What passes for whole is of one step throughout, whenever its card was killed."""
    folder, dice, told = tmp_path / "one.copy", random.Random(3), 0
    folder.mkdir()
    for _ in range(30):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            copy_on_and_on(folder, writing)
        os.close(writing)
        for _ in range(dice.randrange(1, 60)):
            os.read(reading, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        try:
            step = marks.mark_of(folder, 0).step
            marks.verify(folder, step)
        except InputError:
            continue
        told += 1
        kept = Copy(folder)
        for number in range(20):
            found = torch.zeros(8000)
            kept.fill(f"model.{number}", found, Piece((8000,), (0,)))
            assert set(found.tolist()) == {float(step)}
    assert 0 < told < 30, "some were whole, some were not"


def copy_on_and_on(folder: Path, told: int) -> None:
    """Copy step after step, with a byte after each half; returns never."""
    try:
        torch.set_num_threads(1)
        copier, step = Copier(0, 1), 0
        while True:
            step += 1
            held = [
                Held(f"model.{one}", torch.full((8000,), float(step)), Piece((8000,), (0,))) for one in range(20)
            ]  # fmt: skip
            left = copier.copy(folder, step, held, {}, mapped=True, synchronize=lambda: None)
            os.write(told, b".")
            left()
            os.write(told, b".")
    finally:
        os._exit(1)


PAIRS = {
    "split matrices, then whole ones": (SPLIT["one stage over two cards"], plan(pipeline([8], "a", 4))),
    "replicas split unlike with ZeRO-1, then one stage over two cards": (
        SPLIT["replicas split unlike"].model_copy(update={"zero": 1}),
        plan(SPLIT["one stage over two cards"].pipelines[0].model_copy(update={"micro_batches": 5})),
    ),
    "replicas split alike with ZeRO-1, then rows": (
        SPLIT["replicas split alike"].model_copy(update={"zero": 1}),
        plan(pipeline([8], "a", 3), pipeline([8], "b", 2), zero=3),
    ),
    "rows, then split matrices": (
        plan(pipeline([8], "a", 2), pipeline([8], "b", 2), zero=2), plan(split(pipeline([8], "b", 4), 2)),
    ),
}  # fmt: skip


@pytest.mark.live
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("tied", [False, True])
def test_copies_move_between_layouts(engine: LocalEngine, name: str, tied: bool) -> None:
    before, after = PAIRS[name]
    sizes = replace(TINY, tied=tied)
    calm = run_plan(before, MACHINE, sizes, EXECUTION, engine=engine)
    one, other = (Fault(step=4, card=0, kind=kind) for kind in ("kill", "lose"))
    execution = EXECUTION.model_copy(update={"faults": (one,)})
    same = run_plan(before, MACHINE, sizes, execution, engine=engine)
    assert [incident.action for incident in same.incidents] == ["restart"]
    assert same.losses == calm.losses, "to the bit"
    least = formation(pool("a", before.cards_by_pool()["a"]), pool("b", max(before.cards_by_pool().get("b", 0), 2)))
    execution = EXECUTION.model_copy(update={"faults": (other,)})
    moved = run_plan(before, least, sizes, execution, engine=engine, replan=lambda _: after)
    assert [incident.action for incident in moved.incidents] == ["re-form"]
    assert moved.losses == pytest.approx(calm.losses, rel=1e-5)


@pytest.mark.live
def test_copies_without_a_folder_in_memory(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(snapshots, "SHARED_MEMORY", tmp_path / "none")
    chosen = plan(pipeline([5, 3], "ab", 4))
    calm = run_plan(chosen, MACHINE, TINY, EXECUTION, engine=engine)
    seen: list[int] = []
    execution = EXECUTION.model_copy(update={"faults": (Fault(step=5, card=1, kind="kill"),)})
    run = run_plan(
        chosen, MACHINE, TINY, execution, engine=engine,
        on_progress=lambda *_: seen.append(len(list(engine.folder.glob("snapshots/*/card-00001.safetensors")))),
    )  # fmt: skip
    assert run.losses == calm.losses
    assert [incident.steps_lost <= 1 for incident in run.incidents] == [True], "the last copy may lack its mark yet"
    assert seen[-1] >= snapshots.KEPT
    assert not list(engine.folder.glob("snapshots")), "nothing is left behind"


@pytest.mark.live
def test_what_a_run_leaves_when_it_cannot_go_on_is_a_checkpoint_like_any_other(
    engine: LocalEngine, tmp_path: Path
) -> None:
    chosen: Plan = SPLIT["one stage over two cards"]
    whole = run_plan(chosen, MACHINE, TINY, EXECUTION.model_copy(update={"steps": 4}), engine=engine)
    machine = formation(pool("a", 2))
    execution = EXECUTION.model_copy(update={"faults": (Fault(step=4, card=1, kind="lose"),)})
    with pytest.raises(RunError, match=r"card 1 .* died"):
        run_plan(chosen, machine, TINY, execution, engine=engine, out_dir=tmp_path / "broken")
    path, refused = checkpoint.newest(tmp_path / "broken")
    assert path is not None
    assert refused == []
    step = checkpoint.verify(path)["step"]
    assert step in (2, 3), "the last copy may lack its mark yet"
    usual = run_plan(chosen, MACHINE, TINY, EXECUTION.model_copy(update={"steps": step}), engine=engine,
                     out_dir=tmp_path / "usual")  # fmt: skip
    assert checkpoint.shapes(path, "model") == checkpoint.shapes(Path(usual.checkpoint or ""), "model")
    assert checkpoint.shapes(path, "optimizer") == checkpoint.shapes(Path(usual.checkpoint or ""), "optimizer")
    rest = run_plan(
        chosen, MACHINE, TINY, EXECUTION.model_copy(update={"steps": 4}), engine=engine, resume=path
    )  # fmt: skip
    assert rest.losses == whole.losses[step:]
    expected = reference_losses(TINY, EXECUTION, steps=4, global_batch=chosen.global_batch)
    assert whole.losses == pytest.approx(expected, rel=1e-5)
