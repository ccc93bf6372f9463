"""Run the command line in this process, in a folder with a few jobs good and bad."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zhenfa.cli.cells import width
from zhenfa.cli.main import invoke

ROOT = Path(__file__).parent.parent

SMALL = """\
schema: zhenfa.job/1
name: small
model: llama3-8b
machine: hgx-h100
workload: {task: train, sequence_length: 4096, global_batch: 64}
"""

QUICK = """\
schema: zhenfa.job/1
name: quick
model: tiny-byte-gpt
machine: emulated-quartet
workload: {task: train, sequence_length: 32, global_batch: 8, precision: fp32}
limits: {micro_batch_size: 2}
execution: {steps: 1}
"""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def widest(self) -> int:
        """Cells of the longest line on stdout."""
        return max(width(line) for line in self.out.splitlines())


Call = Callable[..., Outcome]


def caller(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs ``zhenfa`` with these arguments at this width."""

    def call(*arguments: Any, columns: int = 120) -> Outcome:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        code = invoke([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return call


def fill(folder: Path) -> None:
    """Put jobs good and bad into a folder."""
    for name in ("mixed-pretrain", "deepseek-v3-train"):
        shutil.copy(ROOT / "examples" / f"{name}.yaml", folder)
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    (folder / "huge.yaml").write_text(SMALL.replace("llama3-8b", "deepseek-v3").replace("small", "huge"), "utf-8")
    (folder / "typo.yaml").write_text(SMALL.replace("machine:", "machin:"), encoding="utf-8")
    (folder / "no-machine.yaml").write_text(SMALL.replace("machine: hgx-h100\n", ""), encoding="utf-8")
    (folder / "no-model.yaml").write_text(SMALL.replace("llama3-8b", "llama3-8bb"), encoding="utf-8")
    (folder / "not-a-job.yaml").write_text("- 1\n- 2\n", encoding="utf-8")
    (folder / "broken.yaml").write_text("schema: zhenfa.job/1\nname: [\n", encoding="utf-8")
    (folder / "binary.yaml").write_bytes(bytes(range(128, 256)) * 8)
    (folder / "empty.yaml").write_text("", encoding="utf-8")
    (folder / "folder").mkdir()
