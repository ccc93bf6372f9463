"""The machine file: the calibrated cards in one pool, joined by what was measured between them."""

from __future__ import annotations

import os
from pathlib import Path

from zhenfa import units
from zhenfa.errors import InputError, RunError
from zhenfa.live.calibrate.card import Calibrated, slug
from zhenfa.live.calibrate.fit import line
from zhenfa.live.calibrate.samples import middle, quantile
from zhenfa.live.calibrate.session import Wires
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Machine, Pool, Tier


def machine_of(calibrated: Calibrated, name: str | None = None) -> Machine:
    """Return the machine document of calibrated cards. ``name``: by default the device's."""
    measurements = calibrated.measurements
    cards = measurements.cards
    tier = alone(calibrated) if measurements.wires is None else _tier(measurements.wires, cards, measurements.source)
    return Machine(
        name=slug(name or measurements.device.name), title=f"{cards} x {measurements.device.name}",
        pools=(Pool(name="cards", accelerator=calibrated.accelerator, count=cards, tiers=(tier,)),),
        note=measurements.quiet.words(),
    )  # fmt: skip


def alone(calibrated: Calibrated) -> Tier:
    """Return the tier of one card, over which nothing is sent: it stands at the card's own memory and launch."""
    card, note = calibrated.accelerator, "one card sends to nobody: its own memory's"
    return Tier(
        name="host", size=1, bandwidth=card.memory.bandwidth.model_copy(update={"note": note}),
        latency=card.achievable.launch.model_copy(update={"note": note}),
    )  # fmt: skip


def _tier(wires: Wires, cards: int, source: str) -> Tier:
    """Return the tier between the cards: latency and bandwidth of sums, which carry most of what cards exchange.

    A sum of n cards moves 2 (n - 1)/n of its bytes through each card, in 2 (n - 1) messages, as a ring does; laying
    the tensors out and copying them back counts with it, as in a run.
    """
    rounds, moved = 2.0 * (cards - 1), 2.0 * (cards - 1) / cards
    sizes = [moved / rounds * size for size in wires.sizes]
    latency, bandwidth = line(sizes, [middle(row) / rounds for row in wires.sums])
    words = f"{source}; {sum(map(len, wires.sums))} sums over gloo"
    rates = [wires.sizes[-1] * moved / quantile(wires.sums[-1], share) for share in (0.9, 0.1)]
    first = [units.show(quantile(wires.sums[0], share) / rounds, "time") for share in (0.1, 0.9)]
    message = units.show(wires.sizes[-1] / middle(wires.messages[-1]), "rate")
    return Tier(
        name="host", size=cards,
        bandwidth=Fact(
            value=float(f"{bandwidth:.5g}"), dimension="rate", unit="B/s", source=words, confidence="calibrated",
            note=f"10 to 90 % of the largest sums: {units.show(rates[0], 'rate')} to {units.show(rates[1], 'rate')}; "
            f"a message alone: {message}",
        ),
        latency=Fact(
            value=float(f"{latency:.5g}"), dimension="time", unit="s", source=words, confidence="calibrated",
            note=f"10 to 90 % of a step of the smallest sums: {first[0]} to {first[1]}",
        ),
        description="sums and messages through the memory of the host, as `zhenfa run` sends them",
    )  # fmt: skip


def write(
    machine: Machine, path: Path, *, force: bool = False, made_by: str = "Measured by `zhenfa calibrate`"
) -> None:
    """Write the machine file, readable by its owner and group alone; ``made_by`` stands at its top.

    Raises :class:`InputError` if the file is there already and ``force`` is not set, :class:`RunError` if it cannot be
    written.
    """
    refuse_to_overwrite(path, force=force)
    text = f"# {made_by}. Plan on it with --on, as any machine file.\n" + machine.to_yaml()
    partial = path.with_name(f".{path.name}.partial")
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640)
        with os.fdopen(file, "w", encoding="utf-8") as out:
            out.write(text)
        if force:
            partial.replace(path)
        else:
            os.link(partial, path)
            partial.unlink()
    except FileExistsError:
        partial.unlink(missing_ok=True)
        refuse_to_overwrite(path, force=False)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        raise RunError(f"{str(path)!r} cannot be written: {os.strerror(problem.errno or 0)}.") from None


def refuse_to_overwrite(path: Path, *, force: bool) -> None:
    """Raise :class:`InputError` if the file is there and may not be replaced, or its folder is not there."""
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder.", hint="name a file with --out.")
    if path.exists() and not force:
        raise InputError(f"{str(path)!r} is there already.", hint="add --force to replace it, or another --out.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {str(path.parent)!r}.", hint="make it first, or name another --out.")
