"""What is planned for serving can be written for the engines that serve."""

from __future__ import annotations

from pathlib import Path

from zhenfa.plan.emit import emit, read_subject
from zhenfa.plan.request import read_request
from zhenfa.plan.serving import find_serving

ROOT = Path(__file__).parent.parent


def test_what_is_planned_for_serving_fills_hosts_and_is_written(tmp_path: Path) -> None:
    """An instance over several hosts takes whole ones, so that the engines can be started host by host."""
    answer = find_serving(read_request(str(ROOT / "examples/deepseek-v3-serve.yaml")))
    for one in answer.plans:
        for instance in (one.plan.prefill, one.plan.decode):
            assert instance is None or instance.cards <= 8 or instance.cards % 8 == 0
    path = tmp_path / "plan.yaml"
    path.write_text(answer.best.plan.to_yaml(), encoding="utf-8")
    for to in ("vllm", "sglang"):
        assert emit(read_subject(str(path)), to).files
