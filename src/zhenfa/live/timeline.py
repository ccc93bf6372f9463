"""The last step of a run as a picture and as a trace for Perfetto.

Matplotlib and perfetto are imported when a function is called; without them it raises
:class:`~zhenfa.errors.CapabilityError` that names the extra to install.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from zhenfa import units
from zhenfa.errors import CapabilityError, InputError
from zhenfa.live.pace import BESIDE
from zhenfa.spec.machine import Formation
from zhenfa.spec.result import Event, Run, StageFigures

FORWARD: Final = "#3b7dd8"
BACKWARD: Final = "#e07b39"
WEIGHT: Final = "#3f9e6b"
PASSES: Final = {"forward": FORWARD, "backward": BACKWARD, "input": BACKWARD, "weight": WEIGHT}
PLAIN: Final = {"optimizer": "#4d4d4d", "reduce": "#8e5ea2", "receive": "#c9c9c9"}
WORDS: Final = {
    "forward": "forward", "backward": "backward", "input": "backward, of inputs", "weight": "backward, of weights",
    "optimizer": "optimizer step",
    "reduce": "gradient sum", "receive": "held up by a message",
}  # fmt: skip
EMULATED: Final = "EMULATED: CPU processes held to declared speeds, no real accelerator"
SECOND: Final = 1_000_000_000
ABOVE: Final = 4
"""Entries of a legend that fit above the picture, beside the word that the cards are emulated."""
PROCESS_TRACK: Final = 1


def card_labels(run: Run, formation: Formation) -> list[str]:
    """Return a label for each card of the run, by rank: maker, speed, stage and layers."""
    labels = []
    replicas = len({stage.pipeline for stage in run.stages}) > 1
    for rank, stages in stages_by_card(run).items():
        stage = stages[0]
        accelerator = formation.pool(stage.pool).accelerator
        peak = accelerator.peak.get(run.plan.precision_by_pool().get(stage.pool, run.plan.precision))
        speed = peak.show() if peak is not None and peak.known else "speed not declared"
        held = [one.layers for one in stages if one.layers[0] < one.layers[1]]
        parts = [f"{first}" if last - first == 1 else f"{first}-{last - 1}" for first, last in held]
        one_layer = sum(last - first for first, last in held) == 1
        layers = ("layer " if one_layer else "layers ") + ", ".join(parts) if held else "no layers"
        numbers = (
            "stage " + str(stage.stage) if len(stages) == 1 else f"stages {', '.join(str(s.stage) for s in stages)}"
        )
        where = f"pipeline {stage.pipeline}, {numbers}" if replicas else numbers
        labels.append(f"card {rank}: {accelerator.maker}\n{speed}\n{where}, {layers}")
    return labels


def stages_by_card(run: Run) -> dict[int, list[StageFigures]]:
    """Return the stages that stood on each card, by rank."""
    found: dict[int, list[StageFigures]] = {}
    for number, stage in enumerate(run.stages):
        found.setdefault(number if stage.card is None else stage.card, []).append(stage)
    return found


def draw(run: Run, formation: Formation, path: Path) -> Path:
    """Draw the last step as a PNG, one row for each card, and return the path.

    Raises :class:`CapabilityError` without matplotlib, :class:`InputError` for a run without events.
    """
    _need_events(run)
    pyplot = _module("matplotlib.pyplot", "plot", backend=True)
    labels = card_labels(run, formation)
    figure, axes = pyplot.subplots(figsize=(15, 1.9 + 0.78 * len(labels)), dpi=130, layout="constrained")
    end = max(event.end_s for event in run.events)
    inches = 11.5
    for event in run.events:
        if event.kind in WORDS:
            _bar(axes, event, run, inches / end)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, end * 1.005)
    axes.set_xlabel("seconds from the start of the step (white: waiting for another card)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle("\n".join(_title(run)), fontsize=12, x=0.01, ha="left")
    _legend(axes, run, pyplot)
    if run.emulated:
        axes.set_title(EMULATED, loc="left", fontsize=10, color="#b00020", weight="bold")
    figure.savefig(path)
    pyplot.close(figure)
    return path


def write_trace(run: Run, formation: Formation, path: Path) -> Path:
    """Write the last step as a Perfetto trace (open it at ui.perfetto.dev) and return the path.

    Each card has a track of what it did and one of the messages that it sent. Raises :class:`CapabilityError` without
    the perfetto package, :class:`InputError` for a run without events.
    """
    _need_events(run)
    builder_module = _module("perfetto.trace_builder.proto_builder", "trace")
    schema = _module("perfetto.protos.perfetto.trace.perfetto_trace_pb2", "trace")
    builder = builder_module.TraceProtoBuilder()
    title = f"{run.plan.job} on {run.plan.machine}" + (" (EMULATED)" if run.emulated else "")
    _track(builder, PROCESS_TRACK, process=title)
    for card, label in enumerate(card_labels(run, formation)):
        lanes = {"": [], " messages": []}  # type: dict[str, list[Event]]
        for event in run.events:
            if event.card == card:
                lanes[" messages" if event.kind in BESIDE else ""].append(event)
        for lane, (suffix, events) in enumerate(lanes.items()):
            track = PROCESS_TRACK + 1 + 2 * card + lane
            _track(builder, track, name=label.replace("\n", ", ") + suffix)
            for event in sorted(events, key=lambda item: item.start_s):
                _slice(builder, schema.TrackEvent, track, event)
    path.write_bytes(builder.serialize())
    return path


def _bar(axes: Any, event: Event, run: Run, inches_per_second: float) -> None:
    width = event.end_s - event.start_s
    options: dict[str, Any] = {"height": 0.72, "linewidth": 0.4, "edgecolor": "white"}
    if event.kind in PLAIN:
        options["color"] = PLAIN[event.kind]
    else:
        batches = max(other.micro_batch for other in run.events if other.kind == event.kind)
        options["color"] = _shade(PASSES[event.kind], event.micro_batch, batches)
    axes.barh(event.card, width, left=event.start_s, **options)
    if event.kind in PASSES and width * inches_per_second > 0.11:
        middle = event.start_s + width / 2
        axes.text(middle, event.card, str(event.micro_batch), ha="center", va="center", fontsize=7, color="white")


def _shade(colour: str, index: int, last: int) -> tuple[float, ...]:
    """Return the colour, from deep for the first micro-batch to light for the last."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    light = 0.42 * index / max(last, 1)
    return tuple(part + (1 - part) * light for part in parts)


def _legend(axes: Any, run: Run, pyplot: Any) -> None:
    present = {event.kind for event in run.events if event.end_s > event.start_s}
    colours = {**PASSES, **PLAIN}
    handles = [
        pyplot.Rectangle((0, 0), 1, 1, color=colours[kind], label=words)
        for kind, words in WORDS.items()
        if kind in present
    ]
    if len(handles) > ABOVE:
        axes.legend(handles=handles, loc="upper right", bbox_to_anchor=(1.0, -0.1), ncols=len(handles), frameon=False)
    else:
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), frameon=False)


def _title(run: Run) -> list[str]:
    measured = run.figures.step_time_s.value or 0.0
    kind = "emulated cards, " if run.emulated else ""
    lines = [f"{run.plan.job} on {run.plan.machine}: one training step, {kind}{run.plan.schedule} schedule"]
    words = [f"measured {units.show(measured, 'time')}"]
    predicted = run.estimate.figures.step_time_s.value if run.estimate is not None else None
    if predicted:
        words.append(f"predicted {units.show(predicted, 'time')} ({predicted / measured - 1:+.1%})")
    if run.share_of_sum_of_speeds is not None:
        words.append(f"{run.share_of_sum_of_speeds:.0%} of the sum of the cards' speeds")
    if "speed_up" in run.even_split:
        words.append(f"{run.even_split['speed_up']:.2f}x as fast as the even split")
    return [*lines, ", ".join(words)]


def _track(builder: Any, track: int, *, process: str | None = None, name: str | None = None) -> None:
    descriptor = builder.add_packet().track_descriptor
    descriptor.uuid = track
    if process is not None:
        descriptor.process.pid = track
        descriptor.process.process_name = process
    else:
        descriptor.parent_uuid = PROCESS_TRACK
        descriptor.name = name


def _slice(builder: Any, kinds: Any, track: int, event: Event) -> None:
    label = f"{event.kind} {event.micro_batch}" if event.micro_batch >= 0 else event.kind
    for at, kind in ((event.start_s, kinds.TYPE_SLICE_BEGIN), (event.end_s, kinds.TYPE_SLICE_END)):
        packet = builder.add_packet()
        packet.timestamp = round(at * SECOND)
        packet.trusted_packet_sequence_id = 1
        packet.track_event.type = kind
        packet.track_event.track_uuid = track
        if kind == kinds.TYPE_SLICE_BEGIN:
            packet.track_event.name = label
            packet.track_event.categories.append(event.kind)


def _need_events(run: Run) -> None:
    if not run.events:
        raise InputError("the run has no events to draw.", hint="`zhenfa run` records those of the last step.")


def _module(name: str, extra: str, *, backend: bool = False) -> Any:
    try:
        if backend:
            importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module(name)
    except ImportError as problem:
        raise CapabilityError(f"{name.split('.', maxsplit=1)[0]} is not installed: {problem}.",
                              hint=f"pip install 'zhenfa[{extra}]'.") from None  # fmt: skip


__all__: Sequence[str] = ("card_labels", "draw", "write_trace")
