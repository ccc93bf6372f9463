"""What ``zhenfa doctor --json`` prints."""

from __future__ import annotations

from typing import ClassVar

from zhenfa.live.doctor.check import Check
from zhenfa.spec.printed import Item, Printed


class TimedExchange(Item):
    """A message or sum of the plan: ``expected_s`` is what the machine's links say, null where they are not known."""

    kind: str
    what: str
    ranks: tuple[int, ...]
    bytes: int
    measured_s: float
    expected_s: float | None
    slow: bool


class Capable(Item):
    """A maker's plug-in: what it can do, and a sentence for each thing that it cannot."""

    id: str
    name: str
    torch_device: str | None
    collective: str | None
    able: tuple[str, ...]
    missing: dict[str, str]
    mark: str


class Diagnosis(Printed):
    """``zhenfa doctor``: ``sound`` says that no check failed. ``preflight`` is null where no job was given."""

    schema_name: ClassVar[str] = "zhenfa.diagnosis/1"

    sound: bool
    checks: tuple[Check, ...]
    makers: tuple[Capable, ...]
    preflight: tuple[TimedExchange, ...] | None
