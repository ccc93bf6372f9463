"""``zhenfa calibrate``: time the device that is present and write it down as a machine that can be planned on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.cli.words import quantity
from zhenfa.errors import CapabilityError, InputError
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Machine

if TYPE_CHECKING:
    from zhenfa.cli.calibration_documents import Calibration, CheckedFigure, TimedKind
    from zhenfa.live.calibrate.card import Calibrated
    from zhenfa.live.calibrate.check import Checked

SHOWN: Final = (
    "matmul", "attention", "attention backward", "decode", "stream", "chain", "chain backward", "optimizer", "launch",
    "eager decode", "eager step",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What was asked of ``zhenfa calibrate``."""

    device: str | None = None
    cards: int | None = None
    out: str | None = None
    quick: bool = False
    check: bool = False
    keep: str | None = None
    force: bool = False


def calibrate_device(wanted: Wanted, output: Output) -> None:
    """Measure, fit, write the machine file and report."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise CapabilityError("torch is not installed.", hint="pip install 'zhenfa[live]'.")
    from zhenfa.live.calibrate import card, check, machine, session

    if wanted.keep and not wanted.check:
        raise InputError("--keep keeps what --check measures.", hint="add --check.")
    device = session.find_device(wanted.device)
    path = Path(wanted.out or f"{card.slug(device.name)}.yaml")
    machine.refuse_to_overwrite(path, force=wanted.force)
    cards = wanted.cards or 1
    trials = check.trials_for(device.provider, cards) if wanted.check else ()
    orders, joint = check.alone_and_together(trials)
    with output.working("calibrating"):
        measured = session.measure(device, cards, quick=wanted.quick, say=output.say, trials=orders, joint=joint)
        calibrated = card.card_of(measured)
        checked = check.compare(calibrated, trials)
        calibrated = check.with_spread(calibrated, checked)
    document = machine.machine_of(calibrated, path.stem)
    machine.write(document, path, force=wanted.force)
    if wanted.keep:
        kept = check.rows(checked, calibrated)
        check.keep(kept, Path(wanted.keep))
        output.say(f"{len(kept)} measured rows added to {wanted.keep}")
    if output.as_json:
        output.document(_document(document, calibrated, checked, path))
    else:
        _print(document, calibrated, checked, path, output)
    if output.cite and not output.as_json:
        output.sources([measured.source])


def _document(document: Machine, calibrated: Calibrated, checked: list[Checked], path: Path) -> Calibration:
    from zhenfa.cli.calibration_documents import Calibration

    measured = calibrated.measurements
    return Calibration(
        device=measured.device, cards=measured.cards, threads=measured.threads, torch=measured.torch,
        source=measured.source, machine=document.to_data(), file=str(path), disturbed=measured.quiet.disturbed,
        verdict=measured.quiet.words(), refused=measured.refused, timings=tuple(_timed(calibrated)),
        checks=tuple(_figures(checked)),
    )  # fmt: skip


def _timed(calibrated: Calibrated) -> list[TimedKind]:
    from zhenfa.cli.calibration_documents import TimedKind

    rows = []
    for kind in SHOWN:
        count, middle, high = calibrated.error(kind)
        if count:
            rows.append(TimedKind(kind=kind, sizes=count, median_abs_log_ratio=middle, p90_abs_log_ratio=high))
    return rows


def _figures(checked: list[Checked]) -> list[CheckedFigure]:
    from zhenfa.cli.calibration_documents import CheckedFigure

    return [
        CheckedFigure(
            what=one.what, model=one.trial.model, precision=one.trial.precision, batch=one.trial.batch,
            length=one.trial.length, predicted_s=one.predicted, measured_s=one.measured, p10_s=one.p10, p90_s=one.p90,
            ratio=one.ratio, waited=one.waited,
        )
        for one in checked
    ]  # fmt: skip


def _print(document: Machine, calibrated: Calibrated, checked: list[Checked], path: Path, output: Output) -> None:
    out, measured = output.data, calibrated.measurements
    cards = f"{measured.cards} {'card' if measured.cards == 1 else 'cards'}"
    threads = "one thread" if measured.threads == 1 else f"{measured.threads} threads"
    out.text(f"{measured.device.name}, {cards}, {threads} each", first="calibrated: ", style="head")
    out.text(measured.quiet.words(), style="warn" if measured.quiet.disturbed else None)
    out.head("Coefficients", "(measured; the laws of every estimate take them)")
    values = (Column("coefficient", style="strong"), Column("value", right=True), Column("spread", wrap=40))
    out.table(table(values, _coefficients(document)), indent=2)
    out.head("How well the laws then give the timings back", "(abs(ln(predicted / measured)))")
    columns = (
        Column("timed", style="strong"), Column("sizes", right=True), Column("median", right=True),
        Column("p90", right=True),
    )  # fmt: skip
    rows = [
        (one.kind, str(one.sizes), f"{one.median_abs_log_ratio:.3f}", f"{one.p90_abs_log_ratio:.3f}")
        for one in _timed(calibrated)
    ]
    out.table(table(columns, rows), indent=2)
    for task, reason in measured.refused.items():
        out.text(f"{task}: {reason}", first="  not timed: ", style="warn")
    _print_checks(checked, output)
    out.head("File")
    out.line(f"  {path}")
    output.say(f"zhenfa plan JOB --on {path}")


def _print_checks(checked: list[Checked], output: Output) -> None:
    if not checked:
        return
    output.data.head("Predicted beside measured", "(whole models with random weights, by turns with the timings)")
    columns = (
        Column("figure", style="strong"), Column("model"), Column("tokens", right=True),
        Column("predicted", right=True), Column("measured", right=True), Column("measured / predicted", right=True),
        Column("spread"),
    )  # fmt: skip
    rows = [
        (
            one.what, one.trial.model, f"{one.trial.batch} x {one.trial.length}", units.show(one.predicted, "time"),
            units.show(one.measured, "time"), f"{one.ratio:.3f}",
            f"{units.show(one.p10, 'time')} to {units.show(one.p90, 'time')}",
        )
        for one in checked
    ]  # fmt: skip
    output.left_out(output.data.table(table(columns, rows), indent=2))


def _coefficients(document: Machine) -> list[tuple[str, str, str]]:
    """Return every measured value of the machine with its name and spread."""
    pool = document.pools[0]
    card = pool.accelerator
    if card is None or isinstance(card, str):
        return []
    facts: list[tuple[str, Fact]] = [(f"peak {name}", one) for name, one in card.peak.items()]
    facts += [("memory bandwidth", card.memory.bandwidth), ("memory capacity", card.memory.capacity)]
    reach = card.achievable
    facts += [(f"matmul {name}", one) for name, one in reach.matmul.items()]
    facts += [(f"attention {name}", one) for name, one in reach.attention.items()]
    names = [name for name in type(reach).model_fields if name not in {"matmul", "attention"}]
    facts += [(name.replace("_", " "), getattr(reach, name)) for name in names]
    for tier in pool.tiers:
        facts += [(f"{tier.name} bandwidth", tier.bandwidth), (f"{tier.name} latency", tier.latency)]
    return [
        (name, quantity(one, 4), one.note or "")
        for name, one in facts
        if isinstance(one, Fact) and one.known and one.confidence == "calibrated"
    ]
