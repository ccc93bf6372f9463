"""Checks of makers' software: plug-ins, cards that torch does not show, modules, variables, time-outs, health."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence

from zhenfa import units
from zhenfa.live.doctor.check import Check, judged
from zhenfa.live.makers import DeviceRecord, Maker, makers, problems
from zhenfa.live.makers.probe import built_for


def checks(found: Sequence[DeviceRecord], environment: Mapping[str, str] | None = None) -> list[Check]:
    """Return what is found of each maker that has cards or a module here.

    Cards that torch does not show are no failure: runs on others, on the processor and on emulated cards go on.
    """
    given = os.environ if environment is None else environment
    rows = [_plug_ins(), *_tools(found)]
    for maker in makers().values():
        cards = [one for one in found if one.provider == maker.id]
        if maker.torch_device == "cpu" and not cards:
            continue
        here = bool(cards) or (maker.module is not None and maker.installed)
        rows += _cards(maker, cards) if cards else []
        rows += _module(maker, cards) if here else []
        rows += _shown(maker, given) if here else []
        rows += _timeouts(maker, given) if here else []
    if not any(one.provider != "cpu" for one in found):
        rows.append(Check("cards", "ok", "none but the processor; emulated cards and `cpu` work"))
    return rows


def _plug_ins() -> Check:
    found = f"{len(makers())} makers" + "".join(f"; {problem}" for problem in problems())
    return judged("plug-ins", found, warn=bool(problems()), way_out="repair or remove the package that is named.")


def _tools(found: Sequence[DeviceRecord]) -> list[Check]:
    """Return a warning for each maker's tool that is here and tells of no cards: its output may have a new form."""
    owners: dict[str, list[str]] = {}
    for maker in makers().values():
        if maker.smi is not None and shutil.which(maker.smi[0]):
            owners.setdefault(maker.smi[0], []).append(maker.id)
    with_cards = {one.provider for one in found}
    way_out = "run it by hand; if it lists cards, its output has a form that is not known here: please report it."
    return [
        judged(tool, "is here and tells of no cards", warn=True, way_out=way_out)
        for tool, ids in owners.items()
        if not with_cards & set(ids)
    ]


def _cards(maker: Maker, cards: Sequence[DeviceRecord]) -> list[Check]:
    names = ", ".join(sorted({one.name for one in cards}))
    drivers = ", ".join(sorted({one.driver for one in cards if one.driver}))
    found = f"{len(cards)} x {names}" + (f", driver {drivers}" if drivers else "")
    hidden = [one for one in cards if one.torch_device is None]
    shown = [one for one in cards if one not in hidden]
    rows = [
        judged(
            f"{maker.name} cards",
            found + (f"; torch shows {len(cards) - len(hidden)} of them" if hidden else ""),
            warn=bool(hidden),
            way_out=_way_to_torch(maker),
        )
    ]
    for one in cards:
        if one.problems or one.health in {"warning", "failed"}:
            words = f"card {one.index}: {'; '.join(one.problems) or one.health}"
            way_out = "leave the card out of the machine file, or have it repaired."
            rows.append(
                judged(
                    f"{maker.name} health",
                    words,
                    fail=one in shown and one.health == "failed",
                    warn=True,
                    way_out=way_out,
                )
            )
    return rows


def _way_to_torch(maker: Maker) -> str:
    if not maker.able("torch"):
        return maker.missing["torch"]
    if not built_for(maker):
        if maker.module is not None:
            return f"install {maker.module} as {maker.name} publishes it, for this version of torch."
        return f"install the torch that is built for {maker.name} ({maker.torch_device})."
    variable = f", and that {maker.visible_devices} does not hide the cards" if maker.visible_devices else ""
    return f"see that the driver is loaded and that you may open its devices{variable}."


def _module(maker: Maker, cards: Sequence[DeviceRecord]) -> list[Check]:
    if maker.module is None:
        return []
    found = f"{maker.module} is {'installed' if maker.installed else 'not installed'}"
    way_out = f"install {maker.module} as {maker.name} publishes it, for this version of torch."
    return [judged(f"{maker.name} module", found, warn=not maker.installed, way_out=way_out)]


def _shown(maker: Maker, environment: Mapping[str, str]) -> list[Check]:
    name = maker.visible_devices
    if name is None or name not in environment:
        return []
    text = environment[name].strip()
    listed = [one for one in text.split(",") if one.strip()]
    hidden = not listed or text.startswith("-1")
    found = f"{name}={text}: " + ("every card is hidden" if hidden else f"{len(listed)} cards are shown")
    return [judged(f"{maker.name} cards shown", found, warn=hidden, way_out=f"unset {name}.")]


def _timeouts(maker: Maker, environment: Mapping[str, str]) -> list[Check]:
    rows = []
    for one in maker.timeouts_in_force(environment):
        if one.seconds is None:
            long = f"its default is not published; set {one.variable} to know it"
        elif math.isinf(one.seconds):
            long = "never ends"
        else:
            long = units.show(one.seconds, "time")
        found = f"{one.what}: {long} ({one.told_by})" + (f"; {one.problem}" if one.problem else "")
        way_out = f"set {one.variable} as its source says: {one.source}."
        rows.append(judged(f"{one.variable}", found, warn=bool(one.problem), way_out=way_out))
    return rows
