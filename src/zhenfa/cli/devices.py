"""``zhenfa devices``: the cards of this host, or those that a file recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.live.discovery import devices
from zhenfa.live.makers import DeviceRecord, makers, problems
from zhenfa.live.makers.recorded import cards


@dataclass(frozen=True)
class Wanted:
    """What was asked of ``zhenfa devices``."""

    recorded: str | None = None
    as_machine: str | None = None
    force: bool = False


def list_devices(wanted: Wanted, output: Output) -> None:
    """Print the cards of this host, or of a recorded file, and write them down as a machine if asked to."""
    for problem in problems():
        output.talk.text(problem, first="warning: ", style="warn")
    with output.working("asking makers' tools and torch for cards"):
        found = cards(Path(wanted.recorded), makers()) if wanted.recorded else devices()
    if wanted.as_machine is not None:
        _write(found, Path(wanted.as_machine), output, force=wanted.force)
    if output.as_json:
        from zhenfa.cli.documents import Devices

        output.document(Devices(devices=tuple(found)))
        return
    _print(found, output)
    if output.cite:
        output.sources(source for one in found if one.provider in makers() for source in makers()[one.provider].sources)


def _write(found: Sequence[DeviceRecord], path: Path, output: Output, *, force: bool) -> None:
    from zhenfa.live.calibrate.machine import write
    from zhenfa.live.inventory import machine_of

    write(machine_of(found, path.stem), path, force=force, made_by="Written by `zhenfa devices`")
    output.say(f"machine written to {path}; what nobody tells is left empty. Plan on it: zhenfa plan JOB --on {path}")


def _print(found: Sequence[DeviceRecord], output: Output) -> None:
    columns = (
        Column("#", right=True), Column("maker", style="strong", wrap=12), Column("told from", drop=6, wrap=16),
        Column("name", wrap=20), Column("memory", right=True), Column("used", right=True, drop=5),
        Column("load", right=True, drop=4), Column("heat", right=True, drop=3), Column("power", right=True, drop=3),
        Column("health", drop=2), Column("PCI address", drop=7), Column("torch device"),
    )  # fmt: skip
    rows = [
        (
            str(number), device.maker, device.maker_from, device.name, _shown(device.memory_bytes, "data"),
            _shown(device.memory_used_bytes, "data"), _share(device.utilisation), _heat(device.temperature_c),
            _shown(device.power_w, "power"), device.health or "", device.pci_address or "",
            device.torch_device or "not shown",
        )
        for number, device in enumerate(found)
    ]  # fmt: skip
    notes = ["; ".join(device.problems) for device in found]
    output.left_out(output.data.table(table(columns, rows, notes=notes, title="problems")))
    output.say("Emulated cards need no device: `zhenfa show emulated-quartet` shows a machine of four.")


def _shown(value: float | None, dimension: str) -> str:
    return "" if value is None else units.show(value, dimension)  # type: ignore[arg-type]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _heat(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} °C"
