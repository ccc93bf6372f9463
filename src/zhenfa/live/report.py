"""From what the cards measured to a :class:`~zhenfa.spec.result.Run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zhenfa.live.pace import BESIDE, CATCH_UP, COMPUTE, VALID_SHARE
from zhenfa.live.placement import CardPlace
from zhenfa.live.quiet import verdict
from zhenfa.live.routing import routing_of
from zhenfa.live.train import Measured
from zhenfa.spec.result import Event, Figure, Figures, Run, StageFigures, Wall, Walls

COMMUNICATION = ("receive", "reduce", "packing")


def run_of(
    measured: Measured, even: Measured | None, *, protection: str, engine: str, checkpoint: Path | None,
    notes: Sequence[str] = (),
) -> Run:  # fmt: skip
    """Return the run. Shares and means leave the first step out; events are of the last step."""
    emulated = any(place.rate is not None for place in measured.places)
    return Run(
        plan=measured.plan,
        figures=_figures(measured, emulated),
        walls=_walls(measured, emulated),
        steps=len(measured.losses),
        step_times_s=tuple(measured.step_times),
        losses=tuple(measured.losses),
        stages=tuple(one for pair in zip(measured.places, measured.reports, strict=True) for one in _stages(*pair)),
        events=_events(measured),
        emulated=emulated,
        fidelity=fidelity(measured, protection) if emulated else left_alone(measured, protection),
        share_of_sum_of_speeds=share_of_sum_of_speeds(measured),
        routing=routing_of(measured.reports),
        even_split=_even(measured, even),
        checkpoint=None if checkpoint is None else str(checkpoint),
        engine=engine,
        notes=(*_notes(measured, protection, emulated), *notes),
    )


def step_flops(measured: Measured) -> float:
    """Return the FLOPs that torch executed in one step on all cards, recomputation included."""
    counts = [report["flops"] for report in measured.reports]
    return float(sum(count for row in counts for kind, count in row.items() if kind != "again"))


def share_of_sum_of_speeds(measured: Measured) -> float | None:
    """Return the ideal step time over the measured one, None unless all cards have a declared speed.

    The ideal is the step's counted FLOPs over the sum of all cards' speeds: every card busy all the time.
    """
    rates = [place.rate for place in measured.places]
    if any(rate is None for rate in rates):
        return None
    return step_flops(measured) / sum(rate for rate in rates if rate is not None) / measured.step_time


def fidelity(measured: Measured, protection: str) -> dict[str, float | str | bool]:
    """Return how well the emulation held its deadlines: counts over all cards, and whether the timing is valid."""
    rows = [report["fidelity"] for report in measured.reports]
    operations, missed = sum(row["operations"] for row in rows), sum(row["missed"] for row in rows)
    share = missed / operations if operations else 0.0
    loads = [row["busy"] / row["emulated"] for row in rows if row["emulated"]]
    valid = share <= VALID_SHARE
    return {
        "operations": operations,
        "missed": missed,
        "missed_share": share,
        "worst_overshoot_s": max((row["worst"] for row in rows), default=0.0),
        "busiest_core_share": max(loads, default=0.0),
        "protection": protection,
        "valid": valid,
        "verdict": f"{missed} of {operations} operations and messages came more than {1e3 * CATCH_UP:.0f} ms late; "
        + ("timing is valid" if valid else f"timing is NOT valid (more than {VALID_SHARE:.0%})"),
    }


def left_alone(measured: Measured, protection: str) -> dict[str, float | str | bool]:
    """Return how far other work on the host took part in a run on real cards, and whether its timing is valid."""
    found = verdict([report["waited"] for report in measured.reports], [measured.step_times[1:]], "the steps")
    return {
        "waited_share": found.waited, "unsteady": found.unsteady, "protection": protection,
        "valid": not found.disturbed, "verdict": found.words(),
    }  # fmt: skip


def _figures(measured: Measured, emulated: bool) -> Figures:
    plan, seconds = measured.plan, measured.step_time
    note = "emulated cards: the time is that of the emulation" if emulated else None
    rate = plan.global_batch * plan.sequence_length / seconds
    held = max(sum(report["memory"].values()) for report in measured.reports)
    return Figures(
        step_time_s=Figure(value=seconds, unit="s", tag="measured", note=note),
        tokens_per_s=Figure(value=rate, unit="tokens/s", tag="measured", note=note),
        tokens_per_s_per_card=Figure(value=rate / plan.cards, unit="tokens/s", tag="measured", note=note),
        mfu=_mfu(measured),
        memory_bytes_per_card=Figure(
            value=held, unit="B", tag="measured", note="tensors held by the fullest card, counted in torch"
        ),
    )


def _mfu(measured: Measured) -> Figure:
    share = share_of_sum_of_speeds(measured)
    if share is None:
        return Figure()
    again = sum(report["flops"]["again"] for report in measured.reports)
    useful = 1 - again / step_flops(measured)
    note = "FLOPs counted in torch, causal half of attention, recomputation left out, against the declared peak"
    return Figure(value=share * useful, tag="measured", note=note)


def _walls(measured: Measured, emulated: bool) -> Walls:
    """Return the shares of the last step, mean over cards: at work, held up by messages, idle."""
    whole = max(span[3] for row in measured.spans for span in row) * len(measured.spans)
    parts: dict[str, float] = {}
    for kind, _, start, end, *_ in (span for row in measured.spans for span in row):
        if kind not in BESIDE:
            parts[kind] = parts.get(kind, 0.0) + (end - start) / whole
    work = {kind: parts[kind] for kind in COMPUTE if kind in parts}
    talk = {kind: parts[kind] for kind in COMMUNICATION if kind in parts}
    idle = max(0.0, 1.0 - sum(work.values()) - sum(talk.values()))
    busy, held = sum(work.values()), sum(talk.values())
    return Walls(
        compute=Wall(share=busy, parts=work | {"idle": idle}, detail=_shares(work | {"idle": idle})),
        communication=Wall(share=held, parts=talk, detail=_shares(talk)),
        energy=Wall(detail="emulated cards draw none of their own" if emulated else "not measured"),
        reliability=Wall(share=0.0, detail="nothing failed"),
        binding="communication" if held > busy else "compute",
    )


def _shares(parts: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in parts.items()) or "nothing was held up"


def _stages(place: CardPlace, report: dict[str, Any]) -> list[StageFigures]:
    """Return the figures of the stages on a card; their memory is that of the whole card."""
    return [
        StageFigures(
            pipeline=place.pipeline, stage=chunk.stage, pool=place.pool, layers=(chunk.first, chunk.last),
            forward_s=means.get("forward", 0.0), backward_s=_backward(means),
            transfer_s=report["means"].get("send", 0.0), memory_bytes=sum(report["memory"].values()),
            memory_parts=report["memory"], capacity_bytes=place.capacity, card=place.rank,
        )
        for chunk, means in zip(place.chunks, report["stages"], strict=True)
    ]  # fmt: skip


def _backward(means: dict[str, float]) -> float:
    """Return the seconds of a backward pass: whole, or its halves where the schedule only runs them apart."""
    return means.get("backward") or means.get("input", 0.0) + means.get("weight", 0.0)


def _events(measured: Measured) -> tuple[Event, ...]:
    return tuple(
        Event(
            card=rank, kind=kind, micro_batch=micro_batch, start_s=start, end_s=end, stage=stage if stage >= 0 else None
        )
        for rank, row in enumerate(measured.spans)
        for kind, micro_batch, start, end, _, stage in row
    )


def _even(measured: Measured, even: Measured | None) -> dict[str, float]:
    if even is None:
        return {}
    figures = {
        "step_time_s": even.step_time,
        "steps": float(len(even.losses)),
        "speed_up": even.step_time / measured.step_time,
    }
    share = share_of_sum_of_speeds(even)
    return figures | ({} if share is None else {"share_of_sum_of_speeds": share})


def _notes(measured: Measured, protection: str, emulated: bool) -> tuple[str, ...]:
    notes = (
        [f"the mean leaves out the first step of {measured.step_times[0]:.3g} s"] if len(measured.losses) > 1 else []
    )
    if emulated:
        notes.append("the cards are emulated: processes on this host's processor, held to declared speeds")
        if protection == "none":
            notes.append("no private control group: other work on this host makes the emulation less exact")
    return tuple(notes)
