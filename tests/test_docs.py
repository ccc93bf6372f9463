"""Every command that the documentation shows is run, and every file that it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from zhenfa.cli.main import invoke

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = ("zhenfa run", "zhenfa calibrate")
"""Commands that have tests of their own, because they take a minute: see test_main_job.py and test_calibrate.py."""
OURS = "my-machine.yaml"
"""The file that calibration writes in the guide."""


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line[2:].strip() for block in blocks for line in block.splitlines() if line.startswith("$ ")]


ALL = sorted({command for page in PAGES if page.exists() for command in commands(page)})
ZHENFA = [
    command
    for command in ALL
    if command.startswith("zhenfa ") and not command.startswith(ELSEWHERE) and OURS not in command
]


@pytest.mark.parametrize("command", ZHENFA)
def test_shown_command_works(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert invoke(shlex.split(command)[1:]) == 0
    shown = capsys.readouterr()
    assert shown.out
    assert "error:" not in shown.err


def test_documentation_shows_commands_of_every_kind() -> None:
    assert {command.split()[1] for command in ZHENFA} >= {"show", "plan", "explain", "devices"}
    assert "zhenfa run examples/mixed-pretrain.yaml" in ALL


@pytest.mark.parametrize("command", [command for command in ALL if command.startswith("make ")])
def test_shown_make_target_exists(command: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert command.split()[1] in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_machine_in_the_guide_is_the_example() -> None:
    guide = (ROOT / "docs/guide/first-steps.md").read_text(encoding="utf-8")
    example = (ROOT / "examples/our-cluster.yaml").read_text(encoding="utf-8")
    shown = re.search(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    assert shown is not None
    assert example.endswith(shown[1])


def test_the_table_of_sizes_says_what_makes_it() -> None:
    page = (ROOT / "docs/concepts/planning.md").read_text(encoding="utf-8")
    made = (ROOT / "benchmarks/scale.py").read_text(encoding="utf-8")
    table = page[page.index("| machine | for | plan |") :]
    assert re.match(
        r"(\|.*\n)+\nMade by `python benchmarks/scale\.py --write` with [\w.]+ on \d{4}-\d\d-\d\d\.\n", table
    )
    rows = table[: table.index("\n\n")].splitlines()[2:]
    titles = [row.split(" | ")[0].removeprefix("| ") for row in rows if not row.startswith("| |")]
    assert all(f'"{title}"' in made for title in titles)
    assert len(titles) == 5
