"""The JSON document of ``zhenfa calibrate --json``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import WithJsonSchema

from zhenfa.cli.documents import EMBEDDED, Item, Printed
from zhenfa.live.makers import DeviceRecord

MachineData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Machine"})]


class TimedKind(Item):
    """How well the fitted laws give back what was timed: abs(ln(predicted / measured)) over ``sizes`` sizes."""

    kind: str
    sizes: int
    median_abs_log_ratio: float
    p90_abs_log_ratio: float


class CheckedFigure(Item):
    """One figure of a real model with random weights. ``ratio``: measured over predicted; ``waited``: share of the
    time in which threads stood in the run queue."""

    what: str
    model: str
    precision: str
    batch: int
    length: int
    predicted_s: float
    measured_s: float
    p10_s: float
    p90_s: float
    ratio: float
    waited: float


class Calibration(Printed):
    """``zhenfa calibrate``: the machine that was written to ``file``, and how far it can be believed.

    ``refused``: tasks that the device cannot do, with its reason.
    """

    schema_name: ClassVar[str] = "zhenfa.calibration/1"

    device: DeviceRecord
    cards: int
    threads: int
    torch: str
    source: str
    machine: MachineData
    file: str
    disturbed: bool
    verdict: str
    refused: dict[str, str]
    timings: tuple[TimedKind, ...]
    checks: tuple[CheckedFigure, ...]
