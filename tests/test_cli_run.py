"""``zhenfa run``: what is said before, during and after, and one real run of a single step."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cli_runner import QUICK, Call, caller, fill
from zhenfa.cli import schemas
from zhenfa.cli.documents import RunReport
from zhenfa.cli.run import Wanted, _Stop, claim_folder, settings_of
from zhenfa.errors import InputError, RunError
from zhenfa.live import run as live_run
from zhenfa.spec.job import Execution
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import (
    BridgeCompared,
    BridgeTraffic,
    Evaluation,
    Event,
    Figure,
    Figures,
    Run,
    StageFigures,
    Wall,
    Walls,
)


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    fill(tmp_path)
    (tmp_path / "quick.yaml").write_text(QUICK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


def measured(plan: Plan, *, valid: bool = True) -> Run:
    """A run of the plan with round numbers."""
    stages, events = [], []
    for card, stage in enumerate(plan.pipelines[0].stages):
        stages.append(
            StageFigures(
                pipeline=0, stage=card, pool=stage.pool, layers=(stage.first, stage.last), forward_s=0.05,
                backward_s=0.1, transfer_s=0.001, memory_bytes=4e7, memory_parts={"weights": 4e7},
            )
        )  # fmt: skip
        events += [Event(card=card, kind=kind, micro_batch=0, start_s=at, end_s=at + 1.0)
                   for at, kind in enumerate(("forward", "backward"))]  # fmt: skip
    return Run(
        plan=plan, steps=2, step_times_s=(2.1, 2.0), losses=(5.5, 5.25), stages=tuple(stages), events=tuple(events),
        figures=Figures(
            step_time_s=Figure(value=2.0, unit="s", tag="measured"),
            tokens_per_s=Figure(value=4096.0, unit="tokens/s", tag="measured"),
        ),
        walls=Walls(compute=Wall(share=0.8, detail="forward 80.0%"), communication=Wall(share=0.2, detail="receive")),
        emulated=True, fidelity={"valid": valid, "verdict": "0 of 9 operations were late", "protection": "none"},
        share_of_sum_of_speeds=0.75, even_split={"step_time_s": 3.0, "speed_up": 1.5, "share_of_sum_of_speeds": 0.5},
        bridge=BridgeTraffic(
            activations="none", gradients="int8", bytes_raw={"activations": 1e6, "gradients": 4e6},
            bytes_sent={"activations": 1e6, "gradients": 1e6}, link_s=0.25, held_s=0.5,
            uncompressed=BridgeCompared(
                steps=2, step_time_s=3.0, speed_up=1.5, bytes_sent=5e6, loss_difference=2e-4, last_loss_difference=-1e-4
            ),
        ),
        notes=("one thing to know",), evaluations=(Evaluation(step=1, loss=5.75), Evaluation(step=2, loss=5.625)),
    )  # fmt: skip


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let ``run_plan`` return a run with round numbers instead of starting processes."""

    def arrange(**options: Any) -> None:
        def run_plan(plan: Plan, *_: Any, on_progress: Any, on_phase: Any, out_dir: Path, **__: Any) -> Run:
            assert out_dir.is_dir()
            for call, arguments in ((on_phase, ("training, 2 steps",)), (on_progress, (1, 2, 5.5, 2.1))):
                if call is not None:
                    call(*arguments)
            return measured(plan, **options)

        monkeypatch.setattr("zhenfa.live.run.run_plan", run_plan)

    return arrange


@pytest.mark.parametrize("columns", [80, 120, 160])
def test_the_report_lays_what_was_predicted_beside_what_was_measured(
    zhenfa: Call, pretend: Callable[..., None], columns: int
) -> None:
    pretend()
    shown = zhenfa("run", "mixed-pretrain.yaml", "--cite", columns=columns)
    assert shown.code == 0, shown.err
    assert shown.widest <= columns
    words = " ".join(shown.out.split())
    assert words.startswith("mixed-pretrain: 2 steps on 4 cards of emulated-quartet [EMULATED cards], engine local, ")
    assert (
        "The cards are emulated: the time is that of the emulation, and says nothing of any maker's silicon." in words
    )
    block = shown.out.partition("\nPredicted beside measured ")[2].splitlines()
    assert block[1].split() == ["figure", "predicted", "measured", "measured", "/", "predicted"]
    row = re.match(r"  step time +([\d.]+) s +2 s +([\d.]+)$", block[2])
    assert row
    assert float(row[1]) * float(row[2]) == pytest.approx(2.0, rel=0.01)
    assert re.search(r"\n  memory, fullest card +[\d.]+ MB +- +-\n", shown.out)
    assert "note: one thing to know" in words
    assert "loss: 5.5000 -> 5.2500 over 2 steps" in words
    assert "loss on held-out data: 5.7500 -> 5.6250, after steps 1 and 2" in words
    assert (
        "bridge between makers: 2 MB a step (activations 1 MB, gradients 1 MB); 250 ms on the busiest card's links; "
        "cards were held up for 500 ms at most" in words
    )
    assert "compressed: activations none, gradients int8: 2.50 times fewer bytes" in words
    assert (
        "the same steps uncompressed: 3 s a step, and the run is 1.50 times as fast; over 2 steps the loss differs by "
        "0.0002 of it at most, and by -0.0001 in the last of them" in words
    )
    assert "the same cards with an even split: 3 s a step, 50.0% of the sum of speeds; the plan is 1.50 times" in words
    assert "\nFour walls (measured; compute binds)\n>" in shown.out
    assert len(re.findall(r"not measured by a run", words)) == 2
    assert re.search(r"\n     0  \w+ +\d-\d +[\d.]+ ms / 50 ms +[\d.]+ ms / 100 ms +40 MB\n", shown.out)
    assert re.search(r"\n  report +runs/mixed-pretrain-1/run.json\n", shown.out)
    assert "\nSources (" in shown.out


def test_a_pipe_is_told_what_goes_on_in_lines(zhenfa: Call, pretend: Callable[..., None]) -> None:
    pretend()
    lines = zhenfa("run", "mixed-pretrain.yaml").err.splitlines()
    assert re.match(
        r"plan: TP1 PP\d DP\d on emulated-quartet \[EMULATED cards\], the best of [\d,]+ considered", lines[0]
    )
    assert "training, 2 steps" in lines
    assert re.match(r"\d+ s in all", lines[-1])
    assert zhenfa("run", "mixed-pretrain.yaml", "--quiet").err == ""


def test_files_are_written_and_read_back(zhenfa: Call, pretend: Callable[..., None], tmp_path: Path) -> None:
    pretend()
    for number in (1, 2):
        assert zhenfa("run", "mixed-pretrain.yaml").code == 0
        folder = tmp_path / "runs" / f"mixed-pretrain-{number}"
        run = Run.from_file(folder / "run.json")
        assert run.estimate is not None
        assert Plan.from_file(folder / "plan.yaml") == run.plan
        assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")
        assert "<h1>mixed-pretrain <strong" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_document_validates(zhenfa: Call, pretend: Callable[..., None]) -> None:
    pretend()
    shown = zhenfa("run", "mixed-pretrain.yaml", "--json", "--out", "here")
    found = json.loads(shown.out)
    for strict in (False, True):
        schema = schemas.schema(RunReport, strict=strict)
        assert not [fault.message for fault in Draft202012Validator(schema).iter_errors(found)]
    assert found["files"]["report"] == "here/run.json"
    assert found["figures"]["step_time_s"]["value"] == 2.0
    assert found["estimate"]["figures"]["step_time_s"]["tag"] != "measured"
    assert RunReport.from_data(found).steps == 2


def test_timing_that_is_not_valid_is_said(zhenfa: Call, pretend: Callable[..., None]) -> None:
    pretend(valid=False)
    assert "fidelity of the emulation: 0 of 9 operations were late" in zhenfa("run", "mixed-pretrain.yaml").out


def test_a_run_that_fails_leaves_no_empty_folder(zhenfa: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RunError("card 2 died.", hint="the other cards were stopped.")

    monkeypatch.setattr("zhenfa.live.run.run_plan", fail)
    shown = zhenfa("run", "mixed-pretrain.yaml", "--quiet")
    assert (shown.code, shown.out) == (1, "")
    assert shown.err == "error: card 2 died.\nhint: the other cards were stopped.\n"
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_interrupted_run_is_one_line_and_leaves_nothing(
    zhenfa: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told_to_end(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("zhenfa.live.run.run_plan", told_to_end)
    shown = zhenfa("run", "mixed-pretrain.yaml", "--quiet")
    assert (shown.code, shown.out, shown.err) == (130, "", "error: interrupted.\n")
    assert list((tmp_path / "runs").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_is_claimed_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [claim_folder(None, "job") for _ in range(3)] == [Path(f"runs/job-{number}") for number in (1, 2, 3)]
    assert claim_folder("given", "job") == claim_folder("given", "job") == Path("given")
    assert all(Path(one).stat().st_mode & 0o007 == 0 for one in ("runs/job-1", "given"))
    (tmp_path / "file").touch()
    for wanted in ("file", "file/below"):
        with pytest.raises(InputError, match="cannot hold the run's files"):
            claim_folder(wanted, "job")


def test_the_command_line_overrides_the_job() -> None:
    given = Execution(steps=9, engine="local", seed=3)
    assert settings_of(given, None, None) == given
    assert settings_of(given, 4, "ray") == Execution(steps=4, engine="ray", seed=3)


@pytest.mark.live
def test_one_real_step(zhenfa: Call, tmp_path: Path) -> None:
    shown = zhenfa("run", "quick.yaml", "--json")
    assert shown.code == 0, shown.err
    run = json.loads(shown.out)
    assert not [fault.message for fault in Draft202012Validator(schemas.schema(RunReport)).iter_errors(run)]
    assert (run["steps"], run["emulated"], len(run["losses"])) == (1, True, 1)
    assert run["figures"]["step_time_s"]["tag"] == "measured"
    assert {"report", "plan", "checkpoint"} <= set(run["files"])
    found = run["attribution"]
    assert found["measured_step_s"] == run["figures"]["step_time_s"]["value"]
    parts = sum(row["effect_s"] for row in found["rows"]) + found["remainder_s"]
    assert parts == pytest.approx(found["measured_step_s"] - found["predicted_step_s"], abs=1e-9)
    assert {"compute", "optimizer", "host", "schedule"} <= {row["law"] for row in found["rows"]}
    assert found["judged"] == run["fidelity"]["valid"]
    assert all(Path(path).exists() for path in run["files"].values())


@pytest.mark.live
def test_a_run_teaches_the_next_plan(zhenfa: Call, tmp_path: Path) -> None:
    """A card is four times slower than its file says: the run says so, and the machine file that it leaves knows it."""
    slow = "{steps: 2, recover: false, faults: [{step: 1, card: 0, kind: slow, factor: 4.0}]}"
    (tmp_path / "slow.yaml").write_text(QUICK.replace("{steps: 1}", slow), encoding="utf-8")
    for _ in range(4):  # while other work on this host keeps the emulation from holding its time
        shown = zhenfa("run", "slow.yaml", "--json", "--out", "out")
        assert shown.code == 0, shown.err
        run = json.loads(shown.out)
        if run["attribution"]["judged"]:
            break
    else:
        pytest.skip("the emulation did not hold its time: nothing is learned")
    assert run["files"]["machine"] == "out/machine.yaml"
    odd = next(row for row in run["attribution"]["rows"] if row["law"] == "compute" and row["cards"] == [0])
    assert odd["ratio"] == pytest.approx(4.0, rel=0.01)
    known = zhenfa("plan", "slow.yaml", "--on", "out/machine.yaml", columns=200)
    assert known.code == 0, known.err
    assert f"{odd['pool']}.learned.compute = 4 (zhenfa run of quick, 1 step, " in known.out
    plain = zhenfa("plan", "slow.yaml")
    assert "learned" not in plain.out


def test_sigterm_in_training_is_noted_once_and_ends_it_the_second_time() -> None:
    stop = _Stop()
    stop.after(None, training=True)(1)
    stop.ask(signal.SIGTERM, None)
    assert (stop.preempted, stop.asked) == (True, False)
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGTERM, None)


@pytest.mark.live
def test_a_run_with_faults_is_stopped_and_resumed(zhenfa: Call, tmp_path: Path) -> None:
    faults = "faults: [{step: 2, card: 1, kind: kill}, {step: 3, card: 0, kind: nan}]"
    job = QUICK.replace("{steps: 1}", f"{{steps: 5, {faults}}}")
    (tmp_path / "faulty.yaml").write_text(job, encoding="utf-8")
    whole = zhenfa("run", "faulty.yaml", "--json")
    assert whole.code == 0, whole.err
    assert "died (signal SIGKILL)" in whole.err
    run = json.loads(whole.out)
    assert not [fault.message for fault in Draft202012Validator(schemas.schema(RunReport)).iter_errors(run)]
    assert [(one["step"], one["kind"], one["action"]) for one in run["incidents"]] == [
        (2, "death", "restart"), (3, "poison", "retry"),
    ]  # fmt: skip
    first = zhenfa("run", "faulty.yaml", "--steps", "4", "--out", "out")
    assert first.code == 0, first.err
    assert re.search(r"Law by law \(seconds of a step, mean of (one step|\d steps); what being off adds", first.out)
    assert re.search(r"\n  no law +remainder +", first.out)
    assert re.search(r"Recovery log \(2 incidents; \d+\.\d% of the time", first.out)
    second = zhenfa("run", "faulty.yaml", "--resume", "out", "--json")
    assert second.code == 0, second.err
    assert "resuming from out/checkpoint-000004 (step 4)" in second.err
    assert json.loads(second.out)["losses"] == run["losses"][4:]
    done = zhenfa("run", "faulty.yaml", "--resume", "out")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(
        "error: 'out/checkpoint-000005' was made after step 5, and the run has 5.\nhint: ask for more with --steps.\n"
    )
    (tmp_path / "empty").mkdir()
    none = zhenfa("run", "faulty.yaml", "--resume", "empty", "--quiet")
    assert (none.code, none.err) == (
        2, "error: 'empty' holds no whole checkpoint.\nhint: name the folder of a run, such as runs/NAME-1.\n",
    )  # fmt: skip


@pytest.mark.live
def test_a_run_that_is_told_to_end_says_how_to_go_on(
    zhenfa: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = zhenfa("run", "quick.yaml", "--steps", "4", "--set", "execution.seed=3", "--json")
    assert whole.code == 0, whole.err
    as_it_is = live_run.run_plan

    def told_to_end(*given: Any, on_progress: Any, **more: Any) -> Run:
        def progress(number: int, *rest: Any) -> None:
            on_progress(number, *rest)
            if number == 2:
                signal.raise_signal(signal.SIGTERM)

        return as_it_is(*given, on_progress=progress, **more)

    monkeypatch.setattr(live_run, "run_plan", told_to_end)
    shown = zhenfa("run", "quick.yaml", "--steps", "4", "--set", "execution.seed=3", "--out", "out", columns=200)
    assert shown.code == 1
    said = "error: stopped by SIGTERM after step 2 of 4; the checkpoint is saved."
    hint = "zhenfa run quick.yaml --resume out --steps 4 --set execution.seed=3"
    assert shown.err.endswith(f"{said}\nhint: {hint}\n")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    more = zhenfa(*hint.split()[1:], "--json")
    assert more.code == 0, more.err
    assert json.loads(more.out)["losses"] == json.loads(whole.out)["losses"][2:]


def test_the_command_that_goes_on_has_what_was_asked_for() -> None:
    wanted = Wanted(
        "my job.yaml", on="pool.yaml", assume=["a.memory=1 GB"], settings=["execution.seed=1"], steps=9, engine="ray",
        calibrate_anew=True, code="net.py", plan="plan.yaml",
    )  # fmt: skip
    assert wanted.going_on(Path("runs/job-1")) == (
        "zhenfa run 'my job.yaml' --resume runs/job-1 --on pool.yaml --plan plan.yaml --code net.py --steps 9 "
        "--engine ray --assume 'a.memory=1 GB' --set execution.seed=1 --calibrate"
    )


def test_a_stop_that_was_lost_is_honoured_at_the_next_step() -> None:
    stop = _Stop()
    seen: list[int] = []
    step = stop.after(seen.append)
    step(1)
    with pytest.raises(KeyboardInterrupt):
        stop.ask(2, None)
    with pytest.raises(KeyboardInterrupt):
        step(2)
    assert seen == [1]
