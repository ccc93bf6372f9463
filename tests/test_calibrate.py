"""Calibration: the fit finds known coefficients, the file comes back equal, and a real processor can be planned on."""

from __future__ import annotations

import io
import json
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cli_runner import ROOT, Outcome
from zhenfa import catalog
from zhenfa.cli.main import invoke
from zhenfa.errors import InputError, RunError
from zhenfa.estimate import bands
from zhenfa.live.calibrate import check, clock, predict
from zhenfa.live.calibrate.card import Calibrated, card_of, slug
from zhenfa.live.calibrate.clock import EventClock
from zhenfa.live.calibrate.fit import Floats, Knob, fit, line
from zhenfa.live.calibrate.machine import machine_of, write
from zhenfa.live.calibrate.samples import Sample, Task, quantile, together
from zhenfa.live.calibrate.session import Measurements, Wires, find_device
from zhenfa.live.calibrate.tasks import tasks_for
from zhenfa.live.calibrate.work import call_of, seconds_of
from zhenfa.live.makers import DeviceRecord
from zhenfa.live.quiet import WAITED, verdict
from zhenfa.spec.machine import Accelerator, Machine

PROCESSOR = DeviceRecord("cpu", 0, "Some Processor, 2 cores", "nobody", "a test", 16 * 10**9, "cpu")


def zhenfa(*arguments: str) -> Outcome:
    """Run the command line and return what it left behind."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = invoke(list(arguments))
    return Outcome(code, out.getvalue(), err.getvalue())


def true_card(speed: float, attention: float, bandwidth: float, cold: float, launch: float) -> Accelerator:
    """Return a processor whose coefficients are known."""
    return Accelerator.model_validate({
        "id": "true", "maker": "nobody", "name": "Some Processor", "peak": {"fp32": speed},
        "memory": {"capacity": 8e9, "bandwidth": bandwidth},
        "achievable": {
            "matmul": {"fp32": 1.0}, "attention": {"fp32": attention}, "memory": 1.0, "decode": cold, "launch": launch,
            "attention_launch": 20 * launch, "host": 4 * launch, "autograd": 3 * launch, "weights": 0.8 * cold,
            "chains": {"norm": 0.9, "norm backward": 0.7, "activation": 0.6, "activation backward": 0.5},
        },
        "software": {"torch_device": "cpu", "collective_backend": "gloo"},
    })  # fmt: skip


def timed(card: Accelerator, *, noise: float = 0.0, seed: int = 0, cards: int = 2) -> Measurements:
    """Return timings that the laws give on a card, each call off by some noise."""
    tasks = tasks_for("cpu")
    chance = np.random.default_rng(seed)
    samples = tuple(
        Sample(task, tuple(float(one) for one in seconds * np.exp(noise * chance.standard_normal(9))))
        for task, seconds in zip(tasks, predict.seconds(tasks, card), strict=True)
    )
    sizes = (1024, 2**20, 2**24)
    messages = tuple((2e-4 + size / 2e9,) * 3 for size in sizes)
    sums = tuple((2 * (2e-4 + size / 2 / 2e9),) * 3 for size in sizes)
    wires = Wires(sizes, messages, sums) if cards == 2 else None
    quiet = verdict([0.0], [[1.0, 1.0]])
    rounds = ((1.0, 1.2), (1.1, 1.0))[:cards]
    return Measurements(PROCESSOR, cards, 1, "2.0", samples, wires, quiet, by_round=rounds, day=date(2026, 1, 2))


@settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    speed=st.floats(2e10, 2e12), attention=st.floats(0.2, 0.8), bandwidth=st.floats(1e10, 2e11),
    cold=st.floats(0.2, 0.8), launch=st.floats(1e-6, 1e-5),
)  # fmt: skip
def test_fit_recovers_known_coefficients(
    speed: float, attention: float, bandwidth: float, cold: float, launch: float
) -> None:
    found = card_of(timed(true_card(speed, attention, bandwidth, cold, launch))).accelerator
    assert found.peak["fp32"].value == pytest.approx(speed, rel=0.02)
    assert found.achievable.attention["fp32"].value == pytest.approx(attention, rel=0.02)
    assert found.memory.bandwidth.value == pytest.approx(bandwidth, rel=0.02)
    decode = found.achievable.decode.value  # not shown where arithmetic takes longer
    assert decode is None or decode == pytest.approx(cold, rel=0.03)
    assert found.achievable.launch.value == pytest.approx(launch, rel=0.02)
    assert found.achievable.host.value == pytest.approx(4 * launch, rel=0.25)
    assert found.achievable.autograd.value == pytest.approx(3 * launch, rel=0.25)
    assert found.achievable.weights.value == pytest.approx(0.8 * cold, rel=0.03)
    assert found.achievable.chains["activation"].value == pytest.approx(0.6, rel=0.03)
    assert found.achievable.chains["rope backward"].value == pytest.approx(1.0, rel=0.03)


def test_fit_stands_noise() -> None:
    true = true_card(7e10, 0.45, 3e10, 0.35, 2e-6)
    one = card_of(timed(true, noise=0.2))
    assert one.accelerator.peak["fp32"].value == pytest.approx(7e10, rel=0.05)
    assert one.accelerator.memory.bandwidth.value == pytest.approx(3e10, rel=0.1)


def test_fit_is_the_same_every_time() -> None:
    knobs = [Knob("slope", 1.0, 0.1, 10.0)]
    one, again = (fit(knobs, lambda values: np.full(3, values["slope"]), [3.0, 3.1, 2.8], [1.0] * 3) for _ in range(2))
    assert one.values == again.values


def test_fit_leaves_out_what_the_timings_do_not_show() -> None:
    knobs = [Knob("slope", 1.0, 0.1, 10.0), Knob("idle", 1.0, 0.1, 10.0)]
    found = fit(knobs, lambda values: np.array([values["slope"], 2 * values["slope"]]), [3.0, 6.0], [1.0, 1.0])
    assert found.values["slope"] == pytest.approx(3.0, rel=1e-3)
    assert found.shown == {"slope"}
    assert found.values["idle"] == pytest.approx(1.0)


def test_fit_leaves_out_a_speed_of_which_only_the_least_is_shown() -> None:
    knobs = [Knob("arithmetic", 1.0, 0.1, 10.0), Knob("memory", 0.2, 0.01, 10.0)]

    def predict(values: Mapping[str, float]) -> Floats:  # the longer of two, never memory's
        return np.array([1 / values["arithmetic"], max(1 / values["arithmetic"], 0.5 / values["memory"])])

    found = fit(knobs, predict, [0.5, 0.5], [1.0, 1.0])
    assert found.values["arithmetic"] == pytest.approx(2.0, rel=1e-2)
    assert found.shown == {"arithmetic"}


@given(arithmetic=st.floats(0.5, 5.0), share=st.floats(0.05, 0.5))
def test_fit_finds_what_the_start_hides(arithmetic: float, share: float) -> None:
    knobs = [Knob("arithmetic", 1.0, 0.1, 10.0), Knob("memory", 10.0, 0.01, 10.0)]
    memory = share * arithmetic

    def predict(values: Mapping[str, float]) -> Floats:
        speed, rate = 1 / values["arithmetic"], 1 / values["memory"]
        return np.array([speed, 2 * speed, max(speed, rate), max(speed, 2 * rate)])

    found = fit(knobs, predict, list(predict({"arithmetic": arithmetic, "memory": memory})), [1.0] * 4)
    assert found.shown == {"arithmetic", "memory"}
    assert found.values == pytest.approx({"arithmetic": arithmetic, "memory": memory}, rel=2e-2)


def test_fit_gives_outliers_little_weight() -> None:
    measured = [2.0] * 9 + [20.0]
    found = fit([Knob("it", 1.0, 0.1, 100.0)], lambda values: np.full(10, values["it"]), measured, [1.0] * 10)
    assert found.values["it"] == pytest.approx(2.0, rel=0.02)


@given(latency=st.floats(1e-7, 1e-3), bandwidth=st.floats(1e6, 1e12))
def test_line_finds_latency_and_bandwidth(latency: float, bandwidth: float) -> None:
    sizes = [latency * bandwidth * share for share in (0.01, 0.5, 2.0, 100.0)]
    found = line(sizes, [latency + size / bandwidth for size in sizes])
    assert found == pytest.approx((latency, bandwidth), rel=1e-6)


def test_line_refuses_times_that_do_not_grow() -> None:
    with pytest.raises(ValueError, match="grow"):
        line([1.0, 2.0, 4.0], [4.0, 2.0, 1.0])


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_quantile_lies_between_the_ends(values: list[float], share: float) -> None:
    assert min(values) <= quantile(values, share) <= max(values)


def test_samples_of_all_cards_come_together() -> None:
    task = Task("launch", "fp32", {})
    assert together([[Sample(task, (1.0, 2.0))], [Sample(task, (4.0,))]])[0].seconds == (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("waited", "fixed", "disturbed"),
    [([0.0, 0.01], [[1.0, 1.1]], False), ([0.2], [[1.0, 1.0]], True), ([0.0], [[1.0, 1.0, 2.0, 2.0]], True)],
)
def test_disturbance_is_seen(waited: list[float], fixed: list[list[float]], *, disturbed: bool) -> None:
    found = verdict(waited, fixed)
    assert found.disturbed is disturbed
    assert found.words().startswith("disturbed" if disturbed else "undisturbed")


# The file.


@pytest.fixture(scope="module")
def calibrated() -> Calibrated:
    return card_of(timed(true_card(7e10, 0.45, 3e10, 0.35, 2e-6), noise=0.05))


def test_file_comes_back_equal_and_every_value_names_its_source(calibrated: Calibrated, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    machine = machine_of(calibrated, "mine")
    write(machine, path)
    read = catalog.load_machine(path)
    assert read == machine
    assert not stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO
    card = read.pools[0].accelerator
    assert isinstance(card, Accelerator)
    reach = card.achievable
    tier = read.pools[0].tiers[0]
    for fact in (
        card.peak["fp32"], card.memory.bandwidth, reach.matmul["fp32"], reach.attention["fp32"], reach.memory,
        reach.decode, reach.launch, reach.attention_launch, tier.bandwidth, tier.latency,
    ):  # fmt: skip
        assert fact.confidence == "calibrated"
        assert fact.tag == "measured"
        assert fact.source.startswith("measured by zhenfa calibrate on Some Processor, 2 cores, 2026-01-02, torch 2.0")
        assert fact.note
    assert tier.bandwidth.value == pytest.approx(2e9, rel=0.01)
    assert tier.latency.value == pytest.approx(2e-4, rel=0.01)


def test_file_is_not_overwritten_unless_told(calibrated: Calibrated, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    with pytest.raises(InputError, match="there already"):
        write(machine_of(calibrated), path)
    assert path.read_text() == "precious"
    write(machine_of(calibrated), path, force=True)
    assert Machine.from_file(path)
    assert [item.name for item in tmp_path.iterdir()] == ["mine.yaml"]


def test_one_card_needs_no_wires(tmp_path: Path) -> None:
    machine = machine_of(card_of(timed(true_card(7e10, 0.45, 3e10, 0.35, 2e-6), cards=1)))
    assert machine.pools[0].count == 1
    assert catalog.resolve(machine).cards == 1


def test_names_of_devices_become_names_of_files() -> None:
    assert slug("AMD EPYC 9B14, 2 cores") == "amd-epyc-9b14-2-cores"
    assert slug("  ///  ") == "device"


def test_device_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no device 'abacus'"):
        find_device("abacus")
    assert find_device("cpu").torch_device == "cpu"


def tried(calibrated: Calibrated, factor: float = 1.25) -> list[check.Checked]:
    """Return the check of a card on which everything took some times as long as predicted."""
    trials = check.trials_for("cpu", calibrated.measurements.cards)
    exact = replace(
        calibrated,
        measurements=replace(
            calibrated.measurements,
            tried=tuple({"step": [1.0], "prefill": [1.0], "decode": [1.0]} for one in trials if one.cards == 1),
            joint=tuple((1.0,) for one in trials if one.cards > 1),
        ),
    )
    found = check.compare(exact, trials)
    return [replace(one, seconds=tuple(factor * one.predicted * off for off in (0.9, 1.0, 1.1))) for one in found]


def test_check_sets_predicted_beside_measured(calibrated: Calibrated) -> None:
    found = tried(calibrated)
    assert {one.what for one in found} == {"step", "prefill", "decode", "step, 2 replicas", "step, 2 stages"}
    assert all(one.ratio == pytest.approx(1.25) for one in found)
    assert all(one.p10 < one.measured < one.p90 for one in found)
    alone, together_ = (
        next(one for one in found if one.what == what and one.trial.model == "small-byte-gpt")
        for what in ("step", "step, 2 replicas")
    )
    waits = calibrated.measurements.lockstep
    assert waits == pytest.approx(2.3 / 2.15)
    assert alone.predicted < together_.predicted  # as much work on each card, and waiting, and the sum


def test_check_leaves_out_what_a_device_refused(calibrated: Calibrated) -> None:
    trials = check.trials_for("cpu")[:2]
    some = replace(calibrated, measurements=replace(calibrated.measurements, tried=({}, {"step": [1.0]})))
    assert [one.trial for one in check.compare(some, trials)] == [trials[1]]
    with pytest.raises(RunError, match="no time"):
        check.compare(replace(calibrated, measurements=replace(some.measurements, tried=({"step": []},))), trials[:1])


def test_spread_of_the_check_is_the_band_of_plans(calibrated: Calibrated) -> None:
    spread = check.with_spread(calibrated, tried(calibrated)).accelerator.spread
    assert spread is not None
    assert (spread.low, spread.high) == (1.0, pytest.approx(1.25 * 1.1, rel=0.03))
    assert (spread.steps, spread.models) == (15, 2)
    found = bands.calibrated([calibrated.accelerator.model_copy(update={"spread": spread})])
    assert found is not None
    assert (found.name, found.low, found.high) == ("calibrated", spread.low, spread.high)
    assert bands.calibrated([calibrated.accelerator]) is None


def test_spread_without_a_check_is_that_of_the_timings(calibrated: Calibrated) -> None:
    spread = check.with_spread(calibrated, []).accelerator.spread
    assert spread is not None
    assert spread.models == 0
    assert 0.8 < spread.low < 1.0 < spread.high < 1.25  # noise of 5 %


def test_rows_that_are_kept_are_read_by_validate(calibrated: Calibrated, tmp_path: Path) -> None:
    found = tried(calibrated)
    path = tmp_path / "rows.jsonl"
    check.keep(check.rows(found, calibrated), path)
    result = zhenfa("validate", "--rows", str(path), "--json")
    assert result.code == 0, result.err
    rows = {(row["id"], row["metric"]): row for row in json.loads(result.out)["rows"]}
    alone = [one for one in found if one.trial.cards == 1]
    assert len(rows) == len(alone) == 7
    assert not [row["skipped"] for row in rows.values() if row["skipped"]]
    for row in rows.values():
        off = row["predicted"] / row["measured"]
        assert off == pytest.approx(1.25 if row["unit"] == "tok/s" else 0.8, rel=0.03), row


def test_rows_that_are_kept_hold_what_was_measured(calibrated: Calibrated, tmp_path: Path) -> None:
    found = [one for one in tried(calibrated) if one.what in {"step", "decode"}][:4]
    path = tmp_path / "rows.jsonl"
    check.keep(check.rows(found, calibrated), path)
    check.keep(check.rows(found, calibrated), path)
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    assert len(rows) == 8
    assert rows[0]["metrics"] == {"iter_s": pytest.approx(found[0].measured)}
    assert rows[3]["metrics"] == {"tpot_ms": pytest.approx(1e3 * found[3].measured)}
    assert not stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO


# A real processor.


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("calibrate") / "here.yaml"
    result = zhenfa("calibrate", "--device", "cpu", "--quick", "--check", "--json", "--out", str(path))
    assert result.code == 0, result.err
    return path, json.loads(result.out)


@pytest.mark.live
def test_calibrate_measures_this_processor(quick: tuple[Path, dict[str, Any]]) -> None:
    path, document = quick
    assert document["schema"] == "zhenfa.calibration/1"
    assert document["file"] == str(path)
    assert document["refused"] == {}
    card = catalog.load_machine(path).pools[0].accelerator
    assert isinstance(card, Accelerator)
    assert 1e8 < card.peak["fp32"].require("peak") < 1e14
    assert 1e8 < card.memory.bandwidth.require("bandwidth") < 1e13
    assert 1e-8 < card.achievable.launch.require("launch") < 1e-3


@pytest.mark.live
def test_prediction_lies_beside_measurement(quick: tuple[Path, dict[str, Any]]) -> None:
    _, document = quick
    checks = {one["what"]: one for one in document["checks"]}
    assert set(checks) == {"step", "prefill", "decode"}
    step = document["checks"][0]
    assert step["ratio"] == pytest.approx(step["measured_s"] / step["predicted_s"])
    assert 0.3 < step["ratio"] < 5  # however busy the host
    if not document["disturbed"] and step["waited"] <= WAITED:
        assert step["ratio"] == pytest.approx(1.0, abs=0.25)  # a few sizes only: a full calibration comes nearer


@pytest.mark.live
def test_plan_takes_the_measured_machine(quick: tuple[Path, dict[str, Any]]) -> None:
    result = zhenfa("plan", str(ROOT / "examples/cpu-pretrain.yaml"), "--on", str(quick[0]), "--json")
    assert result.code == 0, result.err
    best = json.loads(result.out)["plans"][0]
    assert best["estimate"]["step_time_s"]["value"] > 0
    card = catalog.load_machine(quick[0]).pools[0].accelerator
    assert isinstance(card, Accelerator)
    assert not [words for words in best["assumptions"] if card.id in words]  # nothing of the card is assumed


@pytest.mark.live
def test_calibrate_refuses_in_words(quick: tuple[Path, dict[str, Any]]) -> None:
    again = zhenfa("calibrate", "--device", "cpu", "--quick", "--out", str(quick[0]))
    assert (again.code, again.out) == (2, "")
    assert "--force" in again.err
    assert zhenfa("calibrate", "--cards", "200", "--device", "cpu").code == 2
    assert zhenfa("calibrate", "--keep", "rows.jsonl").code == 2


# The clock of a card, with events and a queue that this host lends it.


class LentEvent:
    """An event of a device that works in order, as a processor does."""

    def __init__(self, device: object, *, enable_timing: bool) -> None:
        assert enable_timing
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: LentEvent) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> EventClock:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "Event", LentEvent)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    monkeypatch.setattr(clock, "CACHE_BYTES", 2**20)
    monkeypatch.setattr(clock, "SIDE", 64)
    return EventClock(torch.device("cpu"))


@pytest.mark.live
def test_card_clock_times_each_call_apart_from_the_emptying_of_its_cache(lent: EventClock) -> None:
    done: list[float] = []

    def call() -> None:
        end = time.perf_counter() + 2e-3
        while time.perf_counter() < end:
            pass
        done.append(end)

    times = lent.times(call, 5)
    assert len(times) == 5
    assert len(done) == 7  # one to warm up, and one to see how long the host is at it
    assert all(2e-3 <= one < 0.5 for one in times)
    assert 2e-3 <= lent.batch(call, 3) < 0.5
    assert 2e-3 <= lent.host(call, 2) < 0.5
    lent.heat(0.001)


@pytest.mark.live
def test_bench_goes_on_where_it_stopped_and_says_what_it_cannot_do() -> None:
    torch = pytest.importorskip("torch")
    from zhenfa.live.calibrate.worker import Bench

    tasks = [
        {"kind": "stream", "precision": "fp32", "sizes": {"elements": 1024, "tensors": 3, "cold": 2}},
        {"kind": "attention", "precision": "fp32", "sizes": {"sequences": 1, "length": -1, "heads": 1, "dim": 8}},
    ]
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "intermediate": 32, "vocabulary": 32}
    trial = {"kind": "serve", "precision": "fp32", "batch": 2, "length": 8, "steps": 4, "sizes": sizes}
    wrong = trial | {"kind": "train", "length": -1}
    bench = Bench(tasks, [trial, wrong], torch.device("cpu"))
    first = len(bench.run(0.0)["seconds"][0])
    found = bench.run(0.0)
    assert len(found["seconds"][0]) == 2 * first
    assert not found["seconds"][1]
    assert set(found["tried"][0]) == {"prefill", "decode"}
    assert found["tried"][1] == {}
    assert len(found["refused"]) == 2


@pytest.fixture
def work() -> Iterator[ModuleType]:
    """Lend the work of a card, and give back the memory of its operands."""
    pytest.importorskip("torch")
    from zhenfa.live.calibrate import work

    work.arena.cache_clear()
    yield work
    work.arena.cache_clear()


@pytest.mark.live
def test_operands_from_memory_rotate_over_more_than_the_last_cache(work: ModuleType) -> None:
    import torch

    rows = work._rotating(torch.device("cpu"), torch.float32, 512, 512)
    wanted = max(work.COLD_BYTES, 3 * work.last_cache())
    seen = {next(rows).data_ptr() for _ in range(2 * wanted // 2**20)}
    assert len(seen) * 2**20 >= 0.95 * wanted
    call = call_of(Task("stream", "fp32", {"elements": 2**18, "tensors": 3, "cold": 2}), torch.device("cpu"))
    for _ in range(400):
        call()
    assert work.arena(torch.float32).abs().median() > 0.5  # no products of products


@pytest.mark.live
def test_every_task_of_a_card_can_be_built(lent: EventClock, work: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(work, "COLD_BYTES", 2**20)
    monkeypatch.setattr(work, "MOST_COLD_BYTES", 2**20)
    small = {"rows": 8, "inputs": 16, "outputs": 24, "sequences": 2, "length": 16, "heads": 2, "dim": 8, "side": 16,
             "elements": 64, "parameters": 64, "tensors": 2, "layers": 1}  # fmt: skip
    for task in tasks_for("cuda"):
        sizes = {name: min(size, small.get(name, size)) for name, size in task.sizes.items()}
        cut = Task(task.kind, task.precision, sizes)
        times = seconds_of(cut, call_of(cut, torch.device("cpu")), lent, 1)
        assert times
        assert times[0] >= 0


def test_card_that_the_catalog_knows_keeps_its_makers_figures() -> None:
    known = catalog.accelerator("nvidia-h100-sxm")
    tasks = tasks_for("cuda", quick=True)
    chance = np.random.default_rng(0)
    seconds = predict.seconds(tasks, known) * np.exp(0.05 * chance.standard_normal(len(tasks)))
    samples = tuple(Sample(task, (float(one),) * 3) for task, one in zip(tasks, seconds, strict=True))
    device = DeviceRecord("nvidia", 0, "NVIDIA H100 80GB HBM3", "NVIDIA", "a test", 80 * 10**9, "cuda:0")
    found = card_of(Measurements(device, 1, 1, "2.0", samples, None, verdict([0.0], [[1.0, 1.0]])))
    card = found.accelerator
    assert (card.id, card.peak, card.memory, card.software) == (known.id, known.peak, known.memory, known.software)
    assert card.achievable.matmul["bf16"].confidence == "calibrated"
    assert 0.3 < card.achievable.matmul["bf16"].require("share") <= 1.0
    for kind in ("matmul", "attention", "stream", "launch", "optimizer"):
        assert found.error(kind)[1] < 0.1, kind
    assert Machine.from_data(machine_of(found).to_data())
