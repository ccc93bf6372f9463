"""A job's machine measured before the job is planned on it: its device timed, or, of several pools, plans run on it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import zhenfa
from zhenfa import units
from zhenfa.errors import InputError
from zhenfa.live.host import processors
from zhenfa.live.makers import DeviceRecord, maker_for
from zhenfa.live.sizes import Sizes
from zhenfa.plan.request import Request
from zhenfa.spec.machine import Formation, Machine

KEPT_S: Final = 24 * 3600.0
"""Seconds for which what was measured counts: a host's clocks and neighbours change from day to day."""
WITHIN_S: Final = 30.0
"""Seconds that the timings take unless a limit is given; starting the cards comes on top."""
QUICK_BELOW_S: Final = 25.0
"""Seconds below which only a few sizes are timed."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """How to measure: for about ``within`` seconds; ``anew``: though it was measured within a day."""

    within: float = WITHIN_S
    anew: bool = False


@dataclass(frozen=True)
class Found:
    """A machine as measured, by which way (``device`` or ``plans``), and the file that keeps it for the next run.

    ``cached``: it was measured by an earlier run. ``words``: what was done, in a sentence.
    """

    machine: Machine
    way: str
    kept: Path
    cached: bool
    words: str


def measured_device(
    wish: Wish, say: Say, *, machine: Machine | None = None, formation: Formation | None = None
) -> Found:
    """Time the cards of this host, and return them as a machine; ``machine``, whose only pool they are, with its
    accelerator and its tiers as measured. Raises :class:`InputError` where this host does not have them."""
    from zhenfa.live.calibrate.session import find_device

    pool = formation.pools[0] if formation is not None else None
    provider = None if pool is None else maker_for(pool.accelerator).id
    device = find_device(provider)
    cards = pool.count if pool is not None else _all_cards(device)
    key = {"way": "device", "device": device.name, "provider": device.provider, "cards": cards, "torch": _torch(),
           "processors": processors(), "quick": wish.within < QUICK_BELOW_S}  # fmt: skip
    known = None if wish.anew else _known(key)
    if known is not None:
        found, words = known, f"{cards} x {device.name}: as measured {_age(key)} ago"
    else:
        found, words, quiet = _timed(device, cards, wish, say)
        if quiet:
            _keep(found, key)
    if machine is not None:
        mine = found.pools[0]
        pool_document = machine.pools[0].model_copy(
            update={"system": None, "accelerator": mine.accelerator, "count": mine.count, "tiers": mine.tiers}
        )
        found = machine.model_copy(update={"pools": (pool_document,), "note": found.note})
    return Found(found, "device", _path(key), known is not None, words)


def measured_pools(request: Request, wish: Wish, say: Say, sizes: Sizes | None = None) -> Found:
    """Run a few steps of plans that use every card and every link of a request's machine, and return the machine with
    what they taught; ``sizes`` as in :func:`~zhenfa.live.calibrate.probe.probed`.

    Raises :class:`InputError` where the request came without a document, or no plan fits.
    """
    from zhenfa.live.calibrate.probe import probed

    machine = request.machine
    if machine is None:
        raise InputError("there is no machine document to measure.", hint="name a machine, or a file of one.")
    mark = " (EMULATED)" if request.formation.emulated else ""
    key = {"way": "plans", "machine": machine.to_data(), "model": request.model.to_data(), "torch": _torch(),
           "workload": request.job.workload.model_dump(mode="json"), "processors": processors()}  # fmt: skip
    known = None if wish.anew else _known(key)
    if known is not None:
        words = f"{machine.name}{mark}: as measured {_age(key)} ago"
        return Found(known, "plans", _path(key), True, words)
    found, told, whole = probed(request, wish.within, say, sizes)
    if whole:
        _keep(found, key)
    return Found(found, "plans", _path(key), False, f"{machine.name}{mark}: {told}")


def by_device(formation: Formation) -> bool:
    """Return whether the cards of a machine are timed one by one: those of one pool that are not emulated."""
    return len(formation.pools) == 1 and not formation.emulated


def _timed(device: DeviceRecord, cards: int, wish: Wish, say: Say) -> tuple[Machine, str, bool]:
    from zhenfa.live.calibrate import card, machine, session

    quick = wish.within < QUICK_BELOW_S
    measured = session.measure(device, cards, quick=quick, say=say, seconds=wish.within)
    document = machine.machine_of(card.card_of(measured), card.slug(device.name))
    return document, f"{cards} x {device.name}: {measured.quiet.words()}", not measured.quiet.disturbed


def _all_cards(device: DeviceRecord) -> int:
    """Return how many cards of a device's kind this host has: of a processor, as many as it has processors."""
    from zhenfa.live.discovery import devices

    if device.provider == "cpu":
        return processors()
    return sum(one.provider == device.provider and one.torch_device is not None for one in devices())


def _torch() -> str:
    from importlib.metadata import version

    return version("torch")


def _folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "zhenfa" / "machines"


def _path(key: dict[str, Any]) -> Path:
    text = json.dumps({**key, "zhenfa": zhenfa.__version__}, sort_keys=True, default=str)
    return _folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.yaml"


def _seconds_old(key: dict[str, Any]) -> float:
    return time.time() - _path(key).stat().st_mtime


def _age(key: dict[str, Any]) -> str:
    return units.show(max(round(_seconds_old(key)), 1.0), "time")


def _known(key: dict[str, Any]) -> Machine | None:
    """Return what an earlier run measured, None if there is nothing whole that is young enough."""
    try:
        if not 0 <= _seconds_old(key) < KEPT_S:
            return None
        return Machine.from_file(_path(key))
    except (OSError, InputError):
        return None


def _keep(machine: Machine, key: dict[str, Any]) -> None:
    """Keep what was measured for the next run; where the folder cannot be written it is not kept."""
    path = _path(key)
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(machine.to_yaml(), encoding="utf-8")
        partial.replace(path)
    except OSError:
        return


def with_machine(request: Request, machine: Machine) -> Request:
    """Return a request on a machine as measured."""
    from zhenfa import catalog

    formation = catalog.resolve(machine, request.job.assume)
    return replace(request, machine=machine, formation=formation)
