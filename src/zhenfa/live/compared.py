"""What crossed the bridge between makers, and the same steps with nothing compressed beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zhenfa.live import checkpoint
from zhenfa.live.train import Driver, Measured
from zhenfa.spec.job import Bridge
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import BridgeCompared, BridgeTraffic


def crosses(plan: Plan, formation: Formation) -> bool:
    """Return whether a plan's cards are of several makers."""
    return len({formation.pool(pool).accelerator.maker for pool in plan.cards_by_pool()}) > 1


def uncompressed(driver: Driver, plan: Plan, resume: Path | None) -> Measured:
    """Take the first ``bridge.compare_steps`` steps of a run with nothing compressed, from where it will begin."""
    wanted = driver.bridge
    done = 0 if resume is None else int(checkpoint.verify(resume)["step"])
    steps = min(wanted.compare_steps, driver.execution.steps - done)
    driver.bridge = Bridge()
    try:
        return driver.train(plan, steps, load=resume, done=done)
    finally:
        driver.bridge = wanted


def traffic(
    measured: Measured, bridge: Bridge, losses: Sequence[float], plain: Measured | None
) -> BridgeTraffic | None:  # fmt: skip
    """Return what crossed the bridge in a step, None where all cards are of one maker.

    ``losses`` are those of all steps of the run; ``plain`` is what :func:`uncompressed` measured.
    """
    places = measured.places
    if len({place.maker for place in places}) < 2:
        return None
    emulated = any(place.rate is not None for place in places)
    rows = [report["bridge"] for report in measured.reports]
    return BridgeTraffic(
        activations=bridge.activations, gradients=bridge.gradients, bytes_raw=_sum(measured, "raw"),
        bytes_sent=_sum(measured, "sent"), link_s=max(row["link_s"] for row in rows) if emulated else None,
        held_s=max(row["held_s"] for row in rows),
        uncompressed=None if plain is None else _beside(measured, losses, plain),
    )  # fmt: skip


def _sum(measured: Measured, what: str) -> dict[str, float]:
    """Return the bytes of a step over all cards, by what they are."""
    found: dict[str, float] = {}
    for report in measured.reports:
        for kind, size in report["bridge"][what].items():
            found[kind] = found.get(kind, 0.0) + size
    return found


def _beside(measured: Measured, losses: Sequence[float], plain: Measured) -> BridgeCompared | None:
    if measured.done - len(losses) != plain.begun:
        return None  # the run began elsewhere than what it would be compared with
    pairs = list(zip(losses, plain.losses, strict=False))
    if not pairs:
        return None
    gaps = [(mine - other) / other for mine, other in pairs]
    return BridgeCompared(
        steps=len(gaps), step_time_s=plain.step_time, speed_up=plain.step_time / measured.step_time,
        bytes_sent=sum(_sum(plain, "sent").values()), loss_difference=max(abs(gap) for gap in gaps),
        last_loss_difference=gaps[-1],
    )  # fmt: skip
