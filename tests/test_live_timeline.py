"""The picture and the trace show what the events say."""

from __future__ import annotations

from pathlib import Path

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from live_pools import formation, pipeline, plan, pool
from zhenfa.errors import InputError
from zhenfa.live.timeline import card_labels, draw, write_trace
from zhenfa.spec.result import Estimate, Event, Figure, Figures, Run, StageFigures, Walls

MACHINE = formation(pool("a", 1, speed=12e9), pool("b", 1, speed=6e9))
PLAN = plan(pipeline([5, 3], "ab", 2))


def run(**changes: object) -> Run:
    events = [
        Event(card=0, kind="forward", micro_batch=0, start_s=0.0, end_s=0.1),
        Event(card=0, kind="send", micro_batch=0, start_s=0.1, end_s=0.12),
        Event(card=1, kind="wait", micro_batch=0, start_s=0.0, end_s=0.1),
        Event(card=1, kind="receive", micro_batch=0, start_s=0.1, end_s=0.12),
        Event(card=1, kind="forward", micro_batch=0, start_s=0.12, end_s=0.2),
        Event(card=1, kind="backward", micro_batch=0, start_s=0.2, end_s=0.4),
        Event(card=0, kind="optimizer", micro_batch=-1, start_s=0.6, end_s=0.65),
    ]
    stages = tuple(
        StageFigures(pipeline=0, stage=index, pool=name, layers=layers, forward_s=0.1, backward_s=0.2, transfer_s=0.01,
                     memory_bytes=1e6)
        for index, (name, layers) in enumerate((("a", (0, 5)), ("b", (5, 8))))
    )  # fmt: skip
    figures = Figures(step_time_s=Figure(value=0.65, unit="s", tag="measured"))
    predicted = Figures(step_time_s=Figure(value=0.63, unit="s"))
    given = {
        "plan": PLAN, "figures": figures, "walls": Walls(), "steps": 2, "stages": stages, "events": tuple(events),
        "emulated": True, "share_of_sum_of_speeds": 0.83, "even_split": {"speed_up": 1.7},
        "estimate": Estimate(plan=PLAN, figures=predicted, walls=Walls()),
    }  # fmt: skip
    return Run(**(given | changes))


def test_labels_name_maker_speed_and_layers() -> None:
    assert card_labels(run(), MACHINE) == [
        "card 0: maker a\n12 GFLOP/s\nstage 0, layers 0-4",
        "card 1: maker b\n6 GFLOP/s\nstage 1, layers 5-7",
    ]


def test_picture_says_emulated_measured_and_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure as Drawing

    words: list[str] = []
    bars: list[tuple[float, float]] = []

    def look(drawing: Drawing, path: Path) -> None:
        words.append(drawing.get_suptitle())
        (axes,) = drawing.axes
        words.append(axes.get_title(loc="left"))
        words.extend(label.get_text() for label in axes.get_yticklabels())
        words.extend(text.get_text() for text in axes.get_legend().get_texts())
        bars.extend((bar.get_x(), bar.get_width()) for bar in axes.patches)
        save(drawing, path)

    save = Drawing.savefig
    monkeypatch.setattr(Drawing, "savefig", look)
    path = draw(run(), MACHINE, tmp_path / "timeline.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    text = "\n".join(words)
    for part in ("measured 650 ms", "predicted 630 ms (-3.1%)", "83% of the sum", "1.70x as fast as the even split",
                 "EMULATED", "maker a", "6 GFLOP/s", "optimizer step", "held up by a message"):  # fmt: skip
        assert part in text
    assert "gradient sum" not in text, "the legend lists what is there"
    assert bars == [pytest.approx(pair) for pair in ((0, 0.1), (0.1, 0.02), (0.12, 0.08), (0.2, 0.2), (0.6, 0.05))]
    words.clear()
    real = draw(run(emulated=False, estimate=None, even_split={}), MACHINE, tmp_path / "real.png")
    assert real.exists()
    assert "EMULATED" not in "\n".join(words)


def test_trace_reads_back(tmp_path: Path) -> None:
    trace = Trace()
    trace.ParseFromString(write_trace(run(), MACHINE, tmp_path / "run.pftrace").read_bytes())
    tracks = {packet.track_descriptor.uuid: packet.track_descriptor for packet in trace.packet
              if packet.HasField("track_descriptor")}  # fmt: skip
    names = {uuid: track.name or track.process.process_name for uuid, track in tracks.items()}
    assert "test on test-machine (EMULATED)" in names.values()
    found = set()
    open_at: dict[int, tuple[str, int]] = {}
    for packet in trace.packet:
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in open_at, "slices of a track do not overlap"
            open_at[event.track_uuid] = (event.name, packet.timestamp)
        else:
            name, start = open_at.pop(event.track_uuid)
            found.add((names[event.track_uuid].split(":")[0], name, start, packet.timestamp))
    assert not open_at
    assert ("card 0", "forward 0", 0, 100_000_000) in found
    assert ("card 1", "backward 0", 200_000_000, 400_000_000) in found
    assert ("card 0", "optimizer", 600_000_000, 650_000_000) in found
    assert len(found) == 7


def test_a_run_without_events_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no events"):
        draw(run(events=()), MACHINE, tmp_path / "none.png")
    with pytest.raises(InputError, match="no events"):
        write_trace(run(events=()), MACHINE, tmp_path / "none.pftrace")
