"""Streams, terminals and start-up: what the shell, the pipe and the terminal see."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli_runner import Call, caller, fill
from zhenfa.cli import console
from zhenfa.cli.console import Output

HEAVY = ("pydantic", "numpy", "rich", "ruamel", "torch", "asyncio", "zhenfa.spec", "zhenfa.catalog", "zhenfa.plan")


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    extra = settings.pop("environment", {})
    environment = {**os.environ, **extra}  # type: ignore[dict-item]
    command = [sys.executable, "-m", "zhenfa.cli.main", *arguments]
    return subprocess.run(
        command, capture_output="stdout" not in settings, text=True, env=environment, timeout=60, check=False,
        **settings,
    )  # type: ignore[call-overload, no-any-return]  # fmt: skip


def on_a_terminal(code: str, *, until: bytes = b"", send: int | None = None, **environment: str) -> tuple[int, str]:
    """Run Python code with stdin, stdout and stderr on a terminal; when ``until`` is seen, ``send`` a signal."""
    keep = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "COLUMNS"}}
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        env={**keep, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
        if until and until in seen and send is not None:
            os.kill(child.pid, send)
            send = None
    os.close(leader)
    return child.wait(60), seen.decode().replace("\r\n", "\n")


SHOW = "from zhenfa.cli.main import invoke; raise SystemExit(invoke(%r))"


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["nosuch"]])
def test_help_imports_only_click(arguments: list[str]) -> None:
    code = (
        f"import sys; from zhenfa.cli.main import invoke; invoke({arguments!r});"
        f"print(sorted(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["explain", "bubble"], {"numpy", "rich", "torch", "pydantic", "zhenfa.plan"}),
        (["show", "machines"], {"numpy", "rich", "torch", "zhenfa.plan"}),
        (["show", "deepseek-v3"], {"numpy", "rich", "torch", "zhenfa.plan"}),
    ],
)
def test_a_look_up_does_not_load_the_planner(arguments: list[str], absent: set[str]) -> None:
    code = f"import sys; from zhenfa.cli.main import invoke; invoke({arguments!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not absent & set(done.stdout.splitlines()[-1].split())


def test_a_terminal_gets_styles_and_its_own_width() -> None:
    code, shown = on_a_terminal(SHOW % ["show", "emulated-quartet"], COLUMNS="100")
    assert code == 0
    assert "\x1b[1m" in shown
    assert "\x1b[33m" in shown, "the warning that it is emulated stands out"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_means_no_escape_codes(environment: dict[str, str]) -> None:
    code = "from zhenfa.cli.main import invoke; invoke(['show', 'emulated-ascend']); invoke(['show', 'nosuch'])"
    shown = on_a_terminal(code, **environment)[1]
    assert "EMULATED" in shown
    assert "error: no entry is called 'nosuch'." in shown
    assert "\x1b" not in shown


def test_force_color_colours_a_pipe(zhenfa: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in zhenfa("show", "nosuch").err, "NO_COLOR wins"
    monkeypatch.delenv("NO_COLOR")
    assert zhenfa("show", "nosuch").err.startswith("\x1b[31m\x1b[1merror\x1b[0m: no entry is called 'nosuch'.")


def test_words_do_not_depend_on_colour(zhenfa: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    plain = zhenfa("show", "mixed-demo").out
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = zhenfa("show", "mixed-demo").out
    assert coloured != plain
    assert click.unstyle(coloured) == plain


def test_columns_decide_the_width_of_a_pipe(zhenfa: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, width in (("100", 100), ("7", 40), ("many", 120), ("", 120)):
        monkeypatch.setenv("COLUMNS", given)
        assert Output(as_json=False, cite=False, quiet=False).data.width == width


@pytest.mark.parametrize("arguments", [["show", "terms", "--json"], ["--help"]])
def test_a_reader_that_has_gone_is_no_fault(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "zhenfa.cli.main", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["show", "terms"], ["--help"]])
def test_a_full_disk_is_said_in_words(arguments: list[str]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "zhenfa.cli.main", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_closed_streams_are_no_fault() -> None:
    command = f'"{sys.executable}" -m zhenfa.cli.main explain bubble >&- 2>&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_encoding_without_chinese_gets_question_marks() -> None:
    done = run("explain", "bubble", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.startswith("bubble (pipeline bubble, bubble ratio) ? ??\n")


def test_json_survives_an_encoding_without_chinese() -> None:
    done = run("explain", "bubble", "--json", environment={"PYTHONIOENCODING": "ascii"})
    assert json.loads(done.stdout)["chinese"] == "气泡"
    assert done.stdout.isascii()


WAITING = """
import signal, zhenfa.plan
from zhenfa.cli import console, main
console.PATIENCE_S = 0.0
zhenfa.plan.find_plans = lambda *arguments, **more: signal.pause()
raise SystemExit(main.invoke(["plan", "mixed-pretrain.yaml", *{more!r}]))
"""


def test_an_interrupt_while_a_terminal_is_told_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, shown = on_a_terminal(WAITING.format(more=[]), until=b"planning", send=signal.SIGINT, NO_COLOR="1")
    assert code == 130
    assert "planning" in shown
    assert shown.endswith("error: interrupted.\n")
    assert shown.count("\n") <= 2, "the spinner leaves nothing behind but its own line"


RUNNING = """
import zhenfa.live.run
from zhenfa.cli import main
from zhenfa.errors import RunError
def run_plan(*arguments, on_progress, on_phase, **more):
    on_phase("training, 2 steps")
    on_progress(1, 2, 5.5, 2.1)
    raise RunError("card 2 died.")
zhenfa.live.run.run_plan = run_plan
raise SystemExit(main.invoke(["run", "mixed-pretrain.yaml"]))
"""


def test_a_terminal_sees_the_steps_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, shown = on_a_terminal(RUNNING, COLUMNS="120", NO_COLOR="1")
    assert code == 1
    assert "[EMULATED cards]" in shown
    assert "training, 2 steps" in shown
    assert "1/2" in shown
    assert "loss 5.5000, 2.10 s a step" in shown
    assert shown.endswith("error: card 2 died.\n")


def test_an_interrupt_is_one_line(zhenfa: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zhenfa.plan.find_plans", interrupted)
    shown = zhenfa("plan", "mixed-pretrain.yaml")
    assert (shown.code, shown.out, shown.err) == (130, "", "error: interrupted.\n")


def test_work_is_not_shown_where_there_is_no_terminal_or_no_wish(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []
    monkeypatch.setattr(console._Waiting, "__init__", lambda self, words: begun.append(words))
    monkeypatch.setattr(console._Waiting, "end", lambda self: None)
    for terminal, quiet in ((False, False), (False, True), (True, True), (True, False)):
        output = Output(as_json=False, cite=False, quiet=quiet)
        output.talk.terminal = terminal
        with output.working(f"terminal {terminal}, quiet {quiet}"):
            pass
    assert begun == ["terminal True, quiet False"]


def test_what_was_quick_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "PATIENCE_S", 3600.0)
    waiting = console._Waiting("planning")
    waiting.end()
    waiting._begin()
    assert waiting._status is None
    assert capsys.readouterr().err == ""


def test_talk_comes_after_the_data_that_it_follows() -> None:
    """With both streams in one file the order is that of the writing."""
    done = run("show", "accelerators", environment={"COLUMNS": "80"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.stdout.splitlines()[-1].startswith("left out at 80 columns: ")
