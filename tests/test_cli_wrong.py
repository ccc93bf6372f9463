"""Wrong input of every kind: one error line, a way out, exit code 2, nothing on stdout, and never a traceback."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli_runner import Call, caller, fill
from zhenfa.cli.main import cli, invoke


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


WRONG = [
    (
        "plann small.yaml",
        "no command is called 'plann'. Did you mean 'plan' or 'explain'?",
        "`zhenfa --help` lists the commands.",
    ),
    (
        "expalin bubble",
        "no command is called 'expalin'. Did you mean 'explain'?",
        "`zhenfa --help` lists the commands.",
    ),
    (
        "xyzzy",
        "no command is called 'xyzzy'.",
        "`zhenfa --help` lists the commands.",
    ),
    (
        "--hlep",
        "`zhenfa` has no option --hlep. Did you mean --help?",
        "`zhenfa --help` shows how it is used.",
    ),
    (
        "--json",
        "--json belongs to a command and comes after it.",
        "such as `zhenfa show --json`.",
    ),
    (
        "plan",
        "missing argument 'JOB'.",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan small.yaml --tops 3",
        "`zhenfa plan` has no option --tops. Did you mean --top or --on?",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan small.yaml --jsn",
        "`zhenfa plan` has no option --jsn. Did you mean --json or --on?",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan small.yaml --top 0",
        "invalid value for '--top': 0 is not between 1 and 100.",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan small.yaml --top 101",
        "invalid value for '--top': 101 is not between 1 and 100.",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan small.yaml --top many",
        "invalid value for '--top': 'many' is not a whole number.",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan small.yaml --why 1",
        "invalid value for '--why': 1 is not between 2 and 100.",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan small.yaml --on",
        "option '--on' requires an argument.",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan small.yaml again.yaml",
        "got unexpected extra argument (again.yaml).",
        "`zhenfa plan --help` shows how it is used.",
    ),
    (
        "plan nosuch.yaml",
        "there is no file 'nosuch.yaml'.",
        "did you mean 'no-machine.yaml'?",
    ),
    (
        "plan smal.yaml",
        "there is no file 'smal.yaml'.",
        "did you mean 'small.yaml'?",
    ),
    (
        "plan folder",
        "'folder' is a folder.",
        "name a regular file.",
    ),
    (
        "plan binary.yaml",
        "binary.yaml:1: byte 0 is not UTF-8.",
        "save the file as UTF-8.",
    ),
    (
        "plan empty.yaml",
        "empty.yaml: the document is empty.",
        "",
    ),
    (
        "plan not-a-job.yaml",
        "not-a-job.yaml:1:1: a job is a mapping of keys, not a list.",
        "",
    ),
    (
        "plan typo.yaml",
        "typo.yaml:4:1: 'machin' is not a key here. Did you mean 'machine'?",
        "known here: assume, execution, limits, machine, model, name, objective, owner, priority, recovery, schema, "
        "workload.",
    ),
    (
        "plan no-machine.yaml",
        "job 'small' names no machine.",
        "add --on MACHINE; `zhenfa show machines` lists them.",
    ),
    (
        "plan no-model.yaml",
        "no model is called 'llama3-8bb'. Did you mean 'llama3-8b' or 'llama3-70b'?",
        "`zhenfa show models` lists the catalog; a path to a config.json works as well.",
    ),
    (
        "plan small.yaml --on nosuch",
        "no machine is called 'nosuch'.",
        "`zhenfa show machines` and `zhenfa show systems` list them; a path of your own has a '/' or ends in .yaml.",
    ),
    (
        "plan small.yaml --on hgx-h1000",
        "no machine is called 'hgx-h1000'. Did you mean 'hgx-h100' or 'hgx-h800'?",
        "`zhenfa show machines` and `zhenfa show systems` list them; a path of your own has a '/' or ends in .yaml.",
    ),
    (
        "plan small.yaml --on ./nosuch.yaml",
        "there is no file 'nosuch.yaml'.",
        "did you mean 'no-machine.yaml'?",
    ),
    (
        "plan small.yaml --on small.yaml",
        "small.yaml:1:9: schema is 'zhenfa.job/1': this reads 'zhenfa.machine/1'.",
        "a machine is wanted here.",
    ),
    (
        "plan small.yaml --assume bad",
        "--assume 'bad' is not NAME=VALUE.",
        'write --assume scalex-card.memory.capacity="64 GB".',
    ),
    (
        "plan small.yaml --assume =64GB",
        "--assume '=64GB' is not NAME=VALUE.",
        'write --assume scalex-card.memory.capacity="64 GB".',
    ),
    (
        "plan small.yaml --assume nowhere=64GB",
        "the assumption 'nowhere' does not say which value it is about.",
        'write NAME.PATH=VALUE, such as scalex-card.memory.capacity="64 GB".',
    ),
    (
        "plan small.yaml --assume hgx-h100.pue=half",
        "the assumption hgx-h100.pue is 'half': 'half' is not a number with a unit.",
        "write '0.85' or '85 %'.",
    ),
    (
        "plan small.yaml --assume hgx-h100.pue=0.5",
        "the assumption hgx-h100.pue is '0.5': a PUE is 1 or more.",
        "",
    ),
    (
        "plan small.yaml --assume nobodys-card.memory.capacity=1GB",
        "no accelerator, system, pool or machine is called 'nobodys-card'.",
        "the assumption 'nobodys-card.memory.capacity' starts with the name of one of these, then a dot and a path.",
    ),
    (
        "plan small.yaml --assume scalex-card.memory.capacity=1GHz",
        "the assumption scalex-card.memory.capacity is '1GHz': 'GHz' is not a unit of data.",
        "'GHz' measures frequency. data is written like '64 GB' or '16 GiB'.",
    ),
    (
        "plan small.yaml --out nowhere/plan.yaml",
        "'nowhere/plan.yaml' cannot be written: No such file or directory.",
        "name a file in a folder that exists with --out.",
    ),
    (
        "plan small.yaml --out folder",
        "'folder' cannot be written: Is a directory.",
        "name a file in a folder that exists with --out.",
    ),
    (
        "show nosuch",
        "no entry is called 'nosuch'.",
        "`zhenfa show` lists the kinds.",
    ),
    (
        "show ascend-910",
        "no entry is called 'ascend-910'. Did you mean 'ascend-910c' or 'ascend-910b4'?",
        "`zhenfa show ascend-910c` shows the first.",
    ),
    (
        "show cloudmatrix",
        "no entry is called 'cloudmatrix'. Did you mean 'cloudmatrix384' or 'huawei-cloudmatrix384'?",
        "`zhenfa show cloudmatrix384` shows the first.",
    ),
    (
        "show machine extra",
        "got unexpected extra argument (extra).",
        "`zhenfa show --help` shows how it is used.",
    ),
    (
        "show nosuch.yaml",
        "there is no file 'nosuch.yaml'.",
        "did you mean 'no-machine.yaml'?",
    ),
    (
        "show binary.yaml",
        "binary.yaml:1: byte 0 is not UTF-8.",
        "save the file as UTF-8.",
    ),
    (
        "show folder/",
        "there is no file 'folder/config.json'.",
        "",
    ),
    (
        "explain",
        "missing argument 'TERM'.",
        "`zhenfa explain --help` shows how it is used.",
    ),
    (
        "explain xyzzy",
        "no term is called 'xyzzy'.",
        "`zhenfa show terms` lists all 98.",
    ),
    (
        "explain bubbel",
        "no term is called 'bubbel'. Did you mean 'bubble'?",
        "`zhenfa show terms` lists all 98.",
    ),
    (
        "run",
        "missing argument 'JOB'.",
        "`zhenfa run --help` shows how it is used.",
    ),
    (
        "run nosuch.yaml",
        "there is no file 'nosuch.yaml'.",
        "did you mean 'no-machine.yaml'?",
    ),
    (
        "run mixed-pretrain.yaml --steps 0",
        "invalid value for '--steps': 0 is not between 1 and 1,000,000.",
        "`zhenfa run --help` shows how it is used.",
    ),
    (
        "run mixed-pretrain.yaml --engine kubernetes",
        "invalid value for '--engine': 'kubernetes' is not one of 'local', 'ray', 'slurm'.",
        "`zhenfa run --help` shows how it is used.",
    ),
    (
        "run mixed-pretrain.yaml --out small.yaml",
        "'small.yaml' cannot hold the run's files: it is a file.",
        "name another folder with --out.",
    ),
    (
        "devices cpu",
        "got unexpected extra argument (cpu).",
        "`zhenfa devices --help` shows how it is used.",
    ),
]


@pytest.mark.parametrize(("command", "error", "hint"), WRONG, ids=[case[0] for case in WRONG])
def test_wrong_input(zhenfa: Call, command: str, error: str, hint: str) -> None:
    shown = zhenfa(*shlex.split(command))
    assert shown.err == f"error: {error}\n" + (f"hint: {hint}\n" if hint else "")
    assert (shown.code, shown.out) == (2, "")


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("plan broken.yaml", "error: broken.yaml:3:1: this is not YAML: "),
        (
            "plan small.yaml --assume scalex-card.memory.capcity=1GB",
            "error: 'scalex-card' has no value 'memory.capcity'. Did you mean 'memory.capacity' or ",
        ),
        ("plan small.yaml --on al128", "error: thead-zhenwu-810e.peak.bf16 is undisclosed ("),
    ],
)
def test_wrong_input_begins(zhenfa: Call, command: str, start: str) -> None:
    shown = zhenfa(*shlex.split(command))
    assert shown.err.startswith(start)
    assert (shown.code, shown.out) == (2, "")


@pytest.mark.parametrize("job", ["small.yaml", "mixed-pretrain.yaml"])
def test_a_plan_that_is_not_there(zhenfa: Call, job: str) -> None:
    shown = zhenfa("plan", job, "--why", 100)
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith("error: there is no plan 100: ")


def test_a_machine_that_this_host_cannot_run_on(zhenfa: Call) -> None:
    shown = zhenfa("run", "small.yaml", "--on", "atlas800t-a2")
    assert (shown.code, shown.out) == (1, "")
    assert shown.err.startswith("error: ")
    assert not Path("runs").exists()


def test_no_command_at_all_shows_the_help(zhenfa: Call) -> None:
    shown = zhenfa()
    assert (shown.code, shown.out) == (2, "")
    assert shown.err == zhenfa("--help").out
    for name in cli.commands:
        assert f"\n  {name} " in shown.err
        assert zhenfa(name, "--help").out.startswith(f"Usage: zhenfa {name} [OPTIONS]")


WORDS = st.sampled_from(
    [*cli.commands, "--json", "--why", "--on", "--top", "--quiet", "-", "--", "=", "small.yaml", "."]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(arguments=st.lists(st.text(max_size=8) | WORDS, max_size=5))
def test_no_arguments_make_it_fall_over(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in arguments if word not in {"calibrate", "devices", "run"}]
    code = invoke(words)
    shown = capsys.readouterr()
    assert code in {0, 1, 2, 3}
    assert "fault in zhenfa" not in shown.err
    assert code == 0 or shown.err


def test_a_fault_of_our_own_is_one_line(zhenfa: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr("zhenfa.cli.show.show_entry", fail)
    monkeypatch.delenv("ZHENFA_DEBUG", raising=False)
    shown = zhenfa("show")
    assert (shown.code, shown.out) == (1, "")
    assert shown.err == (
        "error: this is a fault in zhenfa, not in what you gave it: ZeroDivisionError: nothing to divide by\n"
        "hint: set ZHENFA_DEBUG=1 for the traceback and report it.\n"
    )
    monkeypatch.setenv("ZHENFA_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        invoke(["show"])
