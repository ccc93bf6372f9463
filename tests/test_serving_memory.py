"""What the cards of a serving plan hold."""

from __future__ import annotations

import pytest

import zhenfa

SHORT = [
    ("mamba-2.8b", (1, 8192), ("1 s", "100 ms"), ("nvidia-gb200-nvl72", 3)),
    ("qwen2.5-72b", (128, 16), ("5 s", "50 ms"), ("nvidia-hgx-h100-8", 8)),
    ("gpt3-175b", (1024, 16), ("1 s", "100 ms"), ("amd-mi300x-8", 64)),
]


@pytest.mark.parametrize(("model", "lengths", "targets", "cards"), SHORT)
def test_no_plan_holds_more_than_a_card_has(
    model: str, lengths: tuple[int, int], targets: tuple[str, str], cards: tuple[str, int]
) -> None:
    workload = dict(zip(("input_length", "output_length"), lengths, strict=True))
    workload |= dict(zip(("ttft_target", "tpot_target"), targets, strict=True))
    job = {"schema": "zhenfa.job/1", "name": "j", "model": model, "workload": {"task": "serve", **workload}}
    pools = [{"name": "cards", "system": cards[0], "count": cards[1]}]
    found = zhenfa.plan(job, {"schema": "zhenfa.machine/1", "name": "m", "title": "m", "pools": pools})
    assert any("->" in one.layout for one in found.plans), "prefill apart is among them"
    for one in found.plans:
        held, whole = one.estimate.fullest
        assert held <= whole, one.layout
