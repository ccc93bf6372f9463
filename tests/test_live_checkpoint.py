"""A checkpoint is whole or not there, resumes at another split, and reads nothing but tensors."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from live_pools import TINY, formation, pipeline, plan, pool, reference_losses
from zhenfa.errors import InputError
from zhenfa.live import checkpoint, data
from zhenfa.live.decoder import StageModule, loss_of
from zhenfa.live.run import run_plan
from zhenfa.live.sizes import Sizes
from zhenfa.spec.job import Execution
from zhenfa.spec.result import Run

EXECUTION = Execution(steps=2, learning_rate=1e-3, seed=11)
BATCH = 6


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps on four cards at [4, 2, 1, 1], saved."""
    machine = formation(pool("a", 1), pool("b", 1), pool("c", 2))
    out = tmp_path_factory.mktemp("run")
    return run_plan(plan(pipeline([4, 2, 1, 1], "abcc", BATCH)), machine, TINY, EXECUTION, out_dir=out)


def whole(sizes: Sizes, seed: int) -> tuple[StageModule, torch.optim.Optimizer]:
    module = StageModule(sizes, 0, sizes.layers, stem=True, head=True, seed=seed)
    return module, torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=EXECUTION.weight_decay)


@pytest.mark.live
def test_one_process_resumes_what_four_cards_saved(saved: Run) -> None:
    path = Path(saved.checkpoint or "")
    module, optimizer = whole(TINY, seed=99)
    manifest = checkpoint.load(path, module, optimizer)
    assert manifest["step"] == 2
    assert manifest["plan"]["pipelines"][0]["stages"][0]["pool"] == "a"
    inputs, targets = data.batch(data.corpus("python-stdlib"), seed=11, step=3, global_batch=BATCH, length=16)
    losses = []
    for _ in range(2):
        loss = loss_of(module(torch.from_numpy(inputs)), torch.from_numpy(targets.copy()), BATCH * 16)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    expected = reference_losses(TINY, EXECUTION, steps=3, global_batch=BATCH)
    assert losses[0] == pytest.approx(expected[2], rel=1e-5)
    assert losses[1] < losses[0]
    assert all(state["step"] == 4 for state in optimizer.state.values()), "the moments were resumed"


@pytest.mark.live
def test_a_stage_of_another_split_takes_its_own_layers(saved: Run) -> None:
    module, optimizer = whole(TINY, seed=99)
    checkpoint.load(Path(saved.checkpoint or ""), module, optimizer)
    stage = StageModule(TINY, 3, 6, stem=False, head=False, seed=1)
    moments = torch.optim.AdamW(stage.parameters())
    checkpoint.load(Path(saved.checkpoint or ""), stage, moments)
    full = module.state_dict()
    part = stage.state_dict()
    assert set(part) == {name for name in full if name.startswith(("layers.3.", "layers.4.", "layers.5."))}
    assert all(torch.equal(value, full[name]) for name, value in part.items())
    by_name = dict(module.named_parameters())
    for name, parameter in stage.named_parameters():
        assert torch.equal(moments.state[parameter]["exp_avg"], optimizer.state[by_name[name]]["exp_avg"])


@pytest.mark.live
def test_changed_missing_and_unfinished_files_are_refused(saved: Run, tmp_path: Path) -> None:
    source = Path(saved.checkpoint or "")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert checkpoint.verify(copy)["step"] == 2
    victim = next(file for file in sorted(copy.iterdir()) if file.suffix == ".distcp")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"has changed since it was written"):
        checkpoint.verify(copy)
    victim.unlink()
    with pytest.raises(InputError, match="is missing"):
        checkpoint.verify(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="not a whole checkpoint"):
        checkpoint.verify(copy)
    assert not list(source.parent.glob("*.partial"))


def test_foreign_pickles_are_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "touched",))

    partial = tmp_path / "checkpoint-000001.partial"
    partial.mkdir()
    (partial / ".metadata").write_bytes(pickle.dumps(Evil()))
    final = checkpoint.finish(partial, {"step": 1})
    module, _ = whole(TINY, seed=1)
    with pytest.raises(InputError, match="which is not read"):
        checkpoint.load(final, module)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"schema": "zhenfa.checkpoint/1", "files": {"../x": "0"}})])
def test_broken_manifests_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(InputError):
        checkpoint.verify(tmp_path)
