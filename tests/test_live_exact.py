"""A step is a function of the seed, the step's number and what a checkpoint holds: to the bit on the same layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from live_pools import TINY, formation, pipeline, plan, pool
from zhenfa.live.engine_local import LocalEngine
from zhenfa.live.run import run_plan
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Plan

MACHINE = formation(pool("a", 2), pool("b", 1), pool("c", 2))
EXECUTION = Execution(
    steps=4, learning_rate=3e-3, learning_rate_schedule="cosine", warmup_steps=1, clip_gradient_norm=0.5,
    evaluate_every=1, seed=5, checkpoint_every=2, keep_checkpoints=5,
)  # fmt: skip
REPLICAS = plan(pipeline([6, 2], "ac", 4), pipeline([3, 5], "bc", 2), schedule="zero-bubble")
FOLDED = pipeline([2, 2, 2, 2], "abba", 4, recompute="full").model_copy(update={"virtual_stages": 2})

LAYOUTS = {
    "replicas in bf16 that share their state": REPLICAS.model_copy(update={"precision": "bf16", "zero": 1}),
    "replicas": REPLICAS,
    "two stages to a card, recomputing": plan(FOLDED, schedule="zero-bubble-v"),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(protect=False) as engine:
        yield engine


@pytest.mark.live
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_resumed_run_is_the_same_to_the_bit(engine: LocalEngine, name: str, tmp_path: Path) -> None:
    chosen: Plan = LAYOUTS[name]
    whole = run_plan(chosen, MACHINE, TINY, EXECUTION, engine=engine, out_dir=tmp_path / "whole")
    half = tmp_path / "whole" / "checkpoint-000002"
    rest = run_plan(chosen, MACHINE, TINY, EXECUTION, engine=engine, out_dir=tmp_path / "rest", resume=half)
    assert rest.losses == whole.losses[2:]
    assert rest.gradient_norms == whole.gradient_norms[2:]
    assert rest.evaluations == whole.evaluations[2:]


@pytest.mark.live
def test_a_checkpoint_goes_on_at_another_layout_and_precision(engine: LocalEngine, tmp_path: Path) -> None:
    whole = run_plan(REPLICAS, MACHINE, TINY, EXECUTION, engine=engine, out_dir=tmp_path / "whole")
    half = tmp_path / "whole" / "checkpoint-000002"
    shared = plan(pipeline([8], "a", 3), pipeline([8], "b", 3), zero=1)
    for other, close in (
        (plan(FOLDED.model_copy(update={"micro_batches": 6}), schedule="zero-bubble-v"), 1e-5),
        (shared, 1e-5),
        (shared.model_copy(update={"precision": "bf16"}), 1e-2),
    ):
        rest = run_plan(other, MACHINE, TINY, EXECUTION, engine=engine, out_dir=tmp_path / "rest", resume=half)
        assert rest.losses == pytest.approx(whole.losses[2:], rel=close)


def test_keys_that_the_page_shows_are_the_job_s() -> None:
    page = Path(__file__).parent.parent / "docs" / "concepts" / "execution.md"
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    shown = YAML(typ="safe").load(block)["execution"]
    execution = Execution(**shown)
    assert {name: getattr(execution, name) for name in shown} == shown
    assert execution.learning_rate == 3e-4
