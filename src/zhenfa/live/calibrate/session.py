"""Calibration from outside: cards are started as a run starts them, and all of them measure at the same time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Final

from zhenfa.errors import CapabilityError, InputError, RunError
from zhenfa.live.calibrate.samples import Sample, Task, Trials, stretch, together
from zhenfa.live.calibrate.tasks import tasks_for
from zhenfa.live.discovery import devices
from zhenfa.live.engine import Engine, call_all
from zhenfa.live.host import processors
from zhenfa.live.makers import DeviceRecord, maker
from zhenfa.live.placement import CardPlace
from zhenfa.live.quiet import Quiet, verdict
from zhenfa.live.sizes import Sizes
from zhenfa.spec import fact
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Software
from zhenfa.spec.plan import Plan

SECONDS: Final = {True: 4.0, False: 50.0}
"""Seconds of the micro-benchmarks, by whether time is short; preparation comes on top."""
WITH_TRIALS: Final = 1.8
"""Times as long where whole models take turns with them."""
WIRE_SIZES: Final = (1024, 16 * 1024, 128 * 1024, 1024 * 1024, 4 * 1024 * 1024, 16 * 1024 * 1024, 48 * 1024 * 1024)
WIRE_ROUNDS: Final = {True: 5, False: 20}
PATIENCE_S: Final = 300.0
TURNS: Final = 4
"""Parts of the time for tasks, between which the cards run plans together."""
STEPS: Final = 2
WARM_UP: Final = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wires:
    """Messages and sums between the cards: bytes, and the seconds of each on the slowest card."""

    sizes: tuple[int, ...]
    messages: tuple[tuple[float, ...], ...]
    sums: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Measurements:
    """What the cards of one device said. ``refused`` names tasks that it cannot do, with the reason."""

    device: DeviceRecord
    cards: int
    threads: int
    torch: str
    samples: tuple[Sample, ...]
    wires: Wires | None
    quiet: Quiet
    refused: dict[str, str] = field(default_factory=dict)
    by_round: tuple[tuple[float, ...], ...] = ()
    """Seconds of all tasks of each round, by card."""
    tried: tuple[Trials, ...] = ()
    """Seconds of each trial that took turns with the tasks, by figure, of all cards together."""
    joint: tuple[tuple[float, ...], ...] = ()
    """Seconds of each step of every plan that all cards ran together, between the tasks."""
    day: date = field(default_factory=date.today)

    @property
    def source(self) -> str:
        """Return the source of everything that rests on these timings."""
        count = sum(len(one.seconds) for one in self.samples)
        return (
            f"measured by zhenfa calibrate on {self.device.name}, {self.day.isoformat()}, torch {self.torch}, "
            f"{count:,} samples"
        )

    @property
    def stretch(self) -> float:
        """Return what interruptions add to everything, as a factor."""
        return stretch(self.samples)

    @property
    def rounds(self) -> int:
        """Return how often every task was timed."""
        return min((len(row) for row in self.by_round), default=0)

    @property
    def lockstep(self) -> float:
        """Return the slowest card's seconds of a round over the mean card's, rounds taken together as they came."""
        rounds = list(zip(*self.by_round, strict=False))
        mean = sum(sum(row) / len(row) for row in rounds)
        return sum(max(row) for row in rounds) / mean if mean > 0 else 1.0

    def of(self, kind: str, precision: str | None = None) -> list[Sample]:
        """Return the samples of a kind, of one precision if one is named."""
        return [
            one
            for one in self.samples
            if one.task.kind == kind and one.seconds and precision in {None, one.task.precision}
        ]


def find_device(wanted: str | None) -> DeviceRecord:
    """Return the device to calibrate: the one wanted, else a card if there is one, else the processor.

    Raises :class:`InputError` naming what there is.
    """
    found = [one for one in devices() if one.torch_device is not None]
    if wanted is None:
        return next((one for one in found if one.provider != "cpu"), found[0])
    kind, _, index = wanted.partition(":")
    for one in found:
        if kind in names_of(one) and (not index or index == str(one.index)):
            return one
    there = ", ".join(str(one.torch_device) for one in found)
    raise InputError(f"this host shows no device {wanted!r}.", hint=f"it shows: {there}.")


def names_of(device: DeviceRecord) -> set[str]:
    """Return the kinds by which a device may be asked for: its torch device type and its maker's id."""
    return {device.provider, (device.torch_device or "").partition(":")[0]}


@dataclass(frozen=True)
class Joint:
    """A plan that all cards run together, and the sizes of its model."""

    plan: Plan
    sizes: Sizes


def measure(
    device: DeviceRecord,
    cards: int,
    *,
    quick: bool = False,
    seconds: float | None = None,
    say: Say | None = None,
    trials: Sequence[Mapping[str, Any]] = (),
    joint: Sequence[Joint] = (),
) -> Measurements:
    """Time every task on ``cards`` cards at once, and messages between them.

    ``trials``, whole models as :func:`zhenfa.live.calibrate.trial.trial_of` reads them, take turns with the tasks, so
    that both meet the same state of the device; so do a few steps of each plan of ``joint``. ``seconds``: of the
    timings, instead of the usual.
    On a processor each card is a process with its share of the cores. Raises :class:`RunError`, and
    :class:`CapabilityError` where there are fewer cards than asked for.
    """
    from zhenfa.live.engine_local import LocalEngine

    talk: Say = say or (lambda _: None)
    _check(device, cards)
    threads = max(1, processors() // cards) if device.provider == "cpu" else 1
    tasks = tasks_for(device.provider, quick=quick)
    talk(f"starting {cards} {'card' if cards == 1 else 'cards'}")
    steps: list[list[float]] = [[] for _ in joint]
    with LocalEngine() as engine:
        turns, seconds = TURNS if joint else 1, (seconds or SECONDS[quick]) * (WITH_TRIALS if trials else 1.0)
        talk(f"timing {len(tasks)} tasks for about {seconds:.0f} s" + (f", in {turns} parts" * bool(joint)))
        rows, wires = [], None
        for turn in range(turns):
            engine.place(placed(device, cards))
            engine.start()
            rows = _timed(engine, tasks, trials, threads, seconds / turns)
            if turn == 0 and cards > 1:
                talk("timing messages between the cards")
                wires = _wired(engine, WIRE_ROUNDS[quick])
            for kept, one in zip(steps, joint, strict=True):
                kept.extend(_together(engine, device, cards, one))
    found = _measurements(device, tasks, rows, wires)
    return replace(found, joint=tuple(tuple(one) for one in steps))


def _timed(
    engine: Engine, tasks: Sequence[Task], trials: Sequence[Mapping[str, Any]], threads: int, seconds: float
) -> list[dict[str, Any]]:
    orders = {
        "tasks": [task.to_data() for task in tasks], "trials": list(trials), "seconds": seconds, "threads": threads
    }  # fmt: skip
    arguments = [{"rank": place.rank, "provider": place.provider, **orders} for place in engine.places]
    return call_all(engine, "measure", arguments, PATIENCE_S + seconds)


def _together(engine: Engine, device: DeviceRecord, cards: int, joint: Joint) -> list[float]:
    """Return the seconds of a few steps of a plan on all cards, the first two, in which memory fills, left out."""
    from zhenfa.live.train import Driver

    driver = Driver(engine, formation_of(device, cards), joint.sizes, Execution())
    try:
        return driver.train(joint.plan, STEPS + WARM_UP).step_times[WARM_UP:]
    finally:
        driver.close()
        call_all(engine, "close", [{}] * cards, PATIENCE_S)


def formation_of(device: DeviceRecord, cards: int) -> Formation:
    """Return cards of which nothing is known but how torch reaches them, as a machine that plans can run on."""
    kind = (device.torch_device or "").partition(":")[0]
    card = Accelerator(
        id="measured-card", maker=device.maker, name=device.name,
        software=Software(torch_device=kind, collective_backend="gloo"),
    )  # fmt: skip
    pool = CardPool("cards", card, cards, (), fact.undisclosed("power"))
    return Formation("measured", "cards under measurement", (pool,), None, fact.undisclosed("ratio"))


def _wired(engine: Engine, rounds: int) -> Wires:
    from zhenfa.live.train import open_store

    store, port = open_store(engine.address)
    world = len(engine.places)
    there = {"world": world, "address": engine.address, "port": port, "generation": "wires"}
    common = there | {"sizes": list(WIRE_SIZES), "rounds": rounds}
    rows = call_all(engine, "measure_wires", [{"rank": rank, **common} for rank in range(world)], PATIENCE_S)
    del store
    return Wires(WIRE_SIZES, _slowest(rows, "messages"), _slowest(rows, "sums"))


def _slowest(rows: Sequence[dict[str, Any]], name: str) -> tuple[tuple[float, ...], ...]:
    """Return, per size and round, the seconds of the slowest card that took part."""
    return tuple(
        tuple(max(value for value in same if not math.isnan(value)) for same in zip(*cards, strict=True))
        for cards in zip(*(row[name] for row in rows), strict=True)
    )


def _measurements(
    device: DeviceRecord, tasks: Sequence[Task], rows: Sequence[dict[str, Any]], wires: Wires | None
) -> Measurements:
    by_card = [
        [Sample(task, tuple(seconds)) for task, seconds in zip(tasks, row["seconds"], strict=True)] for row in rows
    ]
    samples = tuple(together(by_card))
    tried = tuple(_of_all(same) for same in zip(*(row["tried"] for row in rows), strict=True))
    if not any(sample.seconds for sample in samples if sample.task.kind == "matmul"):
        reason = next(iter(rows[0]["refused"].values()), "it gave no reason")
        raise RunError(f"{device.name} multiplied no matrices: {reason}.")
    fixed = [[one for sample in row if sample.task.kind == "yardstick" for one in sample.seconds] for row in by_card]
    first = rows[0]
    return Measurements(
        device, len(rows), first["threads"], first["torch"], samples, wires,
        verdict([row["waited"] for row in rows], fixed), first["refused"],
        tuple(tuple(row["rounds"]) for row in rows), tried,
    )  # fmt: skip


def _of_all(rows: Sequence[Trials]) -> Trials:
    """Return the seconds of one trial on all cards, by figure."""
    return {what: [one for row in rows for one in row[what]] for what in rows[0]}


def _check(device: DeviceRecord, cards: int) -> None:
    if device.provider == "cpu":
        if cards > processors():
            raise InputError(
                f"{cards} cards need as many processors, and this process may use {processors()}.",
                hint=f"ask for {processors()} at most: a card is a process with processors of its own.",
            )
        return
    there = sum(one.provider == device.provider and one.torch_device is not None for one in devices())
    if device.index + cards > there:
        raise CapabilityError(f"{cards} {device.provider} cards are wanted from {device.torch_device}; {there} there.")


def placed(device: DeviceRecord, cards: int) -> list[CardPlace]:
    """Return the places of ``cards`` cards from the device on, each without a stage."""
    return [_card(device, rank) for rank in range(cards)]


def _card(device: DeviceRecord, rank: int) -> CardPlace:
    provider = maker(device.provider)
    return CardPlace(
        rank=rank, pipeline=rank, stage=0, stages=1, pool="cards", index=device.index + rank, maker=device.maker,
        accelerator=device.name, provider=provider.id, tensor=0, tensors=1, precision="fp32", chunks=(),
        virtual_stages=1, micro_batches=1, micro_batch_size=1, first_sequence=0, rate=None, memory_rate=None,
        capacity=None,
    )  # fmt: skip
